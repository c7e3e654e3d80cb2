"""``python -m mutants``: plants each fault alone, and says which of them no test has seen.

A row of an earlier run counts as long as the file, the tests that the fault is shown to and the
fault itself are the same; with ``--again`` none does.
"""

import argparse
import contextlib
import tempfile
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from queue import SimpleQueue

from mutants import record, trial
from mutants.faults import AREAS

NOT_TRIED = "not tried"
"""Or tried when the code was another, or without time enough."""


def main():
    args = arguments()
    wanted = [
        (area, fault)
        for area, faults in AREAS.items()
        for fault in faults
        if not args.only or args.only in f"{area}/{fault.file}/{fault.name}"
    ]
    rows = record.load()
    if not args.report:
        try_all(todo(wanted, rows, args), rows, args)
    report(wanted, rows)
    if not (args.report or args.most):
        check_killers(wanted, rows, args)
    if any(rows[f.name]["outcome"] != trial.KILLED for _, f in wanted if f.name in rows):
        raise SystemExit(1)


def arguments():
    parser = argparse.ArgumentParser(prog="python -m mutants", description=__doc__)
    parser.add_argument("--only", default="", help="a part of an area, a file or a name")
    parser.add_argument("--workers", type=int, default=1, help="how many faults at a time")
    parser.add_argument("--limit", type=float, default=180.0, help="seconds of one fault")
    parser.add_argument("--most", type=int, help="plant no more than that many")
    parser.add_argument("--again", action="store_true", help="plant those that have been, too")
    parser.add_argument("--report", action="store_true", help="say what is known, run nothing")
    return parser.parse_args()


def todo(wanted, rows, args):
    """The faults without a row that counts: those that were killed last, the quick ones before."""

    def order(fault):
        row = rows.get(fault.name, {})
        return row.get("outcome") == trial.KILLED, row.get("seconds", 0.0)

    left = [fault for _, fault in wanted if args.again or not counts(rows, fault)]
    return sorted(left, key=order)[: args.most]


def counts(rows, fault):
    """Whether a row is of the code as it is; one that ran out of time is tried again."""
    row = rows.get(fault.name, {"outcome": trial.TIMED_OUT})
    return row["outcome"] != trial.TIMED_OUT and row["code"] == record.code_of(fault)


def try_all(left, rows, args):
    """Plants faults side by side, each worker in a copy of the code of its own."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as place:
        copies = SimpleQueue()
        for number in range(min(args.workers, len(left))):
            folder = Path(place) / str(number)
            trial.copy_of_the_code(folder)
            copies.put(folder)

        def one(fault):
            folder, code = copies.get(), record.code_of(fault)
            trial.plant(fault, folder)
            found = trial.hunt(fault, rows.get(fault.name, {}), folder, args.limit)
            trial.heal(fault, folder)
            copies.put(folder)
            return fault, code, found

        with ThreadPoolExecutor(max(1, args.workers)) as pool, cancelled_on_interrupt(pool):
            running = [pool.submit(one, fault) for fault in left]
            for count, done in enumerate(as_completed(running), start=1):
                fault, code, found = done.result()
                rows[fault.name] = {"file": fault.file, **found._asdict(), "code": code}
                record.save(rows)
                print(
                    f"{count:3d}/{len(left)} {found.outcome:9} {found.seconds:5.1f} s  "
                    f"{fault.file}: {fault.name}  [{found.by}]",
                    flush=True,
                )


@contextlib.contextmanager
def cancelled_on_interrupt(pool):
    """Ends with the trials that are under way: all rows until then are kept."""
    try:
        yield
    except KeyboardInterrupt:
        pool.shutdown(cancel_futures=True)
        raise


def report(wanted, rows):
    """Prints how many were killed, by area, and each that was not."""
    print()
    every = {}
    for area, fault in wanted:
        row = rows[fault.name] if counts(rows, fault) else {"outcome": NOT_TRIED}
        every.setdefault(area, []).append(row["outcome"])
        if row["outcome"] not in (trial.KILLED, NOT_TRIED):
            print(f"{row['outcome']}: {fault.file}: {fault.name}  [{row['by']}]")
    every["in all"] = [outcome for outcomes in every.values() for outcome in outcomes]
    print()
    for area, outcomes in every.items():
        tried = len(outcomes) - outcomes.count(NOT_TRIED)
        killed = outcomes.count(trial.KILLED)
        share = f"{killed / tried:6.1%}" if tried else "     –"
        print(f"{area:28} {killed:3d} of {tried:3d} killed {share}, {len(outcomes)} planned")


def check_killers(wanted, rows, args):
    """Runs the tests that killed on the code as it is: one that fails there has killed nothing.

    Raises:
        SystemExit: If one does.
    """
    killers = {rows[f.name]["by"] for _, f in wanted if rows[f.name]["outcome"] == trial.KILLED}
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as place:
        trial.copy_of_the_code(Path(place))
        found = trial.run(["-x", *sorted(killers)], Path(place), 60.0 + 10 * args.limit)
    print(f"\nthe {len(killers)} tests that killed, on the code as it is: {found.by}")
    if found.outcome != trial.SURVIVED:
        raise SystemExit(f"fails without a fault: {found.by}")


if __name__ == "__main__":
    main()
