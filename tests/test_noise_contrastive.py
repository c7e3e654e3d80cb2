"""Noise contrast: fixed points, variances, normalisers, and what noise is refused."""

import math
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from laws import assert_close, assert_mean
from pyro.distributions import transforms
from pyro.infer import SVI
from torch import nn, tensor
from torch.distributions import constraints
from torch.nn.functional import logsigmoid, softplus

import pyro_ebm as ebm
from pyro_ebm.energies import Energy, Gaussian, TwoModes
from pyro_ebm.objectives import ConditionalNoiseContrastive, NoiseContrastive, ScoreMatching

THETA = -math.log(4.0)
"""The truth of the toy: modes at -10 and 10, of weights .2 and .8."""


def quantiles_of_two_modes(theta, n=20_000):
    """Returns n points of equal weight: an average over them is a quadrature."""
    weight = 1 / (1 + math.exp(theta))
    n_second = round(n * weight)
    parts = []
    for centre, count in ((-10.0, n - n_second), (10.0, n_second)):
        ranks = (torch.arange(count) + 0.5) / count
        parts.append(centre + math.sqrt(2) * torch.erfinv(2 * ranks - 1))
    return torch.cat(parts)


class Quantiles(dist.TorchDistribution):
    """The two-mode law, normalised or not, whose draws are its quantiles."""

    support = constraints.real
    arg_constraints = {}  # noqa: RUF012

    def __init__(self, mu, normalized):
        super().__init__()
        self.energy = TwoModes(mu)
        self.shift = self.energy.log_z() if normalized else 0.0
        self.mu = mu

    def sample(self, sample_shape=()):
        return quantiles_of_two_modes(self.mu, sample_shape.numel()).reshape(sample_shape)

    def log_prob(self, x):
        return -self.energy(x) - self.shift


def stationary_point(objective, energy, x):
    """Maximises a surrogate that has no randomness, by Newton's method through LBFGS."""
    parameters = [*energy.parameters(), objective.log_normalizer()]
    parameters = [p for p in parameters if p.requires_grad]
    optimizer = torch.optim.LBFGS(
        parameters, max_iter=100, tolerance_grad=1e-9, line_search_fn="strong_wolfe"
    )
    p = ebm.Boltzmann(energy).with_energy(energy)

    def closure():
        optimizer.zero_grad()
        loss = -objective.surrogate(p, x).mean()
        loss.backward()
        return loss

    optimizer.step(closure)
    return [p.item() for p in parameters]


def fixed_point(mu, normalized, learned, energy=TwoModes):
    objective = NoiseContrastive(Quantiles(mu, normalized), learn_log_normalizer=learned)
    return stationary_point(
        objective, energy(nn.Parameter(tensor(0.1))), quantiles_of_two_modes(THETA)
    )


ROUNDING = 1e-3
"""The weights of modes are whole points of 20,000: half a one of 948 is 5e-4 in a logarithm."""


UNNORMALISED = {
    -3.0: -2.8254438002595323,
    -1.0: -1.0901181362040129,
    0.0: -0.47000362924573547,
    1.0: -0.0901181362040131,
    2.0: 0.09621554027123724,
}


@pytest.mark.parametrize("mu", UNNORMALISED)
def test_without_normaliser_an_unnormalised_noise_decides(mu):
    """theta = theta* + log[(1 + e^-theta*) / (1 + e^-mu)]: right only where the noise is."""
    (found,) = fixed_point(mu, normalized=False, learned=False)
    assert found == pytest.approx(UNNORMALISED[mu], abs=ROUNDING)


@pytest.mark.parametrize("mu", UNNORMALISED)
def test_without_normaliser_the_energy_normalises_itself_at_a_wrong_place(mu):
    (found,) = fixed_point(mu, normalized=True, learned=False)
    expected = 1.1420820845188824  # -log 0.8 + log(2 pi) / 2
    assert found == pytest.approx(expected, abs=ROUNDING)


@pytest.mark.parametrize("normalized", [True, False])
@pytest.mark.parametrize("mu", UNNORMALISED)
def test_with_normaliser_the_weights_are_learned(mu, normalized):
    theta, c = fixed_point(mu, normalized, learned=True)
    log_z = 2.528376445638773  # log sqrt(2 pi) + log 5
    expected = log_z if normalized else log_z - TwoModes(mu).log_z().item()
    assert theta == pytest.approx(THETA, abs=ROUNDING)
    assert c == pytest.approx(expected, abs=ROUNDING)


