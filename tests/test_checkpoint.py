"""What a run that was stopped goes on with: the same numbers, bit for bit, or a refusal."""

import errno
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pyro
import pyro.distributions as dist
import pytest
import torch
from cases import KERNELS
from discrete_cases import DISCRETE, DISCRETE_KERNELS
from torch.utils._pytree import tree_leaves

import pyro_ebm as ebm
from pyro_ebm.energies import Banana, Gaussian
from pyro_ebm.kernels import HMC, MALA, SGLD, Alternating, ChEES, Gibbs
from pyro_ebm.runs.checkpoint import Checkpoints
from pyro_ebm.runs.signals import Signals


def curved(scale=1.0):
    return ebm.Boltzmann(Banana(scale=scale, curvature=0.5))


def of_spins(kernel):
    energy, told = DISCRETE["ising_3x3"]()
    return lambda: kernel(ebm.Boltzmann(energy, **told))


def mixed_model():
    flag = pyro.sample("flag", dist.Bernoulli(0.3))
    pyro.sample("x", dist.Normal(2 * flag, 1.0))


class Careless(MALA):
    """Draws its noise where anybody may draw."""

    def noise(self, state, generator, *num_steps):
        return torch.randn(*num_steps, *state.z.shape), torch.rand(*num_steps, len(state.z))


def location():
    loc = pyro.sample("loc", dist.Normal(0.0, 10.0))
    with pyro.plate("data", 100, subsample_size=10) as rows:
        pyro.sample("y", dist.Normal(loc, 1.0), obs=torch.linspace(-1, 3, 100)[rows])


RUNS = {
    **{name: lambda make=make: make(curved()) for name, make in KERNELS.items()},
    **{name: of_spins(make) for name, make in DISCRETE_KERNELS.items()},
    "Alternating": lambda: Alternating(mixed_model, sites={"flag": Gibbs()}, rest=HMC()),
    "SGLD on minibatches": lambda: SGLD(location, step_size=1e-3),
    "with torch's own generator": lambda: Careless(curved(), step_size=0.2),
    "ChEES with directions": lambda: ChEES(curved(), metric_rank=None),
}
"""Every kernel, with its target."""


@pytest.fixture(autouse=True)
def short_blocks(monkeypatch):
    monkeypatch.setattr("pyro_ebm.kernels.transition.BLOCK_STEPS", 12)


def make(kernel="MALA", folder=None, num_samples=26, warmup_steps=40, every=0, **kwargs):
    return ebm.MCMC(
        RUNS[kernel]() if isinstance(kernel, str) else kernel,
        num_samples,
        warmup_steps,
        num_chains=4,
        disable_progbar=True,
        checkpoint=folder,
        checkpoint_every=every,
        **kwargs,
    )


def everything(mcmc):
    moments = {(n, i): x for n, pair in mcmc.draws.moments().items() for i, x in enumerate(pair)}
    return {
        **{("draws", n): x for n, x in mcmc.get_samples(group_by_chain=True).items()},
        **{("warmup", n): x for n, x in mcmc.get_warmup().items()},
        **{("stats", n): x for n, x in mcmc.sample_stats.items()},
        **{("warmup stats", n): x for n, x in mcmc.warmup_stats.items()},
        **{("totals", n): x for n, x in mcmc.draws.totals().items()},
        **moments,
        **{("state", i): x for i, x in enumerate(tree_leaves(mcmc.state)) if x is not None},
        "rejoined": mcmc.rejoined,
        "torch": torch.get_rng_state(),
    }


def assert_same(one, other):
    assert list(one) == list(other)
    for name in one:
        torch.testing.assert_close(one[name], other[name], rtol=0, atol=0, equal_nan=True)


def whole(*args, **kwargs):
    """All numbers of a run that nothing interrupts, and that keeps nothing on the disk."""
    mcmc = make(*args, **kwargs)
    pyro.set_rng_seed(3)
    mcmc.run()
    return everything(mcmc)


class Killed(BaseException):
    pass


def dying(function, at, error):
    calls = iter(range(10**9))

    def call(*args):
        if next(calls) == at:
            raise error
        return function(*args)

    return call


