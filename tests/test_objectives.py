"""Objectives converge where theory says, under SVI as in a bare loop."""

import gc
import math
import pickle
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from laws import assert_close, assert_mean
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoNormal
from torch import nn, tensor
from torch.distributions import constraints

import pyro_ebm as ebm
from pyro_ebm.energies import MLP, Energy
from pyro_ebm.kernels import HMC, MALA, ULA
from pyro_ebm.objectives import (
    Adversarial,
    ConditionalNoiseContrastive,
    ContrastiveDivergence,
    DenoisingScoreMatching,
    EnergyDiscrepancy,
    FlowContrastive,
    ImprovedCD,
    Jarzynski,
    MaximumLikelihood,
    NoiseContrastive,
    PersistentCD,
    ScoreMatching,
    ShortRun,
    SlicedScoreMatching,
)

REPLICATES = 32


@pytest.mark.parametrize(
    "objective", [MaximumLikelihood(), PersistentCD(MALA(step_size=0.1), num_chains=4)]
)
def test_energy_that_knows_its_log_z_moves_by_its_log_p(objective):
    """Without a word of the user about its parameters: one step down the closed gradient."""
    loc, precision = nn.Parameter(tensor([1.0, -2.0])), tensor([0.5, 3.0])
    p = ebm.Boltzmann(ebm.energies.Gaussian(loc, precision))

    def model(x):
        with pyro.plate("data", len(x)):
            pyro.sample("x", p, obs=x)

    x = torch.randn(30, 2)
    expected = loc.detach() - 0.01 * (precision * (loc.detach() - x)).sum(0)
    SVI(model, ebm.no_guide, pyro.optim.SGD({"lr": 0.01}), objective).step(x)
    torch.testing.assert_close(loc.detach(), expected)


class Quadratic(Energy):
    """E(x) = lambda x^2 / 2 with a learnable lambda, and no word about its log Z."""

    def __init__(self, precision=1.0):
        super().__init__(())
        self.precision = nn.Parameter(tensor(precision))

    def forward(self, x):
        return 0.5 * self.precision * x.square()


class Skewed(Energy):
    """E(x) = a (x - loc)^2 / 2 + b softplus(x): no reflection leaves it as it is."""

    def __init__(self):
        super().__init__((1,))
        self.weights = nn.Parameter(tensor([1.0, 0.3, 0.5]))

    def forward(self, x):
        a, loc, b = self.weights
        return (0.5 * a * (x - loc).square() + b * nn.functional.softplus(2 * x)).squeeze(-1)


def converged_precisions(objective, variance, num_steps=250, num_rows=512):
    """Fits lambda to N(0, variance) in independent replicates, one per column of the batch."""
    precision = nn.Parameter(torch.full((REPLICATES,), 0.8 / variance))
    boltzmann = ebm.Boltzmann(lambda x: 0.5 * precision * x.square(), event_shape=())
    boltzmann = boltzmann.expand([num_rows, REPLICATES])
    optimizer = torch.optim.SGD([precision], lr=1.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda t: 1 / (1 + t / 20) / variance)
    for _ in range(num_steps):
        x = math.sqrt(variance) * torch.randn(num_rows, REPLICATES)
        optimizer.zero_grad()
        (-objective.surrogate(boltzmann, x).mean(0).sum()).backward()
        optimizer.step()
        schedule.step()
    return precision.detach()


@pytest.mark.parametrize("num_steps", [1, 4])
@pytest.mark.parametrize(
    ("variance", "step_size"), [(1.0, 0.1), (1.0, 0.4), (2.0, 0.1), (0.5, 0.1)]
)
def test_cd_with_ula_converges_to_its_biased_fixed_point(variance, step_size, num_steps):
    objective = ContrastiveDivergence(ULA(step_size=step_size), num_steps=num_steps)
    precisions = converged_precisions(objective, variance)
    assert_mean(precisions, (1 - math.sqrt(1 - 2 * step_size / variance)) / step_size)


