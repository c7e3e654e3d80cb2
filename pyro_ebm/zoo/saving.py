r"""A fitted model as one ``.safetensors`` file.

The file holds tensors: parameters and buffers, those among the arguments of constructors, and what
was recorded in training. Its metadata say the class, the arguments (:mod:`pyro_ebm.zoo.settings`),
the version of the package and that of the format. There is no pickle in it: to read it runs
constructors of known classes, and nothing else.

A sum is rounded in the order in which its terms lie in memory. So a tensor whose dimensions lie
there in another order is written in that order, which the metadata say.
"""

from __future__ import annotations

__all__ = ["FORMAT", "read_file", "write_file"]

import json
import os
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ..layout import memory_order, restored, stored
from ..version import __version__
from .settings import Reader, Writer, name_of

if TYPE_CHECKING:
    from .base import Generative

FORMAT = "pyro_ebm.zoo 1"
"""The format and its version, which changes with what a file has to hold."""

_ARGUMENT, _RECORD = "argument/", "history/"
"""How the names of tensors begin that are not of the state of the model."""


def write_file(path: Path, model: Generative) -> None:
    """Writes a model, all of it or nothing: see :meth:`~pyro_ebm.zoo.Generative.save`.

    What is written is read back first, so that what is on the disk can be loaded.

    Args:
        path: The file.
        model: The model.
    """
    library, kind = _safetensors(), type(model).__name__
    tensors = model.state_dict(keep_vars=True)
    writer = Writer(tensors, _ARGUMENT)
    try:
        arguments = {
            name: writer.write(value, f"its {name}") for name, value in model.arguments().items()
        }
    except ValueError as error:
        raise ValueError(f"this {kind} cannot be saved: {error}") from error
    tensors = {**tensors, **writer.tensors}
    for name, record in model.history.items():
        tensors[_RECORD + name] = torch.tensor(record, dtype=torch.float64)
    frozen = [name for name, p in model.named_parameters() if not p.requires_grad]
    orders = {name: memory_order(tensor) for name, tensor in tensors.items()}
    metadata = {
        "format": FORMAT,
        "class": name_of(type(model)),
        "arguments": json.dumps(arguments, allow_nan=False),
        "frozen": json.dumps(frozen),
        "orders": json.dumps({k: o for k, o in orders.items() if list(o) != sorted(o)}),
        "pyro_ebm": __version__,
    }
    apart = {
        name: stored(tensor.detach().cpu(), orders[name]).contiguous().clone()
        for name, tensor in tensors.items()
    }
    data = library.torch.save(apart, metadata)
    lost = vars(model).keys() - vars(_build(metadata, apart, type(model), writer.classes)).keys()
    if lost:
        raise ValueError(
            f"this {kind} cannot be saved: it keeps {', '.join(sorted(lost))} neither as a "
            "parameter nor as a buffer; register_buffer(name, None) in the constructor, and set "
            "it to a tensor in fit"
        )
    _write(path, data)


def read_file(path: Path, expected: type, classes: Iterable[type]) -> Generative:
    """Reads a model: see :meth:`~pyro_ebm.zoo.Generative.load`.

    Args:
        path: The file.
        expected: The class that it must be of.
        classes: Classes beyond those of the package that it may need.
    """
    library = _safetensors()
    data = path.read_bytes()
    try:
        tensors = library.torch.load(data)
    except library.SafetensorError as error:
        raise ValueError(
            f"{path} is no whole .safetensors file ({len(data)} bytes, cut short?): {error}"
        ) from error
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    metadata = header.get("__metadata__", {})
    found = metadata.get("format", "none of a model of pyro_ebm")
    version = metadata.get("pyro_ebm", "of another version")
    if found != FORMAT:
        raise ValueError(
            f"{path} has the format '{found}', but pyro_ebm {__version__} reads '{FORMAT}'; load "
            f"it with pyro_ebm {version}, or fit and save the model anew"
        )
    try:
        return _build(metadata, tensors, expected, classes)
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(
            f"{path}, written by pyro_ebm {version}, cannot be loaded by pyro_ebm {__version__}: "
            f"{error}"
        ) from error


def _build(
    metadata: Mapping[str, str],
    tensors: Mapping[str, Tensor],
    expected: type,
    classes: Iterable[type],
) -> Generative:
    orders = json.loads(metadata["orders"])
    tensors = {k: restored(t, orders[k]) if k in orders else t for k, t in tensors.items()}
    reader = Reader(tensors, [expected, *classes])
    cls = reader.class_named(metadata["class"])
    if not issubclass(cls, expected):
        raise ValueError(
            f"it holds a {name_of(cls)}, but was to be read as a {name_of(expected)}; "
            f"{cls.__name__}.load reads it, and zoo.Generative.load reads a model of any class"
        )
    with torch.random.fork_rng():  # networks draw weights, which are not those that they will have
        model = cls(**reader.arguments(json.loads(metadata["arguments"])))
    _fill(model, {k: t for k, t in tensors.items() if not k.startswith((_ARGUMENT, _RECORD))})
    frozen = set(json.loads(metadata["frozen"]))
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name not in frozen)
    model.history = {
        name.removeprefix(_RECORD): record.tolist()
        for name, record in tensors.items()
        if name.startswith(_RECORD)
    }
    return model.eval()


def _fill(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Gives parameters and buffers their values, of whatever dtype these are."""
    empty = {
        f"{prefix}.{name}" if prefix else name
        for prefix, module in model.named_modules()
        for name, buffer in module._buffers.items()
        if buffer is None
    }
    own = model.state_dict(keep_vars=True)
    for whose, there, needed in (("file", state, own), ("model", own.keys() | empty, state)):
        missing = sorted(needed.keys() - set(there))
        if missing:
            raise ValueError(f"the {whose} has no {', '.join(missing)}")
    for name, value in state.items():
        place, _, leaf = name.rpartition(".")
        if name in empty:
            setattr(model.get_submodule(place), leaf, value)
        elif own[name].shape != value.shape:
            raise ValueError(
                f"{name} has shape {tuple(value.shape)} in the file and {tuple(own[name].shape)} "
                "in the model"
            )
        else:
            own[name].data = value.clone()


def _write(path: Path, data: bytes) -> None:
    """Puts a file on the disk, beside the old one until it is whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with open(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _safetensors() -> ModuleType:
    try:
        import safetensors.torch
    except ImportError as error:
        raise ImportError(
            "a model is saved with safetensors: pip install pyro_ebm[compare]"
        ) from error
    return safetensors
