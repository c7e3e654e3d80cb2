"""The list of planted faults does not rot: each can still be planted, and is shown to tests."""

import ast
import pathlib

import pytest

mutants = pytest.importorskip("mutants.faults")

ROOT = pathlib.Path(__file__).parent.parent
FAULTS = [fault for faults in mutants.AREAS.values() for fault in faults]


@pytest.mark.parametrize("file", sorted({fault.file for fault in FAULTS}))
def test_each_fault_can_be_planted(file):
    text = (ROOT / "pyro_ebm" / file).read_text()
    for fault in FAULTS:
        if fault.file == file:
            ast.parse(fault.planted(text), filename=fault.name)


def test_names_are_unique():
    names = [fault.name for fault in FAULTS]
    assert len(names) == len(set(names))


def test_each_fault_is_shown_to_tests_that_exist():
    for fault in FAULTS:
        assert fault.test_files(), fault.name
        assert all((ROOT / file).exists() for file in fault.test_files()), fault.name
