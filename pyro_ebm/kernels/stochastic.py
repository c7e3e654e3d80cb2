r"""Kernels on minibatches: at every step the gradient of a fresh part of the data.

In a model with ``pyro.plate("data", N, subsample_size=B)`` the potential of a minibatch estimates
that of all the data without bias, since the plate scales its sites by :math:`N / B`,

.. math:: \mathbb{E} \, \hat U(x) = U(x), \qquad \mathrm{Cov} \, \nabla \hat U(x) = V(x)

Which rows it sees is noise like any other: drawn by the kernel from the generator of the run,
without replacement, for every chain and step anew, at a cost that does not depend on :math:`N`.
Chains stay independent.

There is no Metropolis decision, which would compare the energies of different minibatches. So the
step size biases the law, and :math:`V` heats it; each kernel says by how much. On a model without
subsampled plates :math:`V = 0`. Where all rows together have made a posterior of variance
:math:`v`, and the model is true, :math:`V v \approx N / B`; then an effective draw of a variance
that is right to a part :math:`b` takes :class:`SGLD` about :math:`1 / b` passes over the data,
whatever the size of the minibatch.
"""

from __future__ import annotations

__all__ = ["SGHMC", "SGLD"]

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ..arguments import check_at_least
from ..distributions import Boltzmann
from ..potential import Model, Potential
from .adaptation import Adaptation
from .base import Kernel
from .metric import Metric
from .transition import Info, State, normal_like, seeded_generator
from .underdamped import MomentumState, UnderdampedLangevin


class MinibatchState(NamedTuple):
    """What the next step of a kernel on minibatches needs."""

    z: Tensor
    """Unconstrained chains, with shape ``(C, D)``."""
    potential: Tensor
    """The estimate of U at ``z`` by the last minibatch, in nats, with shape ``(C,)``."""
    grad: Tensor
    """The gradient of that estimate, with shape ``(C, D)``."""
    step_size: Tensor
    """The step size of all chains, 0-d."""
    metric: Metric
    """The units of length of coordinates and directions."""
    sizes: Tensor
    """The size and subsample size of each subsampled plate, ``(P, 2)``."""


class MinibatchMomentumState(NamedTuple):
    """What the next step of a kernel on minibatches with a lasting momentum needs."""

    z: Tensor
    """Unconstrained chains, with shape ``(C, D)``."""
    potential: Tensor
    """The estimate of U at ``z`` by the last minibatch, in nats, with shape ``(C,)``."""
    grad: Tensor
    """The gradient of that estimate, with shape ``(C, D)``."""
    step_size: Tensor
    """The step size of all chains, 0-d."""
    metric: Metric
    """The units of length of coordinates and directions."""
    momentum: Tensor
    """The momentum in the units of ``metric``, with shape ``(C, D)``."""
    begun: Tensor
    """0 before the first step, which draws the momentum afresh, and 1 after it, 0-d."""
    sizes: Tensor
    """The size and subsample size of each subsampled plate, ``(P, 2)``."""


class RelativeUnits(Adaptation):
    """Adapts the units of length relative to the narrowest coordinate, whose unit stays 1.

    So the step size keeps its meaning and chains their stability, and the wider coordinates move
    as fast as the narrowest. The noise of minibatches enlarges all gradients about alike, which
    cancels.
    """

    rejoins = False

    def update(self, state: State, info: Info) -> State:
        """Learns from a step and returns the state with its new metric."""
        state = super().update(state, info)
        scale = state.metric.scale
        return state._replace(metric=Metric(scale / scale.min()))


class OnMinibatches(Kernel):
    """A kernel that gives its potential a fresh minibatch at every step."""

    def bind(
        self, args: tuple, kwargs: dict, initial_params: dict[str, Tensor] | None
    ) -> Potential:
        return Potential.of(
            self.target,
            args,
            kwargs,
            potential_fn=self.potential_fn,
            initial_params=initial_params,
            minibatches=True,
        )

    def adaptation(self, warmup_steps: int) -> Adaptation:
        return RelativeUnits(self, warmup_steps)

    def noise(
        self,
        state: MinibatchState | MinibatchMomentumState,
        generator: torch.Generator,
        *num_steps: int,
    ) -> tuple[Tensor, ...]:
        normal = normal_like(state.z, generator, *num_steps)
        return normal, *draw_minibatches(state.sizes, (*num_steps, len(state.z)), generator)


