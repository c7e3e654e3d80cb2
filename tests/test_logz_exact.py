"""log Z without sampling: every way to it gives the sum over all points, at any temperature."""

import math

import pytest
import torch
from discrete_cases import DISCRETE, torus, uneven
from torch import tensor
from torch.distributions import constraints

from pyro_ebm import Boltzmann, logz
from pyro_ebm.energies import (
    MLP,
    RBM,
    BoltzmannMachine,
    ChainCRF,
    Gaussian,
    GaussianRBM,
    Ising,
    IsingGraph,
    MarkovRandomField,
    Potts,
    spins,
)
from pyro_ebm.energies.enumeration import enumerate_points
from pyro_ebm.logz.exact import cooled


def machine(site=spins):
    weights = uneven(25, -0.6, 0.8).reshape(5, 5)
    weights = (weights + weights.T) / 2
    return BoltzmannMachine(weights - weights.diagonal().diag(), uneven(5, -0.5, 0.9), site)


def rbm():
    return RBM(uneven(15, -1.2, 1.5).reshape(5, 3), uneven(5, -1.0, 0.6), uneven(3, -0.4, 0.8))


LINEAR = {
    "Ising": lambda: Ising((3, 4), 0.3),
    "Ising with a field": lambda: Ising((4, 2), 0.3, uneven(8, -0.1, 0.4).reshape(4, 2), False),
    "Potts": lambda: Potts((3, 3), 3, 0.4, tensor([0.3, -0.2, 0.1])),
    "IsingGraph": lambda: IsingGraph(torus(3, 3), uneven(18, -0.5, 0.6), uneven(9, -0.3, 0.5)),
    "MarkovRandomField": lambda: MarkovRandomField(
        uneven(27, -0.4, 0.5).reshape(9, 3), torus(3, 3), 0.5 * torch.eye(3)
    ),
    "ChainCRF": lambda: ChainCRF(
        uneven(15, -0.8, 0.7).reshape(5, 3), uneven(9, -0.4, 0.9).reshape(3, 3)
    ),
    "BoltzmannMachine": machine,
    "DBM": lambda: rbm().joint(),
}


def summed(energy, temperature=1.0):
    x = enumerate_points(energy.support, energy.event_shape, torch.zeros(()))
    return (-energy(x).double() / temperature).logsumexp(0).item()


@pytest.mark.parametrize("name", LINEAR)
@pytest.mark.parametrize("temperature", [1.0, 1.7, tensor(0.6)])
def test_the_energys_own_sum_is_at_the_temperature_of_the_law(name, temperature):
    energy = LINEAR[name]()
    z = logz.exact(Boltzmann(energy, temperature=temperature))
    assert z.method == f"exact: {type(energy).__name__}.log_z"
    assert z.value == pytest.approx(summed(energy, float(temperature)), abs=1e-5)
    assert z.std_error == 0
    assert z.lower == z.value == z.upper


def test_tempered_and_scaled_energies_are_seen_through():
    energy = LINEAR["Potts"]()
    for law, temperature in [
        (Boltzmann(energy / 2.0, temperature=1.5), 3.0),
        (Boltzmann(0.5 * energy), 2.0),
    ]:
        z = logz.exact(law)
        assert z.method == "exact: Potts.log_z"
        assert z.value == pytest.approx(summed(energy, temperature), abs=1e-5)
    inverted = logz.exact(Boltzmann(-1.0 * energy))
    assert inverted.method == "exact: enumeration"
    assert inverted.value == pytest.approx(summed(energy, -1.0), abs=1e-5)


def test_rbm_is_its_own_sum_at_temperature_one_and_enumerated_elsewhere():
    energy = rbm()
    for temperature, method in [(1.0, "exact: RBM.log_z"), (2.0, "exact: enumeration")]:
        z = logz.exact(Boltzmann(energy, temperature=temperature))
        assert z.method == method
        assert z.value == pytest.approx(summed(energy, temperature), abs=1e-5)


@pytest.mark.parametrize("name", [name for name in DISCRETE if "curved" in name])
def test_plain_callables_are_enumerated(name):
    energy, told = DISCRETE[name]()
    z = logz.exact(Boltzmann(energy, temperature=1.3, **told))
    x = enumerate_points(told["support"], told["event_shape"], torch.zeros(()))
    assert z.method == "exact: enumeration"
    assert z.value == pytest.approx((-energy(x).double() / 1.3).logsumexp(0).item(), abs=1e-6)


