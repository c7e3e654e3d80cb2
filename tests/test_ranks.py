"""Two processes at one piece of work: what they do together is what one does with all of it."""

import numpy as np
import pyro
import pytest
import torch
from laws import assert_chain_mean, assert_close
from on_ranks import ESTIMATORS, NUM_CHAINS, NUM_STEPS, SHAPE, kernels, log_gamma, mcmc
from two_ranks import at_work, seen_by_each

import pyro_ebm as ebm
from pyro_ebm.kernels import MALA
from pyro_ebm.runs.sharding import put_together


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where two ranks have been at work, started once for all tests."""
    return at_work("on_ranks.py", tmp_path_factory.mktemp("ranks"))


@pytest.fixture(scope="module")
def seen(folder):
    return seen_by_each(folder)


def equal(x, y):
    torch.testing.assert_close(x, y, rtol=0, atol=0, equal_nan=True)


def test_ranks_find_one_another(seen):
    assert [one["ranks"] for one in seen] == [(0, 2), (1, 2)]
    assert [one["say"]["share"] for one in seen] == [[0, 2], [2, 5]]
    for said in (one["say"] for one in seen):
        equal(said["total"], (torch.tensor([3.0, 1.0], dtype=torch.float64), torch.tensor(1)))
        equal(said["mean"], torch.tensor(7.0).double())
        rows = torch.tensor([0.0, 1.0, 2.0, 10.0, 11.0, 12.0, 13.0]).double()
        equal(said["gathered"], rows)
        equal(said["gathered flags"], rows > 1)
        assert said["gathered nothing"].shape == (4, 0)
        equal(said["first"], rows[:2])
        assert said["alone"] == (1, 1.0)


def test_each_rank_has_numbers_of_its_own(seen):
    one, other = (said["say"] for said in seen)
    assert not set(one["own"].tolist()) & set(other["own"].tolist())
    equal(one["common"], other["common"])


ADAPTED = ["MALA", "MALA with directions", "few chains", "ChEES", "MAMS", "MCLMC"]


@pytest.mark.parametrize("name", ADAPTED)
def test_ranks_learn_what_one_does_of_all_chains(name, seen):
    for adapted in (one["adapts"][name] for one in seen):
        torch.testing.assert_close(adapted["together"], adapted["alone"], rtol=1e-9, atol=1e-12)
    equal(*(one["adapts"][name]["together"] for one in seen))


def test_lost_chains_go_on_from_places_of_another_rank(seen):
    adapted = seen[0]["adapts"]["MALA"]["together"]
    assert adapted["rejoined"].tolist() == [c < NUM_CHAINS // 2 for c in range(NUM_CHAINS)]
    lost, others = adapted["after"].split([NUM_CHAINS // 2, NUM_CHAINS - NUM_CHAINS // 2])
    assert {tuple(row) for row in lost.tolist()} <= {tuple(row) for row in others.tolist()}


@pytest.mark.parametrize(("name", "most"), [("MALA", 1), ("ChEES", 2), ("MCLMC", 1)])
def test_a_step_of_warmup_takes_few_messages(name, most, seen):
    at_window_ends = 9 * 13
    assert seen[0]["adapts"][name]["messages"] <= most * NUM_STEPS + at_window_ends


@pytest.mark.parametrize("name", kernels())
def test_ranks_end_warmup_at_the_same_bits_and_part(name, seen):
    one, other = (each["samples"][name] for each in seen)
    equal(one["shared"], other["shared"])
    equal(one["draws"], other["draws"])
    assert len(one["draws"]) == NUM_CHAINS
    assert not set(one["own"].flatten().tolist()) & set(other["own"].flatten().tolist())


def test_draws_need_no_message(seen):
    few, many = seen[0]["samples"]["messages"]
    assert few == many > 40


def test_ranks_have_the_law_of_the_target(seen):
    law = seen[0]["samples"]["law"]
    draws = law["draws"]
    assert draws.shape == (60, 120, 2)
    assert law["num_chains"] == 30
    mean, variance = SHAPE.digamma(), torch.special.polygamma(1, SHAPE)
    assert_chain_mean(draws, mean)
    assert_chain_mean((draws - mean).square(), variance)
    for half in draws.split(30):  # chains of each rank, and no chain of both
        assert_chain_mean(half, mean)
    assert len({tuple(x) for x in draws[:, -1].tolist()}) == 60
    torch.testing.assert_close(law["moments"].mean, draws.mean(1))
    checks = law["diagnostics"]
    equal(checks["x"]["r_hat"], ebm.diagnostics.split_r_hat(draws))
    assert list(checks["x"]) == ["n_eff", "r_hat", "nested_r_hat"]
    assert len(checks["acceptance rate"]) == 60


def test_one_store_holds_the_draws_of_all_ranks(folder, seen):
    draws = ebm.Draws.open(folder / "store")
    for one in (each["stores"][kind] for each in seen for kind in ("memory", "store")):
        equal(draws.values()["x"].clone(), one["draws"])
        equal({k: v.clone() for k, v in draws.stats().items()}, one["stats"])
        equal(draws.moments()["x"], one["moments"])
        equal(draws.totals(), one["totals"])
    assert (draws.num_chains, draws.count) == (NUM_CHAINS, 40)
    file = np.load(folder / "store" / "000-x.npy", mmap_mode="r")
    assert file.shape == (40, NUM_CHAINS, 2)
    equal(ebm.Draws.open(folder / "store" / "warmup").count, 30)


@pytest.mark.parametrize("stage", ["warmup", "sample"])
def test_ranks_stop_together_and_go_on_bit_for_bit(stage, seen):
    one, other = (each["checkpoints"] for each in seen)
    assert one[stage, "status"] == other[stage, "status"] == 143
    assert one[stage, "step"] == other[stage, "step"]
    equal(one[stage, "stopped"], one[stage, "whole"])
    equal(other[stage, "stopped"], one[stage, "whole"])


@pytest.mark.parametrize("stage", ["warmup", "sample"])
def test_one_process_goes_on_with_what_two_began(stage, folder, seen):
    known = seen[0]["checkpoints"]
    kernel = MALA(potential_fn=log_gamma, metric_rank=2)
    run = mcmc(kernel, 40, 50, checkpoint=folder / f"{stage}-copy")
    pyro.set_rng_seed(9)
    run.run()
    draws = run.get_samples(group_by_chain=True)["x"]
    made = max(0, known[stage, "step"] - 50)
    equal(draws[:, :made].clone(), known[stage, "whole"][:, :made])
    stayed = (draws[:, -1] == known[stage, "whole"][:, -1]).all(-1)
    assert stayed.sum() < NUM_CHAINS / 2  # noise is new, and many a proposal is rejected
    assert draws.shape == (NUM_CHAINS, 40, 2)
    assert bool(draws.isfinite().all())
    warmup = ebm.Draws.open(folder / f"{stage}-whole" / "draws" / "warmup").values()["x"]
    begun = min(50, known[stage, "step"])
    equal(run.get_warmup()["x"][:, :begun].clone(), warmup[:, :begun].clone())


def test_arviz_opens_what_two_ranks_finished(folder, seen):
    pytest.importorskip("arviz")
    kernel = MALA(potential_fn=log_gamma, metric_rank=2)
    run = mcmc(kernel, 40, 50, checkpoint=folder / "sample-whole")
    run.run()
    assert run.engine.startswith("eager")
    posterior = ebm.to_arviz(run)["posterior"]
    equal(torch.from_numpy(posterior["x"].values), seen[0]["checkpoints"]["sample", "whole"])


def test_two_ranks_go_on_with_what_one_process_began(seen):
    one, other = (each["divided"] for each in seen)
    for name in ("z", "grad", "potential"):
        equal(torch.cat([one[name], other[name]]), one["whole"][name])
    for name in ("scale", "origin"):
        equal(one[name], one["whole"][name])
        equal(other[name], one["whole"][name])
    for name in ("total", "count"):
        equal(one[name] + other[name], one["whole"][name])
    assert one["count"] > 0
    assert not torch.equal(one["generator"], other["generator"])


def test_chains_are_put_together_level_by_level():
    parts = [torch.tensor([[1, 2, 5, 6]]), torch.tensor([[3, 7]])]
    equal(put_together(parts, 1, 2), torch.tensor([[1, 2, 3, 5, 6, 7]]))


def test_gradients_are_those_of_all_data(seen):
    for trained in (one["train"] for one in seen):
        torch.testing.assert_close(trained["together"], trained["alone"], rtol=1e-10, atol=1e-12)
    equal(*(one["train"]["together"] for one in seen))


def test_ranks_learn_one_energy_by_chains_of_their_own(seen):
    """From parameters that differed, which are made those of the first rank."""
    one, other = (each["train"] for each in seen)
    equal(one["persistent"], other["persistent"])
    assert not set(one["chains"].flatten().tolist()) & set(other["chains"].flatten().tolist())


def test_gradients_that_only_some_ranks_have_count(seen):
    for unused, half in (one["train"]["partly"] for one in seen):
        assert unused is None
        equal(half, torch.full((2,), 0.5, dtype=torch.float64))
    assert "same parameters" in seen[0]["train"]["unequal"]


@pytest.mark.parametrize("kind", ["exact", "found"])
@pytest.mark.parametrize("name", ESTIMATORS)
def test_walkers_of_all_ranks_give_one_estimate(name, kind, seen):
    one, other = (each["logz"][kind, name] for each in seen)
    equal(one["estimates"], other["estimates"])
    equal(one["rungs"], other["rungs"])
    values, errors, lower, upper, _ = torch.tensor(one["estimates"]).T
    assert_close(values.mean(), one["truth"], errors.square().sum().sqrt() / len(values))
    assert lower.mean() < one["truth"] < upper.mean()
    assert len(one["same"]) >= len(values)
    assert not any(one["same"])  # each rank had walkers of its own
    together, alone = one["num_gradients"]
    assert together == pytest.approx(alone, rel=0.25)  # of one rank it would be half


def test_more_ranks_than_groups_of_walkers_are_refused(monkeypatch):
    plan = ebm.logz.plan(ebm.Boltzmann(ebm.energies.Banana(scale=1.0, curvature=0.5)))
    monkeypatch.setattr("pyro_ebm.logz.sharing.num_ranks", lambda: 33)
    for estimate in ESTIMATORS.values():
        with pytest.raises(ValueError, match=r"independent groups, and that many ranks .* got 33"):
            estimate(plan)


def test_a_rank_that_dies_ends_the_others(seen):
    lost = seen[0]["lost"]
    assert "rank 0 of 2 lost the others" in lost["error"]
    assert lost["seconds"] < 30


def test_more_ranks_than_chains_are_refused(monkeypatch):
    monkeypatch.setattr("pyro_ebm.runs.sharding.num_ranks", lambda: 3)
    with pytest.raises(ValueError, match="num_chains must be at least the 3 ranks, got 2"):
        mcmc(MALA(potential_fn=log_gamma), 2, 2, num_chains=2).run()


def test_start_refuses_a_timeout_that_is_not_positive():
    with pytest.raises(ValueError, match="timeout must be a positive number of seconds, got 0"):
        ebm.ranks.start(timeout=0)


def test_start_without_torchrun_does_nothing():
    ebm.ranks.start()
    assert (ebm.ranks.rank(), ebm.ranks.num_ranks()) == (0, 1)
