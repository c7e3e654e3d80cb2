"""A training run of many ranks in one checkpoint, and how it goes on among other ranks.

A checkpoint holds what every rank keeps; what is the same on all, as parameters and optimizers
are, it holds once. As many ranks as wrote it take each its own part, and go on bit for bit. Others
go on by law: they divide the chains of all among them, noise comes from new streams, and moments
are pooled. Where something differed from rank to rank and nobody knows how to divide it, that is
an error.
"""

from __future__ import annotations

__all__ = ["Division", "parts_of_all_ranks", "same_everywhere"]

import hashlib
import io
import math
import os
import warnings
from collections.abc import Callable
from typing import Any

import torch
from pyro.infer import SVI
from torch import Tensor

from ..ranks.group import gathered, gathered_by_first, new_stream, num_ranks, rank
from ..runs.checkpoint import plain
from .base import Objective
from .checkpoint import objective_of
from .memory import GENERATOR
from .monitor import Monitor
from .readings import pooled_moments

AS_FIRST = "as on the first rank"

Tree = Any
"""Tensors, numbers and text in dicts and lists."""


def same_everywhere(step: int | None, folder: os.PathLike) -> None:
    """Makes sure that all ranks look at the same folder.

    Args:
        step: The step of the checkpoint that this rank found there, if any.
        folder: The folder.

    Raises:
        ValueError: If ranks found different ones.
    """
    steps = gathered(torch.tensor([-1 if step is None else step])).tolist()
    if len(set(steps)) > 1:
        seen = ", ".join("none" if s < 0 else f"that of step {s}" for s in steps)
        raise ValueError(
            f"{folder} must be one folder on a file system that all ranks see, and of checkpoints "
            f"the ranks see: {seen}"
        )


def parts_of_all_ranks(kept: dict[str, Tree]) -> dict[str, Tree] | None:
    """Brings what ranks keep to the first one: tensors that it has itself, not once more.

    Args:
        kept: What this rank keeps.

    Returns:
        What is to be written: of one rank just that; nothing on other ranks than the first.
    """
    if num_ranks() == 1:
        return kept
    kept = plain(kept)
    own: list[bytes] = []
    _mapped(kept, lambda x: own.append(_digest(x)))
    counts = gathered(torch.tensor([len(own)])).tolist()
    digests = gathered(torch.tensor([list(digest) for digest in own], dtype=torch.uint8))
    of_first = {bytes(row) for row in digests[: counts[0]].tolist()}

    def left_out(x: Tensor) -> Tree:
        digest = _digest(x)
        return {AS_FIRST: digest.hex()} if digest in of_first else x

    buffer = io.BytesIO()
    torch.save(kept if rank() == 0 else _mapped(kept, left_out), buffer)
    data = gathered_by_first(buffer.getvalue())
    if data is None:
        return None
    return {"ranks": [torch.load(io.BytesIO(one), "cpu", weights_only=True) for one in data]}


