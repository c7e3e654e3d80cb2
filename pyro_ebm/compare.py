"""Models side by side: fitted on the same data, measured by the same metrics."""

from __future__ import annotations

__all__ = ["compare"]

import functools
import math
import platform
import time
from collections.abc import Callable, Mapping
from importlib import metadata

import torch
from torch import Tensor

from .mcmc import MCMC
from .metrics import Estimate, auroc, classifier_two_sample, mmd
from .plotting import histograms, sample_grids, traces, training_curves
from .scorecard import Row, Scorecard
from .zoo.base import Generative, check_data

REFERENCE = "(train data)"
CAVEATS = [
    "log p is the mean over held-out data: «=» exact, «≥» a lower bound in expectation, «≈» an "
    "estimate. Numbers of unlike kinds are not ranked together, and of two bounds the lower may "
    "be the looser.",
    "MMD² is 0 and C2ST 0.5 where samples cannot be told from held-out data. The row (train data) "
    "is the floor: real data against real data.",
    "AUROC: how often held-out data are more typical for the model than out-of-distribution data; "
    "0.5 is chance, below it the model prefers the latter.",
    "± is one standard error of the metric, at one seed of training: how much another seed of "
    "training would move a number is not in it.",
    "Seconds depend on the machine and on what else it did.",
]


def compare(
    models: Mapping[str, Generative],
    train: Tensor,
    test: Tensor,
    *,
    ood: Mapping[str, Tensor] | None = None,
    num_samples: int | None = None,
    seed: int = 0,
    progress: bool = True,
) -> Scorecard:
    """Fits the models that are not fitted, and measures them all in the same way.

    Each stage of each model starts from the same seed, so that a row does not depend on the other
    rows. A stage that raises is named in the model's row, and the rest goes on.

    Args:
        models: Models by name.
        train: What to fit to, with shape ``(n, *event)``.
        test: Held-out data, with shape ``(m, *event)``.
        ood: Sets out of distribution by name, each with shape ``(k, *event)``.
        num_samples: How many samples to draw from each model; twice the held-out data unless
            given.
        seed: The seed of training, sampling and metrics.
        progress: Whether to show progress bars.

    Returns:
        The scorecard, with a reference row of training data in place of samples.

    Raises:
        ValueError: If there is no model, ``num_samples`` is below 5, or the shapes of the data
            differ or values are not finite.

    Example:
        >>> from pyro_ebm.zoo import VAE, Training
        >>> vae = VAE((2,), latent_dim=1, training=Training(num_steps=10))
        >>> card = compare({"vae": vae}, torch.randn(200, 2), torch.randn(50, 2), progress=False)
        >>> [row.model for row in card.rows], card["vae"].kind
        (['(train data)', 'vae'], 'bound')
    """
    ood = dict(ood or {})
    if not models:
        raise ValueError("models is empty; pass at least one, by name")
    for name, x in {"train": train, "test": test, **ood}.items():
        check_data(name, x, train.shape[1:])
    num_samples = 2 * len(test) if num_samples is None else num_samples
    if num_samples < 5:
        raise ValueError(f"num_samples must be at least 5, got {num_samples}")
    protocol = {
        "training points": len(train),
        "held-out points": len(test),
        "event shape": tuple(train.shape[1:]),
        "out of distribution": ", ".join(f"{k} ({len(x)})" for k, x in ood.items()) or "none",
        "samples of each model": num_samples,
        "MMD bandwidth (units of x)": _bandwidth(test),
        "seed": seed,
        **_versions(),
    }
    reference = Row(REFERENCE)
    bench = _Bench(test, ood, protocol["MMD bandwidth (units of x)"], seed)
    bench.against_test(
        reference, bench.seeded(lambda: train[torch.randperm(len(train))[:num_samples]])
    )
    card = Scorecard([reference], protocol, list(CAVEATS))
    samples, scores = {}, {}
    for name, model in models.items():
        row = bench.measure(name, model, train, num_samples, progress)
        card.rows.append(row)
        samples[name], scores[name] = bench.samples, bench.scores
    _add_figures(card, models, test, samples, scores)
    return card


