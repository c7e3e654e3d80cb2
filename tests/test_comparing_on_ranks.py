"""Two processes that share models and starts: every rank has what one process would have."""

import pytest
import torch
from two_ranks import at_work, seen_by_each

MEASURED_BY_CLOCK = ("seconds", "memory")
"""What depends on the machine, of the numbers of a row; and of the table's columns below."""
COLUMNS_BY_CLOCK = ("train (s)", "train (MB)", "s / 1,000", "sample (MB)")


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    return seen_by_each(at_work("comparing_on_ranks.py", tmp_path_factory.mktemp("ranks")))


def without_clock(card):
    rows = [
        {k: v for k, v in row.items() if not any(word in k for word in MEASURED_BY_CLOCK)}
        for row in card["rows"]
    ]
    table = [{k: v for k, v in row.items() if k not in COLUMNS_BY_CLOCK} for row in card["table"]]
    return repr(rows), table


def test_every_rank_has_the_card_of_one_process(seen):
    alone = seen[0]["compares"]["alone"]
    assert len(alone["rows"]) == 6
    for card in (one["compares"]["together"] for one in seen):
        assert without_clock(card) == without_clock(alone)
        for part in ("caveats", "protocol", "figures", "drawn", "rankings"):
            assert card[part] == alone[part]
        assert torch.equal(card["after"], alone["after"])
    assert alone["drawn"] == ["chains of energy", "samples", "training", "typicality"]
    broken = next(row for row in alone["rows"] if row["model"] == "broken")
    assert "making failed: RuntimeError: cannot be made" in broken["errors"]


def test_seconds_were_taken_on_one_rank_and_told_to_all(seen):
    one, other = (each["compares"]["together"]["rows"] for each in seen)
    assert [row["train_seconds"] for row in one] == [row["train_seconds"] for row in other]


def test_ranks_with_unlike_data_are_refused(seen):
    for said in (one["compares"]["unlike"] for one in seen):
        assert "load all data on each rank, from one seed" in said


def test_a_search_has_the_best_of_all_ranks(seen):
    own = [one["searches"]["own"] for one in seen]
    best = min(own, key=lambda found: found.energy)
    assert own[0].energy != own[1].energy
    for found in (one["searches"]["together"] for one in seen):
        assert torch.equal(found.x, best.x)
        assert torch.equal(found.energy, best.energy)
        assert (found.method, found.exact) == ("icm", False)


def test_a_search_from_fewer_starts_than_ranks_gives_each_one(seen):
    one, other = (each["searches"]["few"] for each in seen)
    assert torch.equal(one.x, other.x)