@pytest.mark.parametrize(
    "kernel", [MALA(step_size=0.4), HMC(step_size=0.7, num_steps=2)], ids=["MALA", "HMC"]
)
def test_cd_with_an_exact_kernel_converges_to_maximum_likelihood(kernel):
    precisions = converged_precisions(ContrastiveDivergence(kernel, num_steps=2), 2.0)
    assert_mean(precisions, 0.5)


def test_dsm_converges_to_the_law_of_the_noisy_data():
    precisions = converged_precisions(DenoisingScoreMatching(math.sqrt(0.5)), 2.0)
    assert_mean(precisions, 0.4)


def test_dsm_has_the_closed_form_gradient():
    # J = sigma^2 E|-lambda (x + sigma xi) + xi/sigma|^2 / 2 and so, with s2 = sigma^2,
    # dJ/dlambda = s2 (lambda (v + s2) - 1)
    energy = Quadratic(0.9)
    sigma, variance = 0.7, 2.0
    objective = DenoisingScoreMatching(sigma)
    values = []
    for _ in range(200):
        x = math.sqrt(variance) * torch.randn(500)
        value = -objective.surrogate(ebm.Boltzmann(energy), x).mean()
        values.append(torch.autograd.grad(value, energy.precision)[0])
    assert_mean(torch.stack(values), sigma**2 * (0.9 * (variance + sigma**2) - 1))


def test_dsm_learns_the_sign_of_a_skewed_energy():
    energy = Skewed()
    truth = Skewed()
    with torch.no_grad():
        truth.weights.copy_(tensor([2.0, -0.5, 1.5]))
    target = ebm.MCMC(MALA(ebm.Boltzmann(truth)), 50, 100, num_chains=400, disable_progbar=True)
    target.run()
    x = target.get_samples()["x"]
    objective = DenoisingScoreMatching(0.05)

    def slopes(energy):
        """The gradient on each of 40 groups of chains, with much noise."""
        groups = [rows.repeat(20, 1) for rows in x.chunk(40)]
        losses = [-objective.surrogate(ebm.Boltzmann(energy), rows).mean() for rows in groups]
        return torch.stack([torch.autograd.grad(loss, energy.weights)[0] for loss in losses])

    assert_mean(slopes(truth), torch.zeros(3))
    downhill = slopes(energy) @ (energy.weights - truth.weights).detach()
    assert downhill.mean() > 5 * downhill.std() / math.sqrt(40)  # and it leads to the truth


def exact_gradient_gap(energy, x):
    """Mean over data minus mean over the model of the energy's gradient, by quadrature."""
    grid = torch.linspace(-12, 12, 20_001).unsqueeze(-1)
    log_z = (-energy(grid)).logsumexp(0)
    return torch.autograd.grad(energy(x).mean() + log_z, energy.weights)[0]


@pytest.mark.parametrize("kind", ["cd", "pcd"])
def test_contrastive_gradient_is_that_of_the_likelihood_when_chains_are_at_the_model(kind):
    energy = Skewed()
    kernel = HMC(step_size=0.4, num_steps=6)
    objective = {
        "cd": ContrastiveDivergence(kernel, num_steps=25),
        "pcd": PersistentCD(kernel, num_chains=500, num_steps=25),
    }[kind]
    x = torch.randn(500, 1).exp()  # skewed data, far from the model
    grads = []
    for _ in range(80):
        value = -objective.surrogate(ebm.Boltzmann(energy), x).mean()
        grads.append(torch.autograd.grad(value, energy.weights)[0])
    assert_mean(torch.stack(grads[5:]), exact_gradient_gap(energy, x))


def test_pcd_with_frozen_dynamics_keeps_every_chain_in_its_slot():
    objective = PersistentCD(ULA(step_size=1e-12), num_chains=100)
    boltzmann = ebm.Boltzmann(MLP((2,), (8,)))
    objective.surrogate(boltzmann, torch.randn(32, 2))
    before = objective.chains["x"].clone()
    for _ in range(200):
        objective.surrogate(boltzmann, torch.randn(32, 2))
    after = objective.chains["x"]
    assert len(torch.unique(after, dim=0)) == 100
    torch.testing.assert_close(after, before, atol=1e-3, rtol=0)


