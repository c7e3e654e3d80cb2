"""What models say of their densities, against sums, integrals and closed forms."""

import math

import pyro
import pytest
import torch
from torch import nn

import pyro_ebm as ebm
from pyro_ebm.summation import enumerate_support
from pyro_ebm.zoo.autoregressive import Autoregressive
from pyro_ebm.zoo.baselines import GaussianMixture, Independent
from pyro_ebm.zoo.diffusion import Diffusion
from pyro_ebm.zoo.ebm import EBM
from pyro_ebm.zoo.flow import Flow
from pyro_ebm.zoo.gan import GAN
from pyro_ebm.zoo.rbm import RBM
from pyro_ebm.zoo.training import Training
from pyro_ebm.zoo.vae import VAE

QUICK = Training(num_steps=150, lr=5e-3)

CONTINUOUS = {
    "independent": lambda: Independent((2,)),
    "mixture": lambda: GaussianMixture((2,), 4),
    "coupling flow": lambda: Flow((2,), "coupling", 4, (16,), QUICK),
    "autoregressive flow": lambda: Flow((2,), "autoregressive", 4, (16,), QUICK),
    "autoregressive": lambda: Autoregressive((2,), (16,), 4, QUICK),
}

BINARY = {
    "independent": lambda: Independent((2, 3), binary=True),
    "autoregressive": lambda: Autoregressive((2, 3), (32,), training=QUICK, binary=True),
}


def skewed(num):
    """Points of the plane that no reflection leaves as they are, far from unit scale."""
    z = torch.randn(num, 2)
    return torch.stack([40 + 5 * z[:, 0].exp(), 0.1 * z[:, 1] + 0.05 * z[:, 0].square()], -1)


def skewed_bits(num):
    """Images of 2 x 3 pixels that hang together."""
    first = torch.rand(num, 1) < 0.3
    return (torch.rand(num, 6) < torch.where(first, 0.8, 0.15)).double().reshape(num, 2, 3)


@pytest.mark.parametrize("name", CONTINUOUS)
def test_density_integrates_to_one_and_is_that_of_the_draws(name):
    x = skewed(2000)
    model = CONTINUOUS[name]().fit(x, progress=False)
    middle, spread = x.mean(0), x.std(0)

    def in_units(u):
        return -model.log_prob(middle + spread * u).value.double() - spread.log().sum()

    side = torch.linspace(-20, 20, 801)
    points = torch.cartesian_prod(side, side)
    weights = torch.cat([(-in_units(part)).exp() for part in points.split(100_000)])
    weights *= (side[1] - side[0]).item() ** 2
    assert abs(weights.sum().item() - 1) < 2e-3  # of the rule, and of float32
    draws = (model.sample(5000) - middle) / spread
    for moment in (torch.tanh, lambda u: torch.tanh(u[:, :1] * u[:, 1:]), lambda u: u.cos()):
        exact = (moment(points).double() * weights.unsqueeze(-1)).sum(0) / weights.sum()
        drawn = moment(draws).double()
        error = drawn.std(0) / math.sqrt(len(drawn))
        assert ((drawn.mean(0) - exact).abs() < 5 * error + 1e-3).all()


@pytest.mark.parametrize("name", BINARY)
def test_probabilities_sum_to_one_and_are_those_of_the_draws(name):
    model = BINARY[name]().fit(skewed_bits(2000), progress=False)
    bits = ebm.Boltzmann(
        lambda x: 0 * x.sum((-1, -2)),
        event_shape=(2, 3),
        support=torch.distributions.constraints.independent(
            torch.distributions.constraints.boolean, 2
        ),
    )
    states = enumerate_support(bits, torch.zeros(()))
    p = model.log_prob(states).value.double().exp()
    assert abs(p.sum().item() - 1) < 1e-5
    place = 2 ** torch.arange(6)
    counts = torch.bincount(model.sample(20_000).flatten(1).long() @ place, minlength=64)
    expected = torch.zeros(64).double().index_add(0, states.flatten(1).long() @ place, p)
    enough = expected * 20_000 > 5
    statistic = ((counts - 20_000 * expected).square() / (20_000 * expected))[enough].sum()
    dof = int(enough.sum()) - 1
    assert (statistic - dof) / math.sqrt(2 * dof) < 6


