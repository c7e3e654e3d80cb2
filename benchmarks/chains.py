"""Finds the number of chains at which each peer does best on each target, once.

A run does so itself, from its first seed, for what is not known; known, it takes less time.
What was found is kept and not sought again, unless ``--again``.
"""

import json

from benchmarks import pool, process
from benchmarks.measure import line, measure
from benchmarks.references import has_reference
from benchmarks.samplers import CHAINS, COUNTS, SAMPLERS
from benchmarks.sampling import is_past
from benchmarks.targets import MODELS

SCANNED = {s.label: s for s in SAMPLERS if not s.chains}


def add_arguments(parser):
    parser.add_argument("--targets", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--samplers", nargs="+", choices=SCANNED, default=list(SCANNED))
    parser.add_argument("--draws", type=int, default=500, help="draws and warmup steps per chain")
    parser.add_argument("--limit", type=float, default=120.0, help="seconds of one process")
    parser.add_argument("--again", action="store_true", help="seek what was found before, too")
    pool.add_arguments(parser)


def main(args):
    kept = json.loads(CHAINS.read_text()) if CHAINS.exists() else {}
    tasks = [
        (target, SCANNED[label], args.draws, args.limit)
        for target in args.targets
        for label in args.samplers
        if process.exists(SCANNED[label].environment)
        and has_reference(target)
        and (args.again or target not in kept.get(label, {}))
    ]
    for target, label, best in pool.run(scan, tasks, args.workers):
        if best:
            kept.setdefault(label, {})[target] = best
            CHAINS.write_text(json.dumps(kept, indent=1) + "\n")


def scan(target, sampler, draws, limit):
    """Returns the best count hot and the best cold, of those that ran and are not void."""
    rows = []
    for chains in COUNTS:
        row = measure(target, sampler, chains, 0, draws, limit)
        print(line(row), flush=True)
        rows.append(row)
        if "failed" in row or is_past(sampler, rows):  # more chains would be slower yet
            break
    valid = [row for row in rows if not row["void"]]
    best = {
        kind: max(valid, key=lambda row: row[f"{kind}_per_second"])["chains"]
        for kind in ("hot", "cold")
        if valid
    }
    return target, sampler.label, best
