"""Every rung of the engine gives the numbers of the one below, or says why it was not reached."""

import copy
import shutil
import subprocess
import sys
import warnings
from collections import deque

import pyro
import pyro.distributions as dist
import pytest
import torch
from cases import KERNELS
from test_potential import MODELS
from torch import tensor

import pyro_ebm as ebm
from pyro_ebm.energies import MLP
from pyro_ebm.engine import Rung, compile_scan, loop, trace
from pyro_ebm.kernels import HMC, MALA, recall
from pyro_ebm.kernels.acceleration import WORTH_TRACING, Runner
from pyro_ebm.potential import Potential

needs_compiler = pytest.mark.skipif(not shutil.which("g++"), reason="needs a C++ compiler")


def end_of_run(kernel, target, compile, num_steps=8):
    pyro.set_rng_seed(3)
    potential = Potential.of(target)
    state = kernel.init(potential, potential.initialize(16))
    runner = Runner(kernel, potential, state, WORTH_TRACING, compile)
    generator = torch.Generator().manual_seed(4)
    *_, (state, history) = runner.run(state, num_steps, generator)
    return state, history.info, runner.rung


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("kernel", KERNELS)
def test_the_graph_of_a_model_gives_its_numbers_bit_for_bit(kernel, model):
    eager, info, rung = end_of_run(KERNELS[kernel](), model, False)
    assert str(rung) == "eager (compile=False)"
    graph, info_of_graph, rung = end_of_run(KERNELS[kernel](), model, "auto")
    assert rung.name == "graph"
    assert torch.equal(graph.z, eager.z)
    assert torch.equal(graph.potential, eager.potential)
    assert type(info_of_graph) is type(info)
    assert [a is None for a in info] == [a is None for a in info_of_graph]


@pytest.mark.slow
@needs_compiler
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
@pytest.mark.parametrize("kernel", KERNELS)
def test_the_native_code_of_a_model_gives_its_numbers_to_rounding(kernel):
    eager, info, _ = end_of_run(KERNELS[kernel](), MODELS[0], False)
    native, native_info, rung = end_of_run(KERNELS[kernel](), MODELS[0], True)
    assert rung.name == "native"
    torch.testing.assert_close(native.z, eager.z, rtol=1e-9, atol=1e-9)
    for got, expected in zip(native_info, info, strict=True):
        assert (got is None) == (expected is None)
        if expected is not None:
            torch.testing.assert_close(got[-1], expected[-1], rtol=1e-6, atol=1e-9)


def test_parameters_that_change_are_seen_by_the_graph():
    energy = MLP((2,), (8,))
    potential = Potential.of(ebm.Boltzmann(energy))
    z = torch.randn(5, 2)
    gradient = trace(potential.value_and_grad, (z,))
    assert gradient.name == "graph"
    before = gradient.fn(z)[0]
    with torch.no_grad():
        for parameter in energy.parameters():
            parameter.mul_(1.5)
    value, grad = gradient.fn(z)
    assert not torch.equal(value, before)
    torch.testing.assert_close(value, energy(z).detach())
    torch.testing.assert_close(grad, energy.grad(z))


def test_the_driver_says_what_it_reached():
    target = ebm.Boltzmann(MLP((2,), (8,)))
    for compile, steps, expected in (
        (False, 80, "eager"),
        ("auto", 80, "graph"),
        ("auto", 5, "eager (only 10 steps)"),
    ):
        mcmc = ebm.MCMC(MALA(target), steps, steps, compile=compile, disable_progbar=True)
        mcmc.run()
        assert mcmc.engine.startswith(expected)


def test_a_seed_gives_the_same_run_on_every_exact_rung():
    def draws(compile):
        pyro.set_rng_seed(5)
        mcmc = ebm.MCMC(HMC(MODELS[0]), 60, 60, compile=compile, disable_progbar=True)
        mcmc.run()
        return mcmc.get_samples()["slope"]

    assert torch.equal(draws(False), draws("auto"))


