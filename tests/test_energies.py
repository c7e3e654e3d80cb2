"""Laws of the energies, over all cases: the contract, exact normalisers, exact samples."""

import copy
import math
import pickle

import pytest
import torch
from cases import ENERGIES, ENERGIES_EXACT, ENERGIES_NEURAL
from laws import assert_follows, assert_mean, points, quadrature

from pyro_ebm import Boltzmann
from pyro_ebm.energies import MLP, Banana, DoubleWell, Energy, Funnel, Mixture, TwoModes
from pyro_ebm.energies.base import reference_tensor
from pyro_ebm.kernels import ULA
from pyro_ebm.potential import Potential

WITH_MOMENTS = [n for n in ENERGIES_EXACT if not n.startswith(("mixture", "whitened"))]
ON_A_GRID = [
    name
    for name, make in ENERGIES_EXACT.items()
    if make().event_shape.numel() <= 2 and not name.startswith("funnel")
]


@pytest.fixture(params=ENERGIES)
def energy(request):
    return ENERGIES[request.param]()


@pytest.fixture(params=ENERGIES_EXACT)
def exact(request):
    return ENERGIES_EXACT[request.param]()


@pytest.fixture(params=ON_A_GRID)
def on_a_grid(request):
    return ENERGIES_EXACT[request.param]()


# ---------------------------------------------------------------------------------- the contract


@pytest.mark.parametrize("batch", [(), (3,), (2, 3)])
def test_energy_has_batch_shape_and_grad_has_point_shape(energy, batch):
    x = points(energy, *batch)
    assert energy(x).shape == batch
    assert energy.grad(x).shape == x.shape


def test_points_of_a_batch_do_not_see_one_another(energy):
    x = points(energy, 2, 3)
    alone = torch.stack([torch.stack([energy(point) for point in row]) for row in x])
    torch.testing.assert_close(energy(x), alone)


def test_gradient_is_that_of_finite_differences(energy):
    x = points(energy, 4)
    assert torch.autograd.gradcheck(energy, x.clone().requires_grad_())
    (autograd,) = torch.autograd.grad(energy(x.requires_grad_()).sum(), x)
    torch.testing.assert_close(energy.grad(x), autograd)


def test_score_is_minus_grad(energy):
    x = points(energy, 5)
    torch.testing.assert_close(energy.score(x), -energy.grad(x))
    assert bool((energy.grad(x) != 0).any())


def test_grad_is_detached_unless_its_graph_is_asked_for(energy):
    x = points(energy, 3)
    with torch.no_grad():
        assert not energy.grad(x).requires_grad
    assert not x.requires_grad
    hessian = torch.func.hessian(energy)(x[0])
    twice = energy.grad(x.requires_grad_(), create_graph=True)
    if twice.requires_grad:  # a Laplace energy is linear almost everywhere
        (row,) = torch.autograd.grad(twice.reshape(-1)[0], x)
        torch.testing.assert_close(row[0].reshape(-1), hessian.reshape(-1)[: row[0].numel()])


def test_energy_keeps_dtype_and_device(energy):
    x = points(energy, 2)
    single = energy.float()
    for batch in (x.float(), x[0].float()):
        assert single(batch).dtype == single.grad(batch).dtype == torch.float32
    assert reference_tensor(single).dtype == torch.float32
    if isinstance(energy, Mixture):
        return  # the exact log Z of its parts may need numbers, which a meta tensor has not
    moved = single.to("meta")
    assert moved(x.float().to("meta")).device.type == reference_tensor(moved).device.type == "meta"


def test_samples_and_log_z_have_the_dtype_of_the_energy(exact):
    single = exact.float()
    assert single.sample(3).dtype == single.log_z().dtype == torch.float32


def test_copies_are_equal_and_independent(energy):
    x = points(energy, 3)
    before = energy(x).detach()
    copied = copy.deepcopy(energy)
    torch.testing.assert_close(copied(x).detach(), before, rtol=0, atol=0)
    with torch.no_grad():
        for value in (*copied.parameters(), *copied.buffers()):
            value.add_(0.5)
    torch.testing.assert_close(energy(x).detach(), before, rtol=0, atol=0)
    assert bool((copied(x) != before).any())


@pytest.mark.parametrize("name", [n for n in ENERGIES if n != "sum_with_callable"])
def test_pickle_round_trip(name):
    energy = ENERGIES[name]()
    x = points(energy, 3)
    again = pickle.loads(pickle.dumps(energy))
    torch.testing.assert_close(again(x), energy(x), rtol=0, atol=0)
    assert (again.event_shape, repr(again.support)) == (energy.event_shape, repr(energy.support))


@pytest.mark.parametrize("name", ENERGIES)
def test_state_dict_holds_all_numbers(name):
    energy, other = ENERGIES[name](), ENERGIES[name]()
    x = points(energy, 3)
    with torch.no_grad():
        for value in (*other.parameters(), *other.buffers()):
            value.mul_(0.5)
    assert bool((other(x) != energy(x)).any())
    other.load_state_dict(energy.state_dict())
    torch.testing.assert_close(other(x), energy(x), rtol=0, atol=0)


