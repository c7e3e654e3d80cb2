"""Score matching: closed forms, its efficiency on two modes, its slices and its noise."""

import math

import pytest
import torch
from laws import assert_close, assert_mean
from torch import nn, tensor
from torch.distributions import constraints

import pyro_ebm as ebm
from pyro_ebm.energies import MLP, Energy
from pyro_ebm.kernels import MALA, ULA, annealed_langevin
from pyro_ebm.objectives import DenoisingScoreMatching, ScoreMatching, SlicedScoreMatching

HESSIAN = tensor([[2.0, 0.5, 0.0], [0.5, 1.0, 0.3], [0.0, 0.3, 3.0]], dtype=torch.float64)


class Quadratic(Energy):
    """E(x) = x' P x / 2 with every entry of P to learn."""

    def __init__(self, precision):
        super().__init__((len(precision),))
        self.precision = nn.Parameter(precision.clone())

    def forward(self, x):
        return 0.5 * ((x @ self.precision) * x).sum(-1)


class Skewed(Energy):
    """E(x) = a (x - loc)^2 / 2 + b softplus(2 x): no reflection leaves it as it is."""

    def __init__(self, a=1.0, loc=0.3, b=0.5):
        super().__init__(())
        self.weights = nn.Parameter(tensor([a, loc, b]))

    def forward(self, x):
        a, loc, b = self.weights
        return 0.5 * a * (x - loc).square() + b * nn.functional.softplus(2 * x)


def gradient(value, energy):
    return torch.cat([g.flatten() for g in torch.autograd.grad(value, list(energy.parameters()))])


def test_is_maximum_likelihood_on_a_gaussian():
    """J = tr(P S P) / 2 - tr P with the second moments S of the very sample, least at P = 1/S."""
    x = torch.randn(40, 3).exp() @ HESSIAN
    moments = x.T @ x / len(x)
    precision = tensor([[1.0, 0.2, -0.1], [0.2, 0.7, 0.4], [-0.1, 0.4, 1.5]])
    energy = Quadratic(precision)
    value = -ScoreMatching().surrogate(ebm.Boltzmann(energy), x).mean()
    expected = torch.trace(precision @ moments @ precision) / 2 - torch.trace(precision)
    torch.testing.assert_close(value, expected)
    slope = (moments @ precision + precision @ moments) / 2 - torch.eye(3)
    torch.testing.assert_close(gradient(value, energy), slope.flatten())

    best = Quadratic(torch.linalg.inv(moments))
    value = -ScoreMatching().surrogate(ebm.Boltzmann(best), x).mean()
    assert gradient(value, best).abs().max() < 1e-10


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_follows_the_fisher_divergence(temperature):
    """Its gradient is that of E_d |s - s_d|^2 / 2, with both scores in closed form."""
    truth, energy = Skewed(2.0, -0.5, 1.5), Skewed()
    x = torch.linspace(-14, 14, 20_001)
    log_density = -truth(x).detach() / temperature
    weights = log_density.softmax(0)

    def score(energy):
        a, loc, b = energy.weights
        return -(a * (x - loc) + 2 * b * torch.sigmoid(2 * x)) / temperature

    gap = score(energy) - score(truth).detach()
    expected = gradient((weights * gap.square()).sum() / 2, energy)
    for learner, slope in ((energy, expected), (truth, torch.zeros(3))):
        p = ebm.Boltzmann(learner, temperature=temperature)
        value = -(weights * ScoreMatching().surrogate(p, x)).sum()
        torch.testing.assert_close(gradient(value, learner), slope, atol=1e-9, rtol=1e-9)


def test_counts_the_jacobian_of_a_constrained_site():
    """Gamma(a, b) in log x: s = a - b x, and J = E[(a - b x)^2 / 2 - b x]."""

    class Gamma(Energy):
        def __init__(self):
            super().__init__((), constraints.positive)
            self.shape = nn.Parameter(tensor([3.0, 0.7]))

        def forward(self, x):
            a, b = self.shape
            return b * x - (a - 1) * x.log()

    energy, temperature = Gamma(), 1.5
    a, b = (energy.shape.detach() - tensor([1.0, 0.0])) / temperature + tensor([1.0, 0.0])
    x = torch.rand(30) + 0.2
    p = ebm.Boltzmann(energy, temperature=temperature)
    value = -ScoreMatching().surrogate(p, x)
    torch.testing.assert_close(value, (a - b * x).square() / 2 - b * x)
    expected = torch.stack([a - b * x, -x * (a - b * x) - x]).mean(1) / temperature
    torch.testing.assert_close(gradient(value.mean(), energy), expected)


# Two unit Gaussians at -+ d/2 with weights .2 and .8: curvature J'' of E[|s|^2 + 2 tr], and
# n var of the estimators of theta, by quadrature of the sandwich formula.
TWO_MODES = {
    1: (0.04641025084001414, 44.391715717506294),
    2: (0.10693555422767043, 19.787335038704583),
    3: (0.10186119693586673, 25.067073960553586),
    4: (0.0608887924087157, 54.72299319335619),
    6: (0.007942644534036376, 723.6101161974327),
    8: (0.000326767340771527, 28196.542349633055),
    10: (4.584310735328924e-06, None),
    20: (4.811890693996397e-22, None),
}


