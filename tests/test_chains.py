"""Chains in training: what a step costs, which of them move, and what becomes of a bad step."""

import math

import pytest
import torch
from cases import KERNELS
from laws import assert_close, assert_mean
from torch import nn, tensor

import pyro_ebm as ebm
from pyro_ebm.energies import Energy
from pyro_ebm.kernels import MALA, ULA
from pyro_ebm.kernels.transition import normal_like, seeded_generator
from pyro_ebm.objectives import ContrastiveDivergence, ImprovedCD, PersistentCD, ShortRun
from pyro_ebm.potential import Potential


class Ramp(Energy):
    """E(x) = slope x on the positive half-line, infinite or undefined on the other."""

    def __init__(self, outside=math.inf):
        super().__init__((1,))
        self.slope = nn.Parameter(tensor(1.5))
        self.outside = outside
        self.num_calls = 0

    def forward(self, x):
        self.num_calls += 1
        return torch.where(x > 0, self.slope * x, self.outside).squeeze(-1)


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_proposal_is_where_the_step_leads(kernel):
    kernel = KERNELS[kernel]()
    skewed = ebm.Boltzmann(lambda x: x.exp().sum(-1) - x.sum(-1), event_shape=(2,))
    z = torch.randn(5, 2)
    potential = Potential.of_batch(skewed, (5,), z)
    state = kernel.init(potential, z)
    noise = kernel.noise(state, seeded_generator(z.device))
    ahead = kernel.propose(state, noise)
    if ahead is not None:
        assert torch.equal(kernel.step(potential, state, noise)[0].z, ahead)
    assert (ahead is not None) == isinstance(kernel, ULA)


ONE_EACH = {"cd": ContrastiveDivergence, "short run": ShortRun, "improved cd": ImprovedCD}


def num_calls(make, x):
    """How often an update evaluates the energy."""
    energy = Ramp()
    objective = make()
    objective.surrogate(ebm.Boltzmann(energy), x)
    before = energy.num_calls
    objective.surrogate(ebm.Boltzmann(energy), x)
    return energy.num_calls - before


@pytest.mark.parametrize("kind", [*ONE_EACH, "pcd"])
def test_k_steps_of_ula_cost_k_gradients(kind):
    def make(kernel, num_steps):
        if kind == "pcd":
            return PersistentCD(kernel, 4, num_steps)
        return ONE_EACH[kind](kernel, num_steps)

    x = 5 + torch.rand(4, 1)  # away from the wall
    ula = [num_calls(lambda k=k: make(ULA(step_size=1e-3), k), x) for k in (1, 2, 6)]
    assert ula[2] - ula[1] == 4
    assert ula[1] - ula[0] == 1
    if kind != "improved cd":
        assert num_calls(lambda: make(MALA(step_size=1e-3), 6), x) == ula[2] + 1


@pytest.mark.parametrize("outside", [math.inf, math.nan], ids=["inf", "nan"])
@pytest.mark.parametrize("num_moved", [None, 30], ids=["all", "some"])
@pytest.mark.parametrize("num_steps", [1, 3])
def test_steps_to_a_non_finite_energy_are_taken_back_and_counted(num_steps, num_moved, outside):
    energy, eta = Ramp(outside), 0.2
    objective = PersistentCD(ULA(step_size=eta), 50, num_steps, num_moved=num_moved)
    x = torch.empty(40, 1).exponential_(1.5)
    objective.noise["x"] = tensor([1.0]), tensor([0.1])
    generator = objective.generator(x.device)
    objective.surrogate(ebm.Boltzmann(energy), x)
    chains, as_it_was = objective.chains["x"], generator.get_state()
    value = objective.surrogate(ebm.Boltzmann(energy), x)

    replay = torch.Generator().set_state(as_it_was)
    rows = torch.arange(50)
    if num_moved:
        rows = torch.randperm(50, generator=replay)[:num_moved]
    z = chains[rows]
    for xi in normal_like(z, replay, num_steps):
        y = z - eta * 1.5 + math.sqrt(2 * eta) * xi
        z, lost = torch.where(y > 0, y, z), (y <= 0).squeeze(-1)
    assert 0 < lost.sum() < len(rows)
    torch.testing.assert_close(objective.chains["x"][rows], z)
    assert torch.equal(objective.last_info["x"].diverging, lost)
    (slope,) = torch.autograd.grad(value.mean(), energy.slope)
    torch.testing.assert_close(slope, z.mean() - x.mean())


