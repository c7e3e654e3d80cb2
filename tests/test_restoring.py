"""Points restored from evidence: against closed forms, sums and integrals."""

import math

import pytest
import torch
from cases import ENERGIES_DISCRETE
from torch import tensor
from torch.distributions import constraints

import pyro_ebm as ebm
from pyro_ebm.energies import RBM, Gaussian, GaussianMixture, clamp, observe
from pyro_ebm.metrics import restoration_error
from pyro_ebm.zoo import Autoregressive, Flow, Generative, Independent, Training
from pyro_ebm.zoo import GaussianMixture as FittedMixture

SITES = [
    name
    for name in ENERGIES_DISCRETE
    if not ENERGIES_DISCRETE[name]().alphabet.one_hot and not ENERGIES_DISCRETE[name]().batch_shape
]


def every_value(x, site, alphabet, num_values):
    """Points with one flat site set to each of its values: ``(K, *x.shape)``."""
    values = alphabet.decode(torch.arange(num_values), x)
    at = torch.arange(x.shape[-1]) == site
    return torch.where(at, values.reshape(-1, *(1,) * x.dim()), x)


def check_conditionals(given, u):
    found = given.conditionals(u).log_softmax(-1)
    for site in range(u.shape[-1]):
        points = every_value(u, site, given.alphabet, given.num_values)
        exact = (-given(points)).movedim(0, -1).log_softmax(-1)
        assert torch.allclose(found[..., site, :], exact)


@pytest.mark.parametrize("name", SITES)
def test_conditionals_given_some_sites_are_those_of_the_energy(name):
    energy = ENERGIES_DISCRETE[name]()
    size = energy.event_shape.numel()
    alphabet, num_values = energy.alphabet, energy.num_values
    x = alphabet.decode(torch.randint(num_values, (3, *energy.event_shape)), torch.zeros(()))
    known = (torch.arange(size) % 3 == 1).reshape(energy.event_shape)
    given = clamp(energy, x, known)
    num_unknown = int((~known).sum())
    assert (given.batch_shape, given.event_shape) == ((3,), (num_unknown,))
    u = alphabet.decode(torch.randint(num_values, (3, num_unknown)), torch.zeros(()))
    whole = given.complete(u)
    assert torch.equal(whole[:, known], x[:, known])
    assert torch.equal(given(u), energy(whole))
    check_conditionals(given, u)
    # no two sites of one colour interact
    for colour in range(given.num_colours):
        own = given.colours == colour
        moved = torch.where(own, u.flip(0), u)
        before, after = (given.conditionals(x).log_softmax(-1)[:, own] for x in (u, moved))
        assert torch.allclose(before, after)


@pytest.mark.parametrize("name", ["ising_tree", "random_field", "rbm", "boltzmann_machine_spins"])
def test_conditionals_given_readings_are_those_of_the_posterior(name):
    energy = ENERGIES_DISCRETE[name]()
    alphabet, num_values, q = energy.alphabet, energy.num_values, 0.15
    x, y = (
        alphabet.decode(torch.randint(num_values, (4, *energy.event_shape)), torch.zeros(()))
        for _ in range(2)
    )
    given = observe(energy, y, q)
    log_p = torch.where(x == y, math.log(1 - q), math.log(q / (num_values - 1))).sum(-1)
    assert torch.allclose(given(x), energy(x) - log_p)
    check_conditionals(given, x)


def machine():
    weights = tensor([[1.5, -0.8], [-1.0, 1.2], [0.7, 0.9], [1.1, -1.4]])
    return RBM(weights, tensor([-0.6, 0.3, 0.5, -0.2]), tensor([0.4, -0.7]))


def every_state():
    return torch.cartesian_prod(*[tensor([0.0, 1.0])] * 4)


def check_counts(draws, p):
    """Draws of bits ``(n, S)`` against the probabilities of all states, in their order."""
    place = 2 ** torch.arange(draws.shape[-1]).flip(0)
    counts = torch.bincount(draws.long() @ place, minlength=len(p))
    expected = len(draws) * p
    assert not counts[expected == 0].any()
    enough = expected > 5
    statistic = ((counts - expected).square() / expected)[enough].sum()
    dof = int(enough.sum()) - 1
    assert (statistic - dof) / math.sqrt(2 * dof) < 6