def test_pcd_goes_on_from_where_it_was():
    objective = PersistentCD(ULA(step_size=0.1), num_chains=4000)
    boltzmann = ebm.Boltzmann(Quadratic(1.0))
    objective.surrogate(boltzmann, 5.0 + 0.1 * torch.randn(100))
    assert_close(objective.chains["x"].mean(), 5 * 0.9, 0.5 / math.sqrt(4000))
    for _ in range(9):
        objective.surrogate(boltzmann, torch.randn(100))
    assert_close(objective.chains["x"].mean(), 5 * 0.9**10, 1 / math.sqrt(4000))


def test_pcd_begins_chains_anew_with_the_given_probability():
    objective = PersistentCD(ULA(step_size=1e-12), num_chains=4000, reinit_prob=0.2)
    boltzmann = ebm.Boltzmann(MLP((2,), (8,)))
    first = 3 + torch.randn(32, 2)
    objective.surrogate(boltzmann, first)
    before = objective.chains["x"].clone()
    objective.surrogate(boltzmann, torch.randn(32, 2))
    anew = ((objective.chains["x"] - before).abs() > 1e-3).any(-1)
    assert_mean(anew, 0.2)
    assert_mean(objective.chains["x"][anew], first.mean(0))


def test_an_evaluation_leaves_parameters_and_chains_where_they_are():
    energy = MLP((2,), (8,))
    objective = PersistentCD(MALA(step_size=0.1), num_chains=16)
    svi = SVI(model_of(energy), ebm.no_guide, pyro.optim.Adam({"lr": 0.01}), objective)
    x = torch.randn(20, 2)
    svi.step(x)
    chains = objective.chains["x"].clone()
    weights = [p.detach().clone() for p in energy.parameters()]
    assert math.isfinite(svi.evaluate_loss(x))
    assert torch.equal(objective.chains["x"], chains)
    assert all(map(torch.equal, weights, energy.parameters()))


def model_of(energy, subsample_size=None):
    def model(x):
        with pyro.plate("data", len(x), subsample_size=subsample_size) as i:
            pyro.sample("x", ebm.Boltzmann(energy), obs=x[i])

    return model


class GaussianPlayer(nn.Module):
    """A diagonal Gaussian that learns beside the energy."""

    def __init__(self):
        super().__init__()
        self.loc = nn.Parameter(torch.zeros(2))
        self.log_scale = nn.Parameter(torch.zeros(2))

    def forward(self):
        return dist.Normal(self.loc, self.log_scale.exp()).to_event(1)


OBJECTIVES = {
    "cd": lambda: ContrastiveDivergence(MALA(step_size=0.1), num_steps=2),
    "cd in pairs": lambda: ContrastiveDivergence(MALA(step_size=0.1), 2, antithetic=True),
    "pcd": lambda: PersistentCD(MALA(step_size=0.1), num_chains=50, num_steps=2),
    "dsm": lambda: DenoisingScoreMatching(0.2),
    "dsm in pairs": lambda: DenoisingScoreMatching(0.2, antithetic=True),
    "ml": lambda: MaximumLikelihood(),
    "short run": lambda: ShortRun(MALA(step_size=0.1), num_steps=2),
    "improved cd": lambda: ImprovedCD(ULA(step_size=0.1), num_steps=2),
    "jarzynski": lambda: Jarzynski(ULA(step_size=0.1), num_chains=50),
    "sm": lambda: ScoreMatching(),
    "ssm": lambda: SlicedScoreMatching(num_projections=2),
    "nce": lambda: NoiseContrastive(dist.Normal(torch.zeros(2), 2.0).to_event(1), ratio=2),
    "cnce": lambda: ConditionalNoiseContrastive(noise_scale=0.5, num_noise=2),
    "flow": lambda: FlowContrastive(GaussianPlayer()),
    "adversarial": lambda: Adversarial(GaussianPlayer(), num_samples=50),
    "ed": lambda: EnergyDiscrepancy(noise_scale=0.5, num_noise=3),
}


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_registers_an_energy_that_the_model_did_not(objective):
    energy = MLP((2,), (8,))
    before = [p.detach().clone() for p in energy.parameters()]
    svi = SVI(
        model_of(energy), ebm.no_guide, pyro.optim.Adam({"lr": 0.01}), OBJECTIVES[objective]()
    )
    svi.step(torch.randn(20, 2))
    assert any(name.startswith("x.energy$$$") for name in pyro.get_param_store())
    moved = [not torch.equal(a, b) for a, b in zip(before, energy.parameters(), strict=True)]
    assert any(moved)
    after_one = [p.detach().clone() for p in energy.parameters()]
    svi.step(torch.randn(20, 2))
    assert any(not torch.equal(a, b) for a, b in zip(after_one, energy.parameters(), strict=True))


