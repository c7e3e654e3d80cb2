r"""Score matching: learn the energy through its gradient, without sampling from the model.

With the model's score :math:`s(u) = -\nabla E_\theta(u)/T` and that of the data :math:`s_d`,

.. math::
    \tfrac12 \mathbb{E}_d |s - s_d|^2
    = \mathbb{E}_d \left[ \tfrac12 |s|^2 + \operatorname{tr} \nabla s \right] + \text{const}

so that neither log Z nor the score of the data is needed. Constrained sites are matched in
unconstrained space, with the Jacobian in the density. Weights of well-separated modes are hardly
seen by any score.
"""

from __future__ import annotations

__all__ = ["DenoisingScoreMatching", "ScoreMatching", "SlicedScoreMatching"]

from abc import abstractmethod
from collections.abc import Sequence
from functools import partial

import torch
from pyro.infer import ELBO
from torch import Tensor
from torch.distributions import biject_to

from ..arguments import check_count, check_positive
from ..distributions import Boltzmann
from ..potential import unconstrained_log_density
from .base import SECOND_DERIVATIVE, Objective
from .compiled_gradient import CompiledGradient
from .conditions import evaluate_each


class _OfScores(Objective):
    """A function of the score at some points, which training differentiates again."""

    serves_latents = False

    def __init__(self, elbo: ELBO | None, compile: bool) -> None:
        super().__init__(elbo)
        self.compile = compile
        self._compiled = CompiledGradient(self.evaluate)

    @abstractmethod
    def evaluate(self, boltzmann: Boltzmann, u: Tensor, *drawn: Tensor) -> tuple[Tensor, ...]:
        """Evaluates the surrogate.

        Args:
            boltzmann: The distribution.
            u: Unconstrained data, with the event flattened, ``(*batch, D)``.
            drawn: What was drawn for them.

        Returns:
            The surrogate ``(*batch,)`` and what else is to be known of it.
        """

    def why_not_divided(self) -> str:
        return SECOND_DERIVATIVE

    def _unconstrained(self, boltzmann: Boltzmann, x: Tensor, name: str) -> Tensor:
        """Checks data, and maps them to rows ``(*batch, D)`` of unconstrained space."""
        self.check(boltzmann, x, name)
        batch = x.shape[: x.dim() - len(boltzmann.event_shape)]
        return biject_to(boltzmann.support).inv(x.detach()).reshape(*batch, -1)

    def _evaluated(self, boltzmann: Boltzmann, *data: Tensor, name: str) -> tuple[Tensor, ...]:
        evaluate = partial(self._compiled, name=name) if self.compile else self.evaluate
        return evaluate(boltzmann, *data)