# ----------------------------------------------------------------- exact normalisers and samples


def test_log_z_is_that_of_quadrature(on_a_grid):
    x, log_weights, _ = quadrature(on_a_grid)
    integral = (log_weights - on_a_grid(x)).logsumexp(0)
    torch.testing.assert_close(on_a_grid.log_z(), integral, rtol=1e-6, atol=1e-6)


def test_log_z_is_that_of_importance_sampling(exact):
    """A proposal with heavier tails, shaped by no more than the spread of samples."""
    if isinstance(exact, Funnel):
        pytest.skip("its scale varies: see test_funnel_integrates_along_its_scale")
    draws = exact.sample(4000)
    tails = torch.distributions.StudentT(4.0, draws.mean(0), draws.std(0))
    x = tails.sample((40_000,))
    log_q = tails.log_prob(x).reshape(len(x), -1).sum(-1)
    assert_mean((-exact(x) - log_q - exact.log_z()).exp(), 1.0)


def test_funnel_integrates_along_its_scale():
    """Given x0, the substitution x = exp(x0 / 2) y leaves a Gaussian integral."""
    energy = Funnel(num_dims=2, scale=1.7)
    x0, y = torch.linspace(-25, 25, 1201), torch.linspace(-12, 12, 1201)
    grid0, grid_y = torch.meshgrid(x0, y, indexing="ij")
    log_density = grid0 / 2 - energy(torch.stack([grid0, (grid0 / 2).exp() * grid_y], dim=-1))
    area = (x0[1] - x0[0]) * (y[1] - y[0])
    torch.testing.assert_close(energy.log_z(), log_density.flatten().logsumexp(0) + area.log())


