"""What ``test_training_on_ranks.py`` has two processes do, and does itself in one."""

import contextlib
import os
import shutil
import signal
import sys
import time
import warnings
from pathlib import Path

import pyro
import torch
from torch.nn.utils import parameters_to_vector
from torch.utils.data import DataLoader, TensorDataset

import pyro_ebm as ebm
from pyro_ebm.kernels import MALA, ULA
from pyro_ebm.objectives import (
    DenoisingScoreMatching,
    ExponentialAverage,
    Jarzynski,
    Monitor,
    PersistentCD,
    Resumable,
    TrainingDiverged,
)
from pyro_ebm.ranks.divided import whole
from pyro_ebm.runs.checkpoint import Checkpoints
from pyro_ebm.runs.lock import Lock

NUM_STEPS, NUM_CHAINS, STOPS_AT = 9, 12, 4

OBJECTIVES = {
    "PersistentCD": lambda n: PersistentCD(MALA(step_size=0.2), n, 2, reinit_prob=0.3),
    "Jarzynski": lambda n: Jarzynski(ULA(step_size=0.05), n, ess_threshold=0.9),
    "DenoisingScoreMatching": lambda n: DenoisingScoreMatching(0.3),
}


class Sick(ebm.energies.MLP):
    """An energy that may break on one rank alone."""

    broken = False

    def forward(self, x):
        return super().forward(x) + (torch.inf if self.broken and torch.is_grad_enabled() else 0)


class Training:
    """A data-parallel training run, made anew in each of its lives."""

    def __init__(
        self, name="PersistentCD", num_chains=NUM_CHAINS, *, average=True, seed=7, prepare=None
    ):
        pyro.clear_param_store()
        pyro.set_rng_seed(seed)
        self.energy = Sick((2,), hidden_sizes=(8,), base_scale=4.0)
        if prepare is not None:
            prepare(self.energy)
        self.objective = OBJECTIVES[name](num_chains)
        with torch.random.fork_rng():
            torch.manual_seed(1)
            data = ebm.energies.Banana(scale=1.5, curvature=0.5).sample(60)
        self.data = data[ebm.ranks.share(len(data))]

        def model(x):
            with pyro.plate("data", len(x)), pyro.poutine.scale(scale=1 / len(x)):
                pyro.sample("x", ebm.Boltzmann(self.energy), obs=x)

        optim = pyro.optim.Adam({"lr": 0.01})
        optim = ebm.ranks.Averaged(optim) if average else optim
        svi = pyro.infer.SVI(model, ebm.no_guide, optim, loss=self.objective)
        self.monitor = Monitor(svi, keep_every=2)
        self.average = ExponentialAverage(self.energy, 0.8)

    def parts(self):
        return {"monitor": self.monitor, "energy": self.energy, "average": self.average}

    def step(self, x=None):
        rows = torch.randint(len(self.data), (8,)) if x is None else None
        self.monitor.step(self.data[rows] if x is None else x)
        self.average.update()

    def live(self, folder, num_steps=NUM_STEPS, at_step=None, **kwargs):
        with Resumable(folder, **{"every": 0, **kwargs}, **self.parts()) as training:
            for step in training.steps(num_steps):
                if at_step is not None:
                    at_step(step)
                self.step()
        return self

    def found(self):
        generators = self.objective.state_dict()["dicts"].get("_generators", {})
        return {
            "parameters": parameters_to_vector(map(whole, self.energy.parameters())).detach(),
            "average": [whole(x).clone() for x in self.average.state_dict().values()],
            "history": {k: list(record) for k, record in self.monitor.history.items()},
            "num_steps": self.monitor.num_steps,
            "chains": getattr(self.objective, "chains", {}).get("x"),
            "log_weights": getattr(self.objective, "log_weights", {}).get("x"),
            "offset": getattr(self.objective, "_offsets", {}).get("x", 0.0),
            "energies": [s.potential for s in getattr(self.objective, "_states", {}).values()],
            "noise": getattr(self.objective, "noise", {}),
            "streams": [kept["state"] for kept in generators.values()],
            "random": torch.get_rng_state(),
        }


class Batches(Training):
    """The same by a loader, of as many batches on each rank."""

    def live(self, folder, num_epochs=3, at_step=None, batch_size=6):
        loader = DataLoader(TensorDataset(self.data), batch_size, shuffle=True)
        self.seen = []
        with Resumable(folder, every=0, **self.parts()) as training:
            for (x,) in training.batches(loader, num_epochs):
                if at_step is not None:
                    at_step(training.step)
                self.seen.append(x.clone())
                self.step(x)
        return self


