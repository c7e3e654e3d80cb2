"""Kernels leave their target invariant, and move by the formula in their docstring."""

import math

import pytest
import torch
from cases import KERNELS, METROPOLISED, SKEWED, SKEWED_BY_KERNEL
from laws import assert_close, assert_follows, assert_mean, assert_same_law
from torch import tensor

from pyro_ebm import Boltzmann
from pyro_ebm.energies import Gaussian, Laplace
from pyro_ebm.kernels import GHMC, HMC, MALA, NUTS, ULA, ChEES, run
from pyro_ebm.kernels.hamiltonian import leapfrog
from pyro_ebm.kernels.metric import Metric
from pyro_ebm.kernels.transition import seeded_generator
from pyro_ebm.potential import Potential

STANDARD = Gaussian(torch.zeros(1, dtype=torch.float64), 1.0)


def flat_potential(energy):
    return Potential.of(Boltzmann(energy))


def start(energy, num_chains):
    """Exact draws as flat chains."""
    return energy.sample(num_chains).reshape(num_chains, -1)


def move(kernel, potential, z, num_steps, scale=None):
    state = kernel.init(potential, z)
    if scale is not None:
        state = state._replace(metric=Metric(scale))
    *_, (state, info) = run(kernel, potential, state, num_steps, seeded_generator(z.device))
    return state, info


@pytest.mark.parametrize(("step_size", "variance"), [(0.5, 4 / 3), (0.1, 1 / 0.95), (1.0, 2.0)])
def test_ula_has_its_known_bias(step_size, variance):
    num_chains = 40_000
    z = torch.randn(num_chains, 1)
    state, _ = move(ULA(step_size=step_size), flat_potential(STANDARD), z, 60)
    assert_mean(state.z, torch.zeros(1))
    assert_close(state.z.var(), variance, variance * math.sqrt(2 / num_chains))


def test_ula_moves_by_its_formula():
    energy = Laplace(torch.zeros(3), tensor([0.5, 1.0, 2.0]))
    z = torch.tensor([[1.0, -2.0, 3.0]])
    kernel = ULA(step_size=0.08)
    state = kernel.init(flat_potential(energy), z)
    xi = torch.tensor([[0.3, -0.1, 0.7]])
    moved, _ = kernel.step(flat_potential(energy), state, (xi,))
    expected = z - 0.08 * energy.grad(z) + math.sqrt(2 * 0.08) * xi
    torch.testing.assert_close(moved.z, expected)


@pytest.mark.parametrize(
    ("step_size", "acceptance"),
    [(0.1, 0.992883), (0.5, 0.9208331516788689), (1.0, 0.783653), (2.0, 0.5)],
)
def test_mala_accepts_as_often_as_theory_says(step_size, acceptance):
    kernel = MALA(step_size=step_size)
    state, info = move(kernel, flat_potential(STANDARD), torch.randn(40_000, 1), 1)
    assert_mean(info.accept_prob, acceptance)
    assert_mean(info.accepted, acceptance)
    state, _ = move(kernel, flat_potential(STANDARD), torch.randn(40_000, 1), 20)
    assert_close(state.z.var(), 1.0, math.sqrt(2 / len(state.z)))


@pytest.mark.parametrize(
    ("step_size", "num_steps", "acceptance"),
    [(1.0, 1, 0.920833), (1.5, 2, 0.933104), (1.9, 5, 0.968740), (1.2, 10, 0.957235)],
)
def test_hmc_accepts_as_often_as_theory_says(step_size, num_steps, acceptance):
    kernel = HMC(step_size=step_size, num_steps=num_steps, jitter=0.0)
    _, info = move(kernel, flat_potential(STANDARD), torch.randn(40_000, 1), 1)
    assert_mean(info.accept_prob, acceptance)
    assert info.num_steps.eq(num_steps).all()


def test_mala_is_hmc_with_one_leapfrog():
    potential = flat_potential(SKEWED["banana"]())
    z = start(SKEWED["banana"](), 500)
    xi, uniform = torch.randn_like(z), torch.rand(500)
    metric = Metric(tensor([0.7, 1.6]))
    mala, hmc = MALA(step_size=0.08), HMC(step_size=0.4, num_steps=1, jitter=0.0)
    a, info_a = mala.step(
        potential, mala.init(potential, z)._replace(metric=metric), (xi, uniform)
    )
    b, info_b = hmc.step(
        potential,
        hmc.init(potential, z)._replace(metric=metric),
        (xi, uniform, torch.zeros(())),
    )
    torch.testing.assert_close(a.z, b.z)
    torch.testing.assert_close(info_a.accept_prob, info_b.accept_prob)


@pytest.mark.parametrize("scaled", [False, True], ids=["unit", "scaled"])
@pytest.mark.parametrize(("kernel", "target"), SKEWED_BY_KERNEL)
def test_leaves_exact_draws_of_a_skewed_target_invariant(kernel, target, scaled):
    energy = SKEWED[target]()
    potential = flat_potential(energy)
    z = start(energy, 6000)
    scale = torch.linspace(0.6, 1.7, z.shape[1]) if scaled else None
    state, _ = move(KERNELS[kernel](), potential, z, 12, scale)
    assert (state.z != z).any(-1).double().mean() > 0.9
    fresh = start(energy, 20_000)
    for d in range(z.shape[1]):
        assert_same_law(state.z[:, d], fresh[:, d])
    assert_same_law(state.potential, potential.value_and_grad(fresh)[0])