@pytest.mark.parametrize("name", [n for n in WITH_MOMENTS if n in ON_A_GRID])
def test_mean_and_variance_are_those_of_quadrature(name):
    energy = ENERGIES_EXACT[name]()
    x, log_weights, _ = quadrature(energy)
    probs = (log_weights - energy(x)).softmax(0).reshape(-1, *[1] * len(energy.event_shape))
    mean = (probs * x).sum(0)
    variance = (probs * (x - mean).square()).sum(0)
    torch.testing.assert_close(energy.mean, mean, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(energy.variance, variance, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", WITH_MOMENTS)
def test_samples_have_the_stated_mean_and_variance(name):
    energy = ENERGIES_EXACT[name]()
    x = energy.sample(20_000)
    assert x.shape == (20_000, *energy.event_shape)
    assert energy.mean.shape == energy.variance.shape == energy.event_shape
    assert_mean(x, energy.mean)
    if not isinstance(energy, Funnel):  # the variance of its squares is e^{2 s^2} times larger
        assert_mean((x - energy.mean).square(), energy.variance)


def test_samples_follow_the_marginals_of_quadrature(on_a_grid):
    x, log_weights, axes = quadrature(on_a_grid)
    joint = (log_weights - on_a_grid(x)).softmax(0).reshape([len(axis) for axis in axes])
    draws = on_a_grid.sample(10_000).reshape(10_000, -1)
    for i, axis in enumerate(axes):
        marginal = joint.sum([j for j in range(len(axes)) if j != i]) if len(axes) > 1 else joint
        cdf = marginal.cumsum(0) - marginal / 2

        def interpolated(values, axis=axis, cdf=cdf):
            left = torch.searchsorted(axis, values).clamp(1, len(axis) - 1) - 1
            part = (values - axis[left]) / (axis[left + 1] - axis[left])
            return torch.lerp(cdf[left], cdf[left + 1], part)

        assert_follows(draws[:, i], interpolated)


def test_samples_and_score_obey_stein(exact):
    """For exact draws E[score] = 0 and E[(x - c) score] = -1: no sign or scale can be wrong."""
    x = exact.sample(20_000)
    score = exact.score(x)
    assert_mean(score, torch.zeros(exact.event_shape))
    assert_mean((x - x[0]) * score, -torch.ones(exact.event_shape))


def test_funnel_samples_have_the_reference_log_moments():
    energy = Funnel()
    logs = energy.sample(20_000)[:, 1:].abs().log()
    assert_mean(logs[:, 0], -0.635181422731)
    assert_mean((logs[:, 0] + 0.635181422731).square(), 3.483700550136)
    assert_mean(energy.sample(20_000)[:, 0].square(), 9.0)


@pytest.mark.parametrize(
    ("beta", "log_z", "second_moment"),
    [
        (1.0, 0.679926243, 0.832745487),
        (2.0, 0.344238220, 0.852136152),
        (4.0, -0.053571854, 0.917670861),
    ],
)
def test_double_well_has_the_reference_values(beta, log_z, second_moment):
    energy = DoubleWell(beta)
    assert energy.log_z().item() == pytest.approx(log_z, abs=1e-9)
    assert energy.variance.item() == pytest.approx(second_moment, abs=1e-9)
    assert energy.mean.item() == pytest.approx(0.0, abs=1e-12)


# Of dX = -U'(X) dt + sqrt(2) dW from the left well at -1: E x^4, and the mean time to reach the
# top at 0 and the other well at 1, by adaptive quadrature. A table of 1.43588, 3.56945, 8.48657
# and 17.31593 is off in its fifth digit, by its rule.
DIFFUSING = {
    1.0: (1.0827454871283801, 1.4358592670, 3.5694341591),
    4.0: (0.9801708607452296, 8.4864360719, 17.3159111902),
}


@pytest.mark.parametrize("beta", DIFFUSING)
def test_double_well_has_the_reference_times_of_passage(beta):
    energy = DoubleWell(beta)
    x = torch.linspace(-4, 4, 400_001)
    dx = (x[1] - x[0]).item()
    u = energy(x)
    fourth_moment, *times = DIFFUSING[beta]
    assert ((-u).softmax(0) * x**4).sum().item() == pytest.approx(fourth_moment, abs=1e-9)
    below = (-u).exp()
    start, far = 150_000, 250_001  # at -1, past 1
    left = (below.cumsum(0) - below / 2)[start:far] * dx  # the mass left of y
    inside = u[start:far].exp() * left
    for end, time in zip((50_000, 100_000), times, strict=True):
        found = torch.trapezoid(inside[: end + 1], dx=dx).item()
        assert found == pytest.approx(time, abs=1e-6)


@pytest.mark.parametrize("end", [0.0, 1.0])
def test_langevin_steps_cross_the_double_well_in_the_time_of_its_diffusion(end):
    """Within 5 %: between two points a path reaches the end as often as a Brownian bridge."""
    h, time = 0.02, DIFFUSING[1.0][1 + int(end)]
    kernel, potential = ULA(step_size=h), Potential.of(Boltzmann(DoubleWell(1.0)))
    generator = torch.Generator().manual_seed(5)
    state = kernel.init(potential, -torch.ones(4000, 1))
    going, times = torch.ones(4000, dtype=torch.bool), torch.zeros(4000)
    while going.any():
        before = state.z
        state, _ = kernel.step(potential, state, kernel.noise(state, generator))
        gaps = ((end - before).clamp(min=0) * (end - state.z).clamp(min=0)).squeeze(-1)
        times += h * going
        going &= torch.rand(4000, generator=generator) > (-gaps / h).exp()
    assert times.mean().item() == pytest.approx(time, rel=0.05)
    assert_mean(times, time)


def test_double_well_leans_against_its_tilt():
    assert DoubleWell(beta=2.0, tilt=0.5).mean < -0.1 < 0.1 < DoubleWell(beta=2.0, tilt=-0.5).mean


def test_banana_has_the_reference_values():
    energy = Banana()
    assert energy.variance.sqrt().tolist() == pytest.approx([10.0, 4.358898943541], abs=1e-11)
    assert energy.log_z().item() == pytest.approx(math.log(2 * math.pi * 10))
    x0, x1 = energy.sample(20_000).unbind(-1)
    squares = (x0.square() - 100) / (math.sqrt(2) * 100)
    assert_mean(squares * x1 / 4.358898943541, 0.973329)


@pytest.mark.parametrize("theta", [-math.log(4.0), 0.0, 3.0])
def test_two_modes_have_the_reference_weight(theta):
    energy = TwoModes(theta)
    assert energy.weight.item() == pytest.approx(1 / (1 + math.exp(theta)))
    log_z = 0.5 * math.log(2 * math.pi) + math.log1p(math.exp(-theta))
    assert energy.log_z().item() == pytest.approx(log_z)
    assert_mean((energy.sample(20_000) > 0).double(), 1 / (1 + math.exp(theta)))


def test_unknown_log_z_and_sample_say_where_to_look():
    energy = MLP(event_shape=(2,))
    assert not energy.has_log_z
    assert not energy.has_sample
    with pytest.raises(NotImplementedError, match=r"log Z of MLP .* pyro_ebm\.logz"):
        energy.log_z()
    with pytest.raises(NotImplementedError, match=r"MLP has no exact sampler; use pyro_ebm\.MCMC"):
        energy.sample(3)
    with pytest.raises(NotImplementedError, match="Energy must define forward"):
        Energy()(torch.zeros(()))


@pytest.mark.parametrize("name", ["mlp", "mlp_number", "mlp_matrix", "conv", "classifier"])
def test_neural_energies_are_normalisable_whatever_the_weights(name):
    energy = ENERGIES_NEURAL[name]()
    with torch.no_grad():
        for weights in energy.parameters():
            weights.mul_(10.0)
    x = points(energy, 50)
    near, far = energy(1e9 * x), energy(1e10 * x)
    assert bool((near > 0).all())
    assert bool((far > 50 * near).all())
