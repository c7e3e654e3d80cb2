"""A graph in other terms, of the same mathematics, that a compiler does better on.

What it fuses it need not store, so thin products of matrices are written out, SiLU shares its
sigmoid with its gradient, and biases stay out of products; a batch of products with one matrix is
one product. And it lays out what it stores by what
it reads, which says nothing where chains meet data, or where parts are joined: there, chains that
lie innermost in memory are kept innermost.
"""

from __future__ import annotations

__all__ = ["rewritten"]

import functools
import itertools
import operator
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch._functorch.compile_utils import fx_graph_cse
from torch.fx import GraphModule, Node
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.passes.shape_prop import ShapeProp

from .layout import MANY_CHAINS, memory_order

SKINNY = 8
"""The inner or outer dimension up to which a product of matrices is written out; libraries are
slow at it."""

MOST_OF_ONE_ROW = 2**16
"""The size of a matrix up to which its product with a single row is written out as well: the call
would cost more than the product."""

FEW = 8
"""The length up to which a cumulative sum or product is written out."""

aten = torch.ops.aten


def rewritten(graph: GraphModule, inputs: Sequence[Tensor]) -> GraphModule:
    """Returns the graph in other terms.

    Args:
        graph: A flat graph.
        inputs: Real inputs of it.
    """
    num_chains = next((len(x) for x in inputs if x.dim() == 2 and memory_order(x) == (1, 0)), 0)
    table = _TERMS | (_chains_innermost(num_chains) if num_chains >= MANY_CHAINS else {})
    found = make_fx(graph, decomposition_table=table)(*inputs)
    found.graph = fx_graph_cse(found.graph)
    if num_chains >= MANY_CHAINS:
        ShapeProp(found).propagate(*inputs)
        _fix_where_chains_meet_data(found, num_chains)
    found.graph.eliminate_dead_code()
    found.recompile()
    return found


def _mm(a: Tensor, b: Tensor) -> Tensor:
    (m, k), n = a.shape, b.shape[1]
    if a.device.type != "cpu" or not a.is_floating_point() or min(m, k, n) == 0:
        return NotImplemented
    if m == 1 and k * n <= MOST_OF_ONE_ROW:
        return a * b if k == 1 else (a.unsqueeze(1) * b.t()).sum(-1)
    if k <= SKINNY:
        rows = _in_one_piece(b)
        return functools.reduce(torch.add, [a[:, i, None] * rows[i] for i in range(k)])
    if n <= SKINNY:
        columns = _in_one_piece(b.t())
        return torch.stack([(a * columns[i]).sum(-1) for i in range(n)], -1)
    if 1 < m <= SKINNY:
        return _mm(b.t(), a.t()).t()
    return NotImplemented


def _bmm(a: Tensor, b: Tensor) -> Tensor:
    """Makes one product of a batch with one and the same matrix, as chains innermost get it."""
    if len(b) > 1 and b.stride(0) == 0:
        product = torch.mm(a.reshape(-1, a.shape[2]), b[0])
        return product.view(*a.shape[:2], b.shape[2])
    if len(a) > 1 and a.stride(0) == 0:
        return _bmm(b.mT, a.mT).mT
    return NotImplemented


def _addmm(c: Tensor, a: Tensor, b: Tensor, *, beta: float = 1, alpha: float = 1) -> Tensor:
    """Keeps the sum out of the product, whose library would copy the bias to all rows first."""
    if a.device.type != "cpu" or not a.is_floating_point() or not beta == alpha == 1:
        return NotImplemented
    product = _mm(a, b)
    if product is NotImplemented:
        return torch.mm(a, b) - (-c)  # of a sum, the compiler would make one product again
    return product + c


def _silu(x: Tensor) -> Tensor:
    return x * x.sigmoid()


def _silu_backward(grad: Tensor, x: Tensor) -> Tensor:
    s = x.sigmoid()
    return grad * (s * (1 + x * (1 - s)))


