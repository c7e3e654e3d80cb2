r"""An energy as a Pyro distribution, and as a factor of a Pyro model."""

from __future__ import annotations

__all__ = ["Boltzmann", "base_distribution", "energy_factor"]

import copy
import math
import warnings
from collections.abc import Callable, Sequence
from functools import partial

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.distributions import biject_to, constraints

from .arguments import check_positive
from .energies.alphabet import alphabet_of
from .energies.base import Energy, real_support, reference_tensor, trainable_parameters
from .energies.discrete import DiscreteEnergy
from .energies.enumeration import MAX_POINTS, count_points, enumerate_points, random_points
from .guards import check_score_is_sound, trained_by_elbo

_MAX_ENUMERATED = 2**16
"""The largest number of points that a distribution enumerates without being asked to."""


class Boltzmann(dist.TorchDistribution):
    r"""The distribution of an energy, known up to its normaliser.

    .. math:: p(x) = \exp(-E(x)/T) / Z, \qquad Z = \int \exp(-E(x)/T) \, dx

    ``log_prob`` is :math:`-E(x)/T - \log Z` where :math:`\log Z` is known (given, or known to the
    energy at :math:`T = 1`) or is a sum over a small discrete support, and the unnormalised
    :math:`-E(x)/T` elsewhere; ``is_normalized`` says which. It works as any Pyro distribution: in
    plates, with ``to_event``, ``mask``, ``expand``, conditioning and constrained supports, under
    stock NUTS, HMC, SVI and autoguides. To *learn* the energy, train with one of
    :mod:`pyro_ebm.objectives`.

    A support of at most 65,536 points is small: it enumerates, so that ``TraceEnum_ELBO`` and NUTS
    sum over the site, draws are exact, and log Z is a sum made anew at each ``log_prob``
    (``sums_log_z``). An objective still trains such a site by its own surrogate.

    Args:
        energy: Any callable that maps ``x (*batch, *event)`` to nats ``(*batch,)``.
        event_shape: The shape of one point; an :class:`~pyro_ebm.energies.Energy` knows its own.
        support: The constraint on one point; an ``Energy`` knows its own, others are real by
            default.
        temperature: The temperature :math:`T > 0`, or a tensor of them, ``(*batch,)``: one for
            each member of the batch.
        log_z: The exact :math:`\log \int \exp(-E(x)/T) dx` in nats, if you know it. It may depend
            on the parameters of the energy.
        validate_args: As in every Pyro distribution.

    Raises:
        ValueError: If the event shape is unknown or contradicts the energy's, if ``temperature``
            is not positive, or, in ``log_prob``, if the energy returns another shape than that of
            the batch.

    Example:
        >>> import pyro_ebm as ebm
        >>> p = Boltzmann(lambda x: x.pow(4).sum(-1), event_shape=(2,))
        >>> p.is_normalized, p.log_prob(torch.ones(7, 2)).shape
        (False, torch.Size([7]))
        >>> Boltzmann(ebm.energies.Laplace(torch.zeros(()), 1.0)).log_prob(torch.zeros(())).exp()
        tensor(0.5000)
    """

    arg_constraints: dict = {}  # noqa: RUF012

    def __init__(
        self,
        energy: Callable[[Tensor], Tensor],
        *,
        event_shape: Sequence[int] | None = None,
        support: constraints.Constraint | None = None,
        temperature: float | Tensor = 1.0,
        log_z: float | Tensor | None = None,
        validate_args: bool | None = None,
    ) -> None:
        if not callable(energy):
            raise ValueError(f"energy must be callable, got {type(energy).__name__}")
        known = isinstance(energy, Energy)
        if event_shape is None and not known:
            raise ValueError("event_shape is needed: a plain callable does not say the shape of x")
        if known and event_shape is not None and torch.Size(event_shape) != energy.event_shape:
            raise ValueError(
                f"event_shape {tuple(event_shape)} contradicts the energy's "
                f"{tuple(energy.event_shape)}"
            )
        event_shape = energy.event_shape if event_shape is None else torch.Size(event_shape)
        if support is None:
            support = energy.support if known else real_support(len(event_shape))
        if support.event_dim != len(event_shape):
            raise ValueError(
                f"support {support} has event_dim {support.event_dim}, but event_shape is "
                f"{tuple(event_shape)}; wrap it as constraints.independent(support, n)"
            )
        if not isinstance(temperature, Tensor):
            check_positive("temperature", temperature)
        self.energy = energy
        self.temperature = temperature
        self._support = support
        self._own_law = known and support is energy.support and _is_one(temperature)
        self._log_z = log_z
        batch_shape = energy.batch_shape if known else torch.Size()
        batch_shape = _joint(getattr(temperature, "shape", batch_shape), batch_shape)
        super().__init__(batch_shape, event_shape, validate_args=validate_args)
        if self._validate_args and isinstance(temperature, Tensor):
            _check_temperatures(temperature)

    def __repr__(self) -> str:
        energy = type(self.energy) if isinstance(self.energy, nn.Module) else self.energy
        parts = [getattr(energy, "__name__", type(energy).__name__)]
        parts += [f"batch_shape={tuple(self.batch_shape)}"] if self.batch_shape else []
        parts += [f"event_shape={tuple(self.event_shape)}"]
        parts += [] if _is_one(self.temperature) else [f"temperature={self.temperature}"]
        return f"Boltzmann({', '.join(parts)})"

    @constraints.dependent_property
    def support(self) -> constraints.Constraint:
        """The constraint on one point."""
        return self._support

    @property
    def is_normalized(self) -> bool:
        """Whether ``log_prob`` is a normalised log density."""
        return self._knows_log_z or self.has_enumerate_support

    @property
    def _knows_log_z(self) -> bool:
        return self._log_z is not None or (self._own_law and self.energy.has_log_z)

    @property
    def sums_log_z(self) -> bool:
        """Whether log Z is a sum over all points, as the energy does not know it otherwise."""
        return not self._knows_log_z and self.has_enumerate_support

    @property
    def log_z(self) -> Tensor | float:
        """The exact log Z in nats, where ``is_normalized``."""
        if self.sums_log_z:
            return self._summed_log_z(self.batch_shape, reference_tensor(self.energy))
        if not self.is_normalized:
            raise ValueError("log Z is not known; estimate it with pyro_ebm.logz")
        return self.energy.log_z() if self._log_z is None else self._log_z

    @property
    def has_enumerate_support(self) -> bool:
        """Whether the support is discrete and small: at most 65,536 points."""
        num_points = count_points(self._support, self.event_shape)
        return num_points is not None and num_points <= _MAX_ENUMERATED

    def enumerate_support(self, expand: bool = True) -> Tensor:
        """Lists all points of a discrete support.

        Args:
            expand: Whether the points are repeated for each member of the batch.

        Returns:
            The points, with shape ``(n, *batch, *event)``, the batch of ones if not expanded.

        Raises:
            NotImplementedError: If the support is not discrete, or not small.
        """
        if not self.has_enumerate_support:
            raise NotImplementedError(
                f"support {self._support} of {tuple(self.event_shape)} cannot be enumerated: a "
                f"discrete one of at most {_MAX_ENUMERATED} points can"
            )
        like = reference_tensor(self.energy)
        points = self._points((1,) * len(self.batch_shape), like)
        return points.expand(-1, *self.batch_shape, *self.event_shape) if expand else points

    def _points(self, batch: Sequence[int], like: Tensor) -> Tensor:
        points = enumerate_points(self._support, self.event_shape, like)
        return points.reshape(-1, *(1,) * len(batch), *self.event_shape)

    def _summed_log_z(self, batch: torch.Size, like: Tensor) -> Tensor:
        """Sums over all points, for a batch that the energy's own conditions may need whole."""
        points = self._points(batch, like)
        try:
            energies = self.energy(points)
        except RuntimeError:  # what it is conditioned on does not fit one point for all
            if len(points) * batch.numel() > MAX_POINTS:
                raise ValueError(
                    f"log Z is a sum over {len(points)} points for each of {batch.numel()} data, "
                    f"more than {MAX_POINTS} together; give Boltzmann its log_z, or use smaller "
                    "batches"
                ) from None
            energies = self.energy(points.expand(-1, *batch, *self.event_shape))
        return (-energies.double() / self.temperature).logsumexp(0).to(energies.dtype)

    def expand(self, batch_shape: Sequence[int], _instance: Boltzmann | None = None) -> Boltzmann:
        """Returns the distribution of independent copies, with shape ``batch_shape``."""
        new = copy.copy(self) if _instance is None else _instance
        new._batch_shape = torch.Size(batch_shape)
        return new

    def with_energy(self, energy: Callable[[Tensor], Tensor]) -> Boltzmann:
        """Returns the same distribution of another, unnormalised energy."""
        new = copy.copy(self)
        new.energy, new._own_law, new._log_z = energy, False, None
        return new

    def log_density(self, x: Tensor) -> Tensor:
        r"""Evaluates the unnormalised :math:`-E(x)/T`.

        Args:
            x: Points, with shape ``(*sample, *batch, *event)``.

        Returns:
            The log density in nats up to a constant, with shape ``(*sample, *batch)``.
        """
        event = self.event_shape
        if x.shape[max(0, x.dim() - len(event)) :] != event:
            raise ValueError(
                f"x must have shape (*batch, *event) with event {tuple(event)}, got "
                f"{tuple(x.shape)}"
            )
        energy = self.energy(x)
        batch = x.shape[: x.dim() - len(event)]
        if energy.shape != batch and energy.shape != _joint(batch, self.batch_shape):
            raise ValueError(
                f"energy must map x of shape {tuple(x.shape)} to shape {tuple(batch)}, one number "
                f"of nats per point, got {tuple(energy.shape)}; a trailing dimension of one needs "
                "squeeze(-1), and a batch of laws, as of a latent that is summed out, its shape: "
                f"Boltzmann(...).expand({tuple(energy.shape)})"
            )
        log_density = -energy / self.temperature
        return log_density.expand(_joint(log_density.shape, self.batch_shape))

    def log_prob(self, x: Tensor) -> Tensor:
        r"""Evaluates :math:`-E(x)/T - \log Z`, or :math:`-E(x)/T` where log Z is not known.

        Args:
            x: Points, with shape ``(*sample, *batch, *event)``.

        Returns:
            The log density in nats, with shape ``(*sample, *batch)``.
        """
        if self._validate_args:
            self._validate_sample(x)
        log_density = self.log_density(x)
        if self.sums_log_z:
            like = x if x.is_floating_point() else reference_tensor(self.energy)
            return log_density - self._summed_log_z(log_density.shape, like)
        if self.is_normalized:
            return log_density - self.log_z
        check_score_is_sound(log_density, trainable_parameters(self.energy))
        return log_density

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        r"""Draws exactly where the energy knows how, else approximately.

        A small discrete support is enumerated, and the draw is exact. Other draws are approximate.
        An energy that knows its conditionals is swept 32 times from a random point; an RBM at
        another temperature than 1, where its block sweep does not serve, site by site. Else it is
        sampling importance resampling: up to 256 proposals per point, in unconstrained space from
        a wide scale mixture of Gaussians, on a discrete support from all points alike, of which
        one is kept with probability proportional to :math:`\exp(-E/T)` over the proposal density.
        It needs no gradient, never fails, and is meant for the places where Pyro draws in order to
        learn a shape or to begin. It is good in a few dimensions and poor in many: for draws to
        rely on, run :class:`pyro_ebm.MCMC`.

        Args:
            sample_shape: The shape of independent draws in front of the batch.

        Returns:
            Points, with shape ``(*sample, *batch, *event)``.
        """
        shape = torch.Size(sample_shape) + self.batch_shape
        with torch.no_grad():
            if self._own_law and self.energy.has_sample:
                outer = shape[: len(shape) - len(self.energy.batch_shape)]
                return self.energy.sample(outer.numel()).reshape(shape + self.event_shape)
            if self.has_enumerate_support:
                return self._drawn_points(shape)
            if alphabet_of(self._support) is None:
                return self._resampled(*self._proposals(shape), shape)
            return self._swept(shape)

    def _drawn_points(self, shape: torch.Size) -> Tensor:
        points = self.enumerate_support(expand=False)
        logits = self.log_density(points).movedim(0, -1)
        sample_shape = shape[: len(shape) - len(self.batch_shape)]
        drawn = torch.distributions.Categorical(logits=logits).sample(sample_shape)
        rows = points.reshape(-1, *self.event_shape).index_select(0, drawn.flatten())
        return rows.reshape(*drawn.shape, *self.event_shape)

    def _swept(self, shape: torch.Size) -> Tensor:
        """Draws points of a discrete support that is too large to enumerate."""
        like = reference_tensor(self.energy)
        known = isinstance(self.energy, DiscreteEnergy) and self._support is self.energy.support
        if not known:
            batch = (self._num_proposals(shape), *shape)
            x = random_points(self._support, self.event_shape, batch, like)
            return self._resampled(x, self.log_density(x), shape)
        x = random_points(self._support, self.event_shape, shape, like)
        beta = 1 / torch.as_tensor(self.temperature).to(like)
        sweep, sides = self.energy.sweep, self.energy.uniform_shape
        if sides != self.energy.site_shape and bool((beta != 1).any()):
            # Its own sweep draws what it has summed out too, and serves no other temperature.
            sweep, sides = partial(DiscreteEnergy.sweep, self.energy), self.energy.site_shape
        beta = beta.reshape(*beta.shape, *(1,) * len(self.energy.site_shape), 1)
        for _ in range(32):
            x = sweep(x, like.new_empty((*shape, *sides)).uniform_(), beta)
        return x

    def _num_proposals(self, shape: torch.Size) -> int:
        return max(8, min(256, 2**22 // max(1, shape.numel() * self.event_shape.numel())))

    def _proposals(self, shape: torch.Size) -> tuple[Tensor, Tensor]:
        """Proposes points of a continuous support, with their log weights."""
        bijection = biject_to(self._support)
        like = reference_tensor(self.energy)
        event = bijection.inverse_shape(self.event_shape)
        num_proposals = self._num_proposals(shape)
        scales = like.new_tensor([0.3, 1.0, 3.0, 10.0])
        own = scales[torch.randint(4, (num_proposals, *shape), device=like.device)]
        z = like.new_empty((num_proposals, *shape, *event)).normal_()
        z = z * own.reshape(own.shape + (1,) * len(event))
        x = bijection(z)
        log_weights = self.log_density(x) + _sum_to(
            bijection.log_abs_det_jacobian(z, x), own.dim()
        )
        squares, dim = z.square().reshape(*own.shape, -1).sum(-1, keepdim=True), event.numel()
        return x, log_weights - (-squares / (2 * scales**2) - dim * scales.log()).logsumexp(-1)

    def _resampled(self, x: Tensor, log_weights: Tensor, shape: torch.Size) -> Tensor:
        """Keeps one proposal of each point."""
        log_weights = log_weights.nan_to_num(nan=-math.inf).reshape(len(x), -1)
        gumbel = -torch.empty_like(log_weights).exponential_().log()
        kept = (log_weights + gumbel).argmax(0)
        rows = x.reshape(len(x), -1, *self.event_shape)
        return rows[kept, torch.arange(len(kept), device=x.device)].reshape(
            shape + self.event_shape
        )


def base_distribution(fn: dist.TorchDistribution) -> dist.TorchDistribution:
    """Unwraps ``to_event``, ``mask`` and ``expand``."""
    while hasattr(fn, "base_dist"):
        fn = fn.base_dist
    return fn


def energy_factor(name: str, energy: Callable[..., Tensor], *args: Tensor) -> None:
    r"""Adds a soft constraint to a Pyro model: multiplies its joint density by :math:`\exp(-E)`.

    The product need not be normalised, and latents under MCMC or a guide are sampled from it as
    they should. Its value is no log-likelihood of anything.

    Args:
        name: The name of the site.
        energy: A callable that maps ``args`` to nats, with the shape of the plates around it.
        args: What the energy takes.

    Raises:
        ValueError: If the energy is no callable, or does not return a floating-point tensor.

    Example:
        >>> import pyro_ebm as ebm
        >>> def model():
        ...     z = pyro.sample("z", dist.Normal(0, 1).expand([5]).to_event(1))
        ...     energy_factor("smooth", lambda z: z.diff().square().sum(-1), z)
        >>> list(pyro.poutine.trace(model).get_trace().nodes)
        ['_INPUT', 'z', 'smooth', '_RETURN']
    """
    if not callable(energy):
        raise ValueError(
            f"energy of factor '{name}' must be a callable that maps args to nats, got "
            f"{type(energy).__name__}; nats that are there already go into pyro.factor, with a "
            "minus sign"
        )
    value = energy(*args)
    if not isinstance(value, Tensor) or not value.is_floating_point():
        raise ValueError(
            f"energy of factor '{name}' must return a floating-point tensor of nats, got "
            f"{value.dtype if isinstance(value, Tensor) else type(value).__name__}"
        )
    if trained_by_elbo(trainable_parameters(energy)):
        warnings.warn(
            f"factor '{name}' has a learnable energy, and a plain ELBO ignores that log Z moves "
            "with it: the loss falls without bound. Make it a Boltzmann site and train with "
            "pyro_ebm.objectives, or freeze the energy with energy.requires_grad_(False)",
            UserWarning,
            stacklevel=2,
        )
    pyro.factor(name, -value)


def _joint(shape: torch.Size, other: torch.Size) -> torch.Size:
    """Broadcasts two shapes, which are mostly the same or one of them empty."""
    return shape if shape == other or not other else torch.broadcast_shapes(shape, other)


def _check_temperatures(temperature: Tensor) -> None:
    real = temperature.numel() and not temperature.is_complex()
    if not real or not bool(((temperature > 0) & temperature.isfinite()).all()):
        raise ValueError(f"temperature must be positive and finite, got {temperature}")


def _is_one(temperature: float | Tensor) -> bool:
    return not isinstance(temperature, Tensor) and temperature == 1.0


def _sum_to(values: Tensor, num_dims: int) -> Tensor:
    return values.flatten(num_dims).sum(-1) if values.dim() > num_dims else values
