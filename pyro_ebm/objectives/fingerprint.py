"""What the parts of a training run are, in words: runs that differ in them are not the same."""

from __future__ import annotations

__all__ = ["described", "same_part", "svi_of"]

import re

import torch
from pyro.infer import SVI

from ..ranks.divided import name_of
from ..runs.checkpoint import compare
from ..runs.fingerprint import describe
from .base import Objective
from .checkpoint import objective_of
from .monitor import Monitor

NUM_CHAINS = re.compile(r"num_chains=\d+")


def same_part(there: dict[str, str], here: dict[str, str], *, divided: bool) -> None:
    """Makes sure that a part may go on.

    Args:
        there: What :func:`described` said of the one that was kept.
        here: What it says of this one.
        divided: Whether chains are divided anew, so that there may be more or fewer on a rank.

    Raises:
        ValueError: If they differ, naming both sides.
    """
    if divided:
        there, here = (
            {name: NUM_CHAINS.sub("num_chains", text) for name, text in side.items()}
            for side in (there, here)
        )
    compare(there, here)


def svi_of(part: object) -> SVI | None:
    """Returns the SVI that a part is, or makes the steps of."""
    if isinstance(part, Monitor):
        return part.svi
    return part if isinstance(part, SVI) else None


def described(name: str, part: object) -> dict[str, str]:
    """Says what a part is.

    Args:
        name: What it is called.
        part: It.
    """
    found = {name: name_of(part)}
    svi = svi_of(part)
    if svi is not None:
        loss = objective_of(svi)
        loss_name = type(getattr(svi.loss_and_grads, "__self__", svi.loss)).__name__
        found[f"objective of {name}"] = loss_name if loss is None else _of_objective(loss)
        found[f"optimizer of {name}"] = _of_optimizer(svi)
    if isinstance(part, Monitor):
        limits = ("keep_every", "patience", "max_gap", "max_drift")
        found |= {f"{limit} of {name}": describe(getattr(part, limit)) for limit in limits}
    if isinstance(part, Objective):
        found[f"settings of {name}"] = _of_objective(part)
    if isinstance(part, torch.optim.Optimizer):
        found[f"settings of {name}"] = describe(part.defaults)
    return found


def _of_objective(objective: Objective) -> str:
    """Describes it by its own settings, and of those of the ELBO that it wraps by its class."""
    own = {k: v for k, v in vars(objective).items() if k not in vars(objective.elbo)}
    settings = {k: v for k, v in own.items() if k[0] != "_" and not isinstance(v, dict)}
    listed = ", ".join(f"{k}={describe(v)}" for k, v in settings.items())
    return f"{type(objective).__name__}({listed})"


def _of_optimizer(svi: SVI) -> str:
    optim = svi.optim
    makers = (optim.pt_optim_constructor, getattr(optim, "pt_scheduler_constructor", None))
    names = [maker.__name__ for maker in makers if maker is not None]
    settings = (optim.pt_optim_args, optim.pt_clip_args, getattr(optim, "kwargs", {}))
    return f"{' with '.join(names)} of {', '.join(map(describe, settings))}"
