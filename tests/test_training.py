"""The average of parameters, training settings and presets."""

import copy
import math

import pyro
import pytest
import torch
from laws import assert_close
from torch import nn
from torch.distributions import constraints

import pyro_ebm as ebm
from pyro_ebm.objectives import ExponentialAverage
from pyro_ebm.zoo.ebm import EBM
from pyro_ebm.zoo.training import Training

# ----------------------------------------------------------------------- the average


def weighted_mean(values, decay):
    weights = decay ** torch.arange(len(values) - 1, -1, -1).to(values)
    return (weights.unsqueeze(-1) * values).sum(0) / weights.sum()


@pytest.mark.parametrize("decay", [0.5, 0.9, 0.999])
@pytest.mark.parametrize("num_updates", [1, 2, 30])
def test_average_is_the_weighted_mean_of_all_updates_and_of_nothing_before(decay, num_updates):
    module = nn.Linear(3, 1, bias=False)
    average = ExponentialAverage(module, decay)
    values = torch.randn(num_updates, 3)
    for value in values:
        with torch.no_grad():
            module.weight.copy_(value)
        average.update()
    with average.applied():
        torch.testing.assert_close(module.weight[0].detach(), weighted_mean(values, decay))
    assert torch.equal(module.weight[0].detach(), values[-1])
    average.assign()
    torch.testing.assert_close(module.weight[0].detach(), weighted_mean(values, decay))


def test_parameters_come_back_after_an_error():
    module = nn.Linear(2, 1)
    average = ExponentialAverage(module)
    average.update()
    nn.init.zeros_(module.weight)

    def fail_within():
        with average.applied():
            assert module.weight.any()
            raise KeyError

    with pytest.raises(KeyError):
        fail_within()
    assert not module.weight.any()


def test_store_is_averaged_in_unconstrained_space():
    pyro.param("scale", torch.tensor(1.0), constraint=constraints.positive)
    store = pyro.get_param_store()
    average = ExponentialAverage(store, decay=0.5)
    leaf = store["scale"].unconstrained()
    for value in (0.0, 3.0):
        with torch.no_grad():
            leaf.fill_(value)
        average.update()
    with average.applied():
        assert store["scale"].item() == pytest.approx(math.exp(2.0))
    assert store["scale"].item() == pytest.approx(math.exp(3.0))


def test_what_cannot_be_averaged_is_refused():
    with pytest.raises(ValueError, match="decay must be between 0 and 1, got 1"):
        ExponentialAverage(nn.Linear(1, 1), decay=1)
    with pytest.raises(ValueError, match="no parameter that requires a gradient"):
        ExponentialAverage(pyro.get_param_store())
    with pytest.raises(ValueError, match="ema must be between 0 and 1, got 2"):
        Training(ema=2)


def test_a_fitted_model_ends_with_the_average():
    """Of the parameters after each update, seen by a run of the same seed without an average."""
    x = torch.randn(100, 2)
    seen = []

    class Watched(EBM):
        def _tune(self):
            seen.append(nn.utils.parameters_to_vector(self.parameters()).detach().clone())
            return super()._tune()

    ends = []
    for ema in (None, 0.8):
        pyro.set_rng_seed(2)
        energy = ebm.energies.MLP((2,), hidden_sizes=(8,))
        model = Watched(energy, training=Training(num_steps=10, lr=0.1, ema=ema))
        model.fit(x, progress=False)
        ends.append(nn.utils.parameters_to_vector(model.parameters()).detach())
    moving = torch.stack(seen[:10])
    assert torch.equal(moving, torch.stack(seen[10:]))  # the average does not touch training
    assert torch.equal(ends[0], moving[-1])
    torch.testing.assert_close(ends[1], weighted_mean(moving, 0.8))


def test_average_lowers_the_noise_of_a_constant_rate():
    """Of a Gaussian mean learned by noisy gradients, over independent columns."""
    loc = nn.Parameter(torch.zeros(2000))
    holder = nn.ParameterList([loc])
    average = ExponentialAverage(holder, decay=0.98)
    optimizer = torch.optim.SGD([loc], lr=0.2)
    for _ in range(400):
        optimizer.zero_grad()
        (0.5 * (loc - torch.randn(2000)).square()).sum().backward()
        optimizer.step()
        average.update()
    lr, decay, keep = 0.2, 0.98, 0.8  # an AR(1) process of coefficient 0.8, averaged by 0.98
    last = lr**2 / (1 - keep**2)
    mean = last * (1 - decay) / (1 + decay) * (1 + decay * keep) / (1 - decay * keep)
    with average.applied():
        averaged = loc.detach().clone()
    for values, variance in ((loc.detach(), last), (averaged, mean)):
        assert_close(values.var(), variance, variance * math.sqrt(2 / len(values)))


# ----------------------------------------------------------------------- presets


def skewed_table(n, dim=6):
    """Columns of unlike scale, correlated, of which the last are curved."""
    mix = torch.eye(dim) + 0.5 * torch.ones(dim, dim).tril(-1)
    z = torch.randn(n, dim) @ mix.T
    z[:, -1] += z[:, 0].square()
    return z * torch.logspace(-3, 3, dim) + 10.0


PRESETS = {
    "plane": lambda: EBM.for_plane(ebm.energies.Banana(1.5, 0.5).sample(500)),
    "table": lambda: EBM.for_table(skewed_table(500)),
    "images": lambda: EBM.for_images(torch.randn(500, 1, 4, 4)),
}


