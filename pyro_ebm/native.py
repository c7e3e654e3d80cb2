"""From a step to native code without a look at Python's bytecode: all of torch that is private.

torch.compile reads bytecode, guards what it read and traces it three times over; of a step that
is tensors from end to end, and is traced anyhow, inductor needs one graph.
"""

from __future__ import annotations

__all__ = [
    "DecidedByData",
    "captured_loop",
    "compiled_block",
    "compiled_scan",
    "fast_building",
    "is_capturing",
    "options",
    "without_writing",
]

import contextlib
import copy
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING
from unittest import mock

import torch
from torch import Tensor
from torch.fx import GraphModule, Node
from torch.fx.experimental.proxy_tensor import (
    disable_proxy_modes_tracing,
    get_proxy_mode,
    get_proxy_slot,
    make_fx,
)
from torch.utils._python_dispatch import TorchDispatchMode

if TYPE_CHECKING:
    from torch._subclasses.fake_tensor import FakeTensorMode

_OPTIONS = {
    "cpp_wrapper": True,
    "cpp.vec_isa_ok": True,
    "cpp_cache_precompile_headers": False,
}
"""Of the compiler: loops without Python; no test programs (six seconds) for what instructions
there are, which the system says; no headers compiled ahead, six seconds that later save one."""


def options() -> dict[str, bool]:
    """Returns the options of the compiler that this version of torch knows."""
    from torch._inductor import config

    return {name: value for name, value in _OPTIONS.items() if hasattr(config, name)}


Flat = Callable[..., Sequence[Tensor]]

_is_capturing = False


def is_capturing() -> bool:
    """Whether a step is being captured, so that its loops have to become one operation each."""
    return _is_capturing


class DecidedByData(TorchDispatchMode):
    """Lets a function that is traced take numbers out of data, as ``int(labels.max())`` does.

    A number that depends on what the function is given, or on parameters, stays refused: in a
    graph it would be the same forever.
    """

    def __torch_dispatch__(
        self, func: Callable, types: Sequence, args: tuple = (), kwargs: dict | None = None
    ) -> object:
        if func is torch.ops.aten._local_scalar_dense.default and _is_of_data(args[0]):
            with disable_proxy_modes_tracing():
                return func(*args)
        return func(*args, **(kwargs or {}))


def _is_of_data(x: Tensor) -> bool:
    mode = get_proxy_mode()
    slot = get_proxy_slot(x, mode.tracer, None) if mode is not None else None
    if slot is None:
        return not x.requires_grad
    todo, seen = [slot.proxy.node], set()
    while todo:
        node = todo.pop()
        if node not in seen:
            seen.add(node)
            if node.op == "placeholder" or _is_parameter(node, mode.tracer.root):
                return False
            todo += node.all_input_nodes
    return True


def _is_parameter(node: Node, root: torch.nn.Module) -> bool:
    return node.op == "get_attr" and getattr(root, node.target).requires_grad


def captured_loop(condition: Callable, body: Flat, carry: Sequence[Tensor]) -> Sequence[Tensor]:
    """A loop as one operation of the graph that is being captured.

    Args:
        condition: From the carry to a 0-d tensor of bool.
        body: From the carry to the next. Both may close over tensors.
        carry: Tensors, none of which shares memory with another.
    """
    with disable_proxy_modes_tracing():
        parts = [make_fx(part)(*(x.clone() for x in carry)) for part in (condition, body)]
        closed_over = list({id(x): x for part in parts for x in _constants(part)}.values())
        for part in parts:
            _lift(part, closed_over)
    return torch.ops.higher_order.while_loop(*parts, tuple(carry), tuple(closed_over))