class _Bench:
    """Measures one model after another against one held-out set."""

    def __init__(self, test: Tensor, ood: dict[str, Tensor], bandwidth: float, seed: int) -> None:
        self.test, self.ood, self.bandwidth, self.seed = test, ood, bandwidth, seed

    def seeded(self, work: Callable[[], object]) -> object:
        """Works from the bench's seed, and leaves the caller's random state as it was."""
        with torch.random.fork_rng():
            torch.manual_seed(self.seed)
            return work()

    def measure(
        self, name: str, model: Generative, train: Tensor, num_samples: int, progress: bool
    ) -> Row:
        """Runs all stages of one model; those after a failed fit are left out."""
        self.samples: Tensor | None = None
        self.scores: dict[str, Tensor] = {}
        row = Row(name)
        stages = {
            "likelihood": functools.partial(self._likelihood, row, model),
            "samples": functools.partial(self._samples, row, model, num_samples),
            "typicality": functools.partial(self._typicality, row, model),
        }
        if self._stage(row, "fit", lambda: self._fit(row, model, train, progress)):
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

    def _fit(self, row: Row, model: Generative, train: Tensor, progress: bool) -> None:
        if not model.is_fitted:
            began = time.perf_counter()
            model.fit(train, progress=progress)
            row.train_seconds = time.perf_counter() - began
        row.num_parameters = model.num_parameters

    def _likelihood(self, row: Row, model: Generative) -> None:
        likelihood = model.log_prob(self.test)
        row.kind = likelihood.kind
        if likelihood.value is not None:
            value = likelihood.value.double()
            std_error = value.std().item() / math.sqrt(len(value))
            row.log_prob = Estimate(value.mean().item(), std_error)

    def _samples(self, row: Row, model: Generative, num_samples: int) -> None:
        began = time.perf_counter()
        self.samples = model.sample(num_samples)
        row.sample_seconds = (time.perf_counter() - began) * 1000 / num_samples
        self.against_test(row, self.samples)

    def against_test(self, row: Row, samples: Tensor) -> None:
        """Compares samples with the held-out data."""
        row.mmd = mmd(samples, self.test, self.bandwidth)
        row.c2st = classifier_two_sample(samples, self.test, self.seed)

    def _typicality(self, row: Row, model: Generative) -> None:
        self.scores = {"held-out data": model.typicality(self.test)}
        if self.samples is not None:
            self.scores["own samples"] = model.typicality(self.samples)
        for name, x in self.ood.items():
            self.scores[name] = model.typicality(x)
            row.auroc[name] = auroc(self.scores["held-out data"], self.scores[name])


def _bandwidth(test: Tensor) -> float:
    """Returns the median distance within held-out data: one bandwidth for all rows."""
    return torch.pdist(test.flatten(1).double()).median().item()


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in ("pyro_ebm", "torch", "pyro-ppl", "scikit-learn"):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def _add_figures(
    card: Scorecard,
    models: Mapping[str, Generative],
    test: Tensor,
    samples: dict[str, Tensor | None],
    scores: dict[str, dict[str, Tensor]],
) -> None:
    drawn = {name: x for name, x in samples.items() if x is not None}
    if test.dim() == 4 or test.shape[1:] == (2,):
        card.figures["samples"] = lambda: sample_grids({"held-out data": test, **drawn})
    if scored := {name: sets for name, sets in scores.items() if sets}:
        card.figures["typicality"] = lambda: histograms(scored)
    if histories := {name: model.history for name, model in models.items() if model.history}:
        card.figures["training"] = lambda: training_curves(histories)
    for name, model in models.items():
        if model.mcmc is not None and drawn.get(name) is not None:
            card.figures[f"chains of {name}"] = functools.partial(_chain_traces, model.mcmc)


def _chain_traces(mcmc: MCMC) -> object:
    """Draws the log density and the three coordinates that vary most."""
    draws = {"lp (nats)": mcmc.sample_stats["lp"]}
    for site, values in mcmc.get_samples(group_by_chain=True).items():
        flat = values.flatten(2) if values.dim() > 2 else values.unsqueeze(-1)
        for i in flat.flatten(0, 1).var(0).topk(min(3, flat.shape[-1])).indices.tolist():
            index = torch.unravel_index(torch.tensor(i), values.shape[2:] or (1,))
            draws[f"{site}[{','.join(str(int(j)) for j in index)}]"] = flat[..., i]
    return traces(draws)