def _in_one_piece(x: Tensor) -> Tensor:
    """Lays the rows of a matrix out; as_strided makes the compiler do so in memory."""
    if x.is_contiguous():
        return x
    x = x.clone(memory_format=torch.contiguous_format)
    return x.as_strided(x.shape, x.stride())


_TERMS = {
    aten.mm.default: _mm,
    aten.addmm.default: _addmm,
    aten.bmm.default: _bmm,
    aten.silu.default: _silu,
    aten.silu_backward.default: _silu_backward,
}


def _chains_innermost(num_chains: int) -> dict:
    """Terms for what would lay chains outermost, whatever it reads."""

    def cat(parts: Sequence[Tensor], dim: int = 0) -> Tensor:
        dim %= parts[0].dim()
        if dim == 0 or any(len(part) != num_chains for part in parts):
            return NotImplemented
        return _chains_first(torch.cat([_chains_last(part) for part in parts], dim - 1))

    def stack(parts: Sequence[Tensor], dim: int = 0) -> Tensor:
        dim %= parts[0].dim() + 1
        if dim == 0 or any(len(part) != num_chains for part in parts):
            return NotImplemented
        return _chains_first(torch.stack([_chains_last(part) for part in parts], dim - 1))

    def cumulative(add: Callable[[Tensor, Tensor], Tensor]) -> Callable[..., Tensor]:
        def accumulate(x: Tensor, dim: int, *, dtype: torch.dtype | None = None) -> Tensor:
            dim %= max(1, x.dim())
            if dim == 0 or len(x) != num_chains or x.shape[dim] > FEW or dtype is not None:
                return NotImplemented
            return stack(list(itertools.accumulate(x.unbind(dim), add)), dim)

        return accumulate

    return {
        aten.cat.default: cat,
        aten.stack.default: stack,
        aten.cumsum.default: cumulative(operator.add),
        aten.cumprod.default: cumulative(operator.mul),
    }


def _chains_last(x: Tensor) -> Tensor:
    return x.movedim(0, -1)


def _chains_first(x: Tensor) -> Tensor:
    return x.movedim(-1, 0)


_POINTWISE = {
    aten.add.Tensor,
    aten.sub.Tensor,
    aten.mul.Tensor,
    aten.div.Tensor,
    aten.logaddexp.default,
}


def _fix_where_chains_meet_data(graph: GraphModule, num_chains: int) -> None:
    """Lays out the first tensors that run over chains and few data: what follows lies like them.

    None of what they are made of runs over both, so that all orders of their loops look the same.
    """
    meetings = [node for node in graph.graph.nodes if _is_meeting(node, num_chains)]
    for node in meetings:
        _lay_out(graph, node, (*range(1, len(_shape(node))), 0))


def _is_meeting(node: Node, num_chains: int) -> bool:
    if node.target not in _POINTWISE:
        return False
    shape, parts = _shape(node), [_shape(part) for part in node.args]
    few = len(shape) > 1 and shape[0] == num_chains and 1 < shape[-1] < MANY_CHAINS
    return few and all(part.numel() < shape.numel() for part in parts)


def _shape(part: Node | float) -> torch.Size:
    return part.meta["tensor_meta"].shape if isinstance(part, Node) else torch.Size()


def _lay_out(graph: GraphModule, node: Node, order: tuple[int, ...]) -> None:
    shape = tuple(_shape(node)[i] for i in order)
    stride = torch.empty(shape, device="meta").stride()
    back = tuple(sorted(range(len(order)), key=order.__getitem__))
    with graph.graph.inserting_after(node):
        turned = graph.graph.call_function(aten.permute.default, (node, order))
    with graph.graph.inserting_after(turned):
        copy = graph.graph.call_function(
            aten.clone.default, (turned,), {"memory_format": torch.contiguous_format}
        )
    with graph.graph.inserting_after(copy):
        fixed = graph.graph.call_function(aten.as_strided.default, (copy, shape, stride))
    with graph.graph.inserting_after(fixed):
        restored = graph.graph.call_function(aten.permute.default, (fixed, back))
    node.replace_all_uses_with(restored, delete_user_cb=lambda user: user is not turned)
