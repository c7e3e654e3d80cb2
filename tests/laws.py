"""What the laws are asserted with: each gate is the standard error of the estimate itself."""

import functools
import math

import torch

from pyro_ebm.energies import Laplace

NUM_SIGMAS = 5
"""How many standard errors a right estimate may be off: one false alarm in two million."""

FAILURE_RATE = 2e-5
"""How often a goodness-of-fit test may reject the right law, as in Pyro's own tests."""


def assert_close(estimate, truth, standard_error):
    """Asserts that an estimate lies within ``NUM_SIGMAS`` of its standard errors of the truth."""
    estimate, truth, standard_error = map(torch.as_tensor, (estimate, truth, standard_error))
    z = (estimate - truth) / standard_error
    assert bool((z.abs() < NUM_SIGMAS).all()), (
        f"{estimate.tolist()} is not {truth.tolist()} within {NUM_SIGMAS} standard errors of "
        f"{standard_error.tolist()}: z = {z.tolist()}"
    )


def assert_mean(samples, truth):
    """Asserts the mean of independent rows ``(N, *event)``."""
    samples = samples.double()
    assert_close(samples.mean(0), truth, samples.std(0) / math.sqrt(len(samples)))


def assert_chain_mean(draws, truth):
    """Asserts the mean of dependent draws ``(chain, draw, *event)`` of independent chains."""
    assert_mean(draws.double().mean(1), truth)


def assert_follows(samples, cdf):
    """Asserts that independent samples ``(N,)`` follow a continuous law (Kolmogorov-Smirnov)."""
    n = len(samples)
    probs = cdf(samples.double().sort().values)
    ranks = torch.arange(n + 1, dtype=torch.float64) / n
    distance = torch.maximum((ranks[1:] - probs).max(), (probs - ranks[:-1]).max())
    _assert_plausible(distance.item(), n)


def assert_same_law(x, y):
    """Asserts that two independent samples ``(N,)`` and ``(M,)`` follow one law."""
    x, y = x.double().sort().values, y.double().sort().values
    both = torch.cat([x, y])
    below_x = torch.searchsorted(x, both, right=True) / len(x)
    below_y = torch.searchsorted(y, both, right=True) / len(y)
    _assert_plausible((below_x - below_y).abs().max().item(), len(x) * len(y) / (len(x) + len(y)))


def assert_counts(counts, probs):
    """Asserts that counts of independent draws follow a law over cells (chi-square).

    Cells in which fewer than ten are expected count as one.
    """
    counts, expected = counts.double(), probs.double() * counts.sum()
    rare = expected < 10
    if rare.any():
        counts = torch.cat([counts[~rare], counts[rare].sum()[None]])
        expected = torch.cat([expected[~rare], expected[rare].sum()[None]])
    kept = expected > 0
    if len(counts) == 1:
        return
    assert not counts[~kept].any(), "a draw of probability zero"
    statistic = ((counts - expected)[kept] ** 2 / expected[kept]).sum()
    half_degrees = torch.tensor((int(kept.sum()) - 1) / 2, dtype=torch.float64)
    p_value = torch.special.gammaincc(half_degrees, statistic / 2).item()
    distance = (counts - expected).abs().sum().item() / (2 * counts.sum().item())
    assert p_value > FAILURE_RATE, (
        f"total variation {distance:.4f} over {len(counts)} cells has p = {p_value:.1e}"
    )


def points(energy, *batch):
    """Draws points ``(*batch, *event)`` anywhere, to evaluate an energy at."""
    return torch.randn((*batch, *energy.event_shape))


def quadrature(energy, num_sds=80.0):
    """Returns points on a grid around the samples, the logs of Simpson's weights, and the axes.

    The centre, where Laplace's density has its kink, is a node; elsewhere the rule is exact to
    rounding.
    """
    draws = energy.sample(4000).reshape(4000, -1)
    dim = draws.shape[1]
    n = 200_000 if dim == 1 else 1400
    centre = energy.loc.reshape(-1) if isinstance(energy, Laplace) else draws.mean(0)
    steps = num_sds * draws.std(0) / n
    weights = torch.ones(n + 1)
    weights[1:-1:2], weights[2:-1:2] = 4, 2
    axes = [c + s * torch.arange(-n // 2, n // 2 + 1) for c, s in zip(centre, steps, strict=True)]
    x = torch.cartesian_prod(*axes).reshape(-1, *energy.event_shape)
    log_weights = [(weights * s / 3).log() for s in steps]
    return x, functools.reduce(lambda a, b: (a[:, None] + b).reshape(-1), log_weights), axes


def _assert_plausible(distance, n):
    """Gates a Kolmogorov-Smirnov distance by its asymptotic law, corrected for n by Stephens."""
    root = math.sqrt(n)
    x = (root + 0.12 + 0.11 / root) * distance
    p_value = min(1.0, 2 * math.exp(-2 * x * x))  # the first term bounds the alternating series
    assert p_value > FAILURE_RATE, (
        f"distance {distance:.4f} of {n:.0f} draws has p = {p_value:.1e}"
    )