def compiled_scan(
    step: Flat, carry: Sequence[Tensor], xs: Sequence[Tensor], fixed: Sequence[Tensor]
) -> Callable:
    """Compiles a loop of steps over rows, for any number of rows.

    Args:
        step: From the tensors of a carry and of a row, and what is fixed, to those of the next
            carry and of what to keep of it, the latter contiguous.
        carry: A real carry.
        xs: Real tensors, each with one row.
        fixed: Real tensors that are the same in all steps.

    Returns:
        A function of the last three, to the last carry and what was kept, stacked.
    """
    mode = _fake_mode()
    with _capturing(mode):
        captured = make_fx(step)(*carry, *(x[0] for x in xs), *fixed)
    if writing := _writing(captured):
        raise RuntimeError(f"{writing[0]} in a native loop, which must not write in place")
    closed_over = _constants(captured)
    _lift(captured, closed_over)
    loop = functools.partial(_loop_over_rows, captured, len(carry), len(xs))
    inputs = [*_fake(mode, carry), *_fake_rows(mode, xs), *_fake(mode, (*fixed, *closed_over))]
    native = _compiled(loop, mode, inputs)

    def call(
        carry: Sequence[Tensor], xs: Sequence[Tensor], fixed: Sequence[Tensor]
    ) -> tuple[list[Tensor], list[Tensor]]:
        found = native([*carry, *xs, *fixed, *closed_over])
        return found[: len(carry)], found[len(carry) :]

    return call


def compiled_block(block: Flat, carry: Sequence[Tensor], xs: Sequence[Tensor]) -> Callable:
    """Compiles a function that loops over rows by itself, for any number of rows.

    Args:
        block: From the tensors of a carry and ``xs`` to tensors.
        carry: A real carry.
        xs: Real tensors, each with one row or more.

    Returns:
        A function of the same, to a list of tensors.
    """
    mode = _fake_mode()
    inputs = [*_fake(mode, carry), *_fake_rows(mode, xs)]
    with mode, _capturing(mode):
        captured = make_fx(block)(*inputs)
    closed_over = _constants(captured)
    _lift(captured, closed_over)
    native = _compiled(captured, mode, [*inputs, *_fake(mode, closed_over)])
    return lambda carry, xs: native([*carry, *xs, *closed_over])


def _fake_mode() -> FakeTensorMode:
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.fx.experimental.symbolic_shapes import ShapeEnv

    return FakeTensorMode(shape_env=ShapeEnv(), allow_non_fake_inputs=True)


def _fake(mode: FakeTensorMode, tensors: Sequence[Tensor]) -> list[Tensor]:
    return [mode.from_tensor(x.detach(), static_shapes=True) for x in tensors]


def _fake_rows(mode: FakeTensorMode, xs: Sequence[Tensor]) -> list[Tensor]:
    """Fake tensors of a number of rows that is known only when native code is called."""
    with mode.shape_env.ignore_fresh_unbacked_symbols():
        num_rows = mode.shape_env.create_unbacked_symint()
    torch._check(num_rows >= 1)
    with mode:
        return [x.new_empty_strided((num_rows, *x.shape[1:]), x.stride()) for x in _fake(mode, xs)]


def _compiled(fn: Flat, mode: FakeTensorMode, inputs: list[Tensor]) -> Callable:
    """Compiles a function of fake tensors into one of a list of real ones."""
    from torch._inductor import compile_fx, config
    from torch._inductor.decomposition import select_decomp_table

    if torch.__version__ < (2, 9):
        raise RuntimeError(f"loops become native code from torch 2.9 on, not {torch.__version__}")
    with mode:
        graph = make_fx(fn, decomposition_table=select_decomp_table())(*inputs)
    with config.patch(options()), fast_building():
        return compile_fx.compile_fx_forward(
            graph,
            inputs,
            num_orig_model_outputs=0,
            num_example_inputs=len(inputs),
            compiler_config_extra=compile_fx.create_compiler_config_extra(graph),
            inner_compile=functools.partial(compile_fx.compile_fx_inner, cpp_wrapper=True),
            is_inference=True,
        )


