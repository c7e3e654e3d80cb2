"""What is kept of the steps, and what is summed up over them: nothing lost, nothing invented."""

import json
import os
import random
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.distributions import ExpTransform, StickBreakingTransform, identity_transform

from pyro_ebm.potential import Potential, Site
from pyro_ebm.runs.draws import Draws

SITES = [
    Site("loc", torch.Size([]), identity_transform, ()),
    Site("scale", torch.Size([2]), ExpTransform(), ("groups",)),
    Site("weights", torch.Size([3]), StickBreakingTransform(), ()),
]
NUM_CHAINS = 5


def over(*sites, dtype=torch.float64):
    return Potential(None, list(sites), torch.zeros((), dtype=dtype))


TARGET = over(*SITES)


def steps(num_steps, dtype=torch.float64):
    z = torch.randn(num_steps, NUM_CHAINS, TARGET.dim, dtype=dtype)
    stats = {
        "lp": torch.randn(num_steps, NUM_CHAINS),
        "diverging": torch.rand(num_steps, NUM_CHAINS) < 0.2,
        "n_steps": torch.randint(9, (num_steps, NUM_CHAINS)),
    }
    return z, stats


def feed(draws, z, stats, seed=0):
    """Hands over the steps in blocks of any size, empty ones too."""
    rng, begin = random.Random(seed), 0
    while begin < len(z):
        end = min(len(z), begin + rng.choice([0, 1, 1, 2, 3, 7]))
        draws.append(z[begin:end], {name: x[begin:end] for name, x in stats.items()})
        begin = end
    return draws


def everything(draws):
    moments = {(name, i): x for name, pair in draws.moments().items() for i, x in enumerate(pair)}
    return [draws.values(), draws.stats(), draws.totals(), moments, draws.r_hat()]


def assert_close(one, other):
    """But for rounding, which vectorised functions do by the size of the block."""
    torch.testing.assert_close(one, other, rtol=1e-13, atol=1e-14)


def assert_same(one, other, rounding=0.0):
    assert (one.count, one.num_steps, one.dims) == (other.count, other.num_steps, other.dims)
    for a, b in zip(everything(one), everything(other), strict=True):
        assert list(a) == list(b)
        for name in a:
            torch.testing.assert_close(
                a[name], b[name], rtol=rounding, atol=rounding, equal_nan=True
            )


@pytest.fixture(params=["memory", "folder"])
def store(request, tmp_path):
    return None if request.param == "memory" else tmp_path / "draws"


@pytest.fixture(params=[1, 2**21])
def piece(request, monkeypatch):
    """How much of a block is worked on at once: what comes out must not depend on it."""
    monkeypatch.setattr("pyro_ebm.runs.draws.PIECE", request.param)


