"""The bench: one model after another, measured in the same way."""

from __future__ import annotations

__all__ = ["Bench", "Source", "first_half"]

import functools
import math
import time
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from ..datasets import Toy
from ..metrics.base import Estimate
from ..metrics.detection import auroc
from ..metrics.known_law import kl_divergence, mode_weights
from ..metrics.neighbours import data_copying, precision_recall
from ..metrics.restoration import restoration_error
from ..metrics.two_sample import classifier_two_sample, energy_distance, mmd, sliced_wasserstein
from ..zoo.base import Generative, check_likelihood
from .bracket import bracketed
from .composing import Parts, composition
from .fitted import Fitted
from .memory import PeakMemory
from .passes import Passes
from .scorecard import Row

REFERENCE = "(train data)"
"""The name of the row of real data against real data."""

NUM_RESTORED, NUM_DRAWS = 100, 60
"""How many held-out points are restored, by how many draws of each after as many steps."""

FLIPPED, BLUR = 0.1, 0.5
"""The noise to restore from: of zeros and ones, the part of them that is wrong; else in units of
the root mean variance of a coordinate."""

LONGEST = 500
"""How many characters are kept of what an error says."""

Source = Generative | Callable[[], Generative]
"""A model, or a function that makes one."""


class Bench:
    """Measures one model after another against the same held-out data.

    Args:
        train: What models are fitted to, with shape ``(n, *event)``.
        test: Held-out data, with shape ``(m, *event)``.
        ood: Sets out of distribution by name.
        law: The law of the data, where it is known.
        bandwidth: The bandwidth of the maximum mean discrepancy.
        seed: The seed of every stage.
        kept: Where fitted models are kept, and read in place of fitting.
        parts: Two parts of the law, where models are to be composed.

    Example:
        >>> x = torch.randn(60, 2)
        >>> bench, row = Bench(x[:40], x[40:], {}, None, bandwidth=1.0, seed=0), Row("data")
        >>> bench.against_data(row, x[:40])
        >>> row.c2st is None, row.kl is None
        (False, True)
    """

    def __init__(
        self,
        train: Tensor,
        test: Tensor,
        ood: Mapping[str, Tensor],
        law: Toy | None,
        *,
        bandwidth: float,
        seed: int,
        kept: Fitted | None = None,
        parts: Parts | None = None,
    ) -> None:
        self.kept = Fitted(None) if kept is None else kept
        self.train, self.test, self.ood, self.law = train, test, ood, law
        self.bandwidth, self.seed, self.parts = bandwidth, seed, parts
        self.is_binary = bool(((train == 0) | (train == 1)).all())
        self.noise = FLIPPED if self.is_binary else BLUR * train.var(0).mean().sqrt().item()

    def seeded(self, work: Callable[[], object]) -> object:
        """Works from the bench's seed, and leaves the caller's random state as it was."""
        with torch.random.fork_rng():
            torch.manual_seed(self.seed)
            return work()

    def measure(self, name: str, source: Source, num_samples: int, progress: bool) -> Row:
        """Runs all stages of one model; those after a failed fit are left out."""
        self.model: Generative | None = None
        self.samples: Tensor | None = None
        self.scores: dict[str, Tensor] = {}
        row = Row(name)
        if not self._stage(row, "making", lambda: self._make(row, source)):
            return row
        if not self._stage(row, "fit", lambda: self._fit(row, self.model, progress)):
            return row
        for stage, work in {
            "likelihood": functools.partial(self._likelihood, row, self.model),
            "samples": functools.partial(self._samples, row, self.model, num_samples),
            "typicality": functools.partial(self._typicality, row, self.model),
            "inpainting": functools.partial(self._inpainting, row, self.model),
            "denoising": functools.partial(self._denoising, row, self.model),
            "composition": functools.partial(self._composition, row, self.model, source, progress),
        }.items():
            self._stage(row, stage, work)
        return row

    def _make(self, row: Row, source: Source) -> None:
        self.model = self.kept.load(row, self.seed)
        if self.model is not None:
            return
        made = source if isinstance(source, Generative) else source()
        if not isinstance(made, Generative):
            raise TypeError(f"it must be a Generative, got a {type(made).__name__}")
        self.model = made

    def _stage(self, row: Row, stage: str, work: Callable[[], None]) -> bool:
        try:
            self.seeded(work)
        except Exception as error:  # noqa: BLE001 - it may fail in any way
            said = str(error)
            said = said if len(said) <= LONGEST else said[:LONGEST] + " ..."
            row.errors.append(f"{stage} failed: {type(error).__name__}: {said}")
            return False
        return True

    def _fit(self, row: Row, model: Generative, progress: bool) -> None:
        if not model.is_fitted:
            with PeakMemory(model) as memory, Passes(model) as passes:
                began = time.perf_counter()
                model.fit(self.train, progress=progress)
                row.train_seconds = time.perf_counter() - began
            row.train_memory = _measured(row, memory)
            if not getattr(getattr(model, "objective", None), "compile", False):
                row.train_passes = passes.count  # native code passes by what counts
            self.kept.save(row, self.seed, model)
        row.num_parameters = model.num_parameters
        row.num_evaluations = model.num_evaluations

    def _likelihood(self, row: Row, model: Generative) -> None:
        likelihood = check_likelihood(model.log_prob(self.test), len(self.test))
        row.kind = likelihood.kind
        if likelihood.value is None:
            self._estimate(row, model)
            return
        row.log_prob = _mean(likelihood.value.double())
        if self.law is None:
            return
        if likelihood.kind == "bound":  # drawn anew at each point: too dear, and noisy, on a grid
            row.kl = _mean(self.law.log_prob(self.test).double() - likelihood.value.double())
        else:
            row.kl = kl_divergence(
                self.law.log_prob, lambda x: model.log_prob(x).value, self.law.half_width
            )

    def _estimate(self, row: Row, model: Generative) -> None:
        """Estimates the likelihood of an energy whose log Z the model does not know."""
        energy = model.as_energy()
        if energy is None:
            row.notes.append("no likelihood: no density that can be evaluated")
            return
        row.kind, row.log_prob, row.bracket, notes = bracketed(energy, self.test)
        row.notes += notes

    def _samples(self, row: Row, model: Generative, num_samples: int) -> None:
        with PeakMemory(model) as memory:
            began = time.perf_counter()
            self.samples = model.sample(num_samples)
            row.sample_seconds = (time.perf_counter() - began) * 1000 / num_samples
        row.sample_memory = _measured(row, memory)
        self.against_data(row, self.samples)
        row.copying = data_copying(self.samples, self.train, self.test)

    def reference(self, num_samples: int) -> Row:
        """Measures training data in place of samples."""
        row = Row(REFERENCE)
        some = self.seeded(lambda: self.train[torch.randperm(len(self.train))[:num_samples]])
        self.against_data(row, some)
        if self.parts is not None:
            row.composition = energy_distance(self.parts.again, self.parts.product)
        return row

    def against_data(self, row: Row, samples: Tensor) -> None:
        """Compares samples with the held-out data, and with the modes of their law."""
        row.mmd = mmd(samples, self.test, self.bandwidth)
        row.energy_distance = energy_distance(samples, self.test)
        directions = torch.Generator().manual_seed(self.seed)
        row.wasserstein = sliced_wasserstein(samples, self.test, generator=directions)
        row.c2st = classifier_two_sample(samples, self.test, self.seed)
        row.precision, row.recall = precision_recall(samples, self.test)
        if self.law is not None and self.law.modes is not None:
            row.mode_error, row.modes_found = mode_weights(samples, *self.law.modes)

    def _typicality(self, row: Row, model: Generative) -> None:
        self.scores = {"held-out data": model.typicality(self.test)}
        if self.samples is not None:
            self.scores["own samples"] = model.typicality(self.samples)
        for name, x in self.ood.items():
            self.scores[name] = model.typicality(x)
            row.auroc[name] = auroc(self.scores["held-out data"], self.scores[name])

    def _inpainting(self, row: Row, model: Generative) -> None:
        x, known = self.test[:NUM_RESTORED], first_half(self.test.shape[1:])
        if known is None:
            row.notes.append("no inpainting: points of one coordinate have no half")
            return
        try:
            draws = model.inpaint(x, known, NUM_DRAWS, warmup_steps=NUM_DRAWS)
        except NotImplementedError as reason:
            row.notes.append(f"no inpainting: {reason}")
        else:
            row.inpainting = restoration_error(draws, x, known)

    def _denoising(self, row: Row, model: Generative) -> None:
        x = self.test[:NUM_RESTORED]
        if self.is_binary:
            y = torch.where(torch.rand_like(x) < self.noise, 1 - x, x)
        else:
            y = x + self.noise * torch.randn_like(x)
        try:
            draws = model.denoise(y, self.noise, NUM_DRAWS, warmup_steps=NUM_DRAWS)
        except NotImplementedError as reason:
            row.notes.append(f"no denoising: {reason}")
        else:
            row.denoising = restoration_error(draws, x)

    def _composition(self, row: Row, model: Generative, source: Source, progress: bool) -> None:
        if self.parts is None:
            return
        if model.as_energy() is None:
            row.notes.append(f"no composition: {type(model).__name__} has no density to multiply")
        elif isinstance(source, Generative):
            row.notes.append("no composition: it takes two more models, and a function makes them")
        else:
            both = [
                self.seeded(functools.partial(self._part, f"{row.model} of part {i}", source, x))
                for i, x in enumerate((self.parts.first, self.parts.second))
            ]
            row.composition = composition(*both, self.parts.product)

    def _part(self, name: str, source: Callable[[], Generative], x: Tensor) -> Generative:
        """Fits a model to a part of the law, or reads the one that was kept."""
        part = Row(name)
        model = self.kept.load(part, self.seed)
        if model is None:
            model = source().fit(x, progress=False)
            self.kept.save(part, self.seed, model)
        return model


def first_half(event_shape: Sequence[int]) -> Tensor | None:
    """Marks the first half of the columns of a table, or of the rows of an image.

    Example:
        >>> first_half((5,))
        tensor([ True,  True,  True, False, False])
        >>> first_half((1, 2, 2))
        tensor([[[ True,  True],
                 [False, False]]])
    """
    size = event_shape[-2 if len(event_shape) > 1 else -1] if len(event_shape) else 1
    if size < 2:
        return None
    first = torch.arange(size) < (size + 1) // 2
    return (first.unsqueeze(-1) if len(event_shape) > 1 else first).expand(event_shape)


def _measured(row: Row, memory: PeakMemory) -> float | None:
    """Returns the peak of memory; of one that was not measured, the row says why, once."""
    note = f"no peak of memory: {memory.reason}"
    if memory.reason is not None and note not in row.notes:
        row.notes.append(note)
    return memory.peak


def _mean(values: Tensor) -> Estimate:
    return Estimate(values.mean().item(), values.std().item() / math.sqrt(len(values)))