def _loop_over_rows(step: GraphModule, n: int, m: int, *inputs: Tensor) -> list[Tensor]:
    carry, others = inputs[:n], inputs[n:]
    num_rows = others[0].shape[0]
    of_step = next(iter(step.graph.find_nodes(op="output"))).args[0]
    kept = [
        torch.empty((num_rows, *y.shape), dtype=y.dtype, device=y.device)
        for y in (node.meta["val"] for node in of_step[n:])
    ]

    def condition(k: Tensor, *flat: Tensor) -> Tensor:
        return k < flat[len(kept) + n].shape[0]

    def body(k: Tensor, *flat: Tensor) -> tuple[Tensor, ...]:
        kept_now, carry, others = flat[: len(kept)], flat[len(kept) :][:n], flat[len(kept) + n :]
        row = k.item()
        torch._check(row >= 0)
        torch._check(row < others[0].shape[0])
        moved = step(*carry, *(x.select(0, row) for x in others[:m]), *others[m:])
        for room, value in zip(kept_now, moved[n:], strict=True):
            room.select(0, row).copy_(value)
        return k + 1, *kept_now, *moved[:n]

    start = torch.zeros((), dtype=torch.int64)
    _, *found = torch.ops.higher_order.while_loop(condition, body, (start, *kept, *carry), others)
    return [*found[len(kept) :], *found[: len(kept)]]


@contextlib.contextmanager
def _capturing(mode: FakeTensorMode) -> Iterator[None]:
    """Has loops captured, each as one operation; the mode is that of the shapes of nodes."""
    from torch._guards import TracingContext, tracing

    global _is_capturing
    _is_capturing = True
    try:
        with tracing(TracingContext(mode)):
            yield
    finally:
        _is_capturing = False


def without_writing(graph: GraphModule) -> Callable:
    """Returns what does the same with no operation that writes in place."""
    if not _writing(graph):
        return graph
    lifted = GraphModule(graph, copy.deepcopy(graph.graph))
    closed_over = _constants(lifted)
    _lift(lifted, closed_over)
    functional = torch.func.functionalize(lifted)
    return lambda *inputs: functional(*inputs, *closed_over)


def _writing(graph: GraphModule) -> list[str]:
    """The operations that write in place, of a graph and of the loops in it."""
    parts = [part.graph for part in graph.modules() if isinstance(part, GraphModule)]
    targets = [node.target for part in parts for node in part.nodes if node.op == "call_function"]
    return [str(t) for t in targets if hasattr(t, "_schema") and t._schema.is_mutable]


def _constants(graph: GraphModule) -> list[Tensor]:
    """The tensors, parameters among them, that a captured function closes over."""
    found = [getattr(graph, node.target) for node in graph.graph.find_nodes(op="get_attr")]
    return list({id(x): x for x in found if isinstance(x, Tensor)}.values())


def _lift(graph: GraphModule, closed_over: Sequence[Tensor]) -> None:
    """Makes tensors that a captured function closes over its last arguments."""
    *_, last = graph.graph.find_nodes(op="placeholder")
    arguments = {}
    for k, x in enumerate(closed_over):
        with graph.graph.inserting_after(last):
            last = arguments[id(x)] = graph.graph.placeholder(f"closed_over_{k}")
        last.meta["val"] = x
    for node in graph.graph.find_nodes(op="get_attr"):
        argument = arguments.get(id(getattr(graph, node.target)))
        if argument is not None:
            node.replace_all_uses_with(argument)
            graph.graph.erase_node(node)
    graph.recompile()


@contextlib.contextmanager
def fast_building() -> Iterator[None]:
    """Has native code built for less: its calls between kernels are hardly worth optimising.

    Half of the time of g++ would go into them. And what instructions the machine has the system
    says, without a test program for each; others may want to be told more, and will ask again.
    """
    from torch._inductor import cpu_vec_isa
    from torch._inductor.codecache import CppWrapperCodeCache

    load = CppWrapperCodeCache.load_pybinding
    entry = "void inductor_entry_impl("

    def lightly(*args: object, main_code: str, **kwargs: object) -> Callable:
        code = main_code.replace(entry, f'__attribute__((optimize("O1"))) {entry}', 1)
        return load(*args, main_code=code, **kwargs)

    try:
        with (
            mock.patch.object(CppWrapperCodeCache, "load_pybinding", lightly),
            mock.patch.object(cpu_vec_isa.VecISA, "check_build", return_value=False),
        ):
            yield
    finally:
        asked = (type(isa).__bool__ for isa in cpu_vec_isa.supported_vec_isa_list)
        for known in (cpu_vec_isa.valid_vec_isa_list, *asked):
            getattr(known, "cache_clear", lambda: None)()
