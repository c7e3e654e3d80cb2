"""What a chain's step costs, and the memory of a run, by the number of chains: eight schools."""

import json
import statistics

from benchmarks import process, results

CHAINS = [64, 256, 1_024, 4_096, 16_384, 100_000]
COMPILE = ["auto", "True"]


def add_arguments(parser):
    parser.add_argument("--chains", type=int, nargs="+", default=CHAINS)
    parser.add_argument("--draws", type=int, default=50, help="draws and warmup steps per chain")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--limit", type=float, default=600.0, help="seconds of one process")


def main(args):
    about = results.about("scale", draws=args.draws, rounds=args.rounds, target="eight_schools")
    rows = []
    for turn in range(args.rounds):
        for chains in args.chains:
            for compile in COMPILE:
                row = {"chains": chains, "compile": compile, "round": turn}
                words = {"chains": chains, "draws": args.draws, "compile": compile}
                try:
                    printed = process.run("own", "benchmarks.ours.scale", words, args.limit)
                except process.Failed as failure:
                    print(f"{chains} chains, compile={compile}: {failure}")
                    continue
                rows.append(row | json.loads(printed))
                results.save("scale", about, rows)
    report(rows)


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
