"""The only home of tracing and compiling.

A step of a kernel is Python over a model that is Python over tensors. On its way down, Python
disappears. The rungs, from the bottom:

=========== ====================================================================================
rung        what runs
=========== ====================================================================================
eager       the function itself
graph       the ATen graph of it, traced once, with the same numbers bit for bit
native      a whole loop of steps compiled by inductor, with the same numbers to rounding, and to
            what the step itself makes of rounding
=========== ====================================================================================

Each rung is checked once against the one below, on real input. A rung that cannot be reached costs
one warning that says why, never a run.
"""

from __future__ import annotations

__all__ = [
    "Compile",
    "Graph",
    "Rung",
    "compile_block",
    "compile_function",
    "compile_scan",
    "is_compiling",
    "loop",
    "trace",
]

import contextlib
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Generic, Literal, TypeVar

import torch
from torch import Tensor
from torch._higher_order_ops import while_loop
from torch.fx import GraphModule, Node
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map, tree_unflatten

from .agreement import check, check_native
from .dynamo import scan_by_dynamo
from .layout import copy_in_order, memory_order, restored, stored
from .native import (
    DecidedByData,
    captured_loop,
    compiled_block,
    compiled_scan,
    fast_building,
    is_capturing,
    options,
    without_writing,
)
from .rewriting import rewritten

Compile = bool | Literal["auto"]
T = TypeVar("T")
C = TypeVar("C")

aten = torch.ops.aten

MAX_NATIVE_OPS = 1500
"""The size of a graph above which inductor would take minutes; such a graph stays on its rung."""


class Rung(Generic[T]):
    """A function, and how far up it came.

    Args:
        fn: The function.
        name: The rung, by name.
        reason: Why this one.
        size: The number of operations of its graph, where there is one.
    """

    def __init__(self, fn: T, name: str, reason: str, size: int | None = None) -> None:
        self.fn = fn
        self.name = name
        self.reason = reason
        self.size = size

    def __str__(self) -> str:
        return f"{self.name} ({self.reason})"


def trace(fn: Callable, args: tuple, lasting: bool = False) -> Rung[Callable]:
    """Takes a function to its graph.

    The function must be free of side effects and of randomness; its parameters may change between
    calls (they are live in the graph), the shapes of its arguments may not.

    Args:
        fn: The function, from tensors (or nested tuples of them) to the same.
        args: Real arguments, to trace and check it with.
        lasting: Whether the graph outlives a run, so that the data it closes over may change. Then
            no number that is taken out of them, as ``int(labels.max())`` does, may decide on it.

    Example:
        >>> square = trace(torch.square, (torch.ones(3),))
        >>> square.fn(torch.full((3,), 2.0)), str(square)
        (tensor([4., 4., 4.]), 'graph (1 operations)')
    """
    with torch.no_grad():
        try:
            graph = Graph(fn, args, lasting)
            check(graph(*args), fn(*args))
        except (RuntimeError, TypeError, NotImplementedError, ValueError) as error:
            reason = f"tracing stopped at: {_first_line(error)}"
            warnings.warn(f"this run stays eager, because {reason}", stacklevel=2)
            return Rung(fn, "eager", reason)
    return Rung(graph, "graph", f"{graph.size} operations", graph.size)


