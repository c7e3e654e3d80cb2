r"""The contract of a kernel.

A kernel is a transition :math:`p(x' \mid x)` that leaves :math:`\exp(-U)` invariant, or says by
how much it does not. It is a recipe without a memory: ``init`` makes a state, ``noise`` draws what
a step needs, ``step`` moves the chains. Its step size and metric are in the state, where
adaptation sets them.
"""

from __future__ import annotations

__all__ = ["Kernel"]

from abc import abstractmethod
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from ..arguments import check_between, check_count, check_positive
from ..distributions import Boltzmann
from ..potential import Model, Potential
from ..ranks.divided import brought_together
from .adaptation import Adaptation
from .metric import Metric
from .pyro_face import PyroFace
from .transition import Info, State


class Kernel(PyroFace):
    r"""A transition over a batch of chains.

    It can be given to :class:`pyro_ebm.MCMC`, to ``pyro.infer.MCMC`` and, without a target, to an
    objective or estimator that binds it to an energy.

    Args:
        model: A Pyro model or a :class:`~pyro_ebm.Boltzmann`, if any.
        potential_fn: In its place, a function from a dict of unconstrained values to nats.
        step_size: The step size, or its first value where it is adapted.
        adapt_step_size: Whether warmup adapts the step size.
        adapt_mass_matrix: Whether warmup adapts the metric.
        target_accept_prob: The mean acceptance that adaptation aims at.
        metric_rank: How many directions warmup may stretch beside the coordinates, at most all;
            with ``None`` all up to 100 dimensions, and none of more.

    Raises:
        ValueError: If ``step_size`` is not positive, ``target_accept_prob`` not between 0 and 1,
            ``metric_rank`` negative, or without an adapted metric not 0, or both ``model`` and
            ``potential_fn`` are given.
    """

    branch_free: bool = True
    """Whether ``step`` has no Python branch on a value, so that it can be traced whole."""

    def __init__(
        self,
        model: Model | Boltzmann | None = None,
        *,
        potential_fn: Callable[[dict[str, Tensor]], Tensor] | None = None,
        step_size: float,
        adapt_step_size: bool,
        adapt_mass_matrix: bool,
        target_accept_prob: float,
        metric_rank: int | None = 0,
    ) -> None:
        check_positive("step_size", step_size)
        check_between("target_accept_prob", target_accept_prob, 0, 1, inside=True)
        if metric_rank is not None:
            check_count("metric_rank", metric_rank, least=0)
        if metric_rank != 0 and not adapt_mass_matrix:
            raise ValueError(
                f"metric_rank must be 0 if adapt_mass_matrix=False, got {metric_rank}"
            )
        super().__init__(model, potential_fn)
        self.step_size = float(step_size)
        self.adapt_step_size = adapt_step_size
        self.adapt_mass_matrix = adapt_mass_matrix
        self.target_accept_prob = target_accept_prob
        self.metric_rank = metric_rank

    def bind(  # noqa: D102
        self, args: tuple, kwargs: dict, initial_params: dict[str, Tensor] | None
    ) -> Potential:
        with brought_together() as divided:
            potential = super().bind(args, kwargs, initial_params)
        self.check_divided(divided)
        return potential

    def check_divided(self, divided: Sequence[nn.Module]) -> None:
        """Makes sure that ranks which share an energy would not wait for each other for ever.

        Args:
            divided: The modules of the target that are divided among ranks.

        Raises:
            ValueError: If there are any, and a step may take more gradients on one rank.
        """
        if divided and self.why_not_divided():
            raise ValueError(
                f"{type(self).__name__} cannot sample an energy that is divided among ranks "
                f"(fully_shard): {self.why_not_divided()}"
            )

    def why_not_divided(self) -> str:
        """Says why the parameters of an energy must not be divided among ranks, if so."""
        if self.branch_free:
            return ""
        return (
            f"the steps of {type(self).__name__} take more gradients on one rank than on another, "
            "which would wait for it. Use a kernel whose steps are all alike, as MALA"
        )

    def init(self, potential: Potential, z: Tensor) -> State:
        """Makes the first state of some chains.

        Args:
            potential: The target.
            z: Unconstrained chains, with shape ``(C, D)``.

        Returns:
            The state, with the kernel's own step size and a unit metric.

        Raises:
            ValueError: If the target is discrete.
        """
        if potential.discrete is not None:
            fit = "Gibbs" if potential.discrete.can_sweep else "GibbsWithGradients"
            raise ValueError(
                f"{type(self).__name__} moves continuous sites, and "
                f"'{potential.sites[0].name}' is discrete: sample it with kernels.{fit}"
            )
        value, grad = potential.value_and_grad(z)
        step_size = z.new_tensor(self.step_size)
        return State(z.detach(), value, grad, step_size, Metric.unit(z, self.metric_rank))

    def adaptation(self, warmup_steps: int) -> Adaptation:
        """Makes what tunes the state of chains in warmup.

        Args:
            warmup_steps: The number of steps in which to do it.
        """
        return Adaptation(self, warmup_steps)

    @abstractmethod
    def noise(
        self, state: State, generator: torch.Generator, *num_steps: int
    ) -> tuple[Tensor, ...]:
        """Draws all the randomness of one step, or of ``num_steps``, which come first in shape."""

    def opposite(self, noise: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Turns noise round: as likely as it was, and leading the other way.

        Args:
            noise: What :meth:`noise` drew.
        """
        raise NotImplementedError(f"the noise of {type(self).__name__} cannot be turned round")

    def propose(self, state: State, noise: tuple[Tensor, ...]) -> Tensor | None:
        """Says where a step leads, for a kernel that goes there wherever the potential is finite.

        What is evaluated at the end of such a step serves the next one alone. A run that needs no
        more than where chains end, and will evaluate them there for its own ends, can save that.

        Args:
            state: Where the chains are.
            noise: What :meth:`noise` drew.

        Returns:
            Points ``z``, with shape ``(C, D)``; nothing where a step has to evaluate its end.
        """
        return None

    @abstractmethod
    def step(
        self, potential: Potential, state: State, noise: tuple[Tensor, ...]
    ) -> tuple[State, Info]:
        """Moves every chain once.

        Args:
            potential: The target.
            state: Where the chains are.
            noise: What :meth:`noise` drew.

        Returns:
            Where the chains are now, and what happened.
        """
