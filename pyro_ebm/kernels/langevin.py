r"""Langevin kernels: a step down the potential and a step of noise.

.. math:: x' = x - \eta \nabla U(x) + \sqrt{2 \eta} \, \xi, \qquad \xi \sim \mathcal{N}(0, I)

The step size :math:`\eta` is in units of x squared, in every kernel here. With an adapted metric,
lengths are measured in its units, and :math:`\eta` becomes a pure number.
"""

from __future__ import annotations

__all__ = ["MALA", "ULA"]

from collections.abc import Callable

import torch
from torch import Tensor

from ..distributions import Boltzmann
from ..potential import Model, Potential
from .base import Kernel
from .transition import Info, State, metropolis, normal_like, uniform_like


class ULA(Kernel):
    r"""The unadjusted Langevin algorithm.

    .. math:: x' = x - \eta \nabla U(x) + \sqrt{2 \eta} \, \xi

    **Biased**: the invariant law is not :math:`e^{-U}` but tends to it with :math:`\eta`. On
    :math:`\mathcal{N}(0, v)` the variance is :math:`v / (1 - \eta / 2v)`, and chains are stable
    only for :math:`\eta < 2v`. Nothing is adapted. A step to a non-finite potential is not made,
    and is counted in ``Info.diverging``.

    References:
        | Exponential convergence of Langevin distributions and their discrete approximations
        | (Roberts and Tweedie, 1996), https://doi.org/10.2307/3318418

    Args:
        model: A Pyro model or a :class:`~pyro_ebm.Boltzmann`, if any.
        potential_fn: In its place, a function from a dict of unconstrained values to nats.
        step_size: The step size :math:`\eta > 0`, in units of x squared.

    Raises:
        ValueError: If ``step_size`` is not positive.

    Example:
        >>> import pyro_ebm as ebm
        >>> target = ebm.Boltzmann(ebm.energies.Gaussian(torch.zeros(2), 1.0))
        >>> mcmc = ebm.MCMC(ULA(target, step_size=0.1), 50, 10, num_chains=8, disable_progbar=True)
        >>> mcmc.run()
        >>> mcmc.get_samples()["x"].shape
        torch.Size([400, 2])
    """

    def __init__(
        self,
        model: Model | Boltzmann | None = None,
        *,
        potential_fn: Callable[[dict[str, Tensor]], Tensor] | None = None,
        step_size: float,
    ) -> None:
        super().__init__(
            model,
            potential_fn=potential_fn,
            step_size=step_size,
            adapt_step_size=False,
            adapt_mass_matrix=False,
            target_accept_prob=0.5,
        )

    def noise(  # noqa: D102
        self, state: State, generator: torch.Generator, *num_steps: int
    ) -> tuple[Tensor, ...]:
        return (normal_like(state.z, generator, *num_steps),)

    def opposite(self, noise: tuple[Tensor, ...]) -> tuple[Tensor, ...]:  # noqa: D102
        return (-noise[0],)

    def propose(self, state: State, noise: tuple[Tensor, ...]) -> Tensor:  # noqa: D102
        (xi,) = noise
        eta = state.step_size
        return state.z - eta * state.grad + (2 * eta).sqrt() * xi

    def step(  # noqa: D102
        self, potential: Potential, state: State, noise: tuple[Tensor, ...]
    ) -> tuple[State, Info]:
        y = self.propose(state, noise)
        value, grad = potential.value_and_grad(y)
        finite = value.isfinite() & grad.isfinite().all(-1)
        rows = finite.unsqueeze(-1)
        moved = State(
            torch.where(rows, y, state.z),
            torch.where(finite, value, state.potential),
            torch.where(rows, grad, state.grad),
            state.step_size,
            state.metric,
        )
        return moved, Info(diverging=~finite)


