"""Laws of the diagnostics: ArviZ as oracle, formulas written again, chains of known worth."""

import math
import warnings

import numpy as np
import pytest
import torch
from laws import assert_mean

from pyro_ebm.diagnostics import bulk_ess, nested_r_hat, split_r_hat

with warnings.catch_warnings():
    warnings.simplefilter("ignore", FutureWarning)
    arviz = pytest.importorskip("arviz")


def autoregression(num_chains, num_draws, rho, *event):
    """Stationary AR(1) chains of unit variance."""
    x = torch.randn(num_chains, num_draws, *event)
    x[:, 1:] *= math.sqrt(1 - rho**2)
    for t in range(1, num_draws):
        x[:, t] += rho * x[:, t - 1]
    return x


DRAWS = {
    "independent": lambda: torch.randn(4, 500),
    "sticky": lambda: autoregression(4, 500, 0.8),
    "antithetic": lambda: autoregression(4, 500, -0.4),
    "heavy tails": lambda: autoregression(6, 400, 0.5).tan(),
    "skewed": lambda: autoregression(3, 300, 0.3).exp(),
    "two chains, odd length": lambda: autoregression(2, 101, 0.3),
    "one chain": lambda: autoregression(1, 400, 0.3),
    "shifted": lambda: torch.randn(4, 200) + torch.arange(4.0)[:, None],
    "unlike scales": lambda: torch.randn(4, 200) * (1 + 3 * torch.arange(4.0)[:, None]),
    "drifting": lambda: torch.randn(4, 200).cumsum(1),
    "ties": lambda: autoregression(4, 200, 0.5).round(),
    "many short chains": lambda: torch.randn(128, 10),
}


@pytest.mark.parametrize("name", [n for n in DRAWS if n != "one chain"])  # ArviZ wants two
def test_split_r_hat_is_that_of_arviz(name):
    draws = DRAWS[name]()
    assert split_r_hat(draws).item() == pytest.approx(
        arviz.rhat(draws.numpy(), method="rank"), 1e-9
    )


@pytest.mark.parametrize("name", DRAWS)
def test_bulk_ess_is_that_of_arviz(name):
    draws = DRAWS[name]()
    assert bulk_ess(draws).item() == pytest.approx(arviz.ess(draws.numpy(), method="bulk"), 1e-9)


def test_each_coordinate_is_diagnosed_on_its_own():
    x = torch.stack([autoregression(4, 200, rho) for rho in (-0.3, 0.0, 0.5, 0.7, 0.8, 0.9)], -1)
    x = x.unflatten(-1, (2, 3))
    for diagnose in (split_r_hat, bulk_ess, lambda x: nested_r_hat(x, 2)):
        together = diagnose(x)
        assert together.shape == (2, 3)
        alone = torch.stack(
            [torch.stack([diagnose(x[..., i, j]) for j in range(3)]) for i in (0, 1)]
        )
        torch.testing.assert_close(together, alone)


@pytest.mark.parametrize("diagnose", [split_r_hat, bulk_ess])
def test_ranks_do_not_see_a_monotone_map(diagnose):
    """Any map for the bulk; the folded half of R-hat keeps only shifts and scales."""
    x = autoregression(4, 300, 0.6)
    if diagnose is bulk_ess:
        torch.testing.assert_close(diagnose(x), diagnose(x.exp()))
    torch.testing.assert_close(diagnose(x), diagnose(7 - 3 * x))


@pytest.mark.parametrize("diagnose", [split_r_hat, bulk_ess])
def test_single_precision_makes_no_difference(diagnose):
    x = autoregression(4, 300, 0.6).float()
    torch.testing.assert_close(diagnose(x), diagnose(x.double()))


@pytest.mark.parametrize("rho", [-0.5, 0.0, 0.5, 0.8])
def test_bulk_ess_of_autoregressions_is_known(rho):
    """n (1 - rho) / (1 + rho); the mean over runs is gated by the spread between them."""
    num_chains, num_draws = 4, 2000
    truth = num_chains * num_draws * (1 - rho) / (1 + rho)
    assert_mean(bulk_ess(autoregression(num_chains, num_draws, rho, 60)), truth)


