"""What the documents promise: code of the pages and the examples run, links lead somewhere, names
are explained."""

import ast
import dataclasses
import importlib
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
PAGES = {path.stem: path for path in (*ROOT.glob("README.md"), *sorted(ROOT.glob("docs/*.md")))}
BLOCKS = {
    name: re.findall(r"^```python\n(.*?)^```", page.read_text(), re.S | re.M)
    for name, page in PAGES.items()
}
WITH_CODE = [name for name, blocks in BLOCKS.items() if blocks]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
FOLDERS = "benchmarks|docs|examples|pyro_ebm|tests"


def run(*arguments, cwd):
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "MPLBACKEND": "Agg"}
    command = [sys.executable, *map(str, arguments)]
    done = subprocess.run(
        command, cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done


def prose(page):
    """A page without its blocks of code."""
    return re.sub(r"^```.*?^```", "", page.read_text(), flags=re.S | re.M)


def anchors(page):
    """What the headings of a page are called in a link."""
    headings = re.findall(r"^#{1,3} (.+)$", prose(page), re.M)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def spelled(node):
    """The name ``a.b.c`` that an expression is, if it is one."""
    if isinstance(node, ast.Attribute):
        start = spelled(node.value)
        return start and f"{start}.{node.attr}"
    return getattr(node, "id", "")


def exists(name):
    thing = pyro_ebm
    for part in name.split(".")[1:]:
        if not hasattr(thing, part):
            return False
        thing = getattr(thing, part)
    return True


@pytest.mark.skipif("README" not in PAGES, reason="there is no README.md")
def test_readme_has_code():
    assert BLOCKS["README"]


@pytest.mark.parametrize("name", WITH_CODE)
def test_code_of_page_stands_alone(name, tmp_path):
    """It compiles, and each name is imported or made further up on the same page."""
    (tmp_path / "page.py").write_text("\n".join(BLOCKS[name]))
    run("-m", "ruff", "check", "-q", "--isolated", "--select", "F401,F82", "page.py", cwd=tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", WITH_CODE)
def test_code_of_page_runs(name, tmp_path):
    (tmp_path / "page.py").write_text("\n".join(BLOCKS[name]))
    run("page.py", cwd=tmp_path)


@pytest.mark.parametrize("name", PAGES)
def test_what_a_page_names_exists(name):
    spans = re.findall(r"`([^`\n]+)`", prose(PAGES[name]))
    named = {found for span in spans for found in re.findall(r"\bebm(?:\.[A-Za-z_]\w*)+", span)}
    nodes = [node for block in BLOCKS[name] for node in ast.walk(ast.parse(block))]
    named |= {found for found in map(spelled, nodes) if found.startswith("ebm.")}
    assert [found for found in sorted(named) if not exists(found)] == []
    for node in nodes:
        if isinstance(node, ast.ImportFrom) and node.module.startswith("pyro_ebm"):
            module = importlib.import_module(node.module)
            assert {alias.name for alias in node.names} <= set(dir(module))


@pytest.mark.parametrize("name", PAGES)
def test_what_a_page_points_to_exists(name):
    page = PAGES[name]
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        path, _, anchor = target.partition("#")
        if "://" not in target:
            found = page.parent / path if path else page
            assert found.exists(), target
            assert not anchor or anchor in anchors(found), target
    files = re.findall(rf"`((?:{FOLDERS})/[\w./-]+)`", prose(page))
    assert [path for path in files if not (ROOT / path).exists()] == []


@pytest.mark.skipif("index" not in PAGES, reason="there is no docs folder")
def test_index_leads_to_every_page():
    (tree,) = re.findall(r"^```{toctree}\n(.*?)^```", PAGES["index"].read_text(), re.S | re.M)
    assert set(PAGES) - {"README", "index"} <= set(tree.split())


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