def test_blocks_add_up():
    bias = uneven(20, -0.5, 0.9)
    law = Boltzmann(
        lambda x: -x @ bias,
        event_shape=(20,),
        support=constraints.independent(constraints.boolean, 1),
    )
    exact = bias.double().exp().log1p().sum().item()
    assert logz.exact(law).value == pytest.approx(exact, abs=1e-5)


def test_another_support_is_not_that_of_the_energys_sum():
    energy = Ising((6,), 0.4)
    law = Boltzmann(energy, support=constraints.independent(constraints.boolean, 1))
    z = logz.exact(law)
    x = enumerate_points(law.support, (6,), torch.zeros(()))
    assert z.value == pytest.approx((-energy(x)).double().logsumexp(0).item(), abs=1e-5)
    assert z.value != pytest.approx(energy.log_z().item(), abs=0.1)


@pytest.mark.parametrize(
    ("shape", "coupling", "exact"),
    [
        ((3, 3), 0.44068679350977, 9.020213400944),
        ((8, 8), 0.44, 60.076307527215),
        ((16, 16), 0.44068679350977, 238.642256635133),
        ((32, 32), 0.44068679350977, 952.648079548543),
    ],
)
def test_torus_is_exact_beyond_float32(shape, coupling, exact):
    coupling = tensor(coupling, dtype=torch.float64)
    assert logz.exact(Boltzmann(Ising(shape, coupling))).value == pytest.approx(exact, abs=1e-9)
    hot = Boltzmann(Ising(shape, 3 * coupling), temperature=3.0)
    assert logz.exact(hot).value == pytest.approx(exact, abs=1e-9)


def test_parameters_stay_as_they_are():
    energy = Ising((4, 4), torch.nn.Parameter(tensor(0.3)))
    cold = cooled(energy, 0.5)
    assert cold.coupling.item() == pytest.approx(0.6)
    assert not cold.coupling.requires_grad
    assert energy.coupling.item() == pytest.approx(0.3)
    assert energy.coupling.requires_grad


def test_continuous_targets_that_are_known():
    gaussian = logz.exact(Boltzmann(Gaussian(torch.zeros(2), 1.0)))
    assert gaussian.method == "exact: Gaussian.log_z"
    assert gaussian.value == pytest.approx(math.log(2 * math.pi))
    given = logz.exact(Boltzmann(lambda x: x**2, event_shape=(), log_z=0.5 * math.log(math.pi)))
    assert given.method == "exact: given"
    mixture = GaussianRBM(uneven(6, -1, 1).reshape(2, 3), torch.zeros(2), torch.zeros(3))
    by_grid = logz.quadrature(Boltzmann(mixture)).value
    assert logz.exact(Boltzmann(mixture)).value == pytest.approx(by_grid, abs=1e-5)


def test_estimate_asks_for_the_exact_value_first():
    assert logz.estimate(Boltzmann(rbm())).method == "exact: RBM.log_z"
    hot = logz.estimate(Boltzmann(Ising((32, 32), 1.0), temperature=2.5))
    assert hot.method == "exact: Ising.log_z"


WRONG = {
    r"RBM at temperature 2 .* about 10\^12 points, as many evaluations .*logz\.smc": (
        lambda: logz.exact(Boltzmann(RBM.initial(40, 4), temperature=2.0))
    ),
    r"BoltzmannMachine .* about 10\^12 points": lambda: logz.exact(
        Boltzmann(BoltzmannMachine(torch.zeros(40, 40), torch.zeros(40)))
    ),
    r"Ising at temperature 1 .* about 10\^1233": lambda: logz.exact(
        Boltzmann(Ising((64, 64), 0.3, 0.1))
    ),
    r"4096 points.* max_points allows 1000": lambda: logz.exact(
        Boltzmann(RBM.initial(12, 2), temperature=2.0), max_points=1000
    ),
    r"MLP at temperature 1 is not known, .* cannot be enumerated: use .*quadrature": (
        lambda: logz.exact(Boltzmann(MLP((4,))))
    ),
    r"Gaussian at temperature 2 is not known": lambda: logz.exact(
        Boltzmann(Gaussian(torch.zeros(2), 1.0), temperature=2.0)
    ),
    "of a Boltzmann distribution, got MLP": lambda: logz.estimate(MLP((2,))),
    "of a Boltzmann distribution, got function": lambda: logz.quadrature(lambda x: x),
    r"of one distribution, got batch_shape \(3,\)": lambda: logz.exact(
        Boltzmann(Ising((4, 4), 0.3)).expand([3])
    ),
}


@pytest.mark.parametrize("message", WRONG)
def test_refuses_with_the_cost_and_the_way_out(message):
    with pytest.raises(ValueError, match=message):
        WRONG[message]()
