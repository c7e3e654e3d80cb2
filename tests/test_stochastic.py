"""Minibatches are unbiased and fresh, and kernels on them have the bias that they state."""

import itertools
import math
import shutil

import pyro
import pyro.distributions as dist
import pytest
import torch
from cases import KERNELS, SKEWED
from laws import assert_close, assert_mean
from torch import tensor

import pyro_ebm as ebm
from pyro_ebm.kernels import SGHMC, SGLD, ULA, UnderdampedLangevin, run
from pyro_ebm.kernels.acceleration import traced
from pyro_ebm.kernels.metric import Metric
from pyro_ebm.kernels.stochastic import draw_minibatches
from pyro_ebm.potential import Potential

Y = tensor([0.3, -1.2, 2.0, 0.7, 5.0, 1.1, -0.4, 0.9, 3.1, 0.2] * 2, dtype=torch.float64)
X = torch.stack([torch.ones_like(Y), torch.linspace(-1.0, 2.0, 20, dtype=Y.dtype)], dim=-1)
NOISE, PRIOR = 1.5, 2.0


def mean_of_data(size, y=Y):
    loc = pyro.sample("loc", dist.Normal(0.0, PRIOR))
    with pyro.plate("data", len(y), subsample_size=size) as rows:
        pyro.sample("y", dist.Normal(loc, NOISE), obs=y[rows])