@pytest.mark.parametrize("separation", TWO_MODES)
def test_loses_sight_of_the_weights_of_distant_modes(separation):
    x = torch.linspace(-separation / 2 - 12, separation / 2 + 12, 40_001)
    theta = torch.full_like(x, -math.log(4.0)).requires_grad_()

    def energy(x):
        first, second = (
            -0.5 * (x + separation / 2) ** 2,
            -theta - 0.5 * (x - separation / 2).square(),
        )
        return nn.functional.logsigmoid(first - second) - first

    weights = (-energy(x).detach()).softmax(0)
    value = -ScoreMatching().surrogate(ebm.Boltzmann(energy, event_shape=()), x)
    (slope,) = torch.autograd.grad(value.sum(), theta, create_graph=True)
    (bend,) = torch.autograd.grad(slope.sum(), theta)
    curvature = (weights * bend).sum()
    expected, variance = TWO_MODES[separation]
    assert abs((weights * slope).sum()) < 1e-9
    assert 2 * curvature.item() == pytest.approx(expected, rel=1e-6, abs=0)
    if variance is not None:
        sandwich = (weights * slope.square()).sum() / curvature**2
        assert sandwich.item() == pytest.approx(variance, rel=1e-6)


PROJECTIONS = ["rademacher", "gaussian", "sphere"]


@pytest.mark.parametrize("variance_reduction", [True, False])
@pytest.mark.parametrize("projections", PROJECTIONS)
def test_slices_estimate_score_matching_without_bias(projections, variance_reduction):
    class Coupled(Energy):
        def __init__(self):
            super().__init__((3,))
            self.weights = nn.Parameter(tensor([1.0, 0.5, -0.7]))

        def forward(self, x):
            ridge = nn.functional.softplus(x @ self.weights)
            return 0.5 * ((x @ HESSIAN) * x).sum(-1) + ridge + 0.3 * ridge.square()

    energy = Coupled()
    p = ebm.Boltzmann(energy, temperature=1.3)
    x = torch.randn(4, 3).exp()
    exact = ScoreMatching().surrogate(p, x)
    slope = gradient(exact.mean(), energy)
    objective = SlicedScoreMatching(3, projections, variance_reduction)
    many = objective.surrogate(p, x.expand(20_000, 4, 3)).detach()
    assert_mean(many, exact.detach())
    rows = [objective.surrogate(p, x.expand(50, 4, 3)).mean() for _ in range(60)]
    assert_mean(torch.stack([gradient(row, energy) for row in rows]), slope)


@pytest.mark.parametrize("num_projections", [1, 4])
@pytest.mark.parametrize(
    ("projections", "variance"),
    # Rademacher 2 (|H|_F^2 - sum H_ii^2), Gaussian 2 |H|_F^2, on the sphere of radius sqrt(D)
    # 2 (D |H|_F^2 - (tr H)^2) / (D + 2)
    [("rademacher", 1.36), ("gaussian", 29.36), ("sphere", (6 * 14.68 - 72) / 5)],
)
def test_trace_has_the_variance_of_its_directions(projections, variance, num_projections):
    p = ebm.Boltzmann(Quadratic(HESSIAN))
    objective = SlicedScoreMatching(num_projections, projections)
    traces = objective.surrogate(p, torch.zeros(40_000, 3)).detach()  # where the score is zero
    assert_mean(traces, 6.0)
    assert_mean((traces - 6).square(), variance / num_projections)


def test_refuses_an_energy_that_is_linear_in_pieces():
    network = nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 1), nn.Flatten(0))
    p = ebm.Boltzmann(network, event_shape=(2,))
    for objective in (ScoreMatching(), SlicedScoreMatching()):
        with pytest.raises(ValueError, match="site 'x' has second derivatives of zero"):
            objective.surrogate(p, torch.randn(9, 2))


def test_takes_what_is_flat_or_not_yet_curved():
    """An energy of zero, where weights begin, may learn; an image is one event."""
    energy = MLP((2, 3), (8,), base_scale=math.inf)
    nn.init.zeros_(energy.network[-1].weight)
    for objective in (ScoreMatching(), SlicedScoreMatching()):
        assert objective.surrogate(ebm.Boltzmann(energy), torch.randn(5, 4, 2, 3)).shape == (5, 4)


def test_dsm_has_its_least_value_where_theory_says():
    """N(0, 2) with noise of variance s2 = 1/2: J = (1/s2 - 0.4) / 2 at 1/(v + s2) = 0.4."""
    p = ebm.Boltzmann(Quadratic(tensor([[0.4]])))
    x = math.sqrt(2) * torch.randn(100_000, 1)
    value = -DenoisingScoreMatching(math.sqrt(0.5)).surrogate(p, x).detach()
    assert_mean(value / 0.5, 0.8)


