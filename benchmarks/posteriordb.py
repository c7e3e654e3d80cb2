"""All posteriors of posteriordb with the default kernel and with NUTS, nothing tuned by hand.

A run passes if every R-hat is below 1.01, every mean within 4 standard errors and every standard
deviation within 10 % of the reference.
"""

import json
import os

from benchmarks import pool, process, results, state

NAMES = list(json.loads((process.ROOT / "tests" / "posteriordb.json").read_text()))
KERNELS = ["default", "NUTS"]
MODULE = "benchmarks.ours.posteriordb"
CODE = [
    "benchmarks/ours/posteriordb.py",
    "pyro_ebm/**/*.py",
    "tests/posteriordb*.*",
    "tests/posteriordb_data/*",
]
KEY = ("posterior", "kernel", "seed")


def add_arguments(parser):
    parser.add_argument("--posteriors", nargs="+", choices=NAMES, default=NAMES)
    parser.add_argument("--kernels", nargs="+", choices=KERNELS, default=KERNELS)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--chains", type=int, default=64)
    parser.add_argument("--draws", type=int, default=500, help="draws and warmup steps per chain")
    parser.add_argument("--limit", type=float, default=600.0, help="seconds of one process")
    parser.add_argument("--fresh", action="store_true", help="repeat what was measured before")
    pool.add_arguments(parser)


def main(args):
    about = results.about(
        "posteriordb", draws=args.draws, chains=args.chains, workers=args.workers, dtype="float64"
    )
    digest = state.digest(*CODE)

    def is_current(row):
        return row["code"] == digest and ("failed" not in row or row["limit"] >= args.limit)

    before = [] if args.fresh else state.kept("posteriordb", about, is_current)
    rows = {tuple(row[name] for name in KEY): row for row in before}
    tasks = [
        (name, kernel, seed, args.chains, args.draws, args.limit)
        for seed in range(args.seeds)
        for name in args.posteriors
        for kernel in args.kernels
        if (name, kernel, seed) not in rows
    ]
    hours = len(tasks) * args.limit / args.workers / 3600
    print(f"{len(tasks)} runs, {args.workers} at a time: at most {hours:.1f} h", flush=True)
    for row in pool.run(measure, tasks, args.workers):
        rows[tuple(row[name] for name in KEY)] = row
        results.save("posteriordb", about, list(rows.values()))
        print(line(row), flush=True)
    report(list(rows.values()))


def measure(name, kernel, seed, chains, draws, limit):
    row = {"posterior": name, "kernel": kernel, "seed": seed, "ours": True, "limit": limit}
    row |= {"load": os.getloadavg()[0]} | state.stamp(state.digest(*CODE))
    words = {"posterior": name, "kernel": kernel, "seed": seed, "chains": chains, "draws": draws}
    try:
        return row | json.loads(process.run("own", MODULE, words, limit).splitlines()[-1])
    except process.Failed as failure:
        return row | {"passed": False, "failed": str(failure)}


def line(row):
    name = f"{row['posterior']:22} {row['kernel']:8}"
    if "failed" in row:
        return f"{name} FAILED: {row['failed']}"
    return (
        f"{name} {'passed' if row['passed'] else 'FAILED'}  |z| {row['z']:5.2f}  "
        f"sd ratio {row['sd_ratio']:5.3f}  R-hat {row['r_hat']:6.4f}  "
        f"divergences {row['divergences']:5}  ESS/gradient {row['ess_per_gradient']:7.4f}  "
        f"{row['seconds']:6.1f} s"
    )


def report(rows):
    print("\nposteriordb: the worst of all parameters")
    for row in sorted(rows, key=lambda row: [NAMES.index(row["posterior"]), row["kernel"]]):
        print(f"  {line(row)}")
    print(f"{sum(row['passed'] for row in rows)} of {len(rows)} passed; {state.span(rows)}")
