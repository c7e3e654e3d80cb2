"""Microcanonical kernels: the dynamics of ``isokinetic.py``, with a Metropolis decision or not."""

from __future__ import annotations

__all__ = ["MAMS", "MCLMC"]

import math
from collections.abc import Callable

import torch
from torch import Tensor

from ..distributions import Boltzmann
from ..potential import Model, Potential
from .adaptation import Adaptation
from .base import Kernel
from .hamiltonian import MAX_ENERGY_ERROR
from .isokinetic import MicrocanonicalState, PathState, isokinetic_leapfrog, path, unit
from .length import WORST, DirectionAdaptation, PathAdaptation
from .transition import Info, metropolis, normal_like, uniform_like
from .underdamped import WithMomentum, step_or_turn

FIRST_STEPS = 3
"""The length of a path before it is adapted, in steps."""

MAX_STEPS = 1024
"""The number of steps at which a path ends in any case."""


class MAMS(Kernel):
    r"""The Metropolis-adjusted microcanonical sampler.

    A fresh direction :math:`u` uniform on the sphere, then :math:`n` steps
    (:func:`~pyro_ebm.kernels.isokinetic.isokinetic_leapfrog`) along a path of length :math:`t` to
    :math:`y`, and a Metropolis decision on the energy error of the path

    .. math:: \log r = U(x) - U(y) - \sum \Delta K

    where :math:`\Delta K` is the gain of kinetic energy in each turn of the direction, which is
    also the log Jacobian of that turn. The invariant law is :math:`e^{-U}`, exactly. The length is
    drawn for all chains alike at each transition, since a fixed one can resonate with the target
    and never mix,

    .. math:: t \sim \mathcal{U}\big((1 - j) L, (1 + j) L\big), \qquad
        n = \lceil t / \epsilon \rceil

    with steps of :math:`t / n`. Warmup adapts, pooled over chains, :math:`\epsilon`, the metric
    :math:`A` (:mod:`~pyro_ebm.kernels.metric`) and the length :math:`L`: a quarter of the period
    of the slowest direction, :math:`\tfrac{\pi}{2} \sqrt{\lambda (D - 1)}`, where :math:`\lambda`
    is the variance in the widest directions of :math:`A^{-1} x`
    (:class:`~pyro_ebm.kernels.length.Spread`). Before, or without warmup, it is a few steps. It
    costs :math:`n` gradients a step.

    References:
        | Metropolis adjusted microcanonical Hamiltonian Monte Carlo (Robnik, Cohn-Gordon and
        | Seljak, 2025), https://arxiv.org/abs/2503.01707 (the target acceptance 0.9)

    Args:
        model: A Pyro model or a :class:`~pyro_ebm.Boltzmann`, if any.
        potential_fn: In its place, a function from a dict of unconstrained values to nats.
        step_size: The step size :math:`\epsilon > 0`, in units of x, or its first value.
        num_steps: If given, the number :math:`n` of every path, in place of a length that adapts:
            :math:`L = n \epsilon`.
        jitter: The part :math:`j` of its length by which a path varies, from 0 (fixed) to 1.
        adapt_step_size: Whether warmup adapts :math:`\epsilon`.
        adapt_mass_matrix: Whether warmup adapts :math:`A`.
        metric_rank: How many directions :math:`V` it may stretch beside the coordinates; with
            ``None`` all up to 100 dimensions, and none of more.
        target_accept_prob: The mean acceptance that adaptation aims at.

    Raises:
        ValueError: If ``step_size`` or ``num_steps`` is not positive, ``jitter`` is not in [0, 1],
            or ``target_accept_prob`` is not between 0 and 1; and, when chains are made, if the
            target has one dimension.

    Example:
        >>> import pyro_ebm as ebm
        >>> target = ebm.Boltzmann(ebm.energies.Banana(scale=1.0, curvature=0.5))
        >>> mcmc = ebm.MCMC(MAMS(target), 50, 50, num_chains=8, disable_progbar=True)
        >>> mcmc.run()
        >>> sorted(mcmc.sample_stats)
        ['acceptance_rate', 'accepted', 'diverging', 'lp', 'n_steps', 'step_size']
    """

    branch_free = False

    def __init__(
        self,
        model: Model | Boltzmann | None = None,
        *,
        potential_fn: Callable[[dict[str, Tensor]], Tensor] | None = None,
        step_size: float = 0.1,
        num_steps: int | None = None,
        jitter: float = 0.5,
        adapt_step_size: bool = True,
        adapt_mass_matrix: bool = True,
        metric_rank: int | None = 0,
        target_accept_prob: float = 0.9,
    ) -> None:
        if num_steps is not None and num_steps < 1:
            raise ValueError(f"num_steps must be at least 1, got {num_steps}")
        if not 0 <= jitter <= 1:
            raise ValueError(f"jitter must be between 0 and 1, got {jitter}")
        super().__init__(
            model,
            potential_fn=potential_fn,
            step_size=step_size,
            adapt_step_size=adapt_step_size,
            adapt_mass_matrix=adapt_mass_matrix,
            metric_rank=metric_rank,
            target_accept_prob=target_accept_prob,
        )
        self.num_steps = num_steps
        self.jitter = jitter

    def init(self, potential: Potential, z: Tensor) -> PathState:  # noqa: D102
        _refuse_one_dimension(self, z)
        state = super().init(potential, z)
        return PathState(*state, FIRST_STEPS * state.step_size)

    def adaptation(self, warmup_steps: int) -> Adaptation:  # noqa: D102
        learn = Adaptation if self.num_steps is not None else PathAdaptation
        return learn(self, warmup_steps)

    def noise(  # noqa: D102
        self, state: PathState, generator: torch.Generator, *num_steps: int
    ) -> tuple[Tensor, ...]:
        normal = normal_like(state.z, generator, *num_steps)
        uniform = uniform_like(state.potential, generator, *num_steps)
        return normal, uniform, uniform_like(state.step_size, generator, *num_steps)

    def step(  # noqa: D102
        self, potential: Potential, state: PathState, noise: tuple[Tensor, ...]
    ) -> tuple[PathState, Info]:
        xi, uniform, jitter = noise
        step_size, num_steps = self._path(state, 1 + self.jitter * (2 * jitter - 1))
        proposal, kinetic = path(
            potential, state._replace(step_size=step_size), unit(xi), num_steps
        )
        log_ratio = state.potential.double() - proposal.potential.double() - kinetic
        log_ratio = log_ratio.where(log_ratio.isfinite(), -math.inf)
        moved, accept_prob, accepted = metropolis(state, proposal, log_ratio, uniform)
        info = Info(
            diverging=~(log_ratio > -MAX_ENERGY_ERROR),
            accept_prob=accept_prob,
            accepted=accepted,
            num_steps=num_steps.expand_as(state.potential),
        )
        return moved, info

    def _path(self, state: PathState, factor: Tensor) -> tuple[Tensor, Tensor]:
        """The size and the number of the steps of a path, 0-d."""
        if self.num_steps is not None:
            num_steps = torch.full_like(factor, self.num_steps, dtype=torch.long)
            return state.step_size * factor, num_steps
        length = state.length * factor
        num_steps = (length / state.step_size).ceil().clamp(1, MAX_STEPS)
        return (length / num_steps).minimum(state.step_size), num_steps.long()


