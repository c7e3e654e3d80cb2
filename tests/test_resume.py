"""Training that was stopped goes on with the same numbers, bit for bit, or is refused."""

import errno
import multiprocessing
import os
import random
import signal
import time

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import transforms
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoNormal
from pyro.optim import SGD, Adam, ClippedAdam, LambdaLR
from torch import nn
from torch.distributions import constraints
from torch.utils.data import DataLoader, TensorDataset

import pyro_ebm as ebm
from pyro_ebm.energies import MLP, Banana, Energy, Ising
from pyro_ebm.kernels import MALA, ULA, Gibbs
from pyro_ebm.objectives import (
    Adversarial,
    ConditionalNoiseContrastive,
    ContrastiveDivergence,
    DenoisingScoreMatching,
    EnergyDiscrepancy,
    ExponentialAverage,
    FlowContrastive,
    ImprovedCD,
    Jarzynski,
    Monitor,
    NoiseContrastive,
    PersistentCD,
    Resumable,
    ScoreMatching,
    ShortRun,
    SlicedScoreMatching,
    TrainingDiverged,
)
from pyro_ebm.runs.checkpoint import Checkpoints, plain

NUM_STEPS = 7


def network(hidden=8):
    return MLP((2,), hidden_sizes=(hidden,), base_scale=4.0)


class Levels(Energy):
    """A network that takes the level of the noise."""

    def __init__(self):
        super().__init__((2,))
        self.net = nn.Sequential(nn.Linear(3, 8), nn.SiLU(), nn.Linear(8, 1))

    def forward(self, x, sigma):
        joined = torch.cat([x, sigma.unsqueeze(-1).expand(*x.shape[:-1], 1)], -1)
        return self.net(joined).squeeze(-1) + 0.1 * x.square().sum(-1)


class Frozen(Energy):
    """Random features that are held fixed, and a random buffer."""

    def __init__(self):
        super().__init__((2,))
        self.features = nn.Linear(2, 8)
        self.features.weight.requires_grad_(False)
        self.weights = nn.Parameter(torch.zeros(8))
        self.register_buffer("scale", torch.rand(()) + 1)
        self.train(False)

    def forward(self, x):
        return self.features(x).tanh() @ self.weights + self.scale * x.square().sum(-1)


class Flow(nn.Module):
    def __init__(self):
        super().__init__()
        self.part = transforms.affine_coupling(2, hidden_dims=[4])

    def forward(self):
        base = dist.Normal(torch.zeros(2), 3.0).to_event(1)
        return dist.TransformedDistribution(base, [self.part])


def gaussian():
    return dist.Normal(torch.zeros(2), 3.0).to_event(1)


def mala():
    return MALA(step_size=0.2)


OBJECTIVES = {
    "PersistentCD": lambda: PersistentCD(mala(), num_chains=16, num_steps=2),
    "a replay buffer": lambda: PersistentCD(
        mala(), 32, reinit_prob=0.3, num_moved=8, reinit_from="data"
    ),
    "begun anew from noise": lambda: PersistentCD(ULA(step_size=0.1), 16, reinit_prob=0.5),
    "ContrastiveDivergence": lambda: ContrastiveDivergence(mala(), num_steps=2),
    "ShortRun": lambda: ShortRun(mala(), num_steps=3),
    "ImprovedCD": lambda: ImprovedCD(ULA(step_size=0.1), num_steps=2),
    "Jarzynski": lambda: Jarzynski(ULA(step_size=0.1), num_chains=64, ess_threshold=0.999),
    "Jarzynski from a start": lambda: Jarzynski(ULA(step_size=0.1), 64, start=gaussian()),
    "NoiseContrastive": lambda: NoiseContrastive(gaussian(), ratio=2),
    "ConditionalNoiseContrastive": lambda: ConditionalNoiseContrastive(0.5, num_noise=2),
    "FlowContrastive": lambda: FlowContrastive(Flow()),
    "Adversarial": lambda: Adversarial(Flow(), num_samples=16),
    "DenoisingScoreMatching": lambda: DenoisingScoreMatching(0.3),
    "ScoreMatching": lambda: ScoreMatching(),
    "SlicedScoreMatching": lambda: SlicedScoreMatching(num_projections=2),
    "EnergyDiscrepancy": lambda: EnergyDiscrepancy(0.3),
}


