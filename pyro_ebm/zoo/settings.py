r"""Settings as text: how an object was built, so that it can be built anew.

An object is written as the name of its class and the arguments of its constructor, each as the
attribute of the same name is now. Numbers, text and the containers of these are written as they
are, tensors by a name under which they are kept, supports by torch's names; an object that stands
in two places is one object again. Nothing else can be written, so that nothing but constructors of
known classes runs when it is read.
"""

from __future__ import annotations

__all__ = ["Reader", "Writer", "arguments_of", "name_of"]

import dataclasses
import importlib
import inspect
import math
from collections.abc import Iterable, Mapping

from pyro.infer import ELBO, Trace_ELBO
from torch import Tensor, nn
from torch.distributions import constraints
from torch.distributions.constraints import Constraint

from ..energies.alphabet import spins
from ..energies.base import Energy
from ..kernels.base import Kernel
from ..objectives.base import Objective

Text = None | bool | int | float | str | list | dict
"""What JSON has a form for."""

NAMESPACES = ("energies", "kernels", "objectives", "zoo")
"""Where classes are public: they are written by the names that users call them by."""

HOW_TO_KEEP = (
    "write it as a class of your own (a subclass of pyro_ebm.energies.Energy, of an objective, a "
    "kernel or a model) that keeps each argument of its constructor as an attribute of that name, "
    "and pass the class to load(path, classes=[...]); or keep the weights alone, with "
    "safetensors.torch.save_model(model, path)"
)


def name_of(cls: type) -> str:
    """Returns the public name of a class within the package, else where it was defined.

    Args:
        cls: The class.

    Example:
        >>> from pyro_ebm.energies.neural import MLP
        >>> name_of(MLP)
        'energies.MLP'
    """
    for namespace in NAMESPACES:
        if getattr(_namespace(namespace), cls.__name__, None) is cls:
            return f"{namespace}.{cls.__name__}"
    return f"{cls.__module__}:{cls.__qualname__}"


def arguments_of(thing: object, elsewhere: Mapping[str, str] | None = None) -> dict[str, object]:
    """Reads the arguments of an object's constructor from its attributes.

    Args:
        thing: The object.
        elsewhere: The attributes of arguments that are not kept under their own names.

    Raises:
        ValueError: If an argument has no attribute of its name.

    Example:
        >>> from pyro_ebm.energies.neural import MLP
        >>> arguments_of(MLP((2,), hidden_sizes=(8,)))
        {'event_shape': torch.Size([2]), 'hidden_sizes': (8,), 'base_scale': 10.0}
    """
    names = {name: name for name in inspect.signature(type(thing)).parameters}
    names |= {name: kept for name, kept in (elsewhere or {}).items() if name in names}
    missing = [name for name, kept in names.items() if not hasattr(thing, kept)]
    if missing:
        raise ValueError(
            f"{type(thing).__name__} does not keep its argument {missing[0]} as an attribute of "
            "that name, so that its settings cannot be read"
        )
    return {name: getattr(thing, kept) for name, kept in names.items()}


class Writer:
    """Writes objects as text, and collects the tensors that they were given.

    Args:
        named: Tensors that are kept elsewhere, by name.
        prefix: What the names of other tensors begin with.

    Example:
        >>> import torch
        >>> from pyro_ebm.energies.analytic import Laplace
        >>> writer = Writer({}, "")
        >>> text = writer.write(Laplace(torch.zeros(2), 1.0), "energy")
        >>> text["class"], text["arguments"]["loc"], list(writer.tensors)
        ('energies.Laplace', {'tensor': '0', 'learned': False}, ['0', '1'])
    """

    def __init__(self, named: Mapping[str, Tensor], prefix: str) -> None:
        self.prefix = prefix
        self.tensors: dict[str, Tensor] = {}
        """The tensors among the arguments that have no other name."""
        self.classes: set[type] = set()
        """The classes that were written."""
        self._names = {id(named[name]): name for name in reversed(named)}
        self._written: dict[int, int] = {}
        self._alive: list[object] = [named]  # what has an id must outlive it

    def write(self, value: object, place: str) -> Text:
        """Writes a value.

        Args:
            value: A setting, or an object with settings.
            place: What it is, for an error to name.

        Raises:
            ValueError: If it cannot be written.
        """
        if isinstance(value, float) and not math.isfinite(value):
            return {"number": str(value)}
        if value is None or type(value) in (bool, int, float, str):
            return value
        if isinstance(value, Tensor):
            return {"tensor": self._name(value), "learned": isinstance(value, nn.Parameter)}
        if isinstance(value, (list, nn.ModuleList, nn.ParameterList)):
            return [self.write(item, f"{place}[{i}]") for i, item in enumerate(value)]
        if isinstance(value, tuple):
            return {"tuple": self.write(list(value), place)}
        if isinstance(value, ELBO) and _is_plain(value):
            return None
        if _is_public(value):
            return self._object(value, place)
        raise ValueError(f"{place} is {_kind(value)}, which no file can hold; {HOW_TO_KEEP}")

    def _name(self, tensor: Tensor) -> str:
        if id(tensor) not in self._names:
            name = f"{self.prefix}{len(self.tensors)}"
            self._alive.append(tensor)
            self._names[id(tensor)], self.tensors[name] = name, tensor
        return self._names[id(tensor)]

    def _support(self, support: Constraint, place: str) -> Text:
        if support is spins:
            return {"support": "spins"}
        for name in constraints.__all__:
            found = getattr(constraints, name)
            if found is support:
                return {"support": name}
            if found is type(support):
                bounds = self.write(list(arguments_of(support).values()), place)
                return {"support": name, "bounds": bounds}
        raise ValueError(f"{place} is a support of no name, {support}; {HOW_TO_KEEP}")

    def _object(self, thing: object, place: str) -> Text:
        if isinstance(thing, Constraint):
            return self._support(thing, place)
        if id(thing) in self._written:
            return {"again": self._written[id(thing)]}
        try:
            arguments = arguments_of(thing)
        except ValueError as error:
            raise ValueError(f"{place} cannot be written: {error}; {HOW_TO_KEEP}") from error
        written = {name: self.write(value, f"{place}.{name}") for name, value in arguments.items()}
        self._alive.append(thing)
        self.classes.add(type(thing))
        self._written[id(thing)] = len(self._written)
        return {"class": name_of(type(thing)), "arguments": written}


