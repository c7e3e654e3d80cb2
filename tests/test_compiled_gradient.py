"""A compiled surrogate has the value and the gradient of the eager one, whatever weighs them."""

import contextlib
import shutil
from functools import partial

import pyro
import pytest
import torch
from pyro.infer import SVI
from torch import nn, tensor
from torch.distributions import constraints

import pyro_ebm as ebm
from pyro_ebm.energies import Energy
from pyro_ebm.energies.base import module_of
from pyro_ebm.kernels import MALA, ULA
from pyro_ebm.objectives import (
    ContrastiveDivergence,
    DenoisingScoreMatching,
    PersistentCD,
    ScoreMatching,
    ShortRun,
    SlicedScoreMatching,
)

needs_compiler = pytest.mark.skipif(not shutil.which("g++"), reason="needs a C++ compiler")


@pytest.fixture
def graph(monkeypatch):
    """In place of native code, the graph that it is made of: the same, but at once.

    The steps of chains run as Python; what is kept are the graphs of gradients.
    """
    compiled = []

    def compile(graph, args, options):
        compiled.append(graph)
        return graph

    monkeypatch.setattr(torch._inductor, "compile", compile)
    monkeypatch.setattr(torch, "compile", lambda fn, **how: fn)
    return compiled


class Skewed(Energy):
    """E(x) = a |x - loc|^2 / 2 + b softplus(scale w.x)^2, and a parameter that says nothing."""

    def __init__(self, scale=2.0):
        super().__init__((2,))
        self.weights = nn.Parameter(tensor([1.0, 0.3, 0.5]))
        self.direction = nn.Parameter(tensor([0.7, -1.2]))
        self.offset = nn.Parameter(tensor(0.4))
        self.scale = scale

    def forward(self, x, y=None, sigma=None, power=2):
        a, loc, b = self.weights
        where = loc if y is None else loc + y.unsqueeze(-1)
        spread = 1.0 if sigma is None else 1 + sigma.square()
        bend = nn.functional.softplus(self.scale * (x @ self.direction)).pow(power)
        return (0.5 * a * (x - where).square().sum(-1) + b * bend) / spread + self.offset


class Gamma(Energy):
    """E(x) = b x - (a - 1) log x on the positive half line."""

    def __init__(self):
        super().__init__((2,), constraints.independent(constraints.positive, 1))
        self.shape = nn.Parameter(tensor([3.0, 0.7]))

    def forward(self, x):
        a, b = self.shape
        return (b * x - (a - 1) * x.log()).sum(-1)


OBJECTIVES = {
    "SM": ScoreMatching,
    "SSM": partial(SlicedScoreMatching, 2),
    "SSM without variance reduction": partial(SlicedScoreMatching, 3, "sphere", False),
    "DSM": partial(DenoisingScoreMatching, 0.5),
    "DSM of many levels": partial(DenoisingScoreMatching, [2.0, 1.0, 0.5]),
    "DSM in pairs": partial(DenoisingScoreMatching, 0.5, antithetic=True),
}
every = pytest.mark.parametrize("make", OBJECTIVES.values(), ids=OBJECTIVES)
X = torch.randn(3, 4, 2, generator=torch.Generator().manual_seed(0), dtype=torch.double).exp()
WEIGHTS = tensor([[1.0, 0.0, 2.5, 0.3], [0.1, -4.0, 1.0, 1.0], [3.0, 0.2, 0.2, 0.0]])


def slope(objective, boltzmann, x, weights):
    """The value, and the gradient of its weighed sum, all at the same noise."""
    torch.manual_seed(3)
    energy = module_of(boltzmann.energy)
    energy.zero_grad()
    value = objective.surrogate(boltzmann, x)
    (weights * value).sum().backward()
    return value.detach(), {k: p.grad for k, p in energy.named_parameters()}


def assert_is_eager(make, compiled, boltzmann, x=X, weights=WEIGHTS, **how):
    found, expected = (slope(it, boltzmann, x, weights) for it in (compiled, make()))
    torch.testing.assert_close(found, expected, **how)
    return expected[1]


@every
def test_has_the_gradient_of_the_eager_surrogate_for_any_weights(make, graph):
    p = ebm.Boltzmann(Skewed(), temperature=2.5)
    compiled = make(compile=True)
    for weights in (
        WEIGHTS,
        tensor(-0.7).expand(3, 4),
        torch.full((3, 4), 0.3),
        WEIGHTS.T.reshape(3, 4),
    ):
        grads = assert_is_eager(make, compiled, p, weights=weights)
    assert len(graph) == 1
    assert grads["offset"] is None
    even = slope(make(), p, X, torch.full((3, 4), WEIGHTS.mean()))[1]
    assert (even["weights"] - grads["weights"]).abs().min() > 1e-3  # a wrong sum would show


CHAINS = {
    "PCD": partial(PersistentCD, ULA(step_size=0.1), 5, 2),
    "CD": partial(ContrastiveDivergence, MALA(step_size=0.3), 2),
    "CD in pairs": partial(ContrastiveDivergence, MALA(step_size=0.3), 2, antithetic=True),
    "short run": partial(ShortRun, ULA(step_size=0.1), 2),
}


