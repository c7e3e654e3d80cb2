r"""What a transition passes on, and the only sampling loop of the package.

Chains are the first dimension of every tensor. All that the next step needs is in the
:class:`State`; what it does not need is in the :class:`Info`.
"""

from __future__ import annotations

__all__ = [
    "Info",
    "State",
    "acceptance",
    "block_noise",
    "blocks",
    "metropolis",
    "noise_of",
    "noises",
    "normal_like",
    "run",
    "run_block",
    "seeded_generator",
    "statistics",
    "uniform_like",
]

from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from ..layout import empty_like
from ..potential import Potential
from ..ranks.group import first
from .adaptation import Adaptation
from .metric import Metric

if TYPE_CHECKING:
    from .base import Kernel


class State(NamedTuple):
    """What the next step needs."""

    z: Tensor
    """Unconstrained chains, with shape ``(C, D)``."""
    potential: Tensor
    """U at ``z`` in nats, with shape ``(C,)``."""
    grad: Tensor
    """The gradient of U at ``z``, with shape ``(C, D)``."""
    step_size: Tensor
    """The step size of all chains, 0-d."""
    metric: Metric
    """The units of length of coordinates and directions."""


class Info(NamedTuple):
    """What happened in a step, per chain ``(C,)``; ``None`` where it has no meaning."""

    diverging: Tensor
    """Whether the proposal had a non-finite (or absurdly high) energy; it was rejected."""
    accept_prob: Tensor | None = None
    """The Metropolis acceptance probability."""
    accepted: Tensor | None = None
    """Whether the proposal was taken."""
    energy: Tensor | None = None
    """The Hamiltonian of the new state, for kernels with a momentum."""
    num_steps: Tensor | None = None
    """The number of leapfrog steps."""
    tree_depth: Tensor | None = None
    """How often the trajectory was doubled."""
    reached_max_treedepth: Tensor | None = None
    """Whether nothing but the limit on its depth ended the trajectory."""


BLOCK_STEPS = 64
BLOCK_NUMBERS = 2**20
"""For how many steps noise is drawn at once: so many, and no more than that many numbers."""

FIRST_STEPS = 8
"""After fewer at first, so that what a step takes is known soon."""


def run(
    kernel: Kernel,
    potential: Potential,
    state: State,
    num_steps: int,
    generator: torch.Generator,
    adaptation: Adaptation | None = None,
) -> Iterator[tuple[State, Info]]:
    """Moves the chains step by step: the only sampling loop.

    Args:
        kernel: The transition.
        potential: The target.
        state: Where the chains begin.
        num_steps: How many steps to make.
        generator: Where the noise comes from.
        adaptation: What tunes the state after each step; none for draws to keep.

    Yields:
        The state and what happened, after each step.
    """
    for length in blocks(state.z, num_steps):
        steps = run_block(kernel, potential, state, length, generator, adaptation)
        for state, info in steps:
            yield state, info


def run_block(
    kernel: Kernel,
    potential: Potential,
    state: State,
    num_steps: int,
    generator: torch.Generator,
    adaptation: Adaptation | None,
) -> Iterator[tuple[State, Info]]:
    """Makes the steps of one block, whose noise is drawn at once.

    Args:
        kernel: The transition.
        potential: The target.
        state: Where the chains begin.
        num_steps: The number of steps.
        generator: Where the noise comes from.
        adaptation: What tunes the state after each step, if anything.

    Yields:
        The state and what happened, after each step.
    """
    drawn = block_noise(kernel, state, generator, num_steps, adaptation)
    for noise in zip(*drawn, strict=True):
        state, info = kernel.step(potential, state, noise)
        if adaptation is not None:
            state = adaptation.update(state, info)
        yield state, info


def block_noise(
    kernel: Kernel,
    state: State,
    generator: torch.Generator,
    num_steps: int,
    adaptation: Adaptation | None,
) -> tuple[Tensor, ...]:
    """Draws the noise of a block of steps.

    In warmup, in which ranks wait for one another at every step, they have in common what is drawn
    once for all chains, such as how long a trajectory is.

    Args:
        kernel: The transition.
        state: A state of the chains.
        generator: Where the noise comes from.
        num_steps: The number of steps.
        adaptation: What tunes the state after each step, if anything.
    """
    noise = kernel.noise(state, generator, num_steps)
    if adaptation is None:
        return noise
    return tuple(first(part) if part.dim() == 1 else part for part in noise)


def noise_of(
    kernel: Kernel,
    state: State,
    generator: torch.Generator,
    num_steps: int,
    *,
    in_pairs: bool = False,
) -> tuple[Tensor, ...]:
    """Draws the noise of some steps.

    Args:
        kernel: The transition.
        state: A state of the chains.
        generator: Where the noise comes from.
        num_steps: The number of steps, the first dimension of the noise.
        in_pairs: Whether the second half of the chains takes the opposite of that of the first,
            as the kernel knows it.
    """
    if not in_pairs:
        return kernel.noise(state, generator, num_steps)
    n = len(state.z) // 2
    half = state._replace(z=state.z[:n], potential=state.potential[:n])
    first = kernel.noise(half, generator, num_steps)
    return tuple(torch.cat(both, 1) for both in zip(first, kernel.opposite(first), strict=True))


