"""A classifier as an energy: one network, three laws that agree exactly."""

import math

import pyro
import pytest
import torch
from laws import assert_chain_mean, assert_close
from torch import nn, tensor

import pyro_ebm as ebm
from pyro_ebm.energies import Classifier, Gaussian
from pyro_ebm.kernels import HMC, MALA
from pyro_ebm.objectives import ContrastiveDivergence, PersistentCD

NUM_CLASSES = 3


def classifier(dim, base_scale=2.0, gain=3.0):
    """A skewed one: its classes differ in mass, place and shape."""
    network = nn.Sequential(nn.Linear(dim, 8), nn.SiLU(), nn.Linear(8, NUM_CLASSES))
    with torch.no_grad():
        network[-1].weight.mul_(gain)
        network[-1].bias.copy_(tensor([1.0, 0.0, -0.5]))
    return Classifier((dim,), network, base_scale)


def grid(dim, num_points):
    """Points over eight standard deviations of the base and more, and the log of a cell."""
    axis = torch.linspace(-40, 40, num_points)
    x = torch.cartesian_prod(*[axis] * dim).reshape(-1, dim)
    return x, dim * (axis[1] - axis[0]).log()


def log_z(energy, x, log_cell):
    return (-energy(x)).logsumexp(0) + log_cell


@pytest.mark.parametrize(("dim", "num_points"), [(1, 20_001), (2, 801)])
def test_joint_is_marginal_times_label(dim, num_points):
    """log p(x, y) = log p(x) + log p(y | x), each law normalised by itself."""
    energy = classifier(dim)
    x, log_cell = grid(dim, num_points)
    marginal = -energy(x) - log_z(energy, x, log_cell)
    joint = torch.stack([-energy.given(y)(x) for y in range(NUM_CLASSES)], -1)
    joint = joint - joint.logsumexp((0, 1)) - log_cell
    label = energy.label(x)
    given_x = torch.stack([label.log_prob(tensor(y)) for y in range(NUM_CLASSES)], -1)
    torch.testing.assert_close(joint, marginal.unsqueeze(-1) + given_x)
    torch.testing.assert_close((marginal + log_cell).exp().sum(), tensor(1.0))
    torch.testing.assert_close(given_x.exp().sum(-1), torch.ones(len(x)))


def test_label_is_normalised_by_the_network_alone():
    """What the base adds is common to all classes: the probabilities are the softmax."""
    energy = classifier(2)
    x = torch.randn(4, 5, 2)
    torch.testing.assert_close(energy.label(x).probs, energy.network(x).softmax(-1))
    assert energy.label(x).batch_shape == (4, 5)


def test_labels_broadcast_with_points():
    energy = classifier(2)
    x = torch.randn(4, 5, 2)
    y = torch.arange(4).reshape(4, 1) % NUM_CLASSES
    each = torch.stack([energy.given(i % NUM_CLASSES)(x[i]) for i in range(4)])
    torch.testing.assert_close(energy.given(y)(x), each)
    torch.testing.assert_close(energy.given(y.expand(4, 5))(x), each)
    torch.testing.assert_close(energy.given(torch.arange(NUM_CLASSES))(x[0, 0]).shape, (3,))


@pytest.mark.parametrize("y", range(NUM_CLASSES))
def test_chains_of_a_class_follow_its_law(y):
    energy = classifier(1)
    x, log_cell = grid(1, 20_001)
    conditional = energy.given(y)
    probs = (-conditional(x) - log_z(conditional, x, log_cell) + log_cell).exp()
    mean = (probs @ x).detach()
    second = (probs @ x.square()).detach()
    p = ebm.Boltzmann(conditional, event_shape=(1,))
    mcmc = ebm.MCMC(
        HMC(p, num_steps=4), 50, warmup_steps=100, num_chains=300, disable_progbar=True
    )
    mcmc.run()
    draws = mcmc.get_samples(group_by_chain=True)["x"]
    assert_chain_mean(draws, mean)
    assert_chain_mean(draws.square(), second)


def model_of(energy):
    def model(x, y):
        with pyro.plate("data", len(x)):
            x = pyro.sample("x", ebm.Boltzmann(energy), obs=x)
            pyro.sample("y", energy.label(x), obs=y)

    return model


def test_gradient_of_the_model_is_that_of_the_joint_likelihood():
    """By quadrature: mean of grad E(x, y) over data minus its mean over the model."""
    energy = classifier(1)
    x = torch.randn(200, 1).exp()
    y = (x.squeeze(-1) > 1).long() + (x.squeeze(-1) > 3).long()
    points, log_cell = grid(1, 20_001)
    exact = energy.given(y)(x).sum() + 200 * log_z(energy, points, log_cell)
    parameters = list(energy.parameters())
    exact = torch.cat([g.flatten() for g in torch.autograd.grad(exact, parameters)])
    objective = PersistentCD(HMC(step_size=0.6, num_steps=5), num_chains=400, num_steps=10)
    gradients = []
    for _ in range(60):
        objective.loss_and_grads(model_of(energy), ebm.no_guide, x, y)
        gradients.append(torch.cat([p.grad.flatten() for p in parameters]))
        energy.zero_grad()
    gradients = torch.stack(gradients[5:])
    varies = gradients.std(0) > 1e-9 * gradients.abs().max()
    assert varies.sum() > 0.9 * len(varies)
    standard_error = gradients.std(0) / math.sqrt(len(gradients))
    assert_close(gradients.mean(0)[varies], exact[varies], standard_error[varies])


def test_serves_conditional_objectives():
    energy = classifier(1)
    p = ebm.Boltzmann(energy.given(tensor([0, 2, 1])), event_shape=(1,))
    surrogate = ContrastiveDivergence(MALA(step_size=0.1)).surrogate(p, torch.randn(3, 1))
    assert surrogate.shape == (3,)
    with pytest.raises(ValueError, match="is conditional"):
        PersistentCD(MALA(), 5).surrogate(p, torch.randn(3, 1))


def test_classes_compose_with_other_energies():
    energy = classifier(2)
    expert = Gaussian(tensor([1.0, 0.0]), 2.0)
    x = torch.randn(5, 2)
    torch.testing.assert_close((energy.given(1) + expert)(x), energy.given(1)(x) + expert(x))


@pytest.mark.parametrize("y", [3, -1, 0.5, [0, 3]])
def test_refuses_a_label_that_is_no_class(y):
    with pytest.raises(ValueError, match="y must hold integers from 0 to 2, got"):
        classifier(1).given(y if isinstance(y, int) else tensor(y))


@pytest.mark.parametrize(
    ("network", "shape"),
    [(lambda: nn.Linear(2, 1), r"\(7, 1\)"), (lambda: nn.Flatten(0), r"\(14,\)")],
    ids=["one logit", "flat"],
)
def test_refuses_a_network_without_classes(network, shape):
    energy = Classifier((2,), network())
    with pytest.raises(ValueError, match=rf"network must map .* two classes or more, got {shape}"):
        energy(torch.randn(7, 2))


def test_refuses_a_base_without_width():
    with pytest.raises(ValueError, match="base_scale must be positive"):
        Classifier((2,), nn.Linear(2, 3), base_scale=0.0)