def scheduled():
    settings = {"optimizer": torch.optim.Adam, "optim_args": {"lr": 0.01}}
    return LambdaLR(settings | {"lr_lambda": lambda t: 1 / (1 + t)}, clip_args={"clip_norm": 1.0})


OPTIMIZERS = {
    "Adam": lambda: Adam({"lr": 0.01}),
    "ClippedAdam": lambda: ClippedAdam({"lr": 0.01, "lrd": 0.9}),
    "SGD": lambda: SGD({"lr": 0.01, "momentum": 0.9}),
    "a schedule": scheduled,
    "a rate of its own": lambda: Adam(lambda name: {"lr": 0.01 if "energy" in name else 0.1}),
}


def points():
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return Banana(scale=1.5, curvature=0.5).sample(200)


def svi_of(energy, objective, optim=None):
    def model(x):
        with pyro.plate("data", len(x)), pyro.poutine.scale(scale=1 / len(x)):
            pyro.sample("x", ebm.Boltzmann(energy), obs=x)

    return SVI(model, ebm.no_guide, optim or Adam({"lr": 0.01}), loss=objective)


class Killed(BaseException):
    pass


def leaves(tree):
    if isinstance(tree, dict):
        return [(k, *found) for k in sorted(tree, key=str) for found in leaves(tree[k])]
    if isinstance(tree, list | tuple):
        return leaves(dict(enumerate(tree)))
    return [(tree,)]


def everything(svi, *more):
    """All numbers behind a training run: of store, optimizer, objective, generators."""
    objective = getattr(svi.loss_and_grads, "__self__", None)
    remembered = objective.state_dict() if isinstance(objective, ebm.objectives.Objective) else {}
    found = {
        "parameters": {n: p.detach() for n, p in pyro.get_param_store().named_parameters()},
        "optimizer": svi.optim.get_state(),
        "objective": remembered,
        "more": [part.state_dict() for part in more],
        "torch": torch.get_rng_state(),
    }
    return leaves(plain(found))


def assert_same(one, other):
    assert [path[:-1] for path in one] == [path[:-1] for path in other]
    for (*path, a), (*_, b) in zip(one, other, strict=True):
        same = torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b or (a != a and b != b)
        assert same, path


class Run:
    """A training run, made anew from a seed in each of its lives."""

    def __init__(self, energy=network, objective=OBJECTIVES["PersistentCD"], optim=None):
        self.energy, self.objective, self.optim = energy, objective, optim
        self.data = points()

    def begin(self, seed):
        pyro.clear_param_store()
        pyro.set_rng_seed(seed)
        self.svi = svi_of(self.energy(), self.objective(), self.optim and self.optim())
        self.more = {}

    def parts(self):
        return {"svi": self.svi}

    def step(self):
        self.svi.step(self.data[torch.randint(len(self.data), (20,))])
        if hasattr(self.svi.optim, "step"):
            self.svi.optim.step()

    def live(self, folder, seed, dies_at=None, num_steps=NUM_STEPS, every=0):
        """Makes the steps that are left, or dies in one, before or after the update."""
        self.begin(seed)
        with Resumable(folder, every=every, **self.parts()) as training:
            torch.rand(seed)  # what is drawn between is not the run's
            for step in training.steps(num_steps):
                if dies_at == step:
                    raise Killed
                self.step()
                if dies_at == step + 0.5:
                    raise Killed
        return everything(self.svi, *self.more.values())

    def whole(self):
        """The numbers at the end of a run that nothing keeps and nothing stops."""
        self.begin(3)
        torch.rand(3)
        for _ in range(NUM_STEPS):
            self.step()
        return everything(self.svi, *self.more.values())

    def lives(self, folder, deaths=(1, 3.5, 4, 6.5)):
        for seed, dies_at in enumerate(deaths, start=3):
            with pytest.raises(Killed):
                self.live(folder, seed, dies_at)
        return self.live(folder, seed=100)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_run_that_dies_again_and_again_ends_as_one_that_does_not(name, tmp_path):
    run = Run(objective=OBJECTIVES[name])
    assert_same(run.lives(tmp_path), run.whole())


