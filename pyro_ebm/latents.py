"""What a model's own run says of its latents and plates, before it becomes a potential."""

from __future__ import annotations

__all__ = [
    "Imputing",
    "Plate",
    "check_latents",
    "check_plates",
    "check_supports",
    "discrete_latents",
    "imputed_latents",
    "subsampled_plates",
    "unconstraining",
    "uniform_in_support",
    "warn_of_angles",
]

import warnings
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.distributions import Transform, biject_to

from .discrete import DiscreteTarget, discrete_site
from .distributions import base_distribution


class Plate(NamedTuple):
    """A plate of which a model sees a minibatch at a time."""

    name: str
    size: int
    subsample_size: int


def subsampled_plates(nodes: Iterable[dict]) -> list[Plate]:
    """Finds the plates of which a model shows a minibatch at a time.

    Args:
        nodes: The nodes of a trace of it.
    """
    sites = [node for node in nodes if poutine.util.site_is_subsample(node)]
    plates = [Plate(site["name"], site["fn"].size, site["fn"].subsample_size) for site in sites]
    return [p for p in plates if p.subsample_size is not None and p.subsample_size < p.size]


def check_plates(plates: list[Plate], minibatches: bool, sequential: set[str]) -> None:
    """Checks that a kernel can do with the plates.

    Args:
        plates: Those of which the model shows a minibatch at a time.
        minibatches: Whether there may be any.
        sequential: The names of the plates that are loops.

    Raises:
        ValueError: If there may be none, or one is a loop.
    """
    for name, size, subsample_size in plates:
        if not minibatches:
            raise ValueError(
                f"plate '{name}' shows {subsample_size} of its {size} rows, others at every "
                "evaluation, and to compare the energies of two minibatches would be wrong: "
                "sample with SGLD or SGHMC, which are made for that, or remove subsample_size"
            )
        if name in sequential:
            raise ValueError(
                f"the sequential plate '{name}' cannot be subsampled, since its rows are a tensor "
                "here: write 'with pyro.plate(...) as rows:' in place of 'for row in ...'"
            )


def check_latents(nodes: Iterable[dict], subsampled: set[str]) -> None:
    """Checks that latents are the same in every minibatch.

    Args:
        nodes: The nodes of a trace of the model.
        subsampled: The names of the plates of which it shows a minibatch at a time.

    Raises:
        ValueError: If one is discrete, or within such a plate.
    """
    sites = [n for n in nodes if n["type"] == "sample" and not n["is_observed"] and subsampled]
    for site in (site for site in sites if not poutine.util.site_is_subsample(site)):
        if site["fn"].has_enumerate_support:
            raise ValueError(
                f"discrete latent '{site['name']}' cannot be summed over on minibatches, whose "
                "scale would be within the sum: marginalise it in the model, as "
                "pyro.distributions.MixtureSameFamily does, or remove subsample_size"
            )
        for plate in subsampled & {frame.name for frame in site["cond_indep_stack"]}:
            raise ValueError(
                f"latent '{site['name']}' is within the subsampled plate '{plate}', so that every "
                "minibatch would have others: marginalise it, or remove subsample_size"
            )


def check_supports(nodes: Mapping, again: Mapping) -> None:
    """Checks that the supports of latents are fixed.

    Args:
        nodes: The nodes of a trace of the model, by name.
        again: Those of another, with other values of the latents, or all values of those that are
            summed out.

    Raises:
        ValueError: If a support differs.
    """
    for name, site in nodes.items():
        other = again.get(name)
        if site["type"] != "sample" or site["is_observed"] or other is None:
            continue
        if poutine.util.site_is_subsample(site):
            continue
        if site["fn"].has_enumerate_support or discrete_site(site["fn"]) is not None:
            continue
        here, there = _middle(site["fn"]), _middle(other["fn"])
        alike = there.shape[there.dim() - here.dim() :] == here.shape
        if alike and bool((here != there).any()):
            raise ValueError(
                f"the support of latent '{name}' depends on other latents, but chains move on one "
                "that is fixed: sample on a fixed support and make the value of it, as in "
                f"u = pyro.sample('u', dist.Uniform(0, 1)), then pyro.deterministic('{name}', "
                "low + (high - low) * u)"
            )


def warn_of_angles(nodes: Mapping) -> None:
    """Warns of latents that chains would follow round and round.

    Args:
        nodes: The nodes of a trace of the model, by name.
    """
    for name, site in nodes.items():
        if site["type"] != "sample" or site["is_observed"]:
            continue
        if isinstance(base_distribution(site["fn"]), dist.VonMises):
            warnings.warn(
                f"latent '{name}' is an angle on the whole line, where its density comes again "
                "every 2 pi and is no law: chains wander from turn to turn, and no mean or R-hat "
                "of theirs says anything. Sample an energy on an interval in its place: "
                "Boltzmann(energy, event_shape=(), support=constraints.interval(-pi, pi))",
                stacklevel=6,
            )


