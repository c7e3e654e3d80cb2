"""What code a row was measured with, so that a run that was cut goes on and none is mixed.

A row of ours counts as long as no line of ``pyro_ebm``, of our cells or of the harness differs. A
peer's row counts as long as its cell, the versions of its environment and the harness are the
same; it does not depend on our kernels, only on what makes starting points, energies and
effective sample sizes of ours. Each row says when it was measured, and with what commit.
"""

import hashlib
import os
from datetime import datetime, timezone
from pathlib import Path

from benchmarks import results

ROOT = Path(__file__).parent.parent
HARNESS = [
    *(f"benchmarks/{n}.py" for n in ("cell", "measure", "observations", "process", "quality")),
    *("benchmarks/references.py", "benchmarks/targets.py", "benchmarks/data/*.json"),
]
OURS = ["benchmarks/ours/*.py", "pyro_ebm/**/*.py"]
OF_PEERS = [
    *("pyro_ebm/diagnostics.py", "pyro_ebm/potential.py", "pyro_ebm/distributions.py"),
    *(f"pyro_ebm/energies/{n}.py" for n in ("base", "analytic", "landscapes")),
    "benchmarks/peers/densities.py",
    *("benchmarks/peers/blackjax_run.py", "benchmarks/peers/requirements-*.txt"),
]


def code(sampler):
    """A digest of the files on which a sampler's row depends."""
    own = f"{sampler.module.replace('.', '/')}.py"
    return digest(*HARNESS, *(OURS if sampler.is_ours else [*OF_PEERS, own]))


def digest(*patterns):
    """Of the files themselves, as they are now, committed or not."""
    paths = sorted({path for pattern in patterns for path in ROOT.glob(pattern)})
    found = hashlib.sha256()
    for path in paths:
        found.update(path.relative_to(ROOT).as_posix().encode() + b"\0" + path.read_bytes())
    return found.hexdigest()[:12]


def stamp(digest_now):
    """What each row says of its making."""
    now = datetime.now(timezone.utc).isoformat(timespec="seconds")
    return {"code": digest_now, "commit": results.commit(), "measured": now}


def kept(name, about, is_current):
    """Returns the rows of an earlier call that still count: same settings, same machine."""
    before = results.load(name)
    changing = ("commit", "pyro_ebm")
    same = all(before["about"].get(k) == v for k, v in about.items() if k not in changing)
    return [row for row in before["rows"] if "code" in row and is_current(row)] if same else []


def span(rows):
    """A line on when rows were measured, and on what is wrong with that."""
    times = sorted(row["measured"] for row in rows)
    codes = {row["code"] for row in rows if row.get("ours")}
    mixed = f"; ours with {len(codes)} states of the code: NOT one run" if len(codes) > 1 else ""
    crowded = sum(row.get("load", 0.0) > os.cpu_count() + 1 for row in rows)
    others = f"; {crowded} rows with more to do than cores: NOT quiet" if crowded else ""
    when = f"measured from {times[0]} to {times[-1]}" if times else "nothing was measured"
    return when + mixed + others
