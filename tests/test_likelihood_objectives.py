"""Objectives that follow the gradient of the likelihood: exactly, or by a bias that is known."""

import itertools
import math
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from laws import assert_close, assert_mean
from pyro.infer import SVI, Trace_ELBO
from torch import nn, tensor
from torch.distributions import constraints

import pyro_ebm as ebm
from pyro_ebm.energies import MLP, Energy, GaussianMixture, TwoModes
from pyro_ebm.kernels import MALA, ULA
from pyro_ebm.objectives import (
    ContrastiveDivergence,
    ImprovedCD,
    MaximumLikelihood,
    PersistentCD,
    ShortRun,
)


class BetaEnergy(Energy):
    """A Beta density without its normaliser, learnable: skewed, and on the unit interval."""

    def __init__(self, a=2.0, b=4.0):
        super().__init__((), constraints.unit_interval)
        self.shape = nn.Parameter(tensor([a, b]))

    def forward(self, x):
        a, b = self.shape
        return -(a - 1) * x.log() - (b - 1) * (1 - x).log()


class Couplings(Energy):
    """x' W x over the points of a discrete support, no two of which are alike."""

    def __init__(self, event_shape, support):
        super().__init__(event_shape, support)
        size = self.event_shape.numel()
        self.matrix = nn.Parameter(torch.linspace(-1.0, 0.7, size * size).reshape(size, size))

    def forward(self, x):
        flat = x.flatten(-len(self.event_shape)).to(self.matrix)
        return ((flat @ self.matrix) * flat).sum(-1)


class Isotropic(Energy):
    """lambda |x|^2 / 2 in D dimensions, as it is or as a density of exp(x)."""

    def __init__(self, precision, dim, exponential=False):
        support = constraints.independent(constraints.positive, 1) if exponential else None
        super().__init__((dim,), support)
        self.precision = nn.Parameter(tensor(precision))
        self.exponential = exponential

    def forward(self, x):
        u = x.log() if self.exponential else x
        value = 0.5 * self.precision * u.square().sum(-1)
        return value + u.sum(-1) if self.exponential else value


def gradient(value, *parameters):
    return torch.cat([g.flatten() for g in torch.autograd.grad(value, parameters)])


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_maximum_likelihood_is_the_log_density_and_its_gradient_on_a_constrained_support(
    temperature,
):
    energy = BetaEnergy()
    x = torch.rand(7, 3)
    boltzmann = ebm.Boltzmann(energy, temperature=temperature)
    value = MaximumLikelihood().surrogate(boltzmann, x)
    a, b = 1 + (energy.shape - 1) / temperature
    exact = dist.Beta(a, b).log_prob(x)
    torch.testing.assert_close(value, exact, atol=1e-6, rtol=0)
    torch.testing.assert_close(
        gradient(value.sum(), energy.shape), gradient(exact.sum(), energy.shape)
    )


def test_maximum_likelihood_takes_the_log_z_that_is_known():
    energy, x = TwoModes(nn.Parameter(tensor(-0.8)), a=-2.0, b=1.5), torch.randn(5)
    value = MaximumLikelihood().surrogate(ebm.Boltzmann(energy), x)
    exact = -energy(x) - energy.log_z()
    torch.testing.assert_close(value, exact)
    torch.testing.assert_close(
        gradient(value.sum(), energy.theta), gradient(exact.sum(), energy.theta)
    )


def test_maximum_likelihood_is_exact_on_the_plane():
    locs = tensor([[-2.0, 0.0], [1.0, 1.0]])
    weights = nn.Parameter(tensor([0.3, 0.7]))
    mixture = GaussianMixture(weights, locs, tensor([0.5, 0.8]))
    unnormalised = ebm.Boltzmann(lambda x: mixture(x) + weights.sum(), event_shape=(2,))
    x = torch.randn(5, 2)
    value = MaximumLikelihood().surrogate(unnormalised, x)
    torch.testing.assert_close(value, -mixture(x), atol=1e-6, rtol=0)
    torch.testing.assert_close(
        gradient(value.sum(), weights), gradient(-mixture(x).sum(), weights)
    )


