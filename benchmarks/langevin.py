"""The time of one Langevin step on an MLP energy, 2-128-128-1, by the number of chains.

All walk the same energy from the same points with the same step size, and must agree on where the
walk leads. Ratios are taken within a round, in which each library has its turn.
"""

import statistics
import tempfile
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch

from benchmarks import process, results, rounds
from benchmarks.langevin_cell import NUM_STEPS

OURS = "pyro_ebm"
LIBRARIES = {
    OURS: ("own", "benchmarks.ours.langevin"),
    "JAX scan": ("jax", "benchmarks.peers.jax_langevin"),
    "torchebm": ("torch", "benchmarks.peers.torchebm_langevin"),
    "ebmkit": ("torch", "benchmarks.peers.ebmkit_langevin"),
}
MAX_Z = 5.0


def add_arguments(parser):
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--scale", type=float, default=1.0, help="times so many steps as usual")
    parser.add_argument("--limit", type=float, default=300.0, help="seconds of one process")


def main(args):
    about = results.about("langevin", rounds=args.rounds, scale=args.scale, dtype="float32")
    libraries = {name: it for name, it in LIBRARIES.items() if process.exists(it[0])}
    for name in LIBRARIES.keys() - libraries.keys():
        print(f"left out: {name} (`make bench` installs it)")
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        weights = Path(folder) / "weights.npz"
        np.savez(weights, **layers())
        words = {"weights": weights, "scale": args.scale}
        for turn, answers in rounds.run(libraries, words, args.rounds, args.limit):
            for name, found in answers.items():
                for chains, numbers in found["chains"].items():
                    row = {"library": name, "chains": int(chains), "round": turn}
                    rows.append(row | {"engine": found["engine"], **numbers})
            mark_void(rows)
            results.save("langevin", about, rows)
    report(rows)


def layers():
    """Weights as torch makes them, from one seed."""
    torch.manual_seed(0)
    sizes = [2, 128, 128, 1]
    found = {}
    for i, (size_in, size_out) in enumerate(pairwise(sizes)):
        linear = torch.nn.Linear(size_in, size_out, dtype=torch.float32)
        found[f"weight{i}"] = linear.weight.detach().numpy()
        found[f"bias{i}"] = linear.bias.detach().numpy()
    return found


def mark_void(rows):
    """A walk that leads elsewhere than most do is void; of one chain nothing can be said."""
    for row in rows:
        same = [other for other in rows if other["chains"] == row["chains"]]
        center = statistics.median(other["square"] for other in same)
        off = abs(row["square"] - center) > MAX_Z * row["square_error"]
        row["void"] = "leads elsewhere" if row["chains"] > 1 and off else ""


def medians(rows):
    """Returns ``{library: {chains: (seconds per step, ours in units of it)}}``, medians both."""
    seconds = {
        (row["library"], row["chains"], row["round"]): row["seconds_per_step"]
        for row in rows
        if not row["void"]
    }
    found = {}
    for library in LIBRARIES:
        for chains in NUM_STEPS:
            turns = [t for name, c, t in seconds if (name, c) == (library, chains)]
            of = [seconds[library, chains, t] for t in turns]
            ratios = [
                seconds[OURS, chains, t] / seconds[library, chains, t]
                for t in turns
                if (OURS, chains, t) in seconds
            ]
            if ratios:
                both = statistics.median(of), statistics.median(ratios)
                found.setdefault(library, {})[chains] = both
    return found


def report(rows):
    print("\nLangevin step: microseconds, and our time in units of theirs")
    print(f"  {'chains':12}" + "".join(f"{chains:>18,}" for chains in NUM_STEPS))
    for library, by_chains in medians(rows).items():
        cells = [by_chains.get(chains) for chains in NUM_STEPS]
        texts = [f"{1e6 * c[0]:,.1f} ({c[1]:.2f}x)" if c else "-" for c in cells]
        print(f"  {library:12}" + "".join(f"{text:>18}" for text in texts))
    for row in rows:
        if row["void"]:
            print(f"VOID {row['library']} {row['chains']} chains: {row['void']}")