def stop_one(step):
    """The scheduler stops one rank alone."""
    if step == STOPS_AT and ebm.ranks.rank() == 1:
        signal.raise_signal(signal.SIGTERM)


def stopped(make, folder, copy):
    """Lives until it is stopped, has the folder copied, and says with what status it ended."""
    run = make()
    try:
        run.live(folder, at_step=stop_one)
    except SystemExit as end:
        status = end.code
    if ebm.ranks.rank() == 0:
        shutil.copytree(folder, copy)
    ebm.ranks.wait()
    return status, run.found()


def goes_on(folder):
    found = {}
    for name in OBJECTIVES:

        def make(name=name, seed=7):
            return Training(name, seed=seed + 10 * ebm.ranks.rank())

        path = folder / name
        whole = make().live(path / "whole").found()
        status, before = stopped(make, path / "stopped", path / "copy")
        after = make(seed=99).live(path / "stopped").found()
        found[name] = {"whole": whole, "status": status, "before": before, "after": after}
    path = folder / "batches"
    whole = Batches().live(path / "whole").found()
    status, before = stopped(Batches, path / "stopped", path / "copy")
    after = Batches(seed=99).live(path / "stopped").found()
    found["batches"] = {"whole": whole, "status": status, "before": before, "after": after}
    return found


def begun_by_one(folder):
    """What both ranks have of a run of one process, with half of the chains for each."""
    found = {}
    for seeds in ("in common", "apart"):
        path = folder / f"begun {seeds}"
        if ebm.ranks.rank() == 0:
            with ebm.ranks.alone():
                found["whole"] = Training("Jarzynski", 2 * NUM_CHAINS).live(path, 5).found()
        ebm.ranks.wait()
        run = Training("Jarzynski", seed=7 + (seeds == "apart") * ebm.ranks.rank())
        with Resumable(path, **run.parts()) as training:
            list(training.steps(5))
            found[seeds] = run.found()
    return found


def refused(run):
    began = time.monotonic()
    try:
        run()
    except (OSError, RuntimeError, ValueError) as error:
        return type(error).__name__, str(error), time.monotonic() - began
    return None


def refusals(folder):
    """What is wrong on one rank is an error on both, and nobody hangs."""
    number, found = ebm.ranks.rank(), {}
    (folder / "held").mkdir(exist_ok=True)

    def sample():
        p = ebm.Boltzmann(ebm.energies.Gaussian(torch.zeros(2), 1.0))
        kernel = MALA(p)
        ebm.MCMC(
            kernel, 4, 4, 4, checkpoint=folder / "held", compile=False, disable_progbar=True
        ).run()

    with Lock(folder / "held") if number == 0 else contextlib.nullcontext():
        ebm.ranks.wait()
        found["held"] = refused(lambda: Training().live(folder / "held"))
        found["held by sampling"] = refused(sample)
    found["free again"] = refused(lambda: Training().live(folder / "held", 2))
    found["two folders"] = refused(
        lambda: Training().live(folder / "held" if number else folder / "empty")
    )
    size = 6 if number else 8  # five batches, or four
    found["batches"] = refused(lambda: Batches().live(folder / "batches of two", 1, None, size))

    def full(self, *_):
        raise OSError(28, "No space left on device", str(self.folder))

    save = Checkpoints.save
    Checkpoints.save = full
    found["full"] = refused(lambda: Training().live(folder / "full"))
    Checkpoints.save = save
    return found


def breaks_on_one(folder):
    run = Training()

    def break_one(step):
        run.energy.broken = step == 6 and ebm.ranks.rank() == 1

    try:
        run.live(folder / "broken", at_step=break_one)
    except TrainingDiverged as error:
        return {"step": error.step, "good": error.good_step, "error": str(error), **run.found()}
    return None


def lose_a_rank(folder):
    """The second rank is killed in the middle of a step; the first one is to notice."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # by which torchrun would spare it the error

    def kill(step):
        if step == STOPS_AT and ebm.ranks.rank() == 1:
            os.kill(os.getpid(), signal.SIGKILL)

    return refused(lambda: Training().live(folder / "lost", at_step=kill))


def main():
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    folder = Path(sys.argv[1])
    ebm.ranks.start(timeout=60)
    found = {
        "goes on": goes_on(folder),
        "apart": Training(average=False, seed=ebm.ranks.rank()).live(folder / "apart", 3).found(),
        "begun": begun_by_one(folder),
        "refused": refusals(folder),
        "broken": breaks_on_one(folder),
    }
    path = folder / f"rank-{ebm.ranks.rank()}.pt"
    torch.save(found, path)
    ebm.ranks.wait()
    found["lost"] = lose_a_rank(folder)
    torch.save(found, path)


if __name__ == "__main__":
    main()
