r"""Parallel tempering: replicas on a path from a law that is known to the target.

.. math::
    U_\beta(z) = (1 - \beta) \, U_0(z) + \beta \, U(z), \qquad
    0 = \beta_0 < \beta_1 < \dots < \beta_{K - 1} = 1

with :math:`e^{-U_0}` a normalised Gaussian, the base, with independent coordinates in
unconstrained space. Every law on the path is proper if the target is (Hölder's inequality), which
a bare power :math:`e^{-\beta U}` need not be, and the first can be drawn from exactly.
"""

from __future__ import annotations

__all__ = ["ParallelTempering", "TemperingState"]

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributions import Normal
from torch.nn.functional import pad

from ..arguments import check_count
from ..potential import Potential
from .adaptation import Adaptation
from .base import Kernel
from .discrete import DiscreteKernel
from .langevin import MALA
from .metric import Metric
from .swaps import EachLevel, equal_rejection, even_odd_swaps, moments_of_all_ranks
from .transition import Info, State, normal_like, uniform_like

LAST_FIT = 0.5
"""The part of warmup in which the base is fitted too, at the end of each round."""
BASE_WIDTH = 1.5
"""The width of the fitted base in standard deviations of the draws: it costs swaps, about
log(1.5) sqrt(2 D / pi) of the barrier, and finds modes that the draws missed."""


class TemperingState(NamedTuple):
    """What the next step needs. Levels are counted from the base, beta = 0, to the target."""

    z: Tensor
    """Unconstrained chains at beta = 1, with shape ``(C, D)``."""
    potential: Tensor
    """U at ``z`` in nats, with shape ``(C,)``."""
    grad: Tensor
    """The gradient of U at ``z``, with shape ``(C, D)``."""
    step_size: Tensor
    """The step size at beta = 1, 0-d."""
    metric: Metric
    """The units of length at beta = 1."""
    step_ratio: Tensor
    """The step size at each level but the base over that at beta = 1, ``(K - 1,)``. Kernels see
    it as a factor of the units: its root, where a step size is a squared length."""
    scale_ratio: Tensor
    """The same of the units, ``(K - 1, D)``."""
    replicas: State
    """The inner kernel's state of all levels but the base, one after the other, with ``(K - 1) *
    C`` rows. Potential and gradient are those of the target; step size and metric go unused."""
    betas: Tensor
    """The inverse temperatures, from 0 to 1, ``(K,)``."""
    base_loc: Tensor
    """The mean of the base, ``(D,)``."""
    base_scale: Tensor
    """Its standard deviations, ``(D,)``."""
    excess: Tensor
    """U - U_0 of the replica now at each level, in float64 nats, ``(C, K)``; infinite where U is
    not finite. U_0 is normalised, so that log Z of the target is log E_0[exp(-excess)]."""
    accept_prob: Tensor
    """The inner kernel's acceptance at each level but the base, ``(C, K - 1)``."""
    num_swaps: Tensor
    """The steps since warmup last placed the levels, 0-d; if even, levels 0 and 1 are next."""
    swap_prob_sum: Tensor
    """The sum, over that time, of the swap acceptance of each pair, whether its turn or not, in
    float64, ``(C, K - 1)``."""
    fresh: Tensor
    """Whether a replica has not been at beta = 1 since it was drawn from the base, ``(C, K)``."""
    num_restarts: Tensor
    """How often such a one arrived at beta = 1 in that time, ``(C,)``."""

    @property
    def swap_prob(self) -> Tensor:
        """The mean swap acceptance of each pair of neighbours, over chains, ``(K - 1,)``."""
        return self.swap_prob_sum.mean(0) / self.num_swaps.clamp(min=1)

    @property
    def barrier(self) -> float:
        r"""The communication barrier :math:`\Lambda`: the sum of the mean swap rejections."""
        return (1 - self.swap_prob).sum().item()