@pytest.mark.parametrize("batch", [(), (3,), (2, 3)])
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_surrogate_is_finite_of_batch_shape_and_reaches_the_energy(objective, batch):
    if objective == "improved cd" and not batch:
        pytest.skip("it measures the distances of chains, and there is one")
    energy = MLP((2,), (8,))
    value = OBJECTIVES[objective]().surrogate(ebm.Boltzmann(energy), torch.randn(*batch, 2))
    assert value.shape == batch
    assert bool(value.isfinite().all())
    grads = torch.autograd.grad(value.sum(), list(energy.parameters()), materialize_grads=True)
    assert all(bool(grad.any()) for grad in grads[:-1])  # all but the last bias, a constant


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_an_evaluation_without_gradients_is_finite(objective):
    made = OBJECTIVES[objective]()
    with torch.no_grad():
        assert math.isfinite(made.loss(model_of(MLP((2,), (8,))), ebm.no_guide, torch.randn(9, 2)))


def test_keeps_the_name_that_the_model_registered():
    energy = MLP((2,), (8,))
    inner = model_of(energy)

    def model(x):
        pyro.module("mine", energy)
        inner(x)

    svi = SVI(model, ebm.no_guide, pyro.optim.Adam({"lr": 0.01}), OBJECTIVES["cd"]())
    svi.step(torch.randn(20, 2))
    svi.step(torch.randn(20, 2))
    assert {name.split("$$$")[0] for name in pyro.get_param_store()} == {"mine"}


def loss_gradient(model, x, objective, energy):
    objective.loss_and_grads(model, ebm.no_guide, x)
    grads = torch.cat([p.grad.flatten() for p in energy.parameters()])
    energy.zero_grad()
    return grads


@pytest.mark.parametrize("objective", ["cd", "dsm"])
def test_subsampling_is_unbiased(objective):
    energy = Skewed()
    x = torch.randn(60, 1).exp()
    full, part = [], []
    for _ in range(400):
        full.append(loss_gradient(model_of(energy), x, OBJECTIVES[objective](), energy))
        part.append(loss_gradient(model_of(energy, 20), x, OBJECTIVES[objective](), energy))
    full, part = torch.stack(full), torch.stack(part)
    standard_error = (full.var(0) / 400 + part.var(0) / 400).sqrt()
    assert_close(part.mean(0), full.mean(0), standard_error)


def test_to_event_plates_and_masks_reach_the_surrogate():
    energy = Quadratic(1.0)
    x = torch.randn(6, 4)
    mask = tensor([True, False, True, True])
    objective = ContrastiveDivergence(
        ULA(step_size=1e-12)
    )  # negatives are the data: zero surrogate

    def model(x):
        with pyro.plate("rows", 6), poutine.mask(mask=tensor([True, False] * 3)):
            pyro.sample("x", ebm.Boltzmann(energy).expand([4]).mask(mask).to_event(1), obs=x)

    assert abs(objective.loss(model, ebm.no_guide, x)) < 1e-4

    class Constant(ebm.objectives.Objective):
        def surrogate(self, boltzmann, x, name="x"):
            return energy.precision * torch.ones(x.shape)

    assert Constant().loss(model, ebm.no_guide, x) == -9  # 3 of 6 rows, 3 of 4 columns


