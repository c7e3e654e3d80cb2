"""What was compiled lately: a second run of a kernel on a target is native from its first step."""

from __future__ import annotations

__all__ = ["recall", "remember"]

from collections import deque
from typing import NamedTuple

from torch import Tensor
from torch.utils._pytree import tree_flatten

from ..engine import Graph, Rung
from ..layout import memory_order
from .pyro_face import PyroFace
from .transition import State

LATELY = 8
"""How many are kept. Each holds a graph, and with it the tensors that its target closes over."""

OF_THE_TARGET = ("target", "potential_fn", "transforms")


class _Compiled(NamedTuple):
    of: tuple
    graph: Graph
    rung: Rung


_lately: deque[_Compiled] = deque(maxlen=LATELY)


def recall(kernel: PyroFace, graph: Graph, state: State) -> Rung | None:
    """Finds what was compiled for the same kernel, chains of the same shape and the same graph.

    Data may be other tensors if they are equal; parameters that learn must be the same.

    Args:
        kernel: The kernel.
        graph: The graph of its step, or of the gradient of its target.
        state: A state of as many chains as will be moved.
    """
    of = _depends_on(kernel, state)
    found = (one for one in reversed(_lately) if _same(one.of, of) and one.graph.is_as(graph))
    return next((one.rung for one in found), None)


def remember(kernel: PyroFace, graph: Graph, state: State, rung: Rung) -> None:
    """Keeps what was compiled, as long as it is among the last few."""
    _lately.append(_Compiled(_depends_on(kernel, state), graph, rung))


def _depends_on(kernel: PyroFace, state: State) -> tuple:
    """All that the native code of a step depends on, but for the target."""
    leaves, spec = tree_flatten(state)
    shapes = tuple((leaf.shape, leaf.dtype, leaf.device, memory_order(leaf)) for leaf in leaves)
    return _settings(kernel), str(spec), shapes


def _settings(kernel: PyroFace) -> tuple:
    """The class and the public attributes of a kernel, without its target; kernels within, too."""
    found = []
    for name, value in vars(kernel).items():
        if not (name.startswith("_") or name in OF_THE_TARGET):
            found.append((name, _settings(value) if isinstance(value, PyroFace) else value))
    return type(kernel), tuple(found)


def _same(one: object, other: object) -> bool:
    """Equality that asks of a tensor whether it is the same."""
    if isinstance(one, tuple) and isinstance(other, tuple) and len(one) == len(other):
        return all(map(_same, one, other))
    return one is other or not (isinstance(one, Tensor) or one != other)
