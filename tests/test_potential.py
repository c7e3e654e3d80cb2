"""A potential has the value, gradient and Jacobian of its target, for all chains at once."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from cases import ENERGIES_EXACT
from pyro.infer.mcmc.util import initialize_model
from pyro.nn import PyroModule, PyroSample
from torch import tensor
from torch.distributions import constraints

import pyro_ebm as ebm
from pyro_ebm.batching import batched
from pyro_ebm.energies import Whitened
from pyro_ebm.engine import trace
from pyro_ebm.potential import Potential


def regression():
    x = torch.linspace(-1.0, 2.0, 7)
    slope = pyro.sample("slope", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    scale = pyro.sample("scale", dist.Gamma(2.0, 1.0))
    with pyro.plate("data", 7):
        pyro.sample("y", dist.Normal(slope[..., 0] + slope[..., 1] * x, scale), obs=x.square())


def shares():
    p = pyro.sample("p", dist.Dirichlet(tensor([1.0, 2.0, 3.0])))
    u = pyro.sample("u", dist.Uniform(-1.0, 2.0))
    with pyro.plate("draws", 4):
        w = pyro.sample("w", dist.Beta(2.0, 3.0))
    pyro.sample("y", dist.Normal(p[..., 0] + u + w.sum(-1), 0.5), obs=tensor(1.0))


def clusters():
    x = tensor([-1.0, 0.2, 2.0, 2.5])
    weights = pyro.sample("weights", dist.Dirichlet(tensor([1.0, 2.0])))
    with pyro.plate("components", 2):
        locs = pyro.sample("locs", dist.Normal(0.0, 3.0))
    with pyro.plate("data", 4):
        k = pyro.sample("k", dist.Categorical(weights))
        pyro.sample("x", dist.Normal(locs[k], 1.0), obs=x)


def smooth():
    with pyro.plate("rows", 3):
        z = pyro.sample("z", ebm.Boltzmann(ebm.energies.Banana(1.0, 0.3)))
    ebm.energy_factor("near", lambda z: (z[..., 0] - 1).square().sum(-1), z)


class Network(PyroModule):
    """Its priors are made and expanded once, before any model runs."""

    def __init__(self):
        super().__init__()
        self.layer = PyroModule[torch.nn.Linear](2, 1, bias=False, dtype=torch.float64)
        zero = torch.zeros((), dtype=torch.float64)
        self.layer.weight = PyroSample(dist.Normal(zero, 2.0).expand([1, 2]).to_event(2))

    def forward(self):
        x = torch.linspace(-1.0, 2.0, 8).reshape(4, 2)
        mean = self.layer(x).squeeze(-1)
        with pyro.plate("data", 4):
            pyro.sample("y", dist.Normal(mean, 0.5), obs=x[:, 0].exp())


def counts():
    shares = pyro.sample("shares", dist.Dirichlet(tensor([1.0, 2.0, 3.0])))
    pyro.sample("y", dist.Multinomial(9, shares), obs=tensor([0.0, 7.0, 2.0]))


def hidden_chain():
    locs = pyro.sample("locs", dist.Normal(torch.zeros(2), 3.0).to_event(1))
    moves = tensor([[0.9, 0.1], [0.3, 0.7]]).log()
    law = dist.DiscreteHMM(tensor([0.5, 0.5]).log(), moves, dist.Normal(locs, 1.0))
    pyro.sample("y", law, obs=tensor([-1.0, 0.2, 2.0, 2.5]))


Z01 = dist.Normal(0.0, 1.0)
MODELS = [regression, shares, clusters, smooth, counts, hidden_chain, Network()]


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.filterwarnings("error::UserWarning")
def test_equals_pyros_own_potential(model):
    potential = Potential.of(model)
    z = potential.initialize(6)
    value, grad = potential.value_and_grad(z)
    nesting = 1
    _, own, _, _ = initialize_model(model, max_plate_nesting=nesting)
    for row, v, g in zip(z, value, grad, strict=True):
        row = row.clone().requires_grad_()
        expected = own(potential.unflatten(row))
        torch.testing.assert_close(v, expected.detach())
        torch.testing.assert_close(g, torch.autograd.grad(expected, row)[0])


@pytest.mark.parametrize("name", ENERGIES_EXACT)
def test_is_the_energy_on_the_real_line(name):
    energy = ENERGIES_EXACT[name]()
    if isinstance(energy, Whitened):
        pytest.skip("its own line is not that of x")
    potential = Potential.of(ebm.Boltzmann(energy, temperature=2.0))
    x = energy.sample(5)
    value, grad = potential.value_and_grad(potential.unconstrain({"x": x}))
    torch.testing.assert_close(value, energy(x) / 2)
    torch.testing.assert_close(grad.reshape(x.shape), energy.grad(x) / 2)


CONSTRAINED = {
    "interval": (lambda: dist.Beta(2.0, 5.0), constraints.unit_interval),
    "positive": (lambda: dist.Gamma(3.0, 2.0), constraints.positive),
    "simplex": (lambda: dist.Dirichlet(tensor([1.0, 2.0, 4.0])), constraints.simplex),
    "box": (
        lambda: dist.Beta(tensor([2.0, 1.5]), tensor([5.0, 1.0])).to_event(1),
        constraints.independent(constraints.unit_interval, 1),
    ),
}


def constrained(name):
    law, support = CONSTRAINED[name]
    law = law()
    boltzmann = ebm.Boltzmann(
        lambda x: -law.log_prob(x), event_shape=law.event_shape, support=support
    )
    return law, boltzmann


@pytest.mark.parametrize("name", CONSTRAINED)
def test_carries_the_jacobian_of_a_constrained_support(name):
    _, boltzmann = constrained(name)
    estimate = ebm.logz.quadrature(boltzmann)
    assert abs(estimate.value) < 1e-4  # the law is normalised, so a lost Jacobian shows as log Z


@pytest.mark.parametrize("name", CONSTRAINED)
def test_round_trips_between_spaces(name):
    law, boltzmann = constrained(name)
    potential = Potential.of(boltzmann)
    x = law.sample((9,))
    z = potential.unconstrain({"x": x})
    torch.testing.assert_close(potential.constrain(z)["x"], x)
    torch.testing.assert_close(potential.flatten(potential.unflatten(z)), z)


def test_a_batch_is_one_point_of_a_chain_or_many_chains():
    energy = ebm.energies.Banana(1.0, 0.3)
    x = energy.sample(3)
    joint = Potential.of(ebm.Boltzmann(energy).expand([3]))
    apart = Potential.of_batch(ebm.Boltzmann(energy), (3,), x)
    assert joint.dim == 6
    torch.testing.assert_close(joint.value_and_grad(x.reshape(1, 6))[0], energy(x).sum()[None])
    torch.testing.assert_close(apart.value_and_grad(x)[0], energy(x))


def test_a_model_that_cannot_be_mapped_runs_chain_by_chain_with_one_warning():
    def branching():
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        scale = 1.0 if x > 0 else 3.0
        pyro.sample("y", dist.Normal(x, scale), obs=tensor(0.5))

    potential = Potential.of(branching)
    z = tensor([[-1.0], [0.0], [2.0]])
    with pytest.warns(UserWarning, match="one chain after the other, because vmap stopped at"):
        value, grad = potential.value_and_grad(z)
    scale = torch.where(z > 0, 1.0, 3.0)
    expected = -(dist.Normal(0.0, 1.0).log_prob(z) + dist.Normal(z, scale).log_prob(tensor(0.5)))
    torch.testing.assert_close(value, expected[:, 0])
    torch.testing.assert_close(grad, z + (z - 0.5) / scale**2)
    potential.value_and_grad(z)  # no second warning


def test_reads_plates_as_dimensions():
    by_name = {site.name: site for site in Potential.of(clusters).sites}
    assert by_name["locs"].dims == ("components",)
    assert by_name["weights"].dims == ()


def test_reads_nested_plates_in_the_order_of_their_dimensions():
    def nested():
        with pyro.plate("rows", 3, dim=-2), pyro.plate("columns", 2, dim=-1):
            pyro.sample("x", dist.Normal(0.0, 1.0))

    (site,) = Potential.of(nested).sites
    assert site.shape == (3, 2)
    assert site.dims == ("rows", "columns")


def test_starts_an_improper_prior():
    def flat():
        b = pyro.sample("b", dist.ImproperUniform(constraints.real, (), (2,)))
        pyro.sample("y", dist.Normal(b.sum(-1), 1.0), obs=tensor(1.0))

    z = Potential.of(flat).initialize(50)
    assert z.shape == (50, 2)
    assert z.abs().max() <= 2


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Potential.of(), "exactly one target"),
        (lambda: Potential.of(smooth, potential_fn=lambda z: z), "exactly one target"),
        (lambda: Potential.of(potential_fn=lambda z: z["a"]), "give initial_params"),
        (lambda: Potential.of(lambda: None), "no continuous latent site"),
        (
            lambda: Potential.of(
                potential_fn=lambda p: p["a"] * torch.inf, initial_params={"a": torch.ones(3)}
            ).initialize(3),
            "3 of 3 chains found no start",
        ),
    ],
)
def test_refuses_targets_it_cannot_serve(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_what_a_tracer_cannot_follow_is_no_fault_of_vmap():
    ways, most = [], torch.nn.Parameter(torch.arange(3.0))

    def widest(x):
        ways.append(torch._C._functorch.is_batchedtensor(x))
        return x[: int(most.max())].sum()

    fn, x = batched(widest), torch.ones(5, 4)
    with pytest.warns(UserWarning, match="this run stays eager"):
        trace(fn, (x,))
    assert torch.equal(fn(x), torch.full((5,), 2.0))
    assert ways == [True] * len(ways)


def test_a_function_that_vmap_refuses_runs_row_by_row():
    fn = batched(lambda x, y: (x * y, x + y) if x > 0 else (x, y))
    with pytest.warns(UserWarning, match="one chain after the other"):
        product, total = fn(tensor([2.0, -1.0]), tensor([3.0, 4.0]))
    assert product.tolist() == [6.0, -1.0]
    assert total.tolist() == [5.0, 4.0]


def test_a_chain_that_went_astray_is_told_nan_and_no_error():
    potential = Potential.of(Network())
    z = potential.initialize(3)
    z[1] = torch.nan
    value, _ = potential.value_and_grad(z)
    assert value.isnan().tolist() == [False, True, False]
    assert trace(potential.value_and_grad, (z,)).name == "graph"


def test_distributions_are_validated_again_afterwards():
    potential = Potential.of(Network())
    potential.value_and_grad(potential.initialize(3))
    with pytest.raises(ValueError, match="within the support"):
        dist.Normal(0.0, 1.0).expand([2]).log_prob(tensor([torch.nan, 0.0]))


SHOWN = tensor([True, False, True, True])


def test_what_obs_mask_leaves_open_has_its_density_everywhere():
    """Where it is masked nothing else would hold it, and chains would wander off."""
    y = tensor([1.0, 9.0, 2.0, 9.0])

    def model():
        m = pyro.sample("m", dist.Normal(0.0, 1.0))
        with pyro.plate("data", 4), pyro.poutine.mask(mask=tensor([True, True, True, False])):
            pyro.sample("y", dist.Normal(m, 2.0), obs=y, obs_mask=SHOWN)

    def by_hand(z):
        m, u = z[:, :1], z[:, 1:4]
        observed = dist.Normal(m, 2.0).log_prob(y[[0, 2]]).sum(-1)
        return -(dist.Normal(m, 2.0).log_prob(u).sum(-1) + observed + Z01.log_prob(m[:, 0]))

    with pytest.warns(UserWarning, match="'y_unobserved' takes away the density of 1 of its 4"):
        potential = Potential.of(model)
    z = potential.initialize(5).requires_grad_()
    value, grad = potential.value_and_grad(z.detach())
    expected = by_hand(z)
    torch.testing.assert_close(value, expected.detach())
    torch.testing.assert_close(grad, torch.autograd.grad(expected.sum(), z)[0])


def test_a_masked_latent_is_warned_of():
    def model():
        with pyro.plate("data", 4), pyro.poutine.mask(mask=SHOWN):
            pyro.sample("z", dist.Normal(0.0, 1.0))

    with pytest.warns(
        UserWarning, match="mask of latent 'z' takes away the density of 1 of its 4"
    ):
        Potential.of(model)


def test_a_support_that_depends_on_other_latents_is_refused():
    def model():
        high = pyro.sample("high", dist.Uniform(0.0, 1.0))
        pyro.sample("below", dist.Uniform(torch.zeros(()), high))

    with pytest.raises(ValueError, match="the support of latent 'below' depends on other latents"):
        Potential.of(model)


def test_a_latent_beneath_one_that_is_summed_out_is_a_single_one():
    weights, observed = tensor([0.2, 0.3, 0.5]), torch.linspace(0.5, 2.0, 4)

    def model():
        with pyro.plate("data", 4):
            k = pyro.sample("k", dist.Categorical(weights))
            a = pyro.sample("a", dist.LogNormal(k.to(weights), 1.0 + k))
            pyro.sample("y", dist.Normal(a, 1.0), obs=observed)

    potential = Potential.of(model)
    (site,) = potential.sites
    assert site.shape == (4,)
    assert site.dims == ("data",)
    z = torch.randn(5, 4)
    each = dist.Normal(torch.arange(3.0), torch.arange(1.0, 4.0)).log_prob(z.unsqueeze(-1))
    log_density = (weights.log() + each).logsumexp(-1)
    log_density = log_density + dist.Normal(z.exp(), 1.0).log_prob(observed)
    torch.testing.assert_close(potential.value_and_grad(z)[0], -log_density.sum(-1))


def test_a_support_that_depends_on_what_is_summed_out_is_refused():
    def model():
        k = pyro.sample("k", dist.Bernoulli(1e-9))
        pyro.sample("a", dist.Uniform(0.0, 1.0 + k))

    with pytest.raises(ValueError, match="support of latent 'a' depends on other latents"):
        Potential.of(model)


def test_an_angle_on_the_whole_line_is_warned_of():
    with pytest.warns(UserWarning, match="latent 'a' is an angle on the whole line"):
        Potential.of(lambda: pyro.sample("a", dist.VonMises(0.5, 2.0)))