class ParallelTempering(Kernel):
    r"""Non-reversible parallel tempering over any Metropolised kernel.

    Each chain is :math:`K` replicas at the inverse temperatures :math:`\beta_k` of the path
    :math:`U_\beta = (1 - \beta) U_0 + \beta U`. In a step the base is drawn from anew, all other
    replicas make ``num_steps`` steps of the inner kernel, as rows of one batch, and neighbours
    swap with probability

    .. math::
        \alpha_k = \min\left(1, \exp\left((\beta_{k + 1} - \beta_k)
        (V(z_{k + 1}) - V(z_k))\right)\right), \qquad V = U - U_0,

    for even :math:`k` in even steps and odd :math:`k` in odd ones (deterministic even-odd), which
    carries draws of the base up to the target in a time that does not grow with :math:`K`. A draw
    is the replica at :math:`\beta = 1`. The joint law is invariant, exactly, as is :math:`e^{-U}`.

    Warmup adapts step size and units at each level on its own, pooled over chains; what else the
    inner kernel adapts (the length of a path) is that at the target, at all levels. It fits the
    base to the draws (mean, and one and a half times the standard deviation, so that it is wider
    than the target) unless one is given, and places the :math:`\beta_k` so that all pairs reject
    alike. All this is over before draws are kept. Until then, as without warmup, there is nothing
    between base and target: all :math:`\beta_k = 1` but the first, and exact draws stay so.

    After a run ``mcmc.state.barrier`` is the sum :math:`\Lambda` of the rejections :math:`r_k`,
    ``mcmc.state.swap_prob`` has :math:`1 - r_k`, and ``mcmc.state.num_restarts`` counts the draws
    of the base that came to be draws of the target, of each chain: at best one in :math:`2 + 2
    \sum_k r_k / (1 - r_k)` steps. :math:`K \approx 2 \Lambda + 1` levels are best. A mode that no
    chain finds in warmup, and that the base does not cover, stays unseen. A step costs :math:`K -
    1` times what the inner kernel does, and :math:`K` gradients more.

    References:
        | Non-reversible parallel tempering: a scalable highly parallel MCMC scheme (Syed,
        | Bouchard-Côté, Deligiannidis and Doucet, 2021), https://arxiv.org/abs/1905.02939
        | Parallel tempering with a variational reference (Surjanovic, Syed, Bouchard-Côté and
        | Campbell, 2022), https://arxiv.org/abs/2206.00080

    Args:
        kernel: The inner kernel, with its target or without.
        num_temperatures: The number of levels :math:`K`, base and target among them.
        base: The base, a normal with the shape of the flat unconstrained chains ``(D,)``, or
            ``()`` for all alike; standard normal until fitted, if not given.
        num_steps: The number of steps of the inner kernel between swaps.

    Raises:
        ValueError: If ``kernel`` is no kernel, a discrete one, itself tempered or has a
            ``metric_rank``,
            ``num_temperatures`` is less than 2 or ``num_steps`` less than 1; when chains are made,
            if the shape of ``base`` does not fit; in use, if ``kernel`` has no Metropolis step.

    Example:
        >>> import pyro_ebm as ebm
        >>> target = ebm.Boltzmann(ebm.energies.TwoModes(theta=-0.8, a=-4.0, b=4.0))
        >>> kernel = ParallelTempering(ebm.kernels.MALA(target), num_temperatures=4)
        >>> mcmc = ebm.MCMC(kernel, 50, 50, num_chains=8, disable_progbar=True)
        >>> mcmc.run()
        >>> mcmc.state.swap_prob.shape, mcmc.state.num_restarts.shape
        (torch.Size([3]), torch.Size([8]))
    """

    def __init__(
        self,
        kernel: Kernel,
        *,
        num_temperatures: int = 8,
        base: Normal | None = None,
        num_steps: int = 1,
    ) -> None:
        if not isinstance(kernel, Kernel) or isinstance(kernel, ParallelTempering):
            raise ValueError(
                "kernel must be an untempered kernel such as HMC(model), got "
                f"{type(kernel).__name__}"
            )
        if isinstance(kernel, DiscreteKernel):
            raise ValueError(
                f"the base is a Gaussian, and {type(kernel).__name__} moves discrete sites: use "
                "DiscreteTempering"
            )
        if kernel.metric_rank != 0:
            raise ValueError(f"metric_rank must be 0 under tempering, got {kernel.metric_rank}")
        check_count("num_temperatures", num_temperatures, least=2)
        check_count("num_steps", num_steps)
        super().__init__(
            kernel.target,
            potential_fn=kernel.potential_fn,
            step_size=kernel.step_size,
            adapt_step_size=kernel.adapt_step_size,
            adapt_mass_matrix=kernel.adapt_mass_matrix,
            target_accept_prob=kernel.target_accept_prob,
        )
        self.kernel = kernel
        self.num_temperatures = num_temperatures
        self.base = base
        self.num_steps = num_steps

    @property
    def branch_free(self) -> bool:
        """Whether ``step`` has no Python branch on a value: as the inner kernel."""
        return self.kernel.branch_free

    def init(self, potential: Potential, z: Tensor) -> TemperingState:
        """Makes the first state of some chains, all replicas of a chain at one point.

        Args:
            potential: The target.
            z: Unconstrained chains, with shape ``(C, D)``.

        Returns:
            The state, with the inner kernel's step size and all levels but the base at beta = 1.
        """
        (num_chains, dim), levels = z.shape, self.num_temperatures - 1
        replicas = self.kernel.init(potential, z.detach().repeat(levels, 1))
        loc, scale = self._first_base(z)
        excess = replicas.potential - _gaussian(replicas.z, loc, scale)[0]
        return TemperingState(
            z=replicas.z[-num_chains:].clone(),
            potential=replicas.potential[-num_chains:].clone(),
            grad=replicas.grad[-num_chains:].clone(),
            step_size=replicas.step_size.clone(),
            metric=Metric(replicas.metric.scale.clone()),
            step_ratio=z.new_ones(levels),
            scale_ratio=z.new_ones(levels, dim),
            replicas=replicas,
            betas=pad(z.new_ones(levels), (1, 0)),
            base_loc=loc,
            base_scale=scale,
            excess=excess[:num_chains, None].double().repeat(1, levels + 1),
            accept_prob=z.new_zeros(num_chains, levels),
            num_swaps=torch.zeros((), dtype=torch.long, device=z.device),
            swap_prob_sum=z.new_zeros(num_chains, levels, dtype=torch.float64),
            fresh=z.new_zeros(num_chains, levels + 1, dtype=torch.bool),
            num_restarts=z.new_zeros(num_chains, dtype=torch.long),
        )

    def _first_base(self, z: Tensor) -> tuple[Tensor, Tensor]:
        base, shape = self.base or Normal(0.0, 1.0), z.shape[-1:]
        if base.batch_shape not in (torch.Size(), shape):
            raise ValueError(
                f"base must be a normal of shape {tuple(shape)}, as the flat unconstrained "
                f"chains, or (), got {tuple(base.batch_shape)}"
            )
        return tuple(part.to(z).expand(shape).clone() for part in (base.loc, base.scale))

    def adaptation(self, warmup_steps: int) -> Placement:
        """Makes what tunes every level, fits the base and places the levels in warmup.

        Args:
            warmup_steps: The number of steps in which to do it.
        """
        levels = [self.kernel.adaptation(warmup_steps) for _ in range(self.num_temperatures - 1)]
        return Placement(levels, warmup_steps, fit_base=self.base is None)

    def noise(  # noqa: D102
        self, state: TemperingState, generator: torch.Generator, *num_steps: int
    ) -> tuple[Tensor, ...]:
        normal = normal_like(state.z, generator, *num_steps)
        uniform = uniform_like(state.accept_prob, generator, *num_steps)
        at = len(num_steps)
        inner = [
            part.unflatten(at, state.accept_prob.shape) if part.dim() > at else part
            for _ in range(self.num_steps)
            for part in self.kernel.noise(state.replicas, generator, *num_steps)
        ]
        return normal, uniform, *inner

    def step(  # noqa: D102
        self, potential: Potential, state: TemperingState, noise: tuple[Tensor, ...]
    ) -> tuple[TemperingState, Info]:
        normal, uniform, *inner = noise
        num_chains, levels = uniform.shape
        replicas, info = self._explore(potential, state, inner)
        fresh = state.base_loc + state.base_scale * normal
        z = torch.cat([fresh, replicas.z])
        value, grad = potential.value_and_grad(z)
        base, _ = _gaussian(z, state.base_loc, state.base_scale)
        usable = value.isfinite() & grad.isfinite().all(-1)
        excess = (value.double() - base.double()).where(usable, math.inf)
        excess = excess.unflatten(0, (levels + 1, num_chains)).T
        swap_prob, source = even_odd_swaps(state.betas, excess, state.num_swaps, uniform)
        rows = (source * num_chains + torch.arange(num_chains, device=z.device)[:, None]).T
        rows = rows.flatten()[num_chains:]
        replicas = replicas._replace(z=z[rows], potential=value[rows], grad=grad[rows])
        fresh = pad(state.fresh[:, 1:], (1, 0), value=True).gather(1, source)
        accept_prob = info.accept_prob.unflatten(0, (levels, num_chains)).T.contiguous()
        moved = state._replace(
            z=replicas.z[-num_chains:].clone(),
            potential=replicas.potential[-num_chains:].clone(),
            grad=replicas.grad[-num_chains:].clone(),
            replicas=replicas,
            excess=excess.gather(1, source),
            accept_prob=accept_prob,
            num_swaps=state.num_swaps + 1,
            swap_prob_sum=state.swap_prob_sum + swap_prob,
            fresh=pad(fresh[:, :-1], (0, 1), value=False),
            num_restarts=state.num_restarts + fresh[:, -1],
        )
        return moved, Info(*(None if x is None else x[-num_chains:] for x in info))

    def _explore(
        self, potential: Potential, state: TemperingState, noise: list[Tensor]
    ) -> tuple[State, Info]:
        """Moves all replicas but the base's by the inner kernel, each at its own temperature."""
        num_chains = len(state.z)
        parts = [part.transpose(0, 1).flatten(0, 1) if part.dim() else part for part in noise]
        width = len(parts) // self.num_steps

        def value_and_grad(z: Tensor) -> tuple[Tensor, Tensor]:
            return tempered(state, z, *potential.value_and_grad(z))

        path = Potential(value_and_grad, potential.sites, potential.start)
        replicas = state.replicas
        value, grad = tempered(state, replicas.z, replicas.potential, replicas.grad)
        # One step size for all rows, as kernels expect; its ratio is in the units of each.
        ratio = state.step_ratio.unsqueeze(-1) ** (0.5 if isinstance(self.kernel, MALA) else 1.0)
        scale = (state.metric.scale * state.scale_ratio * ratio).repeat_interleave(num_chains, 0)
        now = replicas._replace(potential=value, grad=grad)
        now = now._replace(step_size=state.step_size, metric=Metric(scale))
        infos = []
        for i in range(self.num_steps):
            now, info = self.kernel.step(path, now, tuple(parts[i * width : (i + 1) * width]))
            if info.accept_prob is None:
                name = type(self.kernel).__name__
                raise ValueError(
                    f"kernel must have a Metropolis step, got {name}: use MALA or HMC instead"
                )
            infos.append(info)
        return now._replace(step_size=replicas.step_size, metric=replicas.metric), _summary(infos)


