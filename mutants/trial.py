"""A copy of the code with one fault in it, and the tests that run there in a process of their own.

The process is forked from one that has imported torch and Pyro, which takes longer than most of
the tests that are asked for.
"""

import multiprocessing
import os
import re
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import NamedTuple

from mutants.fault import ROOT

COPIED = ("pyro_ebm", "tests", "benchmarks", "pyproject.toml")
PRELOADED = ["torch", "numpy", "pyro", "pyro.infer", "pyro.optim", "pytest"]
PYTEST = ("-q", "-m", "not slow", "-p", "no:cacheprovider", "--tb=no", "-rfE")
KILLED, SURVIVED, TIMED_OUT, BROKEN = "killed", "survived", "timed out", "broken"
OUTCOMES = {0: SURVIVED, 1: KILLED}
"""By the exit status of pytest; any other says that there was no test, or no code to read."""


class Trial(NamedTuple):
    """What became of a fault."""

    outcome: str
    by: str
    """The test that failed first, or what pytest said last."""
    seconds: float


def copy_of_the_code(folder):
    """Copies all that tests need; the times of files stay, so that bytecode is not made anew."""
    for name in COPIED:
        whole, copy = ROOT / name, folder / name
        if whole.is_dir():
            shutil.copytree(whole, copy, ignore=shutil.ignore_patterns("results"))
        else:
            shutil.copy2(whole, copy)


def plant(fault, folder):
    """Puts a fault into a copy of the code."""
    place = Path("pyro_ebm") / fault.file
    text = (ROOT / place).read_text()
    (folder / place).write_text(fault.planted(text))


def heal(fault, folder):
    """Takes a fault out of a copy of the code."""
    place = Path("pyro_ebm") / fault.file
    shutil.copy2(ROOT / place, folder / place)


def hunt(fault, before, folder, limit):
    """Looks for a test that fails, first of all at the one that did so before."""
    if before.get("outcome") == KILLED:
        again = run([before["by"]], folder, limit)
        if again.outcome == KILLED:
            return again
    return run(["-x", *fault.words()], folder, limit)


def run(words, folder, limit):
    """Runs tests in a copy of the code until the first fails.

    Args:
        words: What pytest is told, beside how to run.
        folder: The copy.
        limit: The seconds that it may take.
    """
    began = time.perf_counter()
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    child = context.Process(target=_test, args=(words, folder))
    child.start()
    child.join(limit)
    if child.exitcode is None:
        os.killpg(child.pid, signal.SIGKILL)
        child.join()
        return Trial(TIMED_OUT, f"over {limit:.0f} s", limit)
    said = (folder / "said.txt").read_text()
    failed = re.search(r"^(?:FAILED|ERROR) (.*?)(?: - .*)?$", said, re.MULTILINE)
    last = (said.strip().splitlines() or ["nothing"])[-1]
    outcome = OUTCOMES.get(child.exitcode, BROKEN)
    by = failed.group(1) if failed and outcome == KILLED else last
    return Trial(outcome, by, round(time.perf_counter() - began, 1))


def _test(words, folder):
    """What the process does; no bytecode is written, since a fault may come and go in a second."""
    os.setsid()
    os.chdir(folder)
    with open("said.txt", "wb", buffering=0) as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    sys.path.insert(0, str(folder))
    sys.dont_write_bytecode = True
    os.environ |= {"PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1", "MPLBACKEND": "Agg"}

    import pytest

    sys.exit(int(pytest.main([*PYTEST, *words])))
