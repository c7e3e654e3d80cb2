"""What a chain's step costs, and the memory of a run, by the number of chains: eight schools."""

import json
import os
import statistics

from benchmarks import pool, process, results, state

CHAINS = [64, 256, 1_024, 4_096, 16_384, 100_000]
COMPILE = ["auto", "True"]
CODE = [*state.HARNESS, *state.OURS]
KEY = ("chains", "compile", "round")


def add_arguments(parser):
    parser.add_argument("--chains", type=int, nargs="+", default=CHAINS)
    parser.add_argument("--draws", type=int, default=50, help="draws and warmup steps per chain")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--limit", type=float, default=600.0, help="seconds of one process")
    parser.add_argument("--fresh", action="store_true", help="repeat what was measured before")
    pool.add_arguments(parser)


def main(args):
    about = results.about("scale", draws=args.draws, workers=args.workers, target="eight_schools")
    digest = state.digest(*CODE)
    before = state.kept("scale", about, lambda row: row["code"] == digest)
    rows = {} if args.fresh else {tuple(row[name] for name in KEY): row for row in before}
    tasks = [
        (chains, compile, turn, args.draws, args.limit)
        for turn in range(args.rounds)
        for chains in args.chains
        for compile in COMPILE
        if (chains, compile, turn) not in rows
    ]
    for row in pool.run(measure, tasks, args.workers):
        if "failed" in row:
            print(f"{row['chains']} chains, compile={row['compile']}: {row['failed']}", flush=True)
            continue
        rows[tuple(row[name] for name in KEY)] = row
        results.save("scale", about, list(rows.values()))
    report(list(rows.values()))


def measure(chains, compile, turn, draws, limit):
    row = {"chains": chains, "compile": compile, "round": turn, "ours": True}
    row |= {"load": os.getloadavg()[0]} | state.stamp(state.digest(*CODE))
    words = {"chains": chains, "draws": draws, "compile": compile}
    try:
        return row | json.loads(process.run("own", "benchmarks.ours.scale", words, limit))
    except process.Failed as failure:
        return row | {"failed": str(failure)}


def medians(rows):
    """Returns ``{compile: {chains: {field: median}}}``."""
    found = {}
    for compile in COMPILE:
        for chains in sorted({row["chains"] for row in rows}):
            same = [r for r in rows if (r["compile"], r["chains"]) == (compile, chains)]
            if same:
                found.setdefault(compile, {})[chains] = {
                    field: statistics.median(row[field] for row in same)
                    for field in ("seconds_per_chain_step", "peak_bytes", "draws_bytes")
                }
    return found


def report(rows):
    print("\nEight schools: nanoseconds per chain and step, and peak memory above the start")
    for compile, by_chains in medians(rows).items():
        for chains, values in by_chains.items():
            print(
                f"  compile={compile:5} {chains:8,} chains "
                f"{1e9 * values['seconds_per_chain_step']:10,.0f} ns "
                f"{values['peak_bytes'] / 2**20:8,.0f} MiB "
                f"(draws {values['draws_bytes'] / 2**20:,.0f} MiB)"
            )
    print(state.span(rows))