class SGLD(OnMinibatches):
    r"""Stochastic gradient Langevin dynamics.

    .. math:: x' = x - \eta s^2 \nabla \hat U(x) + \sqrt{2 \eta} \, s \, \xi

    where :math:`\hat U` is the potential of a fresh minibatch, see
    :mod:`pyro_ebm.kernels.stochastic`. Without subsampled plates it is
    :class:`~pyro_ebm.kernels.ULA`.

    **Biased**: on :math:`\mathcal{N}(0, v)` with gradient noise of variance :math:`V`, the
    variance is

    .. math:: v \, \frac{1 + \eta s^2 V / 2}{1 - \eta s^2 / 2v}

    so that :math:`\eta s^2 V / 2` should be small; chains are stable only for
    :math:`\eta s^2 < 2v`. The bias falls with :math:`\eta`, which stays as it is: were it to fall
    within a run, draws would have unequal weights. Warmup adapts the units :math:`s` relative to
    the narrowest coordinate. A step to a non-finite potential is not made, and is counted in
    ``Info.diverging``. The statistic ``lp`` is that of a minibatch.

    References:
        | Bayesian learning via stochastic gradient Langevin dynamics (Welling and Teh, 2011),
        | https://icml.cc/2011/papers/398_icmlpaper.pdf (eq. 4 with a constant step)

    Args:
        model: A Pyro model or a :class:`~pyro_ebm.Boltzmann`, if any.
        potential_fn: In its place, a function from a dict of unconstrained values to nats.
        step_size: The step size :math:`\eta > 0`, in units of x squared (half the
            :math:`\epsilon` of Welling and Teh).
        adapt_mass_matrix: Whether warmup adapts :math:`s`.

    Raises:
        ValueError: If ``step_size`` is not positive.

    Example:
        >>> import pyro, pyro_ebm as ebm
        >>> import pyro.distributions as dist
        >>> def model(y):
        ...     loc = pyro.sample("loc", dist.Normal(0.0, 10.0))
        ...     with pyro.plate("data", len(y), subsample_size=100) as rows:
        ...         pyro.sample("y", dist.Normal(loc, 1.0), obs=y[rows])
        >>> kernel = SGLD(model, step_size=1e-5)
        >>> mcmc = ebm.MCMC(kernel, 50, 50, num_chains=8, disable_progbar=True)
        >>> mcmc.run(torch.randn(1000))
        >>> mcmc.get_samples()["loc"].shape
        torch.Size([400])
    """

    def __init__(
        self,
        model: Model | Boltzmann | None = None,
        *,
        potential_fn: Callable[[dict[str, Tensor]], Tensor] | None = None,
        step_size: float,
        adapt_mass_matrix: bool = True,
    ) -> None:
        super().__init__(
            model,
            potential_fn=potential_fn,
            step_size=step_size,
            adapt_step_size=False,
            adapt_mass_matrix=adapt_mass_matrix,
            target_accept_prob=0.5,
        )

    def init(self, potential: Potential, z: Tensor) -> MinibatchState:  # noqa: D102
        sizes, first = first_minibatch(potential, z)
        return MinibatchState(*super().init(first, z), sizes)

    def step(  # noqa: D102
        self, potential: Potential, state: MinibatchState, noise: tuple[Tensor, ...]
    ) -> tuple[MinibatchState, Info]:
        xi, *rows = noise
        eta, s = state.step_size, state.metric.scale
        y = state.z - eta * s**2 * state.grad + (2 * eta).sqrt() * s * xi
        value, grad = potential.on(rows).value_and_grad(y)
        finite = value.isfinite() & grad.isfinite().all(-1)
        moved = state._replace(
            z=torch.where(finite.unsqueeze(-1), y, state.z),
            potential=torch.where(finite, value, state.potential),
            grad=torch.where(finite.unsqueeze(-1), grad, state.grad),
        )
        return moved, Info(diverging=~finite)


