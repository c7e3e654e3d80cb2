r"""Kernels on sites with finitely many values: the state of their chains, and the plainest one.

Chains are points, flat and as floats. How the potential changes by setting site i to its value k,
:math:`\Delta_{ik}(x) = U(x_{i \to k}) - U(x)`, is what informed kernels go by.
"""

from __future__ import annotations

__all__ = ["DiscreteKernel", "DiscreteState", "SingleFlip", "choose"]

from typing import NamedTuple

import torch
from torch import Tensor

from ..discrete import DiscreteTarget
from ..distributions import Boltzmann
from ..potential import Model, Potential
from .adaptation import Adaptation, DualAveraging, When, where
from .base import Kernel
from .transition import Info, acceptance, uniform_like


class DiscreteState(NamedTuple):
    """What the next step needs."""

    z: Tensor
    """Chains, with shape ``(C, D)``."""
    potential: Tensor
    """U at ``z`` in nats, with shape ``(C,)``."""
    changes: Tensor
    """How U changes by setting each site to each value, ``(C, S, K)``; for a kernel that does not
    ask there are none, ``(C, S, 0)``."""
    step_size: Tensor
    """The step size of all chains, 0-d."""
    metric: tuple[()] = ()
    """None: all values of a site are equally far from each other."""


class StepSize(Adaptation):
    """Tunes the step size alone, by dual averaging, up to a largest one.

    Args:
        kernel: Says whether to adapt, and to what acceptance.
        warmup_steps: The number of steps in which to do it.
        largest: The largest step size: where even proposals that do not look at where a chain is
            are accepted too often, the step size would grow without bound.
    """

    rejoins = False  # there are no flat regions: every site is a step from any of its values

    def __init__(self, kernel: Kernel, warmup_steps: int, largest: float) -> None:
        super().__init__(kernel, warmup_steps)
        self.largest = largest

    def begin(self, state: DiscreteState) -> tuple[DualAveraging]:
        return (DualAveraging.begin(state.step_size),)

    def learn(
        self, tuning: tuple[DualAveraging], state: DiscreteState, info: Info, when: When
    ) -> tuple[tuple[DualAveraging], DiscreteState]:
        if not self.step_size:
            return tuning, state
        step = tuning[0].update(self.pooled(info.accept_prob, when), self.target)
        final = step.final_step_size.clamp(max=self.largest)
        tried = step.step_size.clamp(max=self.largest)
        step_size = torch.where(when.last, final, tried).to(state.step_size.dtype)
        step = where(when.closing, DualAveraging.begin(final), step)
        return (step,), state._replace(step_size=step_size)


class DiscreteKernel(Kernel):
    """A transition of chains on sites with finitely many values.

    Args:
        model: A :class:`~pyro_ebm.Boltzmann` over an alphabet, if any.
        step_size: The step size, or its first value where it is adapted.
        adapt_step_size: Whether warmup adapts the step size.
        target_accept_prob: The mean acceptance that adaptation aims at.
    """

    informed: bool = False
    """Whether it goes by the changes of the potential."""
    largest_step_size: float = 10.0

    def __init__(
        self,
        model: Model | Boltzmann | None = None,
        *,
        step_size: float = 1.0,
        adapt_step_size: bool = False,
        target_accept_prob: float = 0.574,
    ) -> None:
        super().__init__(
            model,
            step_size=step_size,
            adapt_step_size=adapt_step_size,
            adapt_mass_matrix=False,
            target_accept_prob=target_accept_prob,
        )

    def init(self, potential: Potential, z: Tensor) -> DiscreteState:
        """Makes the first state of some chains.

        Args:
            potential: The target.
            z: Chains, with shape ``(C, D)``.

        Returns:
            The state, with the kernel's own step size.

        Raises:
            ValueError: If the target is continuous.
        """
        target, z = self.target_of(potential), z.detach().contiguous()
        return DiscreteState(z, *self.look(target, z), z.new_tensor(self.step_size))

    def target_of(self, potential: Potential) -> DiscreteTarget:
        """Returns what this kernel asks of a target.

        Raises:
            ValueError: If it is continuous.
        """
        if potential.discrete is None:
            raise ValueError(
                f"{type(self).__name__} moves sites with finitely many values, and "
                f"'{potential.sites[0].name}' is continuous: sample it with kernels.ChEES, NUTS "
                "or HMC"
            )
        return potential.discrete

    def look(self, target: DiscreteTarget, z: Tensor) -> tuple[Tensor, Tensor]:
        """Evaluates all that a state has to know of where chains are.

        Args:
            target: The target.
            z: Chains, with shape ``(C, D)``.

        Returns:
            The potential ``(C,)``, and how it changes ``(C, S, K)`` if the kernel is informed.
        """
        if self.informed:
            return target.value_and_changes(z)
        return target.value(z), z.new_empty(len(z), target.num_sites(z), 0)

    def adaptation(self, warmup_steps: int) -> Adaptation:
        """Makes what tunes the state of chains in warmup.

        Args:
            warmup_steps: The number of steps in which to do it.
        """
        return StepSize(self, warmup_steps, self.largest_step_size)


