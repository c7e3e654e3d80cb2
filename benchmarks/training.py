"""The time of one update in training: batches of 256, an MLP of 128x128, PCD-20 and DSM.

Each library takes its turn in each round, in a process of its own, and ratios are taken within a
round. An update counts if its gradient, averaged over noise, is that of the plain computation.
"""

import statistics
import tempfile
from pathlib import Path

import numpy as np
import torch

from benchmarks import learning, results, rounds
from benchmarks.learning_cell import CHAINS, Energy
from pyro_ebm.datasets import pinwheel

LIBRARIES = learning.LIBRARIES | {"plain torch": ("own", "benchmarks.peers.plain_learning")}
PEERS = ("torchebm", "ebmkit")
MAX_Z = 5.0


def add_arguments(parser):
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--updates", type=int, default=100, help="that are timed, each time")
    parser.add_argument("--limit", type=float, default=900.0, help="seconds of one process")


def main(args):
    about = results.about("training", rounds=args.rounds, updates=args.updates, dtype="float32")
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "data.npz"
        np.savez(data, **inputs())
        words = {"data": data, "updates": args.updates}
        for turn, answers in rounds.run(LIBRARIES, words, args.rounds, args.limit):
            for library, found in answers.items():
                for what, numbers in found["found"].items():
                    row = {"library": library, "update": what, "round": turn}
                    rows.append(row | {"engine": found["engine"], **numbers})
            mark_void(rows)
            results.save("training", about, rows)
    report(rows)


def inputs():
    """Data, chains to begin from and a direction in the space of weights, from one seed."""
    generator = torch.Generator().manual_seed(0)
    x = pinwheel(10_000, generator=generator).float()
    chains = 2 * torch.randn(CHAINS, 2, generator=generator)
    found = {"x": x.numpy(), "chains": chains.numpy()}
    for i, weight in enumerate(Energy().parameters()):
        found[f"direction{i}"] = torch.randn(weight.shape, generator=generator).numpy()
    return found


def mark_void(rows):
    """Marks updates whose mean gradient is not that of the plain computation in the same round."""
    plain = {(r["update"], r["round"]): r for r in rows if r["library"] == "plain torch"}
    for row in rows:
        reference = plain.get((kind(row), row["round"]))
        if reference is None:
            row["void"] = "nothing to compare with"
            continue
        error = np.hypot(row["slope_error"], reference["slope_error"])
        off = abs(row["slope"] - reference["slope"]) > MAX_Z * error
        row["void"] = "another gradient" if off else ""


def kind(row):
    return row["update"][:3]


def medians(rows):
    """Returns ``{(library, update): (CPU seconds, {peer: ratio to it})}``, medians over rounds."""
    good = {
        (r["library"], r["update"], r["round"]): r["cpu_seconds"] for r in rows if not r["void"]
    }
    found = {}
    for library, update in dict.fromkeys(key[:2] for key in good):
        turns = [t for name, what, t in good if (name, what) == (library, update)]
        ratios = {}
        for peer in PEERS:
            pairs = [
                (good[library, update, t], good[peer, update[:3], t])
                for t in turns
                if (peer, update[:3], t) in good
            ]
            if pairs:
                ratios[peer] = statistics.median(own / theirs for own, theirs in pairs)
        seconds = statistics.median(good[library, update, t] for t in turns)
        found[library, update] = seconds, ratios
    return found


def report(rows):
    print("\nan update of training: milliseconds of CPU, and in units of the peers'")
    for (library, update), (seconds, ratios) in medians(rows).items():
        texts = [f"{ratio:.2f}x {peer}" for peer, ratio in ratios.items() if peer != library]
        print(f"  {library:12}{update:20}{1e3 * seconds:8.2f}   {', '.join(texts)}")
    for row in rows:
        if row["void"]:
            print(f"VOID {row['library']}, {row['update']}: {row['void']}")
