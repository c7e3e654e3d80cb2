r"""The most probable point of a discrete target, exactly or by search.

.. math:: \hat x = \arg\min_x E(x)

whatever the temperature. Exact ways are taken where there are any; a search is from many random
points at once, and keeps the best.
"""

from __future__ import annotations

__all__ = ["MAPEstimate", "Method", "map_estimate"]

from collections.abc import Callable
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from .arguments import check_count
from .cut import lowest_spins, spin_pairs
from .discrete import DiscreteTarget, KnownConditionals, discrete_target
from .distributions import Boltzmann
from .energies.alphabet import alphabet_of
from .energies.base import reference_tensor
from .energies.chain import ChainCRF
from .kernels.gibbs import Gibbs
from .kernels.transition import seeded_generator
from .potential import Potential
from .ranks.group import gathered, num_ranks, own_stream, share

Method = Literal["auto", "exact", "viterbi", "graph_cut", "enumeration", "annealing", "icm"]
"""The ways to a most probable point, and two that choose one of them."""

HOT, COLD = 0.1, 20.0
"""Inverse temperatures of annealing, in units of what the change of a site costs on average."""


class MAPEstimate(NamedTuple):
    """A point of low energy, and what is known about it."""

    x: Tensor
    """The point, with shape ``(*batch, *event)``."""
    energy: Tensor
    """Its energy in nats, with shape ``(*batch,)``."""
    method: str
    """The way it was found: one of :data:`~pyro_ebm.map_estimate.Method`, but the first two."""
    exact: bool
    """Whether no point has a lower energy; else it is the lowest that a search has met."""


@torch.no_grad()
def map_estimate(
    boltzmann: Boltzmann,
    method: Method = "auto",
    *,
    num_starts: int = 64,
    num_sweeps: int = 200,
) -> MAPEstimate:
    r"""Finds the most probable point of a distribution over an alphabet.

    Exact methods, which ``"exact"`` and ``"auto"`` try in this order:

    - ``"viterbi"``: a :class:`~pyro_ebm.energies.ChainCRF`, of any length;
    - ``"graph_cut"``: spins or two labels in pairs whose couplings do not contradict each other
      (:class:`~pyro_ebm.energies.Ising`, :class:`~pyro_ebm.energies.IsingGraph`,
      :class:`~pyro_ebm.energies.BoltzmannMachine`, and :class:`~pyro_ebm.energies.Potts` and
      :class:`~pyro_ebm.energies.MarkovRandomField` with two values), in any field and at any size,
      by SciPy's maximum flow. Couplings are rounded to a part in :math:`2^{29}` of the largest;
    - ``"enumeration"``: at most 65,536 points.

    Searches, from ``num_starts`` points drawn at random, of which the best that is met is kept:

    - ``"icm"``, iterated conditional modes: every site takes its most probable value given the
      others, until none would move. The point is the lowest among those that differ in one site;
    - ``"annealing"``, which ``"auto"`` takes where nothing exact serves: ``num_sweeps`` Gibbs
      sweeps at a temperature that falls by a constant factor, from ten times what the change of a
      site costs on average to a twentieth of it, and then ICM. As it falls, chains are drawn anew
      by the weights of the new temperature, so that low ones multiply and high ones end. **It may
      miss the lowest point**; runs that agree on an energy are a sign of success, no proof.

    An energy that does not know its conditionals is moved site by site, at an evaluation for each
    other value.

    Ranks (:mod:`pyro_ebm.ranks`) share the starts of a search, at least one each, and every rank
    has the best of all; within each the chains of annealing are drawn anew among themselves.

    References:
        | Optimization by simulated annealing (Kirkpatrick, Gelatt and Vecchi, 1983),
        | https://doi.org/10.1126/science.220.4598.671
        | Population annealing with weighted averages (Machta, 2010),
        | https://doi.org/10.1103/PhysRevE.82.026704
        | On the statistical analysis of dirty pictures (Besag, 1986),
        | https://doi.org/10.1111/j.2517-6161.1986.tb01412.x

    Args:
        boltzmann: The distribution; each member of its batch has its own most probable point.
        method: The way.
        num_starts: The number of points that a search starts from.
        num_sweeps: The number of sweeps of annealing, and the most of ICM.

    Returns:
        The point, its energy, the method and whether it is exact.

    Raises:
        ImportError: If a graph cut is called for and SciPy is not installed.
        ValueError: If the support is no alphabet, the method is unknown or does not serve this
            energy, or a number is not positive.

    Example:
        >>> import pyro_ebm as ebm
        >>> noisy = torch.tensor([[0.9, 1.1, -0.2], [1.2, 0.8, -1.0], [-0.9, -1.1, -0.7]])
        >>> restored = map_estimate(ebm.Boltzmann(ebm.energies.Ising((3, 3), 0.3, noisy, False)))
        >>> restored.x, restored.method, restored.exact
        (tensor([[ 1.,  1., -1.],
                 [ 1.,  1., -1.],
                 [-1., -1., -1.]]), 'graph_cut', True)
    """
    if method not in get_args(Method):
        raise ValueError(f"method must be one of {get_args(Method)}, got {method!r}")
    check_count("num_starts", num_starts)
    check_count("num_sweeps", num_sweeps)
    if alphabet_of(boltzmann.support) is None:
        raise ValueError(
            "map_estimate searches sites with finitely many values, got support "
            f"{boltzmann.support}: minimise a continuous energy by its gradient, with torch.optim "
            "or, in a model, Pyro's AutoDelta"
        )
    for name in EXACT if method in ("auto", "exact") else EXACT.keys() & {method}:
        x = EXACT[name](boltzmann)
        if x is not None:
            return _estimate(boltzmann, x, name, exact=True)
    if method in WHY_NOT:
        raise ValueError(
            f"method '{method}' does not serve {type(boltzmann.energy).__name__} of shape "
            f"{tuple(boltzmann.event_shape)}: {WHY_NOT[method]}; search with method='annealing'"
        )
    return _search(boltzmann, method == "icm", num_starts, num_sweeps)