class Graph(torch.nn.Module):
    """A function traced into a flat graph, with the shapes of its nested output."""

    def __init__(self, fn: Callable, args: tuple, lasting: bool) -> None:
        super().__init__()
        leaves, spec_in = tree_flatten(args)
        leaves = [leaf.clone() for leaf in leaves]  # one tensor in two places is two inputs

        def flat(*leaves: Tensor) -> tuple[Tensor, ...]:
            with contextlib.nullcontext() if lasting else DecidedByData():
                out, self.spec_out = tree_flatten(fn(*tree_unflatten(list(leaves), spec_in)))
            self.is_tensor = [isinstance(leaf, Tensor) for leaf in out]
            return tuple(leaf for leaf in out if isinstance(leaf, Tensor))

        self.module: GraphModule = make_fx(flat)(*leaves)
        _check_silent(self.module)
        for node in self.module.graph.find_nodes(op="call_function", target=aten.view.default):
            node.target = aten.reshape.default  # arguments may come laid out otherwise
        self.module.graph.eliminate_dead_code()
        self.module.recompile()
        self._leaves = leaves
        self._for_compiler = self.module

    def rewrite(self) -> None:
        """Prepares what a compiler will be given in place of the graph."""
        if self.size <= MAX_NATIVE_OPS:
            self._for_compiler = rewritten(without_writing(self.module), self._leaves)

    def compiled(self, leaves: Sequence[Tensor]) -> Callable[..., Sequence[Tensor]]:
        """Compiles it by itself, as a function of flat tensors, whose properties are not checked.

        Args:
            leaves: Real arguments.
        """
        self.rewrite()
        for node in self._for_compiler.graph.nodes:
            node.meta.clear()  # the compiler makes its own
        with torch.no_grad():
            return torch._inductor.compile(self._for_compiler, list(leaves), options=options())

    def is_as(self, other: Graph) -> bool:
        """Whether another graph does the same with equal constants and the same parameters."""
        return (self.module.code, self.is_tensor, self.spec_out) == (
            other.module.code,
            other.is_tensor,
            other.spec_out,
        ) and all(map(_is_as, self._constants(), other._constants()))

    def _constants(self) -> list[Tensor]:
        nodes = self.module.graph.find_nodes(op="get_attr")
        return [getattr(self.module, node.target) for node in nodes]

    @property
    def size(self) -> int:
        """The number of operations."""
        return len(self._operations())

    @property
    def num_bytes(self) -> int:
        """The size of all that they make; a view makes nothing."""
        made = [node.meta.get("val") for node in self._operations() if not _is_view(node)]
        return sum(
            x.numel() * x.element_size() for x in tree_leaves(made) if isinstance(x, Tensor)
        )

    def _operations(self) -> list[Node]:
        return [node for node in self.module.graph.nodes if node.op == "call_function"]

    def forward(self, *args: Any) -> Any:  # noqa: ANN401, D102  what the function takes and returns
        module = self._for_compiler if is_compiling() else self.module
        with torch.no_grad():
            found = iter(module(*tree_leaves(args)))
        return tree_unflatten([next(found) if t else None for t in self.is_tensor], self.spec_out)


def _check_silent(module: GraphModule) -> None:
    """Refuses what tells other ranks something, and would not again when the graph runs."""
    names = {getattr(node.target, "namespace", "") for node in module.graph.nodes}
    if names & {"c10d", "_c10d_functional", "fsdp"}:
        raise RuntimeError("the energy sends messages to other ranks, as one of fully_shard does")


def _is_view(node: Node) -> bool:
    schema = getattr(node.target, "_schema", None)
    return schema is not None and any(found.alias_info for found in schema.returns)


def _is_as(one: Tensor, other: Tensor) -> bool:
    fixed = not (one.requires_grad or other.requires_grad)
    alike = (one.shape, one.dtype, one.device) == (other.shape, other.dtype, other.device)
    return one is other or (fixed and alike and torch.equal(one, other))


def is_compiling() -> bool:
    """Whether Python runs only to be compiled, so that it must not look at values."""
    return is_capturing() or torch.compiler.is_compiling()


def loop(condition: Callable[[C], Tensor], body: Callable[[C], C], carry: C) -> C:
    """Repeats ``body`` for as long as ``condition`` holds: a Python loop, or a native one.

    Args:
        condition: From the carry to a 0-d tensor of bool.
        body: From the carry to the next, of the same shapes and dtypes. It may write into a tensor
            of the carry that it hands on itself, as into a table of which it changes a row.
        carry: Tensors, in nested tuples.

    Returns:
        The first carry of which ``condition`` does not hold.

    Example:
        >>> loop(lambda x: x < 100, lambda x: 2 * x, torch.tensor(3))
        tensor(192)
    """
    if not is_compiling():
        while condition(carry):
            carry = body(carry)
        return carry
    leaves, spec = tree_flatten(carry)

    def flat_condition(*leaves: Tensor) -> Tensor:
        return condition(tree_unflatten(list(leaves), spec))

    orders = [memory_order(leaf) for leaf in leaves]

    def flat_body(*leaves: Tensor) -> tuple[Tensor, ...]:
        found = tree_leaves(body(tree_unflatten(list(leaves), spec)))
        triples = zip(leaves, found, orders, strict=True)
        return tuple(new if new is old else copy_in_order(new, o) for old, new, o in triples)

    leaves = _fresh(carry, orders)
    repeat = while_loop if torch.compiler.is_compiling() else captured_loop
    return tree_unflatten(list(repeat(flat_condition, flat_body, leaves)), spec)


