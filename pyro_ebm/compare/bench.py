"""The bench: one model after another, measured in the same way."""

from __future__ import annotations

__all__ = ["Bench"]

import functools
import math
import time
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from ..datasets import Toy
from ..metrics.base import Estimate
from ..metrics.detection import auroc
from ..metrics.known_law import kl_divergence, mode_weights
from ..metrics.neighbours import data_copying, precision_recall
from ..metrics.two_sample import classifier_two_sample, energy_distance, mmd, sliced_wasserstein
from ..scorecard import Row
from ..zoo.base import Generative


class Bench:
    """Measures one model after another against the same held-out data.

    Args:
        train: What models are fitted to, with shape ``(n, *event)``.
        test: Held-out data, with shape ``(m, *event)``.
        ood: Sets out of distribution by name.
        law: The law of the data, where it is known.
        bandwidth: The bandwidth of the maximum mean discrepancy.
        seed: The seed of every stage.

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
    ) -> None:
        self.train, self.test, self.ood, self.law = train, test, ood, law
        self.bandwidth, self.seed = bandwidth, seed

    def seeded(self, work: Callable[[], object]) -> object:
        """Works from the bench's seed, and leaves the caller's random state as it was."""
        with torch.random.fork_rng():
            torch.manual_seed(self.seed)
            return work()

    def measure(self, name: str, model: Generative, num_samples: int, progress: bool) -> Row:
        """Runs all stages of one model; those after a failed fit are left out."""
        self.samples: Tensor | None = None
        self.scores: dict[str, Tensor] = {}
        row = Row(name)
        stages = {
            "likelihood": functools.partial(self._likelihood, row, model),
            "samples": functools.partial(self._samples, row, model, num_samples),
            "typicality": functools.partial(self._typicality, row, model),
        }
        if self._stage(row, "fit", lambda: self._fit(row, model, progress)):
            for stage, work in stages.items():
                self._stage(row, stage, work)
        return row

    def _stage(self, row: Row, stage: str, work: Callable[[], None]) -> bool:
        try:
            self.seeded(work)
        except Exception as error:  # noqa: BLE001 - it may fail in any way
            row.errors.append(f"{stage} failed: {type(error).__name__}: {error}")
            return False
        return True

    def _fit(self, row: Row, model: Generative, progress: bool) -> None:
        if not model.is_fitted:
            began = time.perf_counter()
            model.fit(self.train, progress=progress)
            row.train_seconds = time.perf_counter() - began
        row.num_parameters = model.num_parameters
        row.num_evaluations = model.num_evaluations

    def _likelihood(self, row: Row, model: Generative) -> None:
        likelihood = model.log_prob(self.test)
        row.kind = likelihood.kind
        if likelihood.value is None:
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

    def _samples(self, row: Row, model: Generative, num_samples: int) -> None:
        began = time.perf_counter()
        self.samples = model.sample(num_samples)
        row.sample_seconds = (time.perf_counter() - began) * 1000 / num_samples
        self.against_data(row, self.samples)
        row.copying = data_copying(self.samples, self.train, self.test)

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


def _mean(values: Tensor) -> Estimate:
    return Estimate(values.mean().item(), values.std().item() / math.sqrt(len(values)))
