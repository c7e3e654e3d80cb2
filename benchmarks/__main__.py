"""``python -m benchmarks`` measures all and draws it; a name after it does that part alone."""

import argparse
import time

from benchmarks import (
    chains,
    discrete,
    evidence,
    figure,
    first_draw,
    langevin,
    learning,
    make_references,
    pool,
    posteriordb,
    ranks,
    sampling,
    scale,
    soak,
    training,
)

PARTS = {
    "first_draw": first_draw,
    "langevin": langevin,
    "scale": scale,
    "posteriordb": posteriordb,
    "sampling": sampling,
    "figure": figure,
}
LEARNING = {"training": training, "learning": learning, "figure": figure}
"""Not part of it either: how energies are learned, and how fast (`make bench-learning`)."""
DISCRETE = {"discrete": discrete}
"""Nor this: sweeps of spins and of Boltzmann machines (`make bench-discrete`)."""
EVIDENCE = {"evidence": evidence}
"""Nor this: the error of log Z against the number of gradients (`make bench-evidence`)."""
RANKS = {"ranks": ranks}
"""Nor this: two ranks beside one, which takes every core (`python -m benchmarks ranks`)."""
SOAK = {"soak": soak}
"""Nor this: an hour of training, watched for leaks (`python -m benchmarks soak`)."""
ONCE = {"chains": chains, "references": make_references}
"""Not part of a run: what they find is kept in files."""
EACH = PARTS | LEARNING | DISCRETE | EVIDENCE | RANKS | SOAK | ONCE


def main():
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    pool.add_arguments(parser)
    parser.add_argument("--seeds", type=int, default=5, help="of sampling; rounds of other parts")
    parser.add_argument("--limit", type=float, default=120.0, help="seconds of a cell of sampling")
    commands = parser.add_subparsers(dest="part")
    for name, part in EACH.items():
        command = commands.add_parser(name, help=part.__doc__.splitlines()[0])
        part.add_arguments(command)
    args = parser.parse_args()
    if args.part:
        EACH[args.part].main(args)
        return
    workers, rounds = ["--workers", str(args.workers)], ["--rounds", str(args.seeds)]
    words = {
        "first_draw": workers + rounds,
        "langevin": rounds,  # against each other in a round, and so one at a time
        "scale": workers + rounds,
        "posteriordb": workers,
        "sampling": [*workers, "--seeds", str(args.seeds), "--limit", str(args.limit)],
    }
    for name, part in PARTS.items():
        began = time.perf_counter()
        print(f"\n=== {name}", flush=True)
        part.main(parser.parse_args([name, *words.get(name, ())]))
        print(f"=== {name}: {(time.perf_counter() - began) / 60:.1f} min", flush=True)


if __name__ == "__main__":
    main()
