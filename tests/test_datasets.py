"""Laws of the data sets: published numbers, densities that integrate to one, samples that fit."""

import math
import pickle
import sys

import pytest
import torch

from pyro_ebm import datasets
from pyro_ebm.metrics import energy_distance

NUM_SIGMAS = 5
TOYS = ["checkerboard", "eight_gaussians", "pinwheel", "rings", "two_modes", "two_moons"]


@pytest.fixture(autouse=True)
def seeded():
    dtype = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    with torch.random.fork_rng():
        torch.manual_seed(30)
        yield
    torch.set_default_dtype(dtype)


@pytest.fixture(params=TOYS)
def toy(request):
    return getattr(datasets, request.param)


def midpoints(num_bins=60, per_bin=8, half_width=6.0):
    """Returns a fine grid, with shape (bins, points per bin, 2), and the area of a point."""
    step = 2 * half_width / (num_bins * per_bin)
    axis = -half_width + step * (torch.arange(num_bins * per_bin) + 0.5)
    grid = torch.cartesian_prod(axis, axis).reshape(num_bins, per_bin, num_bins, per_bin, 2)
    return grid.transpose(1, 2).reshape(num_bins**2, per_bin**2, 2), step**2


# toys


def test_toy_density_integrates_to_one(toy):
    grid, area = midpoints()
    assert toy.log_prob(grid).exp().sum().item() * area == pytest.approx(1, abs=1e-6)


def test_toy_draws_follow_its_density(toy):
    n, num_bins, half_width = 100_000, 60, 6.0
    x = toy(n)
    column, row = ((x + half_width) * num_bins / (2 * half_width)).long().unbind(-1)
    counts = torch.bincount(num_bins * column + row, minlength=num_bins**2)
    grid, area = midpoints(num_bins, half_width=half_width)
    expected = n * area * toy.log_prob(grid).exp().sum(-1)

    rare = expected < 10
    observed = torch.cat([counts[~rare], counts[rare].sum()[None]])
    expected = torch.cat([expected[~rare], expected[rare].sum()[None] + 1e-3])
    chi2 = ((observed - expected).square() / expected).sum().item()
    freedom = len(expected) - 1
    assert freedom > 50
    assert abs(chi2 - freedom) < NUM_SIGMAS * math.sqrt(2 * freedom)


def test_toy_has_finite_scores_on_its_draws(toy):
    x = torch.cat([toy(500), torch.zeros(1, 2)]).requires_grad_()
    log_prob = toy.log_prob(x)
    assert log_prob[:-1].isfinite().all()
    if toy is not datasets.checkerboard:  # constant: no gradient to ask for
        (score,) = torch.autograd.grad(log_prob.sum(), x)
        assert score.isfinite().all()


def test_toy_shapes_and_dtypes(toy):
    x = toy(6)
    assert x.shape == (6, 2)
    assert x.dtype == torch.float64
    assert torch.equal(toy.log_prob(x.reshape(2, 3, 2)), toy.log_prob(x).reshape(2, 3))
    assert toy.log_prob(x[0]).shape == ()
    assert toy.log_prob(x.float()).dtype == torch.float32


def test_toy_is_reproducible_and_pickles(toy):
    state = torch.get_rng_state()
    x = toy(50, generator=torch.Generator().manual_seed(7))
    assert torch.equal(state, torch.get_rng_state())
    again = pickle.loads(pickle.dumps(toy))
    assert torch.equal(x, again(50, generator=torch.Generator().manual_seed(7)))
    assert not torch.equal(x, toy(50, generator=torch.Generator().manual_seed(8)))


def test_toy_refuses_what_is_not_a_point(toy):
    with pytest.raises(ValueError, match=r"x must hold floats \(\*batch, 2\), .* \(2, 3\)"):
        toy.log_prob(torch.zeros(2, 3))
    with pytest.raises(ValueError, match=r"x must hold floats .* got torch.int64 \(5, 2\)"):
        toy.log_prob(torch.zeros(5, 2, dtype=torch.long))


def test_two_moons_are_those_of_scikit_learn():
    from sklearn.datasets import make_moons

    x = torch.from_numpy(make_moons(1000, noise=0.1, random_state=0)[0])
    distance = energy_distance(x, datasets.two_moons(1000))
    assert abs(distance.value) < NUM_SIGMAS * distance.std_error
    mirrored = energy_distance(x, datasets.two_moons(1000) * torch.tensor([1.0, -1.0]))
    assert mirrored.value > NUM_SIGMAS * mirrored.std_error


def test_pinwheel_turns_counterclockwise_as_it_widens():
    inner, outer = (datasets.pinwheel.log_prob(ring) for ring in polar(torch.tensor([1.5, 3.0])))
    ahead = (torch.arange(360) + 1e-9)[outer.argmax()] - (torch.arange(360))[inner.argmax()]
    expected = math.degrees(0.25 * (math.exp(1.5) - math.exp(0.75)))
    assert (ahead.item() - expected + 36) % 72 - 36 == pytest.approx(0, abs=1)  # the grid's degree


def polar(radius):
    angle = torch.arange(360).deg2rad()
    return radius[:, None, None] * torch.stack([angle.cos(), angle.sin()], -1)


def test_checkerboard_never_rounds_into_a_light_square():
    torch.set_default_dtype(torch.float16)  # rounds often enough to see
    x = datasets.checkerboard(100_000)
    assert datasets.checkerboard.log_prob(x).isfinite().all()