def test_inpainted_bits_follow_the_enumerated_law():
    energy, known = machine(), tensor([False, True, False, True])
    for row in ([0.0, 1.0, 0.0, 0.0], [0.0, 0.0, 0.0, 1.0]):
        x = tensor(row).expand(4000, 4)
        draws = ebm.inpaint(energy, x, known, num_draws=1, warmup_steps=60)[0]
        states = every_state()
        fits = (states[:, known] == x[0, known]).all(-1)
        p = torch.where(fits, (-energy(states)).exp(), 0.0)
        check_counts(draws, p / p.sum())


def test_denoised_bits_follow_the_enumerated_law():
    energy, y, q = machine(), tensor([1.0, 0.0, 1.0, 0.0]), 0.2
    draws = ebm.denoise(energy, y.expand(4000, 4), q, num_draws=1, warmup_steps=60)[0]
    states = every_state()
    wrong = (y != states).sum(-1)
    p = (-energy(states)).exp() * q**wrong * (1 - q) ** (4 - wrong)
    check_counts(draws, p / p.sum())


def skewed():
    """Three Gaussians that no reflection leaves as they are."""
    locs = tensor([[-1.0, 0.0], [1.0, 1.0], [0.5, -1.5]])
    return GaussianMixture([1.0, 3.0, 2.0], locs, tensor([0.6, 0.8, 0.7]))


MOMENTS = (torch.tanh, lambda u: torch.tanh(u).square(), lambda u: (2 * u).cos())


def line():
    return torch.linspace(-8, 8, 4001)


def check_line(draws, log_density):
    """Independent draws of a number, against the integrals of its density on the line."""
    p = log_density.softmax(0)
    for moment in MOMENTS:
        found = moment(draws)
        gap = found.mean() - (moment(line()) * p).sum()
        assert gap.abs() < 5 * found.std() / math.sqrt(len(found))


def test_inpainted_coordinate_follows_the_integral_of_its_density():
    energy, known = skewed(), tensor([True, False])
    for value in (-0.8, 0.9):
        x = tensor([value, 0.0]).expand(3000, 2)
        draws = ebm.inpaint(energy, x, known, num_draws=1, start=torch.randn(3000, 2))[0]
        assert torch.equal(draws[:, 0], x[:, 0])
        check_line(draws[:, 1], -energy(torch.stack([line() * 0 + value, line()], -1)))


def test_denoised_point_follows_the_integral_of_its_density():
    energy, y, sigma = skewed(), tensor([0.4, -0.6]), 0.7
    draws = ebm.denoise(energy, y.expand(3000, 2), sigma, num_draws=1)[0]
    side = torch.linspace(-7, 7, 401)
    points = torch.cartesian_prod(side, side)
    log_p = -energy(points) - 0.5 * ((points - y) / sigma).square().sum(-1)
    p = log_p.softmax(0)
    for moment in MOMENTS:
        found = moment(draws)
        gap = found.mean(0) - (moment(points) * p.unsqueeze(-1)).sum(0)
        assert (gap.abs() < 5 * found.std(0) / math.sqrt(len(found))).all()