@pytest.mark.usefixtures("piece")
@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("thin", [1, 3, 5])
def test_keeps_the_last_of_every_thin_steps(store, thin, seed):
    z, stats = steps(23)
    draws = feed(Draws(TARGET, 23, NUM_CHAINS, thin=thin, store=store), z, stats, seed)
    kept = slice(thin - 1, None, thin)
    assert draws.count == 23 // thin
    assert draws.num_steps == 23
    wanted = TARGET.constrain(z[kept])
    assert draws.values()["weights"].shape == (NUM_CHAINS, 23 // thin, 4)
    for name, values in draws.values().items():
        assert_close(values, wanted[name].transpose(0, 1))
    for name in ("lp", "n_steps"):
        assert torch.equal(draws.stats()[name], stats[name][kept].T)


@pytest.mark.usefixtures("piece")
@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("thin", [1, 3, 5])
def test_a_flag_is_set_at_a_draw_if_it_was_at_any_step_since_the_draw_before(store, thin, seed):
    z, stats = steps(23)
    draws = feed(Draws(TARGET, 23, NUM_CHAINS, thin=thin, store=store), z, stats, seed)
    whole = stats["diverging"][: 23 // thin * thin].unflatten(0, (-1, thin))
    assert torch.equal(draws.stats()["diverging"], whole.any(1).T)


@pytest.mark.usefixtures("piece")
@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize(("thin", "save"), [(1, None), (3, ["scale"]), (3, [])])
def test_moments_and_totals_count_every_step(store, save, thin, seed):
    z, stats = steps(23)
    draws = feed(Draws(TARGET, 24, NUM_CHAINS, thin=thin, save=save, store=store), z, stats, seed)
    assert list(draws.moments()) == ["loc", "scale", "weights"]
    for name, values in TARGET.constrain(z).items():
        mean, variance = draws.moments()[name]
        assert_close(mean, values.mean(0))
        assert_close(variance, values.var(0))
    assert torch.equal(draws.totals()["diverging"], stats["diverging"].sum(0))
    assert torch.equal(draws.totals()["n_steps"], stats["n_steps"].sum(0))
    assert_close(draws.totals()["lp"], stats["lp"].sum(0))


def test_moments_of_float32_draws_far_from_zero_are_exact():
    target = over(Site("x", torch.Size([2]), identity_transform, ()), dtype=torch.float32)
    x = (1e4 + torch.randn(3000, 4, 2)).float()
    draws = Draws(target, 3000, 4, save=())
    for block in x.split(7):
        draws.append(block, {})
    mean, variance = draws.moments()["x"]
    torch.testing.assert_close(mean, x.double().mean(0), rtol=1e-14, atol=0)
    torch.testing.assert_close(variance, x.double().var(0), rtol=1e-10, atol=0)


def test_r_hat_is_that_of_the_draws():
    z, stats = steps(40)
    z[:, 0] += 2
    draws = feed(Draws(TARGET, 40, NUM_CHAINS), z, stats)
    for name, x in draws.values().items():
        within, between = x.var(1).mean(0), x.mean(1).var(0)
        torch.testing.assert_close(draws.r_hat()[name], (39 / 40 + between / within).sqrt())
    assert draws.r_hat()["loc"] > 1.1


@pytest.mark.parametrize(("num_steps", "num_chains"), [(0, 3), (1, 3), (9, 1)])
def test_what_cannot_be_known_is_nan(num_steps, num_chains):
    draws = Draws(TARGET, 9, num_chains)
    draws.append(torch.randn(num_steps, num_chains, TARGET.dim), {})
    mean, variance = draws.moments()["scale"]
    assert bool(mean.isnan().all()) == (num_steps == 0)
    assert bool(variance.isnan().all()) == (num_steps < 2)
    assert draws.r_hat()["scale"].isnan().all()


def test_save_keeps_the_named_sites_and_with_none_of_them_no_statistics(store, tmp_path):
    z, stats = steps(6)
    some = feed(Draws(TARGET, 6, NUM_CHAINS, save=["scale"], store=store), z, stats)
    assert list(some.values()) == ["scale"]
    assert list(some.stats()) == list(stats)
    none = feed(Draws(TARGET, 6, NUM_CHAINS, save=(), store=tmp_path / "none"), z, stats)
    assert (none.values(), none.stats(), none.count) == ({}, {}, 6)
    assert not list((tmp_path / "none").glob("*.npy"))


def test_before_the_first_step_there_are_no_draws_of_the_right_shape(store):
    shapes = {name: x.shape for name, x in Draws(TARGET, 4, 3, store=store).values().items()}
    assert shapes == {"loc": (3, 0), "scale": (3, 0, 2), "weights": (3, 0, 4)}
    Draws(TARGET, 0, 3).append(torch.randn(0, 3, TARGET.dim), {})


def test_draws_are_looked_at_where_they_lie(store):
    draws = feed(Draws(TARGET, 5, NUM_CHAINS, store=store), *steps(5))
    first = draws.values()["scale"]
    assert not first.is_contiguous()  # a view of what is written draw by draw
    if store is None:
        assert first.data_ptr() == draws.values()["scale"].data_ptr()
    else:
        first.zero_()
        assert draws.values()["scale"].gt(0).all(), "a view of a file must not change the file"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_folder_holds_the_very_numbers_that_memory_would(tmp_path, dtype):
    target = over(*SITES[:2], dtype=dtype)
    z, stats = steps(20)
    z = z[..., : target.dim].to(dtype)
    in_memory = feed(Draws(target, 10, NUM_CHAINS, thin=2), z, stats)
    in_folder = feed(Draws(target, 10, NUM_CHAINS, thin=2, store=tmp_path), z, stats)
    assert_same(in_folder, in_memory)
    assert_same(Draws.open(tmp_path), in_memory)
    assert torch.equal(in_memory.values()["scale"].to(dtype), z[1::2, :, 1:].exp().transpose(0, 1))


def test_values_of_another_dtype_are_kept_in_that_of_the_target(tmp_path):
    z, stats = steps(6, dtype=torch.float32)
    in_memory = feed(Draws(TARGET, 6, NUM_CHAINS), z, stats)
    in_folder = feed(Draws(TARGET, 6, NUM_CHAINS, store=tmp_path), z, stats)
    assert_same(in_folder, in_memory)
    assert in_folder.values()["loc"].dtype == torch.float64


def test_a_site_may_have_any_name(tmp_path):
    names = ["../up", "X", "a/b", "lp", "nn$$$fc.weight", "x", "Ä b"]
    target = over(*(Site(name, torch.Size([]), identity_transform, ()) for name in names))
    z = torch.randn(2, 3, len(names))
    store = tmp_path / "in"
    Draws(target, 2, 3, store=store).append(z, {"lp": torch.zeros(2, 3)})
    found = Draws.open(store)
    for name, column in zip(names, z.unbind(-1), strict=True):
        assert torch.equal(found.values()[name], column.T)
    assert not found.stats()["lp"].any()
    assert len({path.name.lower() for path in store.glob("*.npy")}) == len(names) + 1
    assert os.listdir(tmp_path) == ["in"]


def test_a_folder_says_what_is_there(tmp_path):
    feed(Draws(TARGET, 4, NUM_CHAINS, thin=2, store=tmp_path), *steps(5))
    about = json.loads((tmp_path / "draws.json").read_text())
    assert (about["count"], about["num_draws"], about["thin"]) == (2, 4, 2)
    assert about["dims"]["scale"] == ["groups"]
    scale = about["arrays"]["values/scale"]
    assert (scale["shape"], scale["dtype"]) == ([4, NUM_CHAINS, 2], "float64")
    assert (tmp_path / scale["file"]).stat().st_size > 4 * NUM_CHAINS * 2 * 8


def test_a_block_counts_wholly_or_not_at_all(store, monkeypatch):
    monkeypatch.setattr("pyro_ebm.runs.draws.PIECE", 1)
    z, stats = steps(9)
    target = over(*SITES)
    draws = Draws(target, 9, NUM_CHAINS, thin=3, store=store)
    first = z[:4], {name: x[:4] for name, x in stats.items()}
    rest = z[4:], {name: x[4:] for name, x in stats.items()}
    draws.append(*first)
    calls = iter(range(9))

    def interrupted(z):
        if next(calls) == 3:
            raise KeyboardInterrupt
        return TARGET.constrain(z)

    monkeypatch.setattr(target, "constrain", interrupted)
    with pytest.raises(KeyboardInterrupt):
        draws.append(*rest)
    assert_same(draws, feed(Draws(TARGET, 9, NUM_CHAINS, thin=3), *first), 1e-13)
    monkeypatch.undo()
    draws.append(*rest)
    assert_same(draws, feed(Draws(TARGET, 9, NUM_CHAINS, thin=3), z, stats), 1e-13)


@pytest.mark.parametrize("at", range(9))
def test_a_folder_says_the_old_until_it_says_the_new(tmp_path, monkeypatch, at):
    """Whichever file is the last one written: three sites, three statistics, sums, the word."""
    z, stats = steps(6)
    first = z[:4], {name: x[:4] for name, x in stats.items()}
    draws, wanted = (Draws(TARGET, 6, NUM_CHAINS, store=p) for p in (tmp_path, None))
    draws.append(*first)
    wanted.append(*first)
    written = iter(range(9))

    def mortal(function):
        def call(*args):
            if next(written) == at:
                raise SystemExit
            return function(*args)

        return call

    monkeypatch.setattr(os, "fsync", mortal(os.fsync))
    monkeypatch.setattr(Path, "replace", mortal(Path.replace))
    with pytest.raises(SystemExit):
        draws.append(z[4:], {name: x[4:] for name, x in stats.items()})
    assert_same(Draws.open(tmp_path), wanted)
    assert_same(draws, wanted)


def test_a_full_disk_is_the_systems_error_and_what_was_kept_stays_readable(tmp_path):
    z, stats = steps(600)
    draws = Draws(TARGET, 600, NUM_CHAINS, store=tmp_path)
    draws.append(z[:200], {name: x[:200] for name, x in stats.items()})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, hard))
    try:
        with pytest.raises(OSError, match="File too large"):
            draws.append(z[200:], {name: x[200:] for name, x in stats.items()})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    for found in (draws, Draws.open(tmp_path)):
        assert found.count == 200
        assert torch.equal(found.values()["loc"], z[:200, :, 0].T)
    draws.append(z[200:], {name: x[200:] for name, x in stats.items()})
    assert torch.equal(Draws.open(tmp_path).values()["loc"], z[..., 0].T)


