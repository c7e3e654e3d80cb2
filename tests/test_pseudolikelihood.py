"""Objectives for discrete energies, against enumeration of every state."""

import itertools
import math
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from laws import assert_mean
from pyro.infer import SVI
from torch import nn, tensor
from torch.distributions import constraints

import pyro_ebm as ebm
from pyro_ebm.energies import Energy
from pyro_ebm.objectives import (
    ConditionalNoiseContrastive,
    ContrastiveDivergence,
    EnergyDiscrepancy,
    NoiseContrastive,
    PseudoLikelihood,
    RatioMatching,
    ScoreMatching,
)

BINARY = constraints.independent(constraints.boolean, 1)
TEMPERATURE = 1.7


class Machine(Energy):
    """A fully visible Boltzmann machine in 0/1: E(x) = -x' W x - b . x, with W above 0 only."""

    def __init__(self, weights, field, support=BINARY):
        super().__init__((len(field),), support)
        self.weights = nn.Parameter(weights.triu(1))
        self.field = nn.Parameter(field.clone())

    def forward(self, x):
        x = x.to(self.field.dtype)
        return -((x @ self.weights.triu(1)) * x).sum(-1) - x @ self.field


def truth():
    generator = torch.Generator().manual_seed(3)
    weights = torch.randn(5, 5, generator=generator)
    return Machine(1.5 * weights, tensor([1.0, -0.5, 0.3, -1.5, 0.8]))


def guess():
    return Machine(0.3 * torch.ones(5, 5), tensor([0.2, 0.1, -0.3, 0.4, 0.0]))


STATES = torch.tensor(list(itertools.product([0.0, 1.0], repeat=5)), dtype=torch.float64)
FLIPS = torch.arange(32)[:, None] ^ (1 << torch.arange(4, -1, -1))
"""The number of the state that differs from another at one spin, ``(32, 5)``."""


def law(energy, states=STATES):
    return (-energy(states) / TEMPERATURE).softmax(0)


def gradient(value, energy):
    return torch.cat([g.flatten() for g in torch.autograd.grad(value, list(energy.parameters()))])


def pseudolikelihood(p):
    return (p[:, None] / (p[:, None] + p[FLIPS])).log().sum(-1)


def ratio_matching(p):
    """Hyvarinen (2007): minus the squares of g(p(x) / p(one flipped)), with g(u) = 1 / (1 + u)."""
    return -(1 / (1 + p[:, None] / p[FLIPS])).square().sum(-1)


EXACT = {
    "pl": (PseudoLikelihood, pseudolikelihood),
    "rm": (RatioMatching, ratio_matching),
}


@pytest.mark.parametrize("objective", EXACT)
def test_is_its_closed_form_for_every_state(objective):
    make, closed_form = EXACT[objective]
    energy = guess()
    p = ebm.Boltzmann(energy, temperature=TEMPERATURE)
    value, expected = make().surrogate(p, STATES), closed_form(law(energy))
    torch.testing.assert_close(value, expected)
    weights = law(truth()).detach()
    torch.testing.assert_close(
        gradient((weights * value).sum(), energy), gradient((weights * expected).sum(), energy)
    )


@pytest.mark.parametrize("objective", EXACT)
def test_truth_is_stationary(objective):
    energy = truth()
    p = ebm.Boltzmann(energy, temperature=TEMPERATURE)
    value = (law(energy).detach() * EXACT[objective][0]().surrogate(p, STATES)).sum()
    assert gradient(value, energy).abs().max() < 1e-12


@pytest.mark.parametrize("dtype", [torch.int64, torch.float32, torch.float64])
def test_pseudolikelihood_of_categories_is_that_of_enumeration(dtype):
    """Three sites with values 1, 2, 3 and an energy that no symmetry leaves as it is."""
    support = constraints.independent(constraints.integer_interval(1, 3), 1)
    table = nn.Parameter(torch.randn(3, 3, 3))

    def energy(x):
        i, j, k = (x.long() - 1).unbind(-1)
        return table[i, j, k]

    p = ebm.Boltzmann(energy, event_shape=(3,), support=support, temperature=TEMPERATURE)
    states = torch.cartesian_prod(*[torch.arange(1, 4)] * 3)
    joint = (-table / TEMPERATURE).exp()
    joint = joint / joint.sum()
    conditionals = [(joint / joint.sum(d, keepdim=True)).log() for d in range(3)]
    value = PseudoLikelihood().surrogate(p, states.to(dtype))
    torch.testing.assert_close(value, sum(conditionals).flatten())


