r"""Microcanonical kernels: a direction of unit speed, turned by the gradient.

In :math:`D \ge 2` dimensions the flow

.. math:: \dot{x} = s u, \qquad
    \dot{u} = -\frac{1}{D - 1} \left(I - u u^\top\right) s \nabla U(x), \qquad |u| = 1

leaves :math:`e^{-U(x)}` and the uniform law of directions invariant.
"""

from __future__ import annotations

__all__ = ["MAMS", "MCLMC", "isokinetic_leapfrog"]

import math
from collections.abc import Callable

import torch
from torch import Tensor

from ..distributions import Boltzmann
from ..potential import Model, Potential
from .base import Kernel
from .hamiltonian import MAX_ENERGY_ERROR
from .transition import Info, State, metropolis, normal_like, uniform_like
from .underdamped import MomentumState, WithMomentum, step_or_turn


class MAMS(Kernel):
    r"""The Metropolis-adjusted microcanonical sampler.

    A fresh direction :math:`u` uniform on the sphere, then ``num_steps`` isokinetic leapfrog steps
    (:func:`isokinetic_leapfrog`) to :math:`y`, and a Metropolis decision on the energy error of
    the trajectory

    .. math:: \log r = U(x) - U(y) - \sum \Delta K

    where :math:`\Delta K` is the gain of kinetic energy in each turn of the direction, which is
    also the log Jacobian of that turn. The invariant law is :math:`e^{-U}`, exactly. The step size
    of each transition is drawn for all chains alike, uniformly within a part ``jitter`` above and
    below :math:`\epsilon`, since a fixed length can resonate with the target and never mix. Warmup
    adapts :math:`\epsilon` and the units :math:`s`, pooled over chains. It costs ``num_steps``
    gradients a step.

    References:
        | Metropolis adjusted microcanonical Hamiltonian Monte Carlo (Robnik, Cohn-Gordon and
        | Seljak, 2025), https://arxiv.org/abs/2503.01707 (the target acceptance 0.9)

    Args:
        model: A Pyro model or a :class:`~pyro_ebm.Boltzmann`, if any.
        potential_fn: In its place, a function from a dict of unconstrained values to nats.
        step_size: The step size :math:`\epsilon > 0`, in units of x, or its first value.
        num_steps: The number of leapfrog steps.
        jitter: The part of :math:`\epsilon` by which it varies, from 0 (fixed) to 1.
        adapt_step_size: Whether warmup adapts :math:`\epsilon`.
        adapt_mass_matrix: Whether warmup adapts :math:`s`.
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

    def __init__(
        self,
        model: Model | Boltzmann | None = None,
        *,
        potential_fn: Callable[[dict[str, Tensor]], Tensor] | None = None,
        step_size: float = 0.1,
        num_steps: int = 3,
        jitter: float = 0.3,
        adapt_step_size: bool = True,
        adapt_mass_matrix: bool = True,
        target_accept_prob: float = 0.9,
    ) -> None:
        if num_steps < 1:
            raise ValueError(f"num_steps must be at least 1, got {num_steps}")
        if not 0 <= jitter <= 1:
            raise ValueError(f"jitter must be between 0 and 1, got {jitter}")
        super().__init__(
            model,
            potential_fn=potential_fn,
            step_size=step_size,
            adapt_step_size=adapt_step_size,
            adapt_mass_matrix=adapt_mass_matrix,
            target_accept_prob=target_accept_prob,
        )
        self.num_steps = num_steps
        self.jitter = jitter

    def init(self, potential: Potential, z: Tensor) -> State:  # noqa: D102
        _refuse_one_dimension(self, z)
        return super().init(potential, z)

    def noise(  # noqa: D102
        self, state: State, generator: torch.Generator, *num_steps: int
    ) -> tuple[Tensor, ...]:
        normal = normal_like(state.z, generator, *num_steps)
        uniform = uniform_like(state.potential, generator, *num_steps)
        return normal, uniform, uniform_like(state.step_size, generator, *num_steps)

    def step(  # noqa: D102
        self, potential: Potential, state: State, noise: tuple[Tensor, ...]
    ) -> tuple[State, Info]:
        xi, uniform, length = noise
        proposal = state._replace(step_size=state.step_size * (1 + self.jitter * (2 * length - 1)))
        u = _unit(xi)
        kinetic = torch.zeros_like(state.potential, dtype=torch.float64)
        for _ in range(self.num_steps):
            proposal, u, gain = isokinetic_leapfrog(potential, proposal, u)
            kinetic = kinetic + gain
        log_ratio = state.potential.double() - proposal.potential.double() - kinetic
        log_ratio = log_ratio.where(log_ratio.isfinite(), -math.inf)
        moved, accept_prob, accepted = metropolis(state, proposal, log_ratio, uniform)
        info = Info(
            diverging=~(log_ratio > -MAX_ENERGY_ERROR),
            accept_prob=accept_prob,
            accepted=accepted,
            num_steps=torch.full_like(state.potential, self.num_steps, dtype=torch.long),
        )
        return moved, info


class MCLMC(WithMomentum):
    r"""Microcanonical Langevin Monte Carlo, unadjusted.

    An isokinetic leapfrog step, after the direction has been renewed in part

    .. math:: u \leftarrow \frac{u + \nu \xi}{|u + \nu \xi|}, \qquad
        \nu = \sqrt{\frac{e^{2 \epsilon / \ell} - 1}{D}}, \qquad \xi \sim \mathcal{N}(0, I)

    **Biased**: the invariant law of :math:`x` is not :math:`e^{-U}` but tends to it with
    :math:`\epsilon^2`; there is no closed form, even for a Gaussian. Nothing is adapted. A step to
    a non-finite potential is not made: the chain turns back, and it is counted in
    ``Info.diverging``. :class:`MAMS` is its exact sibling.

    References:
        | Microcanonical Hamiltonian Monte Carlo (Robnik, De Luca, Silverstein and Seljak, 2023),
        | https://jmlr.org/papers/v24/22-1450.html
        | Fluctuation without dissipation: microcanonical Langevin Monte Carlo (Robnik and Seljak,
        | 2023), https://arxiv.org/abs/2303.18221

    Args:
        model: A Pyro model or a :class:`~pyro_ebm.Boltzmann`, if any.
        potential_fn: In its place, a function from a dict of unconstrained values to nats.
        step_size: The step size :math:`\epsilon > 0`, in units of x.
        length: The length :math:`\ell > 0` of path over which the direction is forgotten, in units
            of x; :math:`\sqrt{D}` if not given, which suits targets of unit scale.

    Raises:
        ValueError: If ``step_size`` or ``length`` is not positive; and, when chains are made, if
            the target has one dimension.

    Example:
        >>> import pyro_ebm as ebm
        >>> target = ebm.Boltzmann(ebm.energies.Gaussian(torch.zeros(2), 1.0))
        >>> kernel = MCLMC(target, step_size=0.5)
        >>> mcmc = ebm.MCMC(kernel, 50, 10, num_chains=8, disable_progbar=True)
        >>> mcmc.run()
        >>> sorted(mcmc.sample_stats)
        ['diverging', 'lp', 'step_size']
    """

    def __init__(
        self,
        model: Model | Boltzmann | None = None,
        *,
        potential_fn: Callable[[dict[str, Tensor]], Tensor] | None = None,
        step_size: float,
        length: float | None = None,
    ) -> None:
        if length is not None and not length > 0:
            raise ValueError(f"length must be positive, got {length}")
        super().__init__(
            model,
            potential_fn=potential_fn,
            step_size=step_size,
            adapt_step_size=False,
            adapt_mass_matrix=False,
            target_accept_prob=0.5,
        )
        self.length = length

    def init(self, potential: Potential, z: Tensor) -> MomentumState:  # noqa: D102
        _refuse_one_dimension(self, z)
        return super().init(potential, z)

    def noise(  # noqa: D102
        self, state: MomentumState, generator: torch.Generator, *num_steps: int
    ) -> tuple[Tensor, ...]:
        return (normal_like(state.z, generator, *num_steps),)

    def step(  # noqa: D102
        self, potential: Potential, state: MomentumState, noise: tuple[Tensor, ...]
    ) -> tuple[MomentumState, Info]:
        (xi,) = noise
        dim = state.z.shape[-1]
        length = math.sqrt(dim) if self.length is None else self.length
        nu = ((2 * state.step_size / length).expm1() / dim).sqrt()
        u = _unit(state.momentum + nu * xi)
        end, u, _ = isokinetic_leapfrog(potential, state, u)
        moved, finite = step_or_turn(state, end.z, end.potential, end.grad, u)
        return moved, Info(diverging=~finite)


def isokinetic_leapfrog(
    potential: Potential, state: State | MomentumState, u: Tensor
) -> tuple[State | MomentumState, Tensor, Tensor]:
    r"""Makes one isokinetic leapfrog step: reversible, of second order, and of unit speed.

    A turn of the direction by :math:`\epsilon / 2`, :math:`x \leftarrow x + \epsilon s u`, and a
    turn again. With :math:`e` the unit vector along :math:`-s \nabla U(x)`, a turn is

    .. math::
        u \leftarrow \frac{u + (\sinh \delta + c \, (\cosh \delta - 1)) \, e}
        {\cosh \delta + c \sinh \delta}, \qquad
        \delta = \frac{\epsilon}{2} \frac{|s \nabla U(x)|}{D - 1}, \qquad c = u \cdot e

    and gains the kinetic energy
    :math:`\Delta K = (D - 1) \log(\cosh \delta + c \sinh \delta)`.

    Args:
        potential: The target.
        state: Where the chains are, with their step size and units.
        u: The direction of each chain, unit vectors with shape ``(C, D)``.

    Returns:
        The new state, the new direction, and the gain :math:`\Delta K` of both turns in nats, with
        shape ``(C,)``.
    """
    u, before = _turn(state, u)
    z = state.z + state.step_size * state.scale * u
    value, grad = potential.value_and_grad(z)
    state = state._replace(z=z, potential=value, grad=grad)
    u, after = _turn(state, u)
    return state, u, before + after


def _turn(state: State | MomentumState, u: Tensor) -> tuple[Tensor, Tensor]:
    """Turns by half a step; all is divided by exp(delta), so that nothing overflows."""
    force = -state.scale * state.grad
    norm = force.norm(dim=-1, keepdim=True)
    e = force / norm.clamp(min=torch.finfo(norm.dtype).tiny)
    order = u.shape[-1] - 1
    delta = 0.5 * state.step_size * norm / order
    c = (u * e).sum(-1, keepdim=True).clamp(-1, 1)
    zeta = (-delta).exp()
    turned = 2 * zeta * u + (1 - zeta) * (1 + zeta + c * (1 - zeta)) * e
    still = turned.eq(0).all(-1, keepdim=True)  # straight against a force beyond all bounds
    delta, c = delta.double().squeeze(-1), c.double().squeeze(-1)
    gain = delta - math.log(2) + torch.logaddexp(c.log1p(), (-c).log1p() - 2 * delta)
    return _unit(torch.where(still, u, turned)), order * gain


def _unit(x: Tensor) -> Tensor:
    return x / x.norm(dim=-1, keepdim=True)


def _refuse_one_dimension(kernel: Kernel, z: Tensor) -> None:
    if z.shape[-1] < 2:
        raise ValueError(
            f"{type(kernel).__name__} needs a target of at least 2 dimensions, got "
            f"{z.shape[-1]}: use HMC instead"
        )
