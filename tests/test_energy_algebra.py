"""Laws of composed, learned and broken energies: algebra, gradients of parameters, guards."""

import copy
import functools

import pytest
import torch
from cases import ENERGIES, ENERGIES_EXACT, SKEWED
from laws import assert_mean, points, quadrature
from torch import nn, tensor
from torch.distributions import constraints

from pyro_ebm.energies import (
    MLP,
    Banana,
    Conv,
    DoubleWell,
    Energy,
    Funnel,
    Gaussian,
    GaussianMixture,
    Laplace,
    Sum,
    TwoModes,
    mixture,
)
from pyro_ebm.energies.base import check_energy, module_of, trainable_parameters

# ----------------------------------------------------------------------------------- the algebra


@pytest.fixture(params=SKEWED)
def pair(request):
    """A skewed energy and another over the same points."""
    a = SKEWED[request.param]()
    b = Gaussian(torch.full(a.event_shape, 0.7), 0.3)
    return a, b, points(a, 4, 3)


def test_sum_is_the_product_of_densities(pair):
    a, b, x = pair
    torch.testing.assert_close((a + b)(x), a(x) + b(x))
    torch.testing.assert_close((a + (lambda x: b(x)))(x), a(x) + b(x))
    torch.testing.assert_close(((lambda x: b(x)) + a)(x), a(x) + b(x))
    torch.testing.assert_close(sum([a, b, a])(x), 2 * a(x) + b(x))
    assert (a + b).event_shape == a.event_shape


def test_weights_and_temperatures_scale_the_energy(pair):
    a, b, x = pair
    for scaled in (2.5 * a, a * 2.5, a / 0.4, a * tensor(2.5)):
        torch.testing.assert_close(scaled(x), 2.5 * a(x))
        torch.testing.assert_close(scaled.grad(x), 2.5 * a.grad(x))
    torch.testing.assert_close((a - 0.5 * b)(x), a(x) - 0.5 * b(x))


def test_composites_claim_neither_log_z_nor_samples(pair):
    a, b, _ = pair
    for composite in (a + b, 2.0 * a, a / 3.0, a - b):
        assert not composite.has_log_z
        assert not composite.has_sample


def test_product_of_gaussians_weighs_means_by_precision():
    both = Gaussian(tensor([0.0]), 1.0) + Gaussian(tensor([1.0]), 3.0)
    assert both.grad(tensor([0.75])).item() == pytest.approx(0.0, abs=1e-12)


def test_mixture_weights_are_those_of_normalised_parts():
    """Parts of very unlike Z appear as often as their weights say."""
    parts = [DoubleWell(beta=4.0), Gaussian(tensor(50.0), 0.01)]
    either = mixture(parts, [1.0, 3.0])
    x, log_weights, _ = quadrature(either)
    probs = (log_weights - either(x)).exp()
    assert probs.sum().item() == pytest.approx(1.0, abs=1e-6)
    assert probs[x < 5].sum().item() == pytest.approx(0.25, abs=1e-5)
    assert_mean((either.sample(20_000) < 5).double(), 0.25)


def test_mixture_of_given_log_z_weighs_as_told_and_claims_no_normaliser():
    parts = [DoubleWell(1.0), MLP(())]
    either = mixture(parts, [0.3, 0.7], log_z=[tensor(0.679926243), 1.5])
    x = points(either, 5)
    densities = [0.3 * (-parts[0](x) - 0.679926243).exp(), 0.7 * (-parts[1](x) - 1.5).exp()]
    torch.testing.assert_close((-either(x)).exp(), sum(densities))
    assert not either.has_log_z
    assert not either.has_sample
    with pytest.raises(NotImplementedError, match="log Z of Mixture"):
        either.log_z()
    with pytest.raises(NotImplementedError, match="Mixture has no exact sampler"):
        either.sample(3)


