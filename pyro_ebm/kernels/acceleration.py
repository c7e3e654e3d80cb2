"""A kernel and its target on the highest rung of the engine."""

from __future__ import annotations

__all__ = ["accelerated"]

import torch
from torch import Tensor

from ..engine import Accelerated, Compile, accelerate
from ..potential import Potential
from .base import Kernel
from .transition import Info, State


class _Traced:
    """A kernel whose step is one graph; it stands for the kernel in ``run``."""

    def __init__(self, kernel: Kernel, step: Accelerated) -> None:
        self.noise = kernel.noise
        self._step = step

    def step(
        self, potential: Potential, state: State, noise: tuple[Tensor, ...]
    ) -> tuple[State, Info]:
        """Moves every chain once; the potential is in the graph."""
        return self._step(state, noise)


def accelerated(
    kernel: Kernel,
    potential: Potential,
    state: State,
    compile: Compile,
) -> tuple[Kernel | _Traced, Potential, Accelerated]:
    """Prepares a kernel and its target for many steps from ``state``.

    A kernel whose step is free of branches becomes one graph, its target's gradient within; of
    others, the gradient alone does.

    Args:
        kernel: The kernel.
        potential: Its target.
        state: A state of as many chains as will be moved.
        compile: See :func:`pyro_ebm.engine.accelerate`.

    Returns:
        What to run in place of the kernel and of the target, and the rung that was reached.
    """
    if kernel.branch_free:
        noise = kernel.noise(state, torch.Generator(device=state.z.device).manual_seed(0))
        step = accelerate(lambda s, n: kernel.step(potential, s, n), (state, noise), compile)
        return _Traced(kernel, step), potential, step
    gradient = accelerate(potential.value_and_grad, (state.z,), compile)
    return kernel, Potential(gradient, potential.sites, potential.start), gradient