def lives_until_the_end(monkeypatch, *args, **kwargs):
    """How often a run has to be called that dies again and again, each time with another seed."""
    for lives in range(1, 20):
        if run_until_killed(make(*args, **kwargs), monkeypatch, 5, seed=2 + lives):
            return lives
    raise AssertionError("it makes no progress")


def run_until_killed(mcmc, monkeypatch, at, seed=3, error=None):
    """Runs until something is put in its place for the at-th time; says whether it lived."""
    pyro.set_rng_seed(seed)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", dying(Path.replace, at, error or Killed()))
        try:
            mcmc.run()
        except Killed:
            return False
    return True


@pytest.mark.parametrize("name", RUNS)
def test_a_run_that_dies_again_and_again_gives_the_numbers_of_one_that_does_not(
    name, tmp_path, monkeypatch
):
    assert lives_until_the_end(monkeypatch, name, tmp_path) >= 4
    again = make(name, tmp_path)
    again.run()
    assert_same(everything(again), whole(name))


SETTINGS = {
    "thinned": {"thin": 3, "num_samples": 9},
    "one site": {"save": ["x"]},
    "moments alone": {"save": ()},
    "groups": {"num_superchains": 2},
    "no warmup": {"warmup_steps": 0},
    "one step": {"num_samples": 1, "warmup_steps": 1},
    "as a graph": {"num_samples": 80},
}


@pytest.mark.parametrize("settings", SETTINGS)
def test_settings_survive_too(settings, tmp_path, monkeypatch):
    settings = SETTINGS[settings]
    lives_until_the_end(monkeypatch, folder=tmp_path, **settings)
    again = make(folder=tmp_path, **settings)
    again.run()
    assert again.engine.startswith("graph") == (settings.get("num_samples") == 80)
    assert_same(everything(again), whole(**settings))


@pytest.mark.parametrize("at", range(0, 70, 5))
def test_it_may_die_at_whatever_it_writes(at, tmp_path, monkeypatch):
    """Between draws and checkpoint too: nothing is there twice, and nothing is missing."""
    settings = {"num_samples": 13, "warmup_steps": 9, "store": tmp_path / "draws"}
    mcmc = make(folder=tmp_path / "run", **settings)
    pyro.set_rng_seed(3)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", dying(os.fsync, at, Killed()))
        try:
            mcmc.run()
        except Killed:
            pyro.set_rng_seed(3 if at < 2 else 4)  # until the first is written, it never began
    again = make(folder=tmp_path / "run", **settings)
    again.run()
    wanted = whole(num_samples=13, warmup_steps=9)
    assert_same(everything(again), wanted)
    on_disk = ebm.Draws.open(tmp_path / "draws")
    assert torch.equal(on_disk.values()["x"], wanted["draws", "x"])


def test_a_finished_run_is_read_back(tmp_path, capsys):
    mcmc = make(folder=tmp_path)
    mcmc.run()
    again = make(folder=tmp_path)
    before = sorted(tmp_path.rglob("*")), [p.stat().st_mtime_ns for p in tmp_path.glob("*.pt")]
    again.run()
    assert (
        sorted(tmp_path.rglob("*")),
        [p.stat().st_mtime_ns for p in tmp_path.glob("*.pt")],
    ) == before
    assert_same(everything(again), everything(mcmc))
    torch.testing.assert_close(again.diagnostics(), mcmc.diagnostics())
    assert (again.engine, again.num_draws) == (mcmc.engine, mcmc.num_draws)
    assert again.warmup_time == mcmc.warmup_time > 0
    assert again.sampling_time > 0
    again.summary()
    assert "n_eff" in capsys.readouterr().out


def longer(seed, **kwargs):
    mcmc = make(num_samples=70, **kwargs)
    pyro.set_rng_seed(seed)
    mcmc.run()
    return mcmc


MORE = {
    "draws": {},
    "thinned": {"thin": 2},
    "of a kernel with branches": {"kernel": "NUTS"},
    "moments alone": {"save": ()},
    "eager": {"compile": False},
}