@pytest.mark.parametrize("make", [PseudoLikelihood, RatioMatching])
def test_a_part_of_the_sites_is_an_unbiased_estimate(make):
    energy = guess()
    p = ebm.Boltzmann(energy, temperature=TEMPERATURE)
    exact = make().surrogate(p, STATES).detach()
    parts = [make(num_sites=2).surrogate(p, STATES).detach() for _ in range(400)]
    assert_mean(torch.stack(parts), exact)


def test_an_image_of_booleans_is_one_event():
    field = torch.randn(2, 3)
    support = constraints.independent(constraints.boolean, 2)
    p = ebm.Boltzmann(lambda x: -(x * field).sum((-1, -2)), event_shape=(2, 3), support=support)
    x = torch.rand(4, 7, 2, 3) < 0.5
    expected = dist.Bernoulli(logits=field).to_event(2).log_prob(x.double())
    torch.testing.assert_close(PseudoLikelihood().surrogate(p, x), expected)
    one = ebm.Boltzmann(lambda x: 0.7 * x, event_shape=(), support=constraints.boolean)
    value = PseudoLikelihood().surrogate(one, tensor([0.0, 1.0]))
    torch.testing.assert_close(value, tensor([0.7, -0.7]).sigmoid().log())


# Energy discrepancy.


def sampled(energy, *shape):
    counts = torch.multinomial(law(energy).detach(), math.prod(shape), replacement=True)
    return STATES[counts].reshape(*shape, 5)


def test_discrepancy_by_flips_has_the_gradient_of_enumeration():
    """With one point and w = 1: log(1 + e^gap) over all pairs, two flips one after the other."""
    energy, flip = guess(), 0.2
    p = ebm.Boltzmann(energy, temperature=TEMPERATURE)
    twice = 2 * flip * (1 - flip)
    num_changed = (STATES[:, None] != STATES).sum(-1)
    pairs = twice**num_changed * (1 - twice) ** (5 - num_changed)
    nats = energy(STATES) / TEMPERATURE
    loss = (pairs * (nats[:, None] - nats).exp().log1p()).sum(-1)
    weights = law(truth()).detach()
    expected = gradient(-(weights * loss).sum(), energy)
    objective = EnergyDiscrepancy(flip, num_noise=1)
    slopes = [
        gradient(objective.surrogate(p, x).mean(), energy) for x in sampled(truth(), 60, 500)
    ]
    kept = expected != 0  # W below its diagonal has no part in the energy
    assert_mean(torch.stack(slopes)[:, kept], expected[kept])


def test_discrepancy_without_stabilisation_is_that_of_its_definition_as_points_grow():
    """E(x) + log sum_x' q(y | x') e^-E(x'), averaged over y, by enumeration of all."""
    energy, flip, num_noise = guess(), 0.3, 1000
    p = ebm.Boltzmann(energy, temperature=TEMPERATURE)
    num_changed = (STATES[:, None] != STATES).sum(-1)
    q = flip**num_changed * (1 - flip) ** (5 - num_changed)
    nats = energy(STATES) / TEMPERATURE
    blurred = (q * (-nats).exp()).sum(-1).log()
    exact = -(nats + q @ blurred)
    spread = ((q * (-2 * nats).exp()).sum(-1) / (2 * blurred).exp() - 1) / (2 * num_noise)
    objective = EnergyDiscrepancy(flip, num_noise, stabilization=0.0)
    value = objective.surrogate(p, STATES.expand(40, 32, 5)).detach()
    # The mean of a log of a mean lies below by half its relative variance.
    assert_mean(value - (q @ spread).detach(), exact.detach())


