"""The No-U-Turn sampler, all chains at once: one batched leapfrog after another."""

from __future__ import annotations

__all__ = ["NUTS"]

from collections.abc import Callable

import torch
from torch import Tensor

from ..distributions import Boltzmann
from ..potential import Model, Potential
from .base import Kernel
from .transition import Info, State, normal_like
from .tree import begin, extend

BLOCK = 8
"""For how many leaves uniforms are drawn at once, and after how many leapfrogs an accelerator is
asked whether all chains are done; a CPU is asked after each."""


class NUTS(Kernel):
    r"""The No-U-Turn sampler, multinomial: Hamiltonian dynamics for as long as it leads away.

    A fresh momentum :math:`p \sim \mathcal{N}(0, I)` begins a trajectory. It is doubled, forward
    or backward in time at random, until it or one of its binary subtrees turns back,

    .. math::
        p_- \cdot q \le 0 \quad \text{or} \quad p_+ \cdot q \le 0, \qquad
        q = \sum_i p_i - \tfrac12 (p_- + p_+),

    where :math:`p_\pm` are the momenta at its ends, or until an energy error exceeds 1000 nats or
    is not finite. A doubling within which that happens is thrown away. Within a doubling the
    proposal is drawn with weights :math:`w_i = e^{H_0 - H_i}`, and it takes the place of the
    former one with probability :math:`\min(1, \sum_\text{new} w / \sum_\text{old} w)`.

    The invariant law is :math:`e^{-U}`, exactly. Warmup adapts the step size :math:`\epsilon` and
    the units, pooled over chains. Each chain stops by itself but all wait for the longest: a step
    costs as many batched gradients as its longest tree has, at most :math:`2^J - 1`. Energy
    differences and weights are summed in float64.

    References:
        | The No-U-Turn sampler (Hoffman and Gelman, 2014), https://jmlr.org/papers/v15/hoffman14a.html
        | A conceptual introduction to Hamiltonian Monte Carlo (Betancourt, 2017), appendix A,
        | https://arxiv.org/abs/1701.02434
        | Composable effects for flexible and accelerated probabilistic programming in NumPyro
        | (Phan, Pradhan and Jankowiak, 2019), the tree without recursion,
        | https://arxiv.org/abs/1912.11554

    Args:
        model: A Pyro model or a :class:`~pyro_ebm.Boltzmann`, if any.
        potential_fn: In its place, a function from a dict of unconstrained values to nats.
        step_size: The step size :math:`\epsilon > 0`, in units of x, or its first value.
        max_tree_depth: How often a trajectory may double, :math:`J`.
        adapt_step_size: Whether warmup adapts :math:`\epsilon`.
        adapt_mass_matrix: Whether warmup adapts the units.
        target_accept_prob: The mean acceptance, over the points of a trajectory, to aim at.

    Raises:
        ValueError: If ``step_size`` or ``max_tree_depth`` is not positive, or
            ``target_accept_prob`` is not between 0 and 1.

    Example:
        >>> import pyro_ebm as ebm
        >>> target = ebm.Boltzmann(ebm.energies.Banana(scale=1.0, curvature=0.5))
        >>> mcmc = ebm.MCMC(NUTS(target), 20, 20, num_chains=8, disable_progbar=True)
        >>> mcmc.run()
        >>> mcmc.sample_stats["tree_depth"].shape
        torch.Size([8, 20])
    """

    branch_free = False

    def __init__(
        self,
        model: Model | Boltzmann | None = None,
        *,
        potential_fn: Callable[[dict[str, Tensor]], Tensor] | None = None,
        step_size: float = 0.1,
        max_tree_depth: int = 10,
        adapt_step_size: bool = True,
        adapt_mass_matrix: bool = True,
        target_accept_prob: float = 0.8,
    ) -> None:
        if max_tree_depth < 1:
            raise ValueError(f"max_tree_depth must be at least 1, got {max_tree_depth}")
        super().__init__(
            model,
            potential_fn=potential_fn,
            step_size=step_size,
            adapt_step_size=adapt_step_size,
            adapt_mass_matrix=adapt_mass_matrix,
            target_accept_prob=target_accept_prob,
        )
        self.max_tree_depth = max_tree_depth

    def noise(
        self, state: State, generator: torch.Generator, *num_steps: int
    ) -> tuple[Tensor, ...]:
        """Draws a momentum and, since nobody knows how many uniforms it takes, a seed per chain.

        The uniforms of a chain are a stream of its own, that of SplitMix64 from its seed.
        """
        momentum = normal_like(state.z, generator, *num_steps)
        seed = torch.empty(momentum.shape[:-1], dtype=torch.long, device=momentum.device)
        seed.random_(generator=generator)
        return momentum, seed

    def step(  # noqa: D102
        self, potential: Potential, state: State, noise: tuple[Tensor, ...]
    ) -> tuple[State, Info]:
        momentum, seed = noise
        now = begin(state, momentum, _uniforms(seed, 0, 1)[:, 0, 0], self.max_tree_depth)
        poll_every = 1 if momentum.device.type == "cpu" else BLOCK
        for t in range(1, 2**self.max_tree_depth):
            if t % BLOCK == 1:
                uniforms = _uniforms(seed, t, BLOCK).unbind(1)
            depth = t.bit_length() - 1
            now = extend(potential, state, now, uniforms[(t - 1) % BLOCK], depth)
            if t % poll_every == 0 and not bool(now.active.any()):
                break
        end = now.tree.proposal
        info = Info(
            diverging=now.diverging,
            accept_prob=(now.accept_sum / now.num_steps).to(end.potential.dtype),
            accepted=now.moved,
            energy=end.potential + 0.5 * end.momentum.square().sum(-1),
            num_steps=now.num_steps,
            tree_depth=now.depth,
            reached_max_treedepth=now.saturated,
        )
        moved = state._replace(z=end.z, potential=end.potential, grad=end.grad)
        return moved, info


def _uniforms(seed: Tensor, first: int, num_leaves: int) -> Tensor:
    """The uniforms ``(C, num_leaves, 3)`` from leaf ``first`` on, in each chain's own stream.

    It is SplitMix64, whose arithmetic wraps at 64 bits.
    """
    place = 1 + torch.arange(3 * first, 3 * (first + num_leaves), device=seed.device)
    x = seed.unsqueeze(-1) + place * -0x61C8864680B583EB
    x = (x ^ (x >> 30 & 0x3FFFFFFFF)) * -0x40A7B892E31B1A47
    x = (x ^ (x >> 27 & 0x1FFFFFFFFF)) * -0x6B2FB644ECCEEE15
    x = x ^ (x >> 31 & 0x1FFFFFFFF)
    uniforms = (x >> 11 & 0x1FFFFFFFFFFFFF).double() * 2.0**-53
    return uniforms.unflatten(-1, (num_leaves, 3))