def _estimate(boltzmann: Boltzmann, x: Tensor, method: str, *, exact: bool) -> MAPEstimate:
    x = x.expand(*boltzmann.batch_shape, *boltzmann.event_shape)
    energy = -boltzmann.log_density(x) * boltzmann.temperature
    return MAPEstimate(x, energy, method, exact)


def _has_own_support(boltzmann: Boltzmann) -> bool:
    return boltzmann.support is getattr(boltzmann.energy, "support", None)


def _by_viterbi(boltzmann: Boltzmann) -> Tensor | None:
    known = isinstance(boltzmann.energy, ChainCRF) and _has_own_support(boltzmann)
    return boltzmann.energy.mode() if known else None


def _by_graph_cut(boltzmann: Boltzmann) -> Tensor | None:
    energy = boltzmann.energy
    pairs = spin_pairs(energy) if _has_own_support(boltzmann) else None
    found = None if pairs is None else lowest_spins(pairs)
    if found is None:
        return None
    x = energy.alphabet.decode((found > 0).long(), found)
    return x.reshape(*energy.batch_shape, *energy.event_shape)


def _by_enumeration(boltzmann: Boltzmann) -> Tensor | None:
    if not boltzmann.has_enumerate_support:
        return None
    points = boltzmann.enumerate_support(expand=False)
    best = boltzmann.log_density(points).argmax(0)
    return points.reshape(-1, *boltzmann.event_shape)[best]


EXACT: dict[str, Callable[[Boltzmann], Tensor | None]] = {
    "viterbi": _by_viterbi,
    "graph_cut": _by_graph_cut,
    "enumeration": _by_enumeration,
}
"""What finds a point of lowest energy where it can, and says None elsewhere."""

WHY_NOT = {
    "viterbi": "it is no ChainCRF",
    "graph_cut": "it is no sum over pairs of two values, or its couplings contradict each other",
    "enumeration": "it has more than 65,536 points",
    "exact": "it is no ChainCRF, nothing that a graph cut solves, and has more than 65,536 points",
}


def _search(boltzmann: Boltzmann, icm: bool, num_starts: int, num_sweeps: int) -> MAPEstimate:
    """Has each rank search from its starts, and keeps the best of all."""
    own = share(num_starts)
    with own_stream():
        x = _lowest(boltzmann, icm, max(1, own.stop - own.start), num_sweeps)
    if num_ranks() > 1:
        each = gathered(x.unsqueeze(0))
        value = -boltzmann.log_density(each).reshape(num_ranks(), -1)
        best = value.where(~value.isnan(), torch.inf).argmin(0)
        rows = each.reshape(num_ranks(), -1, *boltzmann.event_shape)
        x = rows[best, torch.arange(len(best), device=x.device)].reshape(x.shape)
    return _estimate(boltzmann, x, "icm" if icm else "annealing", exact=False)


def _lowest(boltzmann: Boltzmann, icm: bool, num_starts: int, num_sweeps: int) -> Tensor:
    """Moves many random points down, by ICM at once or after annealing, and keeps the best."""
    start = reference_tensor(boltzmann.energy)
    potential = Potential.of_batch(boltzmann, (num_starts, *boltzmann.batch_shape), start)
    generator = seeded_generator(start.device)
    num_chains, width = num_starts * boltzmann.batch_shape.numel(), boltzmann.event_shape.numel()
    z = potential.discrete.draw(start.new_empty(num_chains, width), generator)
    if not icm:
        z = _annealed(boltzmann, potential, z, num_sweeps, generator)
    z = _icm(boltzmann, potential.discrete, z, num_sweeps)
    value = potential.discrete.value(z)
    best = value.where(~value.isnan(), torch.inf).reshape(num_starts, -1).argmin(0)
    x = z.reshape(num_starts, -1, width)[best, torch.arange(len(best), device=z.device)]
    return x.reshape(*boltzmann.batch_shape, *boltzmann.event_shape)


