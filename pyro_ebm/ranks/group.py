r"""How processes find one another, and what they tell each other.

The only place, with :mod:`pyro_ebm.ranks.training`, that knows ``torch.distributed``. What ranks
have in common they do together: every rank has to come to it, and in the same order. Messages are
few: numbers of all ranks are summed up in float64, in one message however many they are.
"""

from __future__ import annotations

__all__ = [
    "alone",
    "first",
    "gathered",
    "gathered_by_first",
    "largest",
    "mean",
    "new_stream",
    "num_ranks",
    "own_rows",
    "own_stream",
    "rank",
    "share",
    "start",
    "together",
    "total",
    "wait",
]

import atexit
import contextlib
import math
import os
from collections.abc import Callable, Iterator
from datetime import timedelta

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor


class _Here:
    """Whether this process works together with others, and how long it waits for them."""

    together: bool = False
    timeout: float = math.nan


def start(timeout: float = 600.0) -> None:
    """Joins the other ranks, if ``torchrun`` started any; else does nothing.

    On CPUs the ranks talk by gloo, on CUDA devices by NCCL, and each rank takes the device of its
    local number. A process group that is there already is taken as it is.

    Args:
        timeout: The seconds for which a rank waits for others that do not come; then it ends with
            an error. The compiling of a loop, a minute, and the longest step have to fit in.

    Raises:
        ValueError: If ``timeout`` is not positive, or a process group is there that has no gloo.

    Example:
        >>> import pyro_ebm as ebm
        >>> ebm.ranks.start()
        >>> ebm.ranks.rank(), ebm.ranks.num_ranks()
        (0, 1)
    """
    if not timeout > 0:
        raise ValueError(f"timeout must be a positive number of seconds, got {timeout}")
    if not dist.is_available():
        return
    if not dist.is_initialized():
        if int(os.environ.get("WORLD_SIZE", "1")) < 2 or "RANK" not in os.environ:
            return
        backend = "gloo"
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
            backend = "cpu:gloo,cuda:nccl"
        dist.init_process_group(backend, timeout=timedelta(seconds=timeout))
        atexit.register(_end)
    elif "gloo" not in dist.get_backend_config():
        raise ValueError(
            "the process group must have gloo for CPU tensors, got "
            f"{dist.get_backend_config()!r}: init_process_group('cpu:gloo,cuda:nccl')"
        )
    _Here.together, _Here.timeout = True, timeout


def _end() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def rank() -> int:
    """Returns the number of this process among those that work together, from 0.

    Example:
        >>> rank()
        0
    """
    return dist.get_rank() if _Here.together else 0


def num_ranks() -> int:
    """Returns the number of processes that work together.

    Example:
        >>> num_ranks()
        1
    """
    return dist.get_world_size() if _Here.together else 1


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Within it this process is the only rank, and waits for no other.

    Example:
        >>> with alone():
        ...     num_ranks()
        1
    """
    before, _Here.together = _Here.together, False
    try:
        yield
    finally:
        _Here.together = before


def share(n: int) -> slice:
    """Returns which of ``n`` rows are this rank's; shares differ by one row at most.

    Example:
        >>> torch.arange(5)[share(5)]
        tensor([0, 1, 2, 3, 4])
    """
    return slice(rank() * n // num_ranks(), (rank() + 1) * n // num_ranks())


@contextlib.contextmanager
def own_stream() -> Iterator[None]:
    """Within it torch's global generators give each rank numbers of its own.

    They are seeded by the rank and by the next number of the global generator: so
    ``pyro.set_rng_seed`` rules, whether ranks are given one seed or each its own. After it the
    generators are where they would be on any rank.

    Example:
        >>> with own_stream():
        ...     noise = torch.randn(3)
    """
    if num_ranks() == 1:
        yield
        return
    words = np.random.SeedSequence((int(torch.randint(2**62, ())), rank()))
    devices = [torch.cuda.current_device()] if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(int(words.generate_state(1, np.uint64)[0]) >> 1)
        yield


def new_stream(state: Tensor, device: torch.device | str) -> Tensor:
    """Returns the state of a generator that goes on from another one, on each rank elsewhere.

    Args:
        state: The state of that other one, the same on all ranks.
        device: Of what device the generator is to be.
    """
    words = np.random.SeedSequence([*state.tolist(), num_ranks(), rank()])
    generator = torch.Generator(device)
    return generator.manual_seed(int(words.generate_state(1, np.uint64)[0]) >> 1).get_state()


def total(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Sums tensors over ranks, in float64 and in one message.

    Args:
        tensors: Of shapes that are the same on every rank.

    Returns:
        The sums, in shape and dtype of the tensors: the same bits on every rank.

    Example:
        >>> total(torch.tensor(3.0), torch.tensor(2))
        (tensor(3.), tensor(2))
    """
    if num_ranks() == 1:
        return tensors
    packed = torch.cat([x.reshape(-1).double() for x in tensors])
    together(dist.all_reduce, packed)
    parts = packed.split([x.numel() for x in tensors])
    return tuple(part.reshape(x.shape).to(x.dtype) for part, x in zip(parts, tensors, strict=True))