def test_independent_bits_follow_laplace():
    x = torch.tensor([[0.0, 1.0, 1.0]]).repeat(8, 1)
    model = Independent((3,), binary=True).fit(x)
    assert torch.allclose(model.log_prob(x[:2]).value.exp(), torch.tensor(0.9**3))


def test_independent_pixels_of_the_digits():
    """-25.0826 and -25.2791: binary digits, a fifth held out, Bernoulli pixels by Laplace."""
    train, test, *_ = ebm.datasets.digits(binarize=True)
    model = Independent((1, 8, 8), binary=True).fit(train)
    for part, known in ((train, -25.0826), (test, -25.2791)):
        assert abs(model.log_prob(part).value.mean().item() - known) < 1e-4


@pytest.mark.parametrize(
    "make",
    [
        lambda: Independent((3,), binary=True),
        lambda: Autoregressive((3,), binary=True),
        lambda: VAE((3,), binary=True),
    ],
)
def test_binary_model_refuses_grey(make):
    with pytest.raises(ValueError, match=r"zeros and ones .* got 0.5"):
        make().fit(torch.full((4, 3), 0.5), progress=False)


def test_bound_of_a_binary_vae_is_below_its_likelihood():
    model = VAE((6,), 1, (16,), QUICK, num_importance=50, binary=True)
    x = skewed_bits(500).flatten(1)
    model.fit(x, progress=False)
    z = torch.linspace(-8, 8, 4001).unsqueeze(-1)
    with torch.no_grad():
        joint = (
            model.likelihood(z.unsqueeze(1)).log_prob(x[:50]) + model.prior().log_prob(z)[:, None]
        )
    exact = joint.double().logsumexp(0) + math.log(16 / 4000)
    kind, value, _ = model.log_prob(x[:50].repeat(40, 1))
    gap = (value.double().reshape(40, 50) - exact).mean(1)
    assert kind == "bound"
    assert gap.mean() < 5 * gap.std() / math.sqrt(40)
    assert gap.mean() > -0.1  # and near, with fifty draws of a good guide


class ExactNoise(nn.Module):
    """What the noise is on average where the data are standard normal."""

    def __init__(self, alpha_bar, as_energy):
        super().__init__()
        self.alpha_bar, self.as_energy = alpha_bar, as_energy
        self.gain = nn.Parameter(torch.ones(()))

    def forward(self, features):
        x, t = features[:, :3], features[:, 3]
        level = (t * len(self.alpha_bar)).round().long() - 1
        spread = (1 - self.alpha_bar[level]).sqrt().unsqueeze(-1)
        if self.as_energy:
            return self.gain * 0.5 * (spread * x.square()).sum(-1, keepdim=True)
        return self.gain * spread * x


@pytest.mark.parametrize("network", ["noise", "energy"])
def test_diffusion_with_the_exact_noise_of_a_gaussian_is_exact(network):
    plan = Training(num_steps=1, lr=1e-12)
    model = Diffusion((3,), network, (), num_levels=20, training=plan, num_bound=400)
    model.network = ExactNoise(model.alpha_bar, network == "energy")
    loc, scale = torch.tensor([1.0, -2.0, 30.0]), torch.tensor([0.5, 1.0, 4.0])
    model.fit(loc + scale * torch.randn(20_000, 3), progress=False)
    # the bound of the true chain, reversed, is the likelihood
    x = loc + scale * torch.tensor([[0.0, 0.0, 0.0], [1.0, -0.5, 2.0], [-1.5, 0.3, 0.7]])
    kind, value, std_error = model.log_prob(x)
    truth = torch.distributions.Normal(model.loc, model.scale).log_prob(x).sum(-1)
    assert kind == "bound"
    assert ((value - truth).abs() < 5 * std_error + 0.02).all()  # variances are of 4,096 points
    draws = (model.sample(20_000) - model.loc) / model.scale
    error = 1 / math.sqrt(20_000)
    assert (draws.mean(0).abs() < 5 * error).all()
    assert ((draws.square().mean(0) - 1).abs() < 5 * math.sqrt(2) * error + 0.02).all()