@pytest.mark.parametrize("at", [1 + 0.5 * k for k in range(12)])
def test_it_may_die_at_any_step(at, tmp_path):
    run = Run(objective=OBJECTIVES["a replay buffer"])
    assert_same(run.lives(tmp_path, [at]), run.whole())


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizers_go_on(name, tmp_path):
    run = Run(objective=OBJECTIVES["FlowContrastive"], optim=OPTIMIZERS[name])
    assert_same(run.lives(tmp_path), run.whole())


ENERGIES = {
    "levels of noise": (Levels, lambda: DenoisingScoreMatching([0.1, 0.3, 0.9])),
    "what is fixed": (Frozen, OBJECTIVES["PersistentCD"]),
}


@pytest.mark.parametrize("name", ENERGIES)
def test_energies_are_the_same_in_all_their_parts(name, tmp_path):
    run = Run(*ENERGIES[name])
    assert_same(run.lives(tmp_path), run.whole())


class Spins(Run):
    def begin(self, seed):
        super().begin(seed)
        self.data = (torch.arange(40 * 9).reshape(40, 3, 3) % 5 < 2).double() * 2 - 1


def test_discrete_chains_go_on(tmp_path):
    def energy():
        return Ising((3, 3), coupling=nn.Parameter(torch.rand(()) * 0.1))

    run = Spins(energy, lambda: PersistentCD(Gibbs(), num_chains=8))
    assert_same(run.lives(tmp_path), run.whole())


class WithLatents(Run):
    """A plain ELBO, constrained parameters, and a guide that draws when it is first called."""

    def begin(self, seed):
        super().begin(seed)

        def model(x):
            loc = pyro.sample("loc", dist.Normal(0.0, 3.0))
            scale = pyro.param("scale", lambda: torch.rand(()) + 0.5, constraints.positive)
            with pyro.plate("data", len(x)):
                pyro.sample("x", dist.Normal(loc, scale).expand([2]).to_event(1), obs=x)

        guide = AutoNormal(model)
        guide(self.data)
        self.svi = SVI(model, guide, Adam({"lr": 0.01}), loss=Trace_ELBO())


def test_any_elbo_and_automatic_guides_go_on(tmp_path):
    run = WithLatents()
    assert_same(run.lives(tmp_path), run.whole())


class Constrained(Run):
    """Nothing is registered before the first step."""

    def begin(self, seed):
        super().begin(seed)

        def model(x):
            scale = pyro.param("scale", lambda: torch.rand(2) + 0.5, constraints.positive)
            with pyro.plate("data", len(x)):
                pyro.sample("x", dist.Normal(0.0, scale).to_event(1), obs=x)

        self.svi = SVI(model, ebm.no_guide, Adam({"lr": 0.01}), loss=Trace_ELBO())


def test_parameters_in_other_units_go_on(tmp_path):
    run = Constrained()
    assert_same(run.lives(tmp_path), run.whole())


class Monitored(Run):
    def begin(self, seed):
        super().begin(seed)
        self.monitor = self.more["monitor"] = Monitor(self.svi, keep_every=2)

    def parts(self):
        return {"monitor": self.monitor}

    def step(self):
        self.monitor.step(self.data[torch.randint(len(self.data), (20,))])
        self.svi.loss_and_grads.__self__.kernel.step_size *= 0.99


def test_a_monitor_goes_on_with_its_records(tmp_path):
    run = Monitored()
    assert_same(run.lives(tmp_path), run.whole())
    assert len(run.monitor.history["acceptance"]) == run.monitor.num_steps == NUM_STEPS