class ScoreMatching(_OfScores):
    r"""Score matching with the exact trace of the Hessian.

    .. math:: \hat\ell(x) = -\tfrac12 |s(u)|^2 - \operatorname{tr} \nabla_u s(u), \qquad
        s(u) = \nabla_u \left[ -E_\theta(x(u))/T + \log |dx/du| \right]

    A consistent estimator without bias from sampling; on a Gaussian it is maximum likelihood. The
    trace takes one pass backwards for each of the D dimensions: for many, use
    :class:`SlicedScoreMatching`. The energy has to be smooth: a network of ReLUs is linear in
    pieces, has no curvature to see, and is refused.

    References:
        | Estimation of non-normalized statistical models by score matching (Hyvärinen, 2005),
        | https://jmlr.org/papers/v6/hyvarinen05a.html

    Args:
        elbo: The ELBO that takes care of the rest of a model.
        compile: Whether value and gradient are compiled, see :class:`DenoisingScoreMatching`;
            the exact trace of more than some twenty dimensions is too large for it.

    Raises:
        ValueError: In use, if data are empty or not finite, if the energy breaks its contract or
            has no curvature, for a discrete site, or for a latent one, to which it carries no
            gradient of log p.

    Example:
        >>> import pyro_ebm as ebm
        >>> p = ebm.Boltzmann(ebm.energies.Gaussian(torch.zeros(2), 0.25))
        >>> x = torch.tensor([[2.0, 0.0]])
        >>> ScoreMatching().surrogate(p, x).detach()  # -1/2 (2/4)^2 + 1/4 + 1/4
        tensor([0.3750])
    """

    def __init__(self, elbo: ELBO | None = None, *, compile: bool = False) -> None:
        super().__init__(elbo, compile)

    def surrogate(self, boltzmann: Boltzmann, x: Tensor, name: str = "x") -> Tensor:  # noqa: D102
        u = self._unconstrained(boltzmann, x, name)
        value, is_flat = self._evaluated(boltzmann, u, name=name)
        _check_curved(is_flat, name)
        return value

    def evaluate(self, boltzmann: Boltzmann, u: Tensor) -> tuple[Tensor, Tensor]:  # noqa: D102
        with torch.enable_grad():
            u = u.detach().requires_grad_()
            score = _score(boltzmann, u)
            trace = sum(_slope(part, u)[..., i] for i, part in enumerate(score.unbind(-1)))
        return -0.5 * score.square().sum(-1) - trace, _is_flat(trace, score)


class SlicedScoreMatching(_OfScores):
    r"""Sliced score matching: the trace of the Hessian along random directions.

    .. math:: \hat\ell(x) = -\tfrac12 |s(u)|^2 - \frac1M \sum_m v_m^\top \nabla_u s(u) \, v_m,
        \qquad \mathbb{E}[v v^\top] = I

    An unbiased estimate of :class:`ScoreMatching`, at the price of one pass backwards for each
    projection. The variance of the trace of a Hessian H is :math:`2(|H|_F^2 - \sum_i H_{ii}^2)/M`
    for Rademacher directions and :math:`2|H|_F^2/M` for Gaussian ones; directions on the sphere
    have the length :math:`\sqrt D`. Without ``variance_reduction`` :math:`|s|^2` is sliced too,
    as :math:`\frac1M \sum_m (v_m^\top s)^2`: no cheaper, and noisier.

    References:
        | Sliced score matching: a scalable approach to density and score estimation (Song, Garg,
        | Shi and Ermon, 2019), https://arxiv.org/abs/1905.07088

    Args:
        num_projections: The number of directions M for each datum.
        projections: The law of a direction: "rademacher", "gaussian" or "sphere".
        variance_reduction: Whether :math:`|s|^2` is exact (SSM-VR).
        elbo: The ELBO that takes care of the rest of a model.
        compile: Whether value and gradient are compiled, see :class:`DenoisingScoreMatching`.

    Raises:
        ValueError: If ``num_projections`` is not positive or ``projections`` unknown; in use, as
            :class:`ScoreMatching`.

    Example:
        >>> import pyro_ebm as ebm
        >>> objective = SlicedScoreMatching(num_projections=2)
        >>> p = ebm.Boltzmann(ebm.energies.MLP(event_shape=(2,)))
        >>> (-objective.surrogate(p, torch.randn(7, 2)).mean()).backward()
    """

    def __init__(
        self,
        num_projections: int = 1,
        projections: str = "rademacher",
        variance_reduction: bool = True,
        elbo: ELBO | None = None,
        *,
        compile: bool = False,
    ) -> None:
        super().__init__(elbo, compile)
        check_count("num_projections", num_projections)
        if projections not in _PROJECTIONS:
            raise ValueError(
                f"projections must be one of {sorted(_PROJECTIONS)}, got {projections!r}"
            )
        self.num_projections = num_projections
        self.projections = projections
        self.variance_reduction = variance_reduction

    def surrogate(self, boltzmann: Boltzmann, x: Tensor, name: str = "x") -> Tensor:  # noqa: D102
        u = self._unconstrained(boltzmann, x, name)
        v = _PROJECTIONS[self.projections](u, self.num_projections)
        value, is_flat = self._evaluated(boltzmann, u, v, name=name)
        _check_curved(is_flat, name)
        return value

    def evaluate(  # noqa: D102
        self, boltzmann: Boltzmann, u: Tensor, v: Tensor
    ) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            u = u.detach().requires_grad_()
            score = _score(boltzmann, u)
            along = (v * score).sum(-1)
            slopes = [_slope(part, u) for part in along]
            trace = (v * torch.stack(slopes)).sum(-1).mean(0)
        square = score.square().sum(-1) if self.variance_reduction else along.square().mean(0)
        return -0.5 * square - trace, _is_flat(trace, score)


