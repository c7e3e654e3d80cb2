"""The potential of one chain as a potential of all: value and gradient, mapped over chains."""

from __future__ import annotations

__all__ = ["ValueAndGrad", "batched_value_and_grad"]

import contextlib
import warnings
from collections.abc import Callable, Iterator

import pyro
import pyro.ops.einsum.torch_log
import torch
from torch import Tensor

ValueAndGrad = Callable[..., tuple[Tensor, Tensor]]


def batched_value_and_grad(fn: Callable[..., Tensor]) -> ValueAndGrad:
    """Returns value and gradient of ``fn`` for all chains at once.

    Args:
        fn: The potential of one chain, from ``z (D,)``, and what else it takes, to nats ``()``.

    Returns:
        A function from ``z (C, D)``, and what else with chains first, to nats ``(C,)`` and their
        gradient in z ``(C, D)``.
    """

    def value_then_grad(z: Tensor, *rest: Tensor) -> tuple[Tensor, Tensor]:
        grad, value = torch.func.grad_and_value(fn)(z, *rest)
        return value, grad

    mapped = torch.func.vmap(value_then_grad, randomness="different")
    rung = mapped

    def evaluate(z: Tensor, *rest: Tensor) -> tuple[Tensor, Tensor]:
        nonlocal rung
        with pyro.validation_enabled(False), _mappable_log():
            try:
                value, grad = rung(z.detach(), *rest)
            except RuntimeError as error:
                if rung is not mapped:
                    raise
                warnings.warn(
                    f"this model runs one chain after the other, because vmap stopped at: {error}",
                    stacklevel=2,
                )
                rung = _one_by_one(fn)
                value, grad = rung(z.detach(), *rest)
        return value.detach(), grad.detach()

    return evaluate


def _one_by_one(fn: Callable[..., Tensor]) -> ValueAndGrad:
    def evaluate(z: Tensor, *rest: Tensor) -> tuple[Tensor, Tensor]:
        values, grads = [], []
        for row, *others in zip(z, *rest, strict=True):
            row = row.clone().requires_grad_()
            value = fn(row, *others)
            values.append(value.detach())
            grads.append(torch.autograd.grad(value, row)[0])
        return torch.stack(values), torch.stack(grads)

    return evaluate


class _SafeLog(torch.autograd.Function):
    """The logarithm of Pyro's enumeration, bounded in gradient, in a form that vmap accepts."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x.log()

    @staticmethod
    def setup_context(
        ctx: torch.autograd.function.FunctionCtx, inputs: tuple, output: Tensor
    ) -> None:
        ctx.save_for_backward(inputs[0])

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return grad / x.clamp(min=torch.finfo(x.dtype).eps)


@contextlib.contextmanager
def _mappable_log() -> Iterator[None]:
    original = pyro.ops.einsum.torch_log.safe_log
    pyro.ops.einsum.torch_log.safe_log = _SafeLog.apply
    try:
        yield
    finally:
        pyro.ops.einsum.torch_log.safe_log = original