def test_leaves_normalized_and_ordinary_sites_to_the_elbo():
    loc = nn.Parameter(tensor([0.3]))
    exact = ebm.energies.Gaussian(loc, 2.0)

    def model(x):
        pyro.module("exact", exact)
        with pyro.plate("data", len(x)):
            pyro.sample("x", ebm.Boltzmann(exact), obs=x)
            pyro.sample("y", dist.Laplace(0.0, 1.0), obs=x[:, 0])

    x = torch.randn(10, 1)
    expected = Trace_ELBO().loss(model, ebm.no_guide, x)
    for make in OBJECTIVES.values():
        assert make().loss(model, ebm.no_guide, x) == pytest.approx(expected)


def test_an_energy_prior_with_a_guide_learns_both():
    """z ~ exp(-lambda z^2 / 2), x | z ~ N(z, 1): N(0, 1 + 1/lambda) must be learned."""
    variance = 3.0  # so lambda = 1/2, and the exact posterior is N(2x/3, 2/3)
    energy = Quadratic(1.0)
    x = math.sqrt(variance) * torch.randn(4000)
    x = x * (variance / x.square().mean()).sqrt()

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", ebm.Boltzmann(energy))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        slope = pyro.param("slope", tensor(0.3))
        scale = pyro.param("scale", tensor(1.0), constraint=constraints.positive)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(slope * x, scale))

    objective = PersistentCD(HMC(step_size=0.7, num_steps=4), num_chains=4000, num_steps=2)
    optimizer = pyro.optim.ExponentialLR(
        {"optimizer": torch.optim.Adam, "optim_args": {"lr": 0.03}, "gamma": 0.995}
    )
    svi = SVI(model, guide, optimizer, objective)
    tail = []
    for i in range(700):
        svi.step(x)
        optimizer.step()
        if i >= 600:
            store = pyro.get_param_store()
            tail.append(
                torch.stack(
                    [
                        energy.precision.detach(),
                        store["slope"].detach(),
                        store["scale"].detach() ** 2,
                    ]
                )
            )
    # The last iterates depend on one another: their spread, undivided, is a safe error.
    spread = torch.stack(tail)
    assert_close(spread.mean(0), tensor([0.5, 2 / 3, 2 / 3]), spread.std(0) + 0.004)


def test_dsm_cannot_serve_a_latent_and_says_so():
    energy = Quadratic(1.0)

    def model(x):
        pyro.sample("z", ebm.Boltzmann(energy))

    svi = SVI(model, AutoNormal(model), pyro.optim.Adam({}), DenoisingScoreMatching(0.1))
    with pytest.raises(ValueError, match="cannot serve the latent site 'z'"):
        svi.step(torch.zeros(1))


def test_two_sites_keep_their_chains_apart():
    first, second = Quadratic(1.0), Quadratic(4.0)

    def model(x):
        with pyro.plate("data", len(x)):
            pyro.sample("a", ebm.Boltzmann(first), obs=x)
            pyro.sample("b", ebm.Boltzmann(second), obs=x)

    objective = PersistentCD(HMC(step_size=0.5, num_steps=5), num_chains=4000, num_steps=4)
    for _ in range(10):
        objective.differentiable_loss(model, ebm.no_guide, torch.randn(5))
    for name, variance in (("a", 1.0), ("b", 0.25)):
        z = objective.chains[name]
        assert_close(z.var(), variance, variance * math.sqrt(2 / 4000))


def test_one_name_for_two_energies_is_refused():
    objective = OBJECTIVES["pcd"]()
    kept = MLP((2,), (8,))
    objective.surrogate(ebm.Boltzmann(kept), torch.randn(5, 2))
    with pytest.raises(ValueError, match="chains of 'x' belong to another energy"):
        objective.surrogate(ebm.Boltzmann(MLP((2,), (8,))), torch.randn(5, 2))