DISCRETE = {
    "boolean": (constraints.independent(constraints.boolean, 2), (2, 2), [0.0, 1.0]),
    "integers": (
        constraints.independent(constraints.integer_interval(-1, 2), 1),
        (3,),
        [-1.0, 0.0, 1.0, 2.0],
    ),
}


@pytest.mark.parametrize("name", DISCRETE)
def test_maximum_likelihood_enumerates_a_discrete_support(name):
    support, event_shape, values = DISCRETE[name]
    energy = Couplings(event_shape, support)
    size = energy.event_shape.numel()
    points = tensor(list(itertools.product(values, repeat=size))).reshape(-1, *event_shape)
    temperature = 1.7
    p = ebm.Boltzmann(energy, temperature=temperature)
    value = MaximumLikelihood().surrogate(p, points)
    assert value.exp().sum().item() == pytest.approx(1.0)
    x = points[5:9]
    value = MaximumLikelihood().surrogate(p, x).sum()
    probs = (-energy(points) / temperature).softmax(0).detach()
    expected = -(energy(x).sum() - 4 * (probs * energy(points)).sum()) / temperature
    torch.testing.assert_close(gradient(value, energy.matrix), gradient(expected, energy.matrix))


def test_maximum_likelihood_enumerates_one_hot_vectors():
    energy = Couplings((2, 3), constraints.independent(constraints.one_hot, 1))
    eye = torch.eye(3)
    points = torch.stack([torch.stack(rows) for rows in itertools.product(eye, repeat=2)])
    value = MaximumLikelihood().surrogate(ebm.Boltzmann(energy), points)
    assert value.exp().sum().item() == pytest.approx(1.0)
    assert value.std() > 0.1


class Torus(Energy):
    """The Ising model on a 4 x 4 torus of 32 bonds, with its spins as booleans."""

    def __init__(self, coupling):
        super().__init__((4, 4), constraints.independent(constraints.boolean, 2))
        self.coupling = nn.Parameter(tensor(coupling))

    def bonds(self, x):
        s = 2 * x - 1
        return (s * (s.roll(1, -1) + s.roll(1, -2))).sum((-1, -2))

    def forward(self, x):
        return -self.coupling * self.bonds(x)


def test_maximum_likelihood_of_an_ising_model_is_kaufmans():
    """log Z and the mean of a bond at K = 0.3 (Kaufman, 1949, and by enumeration)."""
    energy = Torus(0.3)
    x = (torch.rand(5, 4, 4) < 0.7).double()

    def model(x):
        with pyro.plate("data", len(x)):
            pyro.sample("x", ebm.Boltzmann(energy), obs=x)

    loss = MaximumLikelihood().differentiable_loss(model, ebm.no_guide, x)
    bonds = energy.bonds(x).sum().item()
    assert loss.item() == pytest.approx(5 * 12.785523325713681 - 0.3 * bonds, abs=1e-9)
    slope = gradient(loss, energy.coupling).item()
    assert slope == pytest.approx(5 * 32 * 0.4220270368119276 - bonds, abs=1e-9)


class Conditional(Energy):
    """E(x; y) whose log Z depends on y."""

    def __init__(self):
        super().__init__(())
        self.weight = nn.Parameter(tensor(0.5))

    def forward(self, x, y):
        return 0.5 * (self.weight * y).exp() * (x - y).square()


@pytest.mark.parametrize("as_closure", [False, True])
def test_maximum_likelihood_normalises_a_conditional_energy_for_each_datum(as_closure):
    energy = Conditional()
    x, y = torch.randn(2, 6, 1)
    fn = (lambda x: energy(x, y)) if as_closure else partial(energy, y=y)
    value = MaximumLikelihood().surrogate(ebm.Boltzmann(fn, event_shape=()), x)
    exact = dist.Normal(y, (-0.5 * energy.weight * y).exp()).log_prob(x)
    torch.testing.assert_close(value, exact, atol=1e-6, rtol=0)
    torch.testing.assert_close(
        gradient(value.sum(), energy.weight), gradient(exact.sum(), energy.weight)
    )


