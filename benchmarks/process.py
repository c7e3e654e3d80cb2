"""A fresh process on one thread, with empty compiler caches and a time limit."""

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
PYTHON = {
    "own": Path(sys.executable),
    "jax": ROOT / ".venv-peers" / "jax" / "bin" / "python",
    "torch": ROOT / ".venv-peers" / "torch" / "bin" / "python",
}
"""The environments: ours, and those that ``make bench`` makes for the peers."""


children = []
"""Those that run now."""


class Failed(RuntimeError):
    """A process that gave no answer."""


def exists(environment):
    return PYTHON[environment].exists()


def run(environment, module, words, limit):
    """Runs a module and returns what it printed.

    Args:
        environment: A key of ``PYTHON``.
        module: The name of the module.
        words: Its arguments, by name.
        limit: The time it may take, in seconds, from its start to its end.

    Raises:
        Failed: If it takes longer or ends with an error.
    """
    command = [str(PYTHON[environment]), "-m", module]
    for name, value in words.items():
        command += [f"--{name}", str(value)]
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as caches:
        child = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env=_env(caches),
            start_new_session=True,
        )
        children.append(child)
        try:
            printed, complaints = child.communicate(timeout=limit)
        except subprocess.TimeoutExpired:
            raise Failed(f"over the limit of {limit:.0f} s") from None
        finally:
            end(children.pop())
    if child.returncode:
        lines = complaints.strip().splitlines() or [f"exit status {child.returncode}"]
        raise Failed(lines[-1])
    return printed


def end(child):
    """With all it has started: a compiler left behind would slow the next cell."""
    if child.poll() is None:
        os.killpg(child.pid, signal.SIGKILL)
        child.wait()


def _env(caches):
    """One thread for all, and no cache that another run has filled."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("JAX_", "TORCHINDUCTOR_"))}
    return kept | {
        "OMP_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
        "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1",
        "JAX_PLATFORMS": "cpu",
        "TORCHINDUCTOR_CACHE_DIR": caches,
        "PYTHONPATH": str(ROOT),
    }
