"""Effective samples per second of every sampler on every target.

«cold» is the time from after the imports to the last draw, in a fresh process with empty compiler
caches; «hot» that of the sampling alone, without warmup, in a second run of the same process. A
row whose chains have not mixed, or whose means are off, is void. A cell that gave no answer is not
tried from further seeds. Peers run at their own best: from the first seed with each number of
chains, up to where more are slower, from the others as they were fastest. A call goes on where an
earlier one was cut, as long as the code is the same.
"""

import random
import statistics
from collections import Counter, defaultdict

from benchmarks import agreement, pool, process, results, state
from benchmarks.measure import line, measure
from benchmarks.references import has_reference
from benchmarks.samplers import SAMPLERS
from benchmarks.targets import MODELS, potential_of, use_dtype_of

KEY = ("target", "sampler", "chains", "seed")
PER_SECOND = ("hot_per_second", "cold_per_second")


def add_arguments(parser):
    labels = dict.fromkeys(sampler.label for sampler in SAMPLERS)
    parser.add_argument("--targets", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--samplers", nargs="+", choices=labels, default=list(labels))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--draws", type=int, default=500, help="draws and warmup steps per chain")
    parser.add_argument("--limit", type=float, default=120.0, help="seconds of one process")
    parser.add_argument("--fresh", action="store_true", help="repeat what was measured before")
    pool.add_arguments(parser)


def main(args):
    """Runs the cells, seed by seed, so that a run cut short has rows for all.

    Within a seed they run in an order drawn at random, the same whenever the seed is, so that none
    always has the same neighbour on the other core.
    """
    about = results.about("sampling", draws=args.draws)
    rows = {} if args.fresh else {key(row): row for row in earlier(about, args)}
    cells = list(chosen(args))
    plan = [(seed, *cell) for seed in range(args.seeds) for cell in shuffled(cells, seed)]
    announce(plan, rows, args)
    for row in pool.run(measure, todo(plan, rows, args), args.workers):
        rows[key(row)] = row | {"workers": args.workers}
        results.save("sampling", about, list(rows.values()))
        print(line(row), flush=True)
    report(list(rows.values()), args)


def earlier(about, args):
    """Rows measured with the same code, but for failures that a higher limit may mend."""
    samplers = {sampler.label: sampler for sampler in SAMPLERS}
    digests = {label: state.code(sampler) for label, sampler in samplers.items()}

    def is_current(row):
        outlasted = "failed" not in row or row["limit"] >= args.limit
        return row["code"] == digests.get(row["sampler"]) and outlasted

    return state.kept("sampling", about, is_current)


def key(row):
    return tuple(row[name] for name in KEY)


def shuffled(cells, seed):
    """In an order drawn at random, but for few chains of a sampler before more of them."""
    order = random.Random(seed).sample(cells, len(cells))
    by_count = {}
    for target, sampler, chains in sorted(cells, key=lambda cell: cell[2]):
        by_count.setdefault((target, sampler.label), []).append(chains)
    counts = {name: iter(found) for name, found in by_count.items()}
    return [(target, sampler, next(counts[target, sampler.label])) for target, sampler, _ in order]


def todo(plan, rows, args):
    """Yields what ``measure`` is to be told, of those cells that are still worth running."""
    for seed, target, sampler, chains in plan:
        there = (target, sampler.label, chains, seed) in rows
        if not (there or is_out(target, sampler, chains, seed, rows)):
            yield target, sampler, chains, seed, args.draws, args.limit


def is_out(target, sampler, chains, seed, rows):
    """Whether a cell need not run, by the rows there are.

    One is out that has failed, with these chains or with fewer; after seed 0, all of a peer that
    are not its fastest hot or its fastest cold from seed 0, of all ways to run it.
    """
    same = [row for row in rows.values() if row["target"] == target]
    own = [row for row in same if row["sampler"] == sampler.label]
    fewer = [row for row in own if row["seed"] == seed and row["chains"] < chains]
    if any("failed" in row and row["chains"] <= chains for row in own) or is_past(sampler, fewer):
        return True
    first = [
        row
        for row in same
        if row["sampler"] in of_group(sampler.group) and not row["seed"] and not row["void"]
    ]
    best = [max(first, key=lambda row: row[kind]) for kind in PER_SECOND if first]
    mine = (sampler.label, chains)
    return bool(seed and best) and mine not in [(row["sampler"], row["chains"]) for row in best]


def is_past(sampler, fewer):
    """Whether a peer was slower hot and cold with the most chains so far than with less."""
    last = sorted((row for row in fewer if "ess" in row), key=lambda row: row["chains"])[-2:]
    return (
        sampler.chains is None
        and len(last) == 2
        and all(last[1][kind] < last[0][kind] for kind in PER_SECOND)
    )


def of_group(group):
    """The labels of all ways to run a peer; none of ours, which are all repeated."""
    return [sampler.label for sampler in SAMPLERS if group and sampler.group == group]