def _annealed(
    boltzmann: Boltzmann,
    potential: Potential,
    z: Tensor,
    num_sweeps: int,
    generator: torch.Generator,
) -> Tensor:
    """Sweeps chains at temperatures that fall; the lower ones multiply, the higher ones end."""
    target, energy, batch = potential.discrete, boltzmann.energy, boltzmann.batch_shape
    num_starts = len(z) // batch.numel()
    if target.can_sweep and energy.uniform_shape != energy.site_shape:
        # Its sweep draws what it has summed out too, and serves no other temperature.
        plain = boltzmann.with_energy(energy.forward)
        target = discrete_target(plain, (num_starts, *batch), one_each=True)
    kernel = Gibbs(num_sweeps=target.num_sites(z))  # where it moves one site at a time
    unit = _cost_of_a_change(target, z, num_starts, generator)
    betas = HOT * torch.logspace(0, 1, num_sweeps, COLD / HOT).to(z)
    for step, beta in zip(betas.diff(prepend=betas.new_zeros(1)), betas, strict=True):
        path = target.tempered(beta / unit)
        z = z[_survivors((target.value(z) * step / unit).reshape(num_starts, -1), generator)]
        if path.can_sweep:
            uniform = z.new_empty(len(z), path.num_uniforms(z)).uniform_(generator=generator)
            z = path.sweep(z, uniform)
        else:
            tempered = Potential(
                potential.value_and_grad, potential.sites, potential.start, discrete=path
            )
            state = kernel.init(tempered, z)
            z = kernel.step(tempered, state, kernel.noise(state, generator))[0].z
    return z


def _survivors(cost: Tensor, generator: torch.Generator) -> Tensor:
    """Draws as many chains of each datum, the rows that go on, by :math:`e^{-cost}`.

    Args:
        cost: By how much the potential of each chain grows, in nats, with shape ``(starts, B)``.
        generator: The source of one uniform number for each datum.
    """
    num_starts, num_data = cost.shape
    lowest = torch.finfo(torch.double).min
    log_weights = (-cost.T.double()).nan_to_num(nan=lowest, neginf=lowest)
    levels = torch.arange(num_starts, device=cost.device) + cost.new_empty(
        num_data, 1, dtype=torch.double
    ).uniform_(generator=generator)
    chosen = torch.searchsorted(log_weights.softmax(-1).cumsum(-1), levels / num_starts)
    chosen = chosen.clamp(max=num_starts - 1).T
    return (chosen * num_data + torch.arange(num_data, device=cost.device)).flatten()


def _cost_of_a_change(
    target: DiscreteTarget, z: Tensor, num_starts: int, generator: torch.Generator
) -> Tensor:
    """The mean of what setting a random site anew costs or gains, for each chain of a datum."""
    num_sites = target.num_sites(z)
    site = torch.empty(len(z), dtype=torch.long, device=z.device)
    site.random_(0, num_sites, generator=generator)
    place = torch.randint(1, target.num_values, site.shape, generator=generator, device=z.device)
    place = (target.place_at(z, site) + place) % target.num_values
    change = (target.value(target.with_place(z, site, place)) - target.value(z)).abs()
    change = change.where(change.isfinite(), torch.nan).reshape(num_starts, -1)
    unit = change.nanmean(0).expand_as(change).flatten()
    return unit.where(unit > 0, 1.0)


def _icm(boltzmann: Boltzmann, target: DiscreteTarget, z: Tensor, num_sweeps: int) -> Tensor:
    """Sets sites to their best values, colour by colour, until all chains stay."""
    if isinstance(target, KnownConditionals):
        colours = boltzmann.energy.colours.flatten()
        groups = [colours == colour for colour in range(boltzmann.energy.num_colours)]
    else:
        groups = list(torch.eye(target.num_sites(z), dtype=torch.bool, device=z.device))
    for _ in range(num_sweeps):
        before = z
        for group in groups:
            z = _best_of_group(target, z, group)
        if torch.equal(z, before):
            break
    return z


def _best_of_group(target: DiscreteTarget, z: Tensor, group: Tensor) -> Tensor:
    """Sets the sites of a group, which do not interact, to the best of their values."""
    places = target.places(z)
    if isinstance(target, KnownConditionals):
        _, changes = target.value_and_changes(z)
        changes = changes[:, group]
    else:
        changes = _changes_at(target, z, group.nonzero().expand(len(z), 1).squeeze(-1))
    changes = changes.where(~changes.isnan(), 0.0)  # between two points of infinite energy
    finite = changes.abs().where(changes.isfinite(), 0.0)
    # What is lower by rounding alone is no better, and could go round in circles.
    lowest, best = changes.min(-1)
    better = lowest < -8 * torch.finfo(z.dtype).eps * finite.max()
    places[:, group] = torch.where(better, best, places[:, group])
    return target.points(places, z)


def _changes_at(target: DiscreteTarget, z: Tensor, site: Tensor) -> Tensor:
    """Evaluates how the potential changes by each value of one site, ``(C, 1, K)``."""
    every = [
        target.with_place(z, site, torch.full_like(site, k)) for k in range(target.num_values)
    ]
    values = target.value(torch.cat(every)).unflatten(0, (target.num_values, -1))
    here = values.gather(0, target.place_at(z, site).unsqueeze(0))
    return (values - here).T.unsqueeze(1)
