"""Records of a long run: as long as it, exact where it matters, and no larger than they may be."""

import pytest
import torch
from laws import assert_counts

from pyro_ebm.objectives.records import OLD, RECENT, Record

LONG = 5 * OLD + 3 * RECENT + 17


def of_numbers(length):
    return Record(map(float, range(length)))


@pytest.fixture(scope="module")
def record():
    return of_numbers(LONG)


@pytest.mark.parametrize("length", [0, 1, RECENT, 2 * RECENT, OLD + RECENT - 1])
def test_a_record_of_usual_length_is_the_list_of_its_numbers(length):
    numbers = [float(i) for i in range(length)]
    record = of_numbers(length)
    assert record == numbers
    assert len(record) == length
    assert bool(record) == bool(numbers)
    for part in (slice(3), slice(-3, None), slice(None, None, 7), slice(5, 1, -1)):
        assert record[part] == numbers[part]
    if length:
        assert (record[0], record[-1]) == (0.0, length - 1.0)
        assert torch.equal(torch.tensor(record), torch.tensor(numbers))
    for outside in (length, -length - 1):
        with pytest.raises(IndexError, match=f"a record of {length} numbers has none"):
            record[outside]


def test_a_long_record_is_as_long_as_the_run_and_exact_at_its_end(record):
    assert len(record) == LONG
    assert record[-RECENT:] == [float(i) for i in range(LONG - RECENT, LONG)]
    assert list(record) == [record[i] for i in range(LONG)] == record[:]


def test_numbers_of_long_ago_are_those_of_their_neighbours(record):
    near = torch.tensor(list(record), dtype=torch.float64) - torch.arange(LONG)
    assert record.block == 8
    assert near.abs().max() == record.block - 1


def test_batches_that_come_round_are_all_kept():
    """A record of which batch it was, of 8: every eighth number has always the same remainder."""
    kept = Record(i % 8 for i in range(LONG))[: 4 * OLD : 8]
    counts = torch.tensor(kept, dtype=torch.float64).long().bincount(minlength=8)
    assert_counts(counts, torch.full((8,), 1 / 8))


def test_memory_is_bounded():
    sizes = []
    for length in (2 * OLD, 8 * OLD):
        record = of_numbers(length)
        sizes.append(record.nbytes)
    assert max(sizes) < 1.2 * 8 * (OLD + 2 * RECENT)


def test_a_record_goes_back_and_on(record):
    """Wherever it is cut, and whatever comes after."""
    for length in (0, 100, RECENT + 5, 3 * OLD + 1, LONG - RECENT - 1, LONG - 3, LONG):
        cut = record.until(length)
        assert len(cut) == length
        assert cut == record[:length]
        assert record.until(LONG) == record
    for number in range(2 * OLD):
        cut.append(-number)
    assert len(cut) == LONG + 2 * OLD
    assert cut[-1] == 1.0 - 2 * OLD
    short = record.until(100)
    for number in range(OLD * 9):
        short.append(number)
    assert (len(short), short[-1], short.block) == (100 + OLD * 9, OLD * 9 - 1.0, 16)


def test_a_record_is_kept_and_goes_on_bit_for_bit(record):
    for numbers in (Record(), of_numbers(10), record):
        found = Record()
        found.load_state_dict(numbers.state_dict())
        assert found == numbers
        first, second = numbers.until(len(numbers)), found
        for number in range(2 * OLD):
            first.append(number)
            second.append(number)
        assert first == second
