r"""Parallel tempering of discrete targets: from the uniform law to the target.

.. math:: U_\beta(x) = \beta U(x), \qquad 0 = \beta_0 < \beta_1 < \dots < \beta_{K - 1} = 1

The first law can be drawn from exactly, and its log Z is :math:`\log |X|`, the log of the number
of points.
"""

from __future__ import annotations

__all__ = ["DiscreteTempering", "DiscreteTemperingState"]

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from ..arguments import check_count
from ..potential import Potential
from .discrete import DiscreteKernel, DiscreteState
from .swaps import EachLevel, equal_rejection, even_odd_swaps
from .transition import Info, uniform_like


class DiscreteTemperingState(NamedTuple):
    """What the next step needs. Levels are counted from beta = 0 to the target."""

    z: Tensor
    """Chains at beta = 1, with shape ``(C, D)``."""
    potential: Tensor
    """U at ``z`` in nats, with shape ``(C,)``."""
    changes: Tensor
    """The changes of U at ``z``, with shape ``(C, S, K)``."""
    step_size: Tensor
    """The step size at beta = 1, 0-d."""
    step_sizes: Tensor
    """The step size at each level but the first, ``(K - 1,)``."""
    replicas: DiscreteState
    """The inner kernel's state of all levels but the first, one after the other, with ``(K - 1) *
    C`` rows. Potential and changes are those of the target; its step size goes unused."""
    betas: Tensor
    """The inverse temperatures, from 0 to 1, ``(K,)``."""
    accept_prob: Tensor
    """The inner kernel's acceptance at each level but the first, ``(C, K - 1)``."""
    num_swaps: Tensor
    """The steps since warmup last placed the levels, 0-d; if even, levels 0 and 1 are next."""
    swap_prob_sum: Tensor
    """The sum, over that time, of the swap acceptance of each pair, whether its turn or not, in
    float64, ``(C, K - 1)``."""
    fresh: Tensor
    """Whether a replica has not been at beta = 1 since it was drawn uniformly, ``(C, K)``."""
    num_restarts: Tensor
    """How often such a one arrived at beta = 1 in that time, ``(C,)``."""
    metric: tuple[()] = ()

    @property
    def swap_prob(self) -> Tensor:
        """The mean swap acceptance of each pair of neighbours, over chains, ``(K - 1,)``."""
        return self.swap_prob_sum.mean(0) / self.num_swaps.clamp(min=1)

    @property
    def barrier(self) -> float:
        r"""The communication barrier :math:`\Lambda`: the sum of the mean swap rejections."""
        return (1 - self.swap_prob).sum().item()


