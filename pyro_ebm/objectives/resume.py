r"""Training that survives its process: it goes on with the same numbers, bit for bit."""

from __future__ import annotations

__all__ = ["Resumable"]

import contextlib
import os
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import Any, TypeVar

import pyro
import torch
from pyro.infer import SVI
from torch import Tensor, nn
from typing_extensions import Self

from ..ranks.divided import name_of, own_part
from ..ranks.errors import agreed, first_ahead
from ..ranks.group import gathered, largest, rank
from ..runs.checkpoint import Checkpoints, compare, random_state, set_random_state
from ..runs.signals import Signals
from .base import Objective
from .checkpoint import (
    Waiting,
    optimizer_and_objective,
    set_both,
    tensors,
)
from .fingerprint import described, same_part, svi_of
from .memory import as_put, kept, put
from .monitor import Monitor, TrainingDiverged
from .sharding import Division, parts_of_all_ranks, same_everywhere

Part = TypeVar("Part")


class Resumable:
    r"""Keeps a training run in a folder, and goes on with what it finds there.

    Killed at whatever moment and called again, the same program ends with the same parameters, bit
    for bit, as one that nothing stopped, on the same machine with the same number of threads. Kept
    are the parameters in Pyro's store, whose values take their places as a model registers them,
    with buffers and fixed parameters of its energies; the state of the optimizer; chains, their
    generators, the step size of their kernel and all else that an objective remembers; what a
    :class:`Monitor` and an :class:`ExponentialAverage` do; torch's global random state; the number
    of steps, and the place in the data.

    A checkpoint is written after the first step, after a step once ``every`` seconds have passed,
    and after the last; the last two are kept. SIGTERM and Ctrl-C wait for the end of a step, which
    is then kept, and do what they always did; a second one does not wait. Parameters that are not
    finite are never kept. After :class:`TrainingDiverged` kept is the step that the monitor went
    back to.

    The folder is held against other processes until the end of the ``with``. On several ranks it
    is one for all: they save after the same step, into one file, and a signal to one of them stops
    all. As many ranks as wrote it go on bit for bit. Others go on by law: they divide chains, with
    their weights, among them, noise comes from new streams, moments are pooled, an epoch that was
    cut begins again; a warning says what has to change, chains that are left out for one. What
    differed between ranks and cannot be divided is an error.

    A loop that is left by ``break`` or by an error keeps nothing more. What draws when it is first
    called, as Pyro's automatic guides do, has to be called once before the loop. Code that
    ``compile=True`` made is made again.

    Args:
        folder: The folder, made if it is not there.
        every: The seconds from one checkpoint to the next; with 0 there is one after each step.
        parts: What is to be kept, by any name: an ``SVI``, or a :class:`Monitor` in its place;
            modules, whose values are then in place before the first step; in a bare loop the
            objective and the optimizer of torch; a ``torch.Generator``, and whatever else has
            ``state_dict`` and ``load_state_dict`` of tensors, numbers and text.

    Raises:
        ValueError: If ``every`` is negative, or there is nothing to keep; in use, if what the
            folder holds is of other parts, another objective, optimizer, model, dtype, device or
            version, or of other ranks and cannot be divided among these; if ranks see different
            folders, or have different numbers of batches.
        OSError: If the folder cannot be written, before the first step.
        RuntimeError: If another process is in the folder, before the first step; if parameters
            are not finite, when they are to be kept; if another rank has ended.

    Example:
        >>> import tempfile
        >>> import pyro_ebm as ebm
        >>> energy = ebm.energies.MLP(event_shape=(2,), hidden_sizes=(8,))
        >>> def model(x):
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("point", ebm.Boltzmann(energy), obs=x)
        >>> objective = ebm.objectives.PersistentCD(ebm.kernels.MALA(step_size=0.1), num_chains=64)
        >>> svi = SVI(model, ebm.no_guide, pyro.optim.Adam({"lr": 1e-3}), loss=objective)
        >>> data, folder = torch.randn(100, 2), tempfile.mkdtemp()
        >>> with Resumable(folder, svi=svi, energy=energy) as training:
        ...     for step in training.steps(3):
        ...         loss = svi.step(data[torch.randint(100, (32,))])
        >>> with Resumable(folder, svi=svi, energy=energy) as training:
        ...     print(list(training.steps(3)), training.step)
        [] 3
    """

    def __init__(self, folder: str | os.PathLike, *, every: float = 30.0, **parts: object) -> None:
        if not every >= 0:
            raise ValueError(f"every must be at least 0 seconds, got {every}")
        if not parts:
            raise ValueError("there is nothing to keep: give svi=, or what a bare loop moves")
        for name, part in parts.items():
            _check(name, part)
        self.step = 0
        """The number of steps so far."""
        self._checkpoints = Checkpoints(folder, every=every)
        self._parts, self._given = {}, parts
        self._fingerprints: dict[str, dict[str, str]] = {}
        self._found: dict[str, Any] = {}
        self._division: Division | None = None
        self._waiting = Waiting({}, (), "")
        self._random: dict[str, Any] | None = None
        self._epoch: dict[str, Any] | None = None
        self._moved = False
        self._open = False

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            with first_ahead():
                if rank() == 0:
                    stack.enter_context(self._checkpoints.held())
                found = self._checkpoints.load()
            same_everywhere(self._checkpoints.step, self._checkpoints.folder)
            if found is not None:
                self._division = Division(found)
                self._go_on(self._division.contents())
            with agreed():
                for name, part in self._given.items():
                    if found is not None:
                        compare({name: self._kind(name)}, {name: name_of(part)})
                    self.keep(name, part)
            stack.enter_context(self._waiting)
            self._signals = stack.enter_context(Signals())
            self._stack = stack.pop_all()
        self._open = True
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._open = False
        try:
            if isinstance(error, TrainingDiverged):
                self._save()
        finally:
            self._stack.__exit__(kind, error, traceback)
        if error is None and not self._moved and self._waiting.values:
            names = ", ".join(self._waiting.values)
            raise RuntimeError(
                f"no step was left to make, and nothing asked for {names}, which are kept but not "
                "in place: give the module beside the svi (energy=energy), or call "
                "svi.evaluate_loss on a batch within the with"
            )

    def _go_on(self, found: dict[str, Any]) -> None:
        """Goes to where the run was; parts follow as they are given."""
        device = torch.device(found["device"])
        compare(found["settings"], self._settings())
        if device.type == "cuda" and not torch.cuda.is_available():
            compare({"device": str(device)}, {"device": "cpu"})
        self._found, self._device = found, device
        self.step, self._random, self._epoch = found["step"], found["random"], found["epoch"]
        self._waiting = Waiting(found["tensors"], found["names"], device.type)
        for name, tensor in pyro.get_param_store().named_parameters():
            self._waiting.take(name, tensor)

    def _settings(self) -> dict[str, str]:
        return {"dtype": str(torch.get_default_dtype())}

    def _kind(self, name: str) -> str | None:
        return self._found["fingerprints"].get(name, {}).get(name)

    def keep(self, name: str, part: Part) -> Part:
        """Takes one more part that is to be kept, which only a first step makes possible.

        Args:
            name: What to call it.
            part: It, as in the beginning; where one of that name was kept, it goes on from there.

        Returns:
            It.

        Raises:
            ValueError: If what was kept under that name is something else.
        """
        _check(name, part)
        words = described(name, part)
        if name in self._found.get("parts", {}):
            there = self._found["fingerprints"][name]
            same_part(there, words, divided=self._division.is_new)
            _give(part, self._division.state(name, part), self._device)
            del self._found["parts"][name]
        self._parts[name], self._fingerprints[name] = part, words
        return part

    def steps(self, num_steps: int) -> Iterator[int]:
        """Yields the numbers of the steps that are left to make.

        Args:
            num_steps: How many there are in all.

        Yields:
            The number of the step, from 0; it is made when the next is asked for.
        """
        self._set_random()
        while self.step < num_steps:
            yield self.step
            self._end_step()
        self._end()

    def batches(self, loader: Iterable[Part], num_epochs: int) -> Iterator[Part]:
        """Yields the batches that are left of some epochs, each of which is one step.

        Where an epoch was cut, its beginning is read again and passed over. Its order is the same
        if it comes from torch's global generator or from ``loader.generator``, as that of a
        ``DataLoader`` does.

        Args:
            loader: What gives the batches of an epoch.
            num_epochs: How many epochs there are in all.

        Yields:
            A batch; its step is made when the next is asked for.
        """
        generator = getattr(loader, "generator", None)
        now = self._set_random()
        last = -1 if self._epoch is None else self._epoch["number"]
        cut = None if now is None or "first" not in (self._epoch or {}) else self._epoch
        num_batches = _num_batches(loader)
        for number in range(last + (cut is None), num_epochs):
            if cut:
                set_random_state(cut["random"])
                if generator is not None:
                    generator.set_state(cut["generator"])
            self._epoch = cut or {
                "number": number,
                "first": self.step,
                "num_batches": num_batches,
                "random": random_state(),
                "generator": None if generator is None else generator.get_state(),
            }
            batches = iter(loader)
            for _ in range(self.step - self._epoch["first"]):
                next(batches, None)
            if cut:
                set_random_state(now)
            cut = None
            for batch in batches:
                yield batch
                self._end_step()
        self._end()

    def _set_random(self) -> dict[str, Any] | None:
        """Goes on with the random numbers of the run, whatever was drawn since it was found."""
        if not self._open:
            raise RuntimeError("a run is kept within a with: with Resumable(...) as training: ...")
        now, self._random = self._random, None
        if now is not None:
            set_random_state(now)
        return now

    def _end_step(self) -> None:
        self.step += 1
        self._moved = True
        self._waiting.check()
        by_clock = self._checkpoints.due and rank() == 0  # which alone writes
        is_due, received = largest(int(by_clock), self._signals.received or 0)
        self._signals.received = received or None
        if self._checkpoints.step is None or is_due or received:
            self._save()
        self._signals.deliver()

    def _end(self) -> None:
        if self._checkpoints.step != self.step:
            self._save()
        self._signals.deliver()

    def _save(self) -> None:
        with agreed():
            contents = self._contents()
        of_all = parts_of_all_ranks(contents)
        with agreed():
            if of_all is not None:
                self._checkpoints.save(self.step, of_all)
        self._checkpoints.step = self.step

    def _contents(self) -> dict[str, Any]:
        left = {name: self._kind(name) for name in self._found.get("parts", {})}
        compare(left, {})
        of_modules = _tensors_of(self._parts.values())
        svis = [svi for svi in map(svi_of, self._parts.values()) if svi is not None]
        here = tensors(svis) if svis else {}
        self._check_finite(here)
        own = set(map(id, of_modules))
        device = next((t.device for t in (*here.values(), *of_modules)), torch.device("cpu"))
        return {
            "settings": self._settings(),
            "fingerprints": self._fingerprints,
            "step": self.step,
            "epoch": self._epoch,
            "random": random_state(),
            "device": str(device),
            "names": sorted({*self._waiting.values, *here}),
            "tensors": self._waiting.values | {n: t for n, t in here.items() if id(t) not in own},
            "parts": {name: _state_of(part) for name, part in self._parts.items()},
        }

    def _check_finite(self, here: dict[str, Tensor]) -> None:
        learning = {name: t for name, t in here.items() if t.requires_grad}
        for part, module in self._parts.items():
            if isinstance(module, nn.Module):
                learning |= {f"{part}.{n}": p for n, p in module.named_parameters()}
        for name, tensor in learning.items():
            if not bool(own_part(tensor).isfinite().all()):
                raise RuntimeError(
                    f"training diverged: {name} is not finite after {self.step} steps, which are "
                    f"not kept; {self._checkpoints.kept}. Run again with a Monitor, which stops "
                    "before such a step, a smaller lr, or clip_norm"
                )


