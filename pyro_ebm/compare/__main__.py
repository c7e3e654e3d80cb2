"""``python -m pyro_ebm.compare``: families of models on one scorecard, from the shell."""

from __future__ import annotations

__all__ = ["main", "run"]

import argparse
import functools
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from ..ranks.group import rank, start
from ..runs.fingerprint import describe
from .data import DATASETS, Dataset, load
from .fitted import Fitted
from .models import MODELS, make
from .scorecard import Row, Scorecard
from .side_by_side import compare

LONGEST = 24 * 3600.0
"""For how many seconds ranks wait for the one that measures longest."""


def run(
    source: str,
    names: Sequence[str] = (),
    *,
    quick: bool = False,
    seed: int = 0,
    num_seeds: int = 1,
    progress: bool = True,
    keep: str | os.PathLike | None = None,
) -> Scorecard:
    """Loads data, makes models with settings for them, and compares these.

    Args:
        source: The name of the data, or the path of a ``.npy`` file.
        names: The names of the models; all that serve the data unless given. One that does not
            has a row that says so.
        quick: Whether to train for about a quarter of the time, and not to compose models, which
            takes two more of each.
        seed: The seed of everything.
        num_seeds: From how many seeds to train, this one and those after it; data and split stay.
        progress: Whether to show progress bars.
        keep: A folder that fitted models are kept in. A run that was stopped, and is called again,
            reads what it finds there in place of fitting it; other data, settings and seeds do
            not find it.

    Returns:
        The scorecard.

    Raises:
        ValueError: If a name is unknown, or the data are bad.
        OSError: If the folder cannot be made.

    Example:
        >>> card = run("two_moons", ["independent"], quick=True, progress=False)
        >>> card["independent"].kl.value > 0.1
        True
    """
    for name in names:
        if name not in MODELS:
            raise ValueError(f"there is no model {name!r}; there are {', '.join(MODELS)}")
    data = load(source, quick=quick, seed=seed)
    models, others = {}, []
    for name in names or MODELS:
        fault = _fault(name, data, quick)
        if fault is None:
            models[name] = functools.partial(make, name, data.kind, data.train, quick=quick)
        elif names or fault != _UNSERVED:
            others.append(Row(name, errors=[fault]))
    if not models:
        raise ValueError("; ".join(f"{row.model}: {row.errors[0]}" for row in others))
    kept = Fitted(keep, f"{describe(data.train)}, {data.kind}, {quick}")
    began = time.process_time()
    card = compare(
        models,
        data.train,
        data.test,
        ood=data.ood,
        law=data.law,
        composition=data.law is not None and not quick,
        seed=seed,
        num_seeds=num_seeds,
        progress=progress,
        kept=kept,
    )
    card.rows += others
    card.protocol = {
        "data": f"{data.name} ({data.kind}): {data.note}",
        "settings": "quick" if quick else "full",
        "CPU seconds of it all": round(time.process_time() - began),
        **card.protocol,
        **kept.protocol,
    }
    return card


def _fault(name: str, data: Dataset, quick: bool) -> str | None:
    """Says why a model cannot be made, if it cannot."""
    with torch.random.fork_rng():
        try:
            model = make(name, data.kind, data.train, quick=quick)
        except ValueError as error:
            return f"could not be made: {error}"
    return _UNSERVED if model is None else None


_UNSERVED = "does not serve data of this kind"


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command, and returns its exit status: 2 where it was asked for what is not.

    Args:
        arguments: The words after the command; those of the shell unless given.
    """
    parser = argparse.ArgumentParser(
        prog="python -m pyro_ebm.compare",
        description="Fits families of models to the same data, and measures them the same way.",
    )
    parser.add_argument(
        "--data", default="digits", help=f"{', '.join(DATASETS)}, or the path of a .npy file"
    )
    parser.add_argument(
        "--models", default="", help=f"of {','.join(MODELS)}; all that serve the data by default"
    )
    parser.add_argument("--out", default="report/", help="where to save table, figures and page")
    parser.add_argument("--quick", action="store_true", help="a quarter of the training")
    parser.add_argument("--seed", type=int, default=0, help="the seed of everything")
    parser.add_argument(
        "--seeds", type=int, default=1, help="from how many seeds to train, for a spread over them"
    )
    parser.add_argument("--threads", type=int, default=1, help="threads of torch")
    args = parser.parse_args(arguments)
    torch.set_num_threads(args.threads)
    start(LONGEST)
    names = [name.strip() for name in args.models.split(",") if name.strip()]
    try:
        card = run(
            args.data,
            names,
            quick=args.quick,
            seed=args.seed,
            num_seeds=args.seeds,
            keep=Path(args.out) / "fitted",
        )
    except (ValueError, ImportError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if rank() > 0:
        return 0
    print(card)
    print(f"\nthe page with all figures: {card.save(args.out)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
