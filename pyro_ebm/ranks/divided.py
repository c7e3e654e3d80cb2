"""Energies whose parameters are divided among ranks, as FSDP2 does with ``fully_shard``.

Each rank keeps a part of every parameter, of its gradient and of what an optimizer knows of it.
They bring the parameters together whenever one of them evaluates the energy, and average gradients
as they take them apart: so all ranks have to evaluate it equally often, and in the same order.
"""

from __future__ import annotations

__all__ = [
    "as_parts",
    "brought_together",
    "check_divided",
    "is_divided",
    "name_of",
    "own_part",
    "put_apart",
    "whole",
    "wrapped",
]

import contextlib
import sys
from collections.abc import Iterator
from types import ModuleType

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook

from .group import num_ranks


def is_divided(x: nn.Module | Tensor | None) -> bool:
    """Whether ``fully_shard`` has divided a parameter, or some of a module.

    Args:
        x: A tensor, or a module.

    Example:
        >>> is_divided(nn.Linear(2, 1))
        False
    """
    if isinstance(x, nn.Module):
        return any(True for _ in _units(x))
    tensor = _loaded("torch.distributed.tensor")
    return tensor is not None and isinstance(x, tensor.DTensor)


def wrapped(module: nn.Module) -> str:
    """Says what in a module sends messages to other ranks as it is evaluated, if anything does.

    Args:
        module: The module.
    """
    if is_divided(module):
        return "fully_shard"
    if any(isinstance(part, nn.parallel.DistributedDataParallel) for part in module.modules()):
        return "DistributedDataParallel"
    return ""


def name_of(x: object) -> str:
    """Names the class of something; of a divided module that which it had before.

    Args:
        x: It.

    Example:
        >>> name_of(nn.Linear(2, 1))
        'Linear'
    """
    return next(kind.__name__ for kind in type(x).__mro__ if not issubclass(kind, _kinds()))


@contextlib.contextmanager
def brought_together() -> Iterator[list[nn.Module]]:
    """Collects the divided modules that are evaluated meanwhile, wherever they are called from.

    Example:
        >>> with brought_together() as found:
        ...     y = nn.Linear(2, 1)(torch.ones(2))
        >>> found
        []
    """
    found: list[nn.Module] = []
    if not _kinds():
        yield found
        return

    def note(module: nn.Module, _: object) -> None:
        if isinstance(module, _kinds()):
            found.append(module)

    handle = register_module_forward_pre_hook(note)
    try:
        yield found
    finally:
        handle.remove()


def put_apart(module: nn.Module) -> None:
    """Lets go of parameters that were brought together, so that each rank has its own part again.

    Args:
        module: The module.
    """
    for unit in _units(module):
        unit.reshard()


def whole(x: Tensor) -> Tensor:
    """Brings a divided tensor together, on all ranks; another one is returned as it is.

    Args:
        x: The tensor.
    """
    return x.full_tensor() if is_divided(x) else x


def own_part(x: Tensor) -> Tensor:
    """Returns this rank's part of a divided tensor; another one as it is.

    Args:
        x: The tensor.
    """
    return x.to_local() if is_divided(x) else x


def as_parts(x: Tensor, like: Tensor) -> Tensor:
    """Divides a tensor, which every rank has whole, as another one is.

    Args:
        x: The tensor.
        like: The other one; where that is not divided, or ``x`` is already, nothing happens.
    """
    if is_divided(x) or not is_divided(like):
        return x
    distribute = _loaded("torch.distributed.tensor").distribute_tensor
    return distribute(x.to(like.device), like.device_mesh, like.placements)


def check_divided(parameter: Tensor) -> None:
    """Makes sure that all ranks share a divided parameter.

    Args:
        parameter: It.

    Raises:
        ValueError: If it is divided among others.
    """
    size = parameter.device_mesh.size()
    if size != num_ranks():
        raise ValueError(
            f"a parameter is divided among {size} ranks, and {num_ranks()} train together: "
            "fully_shard(energy, mesh=...) must have a mesh of all ranks, and ebm.ranks.start() "
            "come before"
        )


def _units(module: nn.Module) -> Iterator[nn.Module]:
    """The modules that bring their parameters together."""
    yield from (part for part in module.modules() if isinstance(part, _kinds()))


def _kinds() -> type | tuple[()]:
    """The class of divided modules, or none."""
    return getattr(_loaded("torch.distributed.fsdp"), "FSDPModule", ())


def _loaded(name: str) -> ModuleType | None:
    """A part of torch that takes a while to import; without it there is nothing divided."""
    return sys.modules.get(name) if torch.distributed.is_available() else None
