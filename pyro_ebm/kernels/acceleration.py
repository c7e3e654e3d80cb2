"""A kernel and its target on the highest rung of the engine."""

from __future__ import annotations

__all__ = ["AsynchronousKernel", "History", "Runner", "traced"]

import functools
from abc import abstractmethod
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map_only

from ..engine import Compile, Graph, Rung, compile_block, compile_scan, trace
from ..intractable import Intractable
from ..layout import copy_in_order, memory_order
from ..potential import Potential
from .adaptation import Adaptation
from .base import Kernel
from .recall import recall, remember
from .transition import Info, State, block_noise, blocks, run_block

WORTH_TRACING = 100
"""The number of steps below which tracing would take longer than it saves."""

WORTH_COMPILING = 30.0
"""The seconds of steps to come above which the seven that compiling takes are well spent: four
times as many, since the first trajectories are longer than those to come (kidscore_momiq, arK and
blr of posteriordb, foreseen to take 15 to 30 seconds, took less than six)."""

SECONDS_PER_OPERATION = 4e-6
SECONDS_PER_BYTE = 2e-10
"""What an operation of a graph takes on a CPU, about, and each byte that it makes."""


MOST_LEAPFROGS = 4096
"""The batched leapfrogs after which a block of steps of an asynchronous kernel should be over, so
that its progress is seen and an interrupt loses little."""


class AsynchronousKernel(Kernel):
    """A kernel whose chains do not wait for one another within a block of steps.

    A chain's own state and row k of the noise alone decide its step k, so that blocks of any
    lengths give the same draws.
    """

    branch_free = False

    @abstractmethod
    def block(
        self, potential: Potential, state: State, noise: tuple[Tensor, ...]
    ) -> tuple[State, State, Info]:
        """Moves every chain as often as the noise has rows.

        Args:
            potential: The target.
            state: Where the chains are.
            noise: What ``noise`` drew for a number of steps.

        Returns:
            Where the chains are now, where they were after each step, and what happened in each:
            the latter two with a first dimension over steps.
        """


class History(NamedTuple):
    """What is kept of consecutive steps, which come first in every shape."""

    z: Tensor
    potential: Tensor
    step_size: Tensor
    info: Info


