"""What a run is, in words: two runs of other kernels, targets or numbers of steps differ in it."""

from __future__ import annotations

__all__ = ["SETTINGS", "describe", "of_run", "same_run", "same_target"]

import hashlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution

from ..kernels.base import Kernel
from ..kernels.recall import OF_THE_TARGET
from ..potential import Potential
from .checkpoint import compare

SETTINGS = (
    "num_samples",
    "warmup_steps",
    "num_chains",
    "num_superchains",
    "thin",
    "save",
    "compile",
)
"""What of a run decides on its draws, beside its kernel and target."""


def of_run(kernel: Kernel, potential: Potential, **settings: object) -> dict[str, Any]:
    """Says what a run is, in what JSON takes.

    Args:
        kernel: The kernel.
        potential: Its target: of it the sites count, and not what it gives them.
        settings: Whatever else two runs must have in common.
    """
    sites = {
        site.name: f"{type(site.bijection).__name__} of shape {tuple(site.shape)}"
        for site in potential.sites
    }
    return {
        "kernel": describe(kernel),
        "sites": sites,
        "dtype": str(potential.start.dtype),
        "device": potential.start.device.type,
        **{name: describe(value) for name, value in settings.items()},
    }


def same_run(there: dict[str, Any], here: dict[str, Any]) -> None:
    """Makes sure that a run may go on: it is the same, or the same with more draws.

    Args:
        there: What :func:`of_run` said of the run that was kept.
        here: What it says of this one.

    Raises:
        ValueError: If they differ in anything else, naming both sides.

    Example:
        >>> same_run({"num_samples": "100"}, {"num_samples": "200"})
        >>> same_run({"num_samples": "100"}, {"num_samples": "50"})
        Traceback (most recent call last):
        ...
        ValueError: the checkpoint is that of another run: num_samples is 100 there and 50 here...
    """
    name = "num_samples"
    more = int(here[name]) > int(there[name])
    compare({**there, name: here[name]} if more else there, here)


def same_target(there: Tensor, here: Tensor) -> None:
    """Makes sure that the target has the same data and parameters, by what it gives the start.

    Args:
        there: U where the chains of the run that was kept began, with shape ``(C,)``.
        here: U where those of this run do, which has drawn its start from equal generators.

    Raises:
        ValueError: If they differ by more than rounding, as on another machine.
    """
    here = here.to(there.device)
    size = 1 + there.abs().nan_to_num(posinf=0.0, neginf=0.0).max()
    close = (there - here).abs() <= torch.finfo(there.dtype).eps ** 0.5 * size
    differs = ~(close | (there == here) | (there.isnan() & here.isnan()))
    for chain in differs.nonzero().flatten().tolist()[:1]:
        name = f"U where chain {chain} began"
        compare({name: there[chain].item()}, {name: here[chain].item()})


def describe(value: object) -> str:
    """Describes a setting: a kernel by its class and its own settings, without its target.

    Example:
        >>> from pyro_ebm.kernels import ULA
        >>> describe(ULA(step_size=0.1)).partition(",")[0]
        'ULA(step_size=0.1'
    """
    if isinstance(value, Kernel):
        own = {k: v for k, v in vars(value).items() if k[0] != "_" and k not in OF_THE_TARGET}
        return f"{type(value).__name__}({', '.join(f'{k}={describe(v)}' for k, v in own.items())})"
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{k}: {describe(v)}' for k, v in value.items())}}}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(describe, value))}]"
    if isinstance(value, Distribution):
        own = {name: getattr(value, name) for name in value.arg_constraints}
        return f"{type(value).__name__}({', '.join(f'{k}={describe(v)}' for k, v in own.items())})"
    if isinstance(value, Tensor):
        data = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
        digest = hashlib.sha256(data).hexdigest()[:8]
        return f"{value.dtype} of shape {tuple(value.shape)} ({digest})"
    if value is None or isinstance(value, bool | int | float | str):
        return repr(value)
    return type(value).__name__