@pytest.mark.parametrize("settings", MORE)
def test_more_draws_of_a_finished_run_are_those_of_one_that_was_asked_for_all(settings, tmp_path):
    settings = MORE[settings]
    wanted = longer(3, **settings)
    at_the_end_of_a_block = 34 if "thin" in settings else 32
    first = make(folder=tmp_path, num_samples=at_the_end_of_a_block, **settings)
    pyro.set_rng_seed(3)
    first.run()
    found = longer(4, folder=tmp_path, **settings)
    one, other = everything(found), everything(wanted)
    summed_up = {*found.draws.dims, "totals"}  # over other blocks
    rounded = {name for name in one if name[0] in summed_up}
    for name in one:
        of_rounding = {} if name in rounded else {"rtol": 0, "atol": 0}
        torch.testing.assert_close(one[name], other[name], equal_nan=True, **of_rounding)
    assert found.num_draws == wanted.num_draws
    opened = ebm.Draws.open(tmp_path / "draws")
    assert (opened.num_draws, opened.count) == (70, 70)
    assert_same(opened.values(), found.draws.values())


def test_what_was_drawn_stays_wherever_a_block_ends(tmp_path):
    first = make(folder=tmp_path)
    pyro.set_rng_seed(3)
    first.run()
    x = first.get_samples(group_by_chain=True)["x"]
    more = longer(4, folder=tmp_path).get_samples(group_by_chain=True)["x"]
    assert torch.equal(more[:, :26], x)
    assert len(more.flatten(0, 1).unique(dim=0)) > 0.5 * 4 * 70


@pytest.mark.parametrize("at", [4, 10])
def test_a_run_that_was_stopped_may_go_on_to_more_draws(at, tmp_path, monkeypatch):
    assert not run_until_killed(make(folder=tmp_path), monkeypatch, at)
    again = longer(9, folder=tmp_path)
    torch.testing.assert_close(everything(again), everything(longer(3)))


@pytest.mark.parametrize("at", range(0, 10, 2))
def test_more_draws_survive_death_too(at, tmp_path, monkeypatch):
    pyro.set_rng_seed(3)
    make(folder=tmp_path, num_samples=32).run()
    more = make(folder=tmp_path, num_samples=70)
    run_until_killed(more, monkeypatch, at, seed=5)
    found, wanted = everything(longer(9, folder=tmp_path)), everything(longer(3))
    torch.testing.assert_close(found, wanted, equal_nan=True)


def test_room_for_more_draws_is_not_taken_for_fewer(tmp_path, monkeypatch):
    make(folder=tmp_path).run()
    more = make(folder=tmp_path, num_samples=70)
    assert not run_until_killed(more, monkeypatch, 1)
    with pytest.raises(ValueError, match="room for 70 draws: ask for as many, not for 26"):
        make(folder=tmp_path).run()
    longer(3, folder=tmp_path)


def test_more_draws_of_a_state_dict(tmp_path):
    first = make(num_samples=32)
    pyro.set_rng_seed(3)
    first.run()
    more = make(num_samples=70)
    more.load_state_dict(first.state_dict())
    more.run()
    torch.testing.assert_close(everything(more), everything(longer(3)))


def test_the_last_two_are_kept(tmp_path):
    make(folder=tmp_path).run()
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "checkpoint-000000000060.pt",
        "checkpoint-000000000066.pt",
        "draws",
        "lock",
    ]


def test_what_is_not_due_is_not_written_but_at_the_end(tmp_path):
    make(folder=tmp_path, every=1e9).run()
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "checkpoint-000000000000.pt",
        "checkpoint-000000000066.pt",
        "draws",
        "lock",
    ]


class Told(MALA):
    """Sends its process a signal, in the step that is counted out for it."""

    left, number, times = 0, signal.SIGTERM, 1

    def step(self, potential, state, noise):
        type(self).left -= 1
        if self.left == 0:
            for _ in range(self.times):
                signal.raise_signal(self.number)
        return super().step(potential, state, noise)


def told(after, number, times=1):
    Told.left, Told.number, Told.times = after, number, times
    return Told(curved(), step_size=0.2)


def whole_told():
    return whole(told(0, None))


@pytest.mark.parametrize(("after", "step"), [(1, 8), (30, 32), (41, 48), (60, 60)])
def test_sigterm_ends_the_block_and_saves(after, step, tmp_path):
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    pyro.set_rng_seed(3)
    with pytest.raises(SystemExit) as end:
        make(told(after, signal.SIGTERM), tmp_path, every=1e9).run()
    assert end.value.code == 143
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before
    assert Checkpoints(tmp_path).load()["step"] == step
    again = make(told(0, None), tmp_path)
    again.run()
    assert_same(everything(again), whole_told())


