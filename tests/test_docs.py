"""What the documents promise: the README's code and the examples run, names are explained."""

import dataclasses
import inspect
import os
import pathlib
import re
import subprocess
import sys
import types

import pytest

import pyro_ebm

ROOT = pathlib.Path(__file__).parent.parent
README = ROOT / "README.md"
BLOCKS = (
    re.findall(r"^```python\n(.*?)^```", README.read_text(), re.S | re.M)
    if README.exists()
    else []
)
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))


def run(*arguments, cwd):
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "MPLBACKEND": "Agg"}
    command = [sys.executable, *map(str, arguments)]
    done = subprocess.run(
        command, cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done


@pytest.mark.skipif(not README.exists(), reason="there is no README.md")
def test_readme_has_code():
    assert BLOCKS


@pytest.mark.slow
@pytest.mark.parametrize("block", BLOCKS, ids=range(len(BLOCKS)))
def test_code_of_readme_runs(block, tmp_path):
    (tmp_path / "block.py").write_text(block)
    run("block.py", cwd=tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("example", EXAMPLES, ids=[path.stem for path in EXAMPLES])
def test_example_runs_small(example, tmp_path):
    run(example, "--smoke", cwd=tmp_path)


NAMESPACES = [
    value
    for value in (getattr(pyro_ebm, name) for name in pyro_ebm.__all__)
    if isinstance(value, types.ModuleType)
]
NAMES = {
    f"{module.__name__}.{name}": getattr(module, name)
    for module in (pyro_ebm, *NAMESPACES)
    for name in module.__all__
    if not name.startswith("__")
}
SHOWN_ELSEWHERE = {"Mixture": "mixture", "no_guide": "Objective", "run": "MCMC"}
"""Names that no user writes alone, and the name whose example shows them at work."""


def needs_example(thing):
    if not (inspect.isclass(thing) or inspect.isfunction(thing)):
        return False  # a namespace or a data set
    is_record = dataclasses.is_dataclass(thing) or (
        inspect.isclass(thing) and issubclass(thing, tuple)
    )
    return not (is_record or inspect.isabstract(thing) or thing.__name__ in SHOWN_ELSEWHERE)


@pytest.mark.parametrize("name", NAMES)
def test_public_name_is_explained(name):
    """Namespaces, records and interfaces by a docstring, all else by an example too."""
    thing = NAMES[name]
    assert thing.__doc__, "no docstring"
    assert "Example" in thing.__doc__ or not needs_example(thing), "no example"