@pytest.mark.parametrize("num_noise", [1, 3])
@pytest.mark.parametrize("kind", ["binary", "categories", "real", "interval"])
def test_discrepancy_is_consistent_for_every_number_of_points(kind, num_noise):
    if kind == "binary":
        energy = truth()
        rows = sampled(energy, 80, 400)
    elif kind == "categories":
        support = constraints.independent(constraints.integer_interval(0, 2), 1)
        energy = Machine(torch.ones(2, 2), tensor([0.5, -1.0]), support)
        states = torch.cartesian_prod(torch.arange(3), torch.arange(3))
        drawn = torch.multinomial(law(energy, states).detach(), 80 * 400, replacement=True)
        rows = states[drawn].reshape(80, 400, 2)
    elif kind == "real":
        energy = ebm.energies.TwoModes(nn.Parameter(tensor(-1.0)), -1.0, 1.5)
        rows = energy.sample(80 * 400).reshape(80, 400)
    else:

        class Beta(Energy):
            def __init__(self):
                super().__init__((), constraints.unit_interval)
                self.shape = nn.Parameter(tensor([2.0, 4.0]))

            def forward(self, x):
                a, b = self.shape
                return -(a - 1) * x.log() - (b - 1) * (1 - x).log()

        energy = Beta()
        law_at = (energy.shape.detach() - 1) / TEMPERATURE + 1
        rows = dist.Beta(*law_at).sample((80, 400))
    temperature = 1.0 if kind == "real" else TEMPERATURE
    p = ebm.Boltzmann(energy, temperature=temperature).with_energy(energy)
    objective = EnergyDiscrepancy(0.3 if kind in ("binary", "categories") else 0.8, num_noise)
    slopes = [gradient(objective.surrogate(p, x).mean(), energy) for x in rows]
    slopes = torch.stack(slopes)
    assert_mean(slopes[:, slopes.std(0) > 0], 0.0)


def test_discrepancy_with_one_point_is_conditional_noise_contrast_with_twice_the_variance():
    energy = ebm.energies.TwoModes(nn.Parameter(tensor(0.5)), -1.0, 1.5)
    p = ebm.Boltzmann(energy)
    x = energy.sample(50)
    first = EnergyDiscrepancy(0.5, 1).surrogate(p, x.expand(2000, 50)).detach()
    second = ConditionalNoiseContrastive(math.sqrt(0.5)).surrogate(p, x.expand(2000, 50)).detach()
    assert_mean(first - second / 2, 0.0)


# Where they go.


DISCRETE = {
    "pl": lambda: PseudoLikelihood(),
    "pl_part": lambda: PseudoLikelihood(num_sites=2),
    "rm": lambda: RatioMatching(),
    "ed": lambda: EnergyDiscrepancy(0.2, num_noise=3),
    "nce": lambda: NoiseContrastive(dist.Bernoulli(torch.full((5,), 0.4)).to_event(1)),
}


@pytest.mark.parametrize("objective", DISCRETE)
def test_learns_under_svi_with_subsampling(objective):
    energy = Machine(torch.zeros(5, 5), torch.zeros(5))
    x = sampled(truth(), 2000)

    def model(x):
        with pyro.plate("data", len(x), subsample_size=400) as i:
            pyro.sample("x", ebm.Boltzmann(energy, temperature=TEMPERATURE), obs=x[i])

    svi = SVI(model, ebm.no_guide, pyro.optim.Adam({"lr": 0.05}), DISCRETE[objective]())

    def divergence():
        p = law(truth()).detach()
        return (p * (p / law(energy)).log()).sum().item()

    before = divergence()
    for _ in range(150):
        svi.step(x)
    assert divergence() < 0.1 * before