class MCLMC(WithMomentum):
    r"""Microcanonical Langevin Monte Carlo, unadjusted.

    An isokinetic leapfrog step, after the direction has been renewed in part

    .. math:: u \leftarrow \frac{u + \nu \xi}{|u + \nu \xi|}, \qquad
        \nu = \sqrt{\frac{e^{2 \epsilon / \ell} - 1}{D}}, \qquad \xi \sim \mathcal{N}(0, I)

    **Biased**: the invariant law of :math:`x` is not :math:`e^{-U}` but tends to it with
    :math:`\epsilon^2`; there is no closed form, even for a Gaussian. Warmup adapts
    :math:`\epsilon` until the energy error :math:`\Delta E` of a step is as large as asked for,

    .. math:: \frac{1}{D} \, \mathbb{E}[\Delta E^2] = v

    where :math:`\epsilon^6` is in proportion to :math:`v`. Of a standard Gaussian, in 2 to 100
    dimensions, the second moments are then too large by about :math:`0.45 \, v^{1/3}` (measured):
    4 % at :math:`v = 5 \cdot 10^{-4}`, 1 % at :math:`10^{-5}`. Other targets have other biases. An
    error counts for no more than 16 times its target, so that rare large ones, as in the neck of a
    funnel, do not decide; with them the mean is above :math:`v`. A step to a non-finite potential
    is not made: the chain turns back, it is counted in ``Info.diverging``, and for warmup it
    counts as the largest error. Warmup also adapts the metric :math:`A`
    (:mod:`~pyro_ebm.kernels.metric`) and the length :math:`\ell = \sqrt{\lambda D}`, with the
    variance :math:`\lambda` in the widest directions of :math:`A^{-1} x`
    (:class:`~pyro_ebm.kernels.length.Spread`), pooled over chains. With
    ``adapt_step_size=False``, ``adapt_mass_matrix=False`` and a ``length`` it adapts nothing.
    :class:`MAMS` is its exact sibling.

    References:
        | Microcanonical Hamiltonian Monte Carlo (Robnik, De Luca, Silverstein and Seljak, 2023),
        | https://jmlr.org/papers/v24/22-1450.html
        | Fluctuation without dissipation: microcanonical Langevin Monte Carlo (Robnik and Seljak,
        | 2023), https://arxiv.org/abs/2303.18221

    Args:
        model: A Pyro model or a :class:`~pyro_ebm.Boltzmann`, if any.
        potential_fn: In its place, a function from a dict of unconstrained values to nats.
        step_size: The step size :math:`\epsilon > 0`, in units of x, or its first value.
        length: The length :math:`\ell > 0` of path over which the direction is forgotten, in units
            of x; if not given, warmup adapts it from :math:`\sqrt{D}` on.
        energy_variance: The variance :math:`v > 0` of the energy error, per dimension, that
            adaptation aims at, in square nats.
        adapt_step_size: Whether warmup adapts :math:`\epsilon`.
        adapt_mass_matrix: Whether warmup adapts :math:`A`.
        metric_rank: How many directions :math:`V` it may stretch beside the coordinates; with
            ``None`` all up to 100 dimensions, and none of more.

    Raises:
        ValueError: If ``step_size``, ``length`` or ``energy_variance`` is not positive; and, when
            chains are made, if the target has one dimension.

    Example:
        >>> import pyro_ebm as ebm
        >>> target = ebm.Boltzmann(ebm.energies.Gaussian(torch.zeros(2), 1.0))
        >>> mcmc = ebm.MCMC(MCLMC(target), 50, 50, num_chains=8, disable_progbar=True)
        >>> mcmc.run()
        >>> sorted(mcmc.sample_stats)
        ['diverging', 'energy', 'lp', 'step_size']
    """

    def __init__(
        self,
        model: Model | Boltzmann | None = None,
        *,
        potential_fn: Callable[[dict[str, Tensor]], Tensor] | None = None,
        step_size: float = 0.1,
        length: float | None = None,
        energy_variance: float = 5e-4,
        adapt_step_size: bool = True,
        adapt_mass_matrix: bool = True,
        metric_rank: int | None = 0,
    ) -> None:
        if length is not None and not length > 0:
            raise ValueError(f"length must be positive, got {length}")
        if not energy_variance > 0:
            raise ValueError(f"energy_variance must be positive, got {energy_variance}")
        super().__init__(
            model,
            potential_fn=potential_fn,
            step_size=step_size,
            adapt_step_size=adapt_step_size,
            adapt_mass_matrix=adapt_mass_matrix,
            metric_rank=metric_rank,
            target_accept_prob=1 - 1 / WORST,
        )
        self.length = length
        self.energy_variance = energy_variance

    def init(self, potential: Potential, z: Tensor) -> MicrocanonicalState:  # noqa: D102
        _refuse_one_dimension(self, z)
        state = super().init(potential, z)
        length = math.sqrt(z.shape[-1]) if self.length is None else self.length
        kinetic = torch.zeros_like(state.potential, dtype=torch.float64)
        return MicrocanonicalState(*state, z.new_tensor(length), kinetic)

    def adaptation(self, warmup_steps: int) -> Adaptation:  # noqa: D102
        return DirectionAdaptation(self, warmup_steps)

    def noise(  # noqa: D102
        self, state: MicrocanonicalState, generator: torch.Generator, *num_steps: int
    ) -> tuple[Tensor, ...]:
        return (normal_like(state.z, generator, *num_steps),)

    def step(  # noqa: D102
        self, potential: Potential, state: MicrocanonicalState, noise: tuple[Tensor, ...]
    ) -> tuple[MicrocanonicalState, Info]:
        (xi,) = noise
        nu = ((2 * state.step_size / state.length).expm1() / state.z.shape[-1]).sqrt()
        u = unit(state.momentum + nu * xi)
        end, u, gain = isokinetic_leapfrog(potential, state, u)
        moved, finite = step_or_turn(state, end.z, end.potential, end.grad, u)
        moved = moved._replace(kinetic=state.kinetic + gain.where(finite, 0.0))
        return moved, Info(diverging=~finite, energy=moved.potential.double() + moved.kinetic)


def _refuse_one_dimension(kernel: Kernel, z: Tensor) -> None:
    if z.shape[-1] < 2:
        raise ValueError(
            f"{type(kernel).__name__} needs a target of at least 2 dimensions, got "
            f"{z.shape[-1]}: use HMC instead"
        )