class DenoisingScoreMatching(_OfScores):
    r"""Denoising score matching: point from noisy data back to the data.

    .. math::
        \hat\ell(x) = -\frac{\sigma^2}{2} \left| \nabla_{\tilde x} \frac{E_\theta(\tilde x)}{T}
        - \frac{\tilde x - x}{\sigma^2} \right|^2, \qquad \tilde x = x + \sigma \xi

    It learns the law of the *noisy* data, :math:`p * \mathcal{N}(0, \sigma^2 I)`: on
    :math:`\mathcal{N}(0, v)` the precision :math:`1/(v + \sigma^2)`. The factor :math:`\sigma^2`
    makes noise levels comparable and moves no optimum. Weights of well-separated modes are hardly
    seen by any score. Constrained sites are noised in unconstrained space, with the Jacobian in
    the density.

    Most of the noise in a gradient is that of :math:`\sigma \, s(x) \cdot \xi`, whose mean is
    zero, and more so the smaller :math:`\sigma` is. With ``antithetic=True`` each datum takes
    :math:`\xi` and :math:`-\xi`, which cancel it: the same mean for twice the price. On a
    Gaussian of precision :math:`\lambda` the variance is then :math:`D (1 - \lambda \sigma^2)^4 /
    2`, without the :math:`\lambda^2 \sigma^2 (1 - \lambda \sigma^2)^2 |x|^2` that it has besides.

    With a sequence of noise levels, each datum draws one, and the energy is called as
    ``energy(x, sigma=sigma)`` with ``sigma`` of batch shape: one energy for all levels, to be
    sampled by :func:`~pyro_ebm.kernels.annealed_langevin`.

    References:
        | A connection between score matching and denoising autoencoders (Vincent, 2011),
        | https://doi.org/10.1162/NECO_a_00142
        | Generative modeling by estimating gradients of the data distribution (Song and
        | Ermon, 2019), https://arxiv.org/abs/1907.05600

    Args:
        sigma: The noise :math:`\sigma > 0` in units of x, or a sequence of levels.
        elbo: The ELBO that takes care of the rest of a model.
        antithetic: Whether each datum takes noise of both signs.
        compile: Whether the surrogate and its gradient in the parameters are compiled into native
            code, with the same noise and the same numbers to rounding. It takes about a quarter of
            a minute at the first update, and again where the shape of the data or a setting of the
            energy changes, up to four times; parameters may move in place as they like. An energy
            that reads Python state beyond the numbers and tensors of its modules must stay eager;
            one that is a closure does, with a warning. A batch that a mask or the like weighs
            unevenly takes twice the time.

    Raises:
        ValueError: If ``sigma`` is not positive and finite; in use, if data are empty or not
            finite, if the energy breaks its contract or ignores ``sigma``, for a discrete site,
            or for a latent one, to which it carries no gradient of log p.

    Example:
        >>> import pyro_ebm as ebm
        >>> objective = DenoisingScoreMatching(sigma=0.1)
        >>> p = ebm.Boltzmann(ebm.energies.MLP(event_shape=(2,)))
        >>> (-objective.surrogate(p, torch.randn(7, 2)).mean()).backward()
    """

    def __init__(
        self,
        sigma: float | Sequence[float],
        elbo: ELBO | None = None,
        *,
        antithetic: bool = False,
        compile: bool = False,
    ) -> None:
        super().__init__(elbo, compile)
        self.antithetic = antithetic
        levels = sigma.tolist() if hasattr(sigma, "tolist") else sigma
        for level in levels if isinstance(levels, list | tuple) else (levels,):
            check_positive("sigma", level)
        self.sigma = torch.as_tensor(sigma)
        if not self.sigma.numel():
            raise ValueError(f"sigma must be positive and finite, got {sigma}")

    def surrogate(self, boltzmann: Boltzmann, x: Tensor, name: str = "x") -> Tensor:  # noqa: D102
        batch = x.shape[: x.dim() - len(boltzmann.event_shape)]
        sigma = self.sigma.to(x)
        if sigma.dim():
            sigma = sigma[torch.randint(len(sigma), batch, device=x.device)]
            boltzmann = boltzmann.with_energy(partial(boltzmann.energy, sigma=sigma))
        u = self._unconstrained(boltzmann, x, name)
        sigma = sigma.expand(batch).unsqueeze(-1)
        return self._evaluated(boltzmann, u, sigma, torch.randn_like(u), name=name)[0]

    def evaluate(  # noqa: D102
        self, boltzmann: Boltzmann, u: Tensor, sigma: Tensor, noise: Tensor
    ) -> tuple[Tensor]:
        def surrogate(boltzmann: Boltzmann, noise: Tensor) -> Tensor:
            score = _score(boltzmann, (u + sigma * noise).requires_grad_())
            return -0.5 * (sigma * score + noise).square().sum(-1)

        with torch.enable_grad():
            if not self.antithetic:
                return (surrogate(boltzmann, noise),)
            return (evaluate_each(surrogate, boltzmann, torch.stack([noise, -noise])).mean(0),)


