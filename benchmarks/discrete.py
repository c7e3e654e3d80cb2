"""Gibbs sweeps of spins and of an RBM, beside the peers; clusters at the critical point.

Each library takes its turn in each round, in a process of its own, and the fastest turn counts. A
cell counts if the mean energy that it finds is the exact one, or that of the others.
"""

import json
import tempfile
from pathlib import Path

import numpy as np

from benchmarks import process, results, rounds
from benchmarks.gibbs_cell import COUPLING, SIDE
from benchmarks.ours.ising import exact_energy

RUNGS = ("eager", "graph", "native")
PEERS = {
    "thrml": ("jax", "benchmarks.peers.thrml_gibbs"),
    "rbms": ("torch", "benchmarks.peers.rbms_gibbs"),
    "ebmkit": ("torch", "benchmarks.peers.ebmkit_gibbs"),
}
OURS, CELL = "pyro_ebm", ("own", "benchmarks.ours.gibbs")
MAX_Z = 5.0


def add_arguments(parser):
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--scale", type=float, default=1.0, help="times so many states as usual")
    parser.add_argument("--limit", type=float, default=900.0, help="seconds of one process")


def main(args):
    about = results.about("discrete", rounds=args.rounds, scale=args.scale, dtype="float32")
    peers = {name: it for name, it in PEERS.items() if process.exists(it[0])}
    for name in PEERS.keys() - peers.keys():
        print(f"left out: {name} (`make bench-discrete` installs it)")
    rows = of_our_chains(args)
    with tempfile.TemporaryDirectory() as folder:
        weights = Path(folder) / "weights.npz"
        np.savez(weights, **machine())
        words = {"weights": weights, "scale": args.scale}
        for turn in range(args.rounds):
            for library, answer in sweeps(peers, words, args.limit).items():
                for cell, numbers in answer["cells"].items():
                    row = {"part": "sweeps", "library": library, "cell": cell, "round": turn}
                    rows.append(row | {"engine": answer["engine"], **numbers})
            mark_void([row for row in rows if row["part"] == "sweeps"])
            results.save("discrete", about, rows)
    report(rows)


def of_our_chains(args):
    """What ours find on lattices of which something is known."""
    try:
        printed = process.run("own", "benchmarks.ours.ising", {"scale": args.scale}, args.limit)
    except process.Failed as failure:
        print(f"chains of ours: {failure}")
        return []
    found = json.loads(printed)
    return [
        {"part": part, "what": what} | found[part][what] for part in found for what in found[part]
    ]


def sweeps(peers, words, limit):
    """One round: what each library printed, ours on each rung of the engine."""
    found = {}
    for rung in RUNGS:
        ((_, answers),) = rounds.run({OURS: CELL}, words | {"engine": rung}, 1, limit)
        found |= {f"{name}, {rung}": answer for name, answer in answers.items()}
    ((_, answers),) = rounds.run(peers, words, 1, limit)
    return found | answers


def machine():
    """The weights of an RBM, 784x500, and biases that are not symmetric, from one seed."""
    generator = np.random.default_rng(0)
    return {
        "weights": (0.05 * generator.standard_normal((784, 500))).astype(np.float32),
        "visible_bias": (0.5 * generator.standard_normal(784) - 1).astype(np.float32),
        "hidden_bias": (0.5 * generator.standard_normal(500)).astype(np.float32),
    }


def mark_void(rows):
    """Of spins the mean energy is known; of the machine, ours and the peers' have to agree."""
    exact = exact_energy(SIDE, COUPLING)
    for row in rows:
        truth, error = exact, 0.0
        if row["cell"].startswith("rbm"):
            same = [r for r in rows if (r["cell"], r["round"]) == (row["cell"], row["round"])]
            others = [r for r in same if is_ours(r) != is_ours(row)]
            if not others:
                row["void"] = "nothing to compare with"
                continue
            truth = float(np.mean([other["energy"] for other in others]))
            error = max(other["energy_error"] for other in others)
        row["z"] = float((row["energy"] - truth) / np.hypot(row["energy_error"], error))
        row["void"] = "another energy" if abs(row["z"]) > MAX_Z else ""


def is_ours(row):
    return row["library"].startswith(OURS)


def fastest(rows):
    """Returns ``{cell: {library: sweeps of all chains per second of CPU}}``, of the best turn."""
    found = {}
    for row in rows:
        if row["part"] == "sweeps" and not row["void"]:
            cell = found.setdefault(row["cell"], {})
            speed = 1 / row["seconds_per_sweep"]
            cell[row["library"]] = max(speed, cell.get(row["library"], 0.0))
    return found


def report(rows):
    print("\nsweeps of all chains per second of CPU, and in units of the best peer's")
    for cell, speeds in fastest(rows).items():
        best = max((speed for name, speed in speeds.items() if name in PEERS), default=np.nan)
        for library, speed in speeds.items():
            print(f"  {cell:14}{library:20}{speed:12,.1f}  {speed / best:8.2f}x")
    report_of_chains(rows)
    for row in rows:
        if row.get("void"):
            print(f"VOID {row['library']}, {row['cell']}: {row['void']}")


def report_of_chains(rows):
    print("\n|m| on 64x64 at the critical point")
    for row in rows:
        if row["part"] == "critical":
            text = f"  {row['what']:14}{1e3 * row['seconds_per_step']:8.2f} ms a step"
            for key, word in {"ess_per_second": "", "ess_per_second_at_most": "at most "}.items():
                text += f"  ESS {word}{row[key]:.4g}/s" if key in row else ""
            print(text)
    for row in rows:
        for what, truth in {"energy": "exact", "magnetisation": "onsager"}.items():
            if truth in row:
                z = (row[what] - row[truth]) / row[f"{what}_error"]
                print(
                    f"  {row['what']:16} {what} {row[what]:.5f}, {truth} {row[truth]:.5f}: {z:.2f}"
                )
