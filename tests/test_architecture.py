"""The house, checked without running it: layers, imports, heads, sizes; and a quiet import."""

import ast
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent / "pyro_ebm"
MAX_LINES = 450

LAYERS = [
    {"energies"},
    {"guards"},
    {"distributions"},
    {
        "potential",
        "discrete",
        "latents",
        "starting",
        "engine",
        "agreement",
        "native",
        "dynamo",
        "rewriting",
        "batching",
        "summation",
        "intractable",
        "observed",
    },
    {"kernels"},
    {
        "mcmc",
        "runs",
        "objectives",
        "logz",
        "export",
        "map_estimate",
        "cut",
        "restoring",
    },
    {"zoo"},
    {"compare"},
]
"""From the bottom up: a unit may import those below it and those beside it, but for STRANGERS."""

STRANGERS = [{"objectives", "logz"}]

APART = {
    "arguments": set(),
    "metrics": set(),
    "datasets": set(),
    "diagnostics": set(),
    "version": set(),
    "layout": set(),
    "ranks": set(),
    "printing": set(),
    "validation": set(),
    "plotting": {"energies"},
}
"""Units that anybody may import, and all that they may import themselves."""

FILES = {path.relative_to(ROOT).with_suffix("").parts: path for path in ROOT.rglob("*.py")}
TREES = {parts: ast.parse(path.read_text()) for parts, path in FILES.items()}
MODULES = sorted(FILES)


def every(modules):
    return pytest.mark.parametrize("module", modules, ids=["/".join(parts) for parts in modules])


def is_init(module):
    return module[-1] == "__init__"


def unit(module):
    """The file or folder of the top level that a module belongs to."""
    return module[0]


def imports(module):
    """All import statements that run, those inside functions too, those for type checkers not."""
    todo = [TREES[module]]
    while todo:
        node = todo.pop()
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            yield node
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            todo.extend(node.orelse)
        else:
            todo.extend(ast.iter_child_nodes(node))


def inner_imports(module):
    """Pairs of the module imported from, as a path, and the names taken, for relative imports."""
    for node in imports(module):
        if isinstance(node, ast.ImportFrom) and node.level:
            above = module[: len(module) - node.level]
            inside = tuple(node.module.split(".")) if node.module else ()
            yield above + inside, [alias.name for alias in node.names]


def targets(module):
    """The modules of the package that a module imports, with ``from . import x`` resolved."""
    for path, names in inner_imports(module):
        if path in FILES:
            yield path
        else:
            for name in names:
                yield next(
                    candidate
                    for candidate in (
                        (*path, name),
                        (*path, name, "__init__"),
                        (*path, "__init__"),
                    )
                    if candidate in FILES
                )


def level(name):
    return next(i for i, layer in enumerate(LAYERS) if name in layer)


def may_import(name, other):
    if name in APART:
        return other in APART[name]
    if other in APART:
        return True
    return level(other) <= level(name) and {name, other} not in STRANGERS


@every([m for m in MODULES if m != ("__init__",)])
def test_imports_go_down(module):
    for target in targets(module):
        name, other = unit(module), unit(target)
        assert name == other or may_import(name, other), f"{name} may not import {other}"


@every(MODULES)
def test_imports_within_the_package_are_relative(module):
    for node in imports(module):
        names = (
            [a.name for a in node.names] if isinstance(node, ast.Import) else [node.module or ""]
        )
        absolute = isinstance(node, ast.Import) or not node.level
        assert not (absolute and any(n.split(".")[0] == "pyro_ebm" for n in names)), ast.unparse(
            node
        )


def defined(tree):
    """The names that a module itself defines at its top level."""
    for node in tree.body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            yield node.name
        elif isinstance(node, (ast.Assign, ast.AnnAssign)):
            nodes = node.targets if isinstance(node, ast.Assign) else [node.target]
            yield from (n.id for n in nodes if isinstance(n, ast.Name))


