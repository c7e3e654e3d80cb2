"""Cells side by side, each on a core of its own, which it shares with nobody here.

What is pinned to the core is a process that prepares a cell, starts it (a child inherits the core)
and then judges its draws: so none of that work is done on the core of another cell either.
"""

import contextlib
import multiprocessing
import os
import signal
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait

import torch

from benchmarks import process


def add_arguments(parser):
    parser.add_argument(
        "--workers", type=int, default=1, help="cells at a time, each pinned to a core of its own"
    )


def run(function, tasks, workers):
    """Yields what a function of the module level returns, as it comes.

    Args:
        function: What to call in a worker.
        tasks: Its arguments, tuples. The next is asked for when a core is free, and what was
            yielded until then has been dealt with: so the caller can leave tasks out as it learns.
        workers: How many at a time.
    """
    context = multiprocessing.get_context("spawn")
    cores = context.SimpleQueue()
    for core in the_cores(workers):
        cores.put(core)
    with ProcessPoolExecutor(workers, context, _pin, (cores,)) as executor:
        running = set()
        for task in tasks:
            running.add(executor.submit(function, *task))
            if len(running) == workers:
                done, running = wait(running, return_when=FIRST_COMPLETED)
                yield from (future.result() for future in done)
        while running:
            done, running = wait(running, return_when=FIRST_COMPLETED)
            yield from (future.result() for future in done)


def the_cores(workers):
    """Raises:
    SystemExit: If there are fewer cores than workers.
    """
    pinnable = hasattr(os, "sched_getaffinity")
    there = sorted(os.sched_getaffinity(0)) if pinnable else range(os.cpu_count())
    if not 1 <= workers <= len(there):
        raise SystemExit(f"--workers {workers}: there are {len(there)} cores")
    return list(there)[-workers:]


def _pin(cores):
    signal.signal(signal.SIGTERM, _stop)
    core = cores.get()
    torch.set_num_threads(1)
    with contextlib.suppress(AttributeError):  # macOS has no such call: there it is not pinned
        os.sched_setaffinity(0, {core})


def _stop(signum, frame):
    """A worker that is told to end leaves no cell behind."""
    for child in process.children:
        process.end(child)
    os._exit(128 + signum)
