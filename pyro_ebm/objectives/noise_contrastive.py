r"""Noise-contrastive estimation: learn an energy by telling data from noise.

A classifier whose logit is a difference of log densities is right only if the density is, its
normaliser included; so the normaliser can be learned as one more parameter, and noise crosses
where chains do not.
"""

from __future__ import annotations

__all__ = ["ConditionalNoiseContrastive", "NoiseContrastive"]

import math
from collections.abc import Callable, Sequence

import pyro
import torch
from pyro.infer import ELBO
from torch import Tensor, nn
from torch.distributions import Distribution, biject_to
from torch.nn.functional import logsigmoid

from ..arguments import check_count, check_positive
from ..distributions import Boltzmann
from ..potential import unconstrained_log_density
from .base import Objective
from .conditions import evaluate_each


class NoiseContrastive(Objective):
    r"""Noise-contrastive estimation (NCE), with a learnable log-normaliser.

    .. math::
        \hat\ell(x) = \log \sigma(G(x)) + \nu \, \mathbb{E}_{y \sim q} \log \sigma(-G(y)), \qquad
        G(x) = -E_\theta(x)/T - c - \log q(x) - \log \nu

    A consistent estimator: with a normalised noise q that covers the data, :math:`\theta` tends to
    the truth and c to :math:`\log \int e^{-E_\theta/T}`, for every :math:`\nu`; the variance tends
    to that of maximum likelihood as :math:`\nu` grows. Without c the energy has to normalise
    itself, and one that cannot ends at a wrong place. A noise whose ``log_prob`` lacks a constant
    shifts c by as much. Weights of modes are learned even where no chain crosses, if the noise
    covers them; noise unlike the data gives hardly a gradient.

    Each datum draws its own noise, the next whole number of points above :math:`\nu`, weighed to
    count as :math:`\nu`. The energy may be discrete. For a conditional energy c is one number for
    all conditions: unless the energy itself can express how its log Z changes with the condition,
    the result is biased, and :class:`ConditionalNoiseContrastive` is the way out.

    References:
        | Noise-contrastive estimation of unnormalized statistical models, with applications to
        | natural image statistics (Gutmann and Hyvärinen, 2012),
        | https://jmlr.org/papers/v13/gutmann12a.html

    Args:
        noise: The noise q: a distribution over one point, or a callable that returns one (a flow
            that learns elsewhere). It is not trained here; see
            :class:`~pyro_ebm.objectives.FlowContrastive`.
        ratio: The number :math:`\nu > 0` of noise points per datum.
        learn_log_normalizer: Whether c is learned; it is zero if not.
        elbo: The ELBO that takes care of the rest of a model.

    Raises:
        ValueError: If ``ratio`` is not positive; in use, if data are empty or not finite, if the
            energy breaks its contract, if the noise has another event shape or a batch, does not
            cover the data or leaves the support of the energy, or for a latent site, to which it
            carries no gradient of log p.

    Example:
        >>> import pyro.distributions as dist
        >>> import pyro_ebm as ebm
        >>> objective = NoiseContrastive(dist.Normal(torch.zeros(2), 3.0).to_event(1), ratio=5)
        >>> energy = ebm.energies.MLP(event_shape=(2,))
        >>> moving = [*energy.parameters(), objective.log_normalizer()]  # SVI finds both itself
        >>> (-objective.surrogate(ebm.Boltzmann(energy), torch.randn(7, 2)).mean()).backward()
    """

    serves_latents = False
    serves_discrete = True

    def __init__(
        self,
        noise: Distribution | Callable[[], Distribution],
        ratio: float = 1.0,
        learn_log_normalizer: bool = True,
        elbo: ELBO | None = None,
    ) -> None:
        super().__init__(elbo)
        check_positive("ratio", ratio)
        if not isinstance(noise, Distribution) and not callable(noise):
            raise ValueError(
                "noise must be a distribution, or a callable that returns one, got "
                f"{type(noise).__name__}"
            )
        self.noise = noise
        self.ratio = ratio
        self.learn_log_normalizer = learn_log_normalizer
        self._log_normalizers: dict[str, Tensor] = {}

    def log_normalizer(self, name: str = "x") -> Tensor:
        r"""Returns c, which estimates :math:`\log \int \exp(-E(x)/T) dx` once it has converged.

        SVI registers it as ``"<site>.log_normalizer"``; in a bare loop, hand it to the optimizer.

        Args:
            name: The site.

        Returns:
            A leaf tensor in nats, 0-d, that learns; zero, and fixed, if it is not to be learned.
        """
        if not self.learn_log_normalizer:
            return torch.zeros(())
        if name not in self._log_normalizers:
            self._log_normalizers[name] = nn.Parameter(torch.zeros(()))
        return self._log_normalizers[name]

    def register(self, name: str) -> None:  # noqa: D102
        if self.learn_log_normalizer:
            kept = pyro.param(f"{name}.log_normalizer", self.log_normalizer(name))
            self._log_normalizers[name] = kept

    def surrogate(self, boltzmann: Boltzmann, x: Tensor, name: str = "x") -> Tensor:  # noqa: D102
        self.check(boltzmann, x, name)
        noise = self.noise if isinstance(self.noise, Distribution) else self.noise()
        check_distribution("noise", noise, boltzmann, name)
        batch = x.shape[: x.dim() - len(boltzmann.event_shape)]
        log_q_x, y, log_q_y = self._against(noise, x, (math.ceil(self.ratio), *batch), name)
        check_inside("noise", boltzmann, y, name)
        constant = self.log_normalizer(name) + math.log(self.ratio)
        of_data = boltzmann.log_density(x) - constant - log_q_x
        of_noise = evaluate_each(Boltzmann.log_density, boltzmann, y) - constant - log_q_y
        return logsigmoid(of_data) + self.ratio * logsigmoid(-of_noise).mean(0)

    def _against(
        self, noise: Distribution, x: Tensor, shape: Sequence[int], name: str
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Returns log q at the data, draws of the noise of some shape, and log q at those."""
        with torch.no_grad():
            log_q_x = log_prob_of_data(noise, x, name)
            y = noise.sample(torch.Size(shape))
            return log_q_x, y, noise.log_prob(y)


class ConditionalNoiseContrastive(Objective):
    r"""Conditional noise-contrastive estimation: tell a datum from its own noisy copies.

    .. math:: \hat\ell(x) = \frac2M \sum_m \log \sigma(\log p(u) - \log p(u + \epsilon \xi_m))

    in unconstrained space, with the Jacobian in the density. Both log Z and the law of the noise,
    which is symmetric, cancel. A consistent estimator, for conditional energies too. As
    :math:`\epsilon` falls it becomes :class:`~pyro_ebm.objectives.ScoreMatching`, with the same
    blindness to the weights of well-separated modes; a scale of the order of the spread of the
    data sees more.

    References:
        | Conditional noise-contrastive estimation of unnormalised models (Ceylan and Gutmann,
        | 2018), https://proceedings.mlr.press/v80/ceylan18a.html

    Args:
        noise_scale: The standard deviation :math:`\epsilon > 0`, in units of unconstrained x.
        num_noise: The number M of noisy copies of each datum.
        elbo: The ELBO that takes care of the rest of a model.

    Raises:
        ValueError: If ``noise_scale`` or ``num_noise`` is not positive; in use, if data are empty
            or not finite, if the energy breaks its contract, for a discrete site, or for a latent
            one, to which it carries no gradient of log p.

    Example:
        >>> import pyro_ebm as ebm
        >>> objective = ConditionalNoiseContrastive(noise_scale=0.5, num_noise=4)
        >>> p = ebm.Boltzmann(ebm.energies.MLP(event_shape=(2,)))
        >>> (-objective.surrogate(p, torch.randn(7, 2)).mean()).backward()
    """

    serves_latents = False

    def __init__(self, noise_scale: float, num_noise: int = 1, elbo: ELBO | None = None) -> None:
        super().__init__(elbo)
        check_positive("noise_scale", noise_scale)
        check_count("num_noise", num_noise)
        self.noise_scale = noise_scale
        self.num_noise = num_noise

    def surrogate(self, boltzmann: Boltzmann, x: Tensor, name: str = "x") -> Tensor:  # noqa: D102
        self.check(boltzmann, x, name)
        u = biject_to(boltzmann.support).inv(x.detach())
        noise = torch.randn((self.num_noise, *u.shape), dtype=u.dtype, device=u.device)
        noisy = evaluate_each(unconstrained_log_density, boltzmann, u + self.noise_scale * noise)
        gap = unconstrained_log_density(boltzmann, u) - noisy
        return 2 * logsigmoid(gap).mean(0)


def check_distribution(
    argument: str, distribution: Distribution, boltzmann: Boltzmann, name: str
) -> None:
    """Checks that a distribution is one over a single point of a site.

    Args:
        argument: What the user calls it.
        distribution: The distribution.
        boltzmann: That of the site.
        name: The site.

    Raises:
        ValueError: If it has a batch, or another event shape.
    """
    if not isinstance(distribution, Distribution):
        raise ValueError(
            f"{argument} must return a distribution, got {type(distribution).__name__}"
        )
    if distribution.batch_shape or distribution.event_shape != boltzmann.event_shape:
        raise ValueError(
            f"{argument} must be a distribution over one point of site '{name}', with event_shape "
            f"{tuple(boltzmann.event_shape)} and no batch, got event_shape "
            f"{tuple(distribution.event_shape)} and batch_shape "
            f"{tuple(distribution.batch_shape)}; .to_event(n) makes a batch one event"
        )


def check_inside(argument: str, boltzmann: Boltzmann, y: Tensor, name: str) -> None:
    """Checks that draws of another distribution lie where the energy is defined.

    Args:
        argument: What the user calls that distribution.
        boltzmann: The distribution of the site.
        y: Draws, with shape ``(*batch, *event)``.
        name: The site.

    Raises:
        ValueError: If one lies outside.
    """
    outside = ~boltzmann.support.check(y)
    if bool(outside.any()):
        raise ValueError(
            f"{argument} leaves the support {boltzmann.support} of site '{name}' at "
            f"{int(outside.sum())} of {outside.numel()} draws, where the energy is not defined: "
            "give it the same support"
        )


def log_prob_of_data(noise: Distribution, x: Tensor, name: str) -> Tensor:
    """Evaluates the log density of the noise at data, which it has to cover.

    Args:
        noise: The noise.
        x: Data, with shape ``(*batch, *event)``.
        name: The site.

    Returns:
        The log density in nats, with shape ``(*batch,)``.

    Raises:
        ValueError: If a datum has no density.
    """
    x = x.detach()  # A new tensor: a flow returns what it kept for the very one it saw last.
    inside = noise.support.check(x)
    log_q = noise.log_prob(x) if bool(inside.all()) else None
    covered = inside if log_q is None else log_q.isfinite()
    if not bool(covered.all()):
        raise ValueError(
            f"noise has no support over {int((~covered).sum())} of {covered.numel()} data of site "
            f"'{name}': its density is zero there, and it can tell nothing about them; choose a "
            "noise that covers the data"
        )
    return log_q
