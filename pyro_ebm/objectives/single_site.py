"""Changes of a discrete point at one of its sites."""

from __future__ import annotations

__all__ = ["log_odds_of_changes", "num_categories", "shifted"]

import torch
from torch import Tensor
from torch.distributions import constraints

from ..distributions import Boltzmann
from .conditions import evaluate_each


def num_categories(support: constraints.Constraint, name: str) -> tuple[int, int]:
    """Returns the lowest value and the number of values that each site of a point can have.

    Args:
        support: The support of one point.
        name: The site of the model.

    Raises:
        ValueError: If the sites do not all have the same values, one apart.
    """
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    if support is constraints.boolean:
        return 0, 2
    lower = getattr(support, "lower_bound", None)
    upper = getattr(support, "upper_bound", None)
    if support.is_discrete and all(isinstance(bound, int) for bound in (lower, upper)):
        return lower, upper - lower + 1
    raise ValueError(
        f"site '{name}' has the support {support}, of which single changes are not known: give "
        "its Boltzmann support=constraints.boolean or constraints.integer_interval(low, high), "
        "with constraints.independent around it for more than one"
    )


def shifted(x: Tensor, by: Tensor | int, lower: int, num: int) -> Tensor:
    """Moves values on by some places, round and round.

    Args:
        x: Values ``lower``, ..., ``lower + num - 1``, of any dtype.
        by: By how many places, to broadcast with ``x``.
        lower: The lowest value.
        num: The number of values.
    """
    return ((x.long() - lower + by) % num + lower).to(x.dtype)


def log_odds_of_changes(
    boltzmann: Boltzmann, x: Tensor, name: str, num_sites: int | None = None
) -> Tensor:
    r"""Evaluates :math:`\log p(x') - \log p(x)` for the changes x' of x at one site.

    Args:
        boltzmann: The distribution.
        x: Points, with shape ``(*batch, *event)``.
        name: The site of the model.
        num_sites: How many sites to change, drawn at random; all if not given.

    Returns:
        The log odds in nats, with shape ``(K - 1, S, *batch)``, for the other values of each site.
    """
    lower, num = num_categories(boltzmann.support, name)
    batch = x.shape[: x.dim() - len(boltzmann.event_shape)]
    flat = x.reshape(*batch, -1)
    dim = flat.shape[-1]
    sites = torch.arange(dim, device=x.device)
    if num_sites is not None and num_sites < dim:
        sites = torch.randperm(dim, device=x.device)[:num_sites]
    changes = torch.arange(1, num, device=x.device)
    here = torch.nn.functional.one_hot(sites, dim)
    by = (changes[:, None, None] * here).reshape(-1, *(1,) * len(batch), dim)
    others = shifted(flat, by, lower, num).reshape(-1, *x.shape)
    values = evaluate_each(Boltzmann.log_density, boltzmann, others)
    return (values - boltzmann.log_density(x)).reshape(num - 1, len(sites), *batch)
