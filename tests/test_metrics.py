"""Laws of the metrics: exact values where they are known, errors that are right over seeds."""

import math
import sys

import pytest
import torch

from pyro_ebm.metrics import Estimate, auroc, classifier_two_sample, energy_distance, mmd

NUM_SIGMAS = 5


@pytest.fixture(autouse=True)
def seeded():
    with torch.random.fork_rng():
        torch.manual_seed(20)
        yield


def normal_cdf(x):
    return 0.5 * (1 + math.erf(x / math.sqrt(2)))


def gaussians(n=60, m=90, shift=0.7, scale=1.6, dim=2):
    """Two samples of unlike size, mean and scale: no sign or weight can be swapped unseen."""
    x = torch.randn(n, dim, dtype=torch.float64)
    y = shift + scale * torch.randn(m, dim, dtype=torch.float64)
    return x, y


def exact_mmd(shift, scale, dim, h=4.0):
    def kernel_mean(variance, delta=0.0):  # E exp(-|z|² / 2h²) for z ~ N(delta, variance I)
        total = h**2 + variance
        return (h**2 / total) ** (dim / 2) * math.exp(-dim * delta**2 / (2 * total))

    return kernel_mean(2) + kernel_mean(2 * scale**2) - 2 * kernel_mean(1 + scale**2, shift)


def exact_energy_distance(shift, scale):
    def mean_distance(variance, delta=0.0):  # E|z| for z ~ N(delta, variance)
        s = math.sqrt(variance)
        tail = delta * (1 - 2 * normal_cdf(-delta / s))
        return s * math.sqrt(2 / math.pi) * math.exp(-((delta / s) ** 2) / 2) + tail

    return 2 * mean_distance(1 + scale**2, shift) - mean_distance(2) - mean_distance(2 * scale**2)


DISCREPANCIES = {
    "mmd": (lambda x, y: mmd(x, y, bandwidth=4.0), exact_mmd(0.7, 1.6, dim=2), 2),
    "energy_distance": (energy_distance, exact_energy_distance(0.7, 1.6), 1),
}


@pytest.fixture(params=DISCREPANCIES)
def discrepancy(request):
    return DISCREPANCIES[request.param]


def over_seeds(draw, num_seeds=300):
    values, errors = torch.tensor([draw() for _ in range(num_seeds)], dtype=torch.float64).unbind(
        1
    )
    return values, errors


def assert_mean(values, expected):
    assert (values.mean() - expected).abs() < NUM_SIGMAS * values.std() / len(values) ** 0.5


def variance_ratio(values, errors):
    """Returns claimed over observed variance, with the standard error of that ratio."""
    deviations = (values - values.mean()).square()
    ratio = errors.square().mean() / deviations.mean()
    noise = (errors.square() - ratio * deviations).std() / deviations.mean() / len(values) ** 0.5
    return ratio, noise


# U-statistics


def test_discrepancy_of_two_points_five_apart():
    x, y = torch.zeros(3, 2), torch.tensor([3.0, 4.0]).expand(4, 2)
    assert mmd(x, y, bandwidth=5.0) == pytest.approx((2 - 2 * math.exp(-1 / 2), 0.0))
    assert energy_distance(x, y) == pytest.approx((10.0, 0.0))


def test_discrepancy_equals_its_exact_value_in_one_large_sample(discrepancy):
    metric, exact, dim = discrepancy
    estimate = metric(*gaussians(n=700, m=1000, dim=dim))
    assert exact > NUM_SIGMAS * estimate.std_error  # the case can tell it from zero
    assert abs(estimate.value - exact) < NUM_SIGMAS * estimate.std_error


def test_discrepancy_is_unbiased_in_small_samples(discrepancy):
    metric, exact, dim = discrepancy
    values, _ = over_seeds(lambda: metric(*gaussians(n=4, m=7, dim=dim)))
    assert_mean(values, exact)


def test_discrepancy_is_unbiased_where_the_laws_agree(discrepancy):
    metric, _, dim = discrepancy
    values, _ = over_seeds(lambda: metric(*gaussians(n=5, m=8, shift=0, scale=1, dim=dim)))
    assert_mean(values, 0.0)