def noises(
    kernel: Kernel,
    state: State,
    generator: torch.Generator,
    num_steps: int,
    *,
    in_pairs: bool = False,
) -> Iterator[tuple[Tensor, ...]]:
    """Yields the noise of each step, drawn for many at once.

    Args:
        kernel: The transition.
        state: A state of the chains.
        generator: Where the noise comes from.
        num_steps: The number of steps in all.
        in_pairs: As :func:`noise_of` takes it.
    """
    for length in blocks(state.z, num_steps):
        noise = noise_of(kernel, state, generator, length, in_pairs=in_pairs)
        yield from zip(*noise, strict=True)


def blocks(z: Tensor, num_steps: int, done: int = 0) -> Iterator[int]:
    """Yields the lengths of the blocks of steps whose noise is drawn at once.

    Args:
        z: The chains, with shape ``(C, D)``.
        num_steps: The number of steps in all.
        done: How many of them were made before; of other numbers of chains blocks are others, and
            then the first one ends where theirs do.
    """
    longest = max(1, min(BLOCK_STEPS, BLOCK_NUMBERS // max(1, z.numel())))
    begin, length = 0, min(FIRST_STEPS, longest)
    while begin < num_steps:
        end = min(begin + length, num_steps)
        if end > done:
            yield end - max(begin, done)
        begin, length = end, longest


def acceptance(log_ratio: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
    r"""Accepts with probability :math:`\min(1, e^{\log r})`; never a NaN.

    Args:
        log_ratio: The log Metropolis ratio, with shape ``(C,)``.
        uniform: Uniform draws, with shape ``(C,)``.

    Returns:
        The acceptance probability ``(C,)`` and whether to accept ``(C,)``.
    """
    log_ratio = log_ratio.to(uniform.dtype)
    accept_prob = torch.where(log_ratio > -torch.inf, log_ratio.clamp(max=0).exp(), 0.0)
    return accept_prob, uniform < accept_prob


def metropolis(
    state: State, proposal: State, log_ratio: Tensor, uniform: Tensor
) -> tuple[State, Tensor, Tensor]:
    r"""Accepts each chain's proposal with probability :math:`\min(1, e^{\log r})`; never a NaN.

    Args:
        state: Where the chains are.
        proposal: Where they may go.
        log_ratio: The log Metropolis ratio, with shape ``(C,)``.
        uniform: Uniform draws, with shape ``(C,)``.

    Returns:
        The new state, the acceptance probability ``(C,)`` and whether each chain moved ``(C,)``.
    """
    accept_prob, accepted = acceptance(log_ratio, uniform)
    rows = accepted.unsqueeze(-1)
    moved = state._replace(
        z=torch.where(rows, proposal.z, state.z),
        potential=torch.where(accepted, proposal.potential, state.potential),
        grad=torch.where(rows, proposal.grad, state.grad),
    )
    return moved, accept_prob, accepted


def normal_like(x: Tensor, generator: torch.Generator, *num_steps: int) -> Tensor:
    """Draws standard normal noise of the shape of ``x``, once or for ``num_steps`` steps."""
    room, found = empty_like(x, *num_steps)
    room.normal_(generator=generator)
    return found


def uniform_like(x: Tensor, generator: torch.Generator, *num_steps: int) -> Tensor:
    """Draws uniform noise in [0, 1) of the shape of ``x``, once or for ``num_steps`` steps."""
    return x.new_empty((*num_steps, *x.shape)).uniform_(generator=generator)


def seeded_generator(device: torch.device) -> torch.Generator:
    """Makes a generator seeded by torch's global one, so that ``pyro.set_rng_seed`` rules."""
    seed = int(torch.randint(2**62, ()))
    return torch.Generator(device=device).manual_seed(seed)


def statistics(state: State, info: Info) -> dict[str, Tensor]:
    """Names what happened in a step as ArviZ does.

    Args:
        state: Where the chains are.
        info: What happened.

    Returns:
        Tensors of shape ``(*, C)``, those that mean something for the kernel: ``lp`` is the log
        density in unconstrained space up to a constant, ``energy`` the Hamiltonian.
    """
    named = {
        "lp": -state.potential,
        "step_size": state.step_size.unsqueeze(-1).expand_as(state.potential),
        "diverging": info.diverging,
        "acceptance_rate": info.accept_prob,
        "accepted": info.accepted,
        "energy": info.energy,
        "n_steps": info.num_steps,
        "tree_depth": info.tree_depth,
        "reached_max_treedepth": info.reached_max_treedepth,
    }
    return {name: values for name, values in named.items() if values is not None}
