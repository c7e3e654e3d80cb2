"""Every energy within a model that was saved and loaded, bit for bit, and every support."""

import pytest
import torch
from torch.distributions import constraints

import pyro_ebm as ebm
from pyro_ebm.zoo import EBM


def learned(*shape):
    return torch.nn.Parameter(0.3 * torch.randn(shape))


def learned_vector(*values):
    return torch.nn.Parameter(torch.tensor(values))


def skewed(*loc):
    return ebm.energies.Gaussian(learned_vector(*loc), torch.tensor([2.0, 0.7]))


def couplings():
    ties = 0.3 * torch.randn(4, 4)
    return torch.nn.Parameter((ties + ties.T) * (1 - torch.eye(4)))


ENERGIES = {
    "BoltzmannMachine": lambda: ebm.energies.BoltzmannMachine(couplings(), learned(4)),
    "of spins": lambda: ebm.energies.BoltzmannMachine(couplings(), learned(4), ebm.energies.spins),
    "RBM": lambda: ebm.energies.RBM.initial(4, 3),
    "GaussianRBM": lambda: ebm.energies.GaussianRBM(
        learned(3, 2), learned(3), learned(2), torch.tensor([0.5, 1.0, 2.0])
    ),
    "DBM": lambda: ebm.energies.DBM.initial([4, 3, 2], std=0.4),
    "Without": lambda: ebm.energies.Without(skewed(0.1, -0.3), skewed(1.0, 0.5), 6.0, 0.5),
    "Mixture": lambda: ebm.energies.mixture([skewed(0.1, -0.3), skewed(2.0, 0.5)], [0.3, 0.7]),
    "of given log Z": lambda: ebm.energies.mixture(
        [ebm.energies.MLP((2,), (5,)), skewed(2.0, 0.5)],
        learned_vector(0.2, 0.9),
        log_z=[1.5, torch.tensor(-0.25)],
    ),
    "Sum": lambda: skewed(0.1, 0.2) + ebm.energies.MLP((2,), (5,)) - 0.2 * skewed(1.0, 0.0),
    "Tempered": lambda: skewed(0.1, 0.2) / learned_vector(2.0)[0].detach(),
    "Scaled": lambda: torch.nn.Parameter(torch.tensor(0.7)) * skewed(0.1, 0.2),
    "Whitened": lambda: ebm.energies.Whitened(
        skewed(0.1, 0.2), torch.tensor([5.0, 0.0]), torch.tensor([[2.0, 0.0], [0.5, 1.0]])
    ),
    "Funnel": lambda: ebm.energies.Funnel(3, 2.0),
    "Banana": lambda: ebm.energies.Banana(2.0, 0.4),
    "DoubleWell": lambda: ebm.energies.DoubleWell(2.0, 0.3),
    "TwoModes": lambda: ebm.energies.TwoModes(torch.nn.Parameter(torch.tensor(0.4)), -2.0, 3.0),
    "Laplace": lambda: ebm.energies.Laplace(learned(2), 1.5),
    "Gaussian": lambda: skewed(0.1, 0.2),
    "GaussianMixture": lambda: ebm.energies.GaussianMixture(
        [0.3, 0.6], torch.tensor([[0.0, 1.0], [2.0, -1.0]]), torch.tensor([0.5, 1.5])
    ),
    "MLP": lambda: ebm.energies.MLP((2,), (5, 4), 3.0),
    "Conv": lambda: ebm.energies.Conv((1, 4, 4), (3, 2), 4.0),
    "Ising": lambda: ebm.energies.Ising((3, 4), 0.3, learned(3, 4)),
    "Potts": lambda: ebm.energies.Potts((3, 3), 3, 0.3, learned(3), periodic=False),
    "IsingGraph": lambda: ebm.energies.IsingGraph(
        torch.tensor([[0, 1], [1, 2]]), learned(2), learned(3)
    ),
    "MarkovRandomField": lambda: ebm.energies.MarkovRandomField(
        learned(3, 4), torch.tensor([[0, 1], [0, 2]]), learned(2, 4, 4)
    ),
    "ChainCRF": lambda: ebm.energies.ChainCRF(learned(4, 3), learned(3, 3)),
    "Particles": lambda: ebm.energies.Particles(3, 2, trap=1.0, epsilon=0.8),
}
"""Every energy of the namespace that can be written, most with something to learn."""

HOLD_CODE = {"Classifier", "ExponentialFamily", "FromDistribution"}
"""Those that are made of a network, a function or a distribution of the user's."""
NOT_FOR_USE = {"Energy", "DiscreteEnergy"}


def test_every_energy_is_saved_or_holds_code():
    public = {
        name for name in ebm.energies.__all__ if isinstance(getattr(ebm.energies, name), type)
    }
    assert public - ENERGIES.keys() == HOLD_CODE | NOT_FOR_USE


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", ENERGIES)
def test_loaded_energy_is_the_energy_bit_for_bit(name, dtype, tmp_path):
    torch.set_default_dtype(dtype)
    energy = ENERGIES[name]()
    model = EBM(energy)
    model.history["loss"] = [0.0]
    model.save(tmp_path / "m")
    torch.set_default_dtype(torch.float32)
    loaded = EBM.load(tmp_path / "m").energy
    torch.set_default_dtype(dtype)
    assert type(loaded) is type(energy)
    assert repr(loaded.support) == repr(energy.support)
    x = torch.randn(20, *energy.event_shape)
    if energy.support.is_discrete:
        x = x.sign() if "spins" in name or "Ising" in name else (x > 0).to(x)
    assert torch.equal(loaded(x), energy(x))
    assert loaded(x).unique().numel() > 1
    learned = {key for key, p in energy.named_parameters() if p.requires_grad}
    assert {key for key, p in loaded.named_parameters() if p.requires_grad} == learned
    assert loaded.has_log_z == energy.has_log_z
    if energy.has_log_z:
        assert torch.equal(loaded.log_z(), energy.log_z())


class OnSupport(ebm.energies.Energy):
    """A user's energy over a support that is given."""

    def forward(self, x):
        return x.square().reshape(*x.shape[: x.dim() - len(self.event_shape)], -1).sum(-1)


@pytest.mark.parametrize(
    "support",
    [
        constraints.positive,
        constraints.unit_interval,
        constraints.interval(-1.0, torch.tensor(2.5)),
        constraints.greater_than(0.25),
        constraints.independent(constraints.integer_interval(0, 4), 1),
        constraints.independent(ebm.energies.spins, 2),
        constraints.simplex,
    ],
)
def test_supports_are_written_by_name(support, tmp_path):
    model = EBM(OnSupport((3,) * support.event_dim, support))
    model.history["loss"] = [0.0]
    model.save(tmp_path / "m")
    loaded = EBM.load(tmp_path / "m", classes=[OnSupport]).energy
    assert repr(loaded.support) == repr(support)
    x = torch.tensor([[-1.0, 0.1, 0.5, 2.0, 7.0]]).T
    assert torch.equal(loaded.support.check(x), support.check(x))