def test_mixtures_nest():
    inner = mixture([Gaussian(tensor(-3.0), 1.0), Gaussian(tensor(0.0), 1.0)], [0.5, 0.5])
    outer = mixture([inner, Gaussian(tensor(30.0), 1.0)], [0.4, 0.6])
    assert_mean((outer.sample(20_000) < 10).double(), 0.4)
    assert outer.log_z().item() == pytest.approx(0.0, abs=1e-12)


# -------------------------------------------------------------------------------------- learning


def parameter(values):
    return nn.Parameter(tensor(values))


LEARNABLE = {
    "gaussian": lambda: Gaussian(parameter([0.3, -1.0]), parameter([0.5, 2.0])),
    "gaussian_matrix": lambda: Gaussian(
        parameter([0.3, -1.0]), parameter([[2.0, 0.6], [0.6, 1.0]])
    ),
    "laplace": lambda: Laplace(parameter([0.3, -1.0]), parameter([0.5, 2.0])),
    "gaussian_mixture": lambda: GaussianMixture(
        parameter([0.25, 0.75]), parameter([[0.0], [2.0]]), parameter([0.5, 0.8])
    ),
    "two_modes": lambda: TwoModes(parameter(0.5), -2.0, 1.0),
    "double_well": lambda: DoubleWell(parameter(1.5), parameter(0.4)),
    "banana": lambda: Banana(parameter(1.2), parameter(0.4)),
    "funnel": lambda: Funnel(3, parameter(0.8)),
    "mixture": lambda: mixture(
        [Gaussian(parameter([0.3]), parameter([0.5])), Gaussian(parameter([2.0]), 1.0)],
        parameter([0.3, 0.7]),
    ),
    "scaled": lambda: Gaussian(parameter([0.3]), 1.0) * parameter(0.7),
    "sum": lambda: Gaussian(parameter([0.3]), 1.0) + Laplace(parameter([1.0]), 2.0),
    "mlp": lambda: MLP((2,), (4,)),
    "conv": lambda: Conv((1, 4, 4), (2, 3)),
}
NUM_PARAMETERS = {
    "gaussian": 2,
    "gaussian_matrix": 2,
    "laplace": 2,
    "gaussian_mixture": 3,
    "two_modes": 1,
    "double_well": 2,
    "banana": 2,
    "funnel": 1,
    "mixture": 4,
    "scaled": 2,
    "sum": 2,
    "mlp": 4,
    "conv": 6,
}


@pytest.fixture(params=LEARNABLE)
def learnable(request):
    return request.param, LEARNABLE[request.param]()


def test_parameters_stay_learnable_and_gradients_reach_them(learnable):
    name, energy = learnable
    parameters = trainable_parameters(energy)
    assert len(parameters) == NUM_PARAMETERS[name]
    # The bias of a network's last layer shifts E by a constant: its gradient is that of the sum.
    energy(points(energy, 5)).square().sum().backward()
    assert all(p.grad is not None and bool((p.grad != 0).any()) for p in parameters)


def test_log_z_falls_by_the_mean_gradient_of_the_energy(learnable):
    """d log Z / d theta = -E[dE / d theta]: what maximum likelihood stands on."""
    _, energy = learnable
    if not energy.has_log_z:
        pytest.skip("no closed form")
    parameters = dict(energy.named_parameters())
    of_log_z = torch.autograd.grad(energy.log_z(), list(parameters.values()), allow_unused=True)
    x = energy.sample(20_000).detach()

    def one_point(values, point):
        return torch.func.functional_call(energy, values, (point,))

    per_point = torch.func.vmap(torch.func.grad(one_point), in_dims=(None, 0))(parameters, x)
    for slope, name in zip(of_log_z, parameters, strict=True):
        slope = torch.zeros_like(parameters[name]) if slope is None else slope
        assert_mean(per_point[name] + slope, torch.zeros_like(slope))


@pytest.mark.parametrize("name", ENERGIES_EXACT)
def test_data_does_not_become_a_parameter(name):
    assert trainable_parameters(ENERGIES_EXACT[name]()) == []


