r"""Whether chains have mixed, and how much their draws are worth.

All run in torch on the device of the draws, and take draws of shape ``(chain, draw, *event)``.
Rank normalisation replaces each draw by the normal quantile of its rank among all draws, so that
heavy tails do not hide a disagreement.
"""

from __future__ import annotations

__all__ = ["bulk_ess", "nested_r_hat", "split_r_hat"]

import math

import torch
from torch import Tensor


def split_r_hat(draws: Tensor) -> Tensor:
    r"""Rank-normalised split R-hat, the larger of bulk and tail (folded).

    .. math:: \hat R = \sqrt{\frac{N-1}{N} + \frac{B}{N W}}

    over half chains of :math:`N` draws, :math:`B/N` the variance of their means and :math:`W` the
    mean of their variances. Values above 1.01 say that the chains have not mixed.

    References:
        | Rank-normalization, folding, and localization (Vehtari et al., 2021),
        | https://doi.org/10.1214/20-BA1221

    Args:
        draws: Draws, with shape ``(chain, draw, *event)``.

    Returns:
        R-hat, with the event shape; NaN for fewer than four draws or constant draws.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> mixed = torch.randn(4, 500)
        >>> apart = mixed + 3 * torch.arange(4.0)[:, None]
        >>> bool(split_r_hat(mixed) < 1.01), bool(split_r_hat(apart) > 1.5)
        (True, True)
    """
    half = draws.shape[1] // 2
    if half < 2:
        return torch.full(draws.shape[2:], torch.nan, device=draws.device)
    halves = _split(draws.double())
    folded = (halves - _median(halves)).abs()
    return torch.maximum(_r_hat(_normal_ranks(halves)), _r_hat(_normal_ranks(folded)))


def bulk_ess(draws: Tensor) -> Tensor:
    r"""Bulk effective sample size: how many independent draws these are worth for a mean.

    Rank-normalised, over split chains; Geyer's initial monotone sequence, cut as in Stan and ArviZ
    (that of ``pyro.ops.stats`` turns negative for antithetic chains, which good HMC makes).

    References:
        | Rank-normalization, folding, and localization (Vehtari et al., 2021),
        | https://doi.org/10.1214/20-BA1221

    Args:
        draws: Draws, with shape ``(chain, draw, *event)``.

    Returns:
        The effective sample size, with the event shape; NaN for fewer than four draws or constant
        draws.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> bool((bulk_ess(torch.randn(4, 500)) - 2000).abs() < 400)
        True
    """
    if draws.shape[1] // 2 < 2:
        return torch.full(draws.shape[2:], torch.nan, device=draws.device)
    ranks = _normal_ranks(_split(draws.double()))
    known = ranks.isfinite().flatten(0, 1).all(0)
    return torch.where(known, _effective_sample_size(ranks), torch.nan)


def nested_r_hat(draws: Tensor, num_superchains: int) -> Tensor:
    r"""Nested R-hat, for many short chains of which groups started at the same point.

    .. math:: \hat R = \sqrt{1 + B/W}

    with :math:`B` the variance of the means of the superchains and :math:`W` the mean over
    superchains of the variance of their chains' means plus the mean of their chains' variances. It
    needs no long chain, one draw will do; it means something only if all chains of a superchain
    began at one point.

    References:
        | Nested R-hat (Margossian et al., 2024), https://doi.org/10.1214/24-BA1453

    Args:
        draws: Draws, with shape ``(chain, draw, *event)``, the chains of a superchain side by
            side.
        num_superchains: The number of superchains, which divides the number of chains.

    Returns:
        Nested R-hat, with the event shape.

    Raises:
        ValueError: If ``num_superchains`` does not divide the number of chains, or is below two.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> bool(nested_r_hat(torch.randn(512, 2), num_superchains=8) < 1.01)
        True
    """
    num_chains = len(draws)
    if num_superchains < 2 or num_chains % num_superchains:
        raise ValueError(
            f"num_superchains must be at least 2 and divide the {num_chains} chains, got "
            f"{num_superchains}"
        )
    x = draws.double().unflatten(0, (num_superchains, -1))
    chain_means = x.mean(2)
    between_chains = _variance(chain_means, 1)
    within_chains = _variance(x, 2).mean(1)
    b = chain_means.mean(1).var(0)
    return (1 + b / (between_chains + within_chains).mean(0)).sqrt()


