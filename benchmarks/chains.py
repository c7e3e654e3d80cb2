"""Finds the number of chains at which each peer does best on each target, once."""

import json

from benchmarks import process
from benchmarks.samplers import CHAINS, SAMPLERS
from benchmarks.sampling import line, measure
from benchmarks.targets import MODELS

COUNTS = [4, 64, 256, 1024]


def add_arguments(parser):
    parser.add_argument("--targets", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--draws", type=int, default=500, help="draws and warmup steps per chain")
    parser.add_argument("--limit", type=float, default=120.0, help="seconds of one process")


def main(args):
    kept = json.loads(CHAINS.read_text()) if CHAINS.exists() else {}
    for sampler in SAMPLERS:
        if sampler.chains or not process.exists(sampler.environment):
            continue
        for target in args.targets:
            best = scan(target, sampler, args)
            if best:
                kept.setdefault(sampler.label, {})[target] = best
                CHAINS.write_text(json.dumps(kept, indent=1) + "\n")


def scan(target, sampler, args):
    """Returns the best count hot and the best cold, of those that ran and are not void."""
    rows = []
    for chains in COUNTS:
        row = measure(target, sampler, chains, 0, args.draws, args.limit)
        print(line(row), flush=True)
        if "ess" not in row:  # more chains would take longer yet
            break
        if not row["void"]:
            rows.append(row)
    return {
        kind: max(rows, key=lambda row: row[f"{kind}_per_second"])["chains"]
        for kind in ("hot", "cold")
        if rows
    }