def compile_function(
    fn: Callable[..., tuple], args: tuple[Tensor, ...]
) -> Rung[Callable[..., list]]:
    """Compiles a function without loops into native code that costs hardly anything to call.

    Nothing is looked at when it is called: tensors have to be as those it was compiled with, but
    for their values.

    Args:
        fn: As :func:`trace` takes it, from tensors to a tuple of tensors and ``None``: parameters
            are live in native code too.
        args: Real arguments, contiguous, to trace and check it with.

    Returns:
        The compiled function; or ``None`` on a rung below, for the reason it names.
    """
    below = trace(fn, args, lasting=True)
    if not isinstance(below.fn, Graph):
        return Rung(None, below.name, below.reason)
    graph, size = below.fn, below.size

    def native(*args: Tensor) -> list[Tensor | None]:
        with torch.no_grad():
            found = iter(compiled(*args))
        return [next(found) if is_tensor else None for is_tensor in graph.is_tensor]

    try:
        if size > MAX_NATIVE_OPS:
            raise RuntimeError(f"{size} operations are too many")
        with _undeprecated(), fast_building():
            compiled = graph.compiled(args)
        check_native(native, graph, args)
    except Exception as error:  # noqa: BLE001 - a compiler may fail in any way; the graph still runs
        reason = f"compiling stopped at: {_first_line(error)}"
        warnings.warn(f"this run is not native, because {reason}", stacklevel=2)
        return Rung(None, "graph", reason, size)
    return Rung(native, "native", f"{size} operations", size)


def compile_scan(
    step: Callable[[tuple, tuple], tuple[tuple, tuple]], carry: tuple, xs: tuple, size: int
) -> Rung[Callable]:
    """Compiles a loop of steps, of any number, into native code.

    Args:
        step: From a carry and one row of ``xs`` to the next carry and what to keep of it: tensors,
            in nested tuples, dicts and ``None``. Free of side effects and of randomness.
        carry: A real carry.
        xs: Real tensors, each with a first dimension over steps.
        size: The number of operations of a step, as far as it is known.

    Returns:
        A function of carry and ``xs`` that returns the last carry and all that was kept, stacked
        over steps; or ``None`` on a rung below, for the reason it names.
    """
    if size > MAX_NATIVE_OPS:
        return Rung(None, "graph", f"{size} operations are too many to compile", size)
    one = tuple(x[:1] for x in xs)
    try:
        with _undeprecated(), torch.no_grad():
            native = _Scan(step, carry, one)
            check_native(native, native.once, (carry, one))
    except Exception as error:  # noqa: BLE001 - a compiler may fail in any way; the graph still runs
        reason = f"compiling stopped at: {_first_line(error)}"
        warnings.warn(f"this run is not native, because {reason}", stacklevel=2)
        return Rung(None, "graph", reason, size)
    return Rung(native, "native", f"{size} operations", size)


def compile_block(
    block: Callable[[tuple, tuple], tuple], carry: tuple, xs: tuple, size: int
) -> Rung[Callable]:
    """Compiles a function that loops over rows by itself into native code, for any number of rows.

    Chains may go on from one row to the next at different times within it, and rounding alone may
    tip a choice that one makes and send it elsewhere. So the check is that most agree.

    Args:
        block: From a carry, the first tensor of which has chains first, and ``xs`` to tensors in
            nested tuples, the next carry first. Free of side effects and of randomness.
        carry: A real carry.
        xs: Real tensors, each with a first dimension over rows.
        size: The number of operations of a step, as far as it is known.

    Returns:
        The compiled function; or ``None`` on a rung below, for the reason it names.
    """
    if size > MAX_NATIVE_OPS:
        return Rung(None, "graph", f"{size} operations are too many to compile", size)

    try:
        with _undeprecated(), torch.no_grad():
            native = _Block(block, carry, xs)
            (found, *_), (expected, *_) = native(carry, xs)[0], block(carry, xs)[0]
        eps = torch.finfo(expected.dtype).eps
        agree = found.isclose(expected, eps**0.5, eps**0.5, equal_nan=True).all(-1)
        if agree.double().mean() < 0.5:
            raise RuntimeError("the native block gives other numbers than the graph")
    except Exception as error:  # noqa: BLE001 - a compiler may fail in any way; the graph still runs
        reason = f"compiling stopped at: {_first_line(error)}"
        warnings.warn(f"this run is not native, because {reason}", stacklevel=2)
        return Rung(None, "graph", reason, size)
    return Rung(native, "native", f"{size} operations", size)