def test_a_normalised_energy_needs_no_normaliser():
    class Normalized(TwoModes):
        def forward(self, x):
            return super().forward(x) + self.log_z()

    (found,) = fixed_point(0.0, normalized=True, learned=False, energy=Normalized)
    assert found == pytest.approx(THETA, abs=ROUNDING)


# T Cov of (lambda, c) for the model exp(-lambda x^2 / 2 - c), data N(0, 1), noise N(0, s^2):
# quadrature of theorem 3 of Gutmann and Hyvarinen (2012).
VARIANCES = {
    (0.7, 1): (12.489091080526103, 1.2733810459403059),
    (0.7, 10): (3.9008016335093494, 0.6966712552630157),
    (0.7, 100): (2.4341028368517392, 0.5586609569495276),
    (1.0, 1): (4.0, 1.0),
    (1.0, 10): (2.2, 0.55),
    (1.0, 100): (2.02, 0.505),
    (1.5, 1): (2.9784218280190364, 1.3379866919917696),
    (1.5, 10): (2.1121266978073177, 0.590671800074325),
    (1.5, 100): (2.011446608283889, 0.5091775300112793),
    (2.0, 1): (2.995315984473388, 1.8152933747631552),
    (2.0, 10): (2.1219408534660693, 0.6449675174576146),
    (2.0, 100): (2.0126006981551035, 0.5147320203938892),
    (4.0, 1): (3.460383907088237, 3.771160419573027),
    (4.0, 10): (2.204132955546597, 0.8702725764150281),
    (4.0, 100): (2.021848832834282, 0.5380216690522062),
}


@pytest.mark.parametrize(("scale", "ratio"), VARIANCES)
def test_has_the_asymptotic_variance_of_theory(scale, ratio):
    """The sandwich of curvature and spread of the surrogate itself, at the truth.

    Data and noise are independent, so that the curvature is a mean over both, and the spread that
    of their gradients.
    """
    n = 100_000 if ratio < 100 else 20_000
    theta = torch.zeros(n, 2, dtype=torch.float64).copy_(tensor([1.0, math.log(2 * math.pi) / 2]))
    theta.requires_grad_()

    def energy(x):
        return theta[:, 0] * x.square() / 2 + theta[:, 1]

    p = ebm.Boltzmann(energy, event_shape=())
    objective = NoiseContrastive(dist.Normal(0.0, scale), ratio, learn_log_normalizer=False)
    value = objective.surrogate(p, torch.randn(n))
    (slope,) = torch.autograd.grad(value.sum(), theta, create_graph=True)
    bends = [torch.autograd.grad(part.sum(), theta, retain_graph=True)[0] for part in slope.T]
    bend, slope = torch.stack(bends, 1).detach(), slope.detach()

    def sandwich(rows):
        inverse = torch.linalg.inv(bend[rows].mean(0))
        return (inverse @ torch.cov(slope[rows].T) @ inverse).diagonal()

    groups = torch.stack([sandwich(rows) for rows in torch.arange(n).chunk(20)])
    assert_mean(groups, tensor(VARIANCES[scale, ratio]))


@pytest.mark.parametrize("ratio", [0.5, 1.0, 2.5])
def test_is_the_loss_of_a_classifier(ratio):
    """Term by term: log h(x) + nu log(1 - h(y)), with h the posterior of being a datum."""
    energy, noise = Gaussian(tensor([1.0, 0.0]), 2.0), dist.Normal(torch.zeros(2), 3.0).to_event(1)
    drawn = []

    class Recorded(type(noise)):
        def sample(self, sample_shape=()):
            drawn.append(super().sample(sample_shape))
            return drawn[-1]

    noise = Recorded(dist.Normal(torch.zeros(2), 3.0), 1)
    objective = NoiseContrastive(noise, ratio)
    objective.log_normalizer().data.fill_(0.4)
    x = torch.randn(6, 2)
    value = objective.surrogate(ebm.Boltzmann(energy, temperature=2.0), x)
    (y,) = drawn
    assert y.shape == (math.ceil(ratio), 6, 2)

    def h(x):
        model = (-energy(x) / 2 - 0.4).exp()
        return model / (model + ratio * noise.log_prob(x).exp())

    torch.testing.assert_close(value, h(x).log() + ratio * (1 - h(y)).log().mean(0))