@pytest.mark.skipif(torch.__version__ < (2, 9), reason="needs native loops")
@pytest.mark.parametrize("make", CHAINS.values(), ids=CHAINS)
@pytest.mark.parametrize("latent", [False, True])
def test_has_the_gradient_of_the_eager_contrast_for_any_weights(make, latent, graph):
    """A latent gets its gradient too, for which nothing is compiled."""
    p = ebm.Boltzmann(Skewed(), temperature=2.5)
    slopes = []
    for weights in (WEIGHTS, torch.full((3, 4), 0.3)):
        for objective in (make(compile=True), make()):
            x = X.clone().requires_grad_(latent)
            slopes.append((*slope(objective, p, x, weights), x.grad))
        torch.testing.assert_close(*slopes[-2:])
    assert (slopes[0][1]["weights"] - slopes[2][1]["weights"]).abs().min() > 1e-3
    assert len(graph) == (0 if latent else 2)


@pytest.mark.slow
@needs_compiler
@every
def test_native_code_has_the_gradient_of_the_eager_surrogate(make):
    energy = Skewed()
    compiled = make(compile=True)
    for weights in (WEIGHTS, torch.full((3, 4), 0.3)):
        assert_is_eager(make, compiled, ebm.Boltzmann(energy), weights=weights)
        with torch.no_grad():
            energy.weights.add_(tensor([0.5, -0.2, 0.8]))
            energy.direction.mul_(-1.5)


def test_follows_the_eager_path_of_training(graph):
    """Parameters move in place by large steps, and a number of the energy changes."""
    make = OBJECTIVES["DSM of many levels"]

    def path(objective):
        torch.manual_seed(3)
        energy, steps = Skewed(), []
        optimizer = torch.optim.SGD(energy.parameters(), lr=0.02, weight_decay=0.1)
        for step in range(5):
            energy.scale = 0.5 if step == 3 else 2.0
            optimizer.zero_grad()
            (-objective.surrogate(ebm.Boltzmann(energy), X).mean()).backward()
            optimizer.step()
            steps.append(torch.cat([p.detach().reshape(-1) for p in energy.parameters()]))
        return torch.stack(steps)

    found, expected = path(make(compile=True)), path(make())
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    assert found.diff(dim=0)[:, :-1].abs().amax(1).min() > 1e-3
    assert len(graph) == 2


def test_what_differs_is_compiled_anew_and_nothing_else(graph):
    make, energy = partial(DenoisingScoreMatching, 0.5), Skewed()
    objective = make(compile=True)
    assert_is_eager(make, objective, ebm.Boltzmann(energy))
    assert_is_eager(make, objective, ebm.Boltzmann(energy), X.flip(0).mT.contiguous().mT)
    assert len(graph) == 1
    assert_is_eager(make, objective, ebm.Boltzmann(energy), X[0, :3], WEIGHTS[0, :3])
    energy.weights.requires_grad_(False)
    assert assert_is_eager(make, objective, ebm.Boltzmann(energy))["weights"] is None
    energy.weights.requires_grad_(True)
    assert_is_eager(make, objective, ebm.Boltzmann(energy, temperature=3.0))
    assert len(graph) == 4
    with pytest.warns(UserWarning, match="site 'x' or the shape of its data has changed 4 times"):
        assert_is_eager(make, objective, ebm.Boltzmann(energy), X[:1], WEIGHTS[:1])


def test_serves_conditional_energies(graph):
    """The condition is seen as it is now, a number among them too."""
    make = OBJECTIVES["DSM of many levels"]
    energy, compiled = Skewed(), make(compile=True)
    for y in (X[..., 0], -2 * X[..., 1]):
        for power in (1, 2):
            p = ebm.Boltzmann(partial(energy, y=y, power=power), event_shape=(2,))
            assert_is_eager(make, compiled, p)
    assert len(graph) == 2


def test_serves_conditions_by_place(graph):
    class Swapped(Skewed):
        def forward(self, y, x):
            return super().forward(x, y)

    p = ebm.Boltzmann(partial(Swapped(), X[..., 0]), event_shape=(2,))
    make = OBJECTIVES["DSM"]
    assert_is_eager(make, make(compile=True), p)
    assert len(graph) == 1


def test_serves_constrained_sites(graph):
    make = ScoreMatching
    assert_is_eager(make, make(compile=True), ebm.Boltzmann(Gamma(), temperature=1.5))
    assert len(graph) == 1


def test_tells_supports_apart_that_print_alike(graph):
    energy, make = Skewed(), OBJECTIVES["DSM"]
    compiled = make(compile=True)
    for top in (30.0, 30.00001):
        box = constraints.independent(constraints.interval(0.0, tensor([top, 40.0])), 1)
        assert_is_eager(make, compiled, ebm.Boltzmann(energy, support=box), rtol=1e-9, atol=1e-9)
    assert len(graph) == 2