class Averaged(Run):
    """An average of the store, which is there after a first step."""

    def live(self, folder, seed, dies_at=None):
        self.begin(seed)
        with Resumable(folder, every=0, svi=self.svi) as training:
            torch.rand(seed)
            for step in training.steps(NUM_STEPS):
                if dies_at == step:
                    raise Killed
                self.step()
                if "average" not in self.more:
                    made = ExponentialAverage(pyro.get_param_store(), 0.8)
                    self.more["average"] = training.keep("average", made)
                self.more["average"].update()
                if dies_at == step + 0.5:
                    raise Killed
        return everything(self.svi, *self.more.values())

    def step(self):
        super().step()

    def whole(self):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Checkpoints, "load", lambda self: None)
            patch.setattr(Checkpoints, "save", lambda self, *_: None)
            return self.live("nowhere", 3)


def test_an_average_that_is_made_after_the_first_step_goes_on(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = Averaged()
    assert_same(run.lives(tmp_path / "run"), run.whole())


class Bare(Run):
    """No store, no SVI: an energy, an objective and an optimizer of torch."""

    def begin(self, seed):
        pyro.set_rng_seed(seed)
        self.net, self.loss = self.energy(), self.objective()
        learned = list(self.net.parameters())
        if isinstance(self.loss, NoiseContrastive):
            learned.append(self.loss.log_normalizer())
        self.optimizer = torch.optim.Adam(learned, lr=0.01)
        self.average = ExponentialAverage(self.net, 0.8)
        self.more = self.parts()
        self.svi = svi_of(self.net, None)

    def parts(self):
        return {
            "energy": self.net,
            "objective": self.loss,
            "optimizer": self.optimizer,
            "average": self.average,
        }

    def step(self):
        x = self.data[torch.randint(len(self.data), (20,))]
        self.optimizer.zero_grad()
        (-self.loss.surrogate(ebm.Boltzmann(self.net), x).mean()).backward()
        self.optimizer.step()
        self.average.update()


@pytest.mark.parametrize(
    "name", ["a replay buffer", "Jarzynski", "NoiseContrastive", "FlowContrastive", "ShortRun"]
)
def test_a_bare_loop_goes_on(name, tmp_path):
    run = Bare(objective=OBJECTIVES[name])
    assert_same(run.lives(tmp_path), run.whole())


class Loaded(Run):
    """Batches of a loader that shuffles."""

    def __init__(self, own_generator):
        super().__init__()
        self.own_generator = own_generator

    def begin(self, seed):
        super().begin(seed)
        generator = torch.Generator().manual_seed(seed) if self.own_generator else None
        rows = TensorDataset(self.data[:32])
        self.loader = DataLoader(rows, 10, shuffle=True, generator=generator)

    def live(self, folder, seed, dies_at=None):
        self.begin(seed)
        with Resumable(folder, every=0, svi=self.svi) as training:
            torch.rand(seed)
            for number, (x,) in enumerate(training.batches(self.loader, 3), start=training.step):
                if dies_at == number:
                    raise Killed
                self.svi.step(x + 0.01 * torch.randn_like(x))
        return everything(self.svi)

    def whole(self):
        self.begin(3)
        torch.rand(3)
        for _ in range(3):
            for (x,) in self.loader:
                self.svi.step(x + 0.01 * torch.randn_like(x))
        return everything(self.svi)


@pytest.mark.parametrize("own_generator", [False, True])
def test_the_order_of_the_data_goes_on_from_where_it_was(own_generator, tmp_path):
    """Within an epoch, at its end, and at its beginning."""
    run = Loaded(own_generator)
    assert_same(run.lives(tmp_path, [2, 4, 5, 8, 11]), run.whole())


def test_epochs_may_be_asked_for_one_after_the_other(tmp_path):
    run = Loaded(own_generator=False)
    run.begin(3)
    with Resumable(tmp_path, svi=run.svi) as training:
        torch.rand(3)
        for num_epochs in (1, 3):
            for (x,) in training.batches(run.loader, num_epochs):
                run.svi.step(x + 0.01 * torch.randn_like(x))
    assert_same(everything(run.svi), run.whole())


# ----------------------------------------------------------------------------- what is written


def test_a_finished_run_is_read_back_and_not_written(tmp_path):
    run = Run()

    def again(seed):
        run.begin(seed)
        energy = run.energy()
        svi = svi_of(energy, run.objective())
        with Resumable(tmp_path, svi=svi, energy=energy) as training:
            for _ in training.steps(3):
                svi.step(run.data)
        return energy.state_dict()

    first = again(3)
    before = [path.stat().st_mtime_ns for path in sorted(tmp_path.glob("*.pt"))]
    second = again(4)
    assert leaves(first)
    assert all(map(torch.equal, first.values(), second.values()))
    assert [path.stat().st_mtime_ns for path in sorted(tmp_path.glob("*.pt"))] == before


def test_what_nothing_asked_for_is_not_passed_over_in_silence(tmp_path):
    run = Run()
    run.live(tmp_path, 3)
    with pytest.raises(RuntimeError, match="are kept but not in place: give the module beside"):
        run.live(tmp_path, 4)
    run.begin(4)
    with Resumable(tmp_path, svi=run.svi) as training:
        assert list(training.steps(NUM_STEPS)) == []
        run.svi.evaluate_loss(run.data[:5])
    found = {n: p.detach() for n, p in pyro.get_param_store().named_parameters()}
    run.whole()
    for name, p in pyro.get_param_store().named_parameters():
        assert torch.equal(p, found[name])


def test_what_is_not_due_is_written_after_the_first_step_and_the_last(tmp_path):
    Run().live(tmp_path, 3, every=1e9)
    names = sorted(path.name for path in tmp_path.glob("*.pt"))
    assert names == [f"checkpoint-{step:012d}.pt" for step in (1, NUM_STEPS)]


def test_more_steps_may_be_asked_for(tmp_path):
    run = Run()
    run.live(tmp_path, 3, num_steps=4)
    assert_same(run.live(tmp_path, 4), run.whole())


def test_a_truncated_file_falls_back_to_the_one_before(tmp_path):
    run = Run()
    with pytest.raises(Killed):
        run.live(tmp_path, 3, dies_at=5)
    newest = max(tmp_path.glob("*.pt"))
    newest.write_bytes(newest.read_bytes()[:-100])
    with pytest.warns(UserWarning, match="makes steps 5 to 5 again"):
        found = run.live(tmp_path, 4)
    assert_same(found, run.whole())


def test_a_full_disk_says_what_was_kept(tmp_path, monkeypatch):
    run, calls, fsync = Run(), iter(range(10**9)), os.fsync

    def full(number):
        if next(calls) > 8:
            raise OSError(errno.ENOSPC, "No space left on device")
        fsync(number)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match=r"No space left on device: kept is .* Make room, and"):
            run.live(tmp_path, 3)
    assert_same(run.live(tmp_path, 4), run.whole())