@pytest.mark.parametrize("make", [ContrastiveDivergence, ShortRun], ids=["cd", "short run"])
def test_a_chain_of_its_own_for_each_datum_stays_where_the_energy_is_finite(make):
    objective = make(ULA(step_size=0.2), 3)
    objective.noise["x"] = tensor([1.0]), tensor([0.1])
    num_lost = 0
    for _ in range(20):
        value = objective.surrogate(ebm.Boltzmann(Ramp()), torch.empty(50, 1).exponential_(1.5))
        assert value.isfinite().all()
        num_lost += objective.last_info["x"].diverging.sum()
    assert num_lost > 0


def test_a_part_of_the_chains_moves_and_stays_in_its_slots():
    num_chains, num_moved, num_updates = 40, 15, 400
    objective = PersistentCD(ULA(step_size=1e-3), num_chains, num_moved=num_moved)
    energy = Ramp()
    x = 5 + torch.rand(20, 1)
    objective.surrogate(ebm.Boltzmann(energy), x)
    moves = []
    for _ in range(num_updates):
        before = objective.chains["x"]
        value = objective.surrogate(ebm.Boltzmann(energy), x)
        after = objective.chains["x"]
        moved = (after != before).squeeze(-1)
        assert moved.sum() == num_moved
        assert ((after - before).abs() < 0.5).all()
        (slope,) = torch.autograd.grad(value.mean(), energy.slope)
        torch.testing.assert_close(slope, after[moved].mean() - x.mean())
        moves.append(moved.double())
    moves = torch.stack(moves)
    assert_mean(moves, torch.full((num_chains,), num_moved / num_chains))
    again = moves[1:] * moves[:-1]  # drawn anew each time
    pairs = again.sum(1) / num_moved
    assert_close(pairs.mean(), num_moved / num_chains, pairs.std() / math.sqrt(len(pairs)))


def test_a_part_of_the_chains_begins_anew_as_it_moves():
    objective = PersistentCD(
        ULA(step_size=1e-12), 4000, reinit_prob=0.2, reinit_from="data", num_moved=1000
    )
    energy = Ramp()
    objective.surrogate(ebm.Boltzmann(energy), torch.rand(30, 1))
    before = objective.chains["x"]
    objective.surrogate(ebm.Boltzmann(energy), tensor([[70.0], [90.0]]))
    anew = (objective.chains["x"] - before).abs().squeeze(-1) > 1e-3
    assert_close(anew.sum() / 1000, 0.2, math.sqrt(0.2 * 0.8 / 1000))
    assert_mean(objective.chains["x"][anew], tensor([80.0]))


def test_an_evaluation_uses_all_chains():
    objective = PersistentCD(ULA(step_size=1e-3), 40, num_moved=15)
    energy = Ramp()
    x = 5 + torch.rand(20, 1)
    objective.surrogate(ebm.Boltzmann(energy), x)
    chains = objective.chains["x"]
    with torch.no_grad():
        value = objective.surrogate(ebm.Boltzmann(energy), x)
    torch.testing.assert_close(value.mean(), 1.5 * (chains.mean() - x.mean()))
    assert objective.chains["x"] is chains


@pytest.mark.parametrize("num_moved", [0, 11])
def test_refuses_to_move_more_chains_than_there_are(num_moved):
    with pytest.raises(ValueError, match=f"between 1 and num_chains=10, got {num_moved}"):
        PersistentCD(ULA(step_size=0.1), 10, num_moved=num_moved)