def _variance(x: Tensor, dim: int) -> Tensor:
    return x.var(dim) if x.shape[dim] > 1 else torch.zeros_like(x.sum(dim))


def _split(draws: Tensor) -> Tensor:
    half = draws.shape[1] // 2
    return torch.cat([draws[:, :half], draws[:, -half:]])


def _median(x: Tensor) -> Tensor:
    ordered = x.flatten(0, 1).sort(0).values
    n = len(ordered)
    return (ordered[(n - 1) // 2] + ordered[n // 2]) / 2


def _normal_ranks(x: Tensor) -> Tensor:
    """Replaces draws by normal quantiles of their ranks over all chains, with ties averaged."""
    flat = x.flatten(0, 1).movedim(0, -1).contiguous()
    ordered, order = flat.sort(-1)
    quantiles = torch.special.ndtri((_ranks(ordered) - 0.375) / (flat.shape[-1] + 0.25))
    quantiles = torch.empty_like(quantiles).scatter_(-1, order, quantiles)
    constant = (ordered[..., :1] == ordered[..., -1:]) | ~flat.isfinite().all(-1, keepdim=True)
    quantiles = torch.where(constant, torch.nan, quantiles)
    return quantiles.movedim(-1, 0).reshape(x.shape)


def _ranks(ordered: Tensor) -> Tensor:
    """Ranks from one on of values in their order: of equal ones, the mean of theirs."""
    place = torch.arange(ordered.shape[-1], device=ordered.device).expand_as(ordered)
    begins, ends = (torch.ones_like(ordered, dtype=torch.bool) for _ in range(2))
    begins[..., 1:] = ordered[..., 1:] != ordered[..., :-1]
    ends[..., :-1] = begins[..., 1:]
    first = torch.where(begins, place, 0).cummax(-1).values
    last = torch.where(ends, place, ordered.shape[-1]).flip(-1).cummin(-1).values.flip(-1)
    return (first + last).double() / 2 + 1


def _r_hat(x: Tensor) -> Tensor:
    n = x.shape[1]
    between = x.mean(1).var(0)
    within = x.var(1).mean(0)
    return ((n - 1) / n + between / within).sqrt()


def _effective_sample_size(x: Tensor) -> Tensor:
    """Geyer's initial monotone sequence over chains ``(C, N, *event)``, cut as by ArviZ."""
    num_chains, n = x.shape[:2]
    spectrum = torch.fft.rfft(x - x.mean(1, keepdim=True), n=2 * n, dim=1)
    power = spectrum.abs().square().mean(0)
    covariance = torch.fft.irfft(power, n=2 * n, dim=0)[:n] / n
    within = covariance[0] * n / (n - 1)
    variance = covariance[0] + (x.mean(1).var(0) if num_chains > 1 else 0.0)
    rho = 1 - (within - covariance) / variance
    rho[0] = 1.0
    num_pairs = max(1, (n - 1) // 2)
    even = rho[: 2 * num_pairs : 2]
    pairs = even + rho[1 : 2 * num_pairs : 2]
    cut = (pairs > 0).long().cumprod(0).sum(0).clamp(max=num_pairs - 1)
    kept = torch.arange(num_pairs, device=x.device).reshape(-1, *[1] * cut.dim()) < cut
    total = torch.where(kept, pairs.cummin(0).values, 0.0).sum(0)
    tau = 2 * total - 1 + even.gather(0, cut.unsqueeze(0)).squeeze(0).clamp(min=0)
    return num_chains * n / tau.clamp(min=1 / math.log10(num_chains * n))
