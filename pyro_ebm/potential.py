r"""One target, seen by every kernel as a potential on :math:`\mathbb{R}^D` for all chains.

.. math:: U(z) = -\log p(x(z)) - \log \left| \frac{dx}{dz} \right|

A Pyro model, a :class:`~pyro_ebm.Boltzmann` or a potential function of a dict all become a
:class:`Potential`. Constrained sites are sampled through their bijection, so that the Jacobian is
never forgotten; discrete ones lie in ``z`` as they are.
"""

from __future__ import annotations

__all__ = ["Model", "Potential", "Site", "unconstrained_log_density"]

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from pyro import poutine
from pyro.infer.autoguide.initialization import InitMessenger
from pyro.infer.mcmc.util import initialize_model
from torch import Tensor
from torch.distributions import Transform, identity_transform

from .batching import batched_value_and_grad, value_and_grad_of
from .discrete import AsIntegers, DiscreteTarget, bijection_of, discrete_target
from .distributions import Boltzmann
from .energies.base import check_energy, reference_tensor
from .latents import (
    Imputing,
    Plate,
    check_latents,
    check_plates,
    check_supports,
    discrete_latents,
    imputed_latents,
    subsampled_plates,
    unconstraining,
    uniform_in_support,
    warn_of_angles,
)
from .starting import check_target, where_not_finite
from .validation import unvalidated

Model = Callable[..., object]
ValueAndGrad = Callable[..., tuple[Tensor, Tensor]]


class Site(NamedTuple):
    """A latent of the target: how it lies in the flat vector, and how it becomes a value."""

    name: str
    shape: torch.Size
    """The unconstrained shape of one chain."""
    bijection: Transform
    """From unconstrained to constrained values."""
    dims: tuple[str | None, ...]
    """The plate of each leading dimension of the value, from the left."""


