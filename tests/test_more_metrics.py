"""Laws of the metrics of fidelity, variety, copying and known laws, against what is exact."""

import math

import pytest
import torch

from pyro_ebm import datasets
from pyro_ebm.metrics import (
    data_copying,
    kl_divergence,
    mode_weights,
    precision_recall,
    sliced_wasserstein,
)


def over_seeds(draw, num_seeds=200):
    return torch.tensor([draw() for _ in range(num_seeds)]).unbind(1)


# sliced Wasserstein


def test_along_a_line_shifted_samples_are_apart_by_their_means():
    x, y = torch.randn(30, 1).exp(), 20 + 2 * torch.randn(50, 1).exp()
    distance = sliced_wasserstein(x, y)
    assert math.isclose(distance.value, (y.mean() - x.mean()).item(), rel_tol=1e-12)
    error = (x.var() / 30 + y.var() / 50).sqrt().item()
    assert math.isclose(distance.std_error, error, rel_tol=1e-9)


def test_distance_of_gaussians_averages_over_directions_with_an_honest_error():
    """N(0, 1) and N(m, 1) are |m . theta| apart along theta: 2 |m| / pi on the average."""
    shift = torch.tensor([6.0, -8.0])

    def draw():
        return sliced_wasserstein(torch.randn(80, 2), shift + torch.randn(120, 2), 40)

    values, errors = over_seeds(draw)
    assert abs(values.mean() - 20 / math.pi) < 5 * values.std() / math.sqrt(len(values)) + 0.02
    ratio = errors.square().mean() / values.var()
    assert abs(ratio - 1) < 5 * math.sqrt(2 / len(values))


def test_distance_ignores_the_order_of_rows_and_sees_ties():
    x = torch.tensor([[0.0], [0.0], [1.0], [1.0]])
    y = torch.tensor([[1.0], [0.0], [1.0], [1.0]])
    assert sliced_wasserstein(x, x.flip(0)).value == 0
    assert math.isclose(sliced_wasserstein(x, y).value, 0.25)


# neighbours


def test_precision_and_recall_of_points_counted_by_hand():
    data = torch.tensor([[0.0], [1.0], [2.0], [27.0]])  # radii 1, 1, 1, 25 at k = 1
    samples = torch.tensor([[30.0], [34.0], [-1.0], [-1.5]])  # radii 4, 4, 0.5, 0.5
    found = precision_recall(samples, data, k=1)
    assert found.precision.value == 0.75  # all but -1.5
    assert found.recall.value == 0.25  # 27 alone, by the radius of 30
    found = precision_recall(samples, data, k=2)  # radii 2, 1, 2, 26 and 31 or more
    assert found.precision.value == found.recall.value == 1.0


def test_blur_costs_precision_and_a_lost_mode_recall():
    data, floor, many = (datasets.two_modes(400) for _ in range(3))
    real = precision_recall(floor, data)
    blurred = precision_recall(floor + torch.randn_like(floor), data)
    lost = precision_recall(many[many[:, 0] < 0], data)
    gap = math.hypot(real.precision.std_error, blurred.precision.std_error)
    assert real.precision.value - blurred.precision.value > 5 * gap
    assert lost.precision.value > 0.95
    expected = 0.8 * real.recall.value
    assert abs(lost.recall.value - expected) < 5 * lost.recall.std_error
    assert real.recall.value - lost.recall.value > 3 * lost.recall.std_error


def test_errors_of_precision_and_recall_are_about_right():
    def draw():
        found = precision_recall(torch.randn(150, 4), 0.3 + 1.3 * torch.randn(120, 4))
        return [*found.precision, *found.recall]

    draws = torch.tensor([draw() for _ in range(200)])
    for values, errors in (draws[:, :2].T, draws[:, 2:].T):
        ratio = errors.square().mean() / values.var()
        assert 0.5 < ratio < 2


