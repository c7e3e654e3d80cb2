"""How long it takes until there is a first draw: eight schools, a fresh process, empty caches.

It is the time from after the imports until ``MCMC(model, 1, warmup_steps=0)`` has handed over one
draw of every chain: reading the model, tracing it and, with ``compile=True``, compiling it.
"""

import json
import os
import statistics

from benchmarks import pool, process, results, state

CHAINS = [4, 64, 1024]
COMPILE = ["auto", "True", "False"]
CODE = [*state.HARNESS, *state.OURS]
MAX_SECONDS = 2.0
"""Of ``compile="auto"``."""


def add_arguments(parser):
    parser.add_argument("--chains", type=int, nargs="+", default=CHAINS)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--limit", type=float, default=120.0, help="seconds of one process")
    pool.add_arguments(parser)


def main(args):
    about = results.about("first_draw", target="eight_schools", workers=args.workers)
    tasks = [
        (turn, chains, compile, args.limit)
        for turn in range(args.rounds)
        for chains in args.chains
        for compile in COMPILE
    ]
    rows = []
    for row in pool.run(measure, tasks, args.workers):
        rows.append(row)
        results.save("first_draw", about, rows)
        if "failed" in row:
            print(f"{row['chains']} chains, compile={row['compile']}: {row['failed']}", flush=True)
    report(rows)


def measure(turn, chains, compile, limit):
    row = {"chains": chains, "compile": compile, "round": turn, "ours": True}
    row |= {"load": os.getloadavg()[0]} | state.stamp(state.digest(*CODE))
    words = {"chains": chains, "compile": compile}
    try:
        return row | json.loads(process.run("own", "benchmarks.ours.first_draw", words, limit))
    except process.Failed as failure:
        return row | {"failed": str(failure)}


def medians(rows):
    """Returns ``{compile: {chains: (median, least, most)}}``, in seconds."""
    found = {}
    for compile in COMPILE:
        for chains in sorted({row["chains"] for row in rows}):
            seconds = [
                row["seconds"]
                for row in rows
                if (row["compile"], row["chains"]) == (compile, chains) and "failed" not in row
            ]
            if seconds:
                of = statistics.median(seconds), min(seconds), max(seconds)
                found.setdefault(compile, {})[chains] = of
    return found


def report(rows):
    print("\nEight schools: seconds from after the imports to the first draw, no warmup")
    for compile, by_chains in medians(rows).items():
        for chains, (median, least, most) in by_chains.items():
            over = (
                f"  OVER {MAX_SECONDS:.0f} s" if compile == "auto" and most > MAX_SECONDS else ""
            )
            print(
                f"  compile={compile:5} {chains:6,} chains  {median:6.2f} "
                f"({least:.2f} .. {most:.2f}){over}"
            )
    imports = [row["imports"] for row in rows if "failed" not in row]
    if imports:
        print(f"  the imports took {statistics.median(imports):.1f} s")
    print(state.span(rows))
