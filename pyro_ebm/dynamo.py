"""To native code by torch.compile, which reads Python's bytecode.

It takes longer than :mod:`~pyro_ebm.native` does, and serves devices on which that was not tried.
"""

from __future__ import annotations

__all__ = ["scan_by_dynamo"]

import types
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch._higher_order_ops import scan

from .native import options


def scan_by_dynamo(step: Callable, carry: list[Tensor], xs: tuple, fixed: list) -> Callable:
    """Does what :func:`~pyro_ebm.native.compiled_scan` does, on devices where that was not tried.

    Args:
        step: From the tensors of a carry and of a row, and what is fixed, to those of the next
            carry and of what to keep of it.
        carry: A real carry.
        xs: Real tensors, each with one row.
        fixed: Real tensors that are the same in all steps.

    Returns:
        A function of the last three, to the last carry and what was kept, stacked.
    """
    n = len(carry)

    def block(carry: list[Tensor], xs: list[Tensor], fixed: list[Tensor]) -> tuple[list, list]:
        _check_rows(xs)

        def of_row(carry: list[Tensor], row: list[Tensor]) -> tuple[list, list]:
            found = step(*carry, *row, *fixed)
            return found[:n], found[n:]

        return scan(of_row, carry, xs)

    compiled = _compiled_by_dynamo(block)

    def native(carry: list[Tensor], xs: tuple, fixed: list[Tensor]) -> tuple[list, list]:
        for x in xs:
            torch._dynamo.decorators.mark_unbacked(x, 0)
        return compiled(carry, list(xs), fixed)

    return native


def _compiled_by_dynamo(fn: Callable) -> Callable:
    """Compiles a function under a code object of its own.

    The compiler keeps what it learns on the code object, and refuses to learn about too many
    targets. What it learns by name it must not use: after a target of other shapes it would make
    shapes dynamic, and compile again within a run. Dimensions marked as unbacked alone may vary.
    """
    code = fn.__code__.replace(co_name="native")
    own = types.FunctionType(code, fn.__globals__, "native", None, fn.__closure__)
    return torch.compile(own, fullgraph=True, dynamic=False, options=options())


def _check_rows(xs: Sequence[Tensor]) -> None:
    """Tells the compiler that all have the same number of rows, and at least one."""
    for x in xs:
        torch._check(x.shape[0] >= 1)
        torch._check(x.shape[0] == xs[0].shape[0])
