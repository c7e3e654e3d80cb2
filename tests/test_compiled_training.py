"""Compiled chains walk as eager ones do, under the energy as it is now."""

import math

import pytest
import torch
from torch import nn, tensor

import pyro_ebm as ebm
from pyro_ebm.energies import Energy
from pyro_ebm.kernels import MALA, ULA
from pyro_ebm.objectives import ContrastiveDivergence, PersistentCD


class Skewed(Energy):
    """E(x) = a (x - loc)^2 / 2 + b softplus(scale x) where x > -1, with a scale that is a number.

    Beyond that wall it is infinite.
    """

    def __init__(self):
        super().__init__((1,))
        self.weights = nn.Parameter(tensor([1.0, 0.3, 0.5]))
        self.scale = 2.0

    def forward(self, x):
        a, loc, b = self.weights
        bend = nn.functional.softplus(self.scale * x)
        inside = 0.5 * a * (x - loc).square() + b * bend
        return torch.where(x > -1, inside, math.inf).squeeze(-1)


def train(objective, num_steps, changed=()):
    """Learns by large steps; returns the weights and the last negative phase after each.

    From the third on the kernel makes smaller steps.
    """
    torch.manual_seed(3)
    energy = Skewed()
    x = torch.randn(40, 1).exp()
    optimizer = torch.optim.SGD(energy.parameters(), lr=0.3)
    objective.noise["x"] = tensor([0.5]), tensor([0.3])
    path, num_lost = [], 0
    step_size = objective.kernel.step_size
    for step in range(num_steps):
        objective.kernel.step_size = step_size / 3 if step > 1 else step_size
        energy.scale = 0.5 if step in changed else 2.0
        optimizer.zero_grad()
        (-objective.surrogate(ebm.Boltzmann(energy), x).mean()).backward()
        path.append(torch.cat([energy.weights.grad, energy.weights.detach()]))
        optimizer.step()
        num_lost += objective.last_info["x"].diverging.sum()
    assert num_lost > 0  # steps into the wall are part of it
    return torch.stack(path)


@pytest.mark.slow
@pytest.mark.parametrize(
    "make",
    [
        lambda **how: PersistentCD(ULA(step_size=0.1), num_chains=7, num_steps=10, **how),
        lambda **how: PersistentCD(ULA(step_size=0.1), num_chains=9, num_moved=7, **how),
        lambda **how: ContrastiveDivergence(MALA(step_size=0.5), num_steps=3, **how),
        lambda **how: ContrastiveDivergence(ULA(step_size=0.1), 3, antithetic=True, **how),
    ],
    ids=["PCD", "PCD-1", "CD", "CD in pairs"],
)
def test_compiled_training_follows_the_eager_path(make):
    changed = (3, 4)
    path = train(make(compile=True), 6, changed)
    torch.testing.assert_close(path, train(make(), 6, changed), rtol=1e-8, atol=1e-8)
    assert (path - train(make(), 6)).abs().max() > 1e-3  # the change can be seen
    assert path.diff(dim=0).abs().amin(0).max() > 1e-3  # and so can each update


def test_what_cannot_be_compiled_runs_eagerly_with_one_warning():
    scale = tensor(1.0, requires_grad=True)
    p = ebm.Boltzmann(lambda x: scale * x.square().sum(-1), event_shape=(1,))
    objective = ContrastiveDivergence(ULA(step_size=0.1), compile=True)
    with pytest.warns(UserWarning, match="run eagerly, because the energy of site 'x' is no"):
        objective.surrogate(p, torch.ones(3, 1))
    objective.surrogate(p, torch.ones(3, 1))