class Division:
    """What this rank takes of a checkpoint.

    Args:
        found: What was written.
    """

    def __init__(self, found: dict[str, Tree]) -> None:
        self._parts = _filled(found["ranks"]) if "ranks" in found else [found]
        self._told = False

    @property
    def is_new(self) -> bool:
        """Whether others than now wrote it."""
        return len(self._parts) != num_ranks()

    def contents(self) -> dict[str, Tree]:
        """Returns what this rank kept, but with ``is_new`` for the states of its parts.

        Raises:
            ValueError: If parameters were not the same on all ranks, and are now to be.
        """
        if not self.is_new:
            return self._parts[rank()]
        first = self._parts[0]
        return first | {
            "tensors": self._common("parameters", [part["tensors"] for part in self._parts]),
            "device": torch.device(first["device"]).type,
            "random": self._random(),
            "epoch": self._epoch(),
        }

    def state(self, name: str, part: object) -> Tree:
        """Returns what a part goes on from.

        Args:
            name: What it is called.
            part: It.

        Raises:
            ValueError: If it differed from rank to rank in what cannot be divided.
        """
        states = [one["parts"][name] for one in self._parts]
        return self._divided(name, part, states) if self.is_new else states[rank()]

    def _divided(self, name: str, part: object, states: list[Tree]) -> Tree:
        if isinstance(part, SVI):
            return self._of_svi(name, part, states)
        if isinstance(part, Monitor):
            return self._of_monitor(name, part, states)
        if isinstance(part, Objective):
            return self._of_objective(name, part, states)
        if isinstance(part, torch.Generator):
            return _of_generator(states[0])
        return self._common(name, states)

    def _of_svi(self, name: str, svi: SVI, states: list[Tree]) -> Tree:
        objective = objective_of(svi)
        remembered = [state["objective"] for state in states]
        return {
            "optimizer": self._common(f"optimizer of {name}", [s["optimizer"] for s in states]),
            "objective": {}
            if objective is None
            else self._of_objective(f"objective of {name}", objective, remembered),
        }

    def _of_monitor(self, name: str, monitor: Monitor, states: list[Tree]) -> Tree:
        """Records are those of all ranks as it is, and it went back on all to the same step."""
        found = {"readings": pooled_moments([state["readings"] for state in states])}
        for key in states[0].keys() - found.keys():
            each = [state[key] for state in states]
            if key == "svi":
                found[key] = self._of_svi(name, monitor.svi, each)
            elif key in ("good", "latest"):
                rest = self._of_svi(name, monitor.svi, [one["rest"] for one in each])
                each = [one | {"rest": None} for one in each]
                found[key] = self._common(f"{key} state of {name}", each) | {"rest": rest}
            else:
                found[key] = self._common(f"{key} of {name}", each)
        return found

    def _of_objective(self, name: str, objective: Objective, states: list[Tree]) -> Tree:
        dicts = [state["dicts"] for state in states]
        pooled = objective.pooled(dicts)
        for key in dicts[0].keys() - pooled.keys():
            each = [one[key] for one in dicts]
            if key in objective.of_chains:
                pooled[key] = {site: joined([one[site] for one in each]) for site in each[0]}
            elif any(isinstance(x, dict) and GENERATOR in x for x in each[0].values()):
                pooled[key] = {at: _of_generator(x) for at, x in each[0].items()}
            else:
                pooled[key] = self._common(f"{key} of {name}", each)
        for key in objective.of_chains:
            pooled[key] = {
                site: self._own_chains(site, tree, objective.num_chains)
                for site, tree in pooled[key].items()
            }
        sizes = [state["step size"] for state in states]
        return {
            "dicts": pooled,
            "modules": self._common(f"modules of {name}", [state["modules"] for state in states]),
            "step size": None if None in sizes else math.prod(sizes) ** (1 / len(sizes)),
        }

    def _own_chains(self, site: str, tree: Tree, num_chains: int) -> Tree:
        there, here = _num_rows(tree), num_chains * num_ranks()
        if there != here and not self._told and rank() == 0:
            self._told = True
            fate = f"{there - here} are left out"
            if here > there:
                fate = f"{here - there} go on from the same places as others"
            way = "" if there % num_ranks() else f". num_chains={there // num_ranks()} keeps them"
            warnings.warn(
                f"the checkpoint has {there} chains of '{site}', of {len(self._parts)} ranks, and "
                f"this run of {num_ranks()} has {here}: {fate}{way}",
                stacklevel=6,
            )
        own = torch.arange(rank() * num_chains, (rank() + 1) * num_chains) % there
        return _of_rows(tree, lambda rows: rows[own.to(rows.device)])

    def _random(self) -> Tree:
        """The state of the global generators: in common where it is so there and here."""
        random = [part["random"] for part in self._parts]
        here = gathered(torch.get_rng_state().unsqueeze(0))
        if _difference(random) is None and bool((here == here[0]).all()):
            return random[0]
        cpu, devices = random[0]["cpu"], range(len(random[0]["cuda"]))
        return {
            "cpu": new_stream(cpu, "cpu"),
            "cuda": [new_stream(random[0]["cuda"][d], f"cuda:{d}") for d in devices],
        }

    def _epoch(self) -> Tree:
        """Batches are others now: an epoch that was cut begins again."""
        epoch, step = self._parts[0]["epoch"], self._parts[0]["step"]
        if epoch is None or "first" not in epoch:
            return epoch
        made = step - epoch["first"]
        if made == epoch["num_batches"]:
            return {"number": epoch["number"]}
        if rank() == 0:
            warnings.warn(
                f"epoch {epoch['number']} was cut after {made} batches of "
                f"{len(self._parts)} ranks, and begins again: batches are others on "
                f"{num_ranks()}",
                stacklevel=5,
            )
        return {"number": epoch["number"] - 1}

    def _common(self, name: str, trees: list[Tree]) -> Tree:
        """Returns what is the same on all ranks.

        Raises:
            ValueError: If it is not.
        """
        where = _difference(trees)
        if where is not None:
            raise ValueError(
                f"the checkpoint is of {len(self._parts)} ranks, which differ in the {name} "
                f"({where}), and this is a run of {num_ranks()}. Go on with "
                f"{len(self._parts)}; or begin in another folder, with gradients that are "
                "averaged (ebm.ranks.Averaged)"
            )
        return trees[0]