def test_each_point_is_restored_from_its_own_evidence():
    precision = tensor([[2.0, 0.9, 0.0], [0.9, 1.5, -0.6], [0.0, -0.6, 1.0]])
    energy, known = Gaussian(tensor([1.0, -2.0, 0.5]), precision), tensor([False, True, False])
    x = tensor([[0.0, -4.0, 0.0], [0.0, 3.0, 0.0]])
    given = clamp(energy, x, known)
    unknown = ~known
    gain = torch.linalg.solve(precision[unknown][:, unknown], precision[unknown][:, known])
    mean = energy.loc[unknown] - (x[:, known] - energy.loc[known]) @ gain.T
    assert given.grad(mean).abs().max() < 1e-12
    hessian = torch.autograd.functional.hessian(lambda u: given(u).sum(), mean)
    for i in range(2):
        assert torch.allclose(hessian[i, :, i], precision[unknown][:, unknown])
    y = torch.randn(2, 3)
    mean = torch.linalg.solve(
        precision + torch.eye(3) / 0.3**2, (precision @ energy.loc + y / 0.3**2).T
    ).T
    assert observe(energy, y, 0.3).grad(mean).abs().max() < 1e-12
    draws = ebm.denoise(energy, y, 0.3, num_draws=400, warmup_steps=200)
    assert draws.shape == (400, 2, 3)
    gap = (draws.mean(0) - mean).abs()
    assert (gap < 5 * draws.std(0) / math.sqrt(40)).all()  # worth a tenth of so many


def plane(num):
    z = torch.randn(num, 2)
    return torch.stack([z[:, 0].exp(), 0.5 * z[:, 1] + 0.4 * z[:, 0].square()], -1)


QUICK = Training(num_steps=100, lr=5e-3)

EXACT = {
    "mixture": lambda: FittedMixture((2,), 3, 1e-3),
    "independent": lambda: Independent((2,)),
    "autoregressive": lambda: Autoregressive((2,), (16,), 4, QUICK),
    "flow": lambda: Flow((2,), "coupling", 4, (16,), QUICK),
}


@pytest.mark.parametrize("name", EXACT)
def test_models_inpaint_by_their_own_density(name):
    model = EXACT[name]().fit(plane(800), progress=False)
    x = tensor([1.3, 0.0]).expand(2000, 2)
    draws = model.inpaint(x, tensor([True, False]), num_draws=1)[0]
    assert torch.equal(draws[:, 0], x[:, 0])
    points = torch.stack([line() * 0 + 1.3, line()], -1)
    check_line(draws[:, 1], model.log_prob(points).value)


@pytest.mark.parametrize("name", EXACT)
def test_models_denoise_by_their_own_density(name):
    model = EXACT[name]().fit(plane(800), progress=False)
    y, sigma = tensor([0.9, 0.6]), 0.5
    draws = model.denoise(y.expand(2000, 2), sigma, num_draws=1)[0]
    side = torch.linspace(-4, 6, 501)
    points = torch.cartesian_prod(side, side)
    log_p = model.log_prob(points).value - 0.5 * ((points - y) / sigma).square().sum(-1)
    p = log_p.softmax(0)
    for moment in MOMENTS:
        found = moment(draws)
        gap = found.mean(0) - (moment(points) * p.unsqueeze(-1)).sum(0)
        assert (gap.abs() < 5 * found.std(0) / math.sqrt(len(found))).all()


@pytest.mark.parametrize("name", ["autoregressive", "flow"])
def test_density_of_what_is_no_number_is_none(name):
    """A chain whose proposal overflows has it rejected, and goes on."""
    model = EXACT[name]().fit(plane(200), progress=False)
    energy = model.as_energy()(tensor([[1.0, math.nan], [1.0, 0.5]]))
    assert energy.isnan().tolist() == [True, False]
    assert energy[1] == -model.log_prob(tensor([[1.0, 0.5]] * 2)).value[1]
    wild = ebm.kernels.HMC(step_size=1e30, num_steps=2, adapt_step_size=False)
    x = tensor([[1.0, 0.5]] * 2)
    draws = ebm.denoise(model.as_energy(), x, 0.5, wild, num_draws=2, warmup_steps=0)
    assert torch.equal(draws, x.expand(2, 2, 2))