def test_discrepancy_error_is_right_where_the_laws_differ(discrepancy):
    metric, _, dim = discrepancy
    ratio, noise = variance_ratio(*over_seeds(lambda: metric(*gaussians(dim=dim))))
    assert 1 - NUM_SIGMAS * noise < ratio < 1.1 + NUM_SIGMAS * noise  # second order: some 5 %
    assert noise < 0.12  # else the law above says nothing


def test_discrepancy_error_is_twice_the_variance_where_the_laws_agree(discrepancy):
    metric, _, dim = discrepancy
    draws = over_seeds(lambda: metric(*gaussians(shift=0, scale=1, dim=dim)))
    ratio, noise = variance_ratio(*draws)
    assert abs(ratio - 2) < NUM_SIGMAS * noise + 0.1  # the jackknife is exact up to 1 / n


def test_discrepancy_error_is_the_jackknife(discrepancy):
    metric, _, dim = discrepancy
    x, y = gaussians(n=6, m=9, dim=dim)
    variance = 0.0
    for k, drop in ((len(x), lambda keep: (x[keep], y)), (len(y), lambda keep: (x, y[keep]))):
        rows = torch.arange(k)
        without = torch.tensor([metric(*drop(rows != i)).value for i in rows]).double()
        variance += (k - 1) * without.var(correction=0).item()
    assert metric(x, y).std_error == pytest.approx(variance**0.5, rel=1e-5)


def test_discrepancy_swaps_shifts_and_reshapes(discrepancy):
    metric, _, _ = discrepancy
    x, y = gaussians(dim=4)
    expected = pytest.approx(metric(x, y), rel=1e-6)
    assert metric(y, x) == expected
    assert metric(x + 1e6, y + 1e6) == expected
    assert metric(x.reshape(-1, 2, 2), y.reshape(-1, 2, 2)) == expected


def test_mmd_bandwidth_is_the_median_distance():
    x, y = gaussians(dim=3)
    assert mmd(x, y) == mmd(x, y, bandwidth=torch.pdist(torch.cat([x, y])).median().item())
    assert mmd(5 * x, 5 * y) == pytest.approx(mmd(x, y))


# classifier


@pytest.mark.parametrize(("n", "m"), [(300, 400), (1500, 150)])
def test_classifier_reaches_bayes_accuracy(n, m):
    x, y = gaussians(n, m, shift=1.5, scale=1, dim=1)
    estimate = classifier_two_sample(x, y)
    assert abs(estimate.value - normal_cdf(0.75)) < NUM_SIGMAS * estimate.std_error


@pytest.mark.parametrize(("n", "m"), [(150, 150), (60, 240)])
def test_classifier_is_at_chance_where_the_laws_agree(n, m):
    for seed in range(5):
        x, y = gaussians(n, m, shift=0, scale=1, dim=8)
        estimate = classifier_two_sample(x, y, seed=seed)
        assert abs(estimate.value - 0.5) < NUM_SIGMAS * estimate.std_error


def test_classifier_sees_scale_and_correlation():
    x, _ = gaussians(n=300, dim=2)
    wider = 3 * torch.randn(300, 2, dtype=torch.float64)
    diagonal = torch.randn(300, 1, dtype=torch.float64).expand(300, 2)
    for y in (wider, diagonal):
        estimate = classifier_two_sample(x, y)
        assert estimate.value > 0.5 + NUM_SIGMAS * estimate.std_error


@pytest.mark.parametrize("shift", [0, 2])
def test_classifier_error_is_between_right_and_twice_the_variance(shift):
    def draw():
        return classifier_two_sample(*gaussians(n=40, m=30, shift=shift, scale=1, dim=2))

    ratio, noise = variance_ratio(*over_seeds(draw, num_seeds=250))
    assert 1 - NUM_SIGMAS * noise < ratio < 2 + NUM_SIGMAS * noise


def test_classifier_depends_on_the_seed_alone():
    x, y = gaussians()
    assert classifier_two_sample(x, y, seed=3) == classifier_two_sample(x, y, seed=3)
    assert len({classifier_two_sample(x, y, seed=seed).value for seed in range(8)}) > 1


def test_classifier_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.svm", None)
    with pytest.raises(ImportError, match=r"pip install pyro_ebm\[compare\]"):
        classifier_two_sample(*gaussians())


# detection


def test_auroc_of_shifted_gaussians():
    shift = 0.8
    s_in = shift + torch.randn(1500, dtype=torch.float64)
    estimate = auroc(s_in, torch.randn(900, dtype=torch.float64))
    assert abs(estimate.value - normal_cdf(shift / math.sqrt(2))) < NUM_SIGMAS * estimate.std_error


