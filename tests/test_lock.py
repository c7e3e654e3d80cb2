"""Two processes in one folder: the second is told, and one that was killed is in nobody's way."""

import errno
import fcntl
import multiprocessing
import os
import signal
import time

import pytest
import torch

import pyro_ebm as ebm
from pyro_ebm.runs.checkpoint import Checkpoints
from pyro_ebm.runs.lock import Lock

PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["pyro_ebm"])


def sample(folder, num_samples):
    target = ebm.Boltzmann(ebm.energies.Gaussian(torch.zeros(2), 1.0))
    ebm.MCMC(
        ebm.kernels.MALA(target),
        num_samples,
        warmup_steps=num_samples,
        compile=False,
        disable_progbar=True,
        checkpoint=folder,
    ).run()


def train(folder, num_steps):
    energy = ebm.energies.MLP((2,), hidden_sizes=(8,))
    optimizer = torch.optim.Adam(energy.parameters())
    with ebm.objectives.Resumable(folder, energy=energy, optimizer=optimizer) as training:
        for _ in training.steps(num_steps):
            time.sleep(1e-3)


def hold_and_fork(folder, _):
    with Lock(folder):
        child = os.fork()
        (folder / f"checkpoint-{child:012d}.pt").touch()
        time.sleep(60)


def begun(run, folder):
    """Starts a run in another process, and returns once it has written something."""
    process = PROCESSES.Process(target=run, args=(folder, 10**6))
    process.start()
    while not list(folder.glob("checkpoint-*.pt")):
        assert process.is_alive()
        time.sleep(0.01)
    return process


def killed(process):
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL


@pytest.mark.parametrize("run", [sample, train])
def test_the_second_process_is_told_at_once_who_holds_the_folder(run, tmp_path):
    process = begun(run, tmp_path)
    try:
        files = sorted(tmp_path.rglob("*"))
        message = rf"{tmp_path} is in use: process {process.pid} on .* or give another folder"
        with pytest.raises(RuntimeError, match=message):
            run(tmp_path, 5)
        assert set(files) <= {*tmp_path.rglob("*")}
    finally:
        killed(process)
    with Checkpoints(tmp_path).held():
        assert Checkpoints(tmp_path).load() is not None


@pytest.mark.parametrize("run", [sample, train])
def test_a_folder_is_free_after_the_run_and_after_an_error(run, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "save", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run(tmp_path, 5)
    run(tmp_path, 5)
    with Lock(tmp_path):
        pass


def test_what_a_killed_process_has_forked_does_not_hold_the_folder(tmp_path):
    process = begun(hold_and_fork, tmp_path)
    child = Checkpoints(tmp_path)._found()[0][0]
    killed(process)
    with Lock(tmp_path):
        os.kill(child, signal.SIGKILL)  # which was there until now


def test_the_file_says_who_holds_it(tmp_path):
    (tmp_path / "lock").write_text("process 1 on a machine with a very long name, " * 9)
    with Lock(tmp_path):
        assert (tmp_path / "lock").read_text().startswith(f"process {os.getpid()} on ")
        assert (tmp_path / "lock").read_text().endswith(time.ctime()[-4:])


def failing(number):
    def flock(*_):
        raise OSError(number, os.strerror(number))

    return flock


def test_a_file_system_without_locks_is_used_with_a_warning(tmp_path, monkeypatch):
    monkeypatch.setattr(fcntl, "flock", failing(errno.ENOLCK))
    with pytest.warns(UserWarning, match=rf"{tmp_path} cannot be locked"), Lock(tmp_path):
        pass


def test_another_failure_of_the_disk_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(fcntl, "flock", failing(errno.EIO))
    held = Checkpoints(tmp_path).held()
    with pytest.raises(OSError, match="checkpoint cannot be written"), held:
        pass
