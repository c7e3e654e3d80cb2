r"""A base that is learned: a normalizing flow, fitted to draws of the target."""

from __future__ import annotations

__all__ = ["flow"]

import pyro.distributions as dist
import torch
from pyro.distributions import transforms
from torch import Tensor, nn
from torch.distributions import biject_to
from torch.distributions.transforms import ReshapeTransform

from ..distributions import Boltzmann
from ..energies.base import reference_tensor
from ..kernels.transition import seeded_generator
from .continuous import affine

DEGREES = 8.0
"""The degrees of freedom of what the flow bends: heavier tails than those of a normal."""
NUM_BINS, BOUND = 8, 4.0
"""Of each spline, in standard deviations of the draws; beyond the bound nothing is bent."""
BATCH, HELD_OUT, CHECK = 512, 5, 25
"""The draws of a step, of how many draws one is held out, and the steps between looks at it."""


def flow(
    boltzmann: Boltzmann,
    draws: Tensor,
    *,
    num_layers: int = 4,
    hidden: int = 32,
    num_steps: int = 400,
) -> dist.TorchDistribution:
    r"""Learns a law of one point from draws of a target, for estimators to take as their base.

    .. math:: x = b(\mu + L \, s_K(\dots s_1(\epsilon))), \qquad \epsilon_i \sim
        \mathrm{Student}(8)

    with rational linear spline couplings s, which bend what is near, the mean and covariance of
    the draws, and the bijection b to the support. It is fitted by maximum likelihood, and what is
    kept is where the likelihood of a fifth of the draws, held out, was highest. It is normalised
    whatever it learned, so that estimators with it as their base are right, and better the better
    it fits; a mode without a draw is missed by it as by any base.

    References:
        | Neural spline flows (Durkan, Bekasov, Murray and Papamakarios, 2019),
        | https://arxiv.org/abs/1906.04032
        | Invertible generative modeling using linear rational splines (Dolatabadi, Erfani and
        | Leckie, 2020), https://arxiv.org/abs/2001.05168

    Args:
        boltzmann: The target, without a batch.
        draws: Draws of it, with shape ``(n, *event)``: of a long run, with its modes in their
            proportions.
        num_layers: The number of couplings.
        hidden: The width of the networks that say how they bend.
        num_steps: The number of steps of Adam.

    Returns:
        The law, with parameters that no longer learn.

    Raises:
        ValueError: If the support is discrete, there are fewer than 100 draws, or their shape is
            not that of the event.

    Example:
        >>> import pyro, pyro_ebm as ebm
        >>> pyro.set_rng_seed(0)
        >>> energy = ebm.energies.Banana(scale=1.0, curvature=0.5)
        >>> law = flow(ebm.Boltzmann(energy), energy.sample(1000), num_steps=20)
        >>> law.event_shape, law.log_prob(energy.sample(3)).shape
        (torch.Size([2]), torch.Size([3]))
    """
    if len(draws) < 100 or draws.shape[1:] != boltzmann.event_shape:
        raise ValueError(
            "draws must have shape (n, *event), with 100 draws or more and event "
            f"{tuple(boltzmann.event_shape)}, got {tuple(draws.shape)}"
        )
    if boltzmann.support.is_discrete:
        raise ValueError(
            f"support {boltzmann.support} must be continuous: a flow bends densities. Give draws= "
            "to pyro_ebm.logz.plan, which fits independent sites to them"
        )
    bijection = biject_to(boltzmann.support)
    like = reference_tensor(boltzmann.energy)
    points = bijection.inv(draws.to(like))
    shape = points.shape[1:]
    flat = points.reshape(len(points), -1)
    dim = flat.shape[-1]
    loc, tril = affine(flat, widened=False)
    layers = nn.ModuleList(_layer(dim, k, hidden) for k in range(num_layers)).to(like)
    begin = dist.StudentT(like.new_tensor(DEGREES)).expand([dim]).to_event(1)
    bends = _chained(layers, dim)
    w = torch.linalg.solve_triangular(tril, (flat - loc).mT, upper=False).mT
    _fit(dist.TransformedDistribution(begin, bends), layers, w, num_steps)
    place = transforms.LowerCholeskyAffine(loc, tril)
    reshape = ReshapeTransform((dim,), shape)
    return dist.TransformedDistribution(begin, [*bends, place, reshape, bijection])


def _layer(dim: int, k: int, hidden: int) -> nn.Module:
    if dim == 1:
        return transforms.Spline(1, count_bins=NUM_BINS, bound=BOUND)
    return transforms.spline_coupling(
        dim, hidden_dims=[hidden, hidden], count_bins=NUM_BINS, bound=BOUND
    )


def _chained(layers: nn.ModuleList, dim: int) -> list:
    """The couplings, with the coordinates turned around between them."""
    turn = transforms.Permute(torch.arange(dim).flip(0))
    return [part for layer in layers for part in ([layer] if dim == 1 else [layer, turn])]


def _fit(law: dist.TorchDistribution, layers: nn.ModuleList, w: Tensor, num_steps: int) -> None:
    generator = seeded_generator(w.device)
    held_out = torch.arange(len(w), device=w.device) % HELD_OUT == 0
    train, test = w[~held_out], w[held_out]
    optimizer = torch.optim.Adam(layers.parameters(), lr=5e-3)
    best, kept = -torch.inf, {k: v.clone() for k, v in layers.state_dict().items()}
    for step in range(num_steps):
        rows = torch.randint(len(train), (BATCH,), generator=generator, device=w.device)
        with torch.enable_grad():
            loss = -law.log_prob(train[rows]).mean()
            optimizer.zero_grad()
            loss.backward()
        nn.utils.clip_grad_norm_(layers.parameters(), 5.0)
        optimizer.step()
        law.clear_cache()
        if (step + 1) % CHECK == 0:
            with torch.no_grad():
                likelihood = law.log_prob(test).mean().item()
            law.clear_cache()
            if likelihood > best:
                best = likelihood
                kept = {k: v.clone() for k, v in layers.state_dict().items()}
    layers.load_state_dict(kept)
    layers.requires_grad_(False)