# ------------------------------------------------------------------------------------ the guards


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: Energy((2,), constraints.real),
            r"event_dim 0, but event_shape is \(2,\); wrap it",
        ),
        (lambda: Gaussian(torch.zeros(2), -1.0), "precision must be positive, got -1"),
        (
            lambda: Gaussian(torch.zeros(2), tensor([[1.0, 2.0], [2.0, 1.0]])),
            "not positive definite and symmetric",
        ),
        (
            lambda: Gaussian(torch.zeros(2), torch.eye(3)),
            r"\(3, 3\) does not fit loc of shape \(2,\)",
        ),
        (
            lambda: Gaussian(torch.zeros(2), torch.ones(3)),
            r"\(3,\) does not broadcast to loc of shape \(2,\)",
        ),
        (
            lambda: Laplace(tensor(0.0), torch.ones(2)),
            r"\(2,\) does not broadcast to loc of shape \(\)",
        ),
        (lambda: Banana(scale=-1.0), "scale must be positive and finite, got -1.0"),
        (lambda: Funnel(3, scale=0.0), "scale must be positive and finite, got 0.0"),
        (
            lambda: Gaussian(tensor(0.0), torch.ones(3)),
            r"\(3,\) does not broadcast to loc of shape \(\)",
        ),
        (lambda: Laplace(torch.zeros(2), 0.0), "scale must be positive"),
        (lambda: GaussianMixture([1.0], torch.zeros(1), 1.0), r"locs must have shape \(K, D\)"),
        (
            lambda: GaussianMixture([1.0], torch.zeros(2, 1), 1.0),
            "weights must be 2 positive numbers",
        ),
        (
            lambda: GaussianMixture([1.0, 0.0], torch.zeros(2, 1), 1.0),
            "weights must be 2 positive",
        ),
        (lambda: GaussianMixture([1.0, 1.0], torch.zeros(2, 1), -1.0), "scales must be positive"),
        (lambda: DoubleWell(beta=0.0), r"beta must be positive and finite, got 0\.0"),
        (lambda: Funnel(num_dims=1), "num_dims must be at least 2, got 1"),
        (lambda: MLP((2,), base_scale=0.0), "base_scale must be positive"),
        (lambda: Conv((8, 8)), r"event_shape must be \(channels, height, width\), got \(8, 8\)"),
        (lambda: Conv((1, 8, 8), base_scale=-1.0), "base_scale must be positive"),
        (lambda: Sum([torch.sin]), "at least one term must be an Energy"),
        (lambda: DoubleWell() + Banana(), r"DoubleWell has \(\) on Real\(\), Banana has \(2,\)"),
        (lambda: mixture([DoubleWell(), Banana()], [0.5, 0.5]), "share event_shape and support"),
        (lambda: mixture([DoubleWell(), MLP(())], [0.5, 0.5]), r"but MLP has none.*pass log_z="),
        (lambda: mixture([DoubleWell()], [0.5, 0.5]), "weights must be 1 positive numbers"),
        (lambda: mixture([DoubleWell(), DoubleWell()], [1.0, -1.0]), "2 positive numbers"),
    ],
)
def test_bad_arguments_are_refused_by_name(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_supports_must_agree():
    on_interval = Energy((), constraints.interval(0.0, 1.0))
    with pytest.raises(ValueError, match="energies must share event_shape and support"):
        on_interval + DoubleWell()


@pytest.mark.parametrize(
    ("layer", "size"), [(nn.Dropout, 0.1), (nn.BatchNorm1d, 2), (nn.AlphaDropout, 0.1)]
)
def test_train_mode_layers_are_refused_until_eval(layer, size):
    network = nn.Sequential(layer(size), nn.Linear(2, 1), nn.Flatten(0))
    with pytest.raises(ValueError, match=rf"layer 0 \({layer.__name__}\) in train mode"):
        check_energy(network, torch.randn(3, 2))
    with pytest.raises(ValueError, match="in train mode"):
        check_energy(functools.partial(network), torch.randn(3, 2))
    check_energy(network.eval(), torch.randn(3, 2))


def test_an_energy_that_is_random_behind_a_function_is_refused():
    network = nn.Sequential(nn.Linear(2, 9), nn.Dropout(0.5), nn.Linear(9, 1), nn.Flatten(0))
    with pytest.raises(ValueError, match=r"must be one fixed function.*Dropout"):
        check_energy(lambda x: network(x), torch.randn(3, 2))
    network.eval()
    check_energy(lambda x: network(x), torch.randn(3, 2))


@pytest.mark.parametrize(
    ("energy", "message"),
    [
        (
            lambda x: x @ x.new_ones(2, 1),
            r"\(3, 2\) to shape \(3,\).*got \(3, 1\): sum over .* a trailing dimension of one",
        ),
        (lambda x: x.sum(), r"to shape \(3,\).*got \(\)"),
        (lambda x: 1.0, r"to shape \(3,\).*got float"),
        (lambda x: x.sum(-1).float(), r"x is torch\.float64 on cpu, the energy is torch\.float32"),
        (lambda x: x.sum(-1).to("meta"), "x is torch.float64 on cpu, the energy is .* on meta"),
        (lambda x: x.detach().sum(-1), "energy is not differentiable in x"),
        (lambda x: (x.sum(-1) > 0).double(), "energy is not differentiable in x"),
        (lambda x: x.detach().sum(-1) * parameter(1.0), "energy is not differentiable in x"),
    ],
)
def test_broken_contracts_are_refused_at_the_edge(energy, message):
    with pytest.raises(ValueError, match=message):
        check_energy(energy, torch.randn(3, 2))


@pytest.mark.parametrize("name", ENERGIES)
def test_every_energy_passes_its_own_check(name):
    energy = ENERGIES[name]()
    check_energy(energy, points(energy, 3))
    check_energy(functools.partial(energy), points(energy, 3))


def test_modules_are_found_through_partials():
    energy = MLP((2,))
    conditional = functools.partial(functools.partial(energy), create_graph=True)
    assert module_of(conditional) is energy
    assert len(trainable_parameters(conditional)) == len(list(energy.parameters()))
    assert module_of(torch.sin) is None
    assert trainable_parameters(torch.sin) == []
    frozen = MLP((2,)).requires_grad_(False)
    assert trainable_parameters(frozen) == []


def test_every_kind_of_term_keeps_its_parameters():
    net = MLP((2,), (4,))
    conditional = functools.partial(net)
    temperature = nn.Parameter(tensor(2.0))
    for energy in (
        Gaussian(torch.zeros(2), 1.0) + conditional,
        Gaussian(torch.zeros(2), 1.0) - conditional,
        net / temperature,
    ):
        assert set(map(id, net.parameters())) <= set(map(id, trainable_parameters(energy)))
        copy.deepcopy(energy)(torch.zeros(3, 2)).sum().backward()
    hot = net / temperature
    assert any(parameter is temperature for parameter in trainable_parameters(hot))
    hot(torch.ones(3, 2)).sum().backward()
    torch.testing.assert_close(temperature.grad, -net(torch.ones(3, 2)).sum() / 4)


def test_a_difference_may_take_a_plain_callable():
    x = torch.randn(5, 2)
    energy = Gaussian(torch.zeros(2), 1.0) - (lambda x: x.sum(-1))
    torch.testing.assert_close(energy(x), 0.5 * x.square().sum(-1) - x.sum(-1))


def test_a_weight_keeps_the_dtype_of_the_energy():
    single = MLP((2,), (4,)).float()
    weight = tensor(0.5, dtype=torch.float64)
    x = torch.randn(5, 2, dtype=torch.float32)
    for energy in (weight * single, single / weight, mixture([single], [1.0], log_z=[0.0])):
        assert energy(x).dtype == torch.float32
    assert "weight" in (weight * single).state_dict()