def announce(plan, rows, args):
    """Says how much there is to do, and how long that can take."""
    left = list(todo(plan, rows, args))
    before = defaultdict(list)
    for row in [*results.load("sampling")["rows"], *rows.values()]:
        if "wall" in row:
            before[row["target"], row["sampler"], row["chains"]].append(row["wall"])
    known = [before[target, sampler.label, chains] for target, sampler, chains, *_ in left]
    seconds = sum(statistics.median(walls) for walls in known if walls)
    of_group = Counter((target, s.group, seed) for target, s, _, seed, *_ in left)
    most = sum(
        min(num, 2) if group and seed else num for (_, group, seed), num in of_group.items()
    )
    print(
        f"{len(plan) - len(left)} cells measured or out, at most {most} to run, {args.workers} at "
        f"a time: at most {most * args.limit / args.workers / 3600:.1f} h and the time to judge "
        f"them; {sum(map(bool, known))} of them took {seconds / args.workers / 60:.0f} min before",
        flush=True,
    )


def chosen(args):
    """Yields the cells, after those checks that are worth making once."""
    samplers = [sampler for sampler in SAMPLERS if sampler.label in args.samplers]
    for environment in {sampler.environment for sampler in samplers}:
        if not process.exists(environment):
            names = [s.label for s in samplers if s.environment == environment]
            print(f"left out: {', '.join(names)} (`make bench` installs them)")
            samplers = [s for s in samplers if s.environment != environment]
    for target in args.targets:
        if not has_reference(target):
            print(f"left out: {target} (`python -m benchmarks references` finds its moments)")
            continue
        use_dtype_of(target)
        if any(sampler.environment == "jax" for sampler in samplers):
            agreement.check(target, potential_of(target))
        for sampler in samplers:
            for chains in sampler.counts(target):
                yield target, sampler, chains


def medians(rows):
    """Returns, by target and (sampler, chains), the medians of what more than half the seeds gave.

    Each value is a dict of ``field: (median, least, most)``.
    """
    groups = defaultdict(list)
    for row in rows:
        groups[row["target"], row["sampler"], row["chains"]].append(row)
    found = defaultdict(dict)
    for (target, sampler, chains), group in groups.items():
        valid = [row for row in group if not row["void"]]
        if 2 * len(valid) <= len(group):
            continue
        fields = [f for f, value in valid[0].items() if isinstance(value, float)]
        found[target][sampler, chains] = {"ours": valid[0]["ours"], "seeds": len(valid)} | {
            field: (statistics.median(values), min(values), max(values))
            for field in fields
            if (values := [row[field] for row in valid])
        }
    return found


def report(rows, args):
    """Prints medians by target, and the ratios of our best to the best of others."""
    for target, table in medians(rows).items():
        print(f"\n{target}: ESS/s, median (least .. most)")
        for (sampler, chains), values in table.items():
            cells = "  ".join(
                f"{kind} {spread(values[f'{kind}_per_second'])}" for kind in ("hot", "cold")
            )
            if "ess_per_gradient_useful" in values:
                of = [values[f"ess_per_gradient_{name}"][0] for name in ("useful", "executed")]
                cells += "  ESS/gradient {:.4f} useful, {:.4f} executed".format(*of)
            cells += f"  ({values['seeds']} of {args.seeds} seeds)"
            print(f"  {sampler:24} {chains:5} chains  {cells}")
        for kind in ("hot", "cold"):
            print(f"  {kind}: " + ", ".join(ratios(table, f"{kind}_per_second")))
    print(f"\n{state.span(rows)}")
    for target, sampler, chains, reasons in voids(rows):
        print(f"VOID {target} {sampler} {chains}: {reasons}")


def spread(values):
    median, least, most = (f"{v:,.1f}" if v < 100 else f"{v:,.0f}" for v in values)
    return f"{median:>9} ({least} .. {most})"


def ratios(table, field):
    """Says how our best does against each group of others."""

    def best(wanted):
        found = [v[field][0] for (sampler, _), v in table.items() if wanted(sampler, v["ours"])]
        return max(found, default=None)

    mine = best(lambda sampler, ours: ours)
    for name, wanted in (
        ("Pyro", lambda sampler, ours: sampler.startswith("Pyro")),
        ("the best of the other peers", lambda s, ours: not ours and not s.startswith("Pyro")),
    ):
        theirs = best(wanted)
        yield f"{mine / theirs:.1f}x {name}" if mine and theirs else f"no ratio to {name}"


def voids(rows):
    """Yields each target and sampler with rows that do not count, and why."""
    groups = defaultdict(list)
    for row in rows:
        if row["void"]:
            groups[row["target"], row["sampler"], row["chains"]].append(row["void"])
    for (target, sampler, chains), reasons in groups.items():
        yield target, sampler, chains, "; ".join(reasons)
