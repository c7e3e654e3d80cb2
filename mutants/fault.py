"""One fault: a small change of the text that a plausible programmer makes."""

import shlex
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent


class Fault(NamedTuple):
    """A change of one place, and the tests that should see it."""

    name: str
    """What was done wrong, in words."""
    file: str
    """Where, below ``pyro_ebm``."""
    old: str
    """The text that stands there, exactly once."""
    new: str
    tests: str
    """Files below ``tests`` and words of pytest, such as ``test_nuts.py -k tree``."""

    def planted(self, text):
        """The text of the file with the fault in it.

        Raises:
            ValueError: If the old text does not stand there exactly once.
        """
        count = text.count(self.old)
        if count != 1 or self.old == self.new:
            raise ValueError(
                f"the old text of '{self.name}' stands {count} times in pyro_ebm/{self.file}"
            )
        return text.replace(self.old, self.new)

    def words(self):
        """What pytest is told."""
        parts = shlex.split(self.tests)
        return [f"tests/{part}" if part.startswith("test_") else part for part in parts]

    def test_files(self):
        """The files of tests that it is told, without what chooses among them."""
        return [word.partition("::")[0] for word in self.words() if word.startswith("tests/")]


def group(file, tests, *changes):
    """Faults of one file that the same tests should see, unless a change names others.

    Args:
        file: The file below ``pyro_ebm``.
        tests: The tests.
        changes: Tuples of a name, the old text and the new one, and perhaps tests.
    """
    return [Fault(name, file, old, new, *(own or (tests,))) for name, old, new, *own in changes]