class _Block:
    """A function that loops by itself as a native one, whose tensors are flat lists."""

    def __init__(self, block: Callable, carry: tuple, xs: tuple) -> None:
        leaves, spec = tree_flatten(carry)
        self._orders = [memory_order(leaf) for leaf in leaves]
        self._rows = [(0, *(1 + i for i in memory_order(x[0]))) for x in xs]

        def flat(*leaves: Tensor) -> tuple[Tensor, ...]:
            carry = tree_unflatten(list(leaves[: len(self._orders)]), spec)
            found, self._spec = tree_flatten(block(carry, leaves[len(self._orders) :]))
            self._is_tensor = [isinstance(leaf, Tensor) for leaf in found]
            return tuple(leaf.clone() for leaf in found if isinstance(leaf, Tensor))

        self._native = compiled_block(flat, _fresh(carry, self._orders), _fresh(xs, self._rows))

    def __call__(self, carry: tuple, xs: tuple) -> tuple:
        with torch.no_grad():
            found = iter(self._native(_fresh(carry, self._orders), _fresh(xs, self._rows)))
        leaves = [next(found) if is_tensor else None for is_tensor in self._is_tensor]
        return tree_unflatten(leaves, self._spec)


class _Scan:
    """A loop of steps as one native function, whose tensors are flat lists."""

    def __init__(self, step: Callable, carry: tuple, xs: tuple) -> None:
        self._step = step
        leaves, self._spec = tree_flatten(carry)
        self._orders = [memory_order(leaf) for leaf in leaves]
        moved, kept = step(carry, tuple(x[0] for x in xs))
        moves = [new is not old for new, old in zip(tree_leaves(moved), leaves, strict=True)]
        self._moving = [i for i, moves_on in enumerate(moves) if moves_on]
        self._fixed = [i for i, moves_on in enumerate(moves) if not moves_on]
        kept, self._spec_kept = tree_flatten(kept)
        self._is_tensor = [isinstance(leaf, Tensor) for leaf in kept]
        self._orders_kept = [memory_order(leaf) for leaf in kept if isinstance(leaf, Tensor)]
        leaves = _fresh(carry, self._orders)
        parts = self._parts(leaves)
        compile = compiled_scan if leaves[0].device.type == "cpu" else scan_by_dynamo
        self._native = compile(self._row, parts[0], xs, parts[1])

    def once(self, carry: tuple, xs: tuple) -> tuple[tuple, Any]:
        """The first step, as Python."""
        carry, kept = self._step(carry, tuple(x[0] for x in xs))
        return carry, tree_map(lambda leaf: None if leaf is None else leaf.unsqueeze(0), kept)

    def __call__(self, carry: tuple, xs: tuple) -> tuple[tuple, Any]:
        leaves = list(_fresh(carry, self._orders))
        moving, fixed = self._parts(leaves)
        with torch.no_grad():
            moved, kept = self._native(moving, xs, fixed)
        found = map(restored, kept, self._orders_kept)
        kept = [next(found) if is_tensor else None for is_tensor in self._is_tensor]
        return self._whole(moved, fixed), tree_unflatten(kept, self._spec_kept)

    def _parts(self, leaves: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        return [leaves[i] for i in self._moving], [leaves[i] for i in self._fixed]

    def _whole(self, moving: Sequence[Tensor], fixed: Sequence[Tensor]) -> tuple:
        by_place = dict(zip((*self._moving, *self._fixed), (*moving, *fixed), strict=True))
        return tree_unflatten([by_place[i] for i in range(len(by_place))], self._spec)

    def _row(self, *leaves: Tensor) -> list[Tensor]:
        n, m = len(self._moving), len(leaves) - len(self._fixed)
        moved, kept = self._step(self._whole(leaves[:n], leaves[m:]), leaves[n:m])
        moving, _ = self._parts(_fresh(moved, self._orders))
        stacked = map(stored, _fresh(kept, self._orders_kept), self._orders_kept)
        return [*moving, *stacked]


def _fresh(carry: tuple, orders: Sequence[Sequence[int]]) -> tuple[Tensor, ...]:
    """Copies: no two tensors that enter or leave a native loop may share memory.

    Each lies in memory in its own order, the same all the way round the loop.
    """
    leaves = (leaf for leaf in tree_leaves(carry) if isinstance(leaf, Tensor))
    return tuple(map(copy_in_order, leaves, orders))


@contextlib.contextmanager
def _undeprecated() -> Iterator[None]:
    """Takes what torch deprecates of itself for no reason to stop, where warnings are errors."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        yield


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error) else ''}"
