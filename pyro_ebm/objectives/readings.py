r"""What chains do in training: their energies, their acceptance, their distance from the data.

With :math:`m_x` the mean of the data and :math:`m_c` that of the chains, in unconstrained space,

.. math:: \sigma^2 = \mathbb{E} |x - m_x|^2, \qquad d = |m_c - m_x| / \sigma, \qquad
    s^2 = \mathbb{E} |x^- - m_c|^2 / \sigma^2,

so that :math:`\sqrt{d^2 + s^2}` is how far chains are from the centre of the data, and 1 for
chains that have their first two moments.
"""

from __future__ import annotations

__all__ = ["READINGS", "Readings", "over_ranks", "pooled_moments"]

from collections.abc import Iterable
from typing import Any

import torch
from pyro.infer import SVI
from torch import Tensor
from torch.distributions import biject_to

from ..potential import Potential
from ..ranks.group import num_ranks, total
from ..runs.checkpoint import rebuilt
from .base import CONTRASTIVE, Evaluation
from .checkpoint import objective_of

READINGS = (
    "data energy",
    "chain energy",
    "energy gap",
    "acceptance",
    "chain distance",
    "chain spread",
)
"""The records of a site that there may be."""

MIN_SPREAD = 1e-3
"""The spread of data that are all the same, as in the noise that persistent chains start from."""


class Readings:
    """Reads the chains behind the evaluations of an SVI.

    Args:
        svi: The SVI; there is nothing to read where its loss is no objective.
    """

    def __init__(self, svi: SVI) -> None:
        self._svi = svi
        self._moments: dict[str, tuple[Tensor, Tensor]] = {}
        self._num_seen: dict[str, int] = {}

    @torch.no_grad()
    def of(self, name: str, seen: Evaluation) -> dict[str, Tensor]:
        """Reads what the chains of a site did, if it has any.

        Args:
            name: The site.
            seen: What was asked of it.

        Returns:
            0-d tensors by the name of the record.
        """
        objective = objective_of(self._svi)
        info = getattr(objective, "last_info", {}).get(name)
        chains = getattr(objective, "chains", {}).get(name)
        readings = {}
        if chains is not None or (info is not None and objective.loss_name == CONTRASTIVE):
            data = -seen.boltzmann.log_density(seen.x).mean()
            gap = -seen.surrogate.mean() if chains is None else data - _energy(seen, chains)
            readings = {"data energy": data, "chain energy": data - gap, "energy gap": gap}
        if info is not None:
            moved = ~info.diverging if info.accept_prob is None else info.accept_prob
            readings["acceptance"] = moved.double().mean()
        if chains is not None and not seen.boltzmann.support.is_discrete:
            readings |= self._drift(name, seen, chains)
        return readings

    def state_dict(self) -> dict[str, Any]:
        """Returns the moments of the data so far."""
        return {"moments": dict(self._moments), "num_seen": dict(self._num_seen)}

    def load_state_dict(self, found: dict[str, Any], device: torch.device | None = None) -> None:
        """Goes on from what :meth:`state_dict` returned."""
        self._moments = rebuilt(found["moments"], device)
        self._num_seen = dict(found["num_seen"])

    def spread(self, name: str) -> float:
        """Returns the spread of the data of a site, in units of x."""
        return self._centre_and_spread(name)[1].item()

    def _drift(self, name: str, seen: Evaluation, chains: Tensor) -> dict[str, Tensor]:
        """Measures chains by the data, whose moments are averaged over about 100 batches."""
        rows = seen.x.reshape(-1, *seen.boltzmann.event_shape)
        if len(rows) < 2:
            return {}
        z = biject_to(seen.boltzmann.support).inv(rows).reshape(len(rows), -1).double()
        self._num_seen[name] = self._num_seen.get(name, 0) + 1
        now, weight = (z.mean(0), z.square().mean(0)), max(0.01, 1 / self._num_seen[name])
        before = self._moments.get(name, now)
        mean, square = (a.lerp(b, weight) for a, b in zip(before, now, strict=True))
        self._moments[name] = mean, square
        mean, spread = self._centre_and_spread(name)
        centre = chains.double().mean(0)
        around = (chains.double() - centre).square().sum(-1).mean().sqrt()
        return {"chain distance": (centre - mean).norm() / spread, "chain spread": around / spread}

    def _centre_and_spread(self, name: str) -> tuple[Tensor, Tensor]:
        mean, square = self._moments[name]
        return mean, (square - mean.square()).sum().clamp(min=MIN_SPREAD**2).sqrt()


def over_ranks(readings: dict[str, float], names: Iterable[str]) -> dict[str, float]:
    """Averages over the ranks that have a reading, in one message.

    Args:
        readings: The numbers of this rank, by name.
        names: The names that there may be, the same on all ranks.

    Returns:
        The means, the same on all ranks, in the order of the names.
    """
    if num_ranks() == 1:
        return readings
    names = list(names)
    own = [[readings.get(name, 0.0), float(name in readings)] for name in names]
    sums = total(torch.tensor(own, dtype=torch.float64))[0].tolist()
    return {name: s / n for name, (s, n) in zip(names, sums, strict=True) if n}


def pooled_moments(states: list[dict[str, Any]]) -> dict[str, Any]:
    """Pools what :meth:`Readings.state_dict` returned on several ranks."""
    moments = {}
    for name in states[0]["moments"]:
        each = zip(*(state["moments"][name] for state in states), strict=True)
        moments[name] = tuple(torch.stack(of_ranks).mean(0) for of_ranks in each)
    return {"moments": moments, "num_seen": states[0]["num_seen"]}


def _energy(seen: Evaluation, chains: Tensor) -> Tensor:
    """Returns the mean of E/T over chains."""
    one = seen.boltzmann.expand(())
    x = Potential.of_batch(one, (len(chains),), seen.x).constrain(chains)["x"]
    return -one.log_density(x).mean()
