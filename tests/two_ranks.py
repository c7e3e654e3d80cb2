"""Two processes at work on one script, started once for all tests of a file."""

import os
import pathlib
import subprocess
import sys

import torch

HERE = pathlib.Path(__file__).parent


def at_work(script, folder):
    """Has two ranks run a script of this folder; each is to save what it saw in ``rank-*.pt``.

    Args:
        script: The name of the script, which is given the folder.
        folder: Where to.

    Returns:
        The folder.
    """
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(HERE.parent)}
    done = subprocess.run(
        [*command, str(HERE / script), str(folder)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert (folder / "rank-1.pt").exists(), done.stderr
    return folder


def seen_by_each(folder):
    """Reads what each rank saw."""
    return [torch.load(folder / f"rank-{r}.pt", weights_only=False) for r in range(2)]