OFTEN_REJECTED = {
    "HMC": lambda: HMC(step_size=1.0, num_steps=3),
    "ChEES": lambda: ChEES(step_size=1.0, length=1.5),
    "NUTS": lambda: NUTS(step_size=1.0),
    "GHMC": lambda: GHMC(step_size=1.0),
}


@pytest.mark.parametrize("kernel", OFTEN_REJECTED)
def test_the_energy_reported_is_that_of_where_the_chain_is(kernel):
    """Less the potential it is the kinetic energy, whose law is known, accepted or not."""
    energy = SKEWED["banana"]()
    potential = flat_potential(energy)
    state, info = move(OFTEN_REJECTED[kernel](), potential, start(energy, 6000), 3)
    assert kernel == "NUTS" or info.accepted.double().mean() < 0.9
    assert_follows(info.energy - state.potential, lambda x: 1 - (-x).exp())


@pytest.mark.parametrize("kernel", KERNELS)
def test_state_is_never_stale(kernel):
    energy = SKEWED["banana"]()
    potential = flat_potential(energy)
    state, _ = move(KERNELS[kernel](), potential, start(energy, 200), 7)
    value, grad = potential.value_and_grad(state.z)
    torch.testing.assert_close(state.potential, value)
    torch.testing.assert_close(state.grad, grad)


@pytest.mark.parametrize("kernel", KERNELS)
def test_chains_do_not_see_one_another(kernel):
    energy = SKEWED["banana"]()
    potential = flat_potential(energy)
    recipe = KERNELS[kernel]()
    z = start(energy, 50)
    noise = recipe.noise(recipe.init(potential, z), torch.Generator().manual_seed(3))
    alone, _ = recipe.step(
        potential,
        recipe.init(potential, z[:1]),
        tuple(part[:1] if part.dim() else part for part in noise),
    )
    together, _ = recipe.step(potential, recipe.init(potential, z), noise)
    torch.testing.assert_close(alone.z, together.z[:1])


def test_leapfrog_is_reversible_and_of_second_order():
    energy = SKEWED["banana"]()
    potential = flat_potential(energy)
    z, p = start(energy, 20), torch.randn(20, 2)

    def flow(z, p, step_size, num_steps):
        state = HMC(step_size=step_size).init(potential, z)
        for _ in range(num_steps):
            state, p = leapfrog(potential, state, p)
        return state, p

    there, p_there = flow(z, p, 0.1, 8)
    back, p_back = flow(there.z, -p_there, 0.1, 8)
    torch.testing.assert_close(back.z, z)
    torch.testing.assert_close(-p_back, p)

    def energy_error(step_size, num_steps):
        end, p_end = flow(z, p, step_size, num_steps)
        before = potential.value_and_grad(z)[0] + 0.5 * p.square().sum(-1)
        return (end.potential + 0.5 * p_end.square().sum(-1) - before).abs().mean()

    assert 3.5 < energy_error(0.02, 20) / energy_error(0.01, 40) < 4.5


@pytest.mark.parametrize("outside", [math.inf, math.nan], ids=["inf", "nan"])
@pytest.mark.parametrize("kernel", METROPOLISED)
def test_rejects_and_counts_proposals_without_a_finite_energy(kernel, outside):
    def half_plane(x):
        x, y = x.unbind(-1)
        return torch.where(x > 0, x + 0.5 * y**2, outside)

    z = torch.stack([torch.empty(8000).exponential_(), torch.randn(8000)], dim=-1)
    potential = Potential.of_batch(Boltzmann(half_plane, event_shape=(2,)), (8000,), z)
    state, info = move(KERNELS[kernel](), potential, z, 10)
    assert_follows(state.z[:, 0], lambda x: 1 - (-x).exp())
    assert info.diverging.any()
    if kernel == "NUTS":  # a mean over the trajectory, the last point of which has none
        most = 1 - 1 / info.num_steps
        assert (info.accept_prob <= most)[info.diverging].all()
    else:
        assert info.accept_prob[info.diverging].eq(0).all()


def test_ula_does_not_step_to_a_non_finite_energy():
    half_line = Boltzmann(lambda x: torch.where(x > 0, x, math.nan).squeeze(-1), event_shape=(1,))
    z = torch.ones(500, 1)
    state, info = move(ULA(step_size=1.0), Potential.of_batch(half_line, (500,), z), z, 1)
    assert info.diverging.any()
    assert state.z[info.diverging].eq(1).all()
    assert state.potential.isfinite().all()


def test_hmc_jitters_its_length_for_all_chains_alike():
    potential = flat_potential(STANDARD)
    kernel = HMC(step_size=0.1, num_steps=10, jitter=0.5)
    state = kernel.init(potential, torch.randn(5, 1))
    lengths = [
        info.num_steps
        for _, info in run(kernel, potential, state, 200, torch.Generator().manual_seed(0))
    ]
    assert all(step.unique().numel() == 1 for step in lengths)
    assert {step[0].item() for step in lengths} == set(range(5, 16))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ULA(step_size=0.0), "step_size must be positive and finite, got 0.0"),
        (lambda: MALA(step_size=-1.0), "step_size must be positive and finite, got -1.0"),
        (lambda: MALA(target_accept_prob=1.0), "target_accept_prob must be between 0 and 1"),
        (lambda: HMC(num_steps=0), "num_steps must be at least 1, got 0"),
        (lambda: HMC(jitter=2.0), "jitter must be between 0 and 1, got 2.0"),
        (lambda: MALA(lambda: None, potential_fn=lambda z: z), "not both"),
    ],
)
def test_refuses_bad_arguments(make, message):
    with pytest.raises(ValueError, match=message):
        make()
