"""A run of many ranks as one: whose chains are whose, and how they go on among other ranks.

A checkpoint holds the parts of all ranks. As many ranks as wrote it take each its own part, and go
on bit for bit. Others put the parts together and divide them anew: chains, window sums and draws
are those that there were, and noise comes from new streams.
"""

from __future__ import annotations

__all__ = [
    "own_chains",
    "parts_of_all_ranks",
    "put_together",
    "take_own",
    "two_states",
    "widest",
]

import io
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from ..kernels.acceleration import History
from ..kernels.adaptation import Moments
from ..kernels.base import Kernel
from ..kernels.length import Spread
from ..kernels.transition import State
from ..potential import Potential
from ..ranks.group import gathered_by_first, new_stream, num_ranks, rank, share
from .checkpoint import plain, rebuilt
from .draws import Sums

IN_COMMON = ("step", "finished", "engine", "runner", "random", "rejoined", "warmup_time", "spent")


def own_chains(num_chains: int, num_superchains: int | None) -> slice:
    """Returns which chains are this rank's: superchains stay whole.

    Raises:
        ValueError: If there are more ranks than chains, or superchains.
    """
    groups = num_superchains or num_chains
    if num_ranks() > groups:
        name = "num_superchains" if num_superchains else "num_chains"
        raise ValueError(f"{name} must be at least the {num_ranks()} ranks, got {groups}")
    own, size = share(groups), num_chains // groups
    return slice(own.start * size, own.stop * size)