def test_copying_is_half_for_the_law_itself_and_sees_copies():
    values, _ = over_seeds(lambda: data_copying(*(torch.randn(n, 3) for n in (60, 100, 40))), 300)
    assert abs(values.mean() - 0.5) < 5 * values.std() / math.sqrt(300)
    train, test = torch.randn(100, 3), torch.randn(40, 3)
    half = torch.cat([train[:50], torch.randn(50, 3)])
    assert data_copying(train, train, test).value == 1.0
    found = data_copying(half, train, test)
    assert abs(found.value - 0.75) < 5 * found.std_error
    blurred = data_copying(3 * torch.randn(100, 3), train, test)
    assert blurred.value < 0.5 - 5 * blurred.std_error


# known laws


def test_divergence_of_gaussians_is_theirs_and_not_the_reverse():
    p = torch.distributions.Normal(torch.tensor([0.5, -1.0]), torch.tensor([0.4, 0.8]))
    q = torch.distributions.Normal(torch.tensor([0.0, 0.3]), torch.tensor([0.7, 0.5]))
    found = kl_divergence(lambda x: p.log_prob(x).sum(-1), lambda x: q.log_prob(x).sum(-1))
    exact = torch.distributions.kl_divergence(p, q).sum().item()
    assert abs(found.value - exact) < 1e-6
    assert abs(torch.distributions.kl_divergence(q, p).sum().item() - exact) > 0.1


@pytest.mark.parametrize("name", ["checkerboard", "eight_gaussians", "two_modes", "two_moons"])
def test_divergence_agrees_with_a_mean_over_draws(name):
    law = getattr(datasets, name)
    q = torch.distributions.MultivariateNormal(
        torch.tensor([0.5, 0.0]), torch.tensor([[4.0, 1.0], [1.0, 3.0]])
    )
    x = law(20_000)
    gaps = law.log_prob(x) - q.log_prob(x)
    found = kl_divergence(law.log_prob, q.log_prob, law.half_width)
    assert found.std_error < 1e-3
    assert abs(found.value - gaps.mean().item()) < 5 * gaps.std().item() / math.sqrt(len(x))
    assert abs(kl_divergence(law.log_prob, law.log_prob).value) < 1e-12


def test_divergence_of_what_leaves_mass_out_is_infinite():
    law = datasets.checkerboard
    p = datasets.two_moons
    assert kl_divergence(p.log_prob, law.log_prob).value == math.inf


def test_divergence_wants_a_law_that_is_normalised():
    p = torch.distributions.Normal(torch.zeros(2), 1.0)
    with pytest.raises(ValueError, match=r"log_p integrates to 2\.\d+ .* not to 1"):
        kl_divergence(lambda x: p.log_prob(x).sum(-1) + 0.7, lambda x: p.log_prob(x).sum(-1))
    with pytest.raises(ValueError, match="num_cells must be even"):
        kl_divergence(p.log_prob, p.log_prob, num_cells=7)


def test_weights_of_modes_have_a_multinomial_error():
    centres, weights = datasets.two_modes.modes
    other = torch.tensor([0.5, 0.5])

    def draw():
        return mode_weights(datasets.two_modes(200), centres, other).error

    values, errors = over_seeds(draw, 800)
    assert abs(values.mean() - 0.3) < 5 * values.std() / math.sqrt(len(values))
    assert abs(errors.square().mean() / values.var() - 1) < 5 * math.sqrt(2 / len(values))
    x = datasets.two_modes(500)
    assert mode_weights(x, centres, weights).num_found == 2
    assert mode_weights(x[x[:, 0] < 0], centres, weights).num_found == 1


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: sliced_wasserstein(x, x[:, :1]), "one event shape"),
        (lambda x: sliced_wasserstein(x, x, 1), "num_directions must be at least 2, got 1"),
        (lambda x: precision_recall(x, x, k=0), "k must be at least 1, got 0"),
        (lambda x: precision_recall(x[:3], x), "needs at least 4 rows"),
        (lambda x: data_copying(x, x[:, :1], x), "train and test must have one event shape"),
        (lambda x: mode_weights(x, x[:2], torch.ones(2)), "weights must be positive and sum to 1"),
        (lambda x: mode_weights(x / 0, x[:2], torch.full((2,), 0.5)), "must be finite"),
    ],
)
def test_bad_arguments_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call(torch.randn(20, 2))
