"""What became of each fault, kept in a file, so that a run that was cut goes on."""

import hashlib
import json

from mutants.fault import ROOT

FILE = ROOT / "mutants" / "results.json"
HELPERS = ("conftest", "laws", "cases", "discrete_cases")


def code_of(fault):
    """A digest of what the fate of a fault hangs on: the file that it is in, its tests and itself.

    The rest of the package is left out, so that not every change plants all faults anew.
    """
    tests = [ROOT / name for name in fault.test_files()]
    helpers = [ROOT / "tests" / f"{name}.py" for name in HELPERS]
    found = hashlib.sha256(repr(fault).encode())
    for path in sorted({ROOT / "pyro_ebm" / fault.file, *tests, *helpers}):
        found.update(path.relative_to(ROOT).as_posix().encode() + b"\0" + path.read_bytes())
    return found.hexdigest()[:12]


def load():
    """The rows of earlier calls, by the name of the fault."""
    return json.loads(FILE.read_text()) if FILE.exists() else {}


def save(rows):
    """In one move, so that a run cut short leaves a whole file."""
    part = FILE.with_suffix(".part")
    part.write_text(json.dumps(rows, indent=1, ensure_ascii=False) + "\n")
    part.replace(FILE)