class Conditional(Energy):
    """E(x; y) = (x - w y)^2."""

    def __init__(self):
        super().__init__(())
        self.slope = nn.Parameter(tensor(0.5))

    def forward(self, x, y=0.0):
        return (x - self.slope * y).square()


@pytest.mark.parametrize("objective", ["cd", "dsm", "dsm in pairs"])
def test_learns_a_conditional_energy(objective):
    energy = Conditional()
    y = torch.randn(500)
    x = -1.5 * y + math.sqrt(0.5) * torch.randn(500)

    def model(x, y):
        with pyro.plate("data", len(x)):
            p = ebm.Boltzmann(partial(energy, y=y), event_shape=())
            pyro.sample("x", p, obs=x)

    svi = SVI(model, ebm.no_guide, pyro.optim.Adam({"lr": 0.05}), OBJECTIVES[objective]())
    tail = []
    for i in range(500):
        svi.step(x, y)
        if i >= 300:
            tail.append(energy.slope.item())
    least_squares = (x * y).sum() / y.square().sum()
    assert_close(sum(tail) / len(tail), least_squares, 0.5 * tensor(tail).std())


def test_pcd_refuses_a_conditional_energy():
    p = ebm.Boltzmann(partial(Conditional(), y=torch.ones(5)), event_shape=())
    with pytest.raises(ValueError, match="is conditional"):
        OBJECTIVES["pcd"]().surrogate(p, torch.randn(5))


class Additive(Energy):
    """An energy of x, and of a label by a table of weights that begins at zero."""

    def __init__(self, uses_label):
        super().__init__(())
        self.table = nn.Parameter(torch.zeros(3))
        self.uses_label = uses_label

    def forward(self, x, label, unused=None):
        return x.square() / 2 + (self.table[label] * x if self.uses_label else 0)


def test_an_energy_that_ignores_its_condition_is_refused():
    label, more = tensor([0, 1, 1, 2, 0]), torch.randn(5)
    objective = ContrastiveDivergence(MALA(step_size=0.1))

    def surrogate(uses_label, *args, **kwargs):
        energy = partial(Additive(uses_label), *args, **kwargs)
        return objective.surrogate(ebm.Boltzmann(energy, event_shape=()), torch.randn(5))

    surrogate(True, label=label)  # weights of zero are no sign of disuse
    surrogate(False, label=torch.ones(5, dtype=torch.long))  # and neither is a label of one kind
    with pytest.raises(ValueError, match="energy of site 'x' ignores its condition label"):
        surrogate(False, label=label)
    with pytest.raises(ValueError, match="ignores its condition unused"):
        surrogate(True, label=label, unused=more)


def test_an_energy_at_the_address_of_a_good_one_is_another_one():
    label, x = tensor([0, 1, 1, 2, 0]), torch.randn(5)
    objective = ContrastiveDivergence(MALA(step_size=0.1))

    def surrogate(energy):
        objective.surrogate(ebm.Boltzmann(partial(energy, label=label), event_shape=()), x)

    addresses, reused = set(), 0
    while reused < 3:
        good = Additive(uses_label=True)
        addresses.add(id(good))
        surrogate(good)
        del good
        gc.collect()
        bad = Additive(uses_label=False)
        reused += id(bad) in addresses
        with pytest.raises(ValueError, match="ignores its condition label"):
            surrogate(bad)