def test_independent_bits_are_restored_by_bayes():
    model = Independent((2,), binary=True).fit(tensor([[0.0, 1.0], [1.0, 1.0], [0.0, 0.0]]))
    q, y = 0.2, tensor([1.0, 0.0])
    draws = model.denoise(y.expand(5000, 2), q, num_draws=1)[0]
    likelihood = torch.where(y == 1, 1 - q, q), torch.where(y == 1, q, 1 - q)
    one = model.loc.detach() * likelihood[0]
    p = one / (one + (1 - model.loc.detach()) * likelihood[1])
    assert ((draws.mean(0) - p).abs() < 5 * (p * (1 - p) / 5000).sqrt()).all()
    filled = model.inpaint(y.expand(5000, 2), tensor([True, False]), num_draws=1)[0]
    q = model.loc[1].item()
    assert (filled[:, 0] == 1).all()
    assert abs(filled[:, 1].mean() - q) < 5 * math.sqrt(q * (1 - q) / 5000)
    with pytest.raises(ValueError, match=r"booleans of shape \(2,\), the same for all points"):
        model.inpaint(y.expand(3, 2), tensor([[True, False]]).expand(3, 2))


def test_model_without_a_density_says_so():
    class Mute(Generative):
        def fit(self, x, progress=True):
            self.history["loss"] = [0.0]
            return self

        def sample(self, num_samples):
            return torch.zeros(num_samples, 2)

        def log_prob(self, x):
            raise AssertionError

    model, x = Mute((2,)).fit(None), torch.zeros(3, 2)
    with pytest.raises(NotImplementedError, match="Mute has no density to inpaint by"):
        model.inpaint(x, tensor([True, False]))
    with pytest.raises(NotImplementedError, match="Mute has no density to denoise by"):
        model.denoise(x, 0.1)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda e, x: clamp(e, x[:, :1], tensor([True, False])),
            r"x must have shape \(\*batch, 2",
        ),
        (lambda e, x: clamp(e, x, tensor([True, True])), "known must be booleans"),
        (lambda e, x: clamp(e, x, tensor([1.0, 0.0])), "known must be booleans.*torch.float"),
        (lambda e, x: clamp(e, x, tensor([True])), "known must be booleans"),
        (lambda e, x: observe(e, x, 0.0), "noise must be positive and finite, got 0.0"),
        (
            lambda e, x: observe(machine(), every_state(), 1.0),
            "noise must be a probability .* got 1.0",
        ),
        (
            lambda e, x: ebm.inpaint(ebm.Boltzmann(e), x, tensor([True, False])),
            "energy must be an Energy, got Boltzmann",
        ),
        (lambda e, x: ebm.denoise(lambda x: x, x, 0.1), "energy must be an Energy, got function"),
        (lambda e, x: ebm.denoise(e, x, 0.1, num_draws=0), "num_draws must be at least 1, got 0"),
        (
            lambda e, x: observe(ENERGIES_DISCRETE["one_hot"](), torch.zeros(1, 3, 2), 0.1),
            "not one-hot",
        ),
    ],
)
def test_bad_evidence_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call(Gaussian(torch.zeros(2), 1.0), torch.zeros(3, 2))


def test_positive_support_is_refused():
    class Positive(ebm.energies.Energy):
        def forward(self, x):
            return x.sum(-1)

    energy = Positive((2,), constraints.independent(constraints.positive, 1))
    with pytest.raises(ValueError, match="over all real numbers or over an alphabet"):
        clamp(energy, torch.ones(3, 2), tensor([True, False]))


def test_error_of_restoration_is_that_of_the_posterior_mean():
    """On x ~ N(0, 1), read with noise s, the least error is s^2 / (1 + s^2)."""
    x, sigma, num_draws = torch.randn(4000, 1), 0.7, 50
    y = x + sigma * torch.randn_like(x)
    variance = sigma**2 / (1 + sigma**2)
    draws = y / (1 + sigma**2) + math.sqrt(variance) * torch.randn(num_draws, 4000, 1)
    error = restoration_error(draws, x)
    assert abs(error.value - variance * (1 + 1 / num_draws)) < 5 * error.std_error
    worse = restoration_error(y.expand(num_draws, 4000, 1), x)
    assert abs(worse.value - sigma**2) < 5 * worse.std_error
    for bad, message in ((draws[0], "must have shape"), (draws[:, :9], "restore 9 points")):
        with pytest.raises(ValueError, match=message):
            restoration_error(bad, x)
