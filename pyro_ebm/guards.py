"""What must be refused when Pyro scores an unnormalised density.

Pyro's inference routines take every ``log_prob`` at its word. Where log Z depends on what they
learn or infer, that word is wrong without a sign: the ELBO runs to infinity, MCMC returns another
posterior. The checks here run as Pyro scores a site, in its own routines as in ours.
"""

from __future__ import annotations

__all__ = [
    "check_energy_is_fixed",
    "check_score_is_sound",
    "trained_by_elbo",
    "unconstrained_parameter",
]

import sys
import warnings
from types import FrameType

import torch
from pyro.infer.mcmc.util import _PEMaker
from pyro.poutine.runtime import _PYRO_STACK
from pyro.poutine.trace_messenger import TraceMessenger
from pyro.poutine.trace_struct import Trace
from torch import Tensor, nn

_SCORING = {Trace.compute_log_prob.__code__, Trace.log_prob_sum.__code__}
_MCMC = {_PEMaker._potential_fn.__code__}


def trained_by_elbo(parameters: list[nn.Parameter]) -> bool:
    """Tells whether an SVI step that runs now has registered any of ``parameters``."""
    registered = {
        id(unconstrained_parameter(site["value"]))
        for handler in _svi_steps()
        for site in handler.trace.nodes.values()
        if site["type"] == "param"
    }
    return any(id(parameter) in registered for parameter in parameters)


def unconstrained_parameter(value: Tensor) -> Tensor:
    """Returns the leaf that the optimizer moves, behind the value of a ``pyro.param``."""
    return value.unconstrained() if hasattr(value, "unconstrained") else value


def check_score_is_sound(log_density: Tensor, parameters: list[nn.Parameter]) -> None:
    """Warns of a plain ELBO, refuses an MCMC potential, that log Z would make wrong.

    Args:
        log_density: The unnormalised log density that Pyro is about to sum.
        parameters: The energy's own trainable parameters.

    Raises:
        ValueError: If an MCMC potential is being computed and ``log_density`` depends on a latent
            other than the site's own value.
    """
    if not log_density.requires_grad:
        return
    scoring = _frame(_SCORING)
    if scoring is None:
        return
    name, site = scoring.f_locals["name"], scoring.f_locals["site"]
    potential = _frame(_MCMC)
    if potential is not None:
        latents = {k: v for k, v in potential.f_locals["params"].items() if k != name}
        check_energy_is_fixed(name, log_density, latents)
    elif _svi_steps() and (site["is_observed"] or trained_by_elbo(parameters)):
        warnings.warn(
            f"site '{name}' has an unnormalised, learnable energy, and a plain ELBO ignores that "
            "log Z moves with it: the loss falls without bound. Pass "
            "loss=pyro_ebm.objectives.PersistentCD(...) (or another objective) to SVI, give "
            "Boltzmann the exact log_z, or freeze the energy with energy.requires_grad_(False)",
            UserWarning,
            stacklevel=2,
        )


def check_energy_is_fixed(name: str, log_density: Tensor, latents: dict[str, Tensor]) -> None:
    """Refuses a site whose unnormalised density depends on latents other than its own value.

    Args:
        name: The site.
        log_density: Its unnormalised log density, a function of the latents.
        latents: The other latent values, by name.

    Raises:
        ValueError: If it depends on any of them.
    """
    latents = {k: v for k, v in latents.items() if v.requires_grad}
    if not latents:
        return
    grads = torch.autograd.grad(
        log_density.sum(), list(latents.values()), retain_graph=True, allow_unused=True
    )
    upstream = [k for k, grad in zip(latents, grads, strict=True) if grad is not None]
    if upstream:
        raise ValueError(
            f"the energy of site '{name}' depends on latent site(s) "
            f"{', '.join(map(repr, upstream))}, so its log Z does too, and a sampler that leaves "
            "it out returns a wrong posterior. Give Boltzmann the exact log_z=..., write a soft "
            "constraint as pyro_ebm.energy_factor, or, if the site is observed, sample with "
            "pyro_ebm.kernels.Exchange"
        )


def _svi_steps() -> list[TraceMessenger]:
    """Returns the handlers by which the SVI steps that run now collect their parameters."""
    return [h for h in _PYRO_STACK if isinstance(h, TraceMessenger) and h.param_only]


def _frame(codes: set) -> FrameType | None:
    """Returns the nearest calling frame that runs one of ``codes``."""
    frame = sys._getframe(1)
    while frame is not None and frame.f_code not in codes:
        frame = frame.f_back
    return frame