# digits


def test_digits_match_published_bernoulli_likelihood():
    train, test, _, _ = datasets.digits(binarize=True)
    p = (train.sum(0) + 1) / (len(train) + 2)

    def log_likelihood(x):
        return (x * p.log() + (1 - x) * (-p).log1p()).sum((1, 2, 3)).mean().item()

    assert f"{log_likelihood(train):.4f}" == "-25.0826"
    assert f"{log_likelihood(test):.4f}" == "-25.2791"


def test_digits_split_and_scale():
    train, test, train_labels, test_labels = datasets.digits()
    assert train.shape == (1437, 1, 8, 8)
    assert test.shape == (360, 1, 8, 8)
    assert train.dtype == torch.float64
    assert train_labels.dtype == torch.int64
    assert (train.min(), train.max()) == (0, 1)
    assert torch.equal((16 * train).round(), 16 * train)
    assert test_labels[:5].tolist() == [0, 5, 0, 5, 0]  # rows 0, 5, 10, 15, 20 of the bundle
    assert train_labels[:5].tolist() == [1, 2, 3, 4, 6]
    binary = datasets.digits(binarize=True).train
    assert torch.equal(binary, (train >= 0.5).double())


def test_digits_name_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ImportError, match=r"pip install pyro_ebm\[compare\]"):
        datasets.digits()


# dequantisation


def test_dequantize_is_uniform_in_each_cell():
    k = torch.arange(17).repeat_interleave(5000)
    y = datasets.dequantize(k / 16)
    assert torch.equal((17 * y).floor(), k.double())
    for u in (17 * y - k).split(5000):
        assert abs(u.mean().item() - 1 / 2) < NUM_SIGMAS * math.sqrt(1 / 12 / 5000)
        second = u.square()
        assert abs(second.mean().item() - 1 / 3) < NUM_SIGMAS * second.std().item() / 5000**0.5


@pytest.mark.parametrize("k", [0, 1, 2])
def test_dequantized_density_bounds_the_likelihood(k):
    log_p = math.log(((k + 1) ** 2 - k**2) / 9)  # of the cell, under the density q(y) = 2y
    q = 2 * datasets.dequantize(torch.full((100_000,), k / 2), levels=3)
    error = q.std().item() / 100_000**0.5
    assert abs(q.mean().item() / 3 - math.exp(log_p)) < NUM_SIGMAS * error / 3
    bound = q.log() - math.log(3)
    assert bound.mean().item() + NUM_SIGMAS * bound.std().item() / 100_000**0.5 < log_p


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_dequantize_stays_inside_the_open_interval(dtype):
    y = datasets.dequantize(torch.tensor([0.0, 1.0], dtype=dtype).repeat(50_000))
    assert y.dtype == dtype
    assert y.min() > 0
    assert y.max() < 1
    assert torch.logit(y.double()).isfinite().all()


def test_dequantize_refuses_what_is_off_the_grid():
    with pytest.raises(ValueError, match="levels must be at least 2, got 1"):
        datasets.dequantize(torch.zeros(3), levels=1)
    for bad in (torch.tensor([0.0, 0.3]), torch.tensor([0.0, 17 / 16]), torch.tensor([math.nan])):
        with pytest.raises(
            ValueError, match=r"x must hold floating multiples of 1/16 in \[0, 1\]"
        ):
            datasets.dequantize(bad)
    with pytest.raises(ValueError, match=r"got torch\.int64 values from 0 to 1"):
        datasets.dequantize(torch.tensor([0, 1]))


# out of distribution


def test_shuffle_moves_whole_pixels_each_image_alone():
    pixels = torch.arange(48.0).reshape(1, 1, 6, 8)
    images = torch.cat([pixels, pixels + 100], 1).expand(40, 2, 6, 8)
    shuffled = datasets.shuffle_pixels(images)
    assert shuffled.shape == images.shape
    assert torch.equal(shuffled.flatten(2).sort().values, images.flatten(2))
    assert torch.equal(shuffled[:, 1], shuffled[:, 0] + 100)
    assert len({tuple(image[0].flatten().tolist()) for image in shuffled}) == 40


def test_shuffle_sends_each_pixel_everywhere_alike():
    images = torch.zeros(8000, 1, 2, 4)
    images[:, 0, 1, 2] = 1
    share = datasets.shuffle_pixels(images).mean(0).flatten()
    assert ((share - 1 / 8).abs() < NUM_SIGMAS * math.sqrt(1 / 8 * 7 / 8 / 8000)).all()


def test_shuffle_obeys_its_generator():
    images = torch.rand(5, 1, 8, 8)
    first, again = (
        datasets.shuffle_pixels(images, generator=torch.Generator().manual_seed(4))
        for _ in range(2)
    )
    assert torch.equal(first, again)


def test_upside_down_is_half_a_turn():
    images = torch.rand(3, 2, 5, 7)
    assert torch.equal(datasets.upside_down(images), torch.rot90(images, 2, (2, 3)))


@pytest.mark.parametrize("move", [datasets.shuffle_pixels, datasets.upside_down])
def test_flat_images_are_refused(move):
    with pytest.raises(ValueError, match=r"images must be .* got \(3, 64\)"):
        move(torch.rand(3, 64))
