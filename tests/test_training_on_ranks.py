"""Two processes that learn one energy: stopped they go on, on two ranks or another number."""

import shutil

import pytest
import torch
from training_on_ranks import NUM_CHAINS, NUM_STEPS, OBJECTIVES, STOPS_AT, Batches, Training
from two_ranks import at_work, seen_by_each

from pyro_ebm.objectives import Resumable
from pyro_ebm.runs.checkpoint import Checkpoints

DOUBLE = pytest.mark.usefixtures("double")
RUNS = [*OBJECTIVES, "batches"]


@pytest.fixture
def double():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where two ranks have been at work, started once for all tests."""
    return at_work("training_on_ranks.py", tmp_path_factory.mktemp("ranks"))


@pytest.fixture(scope="module")
def seen(folder):
    return seen_by_each(folder)


@pytest.fixture
def copy(folder, tmp_path):
    """Copies what was left in a folder there, so that every test finds it as it was left."""
    return lambda name: shutil.copytree(folder / name, tmp_path / "copy")


def equal(x, y):
    torch.testing.assert_close(x, y, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("name", RUNS)
def test_ranks_that_were_stopped_go_on_bit_for_bit(name, seen):
    for run in (one["goes on"][name] for one in seen):
        assert (run["status"], run["before"]["num_steps"]) == (143, STOPS_AT + 1)
        equal(run["after"], run["whole"])
        assert run["whole"]["num_steps"] > STOPS_AT + 1


@pytest.mark.parametrize("name", RUNS)
def test_ranks_have_in_common_what_they_learn_and_record(name, seen):
    one, other = (each["goes on"][name]["whole"] for each in seen)
    for key in ("parameters", "average", "history"):
        equal(one[key], other[key])
    if name in OBJECTIVES:  # which are seeded apart
        assert not torch.equal(one["random"], other["random"])
    if one["chains"] is not None:
        assert not set(one["chains"].flatten().tolist()) & set(other["chains"].flatten().tolist())


def pooled(seen, name, key):
    return torch.cat([one["goes on"][name]["before"][key] for one in seen])


@DOUBLE
@pytest.mark.parametrize("name", OBJECTIVES)
def test_one_process_goes_on_with_what_two_began(name, copy, seen):
    before = seen[0]["goes on"][name]["before"]
    run = Training(name, 2 * NUM_CHAINS)
    with Resumable(copy(f"{name}/copy"), every=3600, **run.parts()) as training:
        assert training.step == STOPS_AT + 1
        steps = training.steps(NUM_STEPS)
        next(steps)
        found = run.found()
        for key in ("parameters", "average", "history", "num_steps"):
            equal(found[key], before[key])
        if name in ("PersistentCD", "Jarzynski"):
            equal(found["chains"], pooled(seen, name, "chains"))
            for one in seen:
                assert not torch.equal(
                    found["streams"][0], one["goes on"][name]["before"]["streams"][0]
                )
            assert not torch.equal(found["random"], before["random"])
        run.step()
        for _ in steps:
            run.step()
    assert run.monitor.num_steps == NUM_STEPS
    assert bool(run.found()["parameters"].isfinite().all())


def log_z(found):
    """By all weights of a run, in nats."""
    return found["log_weights"].logsumexp(0) + found["offset"]


@DOUBLE
def test_weights_of_all_ranks_are_weighed_against_one_another(copy, seen):
    """What they are an estimate of, of Z for one, is the same whoever has them."""
    each = [one["goes on"]["Jarzynski"]["before"] for one in seen]
    assert each[0]["offset"] != each[1]["offset"]  # which were resampled, each at its own value
    run = Training("Jarzynski", 2 * NUM_CHAINS)
    with Resumable(copy("Jarzynski/copy"), every=3600, **run.parts()) as training:
        found = run.found()
        equal(found["energies"][0], torch.cat([one["energies"][0] for one in each]))
        expected = torch.stack([log_z(one) for one in each]).logsumexp(0)
        torch.testing.assert_close(log_z(found), expected)
        assert training.step < NUM_STEPS


@DOUBLE
def test_noise_of_all_ranks_has_the_moments_of_their_mixture(copy, seen):
    each = [one["goes on"]["PersistentCD"]["before"]["noise"]["x"] for one in seen]
    run = Training("PersistentCD", 2 * NUM_CHAINS)
    with Resumable(copy("PersistentCD/copy"), every=3600, **run.parts()):
        mean, spread = run.objective.noise["x"]
    first, second = (torch.stack([m, s.square() + m.square()]) for m, s in each)
    moments = (first + second) / 2
    torch.testing.assert_close(mean, moments[0])
    torch.testing.assert_close(spread.square(), moments[1] - moments[0].square())
    assert not torch.equal(each[0][0], each[1][0])


@DOUBLE
@pytest.mark.parametrize(
    ("num_chains", "said"),
    [
        (NUM_CHAINS, "24 chains of 'x', of 2 ranks, and this run of 1 has 12: 12 are left out"),
        (3 * NUM_CHAINS, "has 36: 12 go on from the same places as others. num_chains=24 keeps"),
    ],
)
def test_chains_are_not_lost_in_silence(num_chains, said, copy, seen):
    run = Training("PersistentCD", num_chains)
    resumable = Resumable(copy("PersistentCD/copy"), every=3600, **run.parts())
    with pytest.warns(UserWarning, match=said) as warned, resumable:
        chains, all_of_them = run.objective.chains["x"], pooled(seen, "PersistentCD", "chains")
    assert len(warned) == 1
    equal(chains, all_of_them[torch.arange(num_chains) % len(all_of_them)])


@DOUBLE
def test_an_epoch_that_was_over_is_over(copy, seen):
    assert seen[0]["goes on"]["batches"]["before"]["num_steps"] == 5  # batches on each rank
    run = Batches(num_chains=2 * NUM_CHAINS).live(copy("batches/copy"), num_epochs=2)
    assert len(run.seen) == 10


@DOUBLE
def test_an_epoch_that_was_cut_begins_again_with_other_batches(copy):
    path = copy("batches/stopped")
    sorted(path.glob("checkpoint-*.pt"))[1].unlink()  # of the last step of the last epoch
    run = Batches(num_chains=2 * NUM_CHAINS)
    with pytest.warns(UserWarning, match="epoch 2 was cut after 4 batches of 2 ranks, and begins"):
        run.live(path, num_epochs=3)
    assert len(run.seen) == 10
    equal(torch.cat(run.seen).sort(0).values, run.data.sort(0).values)


def test_two_ranks_go_on_with_what_one_process_began(seen):
    whole = seen[0]["begun"]["whole"]
    for key in ("in common", "apart"):
        one, other = (each["begun"][key] for each in seen)
        for name in ("parameters", "average", "history", "num_steps"):
            equal(one[name], whole[name])
            equal(other[name], whole[name])
        for name in ("chains", "log_weights"):
            equal(torch.cat([one[name], other[name]]), whole[name])
        assert one["offset"] == other["offset"] == whole["offset"]
        assert not torch.equal(one["streams"][0], other["streams"][0])
        assert torch.equal(one["random"], other["random"]) == (key == "in common")
        assert torch.equal(one["random"], whole["random"]) == (key == "in common")


@DOUBLE
def test_ranks_that_learned_apart_cannot_be_put_together(copy, seen):
    assert not torch.equal(*(one["apart"]["parameters"] for one in seen))
    run = Training("PersistentCD", 2 * NUM_CHAINS, average=False)
    message = "is of 2 ranks, which differ in the .* and this is a run of 1. Go on with 2; or"
    resumable = Resumable(copy("apart"), **run.parts())
    with pytest.raises(ValueError, match=message), resumable:
        pass


@DOUBLE
def test_another_run_is_refused_on_another_number_of_ranks_too(copy, seen):
    run = Training("PersistentCD", 2 * NUM_CHAINS)
    run.objective.reinit_prob = 0.5
    resumable = Resumable(copy("PersistentCD/copy"), **run.parts())
    with (
        pytest.raises(ValueError, match=r"reinit_prob=0\.3.* there and .*reinit_prob=0\.5"),
        resumable,
    ):
        pass


@pytest.mark.parametrize(
    ("name", "kind", "message"),
    [
        ("held", "RuntimeError", "held is in use: process"),
        ("held by sampling", "RuntimeError", "held is in use: process"),
        ("two folders", "ValueError", "must be one folder on a file system that all ranks see"),
        ("batches", "ValueError", "as many batches on every rank, got [4, 5]"),
        ("full", "OSError", "No space left on device"),
    ],
)
def test_what_is_wrong_on_one_rank_is_an_error_on_all_at_once(name, kind, message, seen):
    for rank, (found, said, seconds) in enumerate(one["refused"][name] for one in seen):
        assert found == kind
        assert message in said
        assert seconds < 20
        if kind != "ValueError":
            assert said.endswith(" (on rank 0)") == (rank == 1)


def test_a_folder_that_is_held_no_longer_is_free_for_all_ranks(seen):
    assert [one["refused"]["free again"] for one in seen] == [None, None]


def test_all_ranks_go_back_when_one_breaks(folder, seen):
    one, other = (each["broken"] for each in seen)
    assert (one["step"], one["good"], one["num_steps"]) == (6, 4, 4)
    assert "the loss is" in one["error"]
    equal(*({k: each[k] for k in ("parameters", "average", "num_steps")} for each in (one, other)))
    kept = Checkpoints(folder / "broken").load()["ranks"]
    assert [part["parts"]["monitor"]["num_steps"] for part in kept] == [4, 4]


@DOUBLE
def test_a_rank_that_is_killed_leaves_a_checkpoint_that_is_whole(copy, seen):
    kind, said, seconds = seen[0]["lost"]
    assert kind == "RuntimeError"
    assert "rank 0 of 2 lost the others" in said
    assert seconds < 30
    run = Training("PersistentCD", 2 * NUM_CHAINS)
    run.live(copy("lost"))
    assert run.monitor.num_steps == NUM_STEPS
