"""Weights make up for the lag of persistent chains: log Z and expectations are the model's own."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from laws import assert_close, assert_mean
from pyro.infer import SVI
from torch import nn, tensor
from torch.distributions import constraints

import pyro_ebm as ebm
from pyro_ebm.energies import MLP, DoubleWell, Energy, GaussianMixture, TwoModes
from pyro_ebm.kernels import MALA, ULA
from pyro_ebm.objectives import Jarzynski, PersistentCD

LOG_Z_0 = 0.5 * math.log(2 * math.pi)


class Quadratic(Energy):
    """lambda x^2 / 2."""

    def __init__(self, precision=1.0):
        super().__init__(())
        self.precision = nn.Parameter(tensor(precision))

    def forward(self, x):
        return 0.5 * self.precision * x.square()

    def set(self, precision):
        self.precision.data.fill_(precision)


class GammaEnergy(Energy):
    """A Gamma density without its normaliser: skewed, and on the positive numbers."""

    def __init__(self, a, b):
        super().__init__((), constraints.positive)
        self.shape = nn.Parameter(tensor([a, b]))

    def forward(self, x):
        a, b = self.shape
        return b * x - (a - 1) * x.log()


def anneal(objective, final=4.0, num_updates=20):
    """Moves a precision linearly from 1, and returns the surrogate at the last update."""
    energy = Quadratic()
    for k in range(num_updates + 1):
        energy.set(1 + (final - 1) * k / num_updates)
        value = objective.surrogate(ebm.Boltzmann(energy), torch.ones(3))
    return energy, value


def mean_weight(objective):
    """The weights relative to Z at the start, (C,), where chains were never resampled."""
    return (objective.log_weights["x"] - LOG_Z_0).exp()


# From N(0, 1) to a precision, K updates of step size h: Z over that at the start, and E x^2.
ANNEALED = [(20, 0.1, 4.0), (20, 0.3, 4.0), (5, 0.1, 4.0), (20, 0.1, 0.25)]


@pytest.mark.parametrize(("num_updates", "step_size", "final"), ANNEALED)
def test_weights_are_exact_for_every_step_size(num_updates, step_size, final):
    objective = Jarzynski(
        ULA(step_size=step_size), 100_000, ess_threshold=0.0, start=dist.Normal(0.0, 1.0)
    )
    energy, value = anneal(objective, final, num_updates)
    ratio = final**-0.5
    weights = mean_weight(objective)
    assert_mean(weights, ratio)
    assert objective.log_z["x"] - LOG_Z_0 == pytest.approx(weights.mean().log().item())
    # and the second moment, which the gradient of the surrogate carries
    squares = objective.chains["x"].squeeze(-1).square()
    assert_mean(weights * (squares - 1 / final), 0.0)
    (slope,) = torch.autograd.grad(value.mean(), energy.precision)
    weighted = (weights * squares).mean() / weights.mean()
    assert slope.item() == pytest.approx(0.5 * (weighted.item() - 1.0))
    unweighted = squares.mean()
    assert abs(unweighted - 1 / final) > 20 * squares.std() / math.sqrt(len(squares))


@pytest.mark.parametrize("num_steps", [1, 3])
def test_resampling_keeps_the_estimate_of_z_unbiased(num_steps):
    ratios, squares = [], []
    for _ in range(60):
        objective = Jarzynski(
            ULA(step_size=0.3), 300, num_steps, ess_threshold=0.9, start=dist.Normal(0.0, 1.0)
        )
        anneal(objective)
        ratios.append(math.exp(objective.log_z["x"] - LOG_Z_0))
        weights = objective.log_weights["x"].softmax(0)
        squares.append((weights * objective.chains["x"].squeeze(-1).square()).sum())
        assert not objective.log_weights["x"].any()  # resampled at the last update
    assert_mean(tensor(ratios), 0.5)
    # A ratio of averages is biased by one over the number of chains: below one error of the mean.
    assert_mean(torch.stack(squares), 0.25)


def test_follows_a_schedule_of_temperature():
    energy = Quadratic()
    objective = Jarzynski(ULA(step_size=0.2), 50_000, start=dist.Normal(0.0, 1.0), ess_threshold=0)
    for k in range(16):
        boltzmann = ebm.Boltzmann(energy, temperature=1 / (1 + 3 * k / 15))
        objective.surrogate(boltzmann, torch.ones(3))
    assert_mean(mean_weight(objective), 0.5)


def test_carries_the_jacobian_of_a_constrained_support():
    energy = GammaEnergy(2.0, 1.0)
    objective = Jarzynski(ULA(step_size=0.05), 50_000, start=dist.Gamma(2.0, 1.0), ess_threshold=0)
    for k in range(16):
        energy.shape.data = tensor([2.0 + k / 10, 1.0 + k / 15])
        value = objective.surrogate(ebm.Boltzmann(energy), tensor([0.5, 3.0]))
    a, b = energy.shape.detach()
    weights = objective.log_weights["x"].exp()
    assert_mean(weights, (torch.lgamma(a) - a * b.log()).exp())
    (slope,) = torch.autograd.grad(value.sum(), energy.shape)
    x = objective.chains["x"].exp()
    phases = torch.stack([-x.log(), x], -1).squeeze(-2)
    errors = weights.unsqueeze(-1) * (phases - tensor([b.log() - a.digamma(), a / b]))
    assert_mean(errors, torch.zeros(2))
    data = torch.stack([-tensor([0.5, 3.0]).log().sum(), tensor(3.5)])
    expected = (weights.unsqueeze(-1) * phases).sum(0) / weights.sum()
    torch.testing.assert_close(slope, 2 * expected - data)


def test_noise_becomes_the_model_by_its_weights():
    well = DoubleWell(beta=1.5, tilt=0.6)
    p = ebm.Boltzmann(lambda x: well(x), event_shape=())
    objective = Jarzynski(ULA(step_size=0.02), 40_000, ess_threshold=0)
    for _ in range(10):
        objective.surrogate(p, 1.0 + torch.randn(500))
    weights = objective.log_weights["x"].exp()
    assert_mean(weights, well.log_z().exp())
    x = objective.chains["x"].squeeze(-1)
    assert_mean(weights * (x - well.mean), 0.0)


def test_value_is_the_log_likelihood_and_an_evaluation_moves_nothing():
    energy = Quadratic()
    objective = Jarzynski(ULA(step_size=0.1), 50_000, start=dist.Normal(0.0, 1.0), ess_threshold=0)
    p = ebm.Boltzmann(energy)
    objective.surrogate(p, torch.ones(3))
    energy.set(1.3)
    objective.surrogate(p, torch.ones(3))
    before = objective.chains["x"].clone(), objective.log_weights["x"].clone()
    energy.set(1.6)
    with torch.no_grad():
        value = objective.surrogate(p, torch.ones(3))
    # log Z is lognormal-like in the weights; their relative error is that of the value
    weights = (before[1] - 0.15 * before[0].squeeze(-1).square()).exp()
    error = weights.std() / weights.mean() / math.sqrt(len(weights))
    assert_close(value, dist.Normal(0.0, 1.6**-0.5).log_prob(torch.ones(3)), error)
    assert torch.equal(objective.chains["x"], before[0])
    assert torch.equal(objective.log_weights["x"], before[1])


def test_a_chain_without_a_finite_energy_loses_its_weight_and_is_counted():
    def wall(x):
        return torch.where(x > 0, 0.5 * x.square(), torch.inf)

    objective = Jarzynski(ULA(step_size=0.5), 20_000, start=dist.HalfNormal(1.0), ess_threshold=0)
    p = ebm.Boltzmann(wall, event_shape=())
    objective.surrogate(p, torch.ones(3))
    value = objective.surrogate(p, torch.ones(3))
    lost = objective.last_info["x"].diverging
    assert 0.05 < lost.double().mean() < 0.5
    assert bool((objective.log_weights["x"][lost] == -math.inf).all())
    assert bool(value.isfinite().all())


def two_modes_model(energy):
    def model(x):
        with pyro.plate("data", len(x)), pyro.poutine.scale(scale=1 / len(x)):
            pyro.sample("x", ebm.Boltzmann(lambda x: energy(x), event_shape=()), obs=x)
        pyro.module("energy", energy)

    return model


def data_of_two_modes(num_rows):
    """Data with exactly 0.8 of the rows at the mode b = 10, the rest at a = -10."""
    return torch.randn(num_rows) + torch.where(torch.arange(num_rows) < 0.8 * num_rows, 10, -10)


def train_two_modes(objective, num_steps, lr, start=0.0):
    energy = TwoModes(nn.Parameter(tensor(start)), -10.0, 10.0)
    svi = SVI(two_modes_model(energy), ebm.no_guide, pyro.optim.SGD({"lr": lr}), objective)
    x = data_of_two_modes(1000)
    path = []
    for _ in range(num_steps):
        svi.step(x)
        path.append(energy.theta.item())
    return path


def test_learns_the_weights_of_modes_that_no_chain_crosses():
    num_chains = 4000
    start = ebm.Boltzmann(TwoModes(0.0, -10.0, 10.0))
    objective = Jarzynski(ULA(step_size=0.05), num_chains, start=start, ess_threshold=0)
    path = train_two_modes(objective, 150, lr=0.3)
    # The chains of each mode are as many as at first, half of all: an error of binomial counts.
    assert_close(path[-1], -math.log(4.0), 2 / math.sqrt(num_chains) + 2e-3)


def test_pcd_drives_such_weights_away_at_a_constant_speed():
    """From an even start at 0.5 - 0.8 = -0.3 per unit of time; walkers stay where they are."""
    objective = PersistentCD(ULA(step_size=0.05), 4000)
    objective.chains["x"] = TwoModes(0.0, -10.0, 10.0).sample(4000).unsqueeze(-1)
    share = (objective.chains["x"] > 0).double().mean().item()
    path = train_two_modes(objective, 200, lr=0.1)
    assert path[-1] / 20 == pytest.approx(share - 0.8, abs=0.002)


@pytest.mark.slow
def test_pcd_turns_where_the_modes_are_tilted_so_far_that_walkers_cross():
    """Down to about -144 at a time of 540, by a simulation; then up again, with 94 % in b."""
    objective = PersistentCD(ULA(step_size=0.05), 4000)
    objective.chains["x"] = TwoModes(0.0, -10.0, 10.0).sample(4000).unsqueeze(-1)
    energy, path, x = TwoModes(nn.Parameter(tensor(0.0)), -10.0, 10.0), [], data_of_two_modes(1000)
    p = ebm.Boltzmann(energy).with_energy(energy)
    for _ in range(13_000):
        (slope,) = torch.autograd.grad(objective.surrogate(p, x).mean(), energy.theta)
        energy.theta.data += 0.05 * slope
        path.append(energy.theta.item())
    assert path[8000] / 400 == pytest.approx(-0.3, abs=0.02)
    lowest = min(range(len(path)), key=path.__getitem__)
    assert path[lowest] == pytest.approx(-144, abs=8)
    assert lowest * 0.05 == pytest.approx(540, abs=30)
    assert path[-1] > path[lowest] + 10
    assert (objective.chains["x"] > 0).double().mean().item() > 0.9


class FarModes(Energy):
    """Two unit Gaussians in 50 dimensions with learnable places on one axis, and weight."""

    def __init__(self, a, b, z, dim=50):
        super().__init__((dim,))
        self.dim = dim
        self.a, self.b = nn.Parameter(tensor(a)), nn.Parameter(tensor(b))
        self.z = nn.Parameter(tensor(z))

    def forward(self, x):
        rest = 0.5 * x[..., 1:].square().sum(-1)
        first = -0.5 * (x[..., 0] - self.a).square()
        second = -self.z - 0.5 * (x[..., 0] - self.b).square()
        return rest - torch.logaddexp(first, second)

    def exact_log_z(self):
        return 0.5 * self.dim * math.log(2 * math.pi) + nn.functional.softplus(-self.z)

    @property
    def share_of_first(self):
        return torch.sigmoid(self.z).item()


def train_far_modes(objective, x, num_steps):
    energy = FarModes(-0.1, 0.1, 0.0)
    optimizer = torch.optim.SGD(
        [
            {"params": [energy.z], "lr": 1 / 16},
            {"params": [energy.a, energy.b], "lr": 0.2 / 16},
        ]
    )
    for _ in range(num_steps):
        optimizer.zero_grad()
        (-objective.surrogate(ebm.Boltzmann(energy), x).mean()).backward()
        optimizer.step()
    return energy


def far_modes():
    """The truth, n data of it, and how to measure a divergence from it."""
    locs = torch.zeros(2, 50)
    locs[:, 0] = tensor([-10.0, 6.0])
    truth = GaussianMixture([0.25, 0.75], locs, 1.0)
    fresh = truth.sample(100_000)

    def divergence(energy):
        with torch.no_grad():
            log_ratio = -truth(fresh) + energy(fresh) + energy.exact_log_z()
        return log_ratio.mean().item(), log_ratio.std().item() / math.sqrt(len(fresh))

    return truth, divergence


@pytest.mark.slow
def test_learns_far_modes_in_fifty_dimensions_where_pcd_loses_one():
    truth, divergence = far_modes()
    x = truth.sample(2000)
    centres = torch.zeros(2, 50)
    centres[:, 0] = tensor([-0.1, 0.1])
    start = ebm.Boltzmann(GaussianMixture([0.5, 0.5], centres, 1.0))
    # As many chains as in the paper: with 2,000 the weight has a standard error near 0.04.
    weighted = train_far_modes(
        Jarzynski(ULA(step_size=0.1), 10_000, start=start, ess_threshold=0.5), x, 2000
    )
    assert divergence(weighted)[0] < 0.05
    assert abs(weighted.share_of_first - 0.25) < 0.05

    persistent = PersistentCD(ULA(step_size=0.1), 2000)
    persistent.chains["x"] = x.clone()
    lost = train_far_modes(persistent, x, 2000)
    assert divergence(lost)[0] > 1
    assert lost.share_of_first < 0.01


@pytest.mark.parametrize(
    ("use", "message"),
    [
        (lambda: Jarzynski(MALA(), 5), "kernel must be ULA, got MALA"),
        (lambda: Jarzynski(ULA(step_size=0.1), 0), "num_chains must be at least 1, got 0"),
        (
            lambda: Jarzynski(ULA(step_size=0.1), 5, ess_threshold=1.5),
            "ess_threshold must be between 0 and 1, got 1.5",
        ),
        (
            lambda: Jarzynski(ULA(step_size=0.1), 5, start=ebm.Boltzmann(MLP((2,), (8,)))),
            "start must be normalised",
        ),
        (
            lambda: Jarzynski(ULA(step_size=0.1), 5, start=dist.Normal(0.0, 1.0)).surrogate(
                ebm.Boltzmann(MLP((2,), (8,))), torch.randn(3, 2)
            ),
            "start must be over one point of site 'x', with event_shape \\(2,\\)",
        ),
        (
            lambda: Jarzynski(ULA(step_size=0.1), 5).surrogate(
                ebm.Boltzmann(lambda x: torch.inf * x.square(), event_shape=()), torch.randn(3)
            ),
            "weights of the chains of site 'x' are all zero",
        ),
    ],
)
def test_refuses_what_it_cannot_serve(use, message):
    with pytest.raises(ValueError, match=message):
        use()