def test_a_folder_that_cannot_be_written_fails_before_the_first_step(tmp_path):
    (tmp_path / "file").touch()
    run = Run()
    run.begin(3)
    with pytest.raises(OSError, match="checkpoint cannot be written"):  # noqa: SIM117
        with Resumable(tmp_path / "file" / "run", svi=run.svi):
            raise AssertionError("the first step was made")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_step_and_saves(number, tmp_path):
    class Told(Run):
        def step(self):
            if len(self.done) == 2:
                signal.raise_signal(number)
            self.done.append(1)
            super().step()

    run = Told()
    run.done = []
    with pytest.raises(SystemExit if number == signal.SIGTERM else KeyboardInterrupt):
        run.live(tmp_path, 3, every=1e9)
    assert Checkpoints(tmp_path).load()["step"] == len(run.done) == 3
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    assert_same(run.live(tmp_path, 4), Run().whole())


# -------------------------------------------------------------------------------- what is refused

OTHERS = {
    "optimizer": (Run(optim=OPTIMIZERS["SGD"]), r"optimizer of svi is Adam of .* SGD of"),
    "rate": (Run(optim=lambda: Adam({"lr": 0.1})), r"lr: 0.01.* there and .*lr: 0.1"),
    "objective": (
        Run(objective=OBJECTIVES["ShortRun"]),
        r"objective of svi is PersistentCD\(.* there and ShortRun\(",
    ),
    "setting": (
        Run(objective=lambda: PersistentCD(mala(), num_chains=17, num_steps=2)),
        "num_chains=16.* there and .*num_chains=17",
    ),
    "kernel": (
        Run(objective=lambda: PersistentCD(ULA(step_size=0.2), num_chains=16, num_steps=2)),
        r"kernel=MALA\(.* there and .*kernel=ULA\(",
    ),
    "width": (
        Run(energy=lambda: network(9)),
        r"shape \(8, 2\) there and torch.float64 of shape \(9, 2\) here",
    ),
    "more layers": (
        Run(energy=lambda: MLP((2,), hidden_sizes=(8, 8), base_scale=4.0)),
        r"is .* there and .* here",
    ),
    "fewer layers": (Run(energy=lambda: MLP((2,), hidden_sizes=())), "is .* there and .* here"),
    "another network": (Run(energy=Frozen), "is None there and .* here"),
    "monitor": (Monitored(), "monitor is None there and Monitor here"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_another_run_is_refused_with_both_sides_named(name, tmp_path):
    Run().live(tmp_path, 3, num_steps=3)
    run, match = OTHERS[name]
    before = sorted(tmp_path.iterdir())
    with pytest.raises(ValueError, match="the checkpoint is that of another run") as error:
        run.live(tmp_path, 4)
    assert error.match(match)
    assert sorted(tmp_path.iterdir()) == before


def test_a_module_that_lacks_a_parameter_is_refused(tmp_path):
    def without_bias():
        energy = Frozen()
        energy.features.bias = None
        return energy

    Run(energy=Frozen).live(tmp_path, 3, num_steps=3)
    with pytest.raises(ValueError, match=r"features.bias is .*\(8,\) there and None here"):
        Run(energy=without_bias).live(tmp_path, 4)


def test_another_dtype_is_refused(tmp_path):
    Run().live(tmp_path, 3, num_steps=3)
    torch.set_default_dtype(torch.float32)
    with pytest.raises(ValueError, match=r"dtype is torch.float64 there and torch.float32 here"):
        Run().live(tmp_path, 4)


def test_a_network_of_a_part_is_refused_before_a_step(tmp_path):
    Bare().live(tmp_path, 3, num_steps=2)
    with pytest.raises(ValueError, match=r"shape \(8, 2\) there and .*\(9, 2\) here"):
        Bare(energy=lambda: network(9)).live(tmp_path, 3)


def test_a_part_that_was_kept_has_to_come(tmp_path):
    with pytest.raises(Killed):
        Averaged().live(tmp_path, 3, dies_at=3)
    with pytest.raises(ValueError, match="average is ExponentialAverage there and None here"):
        Run().live(tmp_path, 4)


def test_bad_arguments_are_refused(tmp_path):
    with pytest.raises(ValueError, match="every must be at least 0 seconds, got -1"):
        Resumable(tmp_path, every=-1, energy=network())
    with pytest.raises(ValueError, match="there is nothing to keep: give svi="):
        Resumable(tmp_path)
    with pytest.raises(ValueError, match=r"model must be an SVI, .* got function"):
        Resumable(tmp_path, model=lambda x: x)
    with pytest.raises(RuntimeError, match="within a with"):
        next(Resumable(tmp_path, energy=network()).steps(3))


# ------------------------------------------------------------------------------------- NaN storms


class Storm(MLP):
    """A network whose energy breaks when told to."""

    broken = False

    def forward(self, x):
        return super().forward(x) + (float("nan") if self.broken else 0.0)


def storm():
    return Storm((2,), hidden_sizes=(8,), base_scale=4.0)


class Bursting(Run):
    """Moves a parameter to where nothing is finite, in its fourth step."""

    def step(self):
        super().step()
        if self.svi.steps == 3:
            with torch.no_grad():
                next(iter(pyro.get_param_store().named_parameters()))[1][0] = float("nan")
        self.svi.steps += 1

    def begin(self, seed):
        super().begin(seed)
        self.svi.steps = 0


def test_parameters_that_are_not_finite_are_never_kept(tmp_path):
    with pytest.raises(RuntimeError, match=r"is not finite after 4 steps, .* of step 3. Run"):
        Bursting(objective=OBJECTIVES["DenoisingScoreMatching"]).live(tmp_path, 3)
    found = Checkpoints(tmp_path).load()
    assert found["step"] == 3
    assert found["tensors"]
    assert all(bool(tensor.isfinite().all()) for tensor in found["tensors"].values())


class Stormy(Monitored):
    """Breaks at a step, after which the monitor goes back."""

    def __init__(self, breaks_at, **kwargs):
        super().__init__(energy=storm, **kwargs)
        self.breaks_at = breaks_at

    def step(self):
        Storm.broken = self.monitor.num_steps == self.breaks_at
        try:
            super().step()
        finally:
            Storm.broken = False


@pytest.mark.filterwarnings("ignore:Encountered NaN:UserWarning")
def test_what_the_monitor_went_back_to_is_what_is_kept(tmp_path):
    """A run that dies twice breaks where one that lives does, and goes back to the same step."""
    run = Stormy(5)
    for seed, dies_at in ((3, 2), (4, 5)):
        with pytest.raises(Killed):
            run.live(tmp_path / "dies", seed, dies_at)
    with pytest.raises(TrainingDiverged) as caught:
        run.live(tmp_path / "dies", 9)
    died = everything(run.svi, run.monitor)
    with pytest.raises(TrainingDiverged) as expected:
        run.live(tmp_path / "lives", 3)
    assert_same(died, everything(run.svi, run.monitor))
    assert (caught.value.step, caught.value.good_step) == (5, expected.value.good_step) == (5, 2)
    found = Checkpoints(tmp_path / "dies").load()
    assert found["step"] == 5
    assert found["parts"]["monitor"]["num_steps"] == 2
    for name, p in pyro.get_param_store().named_parameters():
        assert torch.equal(found["tensors"][name], p)
    again = Monitored(energy=storm)
    again.live(tmp_path / "dies", 11, num_steps=8)
    assert again.monitor.num_steps == 5


# ------------------------------------------------------------------------------------ real kills

PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["pyro_ebm"])


def train(folder, num_steps, seed, result):
    """What a process does: a run from its own seed, with all that can be kept."""
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(seed)
    data, energy = points(), network()
    objective = PersistentCD(mala(), 32, num_steps=2, reinit_prob=0.1, num_moved=16)
    monitor = Monitor(svi_of(energy, objective), keep_every=10)
    average = ExponentialAverage(energy, 0.9)
    parts = {"monitor": monitor, "energy": energy, "average": average}
    with Resumable(folder, every=0.03, **parts) as training:
        for _ in training.steps(num_steps):
            monitor.step(data[torch.randint(len(data), (20,))])
            average.update()
    history = {name: list(record) for name, record in monitor.history.items()}
    kept = energy.state_dict(), objective.chains, history, average.state_dict()
    torch.save(kept, result)


def start(*arguments):
    process = PROCESSES.Process(target=train, args=arguments)
    process.start()
    return process


def ends(process):
    process.join()
    return process.exitcode == 0


def step_of(folder):
    paths = folder.glob("checkpoint-*.pt")
    return max((int(path.stem.partition("-")[2]) for path in paths), default=-1)


def survives(num_kills, num_steps, tmp_path):
    """Kills a run in each part of it, a random moment after a random step, and lets it end."""
    rng, results = random.Random(0), [tmp_path / "wanted.pt", tmp_path / "found.pt"]
    assert ends(start(tmp_path / "whole", num_steps, 3, results[0]))
    for part in range(num_kills):
        after = max(1, 0.9 * num_steps * (part + rng.random()) / num_kills)
        process = start(tmp_path / "run", num_steps, 3 + part, results[1])
        while process.is_alive() and step_of(tmp_path / "run") < after:
            time.sleep(0.002)
        time.sleep(0.05 * rng.random())
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL
    assert ends(start(tmp_path / "run", num_steps, 99, results[1]))
    wanted, found = map(torch.load, results)
    assert_same(leaves(list(found)), leaves(list(wanted)))


def test_survives_kill_9(tmp_path):
    survives(2, 100, tmp_path)


@pytest.mark.slow
def test_survives_kill_9_at_fifty_moments(tmp_path):
    survives(50, 2000, tmp_path)