class SGHMC(OnMinibatches, UnderdampedLangevin):
    r"""Stochastic gradient Hamiltonian Monte Carlo: a momentum with friction, on minibatches.

    .. math:: dx = s p \, dt, \qquad
        dp = -s \nabla \hat U(x) \, dt - \gamma p \, dt + \sqrt{2 (\gamma - \hat\beta)} \, dW

    where :math:`\hat U` is the potential of a fresh minibatch at every step, see
    :mod:`pyro_ebm.kernels.stochastic`. Friction dissipates the heat that the noise of the gradient
    brings, and injected noise can be lowered by an estimate :math:`\hat\beta` of it. In place of
    Euler's method, as in the paper, a step is BAOAB, whose injected noise is multiplied by
    :math:`\sqrt{1 - \hat\beta / \gamma}`. Without subsampled plates and with :math:`\hat\beta = 0`
    it is :class:`~pyro_ebm.kernels.UnderdampedLangevin`.

    **Biased**: on :math:`\mathcal{N}(0, v)` with gradient noise of variance :math:`V`, the
    variance is, for :math:`s = 1`,

    .. math:: v \left(1 - \frac{\hat\beta}{\gamma} + \frac{\epsilon^2 V}{4} \,
        \frac{\coth(\gamma \epsilon / 2)}{1 - \epsilon^2 / 4v}\right)
        \approx v \left(1 + \frac{\epsilon V / 2 - \hat\beta}{\gamma}\right)

    so that :math:`\hat\beta = \epsilon V / 2` removes most of the bias, and more friction the rest
    at the price of speed; chains are stable only for :math:`\epsilon < 2 \sqrt{v}`. Warmup adapts
    the units :math:`s` relative to the narrowest coordinate. A step to a non-finite potential is
    not made: the chain turns back, and it is counted in ``Info.diverging``. The statistics ``lp``
    and ``energy`` are those of a minibatch.

    References:
        | Stochastic gradient Hamiltonian Monte Carlo (Chen, Fox and Guestrin, 2014),
        | https://arxiv.org/abs/1402.4102
        | On the convergence of stochastic gradient MCMC algorithms with high-order integrators
        | (Chen, Ding and Carin, 2015), https://arxiv.org/abs/1610.06665 (symmetric splitting)

    Args:
        model: A Pyro model or a :class:`~pyro_ebm.Boltzmann`, if any.
        potential_fn: In its place, a function from a dict of unconstrained values to nats.
        step_size: The step size :math:`\epsilon > 0`, in units of x.
        friction: The rate :math:`\gamma > 0` at which the momentum is forgotten, in the inverse
            units of ``step_size``.
        noise_estimate: The estimate :math:`0 \le \hat\beta < \gamma` of
            :math:`\epsilon s^2 V / 2`, in the units of ``friction``.
        adapt_mass_matrix: Whether warmup adapts :math:`s`.

    Raises:
        ValueError: If ``step_size`` or ``friction`` is not positive, or ``noise_estimate`` is not
            between 0 and ``friction``.

    Example:
        >>> import pyro, pyro_ebm as ebm
        >>> import pyro.distributions as dist
        >>> def model(y):
        ...     loc = pyro.sample("loc", dist.Normal(0.0, 10.0))
        ...     with pyro.plate("data", len(y), subsample_size=100) as rows:
        ...         pyro.sample("y", dist.Normal(loc, 1.0), obs=y[rows])
        >>> kernel = SGHMC(model, step_size=0.003, friction=100.0, noise_estimate=13.5)
        >>> mcmc = ebm.MCMC(kernel, 50, 50, num_chains=8, disable_progbar=True)
        >>> mcmc.run(torch.randn(1000))
        >>> mcmc.get_samples()["loc"].shape
        torch.Size([400])
    """

    def __init__(
        self,
        model: Model | Boltzmann | None = None,
        *,
        potential_fn: Callable[[dict[str, Tensor]], Tensor] | None = None,
        step_size: float,
        friction: float = 1.0,
        noise_estimate: float = 0.0,
        adapt_mass_matrix: bool = True,
    ) -> None:
        UnderdampedLangevin.__init__(
            self, model, potential_fn=potential_fn, step_size=step_size, friction=friction
        )
        check_at_least("noise_estimate", noise_estimate, -math.inf)
        if not 0 <= noise_estimate < friction:
            raise ValueError(
                f"noise_estimate must be at least 0 and less than friction={friction}, got "
                f"{noise_estimate}"
            )
        self.noise_estimate = noise_estimate
        self.adapt_mass_matrix = adapt_mass_matrix

    def init(self, potential: Potential, z: Tensor) -> MinibatchMomentumState:  # noqa: D102
        sizes, first = first_minibatch(potential, z)
        momentum_state: MomentumState = super().init(first, z)
        return MinibatchMomentumState(*momentum_state, sizes)

    def step(  # noqa: D102
        self, potential: Potential, state: MinibatchMomentumState, noise: tuple[Tensor, ...]
    ) -> tuple[MinibatchMomentumState, Info]:
        xi, *rows = noise
        injected = math.sqrt(1 - self.noise_estimate / self.friction)
        return super().step(potential.on(rows), state, (injected * xi,))