def test_maximum_likelihood_normalises_a_conditional_discrete_energy_for_each_datum():
    weight = nn.Parameter(tensor(0.8))
    y = torch.randn(6)
    p = ebm.Boltzmann(lambda x: -weight * y * x, event_shape=(), support=constraints.boolean)
    x = tensor([0.0, 1.0, 1.0, 0.0, 1.0, 0.0])
    value = MaximumLikelihood().surrogate(p, x)
    exact = dist.Bernoulli(logits=weight * y).log_prob(x)
    torch.testing.assert_close(value, exact)
    torch.testing.assert_close(gradient(value.sum(), weight), gradient(exact.sum(), weight))


def test_maximum_likelihood_makes_an_energy_prior_of_latents_exact():
    """Under one seed: an ELBO with an energy as prior is the one with the normal it stands for."""
    precision = nn.Parameter(tensor(0.6))
    energy = Energy(())
    energy.register_parameter("precision", precision)
    energy.forward = lambda x: 0.5 * precision * (x - 0.3).square()
    x = torch.randn(20)

    def model_with(prior):
        def model(x):
            pyro.module("energy", energy)
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", prior())
                pyro.sample("x", dist.Normal(z, 1.0), obs=x)

        return model

    def guide(x):
        slope = pyro.param("slope", tensor(0.3))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(slope * x, 0.8))

    found = []
    for prior, loss in (
        (lambda: ebm.Boltzmann(energy), MaximumLikelihood()),
        (lambda: dist.Normal(0.3, precision.rsqrt()), Trace_ELBO()),
    ):
        pyro.set_rng_seed(3)
        value = loss.differentiable_loss(model_with(prior), guide, x)
        slope = pyro.get_param_store()["slope"]
        found.append(torch.cat([value.detach().reshape(1), gradient(value, precision, slope)]))
    torch.testing.assert_close(found[0], found[1], atol=1e-5, rtol=1e-6)


def test_maximum_likelihood_loss_is_the_negative_log_likelihood_under_svi():
    energy = BetaEnergy(1.0, 1.0)
    x = dist.Beta(2.0, 4.0).sample((200,))

    def model(x):
        with pyro.plate("data", len(x), subsample_size=50) as rows:
            pyro.sample("x", ebm.Boltzmann(energy), obs=x[rows])

    svi = SVI(model, ebm.no_guide, pyro.optim.Adam({"lr": 0.05}), MaximumLikelihood())
    assert svi.evaluate_loss(x) == pytest.approx(0.0, abs=1e-4)  # a uniform density at first
    for _ in range(150):
        svi.step(x)
    exact = -dist.Beta(*energy.shape.detach()).log_prob(x).sum().item()
    losses = tensor([svi.evaluate_loss(x) for _ in range(60)])
    assert_mean(losses, exact)
    assert exact < -30


# Two modes 20 apart, started even, with a target of 0.8: the gradient flow by its closed law
# |s - q| / (s^(1-q) (1-s)^q) = C exp(-q (1-q) t) with s = sigmoid(-theta).
# By time, theta and the weight of the second mode.
ML_FLOW = {
    1: (-0.2655382772329184, 0.5659972323589622),
    2: (-0.47329174570157767, 0.6161625719440758),
    5: (-0.8732856095313056, 0.7054289047804224),
    10: (-1.173735737665213, 0.7638196039381877),
    20: (-1.345460454684873, 0.7933864771057071),
    40: (-1.3846492210855719, 0.7997366476784714),
}


def population(a, b, weight):
    """Points and weights of a rule that is exact for the two modes to rounding."""
    x = torch.linspace(a - 10, b + 10, 1201)
    truth = TwoModes(-math.log(weight / (1 - weight)), a, b)
    return x, (-truth(x)).softmax(0)