def _score(boltzmann: Boltzmann, u: Tensor) -> Tensor:
    """Evaluates the score at rows ``(*batch, D)`` of unconstrained space, in the same shape."""
    shape = biject_to(boltzmann.support).inverse_shape(boltzmann.event_shape)
    log_density = unconstrained_log_density(boltzmann, u.reshape(*u.shape[:-1], *shape))
    return torch.autograd.grad(log_density.sum(), u, create_graph=True)[0]


def _slope(value: Tensor, u: Tensor) -> Tensor:
    """Returns the gradient of each value ``(*batch,)`` at its own point ``(*batch, D)``."""
    if not value.requires_grad:
        return torch.zeros_like(u)
    return torch.autograd.grad(value.sum(), u, create_graph=True, materialize_grads=True)[0]


def _is_flat(trace: Tensor, score: Tensor) -> Tensor:
    """Tells whether an energy is linear in pieces, as far as these data show."""
    return (trace == 0).all() & (score != 0).any()


def _check_curved(is_flat: Tensor, name: str) -> None:
    if bool(is_flat):
        raise ValueError(
            f"the energy of site '{name}' has second derivatives of zero at every datum, as a "
            "network of ReLUs does, and score matching would learn nothing of its kinks: use a "
            "smooth activation (SiLU, softplus), or DenoisingScoreMatching"
        )


def _rademacher(like: Tensor, num: int) -> Tensor:
    return torch.randint(2, (num, *like.shape), device=like.device).to(like) * 2 - 1


def _gaussian(like: Tensor, num: int) -> Tensor:
    return torch.randn((num, *like.shape), dtype=like.dtype, device=like.device)


def _sphere(like: Tensor, num: int) -> Tensor:
    v = _gaussian(like, num)
    return v * (like.shape[-1] ** 0.5 / v.norm(dim=-1, keepdim=True))


_PROJECTIONS = {"gaussian": _gaussian, "rademacher": _rademacher, "sphere": _sphere}
