"""An energy whose parameters two processes divide (FSDP2) learns and is sampled as a whole one."""

import shutil

import pytest
import torch
from divided_on_ranks import OBJECTIVES, REFUSED
from training_on_ranks import NUM_CHAINS, STOPS_AT, Training
from two_ranks import at_work, seen_by_each

from pyro_ebm.objectives import Resumable

pytestmark = pytest.mark.skipif(
    torch.__version__ < (2, 7), reason="fully_shard needs torch 2.7 on a CPU"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where two ranks have been at work, started once for all tests."""
    return at_work("divided_on_ranks.py", tmp_path_factory.mktemp("divided"))


@pytest.fixture(scope="module")
def seen(folder):
    return seen_by_each(folder)


def equal(x, y):
    torch.testing.assert_close(x, y, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("how", ["divided", "by layers"])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_what_is_learned_is_the_same(name, how, seen):
    expected = seen[0]["whole"][name]
    for one in seen:
        equal(one[how][name], expected)
    assert not torch.equal(expected[-2:], torch.zeros(2))  # "shift", which each rank has whole


@pytest.mark.parametrize("name", ["PersistentCD", "compiled"])
def test_an_energy_of_distributed_data_parallel_learns_the_same(name, seen):
    for one in seen:
        equal(one["replicated"][name], one["whole"][name])


@pytest.mark.parametrize("what", ["draws", "log Z", "spins"])
def test_what_is_sampled_is_the_same(what, seen):
    for whole, divided in (one[what] for one in seen):
        equal(divided, whole)
        equal(divided, seen[0][what][0])
        assert divided.isfinite().all()


def test_draws_of_a_model_are_the_same_to_rounding(seen):
    for whole, divided in (one["posterior"] for one in seen):  # one chain at a time
        torch.testing.assert_close(divided, whole)
        equal(divided, seen[0]["posterior"][1])


@pytest.mark.parametrize("name", REFUSED)
def test_what_would_wait_for_ever_or_needs_two_derivatives_is_refused(name, seen):
    why = "derivative of a derivative"
    if name in ("HMC", "ChEES"):
        why = f"the steps of {name} take more gradients on one rank than on another"
    for kind, message, _ in (one["refused"][name] for one in seen):
        assert kind == "ValueError"
        assert "whose energy is divided among ranks (fully_shard)" in message
        assert why in message


@pytest.mark.parametrize(
    ("what", "kernel"), [("draws", "ChEES"), ("posterior", "ChEES"), ("log Z", "HMC")]
)
def test_a_sampler_whose_ranks_would_part_is_refused(what, kernel, seen):
    for kind, message, _ in (one[f"{what} refused"] for one in seen):
        assert kind == "ValueError"
        assert f"{kernel} cannot sample an energy that is divided among ranks" in message


def test_parameters_divided_among_other_ranks_are_refused(seen):
    for kind, message, _ in (one["divided alone"] for one in seen):
        assert kind == "ValueError"
        assert "divided among 1 ranks, and 2 train together" in message


def test_a_run_that_was_stopped_goes_on_bit_for_bit(seen):
    for run in (one["goes on"] for one in seen):
        assert (run["status"], run["before"]["num_steps"]) == (143, STOPS_AT + 1)
        equal(run["after"], run["undisturbed"])


def test_what_is_recorded_and_averaged_is_the_same(seen):
    for run in (one["goes on"] for one in seen):
        divided, whole = run["undisturbed"], run["never divided"]
        for key in ("parameters", "average"):
            equal(divided[key], whole[key])
        norms = [one["history"].pop("gradient norm") for one in (divided, whole)]
        equal(divided["history"], whole["history"])
        # Of the gradient that ranks have averaged, where that of each is known before.
        assert all(0 < mean < each for mean, each in zip(*norms, strict=True))


def test_the_norm_of_a_gradient_is_that_of_all_of_it(seen):
    for whole, divided in (one["norms"] for one in seen):
        torch.testing.assert_close(divided, whole, rtol=1e-12, atol=0)


def test_one_process_goes_on_with_what_was_divided(folder, seen, tmp_path):
    before = seen[0]["goes on"]["before"]
    copy = shutil.copytree(folder / "copy", tmp_path / "copy")
    torch.set_default_dtype(torch.float64)
    try:
        run = Training("PersistentCD", 2 * NUM_CHAINS)
        with Resumable(copy, every=3600, **run.parts()) as training:
            assert training.step == STOPS_AT + 1
            found = run.found()
            for key in ("parameters", "average", "history"):
                equal(found[key], before[key])
            run.step()
            assert bool(run.found()["parameters"].isfinite().all())
    finally:
        torch.set_default_dtype(torch.float32)


def test_after_a_step_that_is_not_sound_all_is_as_it_was(seen):
    for run in (one["diverged"] for one in seen):
        equal(run["now"], run["good"])
