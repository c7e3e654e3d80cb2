"""Models side by side: fitted on the same data, measured by the same metrics."""

from __future__ import annotations

__all__ = ["compare"]

import functools
import platform
from collections.abc import Mapping, Sequence
from importlib import metadata

import torch
from torch import Tensor

from ..datasets import Toy
from ..mcmc import MCMC
from ..plotting import histograms, sample_grids, traces, training_curves
from ..ranks.group import rank
from ..zoo.base import Generative, check_data
from .bench import Bench, Source
from .composing import parts_of
from .fitted import Fitted
from .scorecard import Scorecard
from .sharding import Cell, check_common, measured
from .spread import over_seeds

CAVEAT_OF_ONE_SEED = (
    "±: one standard error of the metric, at one seed of training: how much another seed of "
    "training would move a number is not in it."
)
CAVEAT_OF_SEEDS = (
    "±: each number is the mean over {} seeds of training, and ± the standard deviation over "
    "them: each makes, trains and draws from every model anew, on the same data. The standard "
    "error of a metric at one seed is in the files."
)
CAVEATS = {
    "log p": "the mean over held-out data: «=» exact, «≥» a lower bound in expectation, «≈» an "
    "estimate. Numbers of unlike kinds are not ranked together, and of two bounds the lower may "
    "be the looser.",
    "bracket": "of an energy whose log Z is estimated, from both sides: where log p lies by the "
    "bounds on log Z, for these held-out data; each is a bound in expectation, two of its "
    "standard errors further out. A wide one, or one in doubt, says that log p is not known; and "
    "however narrow it is, a mode that neither side found is in neither.",
    "KL": "the divergence of the model from the law of the data: by quadrature, with the error of "
    "the rule where it shows; «≤», of a bound on log p, is a mean over held-out data.",
    "weight error": "half the sum of |found - true| over the weights of the modes of the law, by "
    "samples: of an energy, by its chains, which begin somewhere and may not cross, whatever its "
    "density says.",
    "modes": "how many are found, with a tenth of their weight at least.",
    "MMD²": "0 where samples cannot be told from held-out data; it may come out below.",
    "SW": "the sliced Wasserstein distance of samples from held-out data, in units of the data; "
    "above 0 even of other data.",
    "C2ST": "how often a classifier tells samples from held-out data: 0.5 where it cannot.",
    "precision": "how many samples lie among held-out data. What data against data give, and not "
    "1, is the best that can be expected.",
    "recall": "how many of the held-out data lie among samples; the same holds.",
    "copying": "how often a sample is nearer to the training data than held-out data are; 0.5 is "
    "right, 1 a copy. A model that blurs comes below, one that draws only the typical above.",
    "inpainting": "the mean squared error of the second half of 100 held-out points (of an image, "
    "its lower rows), given the first, by the mean of 60 draws given the evidence: exact, or by "
    "short chains of the model, so that a model is charged with what its chains miss.",
    "denoising": "the same of whole points, given readings with noise of half the spread of the "
    "data, or with a tenth of zeros and ones flipped.",
    "composition": "each family learns two parts of the law apart, what is right and what is up "
    "(a point is kept with the probability of a sigmoid of that coordinate), and the densities of "
    "the two models are multiplied: the energy distance, in units of the data, of draws from that "
    "product, by chains of HMC, from draws of the product of the two true densities, by a grid.",
    "AUROC": "how often held-out data are more typical for the model than out-of-distribution "
    "data; 0.5 is chance, below it the model prefers the latter.",
    "train (s)": "seconds of training; like s / 1,000, those of 1,000 samples, they depend on the "
    "machine and on what else it did.",
    "train passes": "how many passes of single points through the networks training took, counted "
    "as they happened, those of chains too; the way back of a gradient is not counted apart.",
    "train (MB)": "the most memory that training held beyond what was held before it, and for "
    "sample (MB) drawing all samples at once: by the peak of the process, or by what torch "
    "allocated on a CUDA device. A few MB are code that is loaded at its first use, by whatever "
    "model comes first; they depend on the machine.",
    "evaluations": "how often a network is evaluated for one sample, where the model says so.",
}
"""What to know of a column, by how it begins; the card has it where the column is shown."""

CAVEATS_OF_ALL = [
    "(train data): the floor: real data against real data, in place of samples.",
    "–: nothing to measure, as of a model without a density, or a baseline without a network. "
    "What failed, and what could not be measured, is named on its own.",
]