@pytest.mark.parametrize("rho", [-0.8, -0.95])
def test_bulk_ess_of_strongly_antithetic_chains_is_positive_and_bounded(rho):
    """Vehtari et al. bound it by S log10(S)."""
    num_draws = 32 * 100
    found = bulk_ess(autoregression(32, 100, rho))
    assert num_draws < found < num_draws * math.log10(num_draws) * (1 + 1e-9)


def test_shifted_chain_is_detected():
    x = autoregression(4, 500, 0.5)
    assert split_r_hat(x) < 1.01
    x[2] += 1.0
    assert split_r_hat(x) > 1.05
    assert bulk_ess(x) < 50


def test_wider_chain_is_detected_though_no_mean_moves():
    x = torch.randn(4, 500)
    x[2] *= 5.0
    assert split_r_hat(x) > 1.05


def test_drift_within_chains_is_detected_though_all_chains_agree():
    x = torch.randn(4, 500) + torch.linspace(0, 3, 500)
    assert split_r_hat(x) > 1.2
    assert split_r_hat(x[:1]) > 1.2
    assert split_r_hat(torch.randn(1, 500)) < 1.01


UNTOLD = {
    "constant": lambda: torch.ones(4, 100),
    "three draws": lambda: torch.randn(4, 3),
    "one NaN": lambda: torch.randn(4, 100).index_fill(1, torch.tensor([7]), math.nan),
}


@pytest.mark.parametrize("name", UNTOLD)
@pytest.mark.parametrize("diagnose", [split_r_hat, bulk_ess])
def test_what_cannot_be_told_is_nan(diagnose, name):
    assert diagnose(UNTOLD[name]()).isnan()


def test_a_coordinate_that_cannot_be_told_leaves_the_others_alone():
    x = torch.randn(4, 100, 3)
    x[..., 0], x[2, 50, 1] = 1.0, math.inf
    for diagnose in (split_r_hat, bulk_ess):
        assert diagnose(x).isnan().tolist() == [True, True, False]


# ------------------------------------------------------------------------------------ nested R-hat


def nested_by_the_formula(x, num_superchains):
    """Margossian et al. 2024, eq. 8-10, in loops."""
    chains = np.split(np.asarray(x), num_superchains)
    means = [np.array([chain.mean() for chain in group]) for group in chains]
    grand = np.mean([m.mean() for m in means])
    between = sum((m.mean() - grand) ** 2 for m in means) / (num_superchains - 1)
    within = 0.0
    for group, m in zip(chains, means, strict=True):
        num_chains, num_draws = group.shape
        b = sum((m - m.mean()) ** 2) / (num_chains - 1) if num_chains > 1 else 0.0
        w = np.mean([chain.var(ddof=1) for chain in group]) if num_draws > 1 else 0.0
        within += (b + w) / num_superchains
    return math.sqrt(1 + between / within)


@pytest.mark.parametrize("shape", [(12, 7), (12, 1), (4, 9), (60, 2)])
def test_nested_r_hat_is_the_formula(shape):
    x = torch.randn(shape).exp() + torch.arange(shape[0])[:, None] / 20
    assert nested_r_hat(x, 4).item() == pytest.approx(nested_by_the_formula(x, 4), 1e-12)


def test_nested_r_hat_of_mixed_chains_falls_with_their_number():
    """Of one draw, B is W / M in the mean, for M chains to a superchain."""
    for per_superchain in (4, 64):
        x = torch.randn(8 * per_superchain, 1, 400)
        assert_mean(nested_r_hat(x, 8).square() - 1, _mean_of_ratio(8, per_superchain))


def _mean_of_ratio(num_superchains, per_superchain):
    """E[B/W] = E[F] / M for an F variable of (K - 1, K (M - 1)) degrees of freedom."""
    degrees = num_superchains * (per_superchain - 1)
    return degrees / (degrees - 2) / per_superchain


def test_nested_r_hat_sees_superchains_that_have_not_met():
    x = torch.randn(512, 2)
    assert nested_r_hat(x, 8) < 1.02
    x = x + torch.arange(8.0).repeat_interleave(64)[:, None]
    assert nested_r_hat(x, 8) > 2


@pytest.mark.parametrize("num_superchains", [1, 5, 0])
def test_superchains_must_divide_the_chains(num_superchains):
    with pytest.raises(
        ValueError, match=r"num_superchains must be at least 2 and divide the 12 chains"
    ):
        nested_r_hat(torch.randn(12, 5), num_superchains)
