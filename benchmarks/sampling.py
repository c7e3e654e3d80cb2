"""Effective samples per second of every sampler on every target.

«cold» is the time from after the imports to the last draw, in a fresh process with empty compiler
caches; «hot» that of the sampling alone, without warmup, in a second run of the same process. A
row whose chains have not mixed, or whose means are off, is void.
"""

import json
import os
import statistics
import tempfile
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch

from benchmarks import agreement, process, results
from benchmarks.observations import dtype_of
from benchmarks.quality import quality
from benchmarks.references import has_reference, reference
from benchmarks.samplers import SAMPLERS
from benchmarks.targets import MODELS, potential_of, starting_points, use_dtype_of

KEY = ("target", "sampler", "chains", "seed")


def add_arguments(parser):
    labels = dict.fromkeys(sampler.label for sampler in SAMPLERS)
    parser.add_argument("--targets", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--samplers", nargs="+", choices=labels, default=list(labels))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--draws", type=int, default=500, help="draws and warmup steps per chain")
    parser.add_argument("--limit", type=float, default=120.0, help="seconds of one process")


def main(args):
    """Runs the cells, seed by seed, so that a run cut short has rows for all."""
    about = results.about("sampling", draws=args.draws, limit=args.limit)
    before = results.load("sampling")
    rows = {key(row): row for row in before["rows"] if before["about"] == about}
    cells = list(chosen(args))
    for seed in range(args.seeds):
        for target, sampler, chains in cells:
            row = measure(target, sampler, chains, seed, args.draws, args.limit)
            rows[key(row)] = row
            results.save("sampling", about, list(rows.values()))
            print(line(row), flush=True)
    report(list(rows.values()))


def key(row):
    return tuple(row[name] for name in KEY)


def chosen(args):
    """Yields the cells, after those checks that are worth making once."""
    samplers = [sampler for sampler in SAMPLERS if sampler.label in args.samplers]
    for environment in {sampler.environment for sampler in samplers}:
        if not process.exists(environment):
            names = [s.label for s in samplers if s.environment == environment]
            print(f"left out: {', '.join(names)} (`make bench` installs them)")
            samplers = [s for s in samplers if s.environment != environment]
    for target in args.targets:
        if not has_reference(target):
            print(f"left out: {target} (`python -m benchmarks references` finds its moments)")
            continue
        use_dtype_of(target)
        if any(sampler.environment == "jax" for sampler in samplers):
            agreement.check(target, potential_of(target))
        for sampler in samplers:
            for chains in sampler.counts(target):
                yield target, sampler, chains


def measure(target, sampler, chains, seed, num_draws, limit):
    """Runs a cell and returns its row."""
    row = {"target": target, "sampler": sampler.label, "chains": chains, "seed": seed}
    row |= {"ours": sampler.is_ours, "dtype": dtype_of(target), "load": os.getloadavg()[0]}
    use_dtype_of(target)
    potential = potential_of(target)
    with tempfile.TemporaryDirectory() as folder:
        start, out = Path(folder) / "start.npz", Path(folder) / "draws.npz"
        np.savez(start, **starting_points(potential, chains, seed))
        words = {"target": target, "dtype": dtype_of(target), "chains": chains, "seed": seed}
        words |= {"draws": num_draws, "start": start, "out": out} | sampler.words
        try:
            printed = process.run(sampler.environment, sampler.module, words, limit)
        except process.Failed as failure:
            return row | {"void": str(failure)}
        draws = {name: torch.from_numpy(v) for name, v in np.load(out).items()}
    numbers = json.loads(printed.splitlines()[-1])
    if not numbers["hot"] > 0:  # a difference of two times, for nutpie
        return row | {"void": "sampling took too little time to measure"}
    if "z" in draws:
        draws = potential.constrain(draws["z"].to(torch.get_default_dtype()))
    found = quality(draws, reference(target))
    per_draw = found.ess / (chains * num_draws)
    for name in ("useful", "executed"):
        if f"gradients_{name}" in numbers:
            numbers[f"ess_per_gradient_{name}"] = per_draw / numbers[f"gradients_{name}"]
    return row | {
        "void": found.void,
        "ess": found.ess,
        "r_hat": found.r_hat,
        "z": found.z,
        "hot_per_second": found.ess / numbers["hot"],
        "cold_per_second": found.ess / numbers["cold"],
        **numbers,
    }


def line(row):
    """A row for the eye."""
    name = f"{row['target']:16} {row['sampler']:15} {row['chains']:5} chains  seed {row['seed']}"
    if "ess" not in row:
        return f"{name}  VOID: {row['void']}"
    return (
        f"{name}  R-hat {row['r_hat']:.3f}  |z| {row['z']:4.1f}  hot {row['hot_per_second']:10.1f}"
        f"/s  cold {row['cold_per_second']:9.1f}/s" + (row["void"] and f"  VOID: {row['void']}")
    )


def medians(rows):
    """Returns, by target and (sampler, chains), the medians of what more than half the seeds gave.

    Each value is a dict of ``field: (median, least, most)``.
    """
    groups = defaultdict(list)
    for row in rows:
        groups[row["target"], row["sampler"], row["chains"]].append(row)
    found = defaultdict(dict)
    for (target, sampler, chains), group in groups.items():
        valid = [row for row in group if not row["void"]]
        if 2 * len(valid) <= len(group):
            continue
        fields = [f for f, value in valid[0].items() if isinstance(value, float)]
        found[target][sampler, chains] = {"ours": valid[0]["ours"]} | {
            field: (statistics.median(values), min(values), max(values))
            for field in fields
            if (values := [row[field] for row in valid])
        }
    return found


def report(rows):
    """Prints medians by target, and the ratios of our best to the best of others."""
    for target, table in medians(rows).items():
        print(f"\n{target}: ESS/s, median (least .. most)")
        for (sampler, chains), values in table.items():
            cells = "  ".join(
                f"{kind} {spread(values[f'{kind}_per_second'])}" for kind in ("hot", "cold")
            )
            per_gradient = values.get("ess_per_gradient_executed")
            cells += f"  ESS/gradient {per_gradient[0]:.4f}" if per_gradient else ""
            print(f"  {sampler:15} {chains:5} chains  {cells}")
        for kind in ("hot", "cold"):
            print(f"  {kind}: " + ", ".join(ratios(table, f"{kind}_per_second")))
    for target, sampler, chains, reasons in voids(rows):
        print(f"VOID {target} {sampler} {chains}: {reasons}")


def spread(values):
    median, least, most = (f"{v:,.1f}" if v < 100 else f"{v:,.0f}" for v in values)
    return f"{median:>9} ({least} .. {most})"


def ratios(table, field):
    """Says how our best does against each group of others."""

    def best(wanted):
        found = [v[field][0] for (sampler, _), v in table.items() if wanted(sampler, v["ours"])]
        return max(found, default=None)

    mine = best(lambda sampler, ours: ours)
    for name, wanted in (
        ("Pyro", lambda sampler, ours: sampler.startswith("Pyro")),
        ("the best of the other peers", lambda s, ours: not ours and not s.startswith("Pyro")),
    ):
        theirs = best(wanted)
        yield f"{mine / theirs:.1f}x {name}" if mine and theirs else f"no ratio to {name}"


def voids(rows):
    """Yields each target and sampler with rows that do not count, and why."""
    groups = defaultdict(list)
    for row in rows:
        if row["void"]:
            groups[row["target"], row["sampler"], row["chains"]].append(row["void"])
    for (target, sampler, chains), reasons in groups.items():
        yield target, sampler, chains, "; ".join(reasons)