class Placement(EachLevel):
    """Tunes each level, fits the base to the draws, and places the levels by equal rejection.

    After each round of warmup a level goes to where an equal share of all rejections lies below.

    Args:
        levels: What tunes the inner kernel, for each level but the base.
        warmup_steps: The number of steps in which to do it.
        fit_base: Whether to fit the base.
    """

    def __init__(self, levels: list[Adaptation], warmup_steps: int, *, fit_base: bool) -> None:
        super().__init__(levels, warmup_steps)
        self.last_fit = int(LAST_FIT * warmup_steps) if fit_base else 0
        self.moments: list[Tensor] = []
        """Mean and variance over chains at each step of the round, in float64."""

    def update(self, state: TemperingState, info: Info) -> TemperingState:
        """Learns from a step and returns the state with what has been tuned."""
        self.t += 1
        state = self._tune(state)
        if self.t <= self.last_fit:
            z = state.z.double()
            self.moments.append(torch.stack([z.mean(0), z.var(0, correction=0)]))
        if self.t in self.ends:
            state = self._place(state)
            if self.t <= self.last_fit:
                state = self._fit_base(state)
        if self.t in self.ends or self.t == self.warmup_steps:
            state = state._replace(
                num_swaps=torch.zeros_like(state.num_swaps),
                swap_prob_sum=torch.zeros_like(state.swap_prob_sum),
                num_restarts=torch.zeros_like(state.num_restarts),
            )
        return state

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "moments": list(self.moments)}

    def load_state_dict(self, found: dict[str, Any]) -> None:
        super().load_state_dict(found)
        self.moments = list(found["moments"])

    def _tune(self, state: TemperingState) -> TemperingState:
        rows, num_chains = state.replicas, len(state.z)
        value, grad = tempered(state, rows.z, rows.potential, rows.grad)
        tuned = []
        for k, level in enumerate(self.levels):
            here = slice(k * num_chains, (k + 1) * num_chains)
            own = rows._replace(
                z=rows.z[here],
                potential=value[here],
                grad=grad[here],
                step_size=state.step_size * state.step_ratio[k],
                metric=Metric(state.metric.scale * state.scale_ratio[k]),
            )
            rate = state.accept_prob[:, k]
            tuned.append(level.update(own, Info(diverging=rate == 0, accept_prob=rate)))
        step_size = torch.stack([own.step_size for own in tuned])
        scale = torch.stack([own.metric.scale for own in tuned])
        shared = {k: v for k, v in list(tuned[-1]._asdict().items())[5:] if not v.dim()}
        return state._replace(
            replicas=rows._replace(**shared),
            step_size=step_size[-1],
            metric=Metric(scale[-1]),
            step_ratio=step_size / step_size[-1],
            scale_ratio=scale / scale[-1],
        )

    def _place(self, state: TemperingState) -> TemperingState:
        betas = equal_rejection(state.betas, state.swap_prob_sum, state.num_swaps)
        return state._replace(betas=betas)

    def _fit_base(self, state: TemperingState) -> TemperingState:
        means, variances = moments_of_all_ranks(self.moments, len(state.z))
        loc = means.mean(0)
        scale = BASE_WIDTH * (variances.mean(0) + means.var(0, correction=0)).sqrt()
        self.moments = []
        usable = loc.isfinite() & scale.isfinite() & (scale > 0)
        return state._replace(
            base_loc=torch.where(usable, loc.to(state.z), state.base_loc),
            base_scale=torch.where(usable, scale.to(state.z), state.base_scale),
        )


