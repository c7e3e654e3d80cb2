"""The files of results, and what they say about the machine and the versions."""

import json
import os
import platform
import subprocess
from pathlib import Path

import pyro
import torch

import pyro_ebm

FOLDER = Path(__file__).parent / "results"


def about(command, **settings):
    """What must be the same for rows to stand in one table."""
    return {
        "command": f"python -m benchmarks {command}",
        **settings,
        "threads": 1,
        "cpu": cpu_model(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "pyro": pyro.__version__,
        "pyro_ebm": pyro_ebm.__version__,
        "commit": commit(),
    }


def cpu_model():
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def commit():
    """The commit of this checkout, with a plus if code differs from it; nothing without git."""
    code = ("--", "pyro_ebm", "benchmarks", "tests", ":!benchmarks/results", ":!*/chains.json")
    found = git("rev-parse", "--short=10", "HEAD")
    return found + ("+" if git("status", "--porcelain", *code) else "") if found else ""


def git(*words):
    try:
        done = subprocess.run(
            ["git", *words], cwd=FOLDER.parent.parent, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return ""
    return done.stdout.strip()


def load(name):
    path = FOLDER / f"{name}.json"
    return json.loads(path.read_text()) if path.exists() else {"about": {}, "rows": []}


def save(name, about, rows):
    """In one move, so that a run cut short leaves a whole file."""
    FOLDER.mkdir(exist_ok=True)
    path = FOLDER / f"{name}.json"
    part = path.with_suffix(".part")
    part.write_text(json.dumps({"about": about, "rows": rows}, indent=1) + "\n")
    part.replace(path)