def test_maximum_likelihood_follows_the_closed_law_of_two_modes():
    energy = TwoModes(nn.Parameter(tensor(0.0)), -10.0, 10.0)
    boltzmann = ebm.Boltzmann(lambda x: energy(x), event_shape=())
    x, weights = population(-10.0, 10.0, 0.8)
    objective = MaximumLikelihood()

    def velocity(theta):
        energy.theta.data.fill_(theta)
        value = (weights * objective.surrogate(boltzmann, x)).sum()
        return torch.autograd.grad(value, energy.theta)[0].item()

    theta, dt = 0.0, 0.5
    for step in range(80):  # the classical Runge-Kutta rule
        k1 = velocity(theta)
        k2 = velocity(theta + dt / 2 * k1)
        k3 = velocity(theta + dt / 2 * k2)
        k4 = velocity(theta + dt * k3)
        theta += dt / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
        if (step + 1) * dt in ML_FLOW:
            energy.theta.data.fill_(theta)
            found = (theta, energy.weight.item())
            assert found == pytest.approx(ML_FLOW[(step + 1) * dt], abs=1e-6)


# n times the variance of theta by maximum likelihood, of modes so far apart, with a target of 0.8.
ML_VARIANCES = {
    1: 40.378001426423296,
    2: 12.753036508461337,
    3: 8.137506036220607,
    4: 6.810487049420514,
    6: 6.28189618454214,
    8: 6.250757363151319,
}


@pytest.mark.parametrize("separation", ML_VARIANCES)
def test_maximum_likelihood_bends_by_the_fisher_information(separation):
    """The slope of the mean gradient at the truth, by a central difference."""
    truth, a, b, step = -math.log(4.0), -separation / 2, separation / 2, 1e-3
    x, weights = population(a, b, 0.8)
    slopes = []
    for theta in (truth - step, truth + step):
        energy = TwoModes(nn.Parameter(tensor(theta)), a, b)
        p = ebm.Boltzmann(lambda x, energy=energy: energy(x), event_shape=())
        value = (weights * MaximumLikelihood().surrogate(p, x)).sum()
        slopes.append(gradient(value, energy.theta).item())
    information = (slopes[0] - slopes[1]) / (2 * step)
    assert 1 / information == pytest.approx(ML_VARIANCES[separation], rel=1e-5)


@pytest.mark.parametrize(
    ("use", "message"),
    [
        (
            lambda: MaximumLikelihood().surrogate(
                ebm.Boltzmann(MLP((4,), (8,))), torch.ones(3, 4)
            ),
            "site 'x' has 4 unconstrained dimensions.*log_z",
        ),
        (
            lambda: MaximumLikelihood().surrogate(
                ebm.Boltzmann(Couplings((30,), constraints.independent(constraints.boolean, 1))),
                torch.ones(3, 30),
            ),
            "site 'x': a support of 2 to the 30 points is too large.*log_z",
        ),
        (
            lambda: MaximumLikelihood().surrogate(
                ebm.Boltzmann(
                    lambda x: x, event_shape=(), support=constraints.nonnegative_integer
                ),
                torch.ones(3),
            ),
            "cannot be enumerated",
        ),
        (
            lambda: MaximumLikelihood().surrogate(
                ebm.Boltzmann(lambda x: x, event_shape=(), support=constraints.boolean),
                torch.full((3,), 0.5),
            ),
            "data of site 'x'.*outside of the support",
        ),
        (
            lambda: MaximumLikelihood().surrogate(ebm.Boltzmann(BetaEnergy()), torch.empty(0)),
            "data of site 'x'.*empty",
        ),
        (lambda: MaximumLikelihood(tol=0.0), "tol must be positive and finite, got 0.0"),
        (
            lambda: MaximumLikelihood(half_width=-1.0),
            "half_width must be positive and finite, got -1.0",
        ),
        (lambda: ShortRun(ULA(step_size=0.1), 0), "num_steps must be at least 1, got 0"),
        (
            lambda: PersistentCD(ULA(step_size=0.1), 5, reinit_from="prior"),
            'reinit_from must be "noise" or "data", got \'prior\'',
        ),
        (lambda: ImprovedCD(MALA()), "kernel must be ULA, got MALA"),
        (lambda: ImprovedCD(ULA(step_size=0.1), kl_weight=-1.0), "kl_weight must be at least 0"),
        (
            lambda: ImprovedCD(ULA(step_size=0.1)).surrogate(
                ebm.Boltzmann(MLP((2,), (8,))), torch.ones(1, 2)
            ),
            "site 'x' has one datum",
        ),
        (
            lambda: ImprovedCD(ULA(step_size=0.1)).surrogate(
                ebm.Boltzmann(partial(Conditional(), y=torch.ones(3)), event_shape=()),
                torch.ones(3),
            ),
            "is conditional",
        ),
    ],
)
def test_refuses_what_it_cannot_serve(use, message):
    with pytest.raises(ValueError, match=message):
        use()