def test_a_run_is_compiled_once_that_pays_and_a_seed_decides_when(monkeypatch):
    """By counts of operations, and not by a clock."""
    compiled = []

    def compile_scan(step, state, noise, size):
        compiled.append(size)
        return Rung(None, "graph", "only asked", size)

    monkeypatch.setattr("pyro_ebm.kernels.acceleration.compile_scan", compile_scan)
    target = ebm.Boltzmann(MLP((2,), (8,)))
    for steps, expected in ((200, 0), (10**6, 1)):
        potential = Potential.of(target)
        kernel = HMC(step_size=0.1, num_steps=10)
        state = kernel.init(potential, torch.randn(4, 2))
        runner = Runner(kernel, potential, state, steps, "auto")
        for _ in runner.run(state, 130, torch.Generator().manual_seed(0)):
            pass
        assert len(compiled) == expected


def test_a_graph_counts_the_bytes_that_it_makes_and_no_views():
    x = torch.ones(3, 4, dtype=torch.float32)
    graph = trace(lambda x: x.t().exp().sum(0).double(), (x,)).fn
    assert graph.size == 4
    assert graph.num_bytes == 12 * 4 + 3 * 4 + 3 * 8


def test_what_was_compiled_is_used_again_for_the_same_and_for_nothing_else(monkeypatch):
    monkeypatch.setattr(recall, "_lately", deque(maxlen=recall.LATELY))
    compiled = []

    def compile_scan(step, state, noise, size):
        compiled.append(Rung(step, "native", "as if", size))
        return compiled[-1]

    monkeypatch.setattr("pyro_ebm.kernels.acceleration.compile_scan", compile_scan)

    def rung(target, num_chains=4, **settings):
        potential = Potential.of(target)
        kernel = HMC(step_size=0.1, **{"num_steps": 3} | settings)
        state = kernel.init(potential, torch.ones(num_chains, potential.initialize(1).shape[1]))
        return Runner(kernel, potential, state, 200, True).rung

    def noisy(y):
        def model():
            pyro.sample("y", dist.Normal(pyro.sample("m", dist.Normal(0.0, 1.0)), 1.0), obs=y)

        return model

    y = tensor([1.0, 2.0])
    first = rung(noisy(y))
    assert rung(noisy(y)) is first
    assert rung(noisy(y.clone())) is first
    others = [
        rung(noisy(y + 1.0)),
        rung(noisy(y), num_steps=4),
        rung(noisy(y), num_chains=5),
        rung(noisy(y.repeat(2))),
    ]
    y.add_(5.0)
    others.append(rung(noisy(tensor([1.0, 2.0]))))
    mlp = MLP((2,), (4,))
    others += [rung(ebm.Boltzmann(mlp)), rung(ebm.Boltzmann(copy.deepcopy(mlp)))]
    assert len({id(one) for one in [first, *others]}) == len(others) + 1 == len(compiled)
    with torch.no_grad():
        next(mlp.parameters()).mul_(2.0)
    assert rung(ebm.Boltzmann(mlp)) in others


def gradient_of_layers(sizes, rows):
    """The graph of the gradient of a network of SiLUs, its network and where it is checked."""
    layers = [(torch.nn.Linear(m, n, dtype=torch.double), torch.nn.SiLU()) for m, n in sizes]
    network = torch.nn.Sequential(*(part for pair in layers for part in pair))

    def gradient(x):
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            out = network(x)
            return out.detach(), torch.autograd.grad(out.square().sum(), x)[0]

    x = torch.randn(rows, sizes[0][0], dtype=torch.double)
    return trace(gradient, (x,)), network, x


@pytest.mark.parametrize("rows", [1, 3, 9])
@pytest.mark.parametrize("sizes", [[(1, 32), (32, 1)], [(2, 8), (8, 8), (8, 3)], [(8, 8), (8, 7)]])
def test_what_a_compiler_is_given_has_the_numbers_of_the_graph(rows, sizes, monkeypatch):
    """In place of thin products, of biases and of SiLU it is given other terms."""
    gradient, network, x = gradient_of_layers(sizes, rows)
    assert gradient.name == "graph"
    gradient.fn.rewrite()
    for _ in range(2):
        expected = gradient.fn(x)
        with monkeypatch.context() as patch:
            patch.setattr(torch.compiler, "is_compiling", lambda: True)
            given = gradient.fn(x)
        torch.testing.assert_close(given, expected, rtol=1e-12, atol=1e-12)
        assert not torch.equal(given[1], expected[1])
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.mul_(1.5)


