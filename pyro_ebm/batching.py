"""A function of one chain as a function of all; the potential with its gradient, too."""

from __future__ import annotations

__all__ = ["batched", "batched_value_and_grad", "value_and_grad_of"]

import contextlib
import warnings
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import pyro
import pyro.distributions.hmm
import pyro.ops.special
import torch
from torch import Tensor
from torch.distributions import Multinomial
from torch.distributions.utils import broadcast_all
from torch.fx.experimental.proxy_tensor import get_proxy_mode

from .validation import unvalidated

Values = dict[str, Tensor]


def value_and_grad_of(value: Callable[[Tensor], Tensor]) -> Callable[[Tensor], tuple]:
    """Returns the value and gradient of a function that takes all chains at once.

    Args:
        value: From ``z (C, D)`` to nats ``(C,)``; a chain's own row alone decides its value.

    Returns:
        A function from ``z`` to the values ``(C,)`` and their gradients ``(C, D)``.
    """

    def evaluate(z: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            z = z.detach().requires_grad_()
            values = value(z)
            if not values.requires_grad:
                raise ValueError(
                    "the energy has no gradient in x: sample with kernels.RandomWalk, or if x is "
                    "discrete with kernels.SingleFlip or kernels.Gibbs, which ask for none"
                )
            (grad,) = torch.autograd.grad(values.sum(), z)
        return values.detach(), grad

    return evaluate


def batched_value_and_grad(fn: Callable[..., Tensor]) -> Callable[..., tuple[Tensor, Values]]:
    """Returns value and gradient of ``fn`` for all chains at once.

    Args:
        fn: The potential of one chain, from its values by name, and what else it takes, to nats
            ``()``.

    Returns:
        A function from values by name, and what else, all with chains first, to nats ``(C,)`` and
        their gradients by name.
    """

    def value_then_grad(values: Values, *rest: Tensor) -> tuple[Tensor, Values]:
        grad, value = torch.func.grad_and_value(fn)(values, *rest)
        return value, grad

    mapped = torch.func.vmap(value_then_grad, randomness="different")
    rungs = _or_else(mapped, _one_by_one(fn))

    def evaluate(values: Values, *rest: Tensor) -> tuple[Tensor, Values]:
        value, grad = rungs(values, *rest)
        return value.detach(), {name: part.detach() for name, part in grad.items()}

    return evaluate


def batched(fn: Callable[..., Any]) -> Callable[..., Any]:
    """Returns a function of one chain as a function of all chains at once.

    Args:
        fn: From tensors to a tensor or a tuple of tensors.

    Returns:
        The same with chains first in all of them.

    Example:
        >>> lengths = batched(lambda x: x.square().sum().sqrt())
        >>> lengths(torch.ones(3, 4))
        tensor([2., 2., 2.])
    """

    def one_by_one(*args: Tensor) -> Any:  # noqa: ANN401
        found = [fn(*rows) for rows in zip(*args, strict=True)]
        if isinstance(found[0], Tensor):
            return torch.stack(found)
        return tuple(map(torch.stack, zip(*found, strict=True)))

    return _or_else(torch.func.vmap(fn, randomness="different"), one_by_one)


def _or_else(mapped: Callable[..., Any], one_by_one: Callable[..., Any]) -> Callable[..., Any]:
    """The first of two functions, until it fails; then, with a warning, the second.

    What fails as it is traced may be the tracer's fault, and says nothing.
    """
    rung = mapped

    def evaluate(*args: Any) -> Any:  # noqa: ANN401
        nonlocal rung
        with unvalidated(), _mappable():
            try:
                return rung(*args)
            except RuntimeError as error:
                if rung is not mapped or get_proxy_mode() is not None:
                    raise
                warnings.warn(
                    f"this model runs one chain after the other, because vmap stopped at: {error}",
                    stacklevel=3,
                )
                rung = one_by_one
                return rung(*args)

    return evaluate


def _one_by_one(fn: Callable[..., Tensor]) -> Callable[..., tuple[Tensor, Values]]:
    @torch.enable_grad()
    def evaluate(values: Values, *rest: Tensor) -> tuple[Tensor, Values]:
        found, grads = [], {name: [] for name in values}
        for c in range(len(next(iter(values.values())))):
            one = {name: value[c].clone().requires_grad_() for name, value in values.items()}
            value = fn(one, *(part[c] for part in rest))
            found.append(value.detach())
            of_one = torch.autograd.grad(value, list(one.values()), materialize_grads=True)
            for name, grad in zip(one, of_one, strict=True):
                grads[name].append(grad)
        return torch.stack(found), {name: torch.stack(rows) for name, rows in grads.items()}

    return evaluate


def _log_prob_of_multinomial(self: Multinomial, value: Tensor) -> Tensor:
    """What torch's does, without an index by booleans, whose shape depends on their values."""
    logits, value = broadcast_all(self.logits, value)
    logits = logits.masked_fill((value == 0) & (logits == -torch.inf), 0)
    arrangements = (value.sum(-1) + 1).lgamma() - (value + 1).lgamma().sum(-1)
    return arrangements + (logits * value).sum(-1)


def _logmatmulexp(x: Tensor, y: Tensor) -> Tensor:
    """What Pyro's hidden chains do, without a bound set in place, of which vmap makes a loop."""
    least = torch.finfo(x.dtype).min
    x_shift = x.detach().amax(-1, keepdim=True).clamp(min=least)
    y_shift = y.detach().amax(-2, keepdim=True).clamp(min=least)
    product = torch.matmul((x - x_shift).exp(), (y - y_shift).exp())
    return _SafeLog.apply(product) + x_shift + y_shift


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
def _mappable() -> Iterator[None]:
    """Has Pyro and torch evaluate in a form that vmap accepts."""
    with (
        mock.patch.object(pyro.ops.special, "_SafeLog", _SafeLog),
        mock.patch.object(pyro.distributions.hmm, "_logmatmulexp", _logmatmulexp),
        mock.patch.object(Multinomial, "log_prob", _log_prob_of_multinomial),
    ):
        yield
