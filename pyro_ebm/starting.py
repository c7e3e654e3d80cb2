"""What chains start from, checked at the edge: a target, and values for each chain."""

from __future__ import annotations

__all__ = ["check_rows", "check_target", "where_not_finite"]

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.distributions import Distribution

from .distributions import Boltzmann
from .energies.base import Energy


def check_target(target: object) -> None:
    """Refuses what looks like a target and is none.

    Args:
        target: What a kernel was given to sample.

    Raises:
        ValueError: If it is an energy, which is no distribution yet, another distribution, or a
            class.

    Example:
        >>> from pyro_ebm.energies import MLP
        >>> check_target(MLP((2,)))
        Traceback (most recent call last):
        ...
        ValueError: an energy is sampled as a distribution: give Boltzmann(energy), got MLP
    """
    if isinstance(target, Energy):
        raise ValueError(
            "an energy is sampled as a distribution: give Boltzmann(energy), got "
            f"{type(target).__name__}"
        )
    if isinstance(target, Distribution) and not isinstance(target, Boltzmann):
        raise ValueError(
            f"a target is a Boltzmann distribution or a Pyro model, got {type(target).__name__}: "
            "make a model of it, as in lambda: pyro.sample('x', distribution)"
        )
    if isinstance(target, type):
        raise ValueError(
            f"a target or kernel must be an instance, got the class {target.__name__}: call it, "
            f"as in {target.__name__}(...)"
        )


def check_rows(initial_params: object, num_chains: int) -> None:
    """Checks that starting values are a dict, with a row for each chain.

    Args:
        initial_params: What was given.
        num_chains: The number of chains.

    Raises:
        ValueError: If they are something else.
    """
    if not isinstance(initial_params, Mapping):
        raise ValueError(
            "initial_params must be a dict of unconstrained values by the names of their sites, "
            f"chains first, got {type(initial_params).__name__}"
        )
    for name, value in initial_params.items():
        if value.shape[:1] != (num_chains,):
            raise ValueError(
                f"initial_params['{name}'] must have num_chains={num_chains} rows, got shape "
                f"{tuple(value.shape)}"
            )


def where_not_finite(nodes: Mapping) -> str:
    """Says which sites of a model have no finite log density, and what is wrong with their data.

    Args:
        nodes: The nodes of a trace of it, by name, of which nothing is validated.
    """
    found = []
    for name, site in nodes.items():
        if site["type"] != "sample" or bool(site["fn"].log_prob(site["value"]).isfinite().all()):
            continue
        kind = "latent" if not site["is_observed"] else "observed"
        if isinstance(site["value"], Tensor) and not bool(torch.isfinite(site["value"]).all()):
            kind += " values that are not finite"
        found.append(f"'{name}' ({kind})")
    return ", ".join(found) or "none by itself"
