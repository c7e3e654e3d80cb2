"""Particles, exponential families, distributions as experts, and products of unlike kinds."""

import itertools
import math

import pyro
import pyro.distributions as dist
import pyro.distributions.transforms as transforms
import pytest
import torch
from laws import assert_chain_mean, assert_mean
from torch import nn, tensor
from torch.distributions import constraints

import pyro_ebm as ebm
from pyro_ebm.energies import (
    MLP,
    DiscreteEnergy,
    Energy,
    ExponentialFamily,
    FromDistribution,
    Gaussian,
    Ising,
    Particles,
    Without,
    spins,
)

# --------------------------------------------------------------------------------------- particles


def lennard_jones(r, epsilon=1.0, sigma=1.0):
    return 4 * epsilon * ((sigma / r) ** 12 - (sigma / r) ** 6)


def test_a_pair_has_the_textbook_energy():
    """The well is epsilon deep, at the distance 2^(1/6) sigma; the trap adds k |x|^2 / 2."""
    pair = Particles(2, 3, trap=0.5, epsilon=2.0, sigma=1.5)
    r = 2 ** (1 / 6) * 1.5
    x = tensor([[0.0, r / 2, 0.0], [0.0, -r / 2, 0.0]])
    assert pair(x).item() == pytest.approx(-2.0 + 0.5 * 0.5 * r * r / 2)
    torch.testing.assert_close(pair.grad(x), 0.5 * x)  # at the bottom of the well only the trap


def test_a_cluster_is_the_sum_over_its_pairs():
    x = torch.randn(5, 4, 2)
    cluster = Particles(4, 2, trap=1.3, cutoff=2.0, epsilon=0.7, sigma=0.6)
    expected = 0.65 * x.square().sum((-1, -2))
    for i, j in itertools.combinations(range(4), 2):
        r = (x[:, i] - x[:, j]).norm(dim=-1)
        raised = lennard_jones(r, 0.7, 0.6) - lennard_jones(2.0, 0.7, 0.6)
        expected = expected + torch.where(r < 2.0, raised, 0)
    torch.testing.assert_close(cluster(x), expected)


def test_a_cell_takes_the_nearest_image():
    side = 4.0
    fluid = Particles(3, 2, cell=side, sigma=0.8)
    x = side * torch.rand(20, 3, 2)
    shifts = side * tensor(list(itertools.product([-1.0, 0.0, 1.0], repeat=2)))
    expected = torch.zeros(20)
    for i, j in itertools.combinations(range(3), 2):
        images = (x[:, i] - x[:, j])[:, None] + shifts
        r = images.norm(dim=-1).amin(-1)
        raised = lennard_jones(r, sigma=0.8) - lennard_jones(side / 2, sigma=0.8)
        expected = expected + torch.where(r < side / 2, raised, 0)
    torch.testing.assert_close(fluid(x), expected)
    moved = (x + torch.rand(20, 1, 2) * side) % side
    torch.testing.assert_close(fluid(moved), expected, rtol=1e-6, atol=1e-6)
    assert bool(fluid.support.check(x).all())


@pytest.mark.parametrize("kwargs", [{"trap": 1.0}, {"cell": 5.0}, {"trap": 1.0, "cutoff": 3.0}])
def test_forces_are_those_of_finite_differences(kwargs):
    particles = Particles(3, 2, sigma=0.7, **kwargs)
    x = tensor([[0.5, 0.5], [1.6, 0.8], [0.9, 2.1]]) + 0.1 * torch.randn(4, 3, 2)
    assert torch.autograd.gradcheck(particles, x.requires_grad_())


def test_parameters_of_particles_learn():
    particles = Particles(3, 2, trap=nn.Parameter(tensor(1.0)), sigma=nn.Parameter(tensor(0.5)))
    particles(torch.randn(4, 3, 2)).sum().backward()
    assert [name for name, p in particles.named_parameters() if p.grad is not None] == [
        "trap",
        "sigma",
    ]


def test_particles_in_one_place_have_an_infinite_energy():
    energy = Particles(2, 2, trap=1.0)(torch.zeros(2, 2))
    assert energy == math.inf