def regression(size):
    slope = pyro.sample("slope", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    scale = pyro.sample("scale", dist.Gamma(2.0, 1.0))
    with pyro.plate("data", 5, subsample_size=size):
        x = pyro.subsample(X[:5], event_dim=1)
        y = pyro.subsample(Y[:5], event_dim=0)
        pyro.sample("y", dist.StudentT(3.0, (x * slope).sum(-1), scale), obs=y)


def table(size):
    loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
    rows = pyro.plate("rows", 4, subsample_size=size, dim=-2)
    columns = pyro.plate("columns", 5, subsample_size=size and 3, dim=-1)
    with pyro.plate("groups", 5, dim=-1):
        effect = pyro.sample("effect", dist.Normal(loc, 1.0))
    with rows as i, columns as j:
        y = Y.reshape(4, 5)[i.unsqueeze(-1), j]
        pyro.sample("y", dist.Normal(effect[j], 0.7), obs=y)


def clusters(size):
    weights = pyro.sample("weights", dist.Dirichlet(torch.ones(2)))
    locs = pyro.sample("locs", dist.Normal(tensor([-1.0, 1.0]), 1.0).to_event(1))
    with pyro.plate("data", 5, subsample_size=size) as rows:
        components = dist.Normal(locs, 1.0)
        mixture = dist.MixtureSameFamily(dist.Categorical(weights), components)
        pyro.sample("y", mixture, obs=Y[rows])


def branching(size):
    loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
    with pyro.plate("data", 4, subsample_size=size) as rows:
        pyro.sample("y", dist.Normal(loc.abs() if loc > 0 else 2 * loc, 1.0), obs=Y[rows])


def on_minibatches(model, *args):
    return Potential.of(model, args, minibatches=True)


def all_minibatches(plates):
    """Every choice of rows, as one chain each."""
    subsets = [itertools.combinations(range(p.size), p.subsample_size) for p in plates]
    choices = list(itertools.product(*subsets))
    return [tensor(rows) for rows in zip(*choices, strict=True)]


@pytest.mark.parametrize("model", [regression, table, clusters])
@pytest.mark.filterwarnings("error::UserWarning")
def test_the_mean_over_all_minibatches_is_the_potential_of_all_data(model):
    potential = on_minibatches(model, 2)
    rows = all_minibatches(potential.plates)
    z = potential.initialize(1)
    full_value, full_grad = Potential.of(model, (None,)).value_and_grad(z)
    value, grad = potential.value_and_grad(z.expand(len(rows[0]), -1), *rows)
    assert value.std() > 0
    torch.testing.assert_close(value.mean(0, keepdim=True), full_value)
    torch.testing.assert_close(grad.mean(0, keepdim=True), full_grad)


@pytest.mark.filterwarnings("ignore:this model runs one chain after the other")
def test_a_model_that_cannot_be_mapped_takes_one_chain_at_a_time():
    potential = on_minibatches(branching, 2)
    z = tensor([[0.5], [-0.5]])
    value, grad = potential.value_and_grad(z, tensor([[0, 1], [2, 3]]))
    loc = tensor([0.5, -1.0])
    error = loc[:, None] - tensor([[0.3, -1.2], [2.0, 0.7]])
    constant = 2.5 * math.log(2 * math.pi)
    expected = z[:, 0].square() / 2 + error.square().sum(-1) + constant
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(grad[:, 0], z[:, 0] + tensor([1.0, 2.0]) * 2 * error.sum(-1))


@pytest.mark.parametrize(("size", "count"), [(6, 2), (5, 4), (12, 2), (24, 3)])
def test_every_subset_is_as_likely(size, count):
    """In both ways of drawing: few of many by rejection, many of few by shuffling."""
    num_subsets = math.comb(size, count)
    num_draws = 100 * num_subsets
    generator = torch.Generator().manual_seed(1)
    (rows,) = draw_minibatches(tensor([[size, count]]), (5, num_draws // 5), generator)
    assert rows.shape == (5, num_draws // 5, count)
    rows = rows.flatten(0, 1).sort(-1).values
    assert rows.min() == 0
    assert rows.max() == size - 1
    assert (rows.diff(dim=-1) > 0).all()
    counts = rows.unique(dim=0, return_counts=True)[1]
    assert len(counts) == num_subsets
    chi_squared = ((counts - 100.0) ** 2 / 100).sum()
    assert_close(chi_squared, num_subsets - 1, math.sqrt(2 * (num_subsets - 1)))


def test_rows_of_many_plates_are_drawn_apart():
    sizes = tensor([[10**12, 3], [7, 7], [50, 10]])
    a, b, c = draw_minibatches(sizes, (4,), torch.Generator().manual_seed(0))
    assert (a.shape, b.shape, c.shape) == ((4, 3), (4, 7), (4, 10))
    assert a.max() > 10**9
    assert torch.equal(b.sort(-1).values, torch.arange(7).expand(4, 7))


def posterior():
    """Mean and variance of ``mean_of_data`` on all data."""
    precision = PRIOR**-2 + len(Y) / NOISE**2
    return Y.sum() / NOISE**2 / precision, 1 / precision


def gradient_variance(size):
    """Of the gradient noise of ``mean_of_data``, without replacement."""
    n = len(Y)
    return (n / NOISE**2) ** 2 * Y.var() / size * (1 - size / n)


def settle(kernel, potential, z, num_steps, scale=1.0):
    state = kernel.init(potential, z)
    state = state._replace(metric=Metric(scale * state.metric.scale))
    *_, (state, _) = run(kernel, potential, state, num_steps, torch.Generator().manual_seed(5))
    return state


@pytest.mark.parametrize(
    ("size", "step_size", "scale"),
    [(10, 0.05, 1.0), (10, 0.05, 0.6), (4, 0.02, 1.0), (4, 0.0005, 3.0), (20, 0.05, 1.0)],
)
def test_sgld_has_its_known_bias(size, step_size, scale):
    mean, v = posterior()
    eta = step_size * scale**2
    potential = on_minibatches(mean_of_data, size)
    state = settle(SGLD(step_size=step_size), potential, mean.expand(20_000, 1), 60, scale)
    heat = 1 + eta * gradient_variance(size) / 2
    settled = 1 - (1 - eta / v) ** 120
    assert_mean(state.z, mean)
    assert_mean((state.z - mean) ** 2, settled * v * heat / (1 - eta / (2 * v)))


def lyapunov(m, q):
    """The stationary covariance of ``x' = m x + noise`` of covariance ``q``."""
    n = len(m)
    return torch.linalg.solve(torch.eye(n * n) - torch.kron(m, m), q.reshape(-1)).reshape(n, n)


def covariance_of_sghmc(step_size, friction, noise_estimate, v, of_gradient):
    """Of position and momentum between the kicks of two half steps, on ``N(0, v)``."""
    c = math.exp(-friction * step_size)
    drift = tensor([[1.0, step_size / 2], [0.0, 1.0]])
    kick = tensor([[1.0, 0.0], [-step_size / v, 1.0]])
    renew = torch.diag(tensor([1.0, c]))
    moved = drift @ renew @ drift
    from_gradient, injected = step_size * moved[:, 1], drift[:, 1]
    power = (1 - c**2) * (1 - noise_estimate / friction)
    q = of_gradient * torch.outer(from_gradient, from_gradient)
    return lyapunov(moved @ kick, q + power * torch.outer(injected, injected))


@pytest.mark.parametrize(
    ("size", "step_size", "friction", "estimated"),
    [(10, 0.3, 2.0, 0.0), (10, 0.3, 3.0, 1.0), (4, 0.15, 8.0, 0.5), (20, 0.3, 3.0, 0.0)],
)
def test_sghmc_has_its_known_bias(size, step_size, friction, estimated):
    mean, v = posterior()
    of_gradient = gradient_variance(size)
    beta = estimated * step_size * of_gradient.item() / 2
    kernel = SGHMC(step_size=step_size, friction=friction, noise_estimate=beta)
    z = mean + math.sqrt(v) * torch.randn(20_000, 1)
    state = settle(kernel, on_minibatches(mean_of_data, size), z, 60)
    covariance = covariance_of_sghmc(step_size, friction, beta, v, of_gradient)
    assert_mean(state.z, mean)
    assert_mean((state.z - mean) ** 2, covariance[0, 0])
    before = state.momentum + 0.5 * step_size * state.grad
    assert_mean(before**2, covariance[1, 1])
    assert_mean(before * (state.z - mean), covariance[0, 1])
    coth = 1 / math.tanh(friction * step_size / 2)
    heat = step_size**2 * of_gradient / 4 * coth / (1 - step_size**2 / (4 * v))
    torch.testing.assert_close(covariance[0, 0], v * (1 - beta / friction + heat))


def test_units_rescale_the_motion_of_sghmc():
    """In units of s it is the kernel of unit s on a target that is s times narrower."""
    s = 0.7
    kernel = SGHMC(step_size=0.2, friction=3.0)

    def narrower(size):
        w = pyro.sample("w", dist.Normal(0.0, PRIOR / s))
        with pyro.plate("data", len(Y), subsample_size=size) as rows:
            pyro.sample("y", dist.Normal(w, NOISE / s), obs=Y[rows] / s)

    pyro.set_rng_seed(7)
    state = settle(kernel, on_minibatches(mean_of_data, 10), torch.zeros(50, 1), 9, s)
    pyro.set_rng_seed(7)
    other = settle(kernel, on_minibatches(narrower, 10), torch.zeros(50, 1), 9)
    torch.testing.assert_close(state.z, s * other.z)


@pytest.mark.parametrize(
    ("plain", "stochastic"),
    [
        (ULA(step_size=0.05), SGLD(step_size=0.05)),
        (
            UnderdampedLangevin(step_size=0.3, friction=1.7),
            SGHMC(step_size=0.3, friction=1.7),
        ),
    ],
    ids=["SGLD", "SGHMC"],
)
def test_without_subsampled_plates_equals_the_plain_kernel_bit_for_bit(plain, stochastic):
    z = SKEWED["banana"]().sample(100)
    potential = Potential.of(ebm.Boltzmann(SKEWED["banana"]()))
    a, b = settle(plain, potential, z, 20), settle(stochastic, potential, z, 20)
    assert torch.equal(a.z, b.z)
    assert torch.equal(a.grad, b.grad)


STOCHASTIC = [SGLD(step_size=0.01), SGHMC(step_size=0.1)]


@pytest.mark.parametrize("kernel", STOCHASTIC, ids=["SGLD", "SGHMC"])
def test_each_chain_and_step_has_its_own_minibatch_from_the_generator_alone(kernel):
    potential = on_minibatches(mean_of_data, 4)
    state = kernel.init(potential, torch.zeros(30, 1))
    assert len(state.grad.unique()) > 10  # the first minibatch too
    _, rows = kernel.noise(state, torch.Generator().manual_seed(2), 8)
    assert rows.shape == (8, 30, 4)
    assert len(rows.sort(-1).values.flatten(0, 1).unique(dim=0)) > 200
    before = torch.get_rng_state()
    *_, (end, _) = run(kernel, potential, state, 8, torch.Generator().manual_seed(2))
    *_, (again, _) = run(kernel, potential, state, 8, torch.Generator().manual_seed(2))
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(end.z, again.z)
    value, grad = potential.value_and_grad(end.z, rows[-1])
    torch.testing.assert_close(end.potential, value)
    torch.testing.assert_close(end.grad, grad)


@pytest.mark.parametrize("kernel", STOCHASTIC, ids=["SGLD", "SGHMC"])
def test_a_chain_sees_its_own_minibatch_only(kernel):
    potential = on_minibatches(mean_of_data, 4)
    state = kernel.init(potential, torch.zeros(30, 1))
    noise = kernel.noise(state, torch.Generator().manual_seed(2))
    together, _ = kernel.step(potential, state, noise)
    xi, rows = noise
    others = rows.clone()
    others[1:] = rows[1:].roll(1, 0)
    alone, _ = kernel.step(potential, state, (xi, others))
    assert torch.equal(alone.grad[0], together.grad[0])
    assert not torch.equal(alone.grad[1:], together.grad[1:])


@pytest.mark.parametrize("model", [mean_of_data, regression, table, clusters])
@pytest.mark.parametrize("kernel", STOCHASTIC, ids=["SGLD", "SGHMC"])
def test_the_graph_gives_the_numbers_of_the_model_bit_for_bit(kernel, model):
    potential = on_minibatches(model, 2)
    state = kernel.init(potential, potential.initialize(8))
    stand_in, same, rung = traced(kernel, potential, state)
    assert rung.name == "graph"
    *_, (eager, _) = run(kernel, potential, state, 6, torch.Generator().manual_seed(3))
    *_, (graph, _) = run(stand_in, same, state, 6, torch.Generator().manual_seed(3))
    assert torch.equal(eager.z, graph.z)


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="needs a C++ compiler")
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_native_code_on_minibatches_gives_the_numbers_of_the_model_to_rounding():
    def draws(compile):
        pyro.set_rng_seed(4)
        kernel = SGLD(mean_of_data, step_size=0.01)
        mcmc = ebm.MCMC(kernel, 30, 0, 8, compile=compile, disable_progbar=True)
        mcmc.run(4)
        return mcmc

    eager, native = draws(False), draws(True)
    assert native.engine.startswith("native")
    torch.testing.assert_close(native.get_samples()["loc"], eager.get_samples()["loc"])


@pytest.mark.parametrize("kernel", ["SGLD", "SGHMC"])
@pytest.mark.parametrize("driver", [ebm.MCMC, pyro.infer.MCMC])
def test_runs_in_both_drivers_and_repeats_by_its_seed(kernel, driver):
    def draws():
        pyro.set_rng_seed(9)
        mcmc = driver(KERNELS[kernel](regression), 30, 30, disable_progbar=True)
        mcmc.run(2)
        return mcmc.get_samples()

    first, second = draws(), draws()
    assert torch.equal(first["slope"], second["slope"])
    assert (first["scale"] > 0).all()


@pytest.mark.parametrize(
    "make",
    [
        lambda model: SGLD(model, step_size=3e-5),
        lambda model: SGHMC(model, step_size=5e-3, friction=100.0),
    ],
    ids=["SGLD", "SGHMC"],
)
def test_warmup_learns_units_relative_to_the_narrowest_coordinate(make):
    sd = tensor([0.01, 0.1, 0.03]).repeat(8)
    y = torch.randn(100, 24)
    y = sd * (y - y.mean(0)) / y.std(0)

    def model():
        loc = pyro.sample("loc", dist.Normal(torch.zeros(24), 10.0).to_event(1))
        with pyro.plate("data", 100, subsample_size=25) as rows:
            pyro.sample("y", dist.Normal(loc, 10 * sd).to_event(1), obs=y[rows])

    kernel = make(model)
    mcmc = ebm.MCMC(kernel, 1, 300, 32, disable_progbar=True)
    mcmc.run()
    assert mcmc.state.metric.scale.min() == 1
    assert mcmc.state.step_size == kernel.step_size
    alike = (mcmc.state.metric.scale / sd).log().reshape(8, 3)
    assert_mean(alike[:, 1] - alike[:, 0], 0.0)
    assert_mean(alike[:, 2] - alike[:, 0], 0.0)


def local(size):
    loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
    with pyro.plate("data", 20, subsample_size=size) as rows:
        w = pyro.sample("w", dist.Normal(loc, 1.0))
        pyro.sample("y", dist.Normal(w, 1.0), obs=Y[rows])


def sequential(size):
    loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
    for i in pyro.plate("data", 20, subsample_size=size):
        pyro.sample(f"y_{i}", dist.Normal(loc, 1.0), obs=Y[i])


def discrete(size):
    locs = pyro.sample("locs", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    with pyro.plate("data", 20, subsample_size=size) as rows:
        k = pyro.sample("k", dist.Bernoulli(0.4))
        pyro.sample("y", dist.Normal(locs[..., 0] + k * locs[..., 1], 1.0), obs=Y[rows])


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (local, "latent 'w' is within the subsampled plate 'data'"),
        (sequential, "the sequential plate 'data' cannot be subsampled"),
        (discrete, "discrete latent 'k' cannot be summed over"),
    ],
)
def test_refuses_models_of_which_a_minibatch_is_no_estimate(model, message):
    with pytest.raises(ValueError, match=message):
        ebm.MCMC(SGLD(model, step_size=0.1), 3).run(5)
    if model is not sequential:
        ebm.MCMC(SGLD(model, step_size=0.01), 3, 3, disable_progbar=True).run(None)


@pytest.mark.parametrize("driver", [ebm.MCMC, pyro.infer.MCMC])
@pytest.mark.parametrize("kernel", [name for name in KERNELS if name not in {"SGLD", "SGHMC"}])
def test_other_kernels_refuse_a_subsampled_plate(kernel, driver):
    message = "plate 'data' shows 4 of its 20 rows, .* SGLD or SGHMC, .* or remove subsample_size"
    with pytest.raises(ValueError, match=message):
        driver(KERNELS[kernel](mean_of_data), 3, 3, disable_progbar=True).run(4)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SGLD(step_size=0.0), "step_size must be positive and finite, got 0.0"),
        (
            lambda: SGHMC(step_size=0.1, friction=0.0),
            "friction must be positive and finite, got 0.0",
        ),
        (
            lambda: SGHMC(step_size=0.1, friction=2.0, noise_estimate=2.0),
            "noise_estimate must be at least 0 and less than friction=2.0, got 2.0",
        ),
        (lambda: SGHMC(step_size=0.1, noise_estimate=-0.1), "noise_estimate must be at least 0"),
    ],
)
def test_refuses_bad_arguments(make, message):
    with pytest.raises(ValueError, match=message):
        make()