@every([m for m in MODULES if m != ("__init__",)])
def test_names_are_imported_from_the_module_that_defines_them(module):
    for path, names in inner_imports(module):
        assert path in FILES, f"{'/'.join(path)} is a package: import from the module inside"
        missing = set(names) - set(defined(TREES[path]))
        assert not missing, f"{'/'.join(path)} does not define {missing}"


def test_no_import_cycle():
    graph = {m: set(targets(m)) for m in MODULES if not is_init(m)}
    done, path = set(), []

    def visit(module):
        assert module not in path, " -> ".join("/".join(m) for m in [*path, module])
        if module in done or module not in graph:
            return
        path.append(module)
        for target in sorted(graph[module]):
            visit(target)
        done.add(path.pop())

    for module in graph:
        visit(module)


def all_of(module):
    (node,) = [
        node
        for node in TREES[module].body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"
    ]
    return node, ast.literal_eval(node.value)


@every(MODULES)
def test_module_begins_with_docstring_and_all(module):
    tree = TREES[module]
    assert ast.get_docstring(tree), "no docstring"
    node, names = all_of(module)
    before = tree.body[1 : tree.body.index(node)]
    if is_init(module):
        assert all(isinstance(n, (ast.ImportFrom, ast.Assign)) for n in before)
    else:
        assert [ast.unparse(n) for n in before] in ([], ["from __future__ import annotations"])
    assert names == sorted(names, key=_as_ruff_sorts), "not sorted"


def _as_ruff_sorts(name):
    """CONSTANTS, then Classes, then the rest."""
    return (0 if name.isupper() else 1 if name[0].isupper() else 2, name)


@every([m for m in MODULES if not is_init(m)])
def test_all_names_exist(module):
    assert set(all_of(module)[1]) <= set(defined(TREES[module]))


@every([m for m in MODULES if is_init(m)])
def test_namespace_says_all_that_it_imports(module):
    taken = {name for _, names in inner_imports(module) for name in names}
    assert set(all_of(module)[1]) - {"__version__"} == taken - {"__version__"}


@every(MODULES)
def test_module_can_be_read_in_one_sitting(module):
    assert len(FILES[module].read_text().splitlines()) <= MAX_LINES
    assert "utils" not in module[-1]


PROBE = """
import random, sys
import numpy, torch, pyro, pyro.distributions, pyro.infer, tqdm.auto

def look():
    return {
        "default dtype": torch.get_default_dtype(),
        "default device": torch.get_default_device(),
        "validation of torch": torch.distributions.Distribution._validate_args,
        "validation of pyro": pyro.distributions.TorchDistribution._validate_args,
        "validation of inference": pyro.infer.util.is_validation_enabled(),
        "validation of traces": pyro.poutine.util.is_validation_enabled(),
        "threads": (torch.get_num_threads(), torch.get_num_interop_threads()),
        "torch rng": torch.get_rng_state().tolist(),
        "numpy rng": [str(part) for part in numpy.random.get_state()],
        "python rng": random.getstate(),
        "grad mode": torch.is_grad_enabled(),
        "params": list(pyro.get_param_store()),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
    }

before = look()
import pyro_ebm
after = look()
changed = [name for name in before if before[name] != after[name]]
assert not changed, f"import pyro_ebm changed {changed}"
heavy = {"arviz", "matplotlib", "sklearn", "zuko", "torchvision"} & set(sys.modules)
assert not heavy, f"import pyro_ebm imported {heavy}"
try:
    pyro.distributions.Normal(0.0, -1.0)
except ValueError:
    pass
else:
    raise AssertionError("arguments of distributions are no longer validated")
"""


def test_import_has_no_side_effect():
    """In a fresh interpreter: nothing global changes, and what is optional stays unloaded."""
    code = f"import sys; sys.path.insert(0, {str(ROOT.parent)!r})\n{PROBE}"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