class DiscreteTempering(DiscreteKernel):
    r"""Non-reversible parallel tempering over any discrete kernel.

    Each chain is :math:`K` replicas at the inverse temperatures :math:`\beta_k` of the path
    :math:`\beta U`. In a step the first is drawn anew from the uniform law, all others make
    ``num_steps`` steps of the inner kernel, as rows of one batch, and neighbours swap with
    probability

    .. math::
        \alpha_k = \min\left(1, \exp\left((\beta_{k + 1} - \beta_k) (U(x_{k + 1}) - U(x_k))
        \right)\right)

    for even :math:`k` in even steps and odd :math:`k` in odd ones, as in
    :class:`ParallelTempering`, which says more. A draw is the replica at :math:`\beta = 1`. The
    joint law is invariant, exactly, as is :math:`e^{-U}`.

    Warmup tunes the inner kernel at each level on its own and places the :math:`\beta_k` so that
    all pairs reject alike; until then, as without warmup, all are 1 but the first, and exact draws
    stay so. After a run ``mcmc.state.barrier``, ``mcmc.state.swap_prob`` and
    ``mcmc.state.num_restarts`` say how well it went.

    References:
        | Non-reversible parallel tempering: a scalable highly parallel MCMC scheme (Syed,
        | Bouchard-Côté, Deligiannidis and Doucet, 2021), https://arxiv.org/abs/1905.02939

    Args:
        kernel: The inner kernel, with its target or without.
        num_temperatures: The number of levels :math:`K`, the first and the target among them.
        num_steps: The number of steps of the inner kernel between swaps.

    Raises:
        ValueError: If ``kernel`` is no discrete kernel or is itself tempered,
            ``num_temperatures`` is less than 2 or ``num_steps`` less than 1.

    Example:
        >>> import pyro_ebm as ebm
        >>> from torch.distributions import constraints
        >>> spins = constraints.independent(ebm.energies.spins, 1)
        >>> all_alike = lambda x: -0.3 * x.sum(-1).square()
        >>> target = ebm.Boltzmann(all_alike, event_shape=(9,), support=spins)
        >>> kernel = DiscreteTempering(ebm.kernels.GibbsWithGradients(target), num_temperatures=4)
        >>> mcmc = ebm.MCMC(kernel, 20, 20, num_chains=8, disable_progbar=True)
        >>> mcmc.run()
        >>> mcmc.state.swap_prob.shape, mcmc.state.num_restarts.shape
        (torch.Size([3]), torch.Size([8]))
    """

    def __init__(
        self, kernel: DiscreteKernel, *, num_temperatures: int = 8, num_steps: int = 1
    ) -> None:
        if not isinstance(kernel, DiscreteKernel) or isinstance(kernel, DiscreteTempering):
            raise ValueError(
                "kernel must be an untempered discrete kernel such as Gibbs(target), got "
                f"{type(kernel).__name__}"
            )
        check_count("num_temperatures", num_temperatures, least=2)
        check_count("num_steps", num_steps)
        super().__init__(
            kernel.target,
            step_size=kernel.step_size,
            adapt_step_size=kernel.adapt_step_size,
            target_accept_prob=kernel.target_accept_prob,
        )
        self.kernel = kernel
        self.num_temperatures = num_temperatures
        self.num_steps = num_steps

    @property
    def branch_free(self) -> bool:
        """Whether ``step`` has no Python branch on a value: as the inner kernel."""
        return self.kernel.branch_free

    def bind(  # noqa: D102
        self, args: tuple, kwargs: dict, initial_params: dict[str, Tensor] | None
    ) -> Potential:
        return self.kernel.bind(args, kwargs, initial_params)

    def init(self, potential: Potential, z: Tensor) -> DiscreteTemperingState:
        """Makes the first state of some chains, all replicas of a chain at one point.

        Args:
            potential: The target.
            z: Chains, with shape ``(C, D)``.

        Returns:
            The state, with the inner kernel's step size and all levels but the first at beta = 1.
        """
        num_chains, levels = len(z), self.num_temperatures - 1
        replicas = self.kernel.init(potential, z.detach().repeat(levels, 1))
        return DiscreteTemperingState(
            *_last(replicas, num_chains),
            step_size=replicas.step_size.clone(),
            step_sizes=replicas.step_size.repeat(levels),
            replicas=replicas,
            betas=pad(z.new_ones(levels), (1, 0)),
            accept_prob=z.new_zeros(num_chains, levels),
            num_swaps=torch.zeros((), dtype=torch.long, device=z.device),
            swap_prob_sum=z.new_zeros(num_chains, levels, dtype=torch.float64),
            fresh=z.new_zeros(num_chains, levels + 1, dtype=torch.bool),
            num_restarts=z.new_zeros(num_chains, dtype=torch.long),
        )

    def adaptation(self, warmup_steps: int) -> DiscretePlacement:
        """Makes what tunes every level and places the levels in warmup.

        Args:
            warmup_steps: The number of steps in which to do it.
        """
        levels = [self.kernel.adaptation(warmup_steps) for _ in range(self.num_temperatures - 1)]
        return DiscretePlacement(levels, warmup_steps)

    def noise(  # noqa: D102
        self, state: DiscreteTemperingState, generator: torch.Generator, *num_steps: int
    ) -> tuple[Tensor, ...]:
        of_base = uniform_like(state.z, generator, *num_steps)
        of_swaps = uniform_like(state.accept_prob, generator, *num_steps)
        at = len(num_steps)
        inner = [
            part.unflatten(at, state.accept_prob.shape[::-1]).transpose(at, at + 1)
            for _ in range(self.num_steps)
            for part in self.kernel.noise(state.replicas, generator, *num_steps)
        ]
        return of_base, of_swaps, *inner

    def step(  # noqa: D102
        self, potential: Potential, state: DiscreteTemperingState, noise: tuple[Tensor, ...]
    ) -> tuple[DiscreteTemperingState, Info]:
        of_base, of_swaps, *inner = noise
        target = self.target_of(potential)
        num_chains, levels = of_swaps.shape
        replicas, info, accept_prob = self._explore(potential, state, inner)
        of_base = of_base[:, : target.num_sites(state.z)]
        base = target.points((of_base * target.num_values).long(), state.z)
        every = (base, *self.kernel.look(target, base))
        z, value, changes = (torch.cat(pair) for pair in zip(every, replicas[:3], strict=True))
        excess = value.double().where(value.isfinite(), math.inf)
        excess = excess.unflatten(0, (levels + 1, num_chains)).T
        swap_prob, source = even_odd_swaps(state.betas, excess, state.num_swaps, of_swaps)
        # Where the replica that is now at each level was, as a row.
        rows = (source * num_chains + torch.arange(num_chains, device=z.device)[:, None]).T
        rows = rows.flatten()[num_chains:]
        replicas = replicas._replace(z=z[rows], potential=value[rows], changes=changes[rows])
        fresh = pad(state.fresh[:, 1:], (1, 0), value=True).gather(1, source)
        here = _last(replicas, num_chains)
        moved = state._replace(
            z=here[0],
            potential=here[1],
            changes=here[2],
            replicas=replicas,
            accept_prob=accept_prob.unflatten(0, (levels, num_chains)).T.contiguous(),
            num_swaps=state.num_swaps + 1,
            swap_prob_sum=state.swap_prob_sum + swap_prob,
            fresh=pad(fresh[:, :-1], (0, 1), value=False),
            num_restarts=state.num_restarts + fresh[:, -1],
        )
        return moved, Info(*(None if x is None else x[-num_chains:] for x in info))

    def _explore(
        self, potential: Potential, state: DiscreteTemperingState, noise: list[Tensor]
    ) -> tuple[DiscreteState, Info, Tensor]:
        """Moves all replicas but the first by the inner kernel, each at its own temperature."""
        num_chains, replicas = len(state.z), state.replicas
        parts = [part.transpose(0, 1).flatten(0, 1) for part in noise]
        width = len(parts) // self.num_steps
        beta = state.betas[1:].repeat_interleave(num_chains)
        of_rows = beta[:, None, None]
        path = Potential(
            potential.value_and_grad,
            potential.sites,
            potential.start,
            discrete=potential.discrete.tempered(beta),
        )
        now = replicas._replace(
            potential=replicas.potential * beta,
            changes=replicas.changes * of_rows,
            step_size=state.step_sizes.repeat_interleave(num_chains).unsqueeze(-1),
        )
        rates = []
        for i in range(self.num_steps):
            now, info = self.kernel.step(path, now, tuple(parts[i * width : (i + 1) * width]))
            rates.append(info.accept_prob)
        now = now._replace(
            potential=now.potential / beta,
            changes=now.changes / of_rows,
            step_size=replicas.step_size,
        )
        accept_prob = torch.stack(rates).mean(0)
        return now, info._replace(accept_prob=accept_prob), accept_prob