def test_a_cluster_keeps_the_laws_of_its_centre_and_its_virial():
    """Whatever the pairs, the centre has the variance T / (n k), and E[x . grad E] = n d T."""
    n, d, k, temperature = 3, 2, 1.5, 0.7
    cluster = Particles(n, d, trap=k, sigma=0.6)
    p = ebm.Boltzmann(cluster, temperature=temperature)
    start = {"x": torch.randn(200, n, d)}
    mcmc = ebm.MCMC(
        ebm.kernels.HMC(p),
        num_samples=40,
        warmup_steps=100,
        num_chains=200,
        initial_params=start,
        disable_progbar=True,
    )
    mcmc.run()
    x = mcmc.get_samples(group_by_chain=True)["x"]
    centre = x.mean(-2)
    assert_chain_mean(centre.square().sum(-1), d * temperature / (n * k))
    virial = (x * cluster.grad(x)).sum((-1, -2))
    assert_chain_mean(virial, n * d * temperature)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({}, "need a trap or a cell, and not both"),
        ({"trap": 1.0, "cell": 2.0}, "need a trap or a cell, and not both"),
        ({"trap": -1.0}, "trap must be positive, got -1.0"),
        ({"cell": 2.0, "cutoff": 1.5}, "cutoff must be at most half the cell"),
        ({"cell": 2.0, "sigma": 0.0}, "sigma must be positive"),
    ],
)
def test_bad_particles_are_refused(kwargs, message):
    with pytest.raises(ValueError, match=message):
        Particles(3, 2, **kwargs)


# ---------------------------------------------------------------------------- exponential families


def test_a_normal_law_is_an_exponential_family():
    mu, precision = 0.7, 2.5

    def moments(x):
        return torch.stack([x, x.square()], -1)

    natural = nn.Parameter(tensor([mu * precision, -precision / 2]))
    family = ExponentialFamily(moments, natural, event_shape=())
    x = torch.randn(6)
    exact = dist.Normal(mu, precision**-0.5)
    log_z = ebm.logz.quadrature(ebm.Boltzmann(family)).value
    torch.testing.assert_close(-family(x) - log_z, exact.log_prob(x), atol=1e-6, rtol=0)


def test_gradient_of_log_z_is_the_expected_statistics():
    def statistics(x):
        return torch.stack([x.sum(-1), x[..., 0] * x[..., 1]], -1)

    natural = nn.Parameter(tensor([0.4, -0.9]))
    support = constraints.independent(spins, 1)
    family = ExponentialFamily(statistics, natural, (3,), support)
    p = ebm.Boltzmann(family)
    (slope,) = torch.autograd.grad(p.log_z, natural)
    points = p.enumerate_support()
    probs = p.log_prob(points).exp().detach()
    torch.testing.assert_close(slope, probs @ statistics(points))
    assert_mean(statistics(p.sample((20_000,))), slope)
    torch.testing.assert_close(family.expected(points), statistics(points).mean(0))


def test_statistics_that_are_a_module_learn():
    net = nn.Linear(2, 3)
    family = ExponentialFamily(net, torch.ones(3), event_shape=(2,))
    assert {id(p) for p in net.parameters()} == {id(p) for p in family.parameters()}
    with pytest.raises(ValueError, match=r"statistics must map x of shape .* to shape \(7, 4\)"):
        ExponentialFamily(net, torch.ones(4), event_shape=(2,))(torch.zeros(7, 2))
    with pytest.raises(ValueError, match="natural must have shape"):
        ExponentialFamily(net, torch.ones(()), event_shape=(2,))


# ------------------------------------------------------------------------ distributions as experts

LAWS = {
    "number": lambda: dist.Gamma(2.0, 3.0),
    "vector": lambda: dist.MultivariateNormal(torch.zeros(2), torch.eye(2)),
    "mixture": lambda: dist.MixtureSameFamily(
        dist.Categorical(tensor([0.3, 0.7])), dist.Normal(tensor([-1.0, 2.0]), 0.5)
    ),
    "image": lambda: dist.Beta(2.0, 1.0).expand([2, 3]).to_event(2),
    "booleans": lambda: dist.Bernoulli(0.3).expand([3]).to_event(1),
}


@pytest.mark.parametrize("name", LAWS)
def test_a_distribution_is_an_energy_whose_z_is_one(name):
    law = LAWS[name]()
    energy = FromDistribution(law)
    x = law.sample((5,))
    torch.testing.assert_close(energy(x), -law.log_prob(x))
    assert (energy.event_shape, repr(energy.support)) == (law.event_shape, repr(law.support))
    p = ebm.Boltzmann(energy)
    torch.testing.assert_close(p.log_prob(x), law.log_prob(x))
    assert_mean(p.sample((20_000,)), law.mean)


def test_a_distribution_with_a_batch_is_refused():
    with pytest.raises(ValueError, match=r"no batch, got batch_shape \(3,\).*to_event"):
        FromDistribution(dist.Normal(torch.zeros(3), 1.0))


def flow():
    base = dist.Normal(torch.zeros(2), 1.0).to_event(1)
    return dist.TransformedDistribution(base, [transforms.spline_coupling(2, count_bins=3)])


def test_a_flow_learns_as_an_expert():
    law = flow()
    energy = FromDistribution(law)
    assert {id(p) for p in energy.parameters()} == {id(p) for p in law.transforms[0].parameters()}
    x = torch.randn(50, 2)
    optimizer = torch.optim.Adam(energy.parameters(), lr=0.05)
    values = []
    for _ in range(3):
        optimizer.zero_grad()
        loss = energy(x).mean()
        loss.backward()
        optimizer.step()
        values.append(loss.item())
    fresh = -law.log_prob(x.clone()).mean()  # what is kept of x itself would be out of date
    torch.testing.assert_close(energy(x).mean(), fresh)
    assert values[2] < values[0]