def test_auroc_counts_all_pairs_and_half_of_the_ties():
    s_in = torch.randint(0, 6, (40,)) + 1
    s_out = torch.randint(0, 6, (30,))
    pairs = s_in[:, None] - s_out
    expected = ((pairs > 0).double() + 0.5 * (pairs == 0).double()).mean().item()
    assert auroc(s_in, s_out).value == pytest.approx(expected, rel=1e-12)
    assert auroc(s_out, s_in).value == pytest.approx(1 - expected, rel=1e-12)


@pytest.mark.parametrize(("n", "m"), [(20, 200), (200, 20)])
def test_auroc_error_is_right_for_exponential_scores(n, m):
    def draw():
        s_in = 4 * torch.empty(n, dtype=torch.float64).exponential_()
        return auroc(s_in, torch.empty(m, dtype=torch.float64).exponential_())

    values, errors = over_seeds(draw, num_seeds=2000)
    assert_mean(values, 4 / 5)
    ratio, noise = variance_ratio(values, errors)
    assert abs(ratio - 1) < NUM_SIGMAS * noise


def test_auroc_of_disjoint_scores_is_one_and_not_certain():
    area = auroc(torch.arange(3) + 5.0, torch.arange(4.0))
    assert area.value == 1.0
    assert 0 < area.std_error < 0.5


# edges


@pytest.mark.parametrize(
    ("estimate", "text"),
    [
        (Estimate(0.01234, 0.00087), "0.0123 ± 0.0009"),
        (Estimate(-0.01234, 0.00087), "-0.0123 ± 0.0009"),
        (Estimate(123.4, 17.0), "123 ± 17"),
        (Estimate(0.5, 0.0), "0.5 ± 0"),
        (Estimate(math.nan, 0.1), "nan ± 0.1"),
    ],
)
def test_estimate_prints_to_the_digit_in_doubt(estimate, text):
    assert str(estimate) == text


@pytest.mark.parametrize("metric", [mmd, energy_distance, classifier_two_sample])
def test_two_sample_metrics_refuse_bad_samples(metric):
    x, y = gaussians()
    with pytest.raises(ValueError, match=r"x needs at least \d rows, got shape \(2, 2\)"):
        metric(x[:2], y)
    with pytest.raises(ValueError, match=r"y needs at least \d rows, got shape \(2, 2\)"):
        metric(x, y[:2])
    with pytest.raises(ValueError, match=r"one event shape, got shapes \(60, 2\) and \(90, 1\)"):
        metric(x, y[:, :1])
    with pytest.raises(ValueError, match="x must be finite, got 1 non-finite of 120 values"):
        metric(x.index_fill(0, torch.tensor(3), 0).put(torch.tensor(5), x.new_tensor(math.inf)), y)
    with pytest.raises(ValueError, match="y must be finite, got 90 non-finite of 180 values"):
        metric(x, torch.stack([y[:, 0], y[:, 1] * math.nan], -1))


@pytest.mark.parametrize("bandwidth", [0.0, -1.0, math.inf, math.nan])
def test_mmd_refuses_a_bad_bandwidth(bandwidth):
    with pytest.raises(
        ValueError, match=f"bandwidth must be positive and finite, got {bandwidth}"
    ):
        mmd(*gaussians(), bandwidth=bandwidth)


def test_mmd_refuses_to_guess_the_bandwidth_of_constants():
    with pytest.raises(ValueError, match="median distance is 0; pass bandwidth="):
        mmd(torch.zeros(20, 2), torch.zeros(20, 2))
    assert mmd(torch.zeros(20, 2), torch.zeros(20, 2), bandwidth=1.0) == (0.0, 0.0)


def test_auroc_refuses_bad_scores():
    scores = torch.randn(9)
    with pytest.raises(ValueError, match=r"scores_in must hold one number .* shape \(9, 1\)"):
        auroc(scores[:, None], scores)
    with pytest.raises(ValueError, match=r"scores_out needs at least 2 rows, got shape \(1,\)"):
        auroc(scores, scores[:1])
    with pytest.raises(ValueError, match="scores_out must be finite, got 9 non-finite of 9"):
        auroc(scores, scores / 0)