class Reader:
    """Builds objects from what :class:`Writer` wrote.

    Args:
        tensors: All tensors, by name.
        classes: Classes beyond those of the package that may be built.

    Example:
        >>> Reader({}).read({"class": "zoo.Training", "arguments": {"num_steps": 7}}).num_steps
        7
    """

    def __init__(self, tensors: Mapping[str, Tensor], classes: Iterable[type] = ()) -> None:
        self.tensors = tensors
        self._classes = {name_of(cls): cls for cls in classes}
        self._made: dict[str, Tensor] = {}
        self._built: list[object] = []

    def read(self, text: Text) -> object:
        """Builds a value.

        Args:
            text: What was written.

        Raises:
            ValueError: If a class is not known, or does not take the arguments.
        """
        if isinstance(text, list):
            return [self.read(item) for item in text]
        if not isinstance(text, dict):
            return text
        if "number" in text:
            return float(text["number"])
        if "tuple" in text:
            return tuple(self.read(text["tuple"]))
        if "tensor" in text:
            return self._tensor(text["tensor"], text["learned"])
        if "again" in text:
            return self._built[text["again"]]
        if "support" in text:
            return self._support(text)
        thing = self.class_named(text["class"])(**self.arguments(text["arguments"]))
        self._built.append(thing)
        return thing

    def arguments(self, text: dict[str, Text]) -> dict[str, object]:
        """Builds the arguments of a constructor."""
        return {name: self.read(value) for name, value in text.items()}

    def class_named(self, name: str) -> type:
        """Finds a class by the name that :func:`name_of` gave it.

        Raises:
            ValueError: If it is neither public in the package nor one of those given.
        """
        namespace, _, own = name.partition(".")
        found = self._classes.get(name)
        if found is None and namespace in NAMESPACES and own in _namespace(namespace).__all__:
            found = getattr(_namespace(namespace), own)
        if not isinstance(found, type):
            raise ValueError(
                f"the file needs the class {name}, which is none of pyro_ebm's; pass it to "
                "load(path, classes=[...])"
            )
        return found

    def _support(self, text: dict[str, Text]) -> Constraint:
        name = text["support"]
        if name == "spins":
            return spins
        found = getattr(constraints, name) if name in constraints.__all__ else None
        if isinstance(found, type) and issubclass(found, Constraint) and "bounds" in text:
            return found(*self.read(text["bounds"]))
        if not isinstance(found, Constraint):
            raise ValueError(f"the file needs the support {name}, which torch does not know")
        return found

    def _tensor(self, name: str, learned: bool) -> Tensor:
        if name not in self._made:
            value = self.tensors[name].clone()
            trains = learned and value.is_floating_point()
            self._made[name] = nn.Parameter(value) if trains else value
        return self._made[name]


def _is_public(value: object) -> bool:
    """Whether a value is an object with settings, or a support."""
    known = isinstance(value, (Energy, Kernel, Objective)) or dataclasses.is_dataclass(value)
    return isinstance(value, Constraint) or (known and not type(value).__name__.startswith("_"))


def _kind(value: object) -> str:
    """Says what a value is that cannot be written."""
    if isinstance(value, Energy):
        return "a plain callable"  # within a class that is not the user's
    return getattr(value, "__name__", f"of class {type(value).__name__}")


def _namespace(name: str) -> object:
    return importlib.import_module(f"...{name}", __name__)


def _is_plain(elbo: ELBO) -> bool:
    """Whether an ELBO is what an objective has where none is given."""
    return type(elbo) is Trace_ELBO and vars(elbo) == vars(Trace_ELBO())