class NodesOfNoise(ULA):
    """Langevin steps whose noise runs over the nodes of a rule: expectations without sampling."""

    def __init__(self, step_size, nodes):
        super().__init__(step_size=step_size)
        self.nodes = nodes

    def noise(self, state, generator, *num_steps):
        return (
            self.nodes.repeat(len(state.z) // len(self.nodes)).expand(*num_steps, -1)[..., None],
        )


# The mean update of CD-1, over the step size, for two modes 3 apart at theta = 0 with a target of
# 0.8. It tends to the gradient of score matching, -0.08353217693391012 (Hyvarinen, 2007).
CD1_UPDATE = {
    0.1: -0.07844064825630497,
    0.03: -0.08157289065686771,
    0.01: -0.08282421495323067,
    0.003: -0.08331338998050367,
    0.001: -0.08345861524847793,
}


@pytest.mark.parametrize("antithetic", [False, True])
@pytest.mark.parametrize("step_size", CD1_UPDATE)
def test_cd_makes_in_the_mean_the_update_that_quadrature_gives(step_size, antithetic):
    energy = TwoModes(nn.Parameter(tensor(0.0)), -1.5, 1.5)
    boltzmann = ebm.Boltzmann(energy)
    x, weights = population(-1.5, 1.5, 0.8)
    nodes = torch.linspace(-9, 9, 61)
    node_weights = (-0.5 * nodes.square()).softmax(0)
    objective = ContrastiveDivergence(NodesOfNoise(step_size, nodes), antithetic=antithetic)
    value = objective.surrogate(boltzmann, x.repeat_interleave(len(nodes)))
    value = (value.reshape(-1, len(nodes)) @ node_weights) @ weights
    update = torch.autograd.grad(value, energy.theta)[0].item()
    assert update / step_size == pytest.approx(CD1_UPDATE[step_size], abs=1e-6)


def variance_after(num_steps, start, precision, step_size):
    """Second moments of Langevin chains on a Gaussian, from the start on."""
    moments = [start]
    for _ in range(num_steps):
        moments.append((1 - step_size * precision) ** 2 * moments[-1] + 2 * step_size)
    return moments


def test_short_run_has_the_gradient_of_chains_from_noise():
    precision, step_size, num_steps = 1.3, 0.2, 3
    energy = Isotropic(precision, 2)
    objective = ShortRun(ULA(step_size=step_size), num_steps=num_steps)
    first = tensor([1.0, -0.5]) + tensor([2.0, 0.7]) * torch.randn(400, 2)
    objective.surrogate(ebm.Boltzmann(energy), first)
    second_moment = first.var(0, correction=0) + first.mean(0).square()
    *_, after = variance_after(num_steps, second_moment, precision, step_size)
    x = 0.5 * torch.randn(400, 2)  # data, when the noise is settled
    grads = []
    for _ in range(200):
        value = objective.surrogate(ebm.Boltzmann(energy), x).mean()
        grads.append(gradient(value, energy.precision))
    assert_mean(torch.stack(grads), 0.5 * (after.sum() - x.square().sum(-1).mean()))


def test_short_run_learns_a_conditional_energy():
    class Slope(Energy):
        def __init__(self):
            super().__init__(())
            self.slope = nn.Parameter(tensor(0.5))

        def forward(self, x, y):
            return (x - self.slope * y).square()

    energy = Slope()
    y = torch.randn(500)
    x = -1.5 * y + math.sqrt(0.5) * torch.randn(500)
    objective = ShortRun(MALA(step_size=0.5), num_steps=6)
    optimizer = torch.optim.Adam(energy.parameters(), lr=0.05)
    tail = []
    for i in range(160):
        optimizer.zero_grad()
        p = ebm.Boltzmann(partial(energy, y=y), event_shape=())
        (-objective.surrogate(p, x).mean()).backward()
        optimizer.step()
        tail += [energy.slope.item()] * (i >= 80)
    least_squares = (x * y).sum() / y.square().sum()
    assert_close(sum(tail) / len(tail), least_squares, 0.5 * tensor(tail).std())


def test_short_run_refuses_one_name_for_two_sizes():
    objective = ShortRun(ULA(step_size=0.1), 1)
    objective.surrogate(ebm.Boltzmann(MLP((2,), (8,))), torch.randn(5, 2))
    with pytest.raises(ValueError, match="noise of 'x' has 2 dimensions"):
        objective.surrogate(ebm.Boltzmann(MLP((3,), (8,))), torch.randn(5, 3))


def test_pcd_begins_chains_anew_at_data_of_the_batch():
    objective = PersistentCD(
        ULA(step_size=1e-12), num_chains=4000, reinit_prob=0.2, reinit_from="data"
    )
    boltzmann = ebm.Boltzmann(MLP((2,), (8,)))
    objective.surrogate(boltzmann, torch.randn(32, 2))
    x = tensor([[5.0, 7.0], [-6.0, 8.0], [-7.0, -9.0]])
    before = objective.chains["x"].clone()
    objective.surrogate(boltzmann, x)
    after = objective.chains["x"]
    near = torch.cdist(after, x) < 1e-3
    assert_mean(near.any(-1), 0.2)
    assert_mean(near[near.any(-1)].double(), torch.full((3,), 1 / 3))
    stayed = ~near.any(-1)
    torch.testing.assert_close(after[stayed], before[stayed], atol=1e-3, rtol=0)


@pytest.mark.parametrize("exponential", [False, True], ids=["real", "positive"])
@pytest.mark.parametrize(("num_steps", "temperature"), [(1, 1.0), (3, 2.0)])
def test_improved_cd_has_the_closed_form_gradient(num_steps, temperature, exponential):
    tempered, step_size, weight, variance, dim = 1.6, 0.3, 2.0, 1.5, 4
    energy = Isotropic(tempered * temperature, dim, exponential)
    objective = ImprovedCD(ULA(step_size=step_size), num_steps, kl_weight=weight)
    p = ebm.Boltzmann(energy, temperature=temperature)
    grads = []
    for _ in range(300):
        x = math.sqrt(variance) * torch.randn(200, dim)
        value = objective.surrogate(p, x.exp() if exponential else x).mean()
        grads.append(gradient(value, energy.precision))
    *_, before, after = variance_after(num_steps, variance, tempered, step_size)
    a = 1 - step_size * tempered
    contrast = 0.5 * dim * (after - variance)
    divergence = -step_size * a * dim * before * (tempered - 1 / after)
    found = temperature * torch.stack(grads)
    assert abs(weight * divergence) > 10 * found.std() / math.sqrt(len(found))  # it shows
    assert_mean(found, contrast - weight * divergence)


def test_improved_cd_without_its_term_is_cd():
    energy = MLP((2,), (8,))
    x = torch.randn(50, 2)
    grads = []
    for make in (
        lambda: ImprovedCD(ULA(step_size=0.1), 4, kl_weight=0.0),
        lambda: ContrastiveDivergence(ULA(step_size=0.1), 4),
    ):
        rows = []
        for seed in range(100):
            pyro.set_rng_seed(seed + len(grads) * 1000)
            value = make().surrogate(ebm.Boltzmann(energy), x).mean()
            rows.append(gradient(value, energy.network[-1].weight))
        grads.append(torch.stack(rows))
    error = (sum(g.var(0) for g in grads) / 100).sqrt()
    assert_close(grads[0].mean(0), grads[1].mean(0), error)