def test_an_unwritable_store_is_the_systems_error(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file"):
        Draws(TARGET, 3, NUM_CHAINS, store=tmp_path / "file")


def occupied(path):
    feed(Draws(TARGET, 9, NUM_CHAINS, store=path), *steps(4))
    return path


def of_another_format(path):
    about = json.loads((occupied(path) / "draws.json").read_text())
    (path / "draws.json").write_text(json.dumps({**about, "format": 99, "version": "9.9"}))
    return path


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda p: Draws(TARGET, 3, 5, save=["scale", "mu"]),
            r"save names no site: \['mu'\]; the sites are \['loc', 'scale', 'weights'\]",
        ),
        (lambda p: Draws(TARGET, 3, 5, thin=0), "thin must be positive, got 0"),
        (
            lambda p: Draws(TARGET, 3, 5, store=occupied(p)),
            "holds draws: Draws.open reads them; give another store",
        ),
        (
            lambda p: feed(Draws(TARGET, 3, 5, thin=2), *steps(7)),
            "to draws that have room for [01]",
        ),
        (
            lambda p: feed(Draws.open(occupied(p)), *steps(1)),
            "to draws that were opened for reading",
        ),
        (lambda p: Draws.open(of_another_format(p)), "only pyro_ebm 9.9, which wrote"),
    ],
)
def test_refuses_bad_arguments(make, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        make(tmp_path)


def test_says_where_there_are_no_draws(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"draws\.json"):
        Draws.open(tmp_path)


IN_ANOTHER_PROCESS = """
import resource, sys
import torch
from torch.distributions import identity_transform
from pyro_ebm.runs.draws import Draws
from pyro_ebm.potential import Potential, Site

torch.set_num_threads(1)
store, num_draws, num_chains, dim, block = sys.argv[1], *map(int, sys.argv[2:])
site = Site("x", torch.Size([dim]), identity_transform, ())
potential = Potential(None, [site], torch.zeros((), dtype=torch.float64))

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

z = torch.zeros(block, num_chains, dim, dtype=torch.float64)
z += torch.arange(block)[:, None, None]
before = peak()
draws = Draws(potential, num_draws, num_chains, store=store or None)
for _ in range(num_draws // block):
    draws.append(z, {"diverging": z[..., 0] > 0, "lp": z[..., 0]})
    print(draws.count, peak() - before, flush=True)
    z += block
"""


def stream(store, *counts):
    """Streams draws whose value is their number; prints count and memory after each block."""
    return subprocess.Popen(
        [sys.executable, "-c", IN_ANOTHER_PROCESS, str(store), *map(str, counts)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parent.parent,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def test_what_was_acknowledged_survives_a_kill(tmp_path):
    with stream(tmp_path / "draws", 100_000, 50, 4, 20) as process:
        for line in process.stdout:
            acknowledged = int(line.split()[0])
            if acknowledged >= 300:
                break
        process.send_signal(signal.SIGKILL)
    draws = Draws.open(tmp_path / "draws")
    assert 300 <= acknowledged <= draws.count < 100_000
    number = torch.arange(draws.count, dtype=torch.float64)
    assert torch.equal(draws.values()["x"], number[None, :, None].expand(50, -1, 4))
    assert torch.equal(draws.stats()["lp"], number.expand(50, -1))
    assert torch.equal(draws.totals()["diverging"], torch.full((50,), draws.count - 1))
    torch.testing.assert_close(draws.moments()["x"].mean, number.mean().expand(50, 4))


def test_memory_is_bounded_by_the_blocks_however_many_the_draws(tmp_path):
    num_draws, num_chains, dim, block = 40, 100_000, 10, 10
    with stream(tmp_path / "draws", num_draws, num_chains, dim, block) as process:
        lines = process.stdout.read().splitlines()
    count, more = map(int, lines[-1].split())
    assert count == num_draws
    assert more < 2 * block * num_chains * dim * 8  # of 4 blocks, and their statistics, in all