def _middle(fn: dist.TorchDistribution) -> Tensor:
    """The point of the support that corresponds to zero."""
    bijection = biject_to(fn.support)
    return bijection(torch.zeros(bijection.inverse_shape(fn.shape())))


_SHOWN, _HIDDEN = "_observed", "_unobserved"


def imputed_latents(nodes: Mapping) -> set[str]:
    """Finds the latents that ``obs_mask`` makes, and warns of others that are masked.

    Args:
        nodes: The nodes of a trace of the model, by name.

    Returns:
        The names of the sites that were observed in part.
    """
    found = set()
    for name, site in nodes.items():
        mask = site.get("mask")
        if site["type"] != "sample" or site["is_observed"] or not isinstance(mask, Tensor):
            continue
        base = name.removesuffix(_HIDDEN)
        shown = nodes.get(base + _SHOWN, {}).get("mask")
        if name.endswith(_HIDDEN) and isinstance(shown, Tensor) and not (shown & mask).any():
            found.add(base)
            mask = shown | mask
        if not mask.all():
            warnings.warn(
                f"the mask of latent '{name}' takes away the density of {int((~mask).sum())} of "
                f"its {mask.numel()} values, and chains wander off where nothing else in the "
                "model holds them: mask what is observed, and leave latents their prior",
                stacklevel=6,
            )
    return found


class Imputing(Messenger):
    """Gives all values of the latents that ``obs_mask`` makes their density.

    Pyro masks such a latent where its other half is observed. Nothing reads it there, and nothing
    would hold it; with its density it is a draw that nobody asks for.

    Args:
        names: The sites that were observed in part.
    """

    def __init__(self, names: set[str]) -> None:
        super().__init__()
        self._shown = {name + _SHOWN for name in names}
        self._hidden = {name + _HIDDEN for name in names}
        self._mask: Tensor | None = None

    def _pyro_sample(self, msg: dict) -> None:
        if msg["name"] in self._shown:
            self._mask = msg["mask"]
        elif msg["name"] in self._hidden:  # which Pyro samples right after the other
            msg["mask"] = self._mask | msg["mask"]


def discrete_latents(nodes: Mapping, names: tuple[str, ...]) -> dict[str, DiscreteTarget]:
    """Finds the values of the latents that are to be moved as discrete sites.

    Args:
        nodes: The nodes of a trace of the model, by name.
        names: The names of these latents.

    Raises:
        ValueError: If one is no discrete latent, or one not named cannot be summed out.
    """
    latents = [n for n, s in nodes.items() if s["type"] == "sample" and not s["is_observed"]]
    found = {}
    for name in latents:
        fn = nodes[name]["fn"]
        target = None if poutine.util.site_is_subsample(nodes[name]) else discrete_site(fn)
        if name in names and target is not None:
            found[name] = target
        elif target is not None and not fn.has_enumerate_support:
            raise ValueError(
                f"latent '{name}' is discrete, and cannot be summed out: move it by a kernel of "
                f"its own, as in kernels.Alternating(model, {{'{name}': kernels.Gibbs()}}, "
                "rest=kernels.HMC())"
            )
    if missing := sorted(set(names) - set(found)):
        raise ValueError(f"{missing} are no discrete latents of the model, which has {latents}")
    return found


def unconstraining(nodes: Mapping, discrete: Iterable[str]) -> dict[str, Transform]:
    """Finds how each continuous latent goes to unconstrained space, by name.

    Args:
        nodes: The nodes of a trace of the model, by name.
        discrete: The names of the latents that are moved as discrete sites.
    """
    latents = {n: s for n, s in nodes.items() if s["type"] == "sample" and not s["is_observed"]}
    return {
        name: biject_to(site["fn"].support).inv
        for name, site in latents.items()
        if not site["fn"].has_enumerate_support
        and name not in discrete
        and not poutine.util.site_is_subsample(site)
    }


def uniform_in_support(site: dict) -> Tensor | None:
    """Starts a latent that is not summed out, without a draw, which an improper prior refuses."""
    fn = site["fn"]
    if fn.has_enumerate_support:
        return None
    target = discrete_site(fn)
    if target is not None:
        shape = fn.shape()
        return target.draw(torch.empty(1, shape.numel())).reshape(shape)
    bijection = biject_to(fn.support)
    z = torch.empty(bijection.inverse_shape(fn.shape())).uniform_(-2.0, 2.0)
    return bijection(z).detach()