def compare(
    models: Mapping[str, Source],
    train: Tensor,
    test: Tensor,
    *,
    ood: Mapping[str, Tensor] | None = None,
    law: Toy | None = None,
    composition: bool = False,
    num_samples: int | None = None,
    seed: int = 0,
    num_seeds: int = 1,
    progress: bool = True,
    kept: Fitted | None = None,
) -> Scorecard:
    """Fits the models that are not fitted, and measures them all in the same way.

    Each stage of each model starts from the same seed, so that a row does not depend on the other
    rows. A stage that raises is named in the model's row, and the rest goes on.

    Ranks (:mod:`pyro_ebm.ranks`) share the models and seeds, and every rank has the card that one
    process would have, but for seconds and memory. A model that is not made by a function is
    fitted on the rank that measures it, and stays as it is on others.

    Args:
        models: Models by name, or functions without an argument that make them.
        train: What to fit to, with shape ``(n, *event)``.
        test: Held-out data, with shape ``(m, *event)``.
        ood: Sets out of distribution by name, each with shape ``(k, *event)``.
        law: The law of the data, where it is known: it adds divergences from it, and the weights
            of its modes.
        composition: Whether to fit two more models of each that is made by a function, to two
            parts of the law, and to compare their product with the product that is known.
        num_samples: How many samples to draw from each model; twice the held-out data unless
            given.
        seed: The seed of training, sampling and metrics, and of a function that makes a model.
        num_seeds: From how many seeds to train, this one and those after it: numbers are then
            means, with their standard deviations over seeds, and models must be functions.
        progress: Whether to show progress bars.
        kept: Where fitted models are kept, and read in place of fitting them again.

    Returns:
        The scorecard, with a reference row of training data in place of samples.

    Raises:
        ValueError: If there is no model, ``num_samples`` is below 5, there are fewer than 5
            held-out points, all of these are equal, the shapes of the data differ, values are not
            finite, a ``law`` is given for points that are not of the plane, or none with
            ``composition``, ``num_seeds`` is not positive, or above 1 with a model that is no
            function, or ranks come with unlike models or data.

    Example:
        >>> from pyro_ebm.zoo import VAE, Training
        >>> vae = VAE((2,), latent_dim=1, training=Training(num_steps=10))
        >>> card = compare({"vae": vae}, torch.randn(200, 2), torch.randn(50, 2), progress=False)
        >>> [row.model for row in card.rows], card["vae"].kind
        (['(train data)', 'vae'], 'bound')
    """
    ood = dict(ood or {})
    _check_models(models)
    _check_points({"train": train, "test": test, **ood})
    _check_law(law, train, composition)
    num_samples = 2 * len(test) if num_samples is None else num_samples
    for name, number in {
        "num_samples": num_samples,
        "the number of test points": len(test),
    }.items():
        if number < 5:
            raise ValueError(f"{name} must be at least 5, got {number}")
    _check_seeds(models, num_seeds)
    check_common(list(models), [train, test, *ood.values()], num_samples, seed, num_seeds)
    bandwidth = _bandwidth(test)
    parts = None
    if composition:
        parts = parts_of(law, len(train), num_samples, torch.Generator().manual_seed(seed))
    known = {"bandwidth": bandwidth, "kept": kept, "parts": parts}
    make = functools.partial(Bench, train, test, ood, law, **known)
    benches = [make(seed=seed + i) for i in range(num_seeds)]
    reference = over_seeds({bench.seed: bench.reference(num_samples) for bench in benches})
    protocol = {
        "training points": len(train),
        "held-out points": len(test),
        "event shape": tuple(train.shape[1:]),
        "out of distribution": ", ".join(f"{k} ({len(x)})" for k, x in ood.items()) or "none",
        "samples of each model": num_samples,
        "MMD bandwidth (units of x)": bandwidth,
        "seed": seed if num_seeds == 1 else ", ".join(str(bench.seed) for bench in benches),
        **_versions(),
    }
    card = Scorecard([reference], protocol)
    # A random mixture of pixels says little; where the law is known, its divergence says more.
    card.left_out = ("SW",) if train.dim() == 4 else ("MMD²",) if law is not None else ()
    progress = progress and rank() == 0
    cells = measured(
        [
            functools.partial(_cell, bench, name, source, num_samples, progress, drawn=not i)
            for name, source in models.items()
            for i, bench in enumerate(benches)
        ]
    )
    firsts = cells[::num_seeds]
    for i in range(0, len(cells), num_seeds):
        own = zip(benches, cells[i : i + num_seeds], strict=True)
        card.rows.append(over_seeds({bench.seed: cell.row for bench, cell in own}))
    shown = " ".join(card.table()[0])
    card.caveats = [
        CAVEAT_OF_ONE_SEED if num_seeds == 1 else CAVEAT_OF_SEEDS.format(num_seeds),
        *CAVEATS_OF_ALL,
        *(f"{term}: {text}" for term, text in CAVEATS.items() if term in shown),
    ]
    _add_figures(card, firsts, test)
    return card