def joined(trees: list[Tree]) -> Tree:
    """Joins what has a row for each chain: a tensor, or a state."""
    rows: list[list[Tensor]] = [[] for _ in trees]
    for tree, found in zip(trees, rows, strict=True):
        _of_rows(tree, found.append)
    together = iter([torch.cat(parts) for parts in zip(*rows, strict=True)])
    return _of_rows(trees[0], lambda _: next(together))


def _of_rows(tree: Tree, change: Callable[[Tensor], Tree]) -> Tree:
    """Changes the tensors of chains: of a state all that have as many rows as its first one.

    What is nested in a state, a metric, is of all chains.
    """
    if isinstance(tree, Tensor):
        return change(tree)
    n, fields = _num_rows(tree), tree["fields"]
    return tree | {
        "fields": {
            name: change(x) if isinstance(x, Tensor) and x.shape[:1] == (n,) else x
            for name, x in fields.items()
        }
    }


def _num_rows(tree: Tree) -> int:
    return len(tree) if isinstance(tree, Tensor) else len(next(iter(tree["fields"].values())))


def _of_generator(kept: Tree) -> Tree:
    device = torch.device(kept[GENERATOR]).type
    here = f"cuda:{torch.cuda.current_device()}" if device == "cuda" else device
    return {GENERATOR: here, "state": new_stream(kept["state"], here)}


def _mapped(tree: Tree, change: Callable[[Tensor], Tree]) -> Tree:
    """Changes all tensors of a tree."""
    if isinstance(tree, dict):
        return {key: _mapped(value, change) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return type(tree)(_mapped(value, change) for value in tree)
    return change(tree) if isinstance(tree, Tensor) else tree


def _filled(parts: list[Tree]) -> list[Tree]:
    """Puts the tensors of the first rank where others left them out."""
    of_first: dict[str, Tensor] = {}
    _mapped(parts[0], lambda x: of_first.setdefault(_digest(x).hex(), x))

    def filled(tree: Tree) -> Tree:
        if isinstance(tree, dict):
            if AS_FIRST in tree:
                return of_first[tree[AS_FIRST]].clone()
            return {key: filled(value) for key, value in tree.items()}
        if isinstance(tree, list | tuple):
            return type(tree)(filled(value) for value in tree)
        return tree

    return [parts[0], *map(filled, parts[1:])]


def _digest(x: Tensor) -> bytes:
    digest = hashlib.sha256(f"{x.dtype} {tuple(x.shape)}".encode())
    flat = x.detach().cpu().reshape(-1).clone(memory_format=torch.contiguous_format)
    digest.update(flat.view(torch.uint8).numpy().data)
    return digest.digest()


def _difference(trees: list[Tree]) -> str | None:
    """Says where trees differ, if they do."""
    first, *others = trees
    if isinstance(first, dict):
        if any(tree.keys() != first.keys() for tree in others):
            return "its names"
        below = ((str(key), [tree[key] for tree in trees]) for key in first)
    elif isinstance(first, list | tuple):
        if any(len(tree) != len(first) for tree in others):
            return "its length"
        below = ((str(i), [tree[i] for tree in trees]) for i in range(len(first)))
    else:
        same = {_digest(x) if isinstance(x, Tensor) else repr(x) for x in trees}
        return None if len(same) == 1 else "its value"
    for key, each in below:
        where = _difference(each)
        if where is not None:
            return key if where == "its value" else f"{key}: {where}"
    return None
