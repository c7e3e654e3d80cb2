"""What a training run remembers, by name, and the state of one at a step, kept in memory."""

from __future__ import annotations

__all__ = [
    "Checkpoint",
    "Waiting",
    "objective_of",
    "optimizer_and_objective",
    "set_both",
    "tensors",
]

import copy
from collections.abc import Iterable, Iterator
from typing import Any

import pyro
import torch
from pyro.infer import SVI
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.utils._pytree import tree_map

from ..distributions import Boltzmann, base_distribution
from ..energies.base import module_of
from ..guards import unconstrained_parameter
from ..runs.checkpoint import compare, random_state, set_random_state
from .base import Objective
from .memory import put, shapes

OF_MODULE = "$$$"
"""What Pyro puts between the name of a module and that of its parameter."""


def tensors(svis: Iterable[SVI], names: Iterable[str] | None = None) -> dict[str, Tensor]:
    """Returns what learns, by its name in Pyro's store, and what else the energies consist of.

    The latter are their buffers and the parameters that are held fixed.

    Args:
        svis: What it is trained with.
        names: Those in the store that matter; all if none are given.
    """
    store = pyro.get_param_store()
    found = {n: p for n, p in store.named_parameters() if names is None or n in names}
    for svi in svis:
        for site, seen in getattr(objective_of(svi), "evaluations", {}).items():
            for name, tensor in _not_in_store(site, seen.boltzmann):
                found.setdefault(name, tensor)
    return found


def _not_in_store(site: str, boltzmann: Boltzmann) -> Iterator[tuple[str, Tensor]]:
    module = module_of(boltzmann.energy)
    if module is not None:
        for name, tensor in (*module.named_parameters(), *module.named_buffers()):
            if pyro.get_param_store().param_name(tensor) is None:
                yield f"{site}.energy.{name}", tensor


def optimizer_and_objective(svi: SVI) -> dict[str, Any]:
    """Returns what an SVI takes from one step to the next beside those tensors, without copies."""
    objective = objective_of(svi)
    return {
        "optimizer": {**svi.optim._state_waiting_to_be_consumed, **svi.optim.get_state()},
        "objective": {} if objective is None else objective.state_dict(),
    }


def set_both(svi: SVI, found: dict[str, Any], device: torch.device | None = None) -> None:
    """Sets what :func:`optimizer_and_objective` returned.

    Args:
        svi: The SVI.
        found: What was returned; what is in it may be changed from now on.
        device: Where tensors belong, if not where they are.
    """
    svi.optim.optim_objs.clear()
    svi.optim._state_waiting_to_be_consumed.clear()
    svi.optim.set_state(found["optimizer"])
    objective = objective_of(svi)
    if objective is not None:
        objective.load_state_dict(found["objective"], device)


class Checkpoint:
    """What an SVI would need to go on from a step as if nothing had happened since.

    It holds the parameters, the state of the optimizer, and of an objective all that it remembers:
    chains, their random generators, the step size of its kernel. Torch's global random state is
    not part of it.

    Args:
        svi: The SVI, at that step.
        step: How many updates were made before.
        names: The parameters that updates change.
    """

    def __init__(self, svi: SVI, step: int, names: Iterable[str] = ()) -> None:
        self.step = step
        self._svi = svi
        self._optim = svi.optim
        self._tensors: dict[str, Tensor] = {}
        self.add(tensors([svi], names))
        self._rest = _copied(optimizer_and_objective(svi))

    def add(self, here: dict[str, Tensor]) -> None:
        """Keeps parameters and buffers as they are now, but for those that it has."""
        for name, tensor in here.items():
            if name not in self._tensors:
                self._tensors[name] = tensor.detach().clone()

    def restore(self) -> None:
        """Puts everything back. An optimizer that took the place of the kept one begins anew."""
        here = tensors([self._svi], self._tensors)
        put(here, {name: self._tensors[name] for name in here})
        rest = _copied(self._rest)
        if self._svi.optim is not self._optim:
            rest["optimizer"] = {}
        set_both(self._svi, rest)

    def state_dict(self) -> dict[str, Any]:
        """Returns all that it holds."""
        return {"step": self.step, "tensors": self._tensors, "rest": self._rest}

    def load_state_dict(self, found: dict[str, Any], device: torch.device | None = None) -> None:
        """Takes over what :meth:`state_dict` of another one returned."""
        self.step, self._rest = found["step"], found["rest"]
        self._tensors = {name: tensor.to(device) for name, tensor in found["tensors"].items()}


def _copied(tree: Any) -> Any:  # noqa: ANN401
    return tree_map(
        lambda x: x.detach().clone() if isinstance(x, Tensor) else copy.deepcopy(x), tree
    )


class Waiting(Messenger):
    """Gives parameters their values as Pyro comes to know them, and energies theirs as they come.

    Args:
        values: The values of what :func:`tensors` returned, by name.
        names: The names of all that it returned.
        device: The kind of device that they come from.
    """

    def __init__(self, values: dict[str, Tensor], names: Iterable[str], device: str) -> None:
        super().__init__()
        self.values = dict(values)
        """Those that still wait."""
        self._names = set(names)
        self._device = device
        self._modules: set[str] = set()

    def take(self, name: str, tensor: Tensor) -> bool:
        """Gives a tensor its value, if one waits for it.

        Raises:
            ValueError: If it has another type or shape or is on another kind of device.
        """
        if name not in self.values:
            return False
        compare({f"device of {name}": self._device}, {f"device of {name}": tensor.device.type})
        put({name: tensor}, {name: self.values[name]})
        del self.values[name]
        return True

    def check(self) -> None:
        """Makes sure, after a step, that no module was found only in part.

        Raises:
            ValueError: If one has fewer parameters than its namesake had.
        """
        for name, value in self.values.items():
            if OF_MODULE in name and name.partition(OF_MODULE)[0] in self._modules:
                compare(shapes({name: value}), {})

    def _pyro_param(self, msg: dict) -> None:
        if msg["name"] in self.values:
            self._random = random_state()

    def _pyro_post_param(self, msg: dict) -> None:
        name = msg["name"]
        if name in self.values:
            set_random_state(self._random)  # a first value that was drawn is not wanted
        if self._names and OF_MODULE in name:
            if name not in self._names:
                compare({}, shapes({name: msg["value"]}))
            self._modules.add(name.partition(OF_MODULE)[0])
        if self.take(name, unconstrained_parameter(msg["value"])):
            msg["value"] = pyro.get_param_store()[name]

    def _pyro_sample(self, msg: dict) -> None:
        boltzmann = base_distribution(msg["fn"])
        if self.values and isinstance(boltzmann, Boltzmann):
            for name, tensor in _not_in_store(msg["name"], boltzmann):
                self.take(name, tensor)


def objective_of(svi: SVI) -> Objective | None:
    """Returns the objective that is the loss of an SVI, if it is one."""
    loss = getattr(svi.loss_and_grads, "__self__", None)
    return loss if isinstance(loss, Objective) else None