@pytest.mark.parametrize("objective", ["cd", "pcd", "dsm"])
def test_learns_on_a_constrained_support(objective):
    """Beta(a, b) with learnable a, b: score and likelihood meet only with the right Jacobian."""
    truth = tensor([2.0, 4.0])

    class BetaEnergy(Energy):
        def __init__(self):
            super().__init__((), constraints.unit_interval)
            self.shape = nn.Parameter(tensor([1.0, 1.0]))

        def forward(self, x):
            a, b = self.shape
            return -(a - 1) * x.log() - (b - 1) * (1 - x).log()

    energy = BetaEnergy()
    law = dist.Beta(truth[0], truth[1])
    objective = {
        "cd": lambda: ContrastiveDivergence(MALA(step_size=0.3), num_steps=5),
        "pcd": lambda: PersistentCD(MALA(step_size=0.3), num_chains=500, num_steps=5),
        "dsm": lambda: DenoisingScoreMatching(0.1),
    }[objective]()
    optimizer = torch.optim.Adam(energy.parameters(), lr=0.02)
    tail = []
    for i in range(600):
        optimizer.zero_grad()
        (-objective.surrogate(ebm.Boltzmann(energy), law.sample((500,))).mean()).backward()
        optimizer.step()
        if i >= 400:
            tail.append(energy.shape.detach().clone())
    spread = torch.stack(tail)
    # DSM learns the noisy law of logit x, a bias of order sigma^2 = 0.01 in relative precision.
    assert_close(spread.mean(0), truth, 0.5 * spread.std(0) + 0.01 * truth)


def test_dsm_with_many_levels_calls_the_energy_with_its_level():
    class Levels(Energy):
        def __init__(self):
            super().__init__(())
            self.precision = nn.Parameter(torch.ones(2))

        def forward(self, x, sigma=None):
            return 0.5 * torch.where(sigma < 0.5, *self.precision) * x.square()

    energy = Levels()
    objective = DenoisingScoreMatching([1.0, 0.25])
    optimizer = torch.optim.Adam(energy.parameters(), lr=0.02)
    tail = []
    for i in range(600):
        optimizer.zero_grad()
        (-objective.surrogate(ebm.Boltzmann(energy), torch.randn(500)).mean()).backward()
        optimizer.step()
        if i >= 400:
            tail.append(energy.precision.detach().clone())
    spread = torch.stack(tail)
    assert_close(spread.mean(0), tensor([1 / 1.0625, 0.5]), 0.5 * spread.std(0))


def test_warns_of_a_closure_whose_parameters_pyro_does_not_know():
    energy = MLP((2,), (8,))

    def model(x):
        with pyro.plate("data", len(x)):
            pyro.sample("x", ebm.Boltzmann(lambda x: energy(x), event_shape=(2,)), obs=x)

    svi = SVI(model, ebm.no_guide, pyro.optim.Adam({"lr": 0.01}), OBJECTIVES["cd"]())
    with pytest.warns(UserWarning, match="energy of site 'x' is a plain function"):
        svi.step(torch.randn(5, 2))


def test_a_closure_over_pyro_params_learns():
    def model(x):
        b = pyro.param("b", tensor(1.0), constraint=constraints.positive)
        with pyro.plate("data", len(x)):
            p = ebm.Boltzmann(lambda x: 0.5 * b * x.square(), event_shape=())
            pyro.sample("x", p, obs=x)

    objective = ContrastiveDivergence(HMC(step_size=0.5, num_steps=5), num_steps=2)
    svi = SVI(model, ebm.no_guide, pyro.optim.Adam({"lr": 0.02}), objective)
    x = 0.5 * torch.randn(1000)
    tail = []
    for i in range(500):
        svi.step(x)
        if i >= 300:
            tail.append(pyro.param("b").item())
    assert_close(sum(tail) / len(tail), 1 / x.square().mean(), tensor(tail).std())


class Precision(Energy):
    """An energy without parameters of its own."""

    def forward(self, x, b=1.0):
        return 0.5 * b * x.square()


@pytest.mark.parametrize("of", ["temperature", "condition"])
def test_learns_what_the_energy_is_given(of):
    energy, data = Precision(), 0.5 + torch.randn(50)

    def model(x):
        b = pyro.param("b", tensor(3.0), constraint=constraints.positive)
        given = partial(energy, b=b), {"event_shape": ()}
        fn, told = given if of == "condition" else (energy, {"temperature": 1 / b})
        with pyro.plate("data", len(x)):
            pyro.sample("x", ebm.Boltzmann(fn, **told), obs=x)

    svi = SVI(model, ebm.no_guide, pyro.optim.Adam({"lr": 0.05}), MaximumLikelihood())
    for _ in range(250):
        svi.step(data)
    torch.testing.assert_close(pyro.param("b"), 1 / data.square().mean(), rtol=1e-4, atol=0.0)


