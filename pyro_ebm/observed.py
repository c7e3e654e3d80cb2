"""Observed energies of a model: the law of each, given the latents, and its data."""

from __future__ import annotations

__all__ = ["Law", "intractable_sites"]

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from pyro import poutine
from pyro.distributions import Independent, MaskedDistribution, TorchDistribution
from pyro.distributions.util import scale_and_mask, sum_rightmost
from torch import Tensor

from .distributions import Boltzmann, base_distribution


class Law(NamedTuple):
    """The law of an observed site, given the latents of one chain."""

    fn: TorchDistribution
    value: Tensor
    """What was observed."""
    mask: Tensor | bool | None
    """Which of its data count, besides what ``fn`` says."""

    @property
    def boltzmann(self) -> Boltzmann:
        """The law of all data, counted or not."""
        return base_distribution(self.fn)

    @property
    def shape(self) -> torch.Size:
        """The shape of all data: the plates, and the event of each."""
        return self.boltzmann.batch_shape + self.boltzmann.event_shape

    @property
    def draws_exactly(self) -> bool:
        """Whether the distribution draws exactly: the energy knows how, or has few points."""
        own = self.boltzmann._own_law and self.boltzmann.energy.has_sample
        return own or self.boltzmann.has_enumerate_support

    def log_density(self, x: Tensor) -> Tensor:
        """Adds up the unnormalised log densities of data ``x``, in nats, those that count."""
        log_density = _log_density(self.fn, x.expand(self.shape))
        return scale_and_mask(log_density, mask=self.mask).sum()


def intractable_sites(nodes: Mapping, sites: Sequence[str] | None) -> tuple[str, ...]:
    """Finds the sites whose log Z is left out, and checks that they can be drawn anew.

    Args:
        nodes: The nodes of a trace of the model, by name.
        sites: Their names; all that are observed and unnormalised if not given.

    Raises:
        ValueError: If there is none, one named is not observed or no
            :class:`~pyro_ebm.Boltzmann`, one is scaled or transformed, or a latent is discrete.
    """
    latents = [n for n, s in nodes.items() if s["type"] == "sample" and not s["is_observed"]]
    for name in latents:
        is_plate = poutine.util.site_is_subsample(nodes[name])
        if not is_plate and nodes[name]["fn"].support.is_discrete:
            raise ValueError(
                f"latent '{name}' is discrete, and Exchange moves continuous latents: marginalise "
                "it in the model"
            )
    laws = {
        name: base_distribution(node["fn"])
        for name, node in nodes.items()
        if node["type"] == "sample" and node["is_observed"]
    }
    laws = {name: fn for name, fn in laws.items() if isinstance(fn, Boltzmann)}
    names = tuple(n for n, fn in laws.items() if not fn.is_normalized) if sites is None else sites
    if not names:
        raise ValueError(
            "log Z of every observed site is known, so that Exchange has nothing to exchange: "
            "sample with kernels.ChEES or NUTS, or name the observed Boltzmann sites whose log Z "
            f"costs too much as sites=..., of {sorted(laws)}"
        )
    if unknown := sorted(set(names) - set(laws)):
        raise ValueError(
            f"sites must name observed Boltzmann sites, of {sorted(laws)}, got {unknown}"
        )
    for name in names:
        _check_can_be_drawn(name, nodes[name])
    return tuple(names)


def _check_can_be_drawn(name: str, node: dict) -> None:
    fn = node["fn"]
    while isinstance(fn, MaskedDistribution | Independent):
        fn = fn.base_dist
    if not isinstance(fn, Boltzmann):
        raise ValueError(
            f"site '{name}' is a {type(fn).__name__} of a Boltzmann, whose data Exchange cannot "
            "draw anew: write the transformation into the energy"
        )
    if not bool((torch.as_tensor(node["scale"]) == 1).all()):
        raise ValueError(
            f"site '{name}' is scaled by {node['scale']}: a power of a likelihood has no data to "
            "draw, so that Exchange takes no poutine.scale and no subsampled plate around it"
        )


def _log_density(fn: TorchDistribution, x: Tensor) -> Tensor:
    if isinstance(fn, MaskedDistribution):
        return scale_and_mask(_log_density(fn.base_dist, x), mask=fn._mask)
    if isinstance(fn, Independent):
        return sum_rightmost(_log_density(fn.base_dist, x), fn.reinterpreted_batch_ndims)
    return fn.log_density(x)