class DiscretePlacement(EachLevel):
    """Tunes each level, and places the levels by equal rejection.

    Args:
        levels: What tunes the inner kernel, for each level but the first.
        warmup_steps: The number of steps in which to do it.
    """

    def update(self, state: DiscreteTemperingState, info: Info) -> DiscreteTemperingState:
        """Learns from a step and returns the state with what has been tuned."""
        self.t += 1
        tuned = []
        for k, level in enumerate(self.levels):
            rate = state.accept_prob[:, k]
            own = state.replicas._replace(step_size=state.step_sizes[k])
            own = level.update(own, Info(diverging=rate == 0, accept_prob=rate))
            tuned.append(own.step_size)
        state = state._replace(step_size=tuned[-1], step_sizes=torch.stack(tuned))
        if self.t in self.ends:
            betas = equal_rejection(state.betas, state.swap_prob_sum, state.num_swaps)
            state = state._replace(betas=betas)
        if self.t in self.ends or self.t == self.warmup_steps:
            state = state._replace(
                num_swaps=torch.zeros_like(state.num_swaps),
                swap_prob_sum=torch.zeros_like(state.swap_prob_sum),
                num_restarts=torch.zeros_like(state.num_restarts),
            )
        return state


def _last(replicas: DiscreteState, num_chains: int) -> tuple[Tensor, Tensor, Tensor]:
    """The replicas at the target, in memory of their own."""
    z, potential, changes = (part[-num_chains:].clone() for part in replicas[:3])
    return z, potential, changes