def test_svi_moves_the_normaliser_to_log_z():
    """With an energy that begins off by 1.5 nats, so that c has a way to go."""
    gaussian = Gaussian(nn.Parameter(tensor([0.7])), nn.Parameter(tensor([3.0])))
    truth = Gaussian(tensor([1.0]), tensor([4.0]))
    energy = gaussian + (lambda x: 1.5 + 0 * x.sum(-1))
    objective = NoiseContrastive(dist.Normal(0.0, 2.0).expand([1]).to_event(1), ratio=4)
    x = truth.sample(20_000)

    def model(x):
        with pyro.plate("data", len(x), subsample_size=500) as i:
            pyro.sample("site", ebm.Boltzmann(energy), obs=x[i])

    optimizer = pyro.optim.ExponentialLR(
        {"optimizer": torch.optim.Adam, "optim_args": {"lr": 0.05}, "gamma": 0.99}
    )
    svi = SVI(model, ebm.no_guide, optimizer, objective)
    for _ in range(400):
        svi.step(x)
        optimizer.step()
    c = pyro.param("site.log_normalizer")
    assert c is objective.log_normalizer("site")
    error = 2 / math.sqrt(20_000)  # n var c is below 2 with noise twice as wide as the data
    assert_close(c.item(), gaussian.log_z().item() - 1.5, error)
    assert_close(c.item(), truth.log_z().item() - 1.5, error)


def test_sites_have_normalisers_of_their_own():
    objective = NoiseContrastive(dist.Normal(0.0, 1.0))
    first, second = objective.log_normalizer("a"), objective.log_normalizer("b")
    assert first is not second
    assert objective.log_normalizer("a") is first


def test_does_not_train_its_noise():
    flow = transforms.spline(2)

    def noise():
        return dist.TransformedDistribution(dist.Normal(torch.zeros(2), 1.0).to_event(1), [flow])

    energy = ebm.energies.MLP((2,), (8,))
    for _ in range(2):  # a second pass finds no graph of the first in the flow's cache
        x = torch.randn(20, 2)
        (-NoiseContrastive(noise).surrogate(ebm.Boltzmann(energy), x).mean()).backward()
    assert all(p.grad is None for p in flow.parameters())
    assert all(p.grad is not None for p in energy.parameters())


def test_sees_its_noise_as_it_is_now():
    """A flow keeps what it made of the last tensor it saw, even if it has learned since."""
    layer = transforms.affine_coupling(2)
    base = dist.Normal(torch.zeros(2), 1.0).to_event(1)
    flow = dist.TransformedDistribution(base, [layer])
    x = torch.randn(9, 2)
    p = ebm.Boltzmann(Gaussian(torch.zeros(2), 1.0))
    flow.log_prob(x).mean().backward()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter += 0.3
    values = []
    for data in (x, x.clone()):
        pyro.set_rng_seed(4)
        values.append(NoiseContrastive(flow).surrogate(p, data))
    torch.testing.assert_close(*values)


def test_serves_a_discrete_energy():
    field = nn.Parameter(tensor([0.5, -1.0]))
    p = ebm.Boltzmann(
        lambda x: -(x * field).sum(-1),
        event_shape=(2,),
        support=constraints.independent(constraints.boolean, 1),
    )
    objective = NoiseContrastive(dist.Bernoulli(tensor([0.3, 0.6])).to_event(1))
    objective.log_normalizer().data.copy_(softplus(field).sum())  # its log Z
    rows = torch.bernoulli(field.sigmoid().detach().expand(60, 400, 2))
    slopes = [torch.autograd.grad(objective.surrogate(p, x).mean(), field)[0] for x in rows]
    assert_mean(torch.stack(slopes), torch.zeros(2))


# Ceylan and Gutmann (2018).


class Skewed(Energy):
    def __init__(self):
        super().__init__(())
        self.weights = nn.Parameter(tensor([1.0, 0.3, 0.5]))

    def forward(self, x):
        a, loc, b = self.weights
        return 0.5 * a * (x - loc).square() + b * softplus(2 * x)


def test_cnce_has_the_closed_form_gradient():
    """By quadrature over the datum and its copy, at a wrong place and at temperature 2."""
    energy, scale = Skewed(), 0.8
    p = ebm.Boltzmann(energy, temperature=2.0)
    x = torch.randn(1000).exp()
    step = torch.linspace(-8, 8, 801)
    weights = dist.Normal(0.0, 1.0).log_prob(step).softmax(0)
    gap = (energy(x[:, None] + scale * step) - energy(x)[:, None]) / 2.0
    exact = 2 * (weights * logsigmoid(gap)).sum(-1).mean()
    (expected,) = torch.autograd.grad(exact, energy.weights)
    objective = ConditionalNoiseContrastive(scale, num_noise=4)
    slopes = [
        torch.autograd.grad(objective.surrogate(p, x).mean(), energy.weights)[0] for _ in range(60)
    ]
    assert_mean(torch.stack(slopes), expected)


