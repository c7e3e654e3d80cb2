"""The state of a training run at one step, kept in memory."""

from __future__ import annotations

__all__ = ["Checkpoint", "objective_of"]

import copy
from collections.abc import Iterable

import torch
from pyro.infer import SVI
from torch import Tensor

from .base import Objective


class Checkpoint:
    """What an SVI would need to go on from a step as if nothing had happened since.

    It holds the parameters, the state of the optimizer, and of an objective all that it remembers:
    chains, their random generators, the step size of its kernel. Torch's global random state is
    not part of it.

    Args:
        svi: The SVI, at that step.
        step: How many updates were made before.
        tensors: The parameters and buffers that updates change.
    """

    def __init__(self, svi: SVI, step: int, tensors: Iterable[Tensor] = ()) -> None:
        self.step = step
        self._values: dict[Tensor, Tensor] = {}
        self.add(tensors)
        self._optim = svi.optim
        waiting = svi.optim._state_waiting_to_be_consumed
        self._optim_state = copy.deepcopy({**waiting, **svi.optim.get_state()})
        # An objective puts new values into its dicts, and changes none in place.
        self._memory = {name: dict(kept) for name, kept in _memory(svi).items()}
        self._generators = [
            (generator, generator.get_state())
            for kept in self._memory.values()
            for generator in kept.values()
            if isinstance(generator, torch.Generator)
        ]
        kernel = getattr(objective_of(svi), "kernel", None)
        self._step_size = getattr(kernel, "step_size", None)

    def add(self, tensors: Iterable[Tensor]) -> None:
        """Keeps tensors as they are now, but for those that it has."""
        for tensor in tensors:
            if tensor not in self._values:
                self._values[tensor] = tensor.detach().clone()

    @torch.no_grad()
    def restore(self, svi: SVI) -> None:
        """Puts everything back. An optimizer that took the place of the kept one begins anew."""
        for tensor, value in self._values.items():
            tensor.copy_(value)
        svi.optim.optim_objs.clear()
        if svi.optim is self._optim:
            svi.optim.set_state(copy.deepcopy(self._optim_state))
        for name, kept in _memory(svi).items():
            kept.clear()
            kept.update(self._memory.get(name, {}))
        for generator, state in self._generators:
            generator.set_state(state)
        if self._step_size is not None:
            objective_of(svi).kernel.step_size = self._step_size


def objective_of(svi: SVI) -> Objective | None:
    """Returns the objective that is the loss of an SVI, if it is one."""
    loss = getattr(svi.loss_and_grads, "__self__", None)
    return loss if isinstance(loss, Objective) else None


def _memory(svi: SVI) -> dict[str, dict]:
    """Returns all that the objective of an SVI keeps by name of site or device."""
    objective = objective_of(svi)
    found = {} if objective is None else vars(objective)
    return {name: kept for name, kept in found.items() if isinstance(kept, dict)}
