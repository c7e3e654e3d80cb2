"""The No-U-Turn sampler, all chains at once, and none waits for another's tree."""

from __future__ import annotations

__all__ = ["NUTS"]

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ..arguments import check_between, check_count
from ..distributions import Boltzmann
from ..engine import is_compiling, loop
from ..potential import Model, Potential
from .acceleration import AsynchronousKernel
from .adaptation import Adaptation, When
from .transition import Info, normal_like
from .tree import Checkpoints, NUTSState, Trajectory, begin, extend, renew

MAX_TREE_DEPTH = 20
"""A million leapfrogs for one draw, beyond which the tables of the tree would be large."""

SETTLING_DEPTH = 5
"""How often a trajectory may double in the first quarter of warmup, while a chain far out may
still want steps so short that the trees of all others would be as deep as they may be."""

POLL_EVERY = 8
"""After how many leapfrogs an accelerator is asked whether all chains are done; a CPU is asked
after each. Chains that are done move on meanwhile, and nothing of it is kept."""


class NUTS(AsynchronousKernel):
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
    the metric, pooled over chains; in its first quarter trajectories double at most 5 times. In a
    block of steps one batched leapfrog after another serves all chains, whichever step each is at:
    a chain whose trajectory is over begins its next one at once, and waits only at the end of the
    block. One step alone costs as many batched gradients as its longest tree has, at most
    :math:`2^J - 1`. Energy differences and weights are summed in float64.

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
        adapt_mass_matrix: Whether warmup adapts the metric.
        metric_rank: How many directions it may stretch beside the coordinates; with ``None`` all
            up to 100 dimensions, and none of more. Where coordinates are correlated it pays: a
            regression with an interaction (kidscore_interaction of posteriordb) gave 0.63
            effective draws for a gradient in place of 0.003.
        target_accept_prob: The mean acceptance, over the points of a trajectory, to aim at.

    Raises:
        ValueError: If ``step_size`` is not positive, ``max_tree_depth`` not between 1 and 20, or
            ``target_accept_prob`` not between 0 and 1.

    Example:
        >>> import pyro_ebm as ebm
        >>> target = ebm.Boltzmann(ebm.energies.Banana(scale=1.0, curvature=0.5))
        >>> mcmc = ebm.MCMC(NUTS(target), 20, 20, num_chains=8, disable_progbar=True)
        >>> mcmc.run()
        >>> mcmc.sample_stats["tree_depth"].shape
        torch.Size([8, 20])
    """

    def __init__(
        self,
        model: Model | Boltzmann | None = None,
        *,
        potential_fn: Callable[[dict[str, Tensor]], Tensor] | None = None,
        step_size: float = 0.1,
        max_tree_depth: int = 10,
        adapt_step_size: bool = True,
        adapt_mass_matrix: bool = True,
        metric_rank: int | None = 0,
        target_accept_prob: float = 0.8,
    ) -> None:
        check_between("max_tree_depth", max_tree_depth, 1, MAX_TREE_DEPTH, inside=False)
        check_count("max_tree_depth", max_tree_depth)
        super().__init__(
            model,
            potential_fn=potential_fn,
            step_size=step_size,
            adapt_step_size=adapt_step_size,
            adapt_mass_matrix=adapt_mass_matrix,
            metric_rank=metric_rank,
            target_accept_prob=target_accept_prob,
        )
        self.max_tree_depth = max_tree_depth

    def init(self, potential: Potential, z: Tensor) -> NUTSState:  # noqa: D102
        state = super().init(potential, z)
        return NUTSState(*state, z.new_tensor(self.max_tree_depth))

    def adaptation(self, warmup_steps: int) -> Adaptation:  # noqa: D102
        return _DepthAdaptation(self, warmup_steps)

    def noise(
        self, state: NUTSState, generator: torch.Generator, *num_steps: int
    ) -> tuple[Tensor, ...]:
        """Draws a momentum and, since nobody knows how many uniforms it takes, a seed per chain.

        The bits of the seed are the directions of the doublings; the uniforms are a stream of the
        chain's own, that of SplitMix64 from its seed.
        """
        momentum = normal_like(state.z, generator, *num_steps)
        seed = torch.empty(momentum.shape[:-1], dtype=torch.long, device=momentum.device)
        seed.random_(generator=generator)
        return momentum, seed

    def step(  # noqa: D102
        self, potential: Potential, state: NUTSState, noise: tuple[Tensor, ...]
    ) -> tuple[NUTSState, Info]:
        moved, _, info = self.block(potential, state, tuple(part[None] for part in noise))
        return moved, Info(*(field[0] for field in info))

    def block(  # noqa: D102
        self, potential: Potential, state: NUTSState, noise: tuple[Tensor, ...]
    ) -> tuple[NUTSState, NUTSState, Info]:
        momentum, seed = noise
        num_draws = seed.shape[0]
        kinetic = 0.5 * momentum.double().square().sum(-1)
        momentum = momentum.mT.contiguous()
        end_of_block = torch.full((), num_draws, device=seed.device)

        def leap(now: _Walk) -> _Walk:
            draw, trajectory, checkpoints, points, numbers = now
            own_seed = _rows(seed, draw.clamp(max=end_of_block - 1))
            trajectory, end = extend(potential, state, trajectory, checkpoints, own_seed)
            if polls and not end.over.any():
                return now._replace(trajectory=trajectory)
            proposal = trajectory.tree.proposal
            code = 4 * trajectory.num_steps + 2 * end.saturated + end.diverging
            found = (proposal.potential, proposal.log_weight, trajectory.accept_sum, code)
            # By index, which native code does in place; scatter_ would copy all draws each time.
            points[draw, :, :, checkpoints.chain] = proposal.point.movedim(-1, 0)
            numbers[draw, :, checkpoints.chain] = torch.stack(found, -1)
            draw = (draw + end.over).clamp(max=end_of_block)
            row = draw.clamp(max=end_of_block - 1)
            trajectory = renew(trajectory, end.over, _rows(momentum, row), _rows(kinetic, row))
            return now._replace(draw=draw, trajectory=trajectory)

        def several(now: _Walk) -> _Walk:
            for _ in range(1 if polls or is_compiling() else POLL_EVERY):
                now = leap(now)
            return now

        polls = momentum.device.type == "cpu" and not is_compiling()
        walk = _Walk(
            draw=torch.zeros_like(seed[0]),
            trajectory=begin(state, momentum[0], kinetic[0]),
            checkpoints=Checkpoints.empty(momentum[0], self.max_tree_depth),
            points=momentum.new_empty(num_draws + 1, 2, *momentum.shape[1:]),
            numbers=kinetic.new_empty(num_draws + 1, 4, kinetic.shape[-1]),
        )
        walk = loop(lambda now: (now.draw < end_of_block).any(), several, walk)
        draw, points, numbers = walk.draw, walk.points, walk.numbers
        z, grad = points[:-1].movedim(1, 0).mT.contiguous().unbind(0)
        value, log_weight, accept_sum, code = numbers[:-1].movedim(1, 0).contiguous().unbind(0)
        value, code = value.to(z.dtype), code.long()
        num_steps = code >> 2
        before = torch.cat([state.potential[None], value[:-1]])
        info = Info(
            diverging=(code & 1) == 1,
            accept_prob=(accept_sum / num_steps).to(z.dtype),
            accepted=(z != torch.cat([state.z[None], z[:-1]])).any(-1),
            energy=(before + kinetic - log_weight).to(z.dtype),
            num_steps=num_steps,
            tree_depth=(num_steps.double() + 1.5).log2().long(),
            reached_max_treedepth=(code & 2) == 2,
        )
        after = state._replace(z=z, potential=value, grad=grad)
        last = draw - 1
        moved = state._replace(
            z=_rows(z.mT, last).mT.contiguous(),
            potential=_rows(value, last),
            grad=_rows(grad.mT, last).mT.contiguous(),
        )
        return moved, after, info


class _Walk(NamedTuple):
    """The registers of all chains, and the tables that they write into."""

    draw: Tensor
    """Which step of the block each chain is at."""
    trajectory: Trajectory
    checkpoints: Checkpoints
    points: Tensor
    """Of each draw the point and its gradient, ``(num_draws + 1, 2, D, C)``; the last is waste."""
    numbers: Tensor
    """Its potential, log weight, sum of acceptances, and a code of how its trajectory ended."""


def _rows(x: Tensor, index: Tensor) -> Tensor:
    """Takes from ``x (K, *, C)`` each chain's own row, ``(*, C)``."""
    return x.gather(0, index.expand_as(x[:1]))[0]


class _DepthAdaptation(Adaptation):
    """Keeps trees small until the chains have settled."""

    def __init__(self, kernel: NUTS, warmup_steps: int) -> None:
        super().__init__(kernel, warmup_steps)
        self.max_depth = kernel.max_tree_depth

    def learn(
        self, tuning: tuple, state: NUTSState, info: Info, when: When
    ) -> tuple[tuple, NUTSState]:
        tuning, state = super().learn(tuning, state, info, when)
        most = torch.where(when.settling, min(SETTLING_DEPTH, self.max_depth), self.max_depth)
        return tuning, state._replace(max_depth=most.to(state.max_depth))