def branching():
    x = pyro.sample("x", dist.Normal(0.0, 1.0))
    scale = 1.0 if x > 0 else 3.0
    pyro.sample("y", dist.Normal(x, scale), obs=tensor(0.5))


def test_a_python_branch_stays_eager_with_a_warning_and_is_never_baked_in():
    potential = Potential.of(branching)
    z = tensor([[-1.0], [2.0]])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        potential.value_and_grad(z)
    with pytest.warns(UserWarning, match="this run stays eager, because tracing stopped at"):
        gradient = trace(potential.value_and_grad, (z,))
    assert gradient.name == "eager"
    torch.testing.assert_close(gradient.fn(-z), potential.value_and_grad(-z))


GROUPS = tensor([0, 2, 1, 2])


def grouped():
    num_groups = int(GROUPS.max()) + 1
    with pyro.plate("groups", num_groups):
        level = pyro.sample("level", dist.Normal(0.0, 2.0))
    with pyro.plate("data", len(GROUPS)):
        pyro.sample("y", dist.Normal(level[GROUPS], 1.0), obs=GROUPS.double())


@pytest.mark.filterwarnings("error::UserWarning")
def test_numbers_taken_out_of_data_are_no_branch():
    potential = Potential.of(grouped)
    z = potential.initialize(3)
    gradient = trace(potential.value_and_grad, (z,))
    assert gradient.name == "graph"
    for found, expected in zip(gradient.fn(2 * z), potential.value_and_grad(2 * z), strict=True):
        assert torch.equal(found, expected)


@pytest.mark.parametrize("what", ["input", "parameter", "data of a graph that lasts"])
def test_numbers_that_may_change_are_never_baked_in(what):
    scale = torch.nn.Parameter(tensor(2.0))
    source = {"input": lambda x: x.sum(), "parameter": lambda x: scale.exp()}
    number = source.get(what, lambda x: GROUPS.max())
    with pytest.warns(UserWarning, match="this run stays eager, because tracing stopped at"):
        found = trace(lambda x: x * float(number(x)), (torch.ones(3),), what not in source)
    assert found.name == "eager"


def test_a_random_function_is_found_out():
    with pytest.warns(UserWarning, match="other numbers than the model: is it random"):
        noisy = trace(lambda x: x + torch.rand_like(x), (torch.zeros(3),))
    assert noisy.name == "eager"


def running_sum(carry, row):
    (total,) = carry
    total = total + row[0].square()
    return (total,), (total, None)


START, ROWS = (torch.zeros(3),), (torch.arange(12.0).reshape(4, 3),)


@pytest.mark.slow
@needs_compiler
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_one_compiled_loop_serves_any_number_of_steps():
    native = compile_scan(running_sum, START, ROWS, size=1)
    assert native.name == "native"
    for length in (4, 1, 3):
        (total,), (kept, nothing) = native.fn(START, (ROWS[0][:length],))
        expected = ROWS[0][:length].square().cumsum(0)
        torch.testing.assert_close(kept, expected)
        torch.testing.assert_close(total, expected[-1])
        assert nothing is None


@pytest.mark.slow
@needs_compiler
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_a_run_never_compiles_again_whatever_was_compiled_before():
    for size in (2, 3, 4):
        carry, rows = (torch.zeros(size),), (torch.ones(4, size),)
        native = compile_scan(running_sum, carry, rows, size=1)
        with torch.compiler.set_stance("fail_on_recompile"):
            (total,), _ = native.fn(carry, rows)
        assert torch.equal(total, torch.full((size,), 4.0))