class MALA(Kernel):
    r"""The Metropolis-adjusted Langevin algorithm, with a preconditioner.

    .. math::
        y &= x - \eta A A^\top \nabla U(x) + \sqrt{2 \eta} \, A \xi \\
        \log r &= U(x) - U(y) - \tfrac12 \left(|\xi'|^2 - |\xi|^2\right), \qquad
        \xi' = -\xi + \sqrt{\eta / 2} \, A^\top \left(\nabla U(x) + \nabla U(y)\right)

    where :math:`\xi'` is the noise that would lead back. The invariant law is :math:`e^{-U}`,
    exactly. Warmup adapts :math:`\eta` to the target acceptance and the metric :math:`A`
    (:mod:`~pyro_ebm.kernels.metric`) to the spread of the target, both pooled over chains; without
    warmup nothing changes. A non-finite proposal is rejected and counted.

    References:
        | Exponential convergence of Langevin distributions and their discrete approximations
        | (Roberts and Tweedie, 1996), https://doi.org/10.2307/3318418
        | Optimal scaling of discrete approximations to Langevin diffusions (Roberts and
        | Rosenthal, 1998), https://doi.org/10.1111/1467-9868.00123 (the target acceptance 0.574)

    Args:
        model: A Pyro model or a :class:`~pyro_ebm.Boltzmann`, if any.
        potential_fn: In its place, a function from a dict of unconstrained values to nats.
        step_size: The step size :math:`\eta > 0`, in units of x squared, or its first value.
        adapt_step_size: Whether warmup adapts :math:`\eta`.
        adapt_mass_matrix: Whether warmup adapts :math:`A`.
        metric_rank: How many directions :math:`V` it may stretch beside the coordinates; with
            ``None`` all up to 100 dimensions, and none of more.
        target_accept_prob: The mean acceptance that adaptation aims at.

    Raises:
        ValueError: If ``step_size`` is not positive or ``target_accept_prob`` not between 0 and 1.

    Example:
        >>> import pyro_ebm as ebm
        >>> target = ebm.Boltzmann(ebm.energies.Laplace(torch.zeros(3), 1.0))
        >>> mcmc = ebm.MCMC(MALA(target), 50, 50, num_chains=8, disable_progbar=True)
        >>> mcmc.run()
        >>> mcmc.get_samples(group_by_chain=True)["x"].shape
        torch.Size([8, 50, 3])
    """

    def __init__(
        self,
        model: Model | Boltzmann | None = None,
        *,
        potential_fn: Callable[[dict[str, Tensor]], Tensor] | None = None,
        step_size: float = 0.1,
        adapt_step_size: bool = True,
        adapt_mass_matrix: bool = True,
        metric_rank: int | None = 0,
        target_accept_prob: float = 0.574,
    ) -> None:
        super().__init__(
            model,
            potential_fn=potential_fn,
            step_size=step_size,
            adapt_step_size=adapt_step_size,
            adapt_mass_matrix=adapt_mass_matrix,
            metric_rank=metric_rank,
            target_accept_prob=target_accept_prob,
        )

    def noise(  # noqa: D102
        self, state: State, generator: torch.Generator, *num_steps: int
    ) -> tuple[Tensor, ...]:
        normal = normal_like(state.z, generator, *num_steps)
        return normal, uniform_like(state.potential, generator, *num_steps)

    def opposite(self, noise: tuple[Tensor, ...]) -> tuple[Tensor, ...]:  # noqa: D102
        return -noise[0], noise[1]

    def step(  # noqa: D102
        self, potential: Potential, state: State, noise: tuple[Tensor, ...]
    ) -> tuple[State, Info]:
        xi, uniform = noise
        eta, metric = state.step_size, state.metric
        y = state.z - metric.drift(state.grad, eta) + metric.move(xi, (2 * eta).sqrt())
        value, grad = potential.value_and_grad(y)
        back = metric.force(state.grad + grad, (eta / 2).sqrt()) - xi
        kinetic = 0.5 * ((back - xi) * (back + xi)).sum(-1, dtype=torch.float64)
        log_ratio = state.potential.double() - value.double() - kinetic
        proposal = State(y, value, grad, eta, metric)
        moved, accept_prob, accepted = metropolis(state, proposal, log_ratio, uniform)
        return moved, Info(~log_ratio.isfinite(), accept_prob, accepted)