@pytest.mark.parametrize("objective", DISCRETE)
@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.full((3, 5), 2.0), r"site 'x', with shape \(3, 5\), .* outside of the support"),
        (torch.full((3, 5), torch.nan), r"data of site 'x'.* not finite"),
        (torch.empty(0, 5), r"data of site 'x'.* are empty"),
    ],
)
def test_refuses_bad_data(objective, x, message):
    with pytest.raises(ValueError, match=message):
        DISCRETE[objective]().surrogate(ebm.Boltzmann(guess()), x)


@pytest.mark.parametrize("make", [PseudoLikelihood, RatioMatching])
def test_refuses_a_continuous_site(make):
    with pytest.raises(ValueError, match=r"cannot serve the continuous site 'x'.*ScoreMatching"):
        make().surrogate(ebm.Boltzmann(ebm.energies.MLP((2,), (8,))), torch.randn(5, 2))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (ScoreMatching, r"cannot serve the discrete site 'x'.*PseudoLikelihood"),
        (
            lambda: ContrastiveDivergence(ebm.kernels.MALA(step_size=0.1)),
            "'x' is discrete: sample it with kernels.GibbsWithGradients",
        ),
    ],
)
def test_others_refuse_a_discrete_site(make, message):
    with pytest.raises(ValueError, match=message):
        make().surrogate(ebm.Boltzmann(guess()), STATES)


def test_ratio_matching_refuses_categories():
    support = constraints.integer_interval(0, 2)
    p = ebm.Boltzmann(lambda x: 0.0 * x, event_shape=(), support=support)
    with pytest.raises(ValueError, match="those of 'x' have 3 values; use PseudoLikelihood"):
        RatioMatching().surrogate(p, torch.ones(4))


def test_refuses_a_support_without_known_changes():
    p = ebm.Boltzmann(lambda x: 0.0 * x, event_shape=(), support=constraints.nonnegative_integer)
    with pytest.raises(ValueError, match=r"integer_interval\(low, high\)"):
        PseudoLikelihood().surrogate(p, torch.ones(4))


@pytest.mark.parametrize("objective", ["pl", "rm", "ed"])
def test_cannot_serve_a_latent_and_says_so(objective):
    energy = guess()

    def model():
        pyro.sample("z", ebm.Boltzmann(energy))

    def guide():
        pyro.sample("z", dist.Bernoulli(torch.full((5,), 0.5)).to_event(1))

    svi = SVI(model, guide, pyro.optim.Adam({}), DISCRETE[objective]())
    with pytest.raises(ValueError, match="cannot serve the latent site 'z'"):
        svi.step()


@pytest.mark.parametrize("objective", ["pl", "rm", "ed"])
def test_serves_a_conditional_energy(objective):
    """Each datum with a field of its own: the changes of a datum keep its condition."""
    weights = nn.Parameter(torch.randn(10, 3))

    def energy(x, y):
        return (torch.cat([x, y], -1) @ weights).tanh().sum(-1)

    y = torch.randn(4, 5)
    p = ebm.Boltzmann(partial(energy, y=y), event_shape=(5,), support=BINARY)
    x = STATES[torch.randint(32, (4,))]
    pyro.set_rng_seed(5)
    together = DISCRETE[objective]().surrogate(p, x)
    if objective == "ed":
        assert together.shape == (4,)
        return
    for i in range(4):
        one = ebm.Boltzmann(partial(energy, y=y[i]), event_shape=(5,), support=BINARY)
        torch.testing.assert_close(DISCRETE[objective]().surrogate(one, x[i]), together[i])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PseudoLikelihood(num_sites=0), "num_sites must be at least 1, got 0"),
        (lambda: EnergyDiscrepancy(0.0), "noise_scale must be positive and finite, got 0.0"),
        (lambda: EnergyDiscrepancy(0.1, 0), "num_noise must be at least 1, got 0"),
        (lambda: EnergyDiscrepancy(0.1, 1, -1.0), "stabilization must be at least 0, got -1.0"),
        (
            lambda: EnergyDiscrepancy(1.5).surrogate(ebm.Boltzmann(guess()), STATES),
            "noise_scale is the probability of a change",
        ),
    ],
)
def test_refuses_bad_arguments(make, message):
    with pytest.raises(ValueError, match=message):
        make()