@pytest.mark.parametrize("name", PRESETS)
def test_preset_trains_and_draws(name):
    model = PRESETS[name]()
    shape = model.event_shape
    x = {"plane": torch.randn(200, 2), "table": skewed_table(200)}.get(name)
    x = torch.randn(200, *shape) if x is None else x
    model.training_plan = Training(num_steps=3, ema=model.training_plan.ema)
    model.warmup_steps = model.num_draws = 5
    model.fit(x, progress=False)
    assert model.sample(7).shape == (7, *shape)
    assert all(len(record) == 3 for record in model.history.values())


@pytest.mark.parametrize("name", ["table", "images"])
def test_preset_starts_from_the_moments_of_the_data(name):
    """Chains are in the data's units: one step size accepts well, whatever the scales are."""
    model = PRESETS[name]()
    model.training_plan = Training(num_steps=1)
    x = skewed_table(500) if name == "table" else torch.randn(500, *model.event_shape)
    model.fit(x, progress=False)
    assert 0.2 < model.history["acceptance"][0] <= 1
    assert model.history["chain spread"][0] < 3


def test_presets_refuse_what_they_are_not_for():
    with pytest.raises(ValueError, match=r"x must have shape \(n, 2\)"):
        EBM.for_plane(torch.randn(10, 3))
    with pytest.raises(ValueError, match=r"x must have shape \(n, columns\), got \(10, 1, 4, 4\)"):
        EBM.for_table(torch.randn(10, 1, 4, 4))
    with pytest.raises(ValueError, match=r"x must have shape \(n, channels, height, width\)"):
        EBM.for_images(torch.randn(10, 3))
    constant = torch.randn(50, 3)
    constant[:, 1] = 2.0
    with pytest.raises(ValueError, match=r"columns \[1\] are constant"):
        EBM.for_table(constant)
    with pytest.raises(ValueError, match="columns are dependent"):
        EBM.for_table(torch.randn(50, 2) @ torch.randn(2, 3))


@pytest.mark.slow
def test_preset_of_the_plane_beats_a_gaussian():
    truth = ebm.energies.Banana(scale=1.5, curvature=0.5)
    model = EBM.for_plane(truth.sample(5000)).fit(truth.sample(5000), progress=False)
    x, y = torch.linspace(-8, 8, 241), torch.linspace(-8, 24, 481)
    grid, cell = torch.cartesian_prod(x, y), math.log((x[1] - x[0]) * (y[1] - y[0]))

    @torch.no_grad()
    def log_p(energy):
        return -energy(grid) - (-energy(grid)).logsumexp(0) - cell

    p = log_p(truth)
    weights = (p + cell).exp()
    mean = weights @ grid
    centred = grid - mean
    gaussian = ebm.energies.Gaussian(
        mean, torch.linalg.inv((weights.unsqueeze(-1) * centred).T @ centred)
    )
    divergence = [(weights * (p - log_p(q))).sum().item() for q in (model.energy, gaussian)]
    assert divergence[0] < divergence[1] / 10


def test_copies_of_a_whitened_energy_have_their_own_units():
    energy = ebm.energies.Whitened(ebm.energies.MLP((2,), (8,)), torch.zeros(2), torch.eye(2))
    copied = copy.deepcopy(energy)
    with torch.no_grad():
        copied.scale_tril.mul_(3.0)
    for each, scale in ((energy, 1.0), (copied, 3.0)):
        bijection = torch.distributions.biject_to(each.support)
        assert torch.equal(bijection(torch.ones(2)), torch.full((2,), scale))


def test_whitening_takes_all_correlation_away():
    x = skewed_table(300)
    energy = ebm.energies.Whitened.by_data(ebm.energies.MLP((6,), (8,)), x)
    z = torch.distributions.biject_to(energy.support).inv(x)
    torch.testing.assert_close(z.mean(0), torch.zeros(6))
    torch.testing.assert_close(torch.cov(z.T), torch.eye(6))


def test_chains_leave_a_whitened_law_invariant():
    """One step size for scales a million apart; the target is skewed."""
    truth = ebm.energies.Whitened(
        ebm.energies.Banana(scale=1.0, curvature=0.5),
        torch.tensor([1.0, -2.0]),
        torch.tensor([[1e-3, 0.0], [500.0, 1e3]]),
    )
    kernel = ebm.kernels.MALA(
        ebm.Boltzmann(truth), step_size=0.3, adapt_step_size=False, adapt_mass_matrix=False
    )
    mcmc = ebm.MCMC(
        kernel, 50, 0, 2000, initial_params={"x": start_of(truth, 2000)}, disable_progbar=True
    )
    mcmc.run()
    accepted = mcmc.sample_stats["acceptance_rate"].mean()
    assert accepted > 0.5
    draws = mcmc.get_samples(group_by_chain=True)["x"][:, -1]
    exact = truth.sample(20_000)
    for moment in (lambda x: x, lambda x: (x - exact.mean(0)) ** 2, lambda x: x.prod(-1)):
        a, b = moment(draws), moment(exact)
        assert_close(a.mean(0), b.mean(0), (a.var(0) / len(a) + b.var(0) / len(b)).sqrt())


def start_of(energy, num_chains):
    """Exact draws, where chains move."""
    return torch.distributions.biject_to(energy.support).inv(energy.sample(num_chains))