class Runner:
    """Moves chains on the highest rung that their kernel and target reach.

    Args:
        kernel: The kernel.
        potential: Its target.
        state: A state of as many chains as will be moved.
        num_steps: How many steps will be made in all.
        compile: ``"auto"`` traces a step into its graph, and compiles loops of steps once the
            steps to come would take longer otherwise; ``True`` compiles at once, ``False`` leaves
            all as it is.
    """

    def __init__(
        self,
        kernel: Kernel,
        potential: Potential,
        state: State,
        num_steps: int,
        compile: Compile,
    ) -> None:
        self._recipe = self._kernel = kernel
        self._potential = potential
        self._steps_left = num_steps
        self._native: Callable | None = None
        self._may_compile = False
        self._longest = MOST_LEAPFROGS
        self._orders: list[tuple[int, ...]] = []
        if compile is False or (compile == "auto" and num_steps < WORTH_TRACING):
            reason = f"compile={compile}" if compile is False else f"only {num_steps} steps"
            self.rung: Rung = Rung(None, "eager", reason)
            return
        self._kernel, self._potential, self.rung = traced(kernel, potential, state)
        self._may_compile = self.rung.name == "graph"
        if compile is True and self._may_compile:
            self._go_native(state)

    def _go_native(self, state: State) -> None:
        self._may_compile = False
        self._orders = [memory_order(x) for x in tree_leaves(state) if isinstance(x, Tensor)]
        graph = self.rung.fn
        known = recall(self._recipe, graph, state)
        self.rung = known or self._compiled(graph, state)
        self._native = self.rung.fn
        if not known and self._native is not None:
            remember(self._recipe, graph, state, self.rung)

    def _compiled(self, graph: Graph, state: State) -> Rung:
        kernel, potential = self._kernel, self._potential
        graph.rewrite()
        generator = torch.Generator(device=state.z.device).manual_seed(0)
        if isinstance(kernel, AsynchronousKernel):
            block = functools.partial(kernel.block, potential)
            return compile_block(block, state, kernel.noise(state, generator, 2), graph.size)

        def step(state: State, noise: tuple[Tensor, ...]) -> tuple[State, History]:
            state, info = kernel.step(potential, state, noise)
            return state, History(state.z, state.potential, state.step_size, info)

        return compile_scan(step, state, kernel.noise(state, generator, 1), graph.size)

    def run(
        self,
        state: State,
        num_steps: int,
        generator: torch.Generator,
        adaptation: Adaptation | None = None,
    ) -> Iterator[tuple[State, History]]:
        """Moves the chains.

        Args:
            state: Where the chains begin.
            num_steps: How many steps to make.
            generator: Where the noise comes from.
            adaptation: What tunes the state after each step; none for draws to keep.

        Yields:
            The state after some steps, and the history of these steps.
        """
        for length in blocks(state.z, num_steps):
            for moved, history in self.block(state, length, generator, adaptation):
                state = moved
                yield state, history

    def block(
        self,
        state: State,
        length: int,
        generator: torch.Generator,
        adaptation: Adaptation | None = None,
    ) -> Iterator[tuple[State, History]]:
        """Makes the steps of one block, as :meth:`run` does of several.

        Args:
            state: Where the chains are.
            length: How many steps to make.
            generator: Where the noise comes from.
            adaptation: What tunes the state after each step; none for draws to keep.
        """
        walk = self._step_by_step if self._native is None else self._as_one
        if isinstance(self._kernel, AsynchronousKernel):
            walk = self._asynchronously
        gradients = torch.zeros((), dtype=torch.double, device=state.z.device)
        for moved, history in walk(state, length, generator, adaptation):
            yield moved, history
            num_steps = history.info.num_steps
            gradients += len(history.z) if num_steps is None else num_steps.double().mean(1).sum()
        self._steps_left -= length
        if self._may_compile and self._seconds_left(gradients / length) > WORTH_COMPILING:
            self._go_native(moved)

    def state_dict(self) -> dict[str, Any]:
        """Returns on which rung it is after a block, and what decides on the next."""
        return {
            "steps_left": self._steps_left,
            "may_compile": self._may_compile,
            "native": self._native is not None,
            "orders": self._orders,
            "longest": self._longest,
        }

    def load_state_dict(self, found: dict[str, Any], state: State) -> None:
        """Goes to the rung that another one was on, which had begun at an equal state.

        Args:
            found: What :meth:`state_dict` of it returned.
            state: Where the chains are now.
        """
        self._steps_left, self._longest = found["steps_left"], found["longest"]
        if found["native"] and self._native is None:
            orders = iter(found["orders"])
            self._go_native(
                tree_map_only(Tensor, lambda leaf: copy_in_order(leaf, next(orders)), state)
            )
        self._may_compile = found["may_compile"]

    def _seconds_left(self, gradients: Tensor) -> float:
        """What the steps to come would take as a graph, if each takes so many gradients.

        No clock is read, so that a seed gives the same run on every day.
        """
        graph = self.rung.fn
        each = SECONDS_PER_OPERATION * graph.size + SECONDS_PER_BYTE * graph.num_bytes
        return self._steps_left * gradients.item() * each

    def _step_by_step(
        self,
        state: State,
        num_steps: int,
        generator: torch.Generator,
        adaptation: Adaptation | None,
    ) -> Iterator[tuple[State, History]]:
        for now, info in run_block(
            self._kernel, self._potential, state, num_steps, generator, adaptation
        ):
            of_state = (now.z[None], now.potential[None], now.step_size[None])
            yield now, History(*of_state, _each(info, lambda field: field[None]))

    def _as_one(
        self,
        state: State,
        num_steps: int,
        generator: torch.Generator,
        adaptation: Adaptation | None,
    ) -> Iterator[tuple[State, History]]:
        noise = block_noise(self._kernel, state, generator, num_steps, adaptation)
        if adaptation is None:
            yield self._native(state, noise)
            return
        for k in range(num_steps):
            state, history = self._native(state, tuple(x[k : k + 1] for x in noise))
            state = adaptation.update(state, _each(history.info, lambda field: field[0]))
            yield state, history

    def _asynchronously(
        self,
        state: State,
        num_steps: int,
        generator: torch.Generator,
        adaptation: Adaptation | None,
    ) -> Iterator[tuple[State, History]]:
        noise = block_noise(self._kernel, state, generator, num_steps, adaptation)
        block = self._native or functools.partial(self._kernel.block, self._potential)
        begun = 0
        while begun < num_steps:
            # A step size that lags behind what was learnt would set dual averaging swinging.
            length = 1 if adaptation is not None else max(1, MOST_LEAPFROGS // self._longest)
            rows = tuple(part[begun : begun + length] for part in noise)
            state, after, info = block(state, rows)
            made = len(after.z)
            history = History(after.z, after.potential, state.step_size.expand(made), info)
            if adaptation is not None:
                state = adaptation.update(state, _each(info, lambda field: field[0]))
            self._longest = int(info.num_steps.max())
            begun += made
            yield state, history


def _each(info: Info, change: Callable[[Tensor], Tensor]) -> Info:
    return Info(*(None if field is None else change(field) for field in info))


class _Traced:
    """A kernel whose step is one graph; it stands for the kernel in ``run``."""

    def __init__(self, kernel: Kernel, step: Rung) -> None:
        self.noise = kernel.noise
        self._step = step.fn

    def step(
        self, potential: Potential, state: State, noise: tuple[Tensor, ...]
    ) -> tuple[State, Info]:
        """Moves every chain once; the potential is in the graph."""
        return self._step(state, noise)


def traced(
    kernel: Kernel, potential: Potential, state: State
) -> tuple[Kernel | _Traced, Potential, Rung]:
    """Takes a kernel and its target to their graph.

    A kernel whose step is free of branches becomes one graph, its target's gradient within; of
    others, the gradient alone does, if they have a use for it.

    Args:
        kernel: The kernel.
        potential: Its target.
        state: A state of as many chains as will be moved.

    Returns:
        What to run in place of the kernel and of the target, and the rung that was reached.
    """
    if isinstance(potential, Intractable):
        potential = potential.traced()
        return kernel, potential, potential.rung
    if kernel.branch_free:
        noise = kernel.noise(state, torch.Generator(device=state.z.device).manual_seed(0))
        step = trace(lambda s, n: kernel.step(potential, s, n), (state, noise))
        return _Traced(kernel, step), potential, step
    if potential.discrete is not None:
        return kernel, potential, Rung(None, "eager", f"{type(kernel).__name__} has branches")
    gradients = _Gradients(potential)
    gradient = gradients.of(state.z)
    target = Potential(gradients, potential.sites, potential.start, within=potential.within)
    return kernel, target, gradient


class _Gradients:
    """The graph of a gradient, one for each number of rows that a kernel asks for.

    Parallel tempering moves several replicas of each chain.
    """

    def __init__(self, potential: Potential) -> None:
        self._value_and_grad = potential.value_and_grad
        self._by_rows: dict[int, Rung] = {}

    def of(self, z: Tensor) -> Rung:
        """The rung that so many rows reach."""
        if len(z) not in self._by_rows:
            self._by_rows[len(z)] = trace(self._value_and_grad, (z,))
        return self._by_rows[len(z)]

    def __call__(self, z: Tensor) -> tuple[Tensor, Tensor]:
        return self.of(z).fn(z)
