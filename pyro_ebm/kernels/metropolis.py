r"""Kernels that propose without a gradient."""

from __future__ import annotations

__all__ = ["RandomWalk"]

from collections.abc import Callable

import torch
from torch import Tensor

from ..distributions import Boltzmann
from ..potential import Model, Potential
from .base import Kernel
from .transition import Info, State, metropolis, normal_like, uniform_like


class RandomWalk(Kernel):
    r"""The random-walk Metropolis algorithm, with a metric.

    .. math:: y = x + \epsilon A \xi, \qquad \log r = U(x) - U(y), \qquad
        \xi \sim \mathcal{N}(0, I)

    The invariant law is :math:`e^{-U}`, exactly, whether :math:`U` is smooth or not: the gradient
    tunes the metric :math:`A` (:mod:`~pyro_ebm.kernels.metric`) in warmup and takes no part in a
    step. On :math:`\mathcal{N}(0, 1)` the mean acceptance is
    :math:`(2 / \pi) \arctan(2 / \epsilon)`. The number of steps to an independent draw grows with
    the dimension, so it is a yardstick for other kernels more than their rival. A non-finite
    proposal is rejected and counted.

    References:
        | Weak convergence and optimal scaling of random walk Metropolis algorithms (Roberts,
        | Gelman and Gilks, 1997), https://doi.org/10.1214/aoap/1034625254 (the target acceptance
        | 0.234)

    Args:
        model: A Pyro model or a :class:`~pyro_ebm.Boltzmann`, if any.
        potential_fn: In its place, a function from a dict of unconstrained values to nats.
        step_size: The step size :math:`\epsilon > 0`, in units of x, or its first value.
        adapt_step_size: Whether warmup adapts :math:`\epsilon`.
        adapt_mass_matrix: Whether warmup adapts :math:`A`.
        metric_rank: How many directions :math:`V` it may stretch beside the coordinates; with
            ``None`` all up to 100 dimensions, and none of more.
        target_accept_prob: The mean acceptance that adaptation aims at.

    Raises:
        ValueError: If ``step_size`` is not positive or ``target_accept_prob`` not between 0 and 1.

    Example:
        >>> import pyro_ebm as ebm
        >>> target = ebm.Boltzmann(ebm.energies.Laplace(torch.zeros(3), 1.0))
        >>> mcmc = ebm.MCMC(RandomWalk(target), 50, 50, num_chains=8, disable_progbar=True)
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
        target_accept_prob: float = 0.234,
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

    def step(  # noqa: D102
        self, potential: Potential, state: State, noise: tuple[Tensor, ...]
    ) -> tuple[State, Info]:
        xi, uniform = noise
        y = state.z + state.metric.move(xi, state.step_size)
        value, grad = potential.value_and_grad(y)
        log_ratio = state.potential.double() - value.double()
        proposal = state._replace(z=y, potential=value, grad=grad)
        moved, accept_prob, accepted = metropolis(state, proposal, log_ratio, uniform)
        return moved, Info(~log_ratio.isfinite(), accept_prob, accepted)