class Learned(nn.Module):
    def __init__(self):
        super().__init__()
        self.loc = nn.Parameter(torch.zeros(2))

    def forward(self):
        return dist.Normal(self.loc, 1.0).to_event(1)


def test_a_module_that_makes_a_distribution_is_called_anew():
    made = Learned()
    energy = FromDistribution(made)
    x = torch.ones(2)
    before = energy(x).item()
    with torch.no_grad():
        made.loc.fill_(1.0)
    assert energy(x).item() == pytest.approx(before - 1.0)
    assert list(energy.parameters()) == [made.loc]


def test_a_flow_times_an_energy_times_a_factor():
    """AND of three kinds: normal draws, a quadratic energy and a fact make one normal law."""
    expert = FromDistribution(dist.Normal(torch.zeros(2), 1.0).to_event(1))
    energy = Gaussian(tensor([2.0, -1.0]), 3.0)
    together = expert + energy + (lambda x: 0.5 * (x - 4.0).square().sum(-1))
    x = torch.randn(7, 2)
    exact = Gaussian((3 * tensor([2.0, -1.0]) + 4.0) / 5, 5.0)
    gap = together(x) - exact(x)
    torch.testing.assert_close(gap, gap[:1].expand(7))
    learned = FromDistribution(flow()) + 0.5 * MLP((2,), (8,))
    grads = torch.autograd.grad(learned(x).sum(), list(learned.parameters()), allow_unused=True)
    assert all(grad is not None for grad in grads)
    pyro.clear_param_store()


def test_a_flow_or_an_energy_is_a_mixture():
    either = ebm.energies.mixture(
        [FromDistribution(flow()), Gaussian(torch.zeros(2), 4.0)], [1, 3]
    )
    assert either.has_log_z
    assert either.sample(5).shape == (5, 2)


def test_energies_over_one_alphabet_multiply_and_enumerate():
    """A lattice and a prior on its magnetisation: log Z is their sum over all points."""
    lattice = Ising((3, 3), 0.3)
    fact = lattice + (lambda x: 0.1 * x.sum((-1, -2)).square())
    p = ebm.Boltzmann(fact)
    points = p.enumerate_support()
    torch.testing.assert_close(p.log_prob(points).exp().sum(), tensor(1.0))
    assert not isinstance(fact, DiscreteEnergy)
    less = ebm.Boltzmann(lattice - 0.5 * Ising((3, 3), 1.0))
    torch.testing.assert_close(
        less.log_prob(points), ebm.Boltzmann(Ising((3, 3), -0.2)).log_prob(points)
    )
    warm = ebm.Boltzmann(Energy.__truediv__(lattice, 2.0))
    torch.testing.assert_close(
        warm.log_prob(points), ebm.Boltzmann(Ising((3, 3), 0.15)).log_prob(points)
    )


# ------------------------------------------------------------------------------------------- NOT


def test_what_is_avoided_loses_and_z_stays_finite():
    """The plain difference of these normal laws is not normalisable; with a ceiling it is."""
    wanted, avoided = Gaussian(tensor([0.0]), 1.0), Gaussian(tensor([1.0]), 4.0)
    ceiling, weight = 3.0, 0.5
    away = Without(wanted, avoided, ceiling, weight)
    log_z = ebm.logz.quadrature(ebm.Boltzmann(away)).value
    assert wanted.log_z() - 1.0 < log_z < wanted.log_z() + weight * ceiling
    far = tensor([[100.0], [-100.0]])
    assert bool(((wanted - avoided)(far) < -1000).all())  # ever more likely
    torch.testing.assert_close(away(far), wanted(far) - weight * ceiling)
    near = tensor([[1.0], [0.9], [1.1]])
    exact = ceiling - (1 + (ceiling - avoided(near)).exp()).log()
    torch.testing.assert_close(away(near), wanted(near) - weight * exact)
    high = Without(wanted, avoided, ceiling=40.0)
    torch.testing.assert_close(high(near), (wanted - avoided)(near), rtol=0, atol=1e-9)


def test_negation_wants_two_energies_of_one_event():
    with pytest.raises(ValueError, match="share event_shape"):
        Without(Gaussian(tensor([0.0]), 1.0), Gaussian(torch.zeros(2), 1.0), 3.0)
    with pytest.raises(ValueError, match="ceiling must be positive and finite, got inf"):
        Without(Gaussian(tensor([0.0]), 1.0), Gaussian(tensor([0.0]), 1.0), math.inf)
    net = MLP((1,), (4,))
    assert len(list(Without(Gaussian(tensor([0.0]), 1.0), net, 3.0).parameters())) == len(
        list(net.parameters())
    )
