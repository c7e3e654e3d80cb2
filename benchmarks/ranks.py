"""The throughput of one rank and of two, each on a core of its own: chains on the MLP energy."""

import json
import os
import statistics

from benchmarks import process, results, state

RANKS = [1, 2]
KERNELS = ["MALA", "ChEES"]
CODE = [*state.HARNESS, *state.OURS]
KEY = ("kernel", "ranks", "round")


def add_arguments(parser):
    parser.add_argument("--ranks", type=int, nargs="+", default=RANKS)
    parser.add_argument("--chains", type=int, default=4_096)
    parser.add_argument("--steps", type=int, default=500, help="draws, and as many in warmup")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--limit", type=float, default=600.0, help="seconds of one run")
    parser.add_argument("--fresh", action="store_true", help="repeat what was measured before")


def main(args):
    about = results.about("ranks", chains=args.chains, steps=args.steps, target="MLP 2-128-128-1")
    digest = state.digest(*CODE)
    before = state.kept("ranks", about, lambda row: row["code"] == digest)
    rows = {} if args.fresh else {tuple(row[name] for name in KEY): row for row in before}
    for turn in range(args.rounds):  # one and two in turn, so that both see the same machine
        for kernel in KERNELS:
            for ranks in args.ranks:
                if (kernel, ranks, turn) in rows:
                    continue
                row = measure(kernel, ranks, turn, args)
                if "failed" in row:
                    print(f"{kernel} on {ranks} ranks: {row['failed']}", flush=True)
                    continue
                rows[kernel, ranks, turn] = row
                results.save("ranks", about, list(rows.values()))
    report(list(rows.values()), args.chains)


def measure(kernel, ranks, turn, args):
    row = {"kernel": kernel, "ranks": ranks, "round": turn, "ours": True}
    row |= {"load": os.getloadavg()[0]} | state.stamp(state.digest(*CODE))
    words = {"kernel": kernel, "ranks": ranks, "chains": args.chains, "steps": args.steps}
    try:
        return row | json.loads(process.run("own", "benchmarks.ours.ranks", words, args.limit))
    except process.Failed as failure:
        return row | {"failed": str(failure)}


def report(rows, chains):
    print(f"\n{chains:,} chains on an MLP energy: milliseconds per step, and chain steps a second")
    for kernel in sorted({row["kernel"] for row in rows}):
        of_one = None
        for ranks in sorted({row["ranks"] for row in rows}):
            same = [r for r in rows if (r["kernel"], r["ranks"]) == (kernel, ranks)]
            if not same:
                continue
            step, warmup, message = (
                statistics.median(row[name] for row in same)
                for name in ("seconds_per_step", "seconds_per_warmup_step", "message_seconds")
            )
            of_one = of_one or step
            print(
                f"  {kernel:6} {ranks} ranks {1e3 * step:8.2f} ms ({1e3 * warmup:.2f} in warmup) "
                f"{chains / step:12,.0f}/s  {of_one / step:.2f} times one rank, "
                f"message {1e6 * message:.0f} us"
            )
    print(state.span(rows))