def tempered(
    state: TemperingState, z: Tensor, value: Tensor, grad: Tensor
) -> tuple[Tensor, Tensor]:
    """Mixes the target with the base, at the level of each row.

    Args:
        state: Says base and levels.
        z: Points, those of the first level above the base first, ``((K - 1) * C, D)``.
        value: U there, with shape ``((K - 1) * C,)``.
        grad: Its gradient there, with shape ``((K - 1) * C, D)``.

    Returns:
        The potential of the level, and its gradient.
    """
    of_base, grad_of_base = _gaussian(z, state.base_loc, state.base_scale)
    beta = state.betas[1:].repeat_interleave(len(state.z))
    rows = beta.unsqueeze(-1)
    return (1 - beta) * of_base + beta * value, (1 - rows) * grad_of_base + rows * grad


def _gaussian(z: Tensor, loc: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """Minus the log density of the base, normalised, and its gradient."""
    xi = (z - loc) / scale
    log_norm = scale.log().sum() + 0.5 * math.log(2 * math.pi) * z.shape[-1]
    return 0.5 * xi.square().sum(-1) + log_norm, xi / scale


def _summary(infos: list[Info]) -> Info:
    """What happened in consecutive steps of the inner kernel, as one."""
    last = infos[-1]
    if len(infos) == 1:
        return last._replace(energy=None)
    return Info(
        diverging=torch.stack([info.diverging for info in infos]).any(0),
        accept_prob=torch.stack([info.accept_prob for info in infos]).mean(0),
        accepted=torch.stack([info.accepted for info in infos]).any(0),
        num_steps=None if last.num_steps is None else sum(info.num_steps for info in infos),
    )
