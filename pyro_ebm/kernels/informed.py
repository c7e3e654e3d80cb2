r"""Discrete kernels that propose by how the potential would change.

A locally balanced proposal weighs a change by the root of the ratio of densities,

.. math:: q(x \to y) \propto \sqrt{\pi(y) / \pi(x)} = \exp\left(-\tfrac12 \Delta(x \to y)\right)

which leaves the target almost as it is, wherever its ratios change slowly; a Metropolis decision
makes it exact.
"""

from __future__ import annotations

__all__ = ["DiscreteMALA", "GibbsWithGradients"]

import torch
from torch import Tensor

from ..distributions import Boltzmann
from ..potential import Model, Potential
from .discrete import DiscreteKernel, DiscreteState, choose
from .transition import Info, uniform_like


class GibbsWithGradients(DiscreteKernel):
    r"""Gibbs with gradients: one site at a time, chosen by how much its change is worth.

    .. math::
        q(i, k \mid x) &= \frac{\exp(-\Delta_{ik}(x) / 2)}
        {1 + \sum_{j, l \neq x_j} \exp(-\Delta_{jl}(x) / 2)}, \qquad y = x_{i \to k} \\
        \log r &= U(x) - U(y) + \log q(i, x_i \mid y) - \log q(i, k \mid x)

    for binary sites and categories alike; the 1 is for staying, without which chains on a flat
    target would go round with a period. The changes :math:`\Delta` are exact where the energy
    knows its conditionals; else they are those of the tangent, :math:`\nabla_i U(x) \cdot (a_k -
    x_i)`, of an energy that is differentiable as a function of real numbers (not one that looks
    up an embedding). Either way the invariant law is :math:`e^{-U}`, exactly. A step takes one
    evaluation of energy and changes and moves one site at most, one that matters; where many have
    to move, :class:`DiscreteMALA` is faster. A non-finite proposal is rejected and counted.

    References:
        | Oops I took a gradient: scalable sampling for discrete distributions (Grathwohl, Swersky,
        | Hashemi, Duvenaud and Maddison, 2021), https://arxiv.org/abs/2102.04509
        | Informed proposals for local MCMC in discrete spaces (Zanella, 2020),
        | https://doi.org/10.1080/01621459.2019.1585255

    Args:
        model: A :class:`~pyro_ebm.Boltzmann` over an alphabet, if any.

    Raises:
        ValueError: In use, if the target is continuous, or its energy has neither conditionals nor
            a gradient.

    Example:
        >>> import pyro_ebm as ebm
        >>> from torch.distributions import constraints
        >>> words = constraints.independent(constraints.one_hot, 1)
        >>> agree = lambda x: -(x[..., 1:, :] * x[..., :-1, :]).sum((-2, -1))
        >>> target = ebm.Boltzmann(agree, event_shape=(5, 3), support=words)
        >>> kernel = GibbsWithGradients(target)
        >>> mcmc = ebm.MCMC(kernel, 50, 50, num_chains=8, disable_progbar=True)
        >>> mcmc.run()
        >>> mcmc.get_samples()["x"].sum(-1).unique()
        tensor([1.])
    """

    informed = True

    def __init__(self, model: Model | Boltzmann | None = None) -> None:
        super().__init__(model)

    def noise(  # noqa: D102
        self, state: DiscreteState, generator: torch.Generator, *num_steps: int
    ) -> tuple[Tensor, ...]:
        # In float32 the sum of many small probabilities would not keep their digits.
        which = uniform_like(state.potential.double(), generator, *num_steps)
        return which, uniform_like(state.potential, generator, *num_steps)

    def step(  # noqa: D102
        self, potential: Potential, state: DiscreteState, noise: tuple[Tensor, ...]
    ) -> tuple[DiscreteState, Info]:
        which, decision = noise
        target = self.target_of(potential)
        places = target.places(state.z)
        num_sites, num_values = places.shape[1], target.num_values
        log_q = _log_choices(state.changes, places)
        below = log_q.exp().cumsum(-1)[:, :-1]
        choice = (which.unsqueeze(-1) >= below).sum(-1)
        staying = choice == num_sites * num_values
        site = (choice // num_values).clamp(max=num_sites - 1)
        old = places.gather(-1, site.unsqueeze(-1)).squeeze(-1)
        y = target.with_place(state.z, site, torch.where(staying, old, choice % num_values))
        value, changes = target.value_and_changes(y)
        back = torch.where(staying, choice, site * num_values + old)
        log_q_back = _log_choices(changes, target.places(y))
        log_ratio = (
            state.potential.double()
            - value.double()
            + log_q_back.gather(-1, back.unsqueeze(-1)).squeeze(-1)
            - log_q.gather(-1, choice.unsqueeze(-1)).squeeze(-1)
        )
        proposal = state._replace(z=y, potential=value, changes=changes)
        return choose(state, proposal, log_ratio, decision)


def _log_choices(changes: Tensor, places: Tensor) -> Tensor:
    """The log probability of each change, and last of none, in float64, ``(C, S K + 1)``."""
    log_weights = (-0.5 * changes.double()).scatter(-1, places.unsqueeze(-1), -torch.inf)
    log_weights = torch.nn.functional.pad(log_weights.flatten(1), (0, 1))
    return log_weights.log_softmax(-1)


class DiscreteMALA(DiscreteKernel):
    r"""The discrete Langevin proposal with a Metropolis decision: all sites at once.

    .. math::
        q(y \mid x) &= \prod_i \frac{\exp(\ell_i(y_i \mid x))}{\sum_k \exp(\ell_i(k \mid x))},
        \qquad \ell_i(k \mid x) = -\tfrac12 \Delta_{ik}(x) - \frac{1}{2 \alpha} [k \neq x_i] \\
        \log r &= U(x) - U(y) + \log q(x \mid y) - \log q(y \mid x)

    Every site stays or changes on its own, so that a step moves many. The step size
    :math:`\alpha` says how many: a change costs :math:`1 / 2 \alpha` nats, whichever it is.
    Warmup adapts it to the target acceptance, pooled over chains, up to 10, where a change costs
    next to nothing; without warmup nothing changes. The changes :math:`\Delta` are exact where the
    energy knows its conditionals, and else those of the tangent, as for
    :class:`GibbsWithGradients`. Either way the invariant law is :math:`e^{-U}`, exactly. A step
    takes one evaluation of energy and changes. A non-finite proposal is rejected and counted.

    References:
        | A Langevin-like sampler for discrete distributions (Zhang, Liu and Liu, 2022),
        | https://arxiv.org/abs/2206.09914
        | Any-scale balanced samplers for discrete space (Sun, Dai, Sutton, Schuurmans and Dai,
        | 2023), https://openreview.net/forum?id=lEkl0jdSb7B (the target acceptance 0.574)

    Args:
        model: A :class:`~pyro_ebm.Boltzmann` over an alphabet, if any.
        step_size: The step size :math:`\alpha > 0`, a pure number, or its first value.
        adapt_step_size: Whether warmup adapts :math:`\alpha`.
        target_accept_prob: The mean acceptance that adaptation aims at.

    Raises:
        ValueError: If ``step_size`` is not positive or ``target_accept_prob`` not between 0 and 1;
            in use, if the target is continuous, or its energy has neither conditionals nor a
            gradient.

    Example:
        >>> import pyro_ebm as ebm
        >>> from torch.distributions import constraints
        >>> bits = constraints.independent(constraints.boolean, 1)
        >>> pair = lambda x: -2 * x[..., 0] * x[..., 1] + x.sum(-1)
        >>> target = ebm.Boltzmann(pair, event_shape=(2,), support=bits)
        >>> mcmc = ebm.MCMC(DiscreteMALA(target), 50, 50, num_chains=8, disable_progbar=True)
        >>> mcmc.run()
        >>> mcmc.get_samples(group_by_chain=True)["x"].shape
        torch.Size([8, 50, 2])
    """

    informed = True

    def __init__(
        self,
        model: Model | Boltzmann | None = None,
        *,
        step_size: float = 0.2,
        adapt_step_size: bool = True,
        target_accept_prob: float = 0.574,
    ) -> None:
        super().__init__(
            model,
            step_size=step_size,
            adapt_step_size=adapt_step_size,
            target_accept_prob=target_accept_prob,
        )

    def noise(  # noqa: D102
        self, state: DiscreteState, generator: torch.Generator, *num_steps: int
    ) -> tuple[Tensor, ...]:
        of_sites = uniform_like(state.changes[..., 0], generator, *num_steps)
        return of_sites, uniform_like(state.potential, generator, *num_steps)

    def step(  # noqa: D102
        self, potential: Potential, state: DiscreteState, noise: tuple[Tensor, ...]
    ) -> tuple[DiscreteState, Info]:
        uniform, decision = noise
        target = self.target_of(potential)
        here = target.places(state.z)
        log_q = _log_values(state.changes, here, state.step_size)
        below = log_q.exp().cumsum(-1)[..., :-1]
        there = (uniform.unsqueeze(-1) >= below).sum(-1)
        y = target.points(there, state.z)
        value, changes = target.value_and_changes(y)
        log_q_back = _log_values(changes, there, state.step_size)
        log_ratio = (
            state.potential.double() - value.double() + _sum(log_q_back, here) - _sum(log_q, there)
        )
        proposal = state._replace(z=y, potential=value, changes=changes)
        return choose(state, proposal, log_ratio, decision)


def _log_values(changes: Tensor, places: Tensor, step_size: Tensor) -> Tensor:
    """The log probability of each value of each site, ``(C, S, K)``: to stay is worth the cost."""
    cost = (1 / (2 * step_size)).to(changes.dtype)
    stay = cost.expand(places.shape).unsqueeze(-1)
    return (-0.5 * changes).scatter(-1, places.unsqueeze(-1), stay).log_softmax(-1)


def _sum(log_q: Tensor, places: Tensor) -> Tensor:
    """The log probability of one value of each site, together, in float64, ``(C,)``."""
    return log_q.gather(-1, places.unsqueeze(-1)).sum((-2, -1), dtype=torch.float64)