def mean(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Averages over the rows of all ranks, in one message.

    Args:
        tensors: Rows, with shape ``(n, *)``; ``n`` may differ from rank to rank.

    Returns:
        The means, with shape ``(*,)``.

    Example:
        >>> mean(torch.tensor([1.0, 3.0]))
        (tensor(2.),)
    """
    if num_ranks() == 1:
        return tuple(x.mean(0) for x in tensors)
    sums = [x.sum(0, dtype=torch.float64) for x in tensors]
    *sums, count = total(*sums, sums[0].new_tensor(len(tensors[0])))
    return tuple((part / count).to(x.dtype) for part, x in zip(sums, tensors, strict=True))


def gathered(x: Tensor) -> Tensor:
    """Joins the rows of all ranks, those of the first rank first.

    Args:
        x: Rows, with shape ``(n, *)``; ``n`` may differ from rank to rank.

    Returns:
        All rows, with shape ``(sum of n, *)``, on every rank.

    Example:
        >>> gathered(torch.arange(3))
        tensor([0, 1, 2])
    """
    if num_ranks() == 1:
        return x
    counts = _counts(len(x))
    if not max(counts) * x.shape[1:].numel():
        return x.new_zeros(sum(counts), *x.shape[1:])
    flat = x.reshape(len(x), x.shape[1:].numel())
    room = flat.new_zeros(max(counts), flat.shape[1])
    room[: len(flat)] = flat
    sent = room.view(torch.uint8) if x.dtype == torch.bool else room  # which NCCL does not send
    rows = [torch.empty_like(sent) for _ in counts]
    together(dist.all_gather, rows, sent)
    joined = torch.cat([part[:n] for part, n in zip(rows, counts, strict=True)])
    return joined.view(x.dtype).reshape(-1, *x.shape[1:])


def gathered_by_first(data: bytes) -> list[bytes] | None:
    """Hands bytes to the first rank.

    Args:
        data: Those of this rank.

    Returns:
        On the first rank those of all; on others nothing.
    """
    counts = _counts(len(data))
    sent = torch.zeros(max(counts), dtype=torch.uint8)
    sent[: len(data)] = torch.frombuffer(bytearray(data), dtype=torch.uint8)
    rows = [torch.empty_like(sent) for _ in counts] if rank() == 0 else None
    together(dist.gather, sent, rows)
    if rows is None:
        return None
    return [row[:n].numpy().tobytes() for row, n in zip(rows, counts, strict=True)]


def largest(*numbers: int) -> list[int]:
    """Returns the largest of each number on any rank, in one message.

    Args:
        numbers: Whole numbers of this rank, as many on every rank.
    """
    return gathered(torch.tensor([numbers])).amax(0).tolist()


def own_rows(n: int) -> slice:
    """Returns which rows of what :func:`gathered` joins are this rank's, ``n`` in number."""
    if num_ranks() == 1:
        return slice(0, n)
    counts = _counts(n)
    begin = sum(counts[: rank()])
    return slice(begin, begin + n)


def _counts(n: int) -> list[int]:
    """How many rows each rank has."""
    counts = torch.zeros(num_ranks(), dtype=torch.long)
    counts[rank()] = n
    together(dist.all_reduce, counts)
    return counts.tolist()


def first(x: Tensor) -> Tensor:
    """Returns what the tensor is on the first rank.

    Args:
        x: A tensor of a shape that is the same on every rank.

    Example:
        >>> first(torch.tensor(7))
        tensor(7)
    """
    if num_ranks() == 1:
        return x
    x = x.detach().clone(memory_format=torch.contiguous_format)
    together(dist.broadcast, x, 0)
    return x


def wait() -> None:
    """Waits until every rank has come here.

    Example:
        >>> wait()
    """
    total(torch.zeros(1))


def together(call: Callable, *args: object) -> None:
    """Makes a call that every rank has to make.

    Raises:
        RuntimeError: If one of them does not.
    """
    try:
        call(*args)
    except RuntimeError as error:
        raise RuntimeError(
            f"rank {rank()} of {num_ranks()} lost the others at {call.__name__}: a rank has ended "
            f"or did not come within {_Here.timeout:.0f} seconds (ebm.ranks.start(timeout=)), or "
            f"came to another call. What is in a store= or a checkpoint= is kept. ({error})"
        ) from error