def test_persistent_chains_do_not_serve_a_temperature_for_each_datum():
    p = ebm.Boltzmann(MLP((2,), (8,)), temperature=torch.rand(5) + 0.5)
    with pytest.raises(ValueError, match=r"4 chains .* 'x' has 5 temperatures"):
        PersistentCD(MALA(step_size=0.1), num_chains=4).surrogate(p, torch.randn(5, 2))


def test_a_mixture_of_energies_is_refused():
    def model(x):
        parts = ebm.Boltzmann(MLP((2,), (8,))).expand([2])
        with pyro.plate("data", len(x)):
            weights = dist.Categorical(tensor([0.3, 0.7]))
            pyro.sample("x", dist.MixtureSameFamily(weights, parts), obs=x)

    svi = SVI(model, ebm.no_guide, pyro.optim.Adam({}), ScoreMatching())
    with pytest.raises(ValueError, match="site 'x' is a MixtureSameFamily of energies"):
        svi.step(torch.ones(3, 2))


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_is_pickled_after_use(objective):
    energy, learner = MLP((2,), (8,)), OBJECTIVES[objective]()
    learner.surrogate(ebm.Boltzmann(energy), torch.ones(5, 2))
    again, other = pickle.loads(pickle.dumps((learner, energy)))
    random = torch.get_rng_state()
    here = learner.surrogate(ebm.Boltzmann(energy), torch.ones(5, 2))
    torch.set_rng_state(random)
    assert torch.equal(again.surrogate(ebm.Boltzmann(other), torch.ones(5, 2)), here)


def test_works_as_an_elbo_module_with_a_torch_optimizer():
    energy = MLP((2,), (8,))

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.energy = energy

        def forward(self, x):
            model_of(self.energy)(x)

    loss = OBJECTIVES["pcd"]()(Model(), nn.Module())
    optimizer = torch.optim.Adam(energy.parameters(), lr=0.01)
    before = energy.network[1].weight.detach().clone()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nn.Module, "forward", lambda self, *args: None)
        loss(torch.randn(10, 2)).backward()
    optimizer.step()
    assert not torch.equal(before, energy.network[1].weight)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_is_repeatable_from_a_seed(objective):
    def fit():
        pyro.set_rng_seed(7)
        pyro.clear_param_store()
        energy = MLP((2,), (8,))
        svi = SVI(model_of(energy), ebm.no_guide, pyro.optim.Adam({}), OBJECTIVES[objective]())
        return [svi.step(torch.ones(5, 2)) for _ in range(3)]

    assert fit() == fit()


@pytest.mark.parametrize(
    ("use", "message"),
    [
        (
            lambda o, p: o.surrogate(p, torch.full((3, 2), torch.nan)),
            "data of site 'x'.*not finite",
        ),
        (lambda o, p: o.surrogate(p, torch.empty(0, 2)), "data of site 'x'.*empty"),
        (lambda o, p: o.surrogate(p.energy, torch.ones(3, 2)), r"give Boltzmann\(energy\)"),
    ],
)
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_refuses_bad_data(objective, use, message):
    with pytest.raises(ValueError, match=message):
        use(OBJECTIVES[objective](), ebm.Boltzmann(MLP((2,), (8,))))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: ContrastiveDivergence(MALA(), num_steps=0),
            "num_steps must be at least 1, got 0",
        ),
        (lambda: PersistentCD(MALA(), num_chains=0), "num_chains must be at least 1, got 0"),
        (lambda: PersistentCD(MALA(), 5, reinit_prob=1.5), "reinit_prob must be between 0 and 1"),
        (lambda: DenoisingScoreMatching(0.0), "sigma must be positive and finite, got 0.0"),
        (lambda: DenoisingScoreMatching([1.0, -0.1]), "sigma must be positive"),
    ],
)
def test_refuses_bad_arguments(make, message):
    with pytest.raises(ValueError, match=message):
        make()