def test_stands_in_for_the_eager_objective_in_a_model(graph):
    """Two sites, a minibatch and a mask, under SVI."""
    mask = WEIGHTS[0] > 0.1

    def path(compile):
        pyro.clear_param_store()
        pyro.set_rng_seed(5)
        one, other = Skewed(), Skewed(0.5)

        def model():
            with pyro.plate("data", 12, subsample_size=4) as rows:
                x = X.reshape(12, 2)[rows]
                pyro.sample("a", ebm.Boltzmann(one).mask(mask), obs=x)
                pyro.sample("b", ebm.Boltzmann(other), obs=x)

        objective = DenoisingScoreMatching(0.5, compile=compile)
        svi = SVI(model, ebm.no_guide, pyro.optim.SGD({"lr": 1e-3}), loss=objective)
        losses = [svi.step() for _ in range(4)]
        assert svi.evaluate_loss() != losses[-1]
        return tensor(losses), torch.stack([one.weights.detach(), other.weights.detach()])

    torch.testing.assert_close(path(True), path(False), rtol=1e-10, atol=1e-10)
    assert len(graph) == 2


def test_parameters_that_move_between_value_and_gradient_are_found_out(graph):
    energy = Skewed()
    value = DenoisingScoreMatching(0.5, compile=True).surrogate(ebm.Boltzmann(energy), X)
    with torch.no_grad():
        energy.weights.mul_(2.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        value.sum().backward()


def test_an_energy_without_curvature_is_refused_as_ever(graph):
    network = nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 1), nn.Flatten(0))
    p = ebm.Boltzmann(network, event_shape=(2,))
    with pytest.raises(ValueError, match="site 'x' has second derivatives of zero"):
        ScoreMatching(compile=True).surrogate(p, torch.randn(9, 2))


SCALE = nn.Parameter(tensor(1.5, dtype=torch.double))


class Leaking(Skewed):
    def forward(self, x):
        return SCALE * super().forward(x)


def fixed():
    energy = Skewed()
    return energy.requires_grad_(False)


@pytest.mark.parametrize(
    ("boltzmann", "reason"),
    [
        (lambda: ebm.Boltzmann(lambda x: SCALE * x.pow(4).sum(-1), event_shape=(2,)), "no module"),
        (lambda: ebm.Boltzmann(Leaking()), "learns something else than the parameters of"),
        (lambda: ebm.Boltzmann(fixed()), "learns something else than the parameters of"),
        (lambda: ebm.Boltzmann(Skewed(), temperature=SCALE), "has a temperature that learns"),
        (
            lambda: ebm.Boltzmann(partial(Skewed(), y=SCALE * X[..., 0]), event_shape=(2,)),
            "has a condition that learns",
        ),
        (
            lambda: ebm.Boltzmann(partial(Skewed(), y=X[..., 0], sigma=None), event_shape=(2,)),
            "has a condition that is neither a tensor nor a number",
        ),
    ],
)
def test_what_cannot_be_compiled_runs_eagerly_and_says_why_once(boltzmann, reason, graph):
    make = OBJECTIVES["DSM"]
    compiled, found = make(compile=True), []
    for objective in (compiled, make()):
        SCALE.grad = None
        torch.manual_seed(3)
        with (
            pytest.warns(UserWarning, match=reason)
            if objective is compiled
            else contextlib.nullcontext()
        ):
            value = objective.surrogate(boltzmann(), X)
        if value.requires_grad:
            (WEIGHTS * value).sum().backward()
        found.append((value.detach(), SCALE.grad))
    torch.testing.assert_close(*found)
    compiled.surrogate(boltzmann(), X)
    assert not graph


def test_a_machine_without_a_compiler_stays_eager(monkeypatch):
    def no_compiler(*args, **kwargs):
        raise RuntimeError("no C++ compiler found")

    monkeypatch.setattr(torch._inductor, "compile", no_compiler)
    make, p = partial(DenoisingScoreMatching, 0.5), ebm.Boltzmann(Skewed())
    objective = make(compile=True)
    with pytest.warns(UserWarning, match="not native, because compiling stopped at.*no C\\+\\+"):
        assert_is_eager(make, objective, p)
    assert_is_eager(make, objective, p)


def test_a_graph_too_large_to_compile_stays_eager(monkeypatch, graph):
    monkeypatch.setattr("pyro_ebm.engine.MAX_NATIVE_OPS", 3)
    make, p = partial(DenoisingScoreMatching, 0.5), ebm.Boltzmann(Skewed())
    with pytest.warns(UserWarning, match="not native, because compiling stopped at.*too many"):
        assert_is_eager(make, make(compile=True), p)


def test_wrong_code_is_found_out(monkeypatch):
    def wrong(graph, args, options):
        return lambda *args: [1.01 * part for part in graph(*args)]

    monkeypatch.setattr(torch._inductor, "compile", wrong)
    make, p = partial(DenoisingScoreMatching, 0.5), ebm.Boltzmann(Skewed())
    with pytest.warns(UserWarning, match="not native.*other numbers"):
        assert_is_eager(make, make(compile=True), p)
