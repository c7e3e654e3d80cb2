"""The only home of tracing, batching and compiling.

A potential of one chain becomes one of all chains, and a step of a kernel becomes a flat graph of
tensor operations, in which Pyro, autograd and Python have disappeared. The rungs, from the bottom:

=========== ====================================================================================
rung        what runs
=========== ====================================================================================
one by one  the model, one chain after the other: for models that cannot be mapped (a Python
            branch on a latent, say)
eager       ``vmap`` of value and gradient, or the energy on its batch
graph       the traced ATen graph of that, with the same numbers bit for bit
native      the graph compiled by inductor, with the same numbers to rounding
=========== ====================================================================================

Each rung is checked once against the one below, on real input. A rung that cannot be reached costs
one warning that says why, never a run.
"""

from __future__ import annotations

__all__ = ["Accelerated", "Compile", "ValueAndGrad", "accelerate", "batched_value_and_grad"]

import contextlib
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import pyro
import pyro.ops.einsum.torch_log
import torch
from torch import Tensor
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._pytree import tree_flatten, tree_unflatten

Compile = bool | Literal["auto"]
ValueAndGrad = Callable[[Tensor], tuple[Tensor, Tensor]]

MAX_NATIVE_OPS = 1500
"""The size of a graph above which inductor would take minutes; such a graph stays on its rung."""


class Accelerated:
    """A function of tensors, on the highest rung that it reached.

    Args:
        fn: The function, from tensors (or nested tuples of them) to the same.
        rung: The rung, by name.
        reason: Why this one.

    Example:
        >>> square = accelerate(torch.square, (torch.ones(3),), compile="auto")
        >>> square(torch.full((3,), 2.0)), square.rung
        (tensor([4., 4., 4.]), 'graph')
    """

    def __init__(self, fn: Callable, rung: str, reason: str) -> None:
        self.fn = fn
        self.rung = rung
        self.reason = reason

    def __call__(self, *args: Any) -> Any:  # noqa: ANN401  what the function takes and returns
        """Calls the function."""
        return self.fn(*args)

    def __str__(self) -> str:
        return f"{self.rung} ({self.reason})"


def accelerate(fn: Callable, args: tuple, compile: Compile = "auto") -> Accelerated:
    """Takes a function up the rungs.

    The function must be free of side effects and of randomness; its parameters may change between
    calls (they are live in the graph), the shapes of its arguments may not.

    Args:
        fn: The function, from tensors (or nested tuples of them) to the same.
        args: Real arguments, to trace and check it with.
        compile: ``"auto"`` traces it, ``True`` compiles the trace too, ``False`` leaves it alone.

    Returns:
        The function on its rung.
    """
    if compile is False:
        return Accelerated(fn, "eager", "compile=False")
    leaves, spec_in = tree_flatten(args)
    with torch.no_grad():
        try:
            graph = _Graph(fn, leaves, spec_in)
            graph.check(fn(*args), leaves)
        except (RuntimeError, TypeError, NotImplementedError, ValueError) as error:
            reason = f"tracing stopped at: {_first_line(error)}"
            warnings.warn(f"this run stays eager, because {reason}", stacklevel=2)
            return Accelerated(fn, "eager", reason)
        if compile == "auto":
            return Accelerated(graph.call, "graph", f"{graph.size} operations")
        return _native(graph, fn, args, leaves)


def _native(graph: _Graph, fn: Callable, args: tuple, leaves: list[Tensor]) -> Accelerated:
    """Compiles a graph, if it is small enough and there is a compiler."""
    if graph.size > MAX_NATIVE_OPS:
        return Accelerated(graph.call, "graph", f"{graph.size} operations are too many to compile")
    try:
        graph.compile(leaves)
        graph.check(fn(*args), leaves)
    except Exception as error:  # noqa: BLE001 - a compiler may fail in any way; the graph still runs
        graph.run = graph.module
        reason = f"compiling stopped at: {_first_line(error)}"
        warnings.warn(f"this run is not native, because {reason}", stacklevel=3)
        return Accelerated(graph.call, "graph", reason)
    return Accelerated(graph.call, "native", f"{graph.size} operations")


class _Graph:
    """A function traced into a flat graph, with the shapes of its nested input and output."""

    def __init__(self, fn: Callable, leaves: list[Tensor], spec_in: Any) -> None:  # noqa: ANN401
        def flat(*leaves: Tensor) -> tuple[Tensor, ...]:
            out, self.spec_out = tree_flatten(fn(*tree_unflatten(list(leaves), spec_in)))
            self.is_tensor = [isinstance(leaf, Tensor) for leaf in out]
            return tuple(leaf for leaf in out if isinstance(leaf, Tensor))

        self.module: GraphModule = make_fx(flat)(*leaves)
        self.module.graph.eliminate_dead_code()
        self.module.recompile()
        self.run: Callable[..., Sequence[Tensor]] = self.module

    @property
    def size(self) -> int:
        """The number of operations."""
        return sum(node.op == "call_function" for node in self.module.graph.nodes)

    def compile(self, leaves: list[Tensor]) -> None:
        for node in self.module.graph.nodes:
            node.meta.clear()  # the fake tensors of the trace belong to another compilation
        self.run = torch._inductor.compile(self.module, leaves)

    def call(self, *args: Any) -> Any:  # noqa: ANN401
        with torch.no_grad():
            found = iter(self.run(*tree_flatten(args)[0]))
        return tree_unflatten([next(found) if t else None for t in self.is_tensor], self.spec_out)

    def check(self, expected: tuple, leaves: list[Tensor]) -> None:
        """Raises if the graph does not give what the function gave."""
        wanted = [leaf for leaf in tree_flatten(expected)[0] if isinstance(leaf, Tensor)]
        for got, want in zip(self.run(*leaves), wanted, strict=True):
            eps = torch.finfo(want.dtype).eps if want.is_floating_point() else 0.0
            scale = want.abs().max().item() if eps and want.numel() else 0.0
            if not torch.allclose(
                got, want, rtol=eps**0.5, atol=100 * eps * scale, equal_nan=True
            ):
                raise RuntimeError("the graph gives other numbers than the model: is it random?")


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error) else ''}"


def batched_value_and_grad(fn: Callable[[Tensor], Tensor]) -> ValueAndGrad:
    """Returns value and gradient of ``fn`` for all chains at once.

    Args:
        fn: The potential of one chain, from ``z (D,)`` to nats ``()``.

    Returns:
        A function from ``z (C, D)`` to nats ``(C,)`` and their gradient ``(C, D)``.
    """

    def value_then_grad(z: Tensor) -> tuple[Tensor, Tensor]:
        grad, value = torch.func.grad_and_value(fn)(z)
        return value, grad

    mapped = torch.func.vmap(value_then_grad, randomness="different")
    rung = mapped

    def evaluate(z: Tensor) -> tuple[Tensor, Tensor]:
        nonlocal rung
        with pyro.validation_enabled(False), _mappable_log():
            try:
                value, grad = rung(z.detach())
            except RuntimeError as error:
                if rung is not mapped:
                    raise
                warnings.warn(
                    f"this model runs one chain after the other, because vmap stopped at: {error}",
                    stacklevel=2,
                )
                rung = _one_by_one(fn)
                value, grad = rung(z.detach())
        return value.detach(), grad.detach()

    return evaluate


def _one_by_one(fn: Callable[[Tensor], Tensor]) -> ValueAndGrad:
    def evaluate(z: Tensor) -> tuple[Tensor, Tensor]:
        values, grads = [], []
        for row in z:
            row = row.clone().requires_grad_()
            value = fn(row)
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