def _check(name: str, part: object) -> None:
    if isinstance(part, SVI | torch.Generator):
        return
    if not (hasattr(part, "state_dict") and hasattr(part, "load_state_dict")):
        raise ValueError(
            f"{name} must be an SVI, a torch.Generator, or have state_dict and load_state_dict, "
            f"got {type(part).__name__}"
        )


def _tensors_of(parts: Iterable[object]) -> list[Tensor]:
    """Returns what the modules among parts keep themselves."""
    modules = [part for part in parts if isinstance(part, nn.Module)]
    return [t for module in modules for t in (*module.parameters(), *module.buffers())]


def _state_of(part: Any) -> Any:  # noqa: ANN401  each has a state of its own
    if isinstance(part, SVI):
        return optimizer_and_objective(part)
    return kept(part) if isinstance(part, torch.Generator) else part.state_dict()


def _give(part: Any, found: Any, device: torch.device) -> None:  # noqa: ANN401
    """Undoes :func:`_state_of`, in place."""
    if isinstance(part, SVI):
        set_both(part, found, device)
    elif isinstance(part, torch.Generator):
        as_put(found, part)
    elif isinstance(part, nn.Module):
        put(dict(part.state_dict()), found)
    elif isinstance(part, Monitor | Objective):
        part.load_state_dict(found, device)
    else:
        part.load_state_dict(found)


def _num_batches(loader: object) -> int | None:
    """How many batches an epoch has, if that is known, which has to be as many on every rank."""
    size = len(loader) if hasattr(loader, "__len__") else None
    sizes = gathered(torch.tensor([-1 if size is None else size])).tolist()
    if len(set(sizes)) > 1:
        raise ValueError(
            f"an epoch must have as many batches on every rank, got {sizes}: shards of one length "
            "(x[: len(x) // num_ranks * num_ranks][ebm.ranks.share(...)]), or drop_last=True"
        )
    return size