def first_minibatch(potential: Potential, z: Tensor) -> tuple[Tensor, Potential]:
    """Draws the minibatch of a first state, from a generator seeded by torch's global one.

    Args:
        potential: The target.
        z: Unconstrained chains, with shape ``(C, D)``.

    Returns:
        The size and subsample size of each subsampled plate, ``(P, 2)``, and the potential on the
        minibatch.
    """
    sizes = [(plate.size, plate.subsample_size) for plate in potential.plates]
    sizes = torch.tensor(sizes, dtype=torch.long, device=z.device).reshape(-1, 2)
    generator = seeded_generator(z.device) if potential.plates else None
    return sizes, potential.on(draw_minibatches(sizes, (len(z),), generator))


def draw_minibatches(
    sizes: Tensor, shape: tuple[int, ...], generator: torch.Generator | None
) -> tuple[Tensor, ...]:
    """Draws rows of each plate, without replacement, at a cost that its size does not change.

    Args:
        sizes: The size :math:`N` and subsample size :math:`B` of each plate, with shape
            ``(P, 2)``.
        shape: How many minibatches.
        generator: Where they come from.

    Returns:
        The rows of each plate, with shape ``(*shape, B)``.

    Example:
        >>> (rows,) = draw_minibatches(torch.tensor([[10**9, 3]]), (5, 2), torch.Generator())
        >>> rows.shape
        torch.Size([5, 2, 3])
    """
    return tuple(_subsets(n, b, shape, generator, sizes.device) for n, b in sizes.tolist())


def _subsets(
    size: int,
    count: int,
    shape: tuple[int, ...],
    generator: torch.Generator | None,
    device: torch.device,
) -> Tensor:
    if size < 4 * count:
        keys = torch.empty((*shape, size), dtype=torch.float64, device=device)
        return keys.uniform_(generator=generator).topk(count).indices
    # What is repeated is drawn again until nothing is. No number is treated unlike another, so
    # that every subset is as likely.
    rows = torch.randint(size, (math.prod(shape), count), generator=generator, device=device)
    todo = torch.arange(len(rows), device=device)
    while len(todo):
        some = rows[todo].sort(-1).values
        repeated = some[:, 1:] == some[:, :-1]
        fresh = torch.randint(size, (int(repeated.sum()),), generator=generator, device=device)
        some[:, 1:][repeated] = fresh
        rows[todo] = some
        todo = todo[repeated.any(-1)]
    return rows.reshape(*shape, count)