def test_a_machine_without_a_compiler_stays_below(monkeypatch):
    def no_compiler(*args, **kwargs):
        raise RuntimeError("no C++ compiler found")

    monkeypatch.setattr("pyro_ebm.engine.compiled_scan", no_compiler)
    with pytest.warns(UserWarning, match="not native, because compiling stopped at.*no C\\+\\+"):
        rung = compile_scan(running_sum, START, ROWS, size=1)
    assert rung.name == "graph"
    assert rung.fn is None
    mcmc = ebm.MCMC(MALA(MODELS[0]), 5, 5, compile=True, disable_progbar=True)
    with pytest.warns(UserWarning, match="this run is not native"):
        mcmc.run()
    assert mcmc.engine.startswith("graph")


def test_a_graph_too_large_to_compile_stays_a_graph(monkeypatch):
    monkeypatch.setattr("pyro_ebm.engine.MAX_NATIVE_OPS", 0)
    rung = compile_scan(running_sum, START, ROWS, size=1)
    assert str(rung) == "graph (1 operations are too many to compile)"


def test_a_loop_of_python_ends_when_its_condition_does():
    count, total = loop(
        lambda carry: carry[0] > 0,
        lambda carry: (carry[0] - 1, carry[1] + carry[0]),
        (tensor(4), tensor(0)),
    )
    assert (count, total) == (0, 10)
    assert loop(lambda x: x < 0, lambda x: x + 1, tensor(5)) == 5


@pytest.mark.slow
@needs_compiler
@pytest.mark.slow
def test_native_code_is_built_where_warnings_are_errors():
    program = (
        "import pyro_ebm as ebm\n"
        "p = ebm.Boltzmann(ebm.energies.Banana(1.0, 0.3))\n"
        "kernel = ebm.kernels.MALA(p)\n"
        "mcmc = ebm.MCMC(kernel, 20, 20, compile=True, disable_progbar=True)\n"
        "mcmc.run()\n"
        "print(mcmc.engine)\n"
    )
    found = subprocess.run(
        [sys.executable, "-W", "error", "-c", program], capture_output=True, text=True
    )
    assert found.stdout.startswith("native"), found.stderr


@pytest.mark.skipif(torch.__version__ < (2, 9), reason="needs native loops")
def test_native_code_reads_what_it_closes_over_and_what_is_fixed_as_they_are_now():
    """Both in a loop within a loop; a tensor that no step changes is given anew to each call."""
    weight = torch.nn.Parameter(tensor([0.5, 0.25, 2.0]))
    shift = tensor([1.0, 2.0, 3.0])

    def step(carry, row):
        total, fixed = carry
        rate = fixed * 0.5

        def body(now):
            k, y = now
            return k + 1, y * weight + shift + rate

        _, total = loop(lambda now: now[0] < fixed.sum(), body, (fixed.new_zeros(()), total))
        return (total + row[0], fixed), (total,)

    start, rows = torch.zeros(3), (torch.randn(4, 3),)
    native = compile_scan(step, (start, tensor([3.0])), rows, size=5)
    assert native.name == "native"
    for change in (lambda: None, lambda: weight.mul_(3.0), lambda: shift.sub_(9.0)):
        with torch.no_grad():
            change()
        for fixed in (tensor([3.0]), tensor([5.0])):
            carry, kept = (start, fixed), []
            for row in rows[0]:
                carry, (one,) = step(carry, (row,))
                kept.append(one)
            (total, same), (found,) = native.fn((start, fixed), rows)
            torch.testing.assert_close(total, carry[0].detach())
            torch.testing.assert_close(found, torch.stack(kept).detach())
            assert torch.equal(same, fixed)


# Of the compiler, as it is imported within the test.
@pytest.mark.filterwarnings(r"ignore:`torch\.jit\.\w+` is deprecated:DeprecationWarning")
def test_a_step_that_writes_in_place_is_not_compiled():
    def step(carry, row):
        total = carry[0].clone()
        total[0] = row[0][0]
        return (total,), (total,)

    with pytest.warns(UserWarning, match="compiling stopped at.*in a native loop, which must not"):
        rung = compile_scan(step, START, ROWS, size=3)
    assert rung.name == "graph"