def test_langevin_draws_of_an_exact_score_have_their_own_bias_alone():
    plan = Training(num_steps=1, lr=1e-12)
    model = Diffusion((3,), "noise", (), num_levels=20, sampler="langevin", training=plan)
    model.network = ExactNoise(model.alpha_bar, False)
    model.fit(torch.randn(20_000, 3), progress=False)
    draws = (model.sample(20_000) - model.loc) / model.scale
    # at the finest level a step is tiny beside the unit normal; above it, x' = (1 - h s^2) x + ...
    variance = torch.ones(())
    for kept in model.alpha_bar.flip(0):
        step = model.langevin_step * (1 - kept)
        for _ in range(model.num_langevin):
            variance = (1 - step) ** 2 * variance + 2 * step
    error = 5 * math.sqrt(2 / 20_000) * variance
    assert ((draws.square().mean(0) - variance).abs() < error + 5 / 20_000).all()


@pytest.mark.parametrize(("loss", "lr"), [("non-saturating", 3e-3), ("wasserstein", 3e-3)])
def test_generator_comes_to_the_data(loss, lr):
    """Two unequal heaps far apart; a Gaussian with their moments is the yardstick."""
    side = (torch.rand(3000, 1) < 0.8).double()
    x = torch.cat([6 * side - 2 + 0.3 * torch.randn(3000, 1), 5 + 0.2 * torch.randn(3000, 1)], -1)
    model = GAN((2,), 2, (64, 64), loss, training=Training(500, 128, lr, betas=(0.5, 0.9)))
    model.fit(x, progress=False)
    held_out, draws = x[:1000], model.sample(1000)
    yardstick = Independent((2,)).fit(x).sample(1000)
    ours, theirs = (ebm.metrics.mmd(y, held_out, bandwidth=1.0) for y in (draws, yardstick))
    error = math.hypot(ours.std_error, theirs.std_error)
    assert theirs.value - ours.value > 5 * error


def test_probabilities_of_a_trained_machine_sum_to_one_and_are_those_of_its_draws():
    model = RBM((2, 3), 3, QUICK, num_chains=64, num_sweeps=40)
    model.fit(skewed_bits(2000), progress=False)
    states = torch.cartesian_prod(*[torch.tensor([0.0, 1.0])] * 6).reshape(-1, 2, 3)
    kind, value, _ = model.log_prob(states)
    assert kind == "exact"
    p = value.exp()
    assert abs(p.sum().item() - 1) < 1e-9
    place = 2 ** torch.arange(6).flip(0)
    draws = model.sample(8000)
    counts = torch.bincount(draws.flatten(1).long() @ place, minlength=64)
    enough = p * 8000 > 5
    statistic = ((counts - 8000 * p).square() / (8000 * p))[enough].sum()
    dof = int(enough.sum()) - 1
    assert (statistic - dof) / math.sqrt(2 * dof) < 6
    order = model.typicality(states).argsort()
    assert torch.equal(order, value.argsort())


def test_machine_learns_what_hangs_together():
    x, held_out = skewed_bits(3000), skewed_bits(2000)
    model = RBM((2, 3), 2, Training(1000, lr=0.02), num_chains=256).fit(x, progress=False)
    apart = Independent((2, 3), binary=True).fit(x)
    gain = model.log_prob(held_out).value - apart.log_prob(held_out).value
    assert gain.mean() > 5 * gain.std() / math.sqrt(len(gain))


def test_machine_with_two_large_layers_has_no_likelihood():
    plan = Training(num_steps=2)
    model = RBM((20,), 30, plan, num_sweeps=4).fit(torch.rand(50, 20).round(), progress=False)
    assert model.log_prob(torch.zeros(2, 20)).kind == "none"
    assert model.sample(9).unique().tolist() == [0.0, 1.0]
    with pytest.raises(ValueError, match="num_hidden must be at least 1, got 0"):
        RBM((20,), 0)