def test_dsm_knows_its_temperature():
    energy = Quadratic(tensor([[0.4 * 3]]))
    p = ebm.Boltzmann(energy, temperature=3.0)
    objective, rows = (
        DenoisingScoreMatching(math.sqrt(0.5)),
        math.sqrt(2) * torch.randn(60, 500, 1),
    )
    slopes = [gradient(objective.surrogate(p, x).mean(), energy) for x in rows]
    assert_mean(torch.stack(slopes), 0.0)


LEVELS = [2.0, 1.0, 0.5]


class Noisy(Energy):
    """The law of data N(1, 0.3) with noise sigma, at temperature 2."""

    def __init__(self):
        super().__init__(())

    def forward(self, x, sigma=None):
        return (x - 1).square() / (0.3 + sigma**2)


@pytest.mark.parametrize("num_steps", [1, 40])
def test_annealed_langevin_follows_its_recursion(num_steps):
    """On a Gaussian every step of ULA is exact: m <- 1 + (1 - eta P)(m - 1), and the variance."""
    h, mean, variance = 0.3, 0.0, LEVELS[0] ** 2
    for sigma in LEVELS:
        eta, precision = h * sigma**2, 1 / (0.3 + sigma**2)
        for _ in range(num_steps):
            mean = 1 + (1 - eta * precision) * (mean - 1)
            variance = (1 - eta * precision) ** 2 * variance + 2 * eta
    p = ebm.Boltzmann(Noisy(), temperature=2.0)
    x = annealed_langevin(p, LEVELS, 40_000, num_steps, ULA(step_size=h))
    assert_mean(x, mean)
    assert_mean((x - mean).square(), variance)


def test_annealed_langevin_with_mala_has_the_law_of_the_last_level():
    p = ebm.Boltzmann(Noisy(), temperature=2.0)
    x = annealed_langevin(p, LEVELS, 20_000, 40, MALA(step_size=0.5))
    assert_mean(x, 1.0)
    assert_mean((x - 1).square(), 0.3 + 0.25)


def test_annealed_langevin_crosses_between_modes():
    """Weights .2 and .8 at -+ 5: a chain at the last level alone keeps the side it began on."""

    def energy(x, sigma):
        variance = 0.1 + sigma**2
        parts = [math.log(w) - (x - m).square() / (2 * variance) for w, m in ((0.2, -5), (0.8, 5))]
        return -torch.logaddexp(*parts)

    p = ebm.Boltzmann(energy, event_shape=())
    levels = 8.0 * torch.linspace(0, 1, 12).mul(math.log(0.1 / 8)).exp()
    x = annealed_langevin(p, levels, 4000, 60, MALA(step_size=0.5))
    # 60 steps per level leave a trace of the start, far below what 4,000 chains resolve.
    assert_mean((x > 0).double(), 0.8)


def test_annealed_langevin_keeps_to_the_support():
    def energy(x, sigma):
        return x.log().square().sum(-1) / (2 * sigma**2) + x.log().sum(-1)

    support = constraints.independent(constraints.positive, 1)
    p = ebm.Boltzmann(energy, event_shape=(2,), support=support)
    x = annealed_langevin(p, [1.0, 0.1], 5000)
    h = 0.1  # ULA on N(0, sigma^2) with eta = h sigma^2
    assert bool((x > 0).all())
    assert_mean(x.log().square() / 0.01, torch.full((2,), 1 / (1 - h / 2)))


@pytest.mark.parametrize(
    ("use", "message"),
    [
        (lambda p: annealed_langevin(p, [0.1, 1.0], 5), "falling numbers, got"),
        (lambda p: annealed_langevin(p, [1.0, 0.0], 5), "sigmas must be positive"),
        (lambda p: annealed_langevin(p, [1.0], 0), "num_chains must be at least 1, got 0"),
        (lambda p: annealed_langevin(p.expand([3]), [1.0], 5), "takes no batch"),
        (lambda p: SlicedScoreMatching(0), "num_projections must be at least 1, got 0"),
        (lambda p: SlicedScoreMatching(1, "axes"), "projections must be one of .*got 'axes'"),
        (lambda p: DenoisingScoreMatching(math.inf), "sigma must be positive and finite, got inf"),
    ],
)
def test_refuses_bad_arguments(use, message):
    with pytest.raises(ValueError, match=message):
        use(ebm.Boltzmann(Noisy()))


def test_an_energy_that_ignores_its_noise_level_is_refused():
    class Deaf(Energy):
        def __init__(self):
            super().__init__(())
            self.scale = nn.Parameter(tensor(1.0))

        def forward(self, x, sigma=None):
            return self.scale * x.square()

    with pytest.raises(ValueError, match="energy of site 'x' ignores its condition sigma"):
        DenoisingScoreMatching([1.0, 0.1]).surrogate(ebm.Boltzmann(Deaf()), torch.randn(50))


def test_levels_are_drawn_evenly_for_each_datum():
    seen = []

    def energy(x, sigma):
        seen.append(sigma)
        return (x / sigma).square()

    p = ebm.Boltzmann(energy, event_shape=())
    DenoisingScoreMatching(LEVELS).surrogate(p, torch.randn(30_000))
    counts = tensor([(seen[-1] == level).double().mean() for level in LEVELS])
    assert_close(counts, torch.full((3,), 1 / 3), math.sqrt(2 / 9 / 30_000))