def test_cnce_becomes_score_matching_as_its_noise_falls():
    """2 log sigma(G) = -2 log 2 + G - G^2/4: eps^2 / 2 times score matching, above -2 log 2."""
    energy, scale = Skewed(), 0.05
    p = ebm.Boltzmann(energy)
    x = torch.randn(50).exp()
    value = ConditionalNoiseContrastive(scale).surrogate(p, x.expand(20_000, 50)).detach()
    assert_mean(
        (value + 2 * math.log(2)) / (scale**2 / 2), ScoreMatching().surrogate(p, x).detach()
    )


@pytest.mark.parametrize(
    "make",
    [lambda: ConditionalNoiseContrastive(0.7, 2), lambda: NoiseContrastive(dist.Normal(0.0, 2.0))],
    ids=["cnce", "nce"],
)
def test_learns_a_conditional_energy(make):
    """x | y ~ N(-1.5 y, 1/2), whose log Z does not depend on y."""
    objective, slope = make(), nn.Parameter(tensor(-1.5))

    def energy(x, y):
        return (x - slope * y).square()

    if isinstance(objective, NoiseContrastive):
        objective.log_normalizer().data.fill_(math.log(math.pi) / 2)
    slopes, downhill = [], []
    for _ in range(80):
        y = torch.randn(300).exp()
        x = -1.5 * y + math.sqrt(0.5) * torch.randn(300)
        p = ebm.Boltzmann(partial(energy, y=y), event_shape=())
        for place, found in ((-1.5, slopes), (0.5, downhill)):
            slope.data.fill_(place)
            found += torch.autograd.grad(objective.surrogate(p, x).mean(), slope)
    assert_mean(torch.stack(slopes), 0.0)
    assert torch.stack(downhill).max() < 0  # uphill in the surrogate is to -1.5


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: NoiseContrastive(dist.Normal(0.0, 1.0), ratio=0),
            "ratio must be positive and finite, got 0",
        ),
        (lambda: NoiseContrastive(3.0), "noise must be a distribution, or a callable"),
        (lambda: ConditionalNoiseContrastive(0.0), "noise_scale must be positive and finite, got"),
        (lambda: ConditionalNoiseContrastive(1.0, 0), "num_noise must be at least 1, got 0"),
    ],
)
def test_refuses_bad_arguments(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("noise", "message"),
    [
        (dist.Uniform(-1.0, 1.0).expand([2]).to_event(1), r"no support over 3 of 4 data of site"),
        (dist.LogNormal(0.0, 1.0).expand([2]).to_event(1), r"noise has no support over 2 of 4"),
        (dist.Normal(0.0, 1.0).expand([2]), r"\(2,\) and no batch, got event_shape \(\)"),
        (dist.Normal(0.0, 1.0).expand([3]).to_event(1), r"got event_shape \(3,\)"),
        (lambda: 3.0, r"noise must return a distribution, got float"),
    ],
)
def test_refuses_a_noise_that_does_not_fit(noise, message):
    x = tensor([[0.5, 0.5], [3.0, 0.5], [0.5, -3.0], [-2.0, 1.0]])
    with pytest.raises(ValueError, match=message):
        NoiseContrastive(noise).surrogate(ebm.Boltzmann(Gaussian(torch.zeros(2), 1.0)), x)


def test_refuses_a_noise_outside_of_the_support_of_the_energy():
    p = ebm.Boltzmann(lambda x: x, event_shape=(), support=constraints.positive)
    with pytest.raises(ValueError, match=r"noise leaves the support .* of site 'x'"):
        NoiseContrastive(dist.Normal(0.0, 1.0)).surrogate(p, torch.rand(50) + 0.1)


def test_cnce_refuses_a_discrete_site():
    p = ebm.Boltzmann(lambda x: x, event_shape=(), support=constraints.boolean)
    with pytest.raises(ValueError, match=r"cannot serve the discrete site 'x'.*PseudoLikelihood"):
        ConditionalNoiseContrastive(1.0).surrogate(p, torch.ones(5))