def choose(
    state: DiscreteState, proposal: DiscreteState, log_ratio: Tensor, uniform: Tensor
) -> tuple[DiscreteState, Info]:
    """Makes the Metropolis decision of each chain, and says what happened.

    Args:
        state: Where the chains are.
        proposal: Where they may go.
        log_ratio: The log Metropolis ratio, with shape ``(C,)``; where it is not finite, the
            proposal is rejected and counted.
        uniform: Uniform draws, with shape ``(C,)``.
    """
    accept_prob, accepted = acceptance(log_ratio, uniform)
    rows = accepted.unsqueeze(-1)
    moved = state._replace(
        z=torch.where(rows, proposal.z, state.z),
        potential=torch.where(accepted, proposal.potential, state.potential),
        changes=torch.where(rows.unsqueeze(-1), proposal.changes, state.changes),
    )
    return moved, Info(~log_ratio.isfinite(), accept_prob, accepted)


class SingleFlip(DiscreteKernel):
    r"""The Metropolis algorithm with changes of single sites.

    .. math:: y = x_{i \to k}, \quad k \neq x_i, \qquad \log r = U(x) - U(y)

    with i and k drawn uniformly; with probability :math:`1 / (S + 1)` nothing is proposed, without
    which chains on a flat target would go round with a period. The invariant law is
    :math:`e^{-U}`, exactly, for any energy, without a gradient or conditionals. A step is one
    evaluation of the energy and moves one of :math:`S` sites at most, so it is a yardstick for
    other kernels more than their rival. A non-finite proposal is rejected and counted.

    References:
        | Equation of state calculations by fast computing machines (Metropolis, Rosenbluth,
        | Rosenbluth, Teller and Teller, 1953), https://doi.org/10.1063/1.1699114

    Args:
        model: A :class:`~pyro_ebm.Boltzmann` over an alphabet, if any.

    Raises:
        ValueError: In use, if the target is continuous.

    Example:
        >>> import pyro_ebm as ebm
        >>> from torch.distributions import constraints
        >>> spins = constraints.independent(ebm.energies.spins, 1)
        >>> chain = lambda x: -(x[..., 1:] * x[..., :-1]).sum(-1)
        >>> target = ebm.Boltzmann(chain, event_shape=(5,), support=spins)
        >>> mcmc = ebm.MCMC(SingleFlip(target), 50, 50, num_chains=8, disable_progbar=True)
        >>> mcmc.run()
        >>> mcmc.get_samples()["x"].unique()
        tensor([-1.,  1.])
    """

    def __init__(self, model: Model | Boltzmann | None = None) -> None:
        super().__init__(model)

    def noise(  # noqa: D102
        self, state: DiscreteState, generator: torch.Generator, *num_steps: int
    ) -> tuple[Tensor, ...]:
        return tuple(uniform_like(state.potential, generator, *num_steps) for _ in range(3))

    def step(  # noqa: D102
        self, potential: Potential, state: DiscreteState, noise: tuple[Tensor, ...]
    ) -> tuple[DiscreteState, Info]:
        at, what, decision = noise
        target = self.target_of(potential)
        num_sites, num_values = target.num_sites(state.z), target.num_values
        site = (at * (num_sites + 1)).long()
        shift = torch.where(site < num_sites, 1 + (what * (num_values - 1)).long(), 0)
        site = site.clamp(max=num_sites - 1)
        place = (target.place_at(state.z, site) + shift) % num_values
        y = target.with_place(state.z, site, place)
        value = target.value(y)
        log_ratio = state.potential.double() - value.double()
        proposal = state._replace(z=y, potential=value)
        return choose(state, proposal, log_ratio, decision)