def _cell(
    bench: Bench, name: str, source: Source, num_samples: int, progress: bool, *, drawn: bool
) -> Cell:
    """Measures a model from one seed; what figures take is kept only if they are drawn of it."""
    row = bench.measure(name, source, num_samples, progress)
    model = bench.model
    if model is None or not drawn:
        return Cell(row)
    draws = None if model.mcmc is None or bench.samples is None else _chain_draws(model.mcmc)
    return Cell(row, bench.samples, bench.scores, dict(model.history), draws)


def _check_law(law: Toy | None, train: Tensor, composition: bool) -> None:
    if law is not None and train.shape[1:] != (2,):
        raise ValueError(f"law is for points (n, 2), but train has shape {tuple(train.shape)}")
    if composition and law is None:
        raise ValueError(
            "composition=True needs the law of the data to know the product by; pass law="
        )


def _check_models(models: object) -> None:
    if not isinstance(models, Mapping):
        raise ValueError(
            f"models must be a dict of models by their names, got {type(models).__name__}"
        )
    if not models:
        raise ValueError("models is empty; pass at least one, by name")


def _check_points(sets: Mapping[str, Tensor]) -> None:
    event_shape = getattr(sets["train"], "shape", ())[1:]
    for name, x in sets.items():
        check_data(name, x, event_shape)
        if x.dim() == 1:
            raise ValueError(f"{name} must have a column, got shape {tuple(x.shape)}: x[:, None]")
        if not x.is_floating_point():
            raise ValueError(f"{name} must be floating-point numbers, got {x.dtype}: x.float()")


def _check_seeds(models: Mapping[str, Source], num_seeds: int) -> None:
    if num_seeds < 1:
        raise ValueError(f"num_seeds must be at least 1, got {num_seeds}")
    made = [name for name, model in models.items() if isinstance(model, Generative)]
    if num_seeds > 1 and made:
        raise ValueError(
            f"num_seeds={num_seeds} makes and trains each model anew, but '{made[0]}' is a "
            f"{type(models[made[0]]).__name__} that was made already; pass a function that makes "
            f"it: models={{'{made[0]}': lambda: ...}}"
        )


def _bandwidth(test: Tensor) -> float:
    """Returns the median distance within held-out data: one bandwidth for all rows."""
    bandwidth = torch.pdist(test.flatten(1).double()).median().item()
    if bandwidth == 0:
        raise ValueError(
            "test has more equal points than unlike ones: there is nothing to compare"
        )
    return bandwidth


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in ("pyro_ebm", "torch", "pyro-ppl", "scikit-learn"):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def _add_figures(card: Scorecard, cells: Sequence[Cell], test: Tensor) -> None:
    drawn = {cell.row.model: cell.samples for cell in cells if cell.samples is not None}
    if test.dim() == 4 or test.shape[1:] == (2,):
        card.figures["samples"] = lambda: sample_grids({"held-out data": test, **drawn})
    if scored := {cell.row.model: cell.scores for cell in cells if cell.scores}:
        card.figures["typicality"] = lambda: histograms(scored)
    histories = {
        cell.row.model: {k: values for k, values in cell.history.items() if len(values) > 1}
        for cell in cells
    }
    if histories := {name: history for name, history in histories.items() if history}:
        card.figures["training"] = lambda: training_curves(histories)
    for cell in cells:
        if cell.draws is not None:
            card.figures[f"chains of {cell.row.model}"] = functools.partial(traces, cell.draws)


def _chain_draws(mcmc: MCMC) -> dict[str, Tensor]:
    """Takes of chains the log density and the three coordinates that vary most."""
    draws = {"lp (nats)": mcmc.sample_stats["lp"]}
    for site, values in mcmc.get_samples(group_by_chain=True).items():
        flat = values.flatten(2) if values.dim() > 2 else values.unsqueeze(-1)
        for i in flat.flatten(0, 1).var(0).topk(min(3, flat.shape[-1])).indices.tolist():
            index = torch.unravel_index(torch.tensor(i), values.shape[2:] or (1,))
            draws[f"{site}[{','.join(str(int(j)) for j in index)}]"] = flat[..., i]
    return draws