class Potential:
    r"""The potential :math:`U(z)` of a target, over flat unconstrained chains.

    Args:
        value_and_grad: Maps ``z (C, D)`` to :math:`U` in nats ``(C,)`` and :math:`\nabla U` ``(C,
            D)``. With subsampled plates it also takes the rows of each, ``(C, subsample_size)``,
            and gives an unbiased estimate of both.
        sites: The latents, in the order in which they lie in ``z``.
        start: A tensor whose dtype and device the chains have.
        plates: The plates of which it sees a minibatch at a time.
        discrete: If the sites are discrete, what their kernels ask for; the gradient is then that
            of the energy as a function of real numbers, where it is one.
        within: The values of the discrete sites among continuous ones, by name.

    Example:
        >>> import pyro_ebm as ebm
        >>> potential = Potential.of(ebm.Boltzmann(ebm.energies.Gaussian(torch.zeros(2), 1.0)))
        >>> value, grad = potential.value_and_grad(torch.ones(5, 2))
        >>> value.shape, grad[0]
        (torch.Size([5]), tensor([1., 1.]))
    """

    def __init__(
        self,
        value_and_grad: ValueAndGrad,
        sites: list[Site],
        start: Tensor,
        plates: Sequence[Plate] = (),
        discrete: DiscreteTarget | None = None,
        within: Mapping[str, DiscreteTarget] | None = None,
    ) -> None:
        self.value_and_grad = value_and_grad
        self.sites = sites
        self.dim = sum(site.shape.numel() for site in sites)
        self.start = start
        self.plates = plates
        self.discrete = discrete
        self.within = dict(within or {})

    @classmethod
    def of(
        cls,
        target: Boltzmann | Model | None = None,
        args: tuple = (),
        kwargs: Mapping | None = None,
        *,
        potential_fn: Callable[[dict[str, Tensor]], Tensor] | None = None,
        initial_params: dict[str, Tensor] | None = None,
        minibatches: bool = False,
        discrete: Sequence[str] = (),
    ) -> Potential:
        """Builds the potential of a target.

        Args:
            target: A Boltzmann distribution or a Pyro model.
            args: What the model takes.
            kwargs: What the model takes by name.
            potential_fn: In place of a target, a function from a dict of unconstrained values of
                one chain to nats.
            initial_params: With ``potential_fn``, unconstrained values with chains first: they say
                the names and shapes.
            minibatches: Whether the model may have subsampled plates: the potential then takes
                their rows, which its caller draws.
            discrete: The latents of the model to be moved as discrete sites, neither summed out
                nor unconstrained.

        Raises:
            ValueError: If there is no target, or more than one, or ``potential_fn`` without
                ``initial_params``; if the energy breaks its contract; if log Z or the support of
                a site depends on other latents; if the model has a subsampled plate, unless
                ``minibatches``, and then still if the plate is sequential, has a latent in it, or
                a latent is discrete; if ``discrete`` names no discrete latent, or not one that
                cannot be summed out.
        """
        if (target is None) == (potential_fn is None):
            raise ValueError(
                "a kernel needs exactly one target: a model or Boltzmann, or potential_fn="
            )
        check_target(target)
        if potential_fn is not None:
            return _of_function(potential_fn, initial_params)
        if isinstance(target, Boltzmann):
            return _of_boltzmann(target)
        return _of_model(target, args, dict(kwargs or {}), minibatches, tuple(discrete))

    @classmethod
    def of_batch(cls, boltzmann: Boltzmann, batch_shape: Sequence[int], like: Tensor) -> Potential:
        """Builds the potential of a batch of points, each its own chain, unchecked.

        It also takes several such batches, one after the other: replicas of each chain.

        Args:
            boltzmann: The distribution of one point, or of a batch that may depend on the place in
                it.
            batch_shape: The shape of the batch; there are as many chains as it has elements.
            like: A tensor whose dtype and device the chains have.
        """
        bijection = bijection_of(boltzmann.support)
        shape = bijection.inverse_shape(boltzmann.event_shape)
        discrete = discrete_target(boltzmann, batch_shape, one_each=True)

        one_each = (*batch_shape, *shape)

        def value(z: Tensor) -> Tensor:
            replicas = () if z.numel() == math.prod(one_each) else (-1,)
            u = z.reshape(*replicas, *one_each)
            return -unconstrained_log_density(boltzmann, u).reshape(-1)

        sites = [Site("x", shape, bijection, ())]
        return cls(value_and_grad_of(value), sites, like, discrete=discrete)

    def on(self, rows: Sequence[Tensor]) -> Potential:
        """Returns the potential of one minibatch, scaled up to all the data.

        Args:
            rows: The rows of each subsampled plate, with shape ``(C, subsample_size)``.
        """

        def value_and_grad(z: Tensor) -> tuple[Tensor, Tensor]:
            return self.value_and_grad(z, *rows)

        return Potential(value_and_grad, self.sites, self.start)

    def flatten(self, unconstrained: dict[str, Tensor]) -> Tensor:
        """Packs unconstrained values, chains first, into ``z (C, D)``.

        Raises:
            ValueError: If they are not those of the sites, in name and shape, or discrete ones are
                not of their alphabet.
        """
        shapes = {site.name: tuple(site.shape) for site in self.sites}
        if set(unconstrained) != set(shapes):
            raise ValueError(
                f"values must be given for the sites {sorted(shapes)}, got {sorted(unconstrained)}"
            )
        for name, value in unconstrained.items():
            if value.shape[1:].numel() != math.prod(shapes[name]):
                raise ValueError(
                    f"values of '{name}' must have shape {(len(value), *shapes[name])} in "
                    f"unconstrained space, chains first, got {tuple(value.shape)}"
                )
        values = [unconstrained[site.name] for site in self.sites]
        z = torch.cat([value.reshape(len(value), -1).to(self.start) for value in values], -1)
        for name, columns, target in self._alphabets():
            if not target.contains(z[:, columns]):
                wrong = z[:, columns].unique()[:8].tolist()
                raise ValueError(
                    f"values of '{name}' must be of the alphabet of its support, "
                    f"{target.alphabet}, got {wrong}"
                )
        return z

    def starting_at(self, initial_params: dict[str, Tensor]) -> Tensor:
        """Packs unconstrained starting values, chains first, into ``z (C, D)``.

        Raises:
            ValueError: If they are not those of the sites, or U or its gradient is not finite.
        """
        z = self.flatten(initial_params)
        bad = (~self._is_finite(z)).nonzero().flatten().tolist()
        if bad:
            raise ValueError(
                "initial_params, which are unconstrained, must lie where the potential and its "
                f"gradient are finite, and do not in {len(bad)} of {len(z)} chains; in chain "
                f"{bad[0]} the values are {self.constrain(z[bad[0]])}"
            )
        return z

    def unflatten(self, z: Tensor) -> dict[str, Tensor]:
        """Unpacks ``z (*batch, D)`` into unconstrained values by name."""
        return _unflatten(z, self.sites)

    def constrain(self, z: Tensor) -> dict[str, Tensor]:
        """Maps ``z (*batch, D)`` to the values of the sites, by name."""
        values = self.unflatten(z)
        return {site.name: site.bijection(values[site.name]) for site in self.sites}

    def unconstrain(self, values: dict[str, Tensor]) -> Tensor:
        """Maps the values of the sites, chains first, to ``z (C, D)``."""
        return self.flatten(
            {site.name: site.bijection.inv(values[site.name]) for site in self.sites}
        )

    def initialize(self, num_chains: int, radius: float = 2.0, max_tries: int = 100) -> Tensor:
        r"""Draws starting points uniformly in a cube of unconstrained space, where U is finite.

        Discrete ones are drawn uniformly from all points.

        Args:
            num_chains: The number of chains :math:`C`.
            radius: Half the side of the cube.
            max_tries: How often a chain that starts at a non-finite potential is redrawn.

        Returns:
            Points ``z``, with shape ``(C, D)``.

        Raises:
            ValueError: If some chain finds no finite start.
        """

        def draw(count: int) -> Tensor:
            z = self.start.new_empty(count, self.dim).uniform_(-radius, radius)
            for _, columns, target in self._alphabets():
                z[:, columns] = target.draw(z[:, columns])
            return z

        z = draw(num_chains)
        for _ in range(max_tries):
            bad = ~self._is_finite(z)
            if not bool(bad.any()):
                return z
            z[bad] = draw(int(bad.sum()))
        raise ValueError(
            f"{int(bad.sum())} of {num_chains} chains found no start with a finite potential in "
            f"{max_tries} tries; give initial_params"
        )

    def _alphabets(self) -> Iterator[tuple[str, slice, DiscreteTarget]]:
        """The discrete sites: their names, where they lie in ``z``, and their values."""
        begin = 0
        for site in self.sites:
            columns = slice(begin, begin + site.shape.numel())
            target = self.within.get(site.name, self.discrete)
            if target is not None:
                yield site.name, columns, target
            begin = columns.stop

    def _is_finite(self, z: Tensor) -> Tensor:
        if self.discrete is not None:
            return self.discrete.value(z).isfinite()
        spread = [
            torch.arange(b, device=z.device).expand(len(z), b) * (n // b)
            for _, n, b in self.plates
        ]
        value, grad = self.value_and_grad(z, *spread)
        return value.isfinite() & grad.isfinite().all(-1)


def _of_boltzmann(boltzmann: Boltzmann) -> Potential:
    bijection = bijection_of(boltzmann.support)
    shape = boltzmann.batch_shape + bijection.inverse_shape(boltzmann.event_shape)
    start = reference_tensor(boltzmann.energy)
    discrete = discrete_target(boltzmann, boltzmann.batch_shape, one_each=False)
    z = start.new_zeros(2, shape.numel())
    if not boltzmann.batch_shape:
        x = z if discrete is None else discrete.draw(z)
        check_energy(boltzmann.energy, bijection(x.reshape(2, *shape)), discrete is None)

    def value(z: Tensor) -> Tensor:
        log_density = unconstrained_log_density(boltzmann, z.reshape(-1, *shape))
        return -log_density.reshape(len(z), -1).sum(-1)

    sites = [Site("x", shape, bijection, ())]
    return Potential(value_and_grad_of(value), sites, start, discrete=discrete)


def unconstrained_log_density(boltzmann: Boltzmann, u: Tensor) -> Tensor:
    r"""Evaluates the unnormalised log density of the unconstrained variable, differentiably.

    .. math:: -E(x(u))/T + \log \left| \frac{dx}{du} \right|

    Args:
        boltzmann: The distribution.
        u: Unconstrained points, with shape ``(*sample, *batch, *unconstrained_event)``.

    Returns:
        The log density in nats up to a constant, with shape ``(*sample, *batch)``.
    """
    bijection = bijection_of(boltzmann.support)
    x = bijection(u)
    log_density = boltzmann.log_density(x)
    jacobian = bijection.log_abs_det_jacobian(u, x)
    return log_density + jacobian.reshape(*log_density.shape, -1).sum(-1)


def _of_function(
    potential_fn: Callable[[dict[str, Tensor]], Tensor], initial_params: dict[str, Tensor] | None
) -> Potential:
    if not initial_params:
        raise ValueError(
            "potential_fn= says neither names nor shapes: give initial_params, unconstrained, "
            "chains first"
        )
    sites = [
        Site(name, value.shape[1:], identity_transform, ())
        for name, value in sorted(initial_params.items())
    ]
    start = next(iter(initial_params.values())).new_empty(())
    return _mapped(potential_fn, sites, start)


def _of_model(
    model: Model, args: tuple, kwargs: dict, minibatches: bool, discrete: tuple[str, ...]
) -> Potential:
    with poutine.block(), unvalidated():
        started = InitMessenger(uniform_in_support)(model)
        known = poutine.trace(started).get_trace(*args, **kwargs).nodes
        nodes = known.values()
        with torch.random.fork_rng(devices=()):
            check_supports(known, poutine.trace(started).get_trace(*args, **kwargs).nodes)
        warn_of_angles(known)
        within = discrete_latents(known, discrete)
        model = Imputing(imputed_latents(known))(model)
        frames = {f for node in nodes for f in node.get("cond_indep_stack", ())}
        nesting = -min((f.dim for f in frames if f.vectorized), default=0)
        plates = subsampled_plates(nodes)
        check_plates(plates, minibatches, {f.name for f in frames if not f.vectorized})
        check_latents(nodes, {plate.name for plate in plates})
        data = {name: torch.arange(b) for name, _, b in plates}
        data |= {name: known[name]["value"] for name in within}
        transforms = unconstraining(known, within)
        try:
            with poutine.condition(data=data):
                # Beneath what is summed out, Pyro would make a latent for each of its values.
                params, potential_fn, _, summed = initialize_model(
                    model,
                    args,
                    kwargs,
                    transforms=transforms,
                    max_plate_nesting=nesting,
                    init_strategy=lambda site: uniform_in_support(known[site["name"]]),
                )
        except ValueError as error:
            if "cannot find valid initial params" not in str(error):
                raise
            raise ValueError(
                "the model has a finite log density and gradient at none of 100 random points; "
                f"sites whose own log density is not finite: {where_not_finite(known)}"
            ) from error
        check_supports(known, summed.nodes)
    if not any(latent.numel() for latent in params.values()) and not within:
        raise ValueError("the model has no continuous latent site to sample")
    sites = []
    for name in sorted((*params, *within)):
        node = known[name]
        plate_at = {f.dim: f.name for f in node["cond_indep_stack"] if f.vectorized}
        batch_dim = len(node["fn"].batch_shape)
        dims = tuple(plate_at.get(d - batch_dim) for d in range(batch_dim))
        if name in within:
            sites.append(Site(name, node["value"].shape, _as_the_model_takes(node), dims))
        else:
            sites.append(Site(name, params[name].shape, transforms[name].inv, dims))
    floats = (*params.values(), *(known[name]["value"] for name in within), torch.empty(()))
    start = next(value for value in floats if value.is_floating_point()).new_empty(())
    return _mapped(potential_fn, sites, start, plates, within)


def _as_the_model_takes(node: dict) -> Transform:
    dtype = node["value"].dtype
    return identity_transform if dtype.is_floating_point else AsIntegers(dtype)


def _mapped(
    potential_fn: Callable[[dict[str, Tensor]], Tensor],
    sites: list[Site],
    start: Tensor,
    plates: Sequence[Plate] = (),
    within: Mapping[str, DiscreteTarget] | None = None,
) -> Potential:
    within = within or {}
    as_taken = {site.name: site.bijection for site in sites if site.name in within}

    def one_chain(values: dict[str, Tensor], *rows: Tensor) -> Tensor:
        names = (plate.name for plate in plates)
        data = {name: taken(values[name]) for name, taken in as_taken.items()}
        data |= dict(zip(names, rows, strict=True))
        with poutine.condition(data=data):
            rest = {name: value for name, value in values.items() if name not in within}
            return potential_fn(rest).squeeze()

    batched = batched_value_and_grad(one_chain)

    def value_and_grad(z: Tensor, *rows: Tensor) -> tuple[Tensor, Tensor]:
        value, grads = batched(_unflatten(z.detach(), sites), *rows)
        # Joined along the coordinates, in memory, too.
        columns = [grads[site.name].reshape(len(z), -1).T for site in sites]
        return value, torch.cat(columns).T

    return Potential(value_and_grad, sites, start, plates, within=within)


def _unflatten(z: Tensor, sites: list[Site]) -> dict[str, Tensor]:
    pieces = z.split([site.shape.numel() for site in sites], dim=-1)
    return {
        site.name: piece.reshape(z.shape[:-1] + site.shape)
        for site, piece in zip(sites, pieces, strict=True)
    }
