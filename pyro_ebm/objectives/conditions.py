"""Conditional energies: whether they use their condition, and how to evaluate them many times.

A conditional energy is a ``functools.partial`` of one, or a closure, that holds a condition for
each datum of a batch.
"""

from __future__ import annotations

__all__ = ["check_uses_conditions", "evaluate_each", "has_conditions_that_learn"]

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from ..distributions import Boltzmann
from ..energies.base import trainable_parameters


def check_uses_conditions(energy: partial, x: Tensor, name: str) -> bool:
    """Checks that an energy depends on what ``functools.partial`` gives it.

    Each condition in turn is moved by one row. One that is used changes the energy or, where
    weights begin at zero, the gradient of its parameters.

    Args:
        energy: The conditional energy.
        x: Data, with shape ``(*batch, *event)``.
        name: The site.

    Returns:
        Whether there was anything to see: a condition that differs between rows.

    Raises:
        ValueError: If neither changes.
    """
    positions = {f"number {i + 1}": value for i, value in enumerate(energy.args)}
    conditions = {
        key: value.detach()
        for key, value in (positions | energy.keywords).items()
        if isinstance(value, Tensor) and value.dim() and bool((value != value[:1]).any())
    }
    if not conditions:
        return False
    before = _response(energy, x)
    for key, value in conditions.items():
        moved = value.roll(1, 0)
        args = [moved if f"number {i + 1}" == key else v for i, v in enumerate(energy.args)]
        keywords = {k: moved if k == key else v for k, v in energy.keywords.items()}
        after = _response(partial(energy.func, *args, **keywords), x)
        if all(map(torch.equal, before, after)):
            raise ValueError(
                f"the energy of site '{name}' ignores its condition {key}: it is the same "
                "whichever datum the condition is taken from, so that no conditional law is "
                "learned; use the condition in the energy, or leave it out"
            )
    return True


def _response(energy: Callable[[Tensor], Tensor], x: Tensor) -> list[Tensor]:
    """Returns the energy, and the gradient of its sum in the parameters."""
    parameters = trainable_parameters(energy)
    with torch.enable_grad():
        value = energy(x)
        if not parameters or not value.requires_grad:
            return [value]
        grads = torch.autograd.grad(value.sum(), parameters, materialize_grads=True)
    return [value.detach(), *grads]


def has_conditions_that_learn(boltzmann: Boltzmann) -> bool:
    """Tells whether a law moves with something else than the parameters of its energy.

    That is a temperature, what ``functools.partial`` gives the energy, or data that the energy was
    built of, which came from a ``pyro.param``, a network or a latent.

    Args:
        boltzmann: The distribution.
    """
    found: list[object] = [boltzmann.temperature]
    energy = boltzmann.energy
    while isinstance(energy, partial):
        found += (*energy.args, *energy.keywords.values())
        energy = energy.func
    if isinstance(energy, nn.Module):
        found += energy.buffers()
    return any(isinstance(value, Tensor) and value.requires_grad for value in found)


def evaluate_each(
    fn: Callable[[Boltzmann, Tensor], Tensor], boltzmann: Boltzmann, stack: Tensor
) -> Tensor:
    """Evaluates a log density at a stack of batches.

    A module takes all at once. Any other callable may hold a condition for each datum, and is
    called with one batch after the other.

    Args:
        fn: The log density, of a distribution and a batch ``(*batch, *event)``, to nats
            ``(*batch,)``.
        boltzmann: The distribution.
        stack: Batches, with shape ``(S, *batch, *event)``.

    Returns:
        The values in nats, with shape ``(S, *batch)``.
    """
    if isinstance(boltzmann.energy, nn.Module):
        return fn(boltzmann, stack)
    return torch.stack([fn(boltzmann, x) for x in stack])