def test_a_signal_after_the_last_block_is_not_lost():
    with pytest.raises(SystemExit), Signals():
        signal.raise_signal(signal.SIGTERM)


def test_ctrl_c_saves_and_keeps_its_meaning(tmp_path):
    pyro.set_rng_seed(3)
    with pytest.raises(KeyboardInterrupt):
        make(told(20, signal.SIGINT), tmp_path, every=1e9).run()
    mcmc = make(told(31, signal.SIGINT), tmp_path, every=1e9)
    with pytest.warns(UserWarning, match="interrupted after 20 of 26 draws: they are kept"):
        mcmc.run()
    assert mcmc.num_draws == 20
    mcmc.run()
    assert_same(everything(mcmc), whole_told())


def test_a_second_ctrl_c_does_not_wait(tmp_path):
    pyro.set_rng_seed(3)
    with pytest.raises(KeyboardInterrupt):
        make(told(20, signal.SIGINT, times=2), tmp_path).run()
    assert Checkpoints(tmp_path).load()["step"] == 8
    again = make(told(0, None), tmp_path)
    again.run()
    assert_same(everything(again), whole_told())


def test_somebody_elses_handler_is_called_when_all_is_saved(tmp_path):
    steps = []

    def handler(number, frame):
        steps.append(Checkpoints(tmp_path).load()["step"])

    before = signal.signal(signal.SIGTERM, handler)
    try:
        pyro.set_rng_seed(3)
        mcmc = make(told(30, signal.SIGTERM), tmp_path, every=1e9)
        mcmc.run()
    finally:
        signal.signal(signal.SIGTERM, before)
    assert steps == [32]
    assert_same(everything(mcmc), whole_told())


def test_runs_in_a_thread(tmp_path):
    mcmc = make(folder=tmp_path)
    pyro.set_rng_seed(3)
    thread = threading.Thread(target=mcmc.run)
    thread.start()
    thread.join()
    assert mcmc.num_draws == 26


@pytest.mark.parametrize("after", [20, 55])
@pytest.mark.parametrize("store", [False, True])
def test_a_state_dict_goes_on_in_another_run(after, store, tmp_path):
    """After a Ctrl-C within a block, at which the generator is further than the chains."""
    settings = {"store": tmp_path / "draws"} if store else {}
    mcmc = make(told(after, signal.SIGINT), **settings)
    with pytest.raises(ValueError, match="there is no state before a run"):
        mcmc.state_dict()
    pyro.set_rng_seed(3)
    if after < 40:
        with pytest.raises(KeyboardInterrupt):
            mcmc.run()
    else:
        with pytest.warns(UserWarning, match="they are kept"):
            mcmc.run()
    torch.save(mcmc.state_dict(), tmp_path / "state.pt")
    again = make(told(0, None), **settings)
    again.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    again.run()
    assert_same(everything(again), whole_told())


def stopped(folder, monkeypatch, at=12, **kwargs):
    """A folder with two checkpoints, of a run that died in sampling."""
    assert not run_until_killed(make(folder=folder, **kwargs), monkeypatch, at)
    return sorted(folder.glob("*.pt"))


def flipped(seed):
    def spoil(data):
        rng = random.Random(seed)
        place = rng.randrange(len(data))
        return data[:place] + bytes([data[place] ^ 1 << rng.randrange(8)]) + data[place + 1 :]

    return spoil


SPOILS = {
    **{f"flipped {seed}": flipped(seed) for seed in range(3)},
    "truncated": lambda data: data[:-100],
    "cut short": lambda data: data[:30],
    "empty": lambda data: b"",
    "another title": lambda data: data.replace(b"checkpoint 1", b"checkpoint 2", 1),
}


@pytest.mark.parametrize("spoil", SPOILS)
def test_a_damaged_checkpoint_falls_back_on_the_one_before(spoil, tmp_path, monkeypatch):
    older, newest = stopped(tmp_path, monkeypatch)
    first, last = (int(path.stem.split("-")[1]) for path in (older, newest))
    newest.write_bytes(SPOILS[spoil](newest.read_bytes()))
    again = make(folder=tmp_path)
    with pytest.warns(
        UserWarning, match=rf"{newest.name} is damaged .*makes steps {first + 1} to {last} again"
    ):
        again.run()
    assert_same(everything(again), whole())