@pytest.mark.slow
def test_machine_of_the_digits_is_near_the_exact_maximum():
    """-19.03: the held-out log-likelihood of ten hidden units at the exact maximum."""
    train, test, *_ = ebm.datasets.digits(binarize=True)
    model = RBM((1, 8, 8), 10).fit(train, progress=False)
    assert abs(model.log_prob(test).value.mean().item() + 19.03) < 0.5


def test_energy_of_the_plane_is_normalised_by_quadrature():
    x = skewed(1000)
    energy = ebm.energies.Whitened.by_data(ebm.energies.MLP((2,), (16,), base_scale=1.5), x)
    objective = ebm.objectives.DenoisingScoreMatching(sigma=0.3)
    model = EBM(energy, objective, Training(num_steps=50, lr=5e-3)).fit(x, progress=False)
    kind, _, std_error = model.log_prob(x)
    assert kind == "estimate"
    assert (std_error < 1e-4).all()
    side = torch.linspace(-12, 12, 801)
    u = torch.cartesian_prod(side, side)
    points = energy.loc + u @ energy.scale_tril.T
    area = (side[1] - side[0]) ** 2 * energy.scale_tril.diagonal().prod()
    assert abs(model.log_prob(points).value.exp().sum() * area - 1) < 1e-3


def test_energy_that_knows_its_log_z_is_exact():
    energy = ebm.energies.Gaussian(torch.nn.Parameter(torch.zeros(3)), torch.ones(3))
    objective = ebm.objectives.ScoreMatching()
    model = EBM(energy, objective, Training(num_steps=5)).fit(torch.randn(50, 3), progress=False)
    x = torch.randn(4, 3)
    kind, value, _ = model.log_prob(x)
    truth = torch.distributions.Normal(energy.loc.detach(), 1.0).log_prob(x).sum(-1)
    assert kind == "exact"
    assert torch.allclose(value, truth)


def test_tails_of_a_flow_are_not_beyond_measure():
    law = ebm.datasets.two_modes
    model = Flow((2,), "coupling", 8, (16,), QUICK).fit(law(1000), progress=False)
    found = ebm.metrics.kl_divergence(law.log_prob, lambda x: model.log_prob(x).value)
    x = law(2000)
    gaps = law.log_prob(x) - model.log_prob(x).value
    assert abs(found.value - gaps.mean()) < 5 * gaps.std() / math.sqrt(len(x))


@pytest.mark.parametrize("layer", ["coupling", "autoregressive"])
def test_scales_of_a_flow_level_off_with_their_gradients(layer):
    """A limit that lets gradients through would not stop a scale that runs off."""
    model = Flow((4,), layer, 1, (8,))
    network = next(module for module in model.layers[0].children() if hasattr(module, "limit"))
    x = torch.randn(50, 2 if layer == "coupling" else 4)
    last = [part for part in network.modules() if isinstance(part, torch.nn.Linear)][-1]
    largest = []
    for factor in (1.0, 1e3, 1e6):
        last.weight.data, last.bias.data = last.weight * 0 + 1e-3, last.bias * 0 + 0.5 * factor
        log_scale = network(x)[1]
        (gradient,) = torch.autograd.grad(log_scale.sum(), last.bias)
        largest.append(gradient.abs().max().item())
        assert log_scale.abs().max() <= model.max_log_scale
    assert largest[0] > 1.0
    assert largest[1:] == [0.0, 0.0]


def test_machine_keeps_the_contract_of_a_model():
    x = skewed_bits(100)

    def draws():
        pyro.set_rng_seed(3)
        return RBM((2, 3), 2, Training(num_steps=5), num_sweeps=4).fit(x, progress=False).sample(9)

    pyro.param("mine", torch.zeros(()))
    assert torch.equal(draws(), draws())
    assert list(pyro.get_param_store().keys()) == ["mine"]
    model = RBM((2, 3), 2)
    with pytest.raises(RuntimeError, match="not fitted"):
        model.sample(3)
    with pytest.raises(RuntimeError, match="not fitted"):
        model.log_prob(x)
    for bad, message in ((x / 2, "zeros and ones"), (x[:, :1], "must have shape"), (x[:1], "2")):
        with pytest.raises(ValueError, match=message):
            model.fit(bad, progress=False)