def widest(z: Tensor, num_chains: int, num_superchains: int | None) -> Tensor:
    """Returns chains like ``z``, as many as the rank has that has the most of them.

    What ranks do in blocks is then over at the same steps on all.
    """
    groups = num_superchains or num_chains
    most = -(-groups // num_ranks()) * (num_chains // groups)
    return z[:1].expand(most, *z.shape[1:])


def parts_of_all_ranks(kept: dict[str, Any]) -> dict[str, Any] | None:
    """Brings what ranks keep to the first one.

    Args:
        kept: What this rank keeps.

    Returns:
        What is to be written: of one rank just that; nothing on other ranks than the first.
    """
    if num_ranks() == 1:
        return kept
    buffer = io.BytesIO()
    torch.save(plain(kept), buffer)
    data = gathered_by_first(buffer.getvalue())
    if data is None:
        return None
    return {"parts": [torch.load(io.BytesIO(one), "cpu", weights_only=True) for one in data]}


def take_own(
    found: dict[str, Any], own: slice, two_states: Callable[[bool], list[tuple]]
) -> dict[str, Any]:
    """Takes from a checkpoint what is this rank's.

    Args:
        found: What was written.
        own: Which chains are this rank's.
        two_states: Makes states of one chain and of two, after a step if so told: what differs in
            their shapes is of chains.
    """
    parts = found.get("parts", [found])
    if len(parts) == num_ranks():
        return parts[rank()]
    if "parts" not in found and len(found["at_first"]["potential"]) == own.stop - own.start:
        return found
    return _Divider(parts, own).divide(two_states(parts[0]["step"] > 0))


def two_states(kernel: Kernel, potential: Potential, start: Tensor, stepped: bool) -> list[State]:
    """Makes states of one chain and of two.

    Args:
        kernel: The kernel.
        potential: Its target.
        start: Where chains begin, with shape ``(C, D)``.
        stepped: Whether after a step.
    """
    states, generator = [], torch.Generator(start.device)
    for num_chains in (1, 2):
        state = kernel.init(potential, start[:num_chains])
        if stepped:
            state, _ = kernel.step(potential, state, kernel.noise(state, generator))
        states.append(state)
    return states


def put_together(parts: Sequence[Tensor], axis: int, copies: int = 1) -> Tensor:
    """Joins the chains of several parts along an axis that has them ``copies`` times over.

    Example:
        >>> put_together([torch.tensor([1, 2, 5, 6]), torch.tensor([3, 7])], axis=0, copies=2)
        tensor([1, 2, 3, 5, 6, 7])
    """
    apart = [part.unflatten(axis, (copies, -1)) for part in parts]
    return torch.cat(apart, axis + 1).flatten(axis, axis + 1)


class _Divider:
    """Divides the parts of some ranks among others."""

    def __init__(self, parts: list[dict[str, Any]], own: slice) -> None:
        self.parts, self.own = parts, own
        self.counts = [len(part["at_first"]["potential"]) for part in parts]

    def divide(self, states: list[tuple]) -> dict[str, Any]:
        first = self.parts[0]
        found = {name: first[name] for name in IN_COMMON}
        return found | {
            "fingerprint": first["fingerprint"],
            "at_first": {
                "random": first["at_first"]["random"],
                "potential": self._chains([p["at_first"]["potential"] for p in self.parts], 0),
            },
            "state": plain(self._state(states)),
            "adaptation": plain(self._merged(self._all("adaptation"), 0)),
            "generator": new_stream(first["generator"], first["fingerprint"]["device"]),
            "waiting": plain(self._waiting()),
            "warmup": self._draws("warmup"),
            "draws": self._draws("draws"),
        }

    def _all(self, name: str) -> list[Any]:
        return [rebuilt(part[name]) for part in self.parts]

    def _chains(self, parts: Sequence[Tensor], axis: int, copies: int = 1) -> Tensor:
        together = put_together(parts, axis, copies).unflatten(axis, (copies, -1))
        own = self.own.stop - self.own.start
        return together.narrow(axis + 1, self.own.start, own).flatten(axis, axis + 1).clone()

    def _state(self, states: list[tuple]) -> tuple:
        leaves_of_one, _ = tree_flatten(states[0])
        leaves_of_two, _ = tree_flatten(states[1])
        flat = [tree_flatten(state) for state in self._all("state")]
        leaves = []
        for one, two, *parts in zip(
            leaves_of_one, leaves_of_two, *(leaves for leaves, _ in flat), strict=True
        ):
            if not isinstance(one, Tensor):
                leaves.append(parts[0])
                continue
            shapes = zip(one.shape, two.shape, strict=True)
            axes = [axis for axis, (a, b) in enumerate(shapes) if a != b]
            leaves.append(self._chains(parts, axes[0], one.shape[axes[0]]) if axes else parts[0])
        return tree_unflatten(leaves, flat[0][1])

    def _merged(self, parts: list[Any], axis: int) -> Any:  # noqa: ANN401  a tree of anything
        """What was learned, as nested as it is: sums add up, and rows are of chains."""
        x = parts[0]
        if isinstance(x, Moments | Spread):
            return self._summed(parts)
        if isinstance(x, dict):
            return {key: self._of_key(key, [part[key] for part in parts], axis) for key in x}
        if isinstance(x, list | tuple):
            fields = [self._merged(list(each), axis) for each in zip(*parts, strict=True)]
            return type(x)(*fields) if hasattr(x, "_fields") else type(x)(fields)
        if isinstance(x, Tensor) and x.dim() > axis:
            return self._chains(parts, axis)
        return x

    def _of_key(self, key: str, parts: list[Any], axis: int) -> Any:  # noqa: ANN401
        if key != "moments":
            return self._merged(parts, axis)
        weights = [count / sum(self.counts) for count in self.counts]
        merged = []
        for each in zip(*parts, strict=True):
            means, variances = torch.stack(each, 1)
            squares = variances + means.square()
            shares = means.new_tensor(weights).unsqueeze(-1)
            mean = (shares * means).sum(0)
            merged.append(torch.stack([mean, (shares * squares).sum(0) - mean.square()]))
        return merged

    def _summed(self, parts: list[Moments] | list[Spread]) -> Moments | Spread:
        """The sums of all, for one rank to keep: others begin with none."""
        names = [n for n in ("total", "squares", "product", "count") if n in parts[0]._fields]
        sums = {name: torch.stack([getattr(p, name) for p in parts]).sum(0) for name in names}
        if rank() > 0:
            sums = {name: torch.zeros_like(x) for name, x in sums.items()}
        return parts[0]._replace(**sums)

    def _waiting(self) -> list[History]:
        steps = self._all("waiting")
        joined = []
        for each in zip(*steps, strict=True):
            merged = self._merged([tuple(history) for history in each], 1)
            joined.append(History(*merged))
        return joined

    def _draws(self, name: str) -> dict[str, Any]:
        parts = self._all(name)
        if not parts[0]:
            return {}
        sums = [part["sums"] for part in parts]
        merged = Sums(sums[0].num_steps, *self._merged([tuple(s[1:]) for s in sums], 0))
        in_files = any(isinstance(x, dict) for x in parts[0]["arrays"].values())
        arrays = [part["arrays"] for part in parts]
        arrays = arrays[0] if in_files else self._merged(arrays, 1)
        return {"sums": plain(merged), "arrays": arrays}
