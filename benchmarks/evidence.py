"""Error of log Z against the number of gradients, beside ebmkit's AIS and BlackJAX's SMC.

All start from the same normal base; ours also from the one that a plan fits, which is its default.
The plan counts: its search, its scouts and its fits are in the budget of each estimate. Of a peer
all settings are shown, and the best of them stands for it; ours have none. Gradients are counted,
not seconds, and so it may run on a busy machine.
"""

import json

import numpy as np

from benchmarks import process, results, state
from benchmarks.evidence_cell import TARGETS

OURS = "pyro_ebm"
LIBRARIES = {
    OURS: ("own", "benchmarks.ours.evidence"),
    "ebmkit": ("torch", "benchmarks.peers.ebmkit_evidence"),
    "BlackJAX": ("jax", "benchmarks.peers.blackjax_evidence"),
}
BUDGETS = [250_000, 500_000, 1_000_000]
"""Gradients of one estimate; ebmkit's takes 384,000 by default."""


CELL = ("evidence_cell", "process")


def add_arguments(parser):
    parser.add_argument("--targets", nargs="+", choices=TARGETS, default=list(TARGETS))
    parser.add_argument("--libraries", nargs="+", choices=LIBRARIES, default=list(LIBRARIES))
    parser.add_argument("--budgets", type=int, nargs="+", default=BUDGETS)
    parser.add_argument("--estimates", type=int, default=20, help="of each cell, in tens")
    parser.add_argument("--limit", type=float, default=1800.0, help="seconds of one process")


def main(args):
    budgets = ",".join(map(str, args.budgets))
    words = {"seeds": args.estimates, "budgets": budgets}
    about = results.about("evidence", **words, dtype="float64")
    rows = state.kept("evidence", about, lambda row: row["code"] == code(row["library"]))
    for target in args.targets:
        for library in args.libraries:
            if any((row["library"], row["target"]) == (library, target) for row in rows):
                continue
            if not process.exists(LIBRARIES[library][0]):
                print(f"left out: {library} (`make bench-evidence` installs it)")
                continue
            try:
                rows += measure(library, target, words, args.limit)
            except process.Failed as failure:
                print(f"{library}, {target}: {failure}", flush=True)
            results.save("evidence", about, rows)
    report(rows)


def code(library):
    """A digest of all that the rows of a library depend on."""
    own = LIBRARIES[library][1].replace(".", "/") + ".py"
    more = ["pyro_ebm/**/*.py"] if library == OURS else ["benchmarks/peers/requirements-*.txt"]
    return state.digest(own, *more, *(f"benchmarks/{name}.py" for name in CELL))


def measure(library, target, words, limit):
    """The rows of a library on a target: one for each method and budget."""
    environment, module = LIBRARIES[library]
    found = json.loads(process.run(environment, module, words | {"target": target}, limit))
    row = {"library": library, "ours": library == OURS, "target": target}
    row |= {"engine": found["engine"]} | state.stamp(code(library))
    return [
        row | {"method": method, "budget": int(budget)} | numbers | error(numbers, target)
        for method, by_budget in found["methods"].items()
        for budget, numbers in by_budget.items()
    ]


def error(numbers, target):
    """The root of the mean square of errors, and its standard error by the delta method."""
    square = (np.array(numbers["log_z"]) - TARGETS[target].log_z) ** 2
    rmse = np.sqrt(square.mean())
    return {"rmse": rmse, "rmse_error": square.std(ddof=1) / np.sqrt(len(square)) / (2 * rmse)}


def best_of_peers(rows):
    """Returns ``{(target, budget): row}``, with the setting that turned out best."""
    found = {}
    for row in rows:
        key = row["target"], row["budget"]
        if not row["ours"] and not row["rmse"] >= found.get(key, {"rmse": np.inf})["rmse"]:
            found[key] = row
    return found


def report(rows):
    print("\nroot-mean-square error of log Z in nats, with its standard error, by gradients")
    best = best_of_peers(rows)
    for target in TARGETS:
        of_target = [row for row in rows if row["target"] == target]
        budgets = sorted({row["budget"] for row in of_target})
        print(f"\n  {target:42}" + "".join(f"{budget:>19,}" for budget in budgets))
        for name in dict.fromkeys((row["library"], row["method"]) for row in of_target):
            same = {r["budget"]: r for r in of_target if (r["library"], r["method"]) == name}
            texts = [text(same[b], best) if b in same else "-" for b in budgets]
            print(f"  {', '.join(name):42}" + "".join(f"{it:>19}" for it in texts))
    print("\n* the best of the peers; < ours is below it, > above it")
    print(state.span(rows))


def text(row, best):
    peer = best.get((row["target"], row["budget"]))
    mark = "*" if row is peer else ""
    if peer and row["ours"]:
        mark = "<" if row["rmse"] <= peer["rmse"] else ">"
    return f"{row['rmse']:.4f} ± {row['rmse_error']:.4f}{mark or ' '}"