def test_two_damaged_checkpoints_are_an_error(tmp_path, monkeypatch):
    for path in stopped(tmp_path, monkeypatch):
        path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"no checkpoint that is whole: .*give another folder"):
        make(folder=tmp_path).run()


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("__version__", "9.9", "pyro_ebm 9.9, torch .*; this is .*pyro_ebm 0"),
        ("FORMAT", 99, "written with format 99.*; this is format 1"),
    ],
)
def test_another_version_is_refused(name, value, message, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(f"pyro_ebm.runs.checkpoint.{name}", value)
        stopped(tmp_path, monkeypatch)
    with pytest.raises(ValueError, match=message):
        make(folder=tmp_path).run()


OTHERS = {
    "kernel": (lambda p: make("HMC", p), r"kernel is MALA\(.* there and HMC\(.* here"),
    "setting": (
        lambda p: make(MALA(curved(), step_size=0.3), p),
        r"step_size=0\.2.* there and MALA\(step_size=0\.3",
    ),
    "fewer draws": (lambda p: make(folder=p, num_samples=25), "num_samples is 26 .* 25 here"),
    "more warmup with more draws": (
        lambda p: make(folder=p, num_samples=50, warmup_steps=None),
        "warmup_steps is 40 there and 50 here",
    ),
    "warmup": (lambda p: make(folder=p, warmup_steps=1), "warmup_steps is 40 there and 1 here"),
    "thin": (lambda p: make(folder=p, thin=2), "thin is 1 there and 2 here"),
    "save": (lambda p: make(folder=p, save=()), r"save is None there and \[\] here"),
    "compile": (lambda p: make(folder=p, compile=False), "compile is 'auto' there and False"),
    "shape": (
        lambda p: make(KERNELS["MALA"](ebm.Boltzmann(Gaussian(torch.zeros(3), 1.0))), p),
        r"of shape \(2,\).* there and .*of shape \(3,\).* here",
    ),
    "parameters": (
        lambda p: make(KERNELS["MALA"](curved(1.01)), p),
        r"U where chain 0 began is \d+\.\d+ there and \d+\.\d+ here",
    ),
    "dtype": (
        lambda p: make(KERNELS["MALA"](ebm.Boltzmann(Banana(1.0, 0.5).float())), p),
        "dtype is torch.float64 there and torch.float32 here",
    ),
}


@pytest.mark.parametrize("other", OTHERS)
def test_another_run_is_refused_with_both_sides_named(other, tmp_path, monkeypatch):
    construct, message = OTHERS[other]
    stopped(tmp_path, monkeypatch)
    before, random_before = sorted(tmp_path.rglob("*")), torch.get_rng_state()
    mcmc = construct(tmp_path)
    with pytest.raises(ValueError, match=message):
        mcmc.run()
    assert sorted(tmp_path.rglob("*")) == before
    assert torch.equal(torch.get_rng_state(), random_before)


class Evil:
    def __reduce__(self):
        return os.putenv, ("EVIL", "1")


def test_code_in_a_checkpoint_is_not_run(tmp_path, monkeypatch):
    monkeypatch.setattr("pyro_ebm.runs.checkpoint.plain", lambda x: x)
    kept = Checkpoints(tmp_path)
    kept.save(1, {"x": Evil()})
    with pytest.raises(ValueError, match="holds code, and none of it was run"):
        Checkpoints(tmp_path).load()


def test_draws_that_are_gone_are_missed(tmp_path, monkeypatch):
    stopped(tmp_path, monkeypatch)
    (file,) = (tmp_path / "draws").glob("*-x.npy")
    file.write_bytes(file.read_bytes()[:-8])
    with pytest.raises(ValueError, match="is gone or cut short"):
        make(folder=tmp_path).run()


def test_draws_without_a_checkpoint_are_not_written_over(tmp_path):
    make(folder=tmp_path).run()
    for path in tmp_path.glob("*.pt"):
        path.unlink()
    with pytest.raises(ValueError, match="holds draws"):
        make(folder=tmp_path).run()


def not_to_be_asked(values):
    raise AssertionError("the first step was made")


def test_a_path_that_cannot_be_written_fails_before_the_first_step(tmp_path):
    (tmp_path / "file").touch()
    mcmc = make(MALA(potential_fn=not_to_be_asked), tmp_path / "file" / "run")
    with pytest.raises(OSError, match=r"checkpoint cannot be written: .*file/run"):
        mcmc.run()


def test_refuses_a_negative_time():
    with pytest.raises(ValueError, match="checkpoint_every must be at least 0 seconds, got -1"):
        make(folder="run", every=-1)


@pytest.mark.parametrize("at", range(0, 50, 7))
def test_a_full_disk_says_what_was_kept_and_leaves_it(at, tmp_path, monkeypatch):
    mcmc = make(folder=tmp_path)
    pyro.set_rng_seed(3)
    full = OSError(errno.ENOSPC, "No space left on device")
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", dying(os.fsync, at, full))
        with pytest.raises(OSError, match="No space left on device") as error:
            mcmc.run()
    assert error.value.errno == errno.ENOSPC
    if at > 3:
        assert "kept is " in str(error.value)
        assert "Make room, and run the same again" in str(error.value)
    pyro.set_rng_seed(3)
    again = make(folder=tmp_path)
    again.run()
    assert_same(everything(again), whole())


IN_ANOTHER_PROCESS = """
import sys
import torch
import pyro_ebm as ebm

torch.set_num_threads(1)
torch.set_default_dtype(torch.float64)
torch.manual_seed(3)
target = ebm.Boltzmann(ebm.energies.Banana(scale=1.0, curvature=0.5))
kernel = getattr(ebm.kernels, sys.argv[2])(target)
mcmc = ebm.MCMC(
    kernel,
    int(sys.argv[3]),
    int(sys.argv[3]),
    num_chains=4,
    compile=eval(sys.argv[4]),
    disable_progbar=True,
    checkpoint=sys.argv[1] or None,
    checkpoint_every=0.03,
)
mcmc.run()
draws = mcmc.get_samples(group_by_chain=True)
torch.save((draws, mcmc.get_warmup(), mcmc.sample_stats), sys.argv[5])
"""


def start(folder, kernel, num_samples, compile, result):
    arguments = [folder, kernel, num_samples, compile, result]
    return subprocess.Popen(
        [sys.executable, "-c", IN_ANOTHER_PROCESS, *map(str, arguments)],
        cwd=Path(__file__).parent.parent,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def step_of(folder):
    paths = folder.glob("checkpoint-*.pt")
    return max((int(path.stem.partition("-")[2]) for path in paths), default=-1)


def survives(num_kills, tmp_path, kernel, num_samples, compile):
    """Kills a run in each part of it, a random moment after a random step, and lets it end."""
    rng, folder = random.Random(0), tmp_path / "run"
    wanted, found = tmp_path / "wanted.pt", tmp_path / "found.pt"
    with start("", kernel, num_samples, compile, wanted) as process:
        assert process.wait() == 0
    for part in range(num_kills):
        after = 1.4 * num_samples * (part + rng.random()) / num_kills
        with start(folder, kernel, num_samples, compile, found) as process:
            while process.poll() is None and step_of(folder) < after:
                time.sleep(0.002)
            time.sleep(0.05 * rng.random())
            process.send_signal(signal.SIGKILL)
        assert process.returncode == -signal.SIGKILL
    with start(folder, kernel, num_samples, compile, found) as process:
        assert process.wait() == 0
    for one, other in zip(torch.load(found), torch.load(wanted), strict=True):
        assert_same(one, other)


def test_survives_kill_9(tmp_path):
    survives(2, tmp_path, "MALA", 1500, "False")


@pytest.mark.slow
def test_survives_kill_9_at_fifty_moments(tmp_path):
    survives(50, tmp_path, "MALA", 30000, "False")


@pytest.mark.slow
@pytest.mark.parametrize("kernel", ["MALA", "NUTS", "ChEES"])
def test_native_code_is_compiled_again_and_gives_the_same(kernel, tmp_path):
    survives(2, tmp_path, kernel, 30000, "True")
