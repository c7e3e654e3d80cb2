r"""Restricted Boltzmann machines, with their hidden units summed out.

.. math:: E(v, h) = -b^\top v - c^\top h - v^\top W h

For more layers see :class:`~pyro_ebm.energies.DBM`, for ties between all units
:class:`~pyro_ebm.energies.BoltzmannMachine`.
"""

from __future__ import annotations

__all__ = ["RBM", "GaussianRBM"]

import math

import torch
from torch import Tensor, nn
from torch.distributions import Bernoulli, Distribution, Independent, Normal, constraints
from torch.nn.functional import linear, softplus

from .base import Energy
from .deep_boltzmann import DBM
from .discrete import DiscreteEnergy, as_numbers, draw_booleans
from .enumeration import check_number_of_terms, log_sum_of_booleans


class _Restricted(Energy):
    """What the two kinds of restricted machines share."""

    def _register(self, weights: Tensor, visible_bias: Tensor, hidden_bias: Tensor) -> None:
        if weights.shape != visible_bias.shape + hidden_bias.shape or weights.dim() != 2:
            raise ValueError(
                "weights must have shape (V, H), with biases of shapes (V,) and (H,), got "
                f"{tuple(weights.shape)}, {tuple(visible_bias.shape)} and "
                f"{tuple(hidden_bias.shape)}"
            )
        self.constant("weights", weights)
        self.constant("visible_bias", visible_bias)
        self.constant("hidden_bias", hidden_bias)

    def _hidden_log_odds(self, v: Tensor) -> Tensor:
        raise NotImplementedError

    def hidden_given_visible(self, v: Tensor) -> Distribution:
        """Returns p(h | v), whose units are independent.

        Args:
            v: Visible units, with shape ``(*batch, V)``.

        Returns:
            The distribution of the hidden units, with event shape ``(H,)``.
        """
        return Independent(Bernoulli(logits=self._hidden_log_odds(v)), 1)


class RBM(_Restricted, DiscreteEnergy):
    r"""A restricted Boltzmann machine: booleans, the hidden ones summed out.

    .. math::
        E(v, h) = -b^\top v - c^\top h - v^\top W h, \qquad
        E(v) = -b^\top v - \sum_j \log(1 + \exp(c_j + (v^\top W)_j))

    Called with visible units it is their free energy E(v), so that it learns as any energy does;
    :meth:`joint` is the energy of both. ``sweep`` draws the hidden units and then the visible ones
    (block Gibbs), and leaves :math:`\exp(-E(v))` invariant; it takes as many uniform draws as
    there are units of both kinds, and serves the temperature 1 alone, since tempering E(v, h) and
    tempering E(v) are not the same: temper :meth:`joint`.

    References:
        | Training products of experts by minimizing contrastive divergence (Hinton, 2002),
        | https://doi.org/10.1162/089976602760128018

    Args:
        weights: The weights W, in nats, with shape ``(V, H)``.
        visible_bias: The biases b, in nats, with shape ``(V,)``.
        hidden_bias: The biases c, in nats, with shape ``(H,)``.

    Raises:
        ValueError: If the shapes do not fit; in :meth:`log_z`, if both layers have too many units;
            in ``sweep``, at another temperature.

    Example:
        >>> rbm = RBM(torch.ones(4, 2), torch.zeros(4), torch.zeros(2))
        >>> v = torch.zeros(7, 4)
        >>> rbm(v).shape, rbm.joint().event_shape, rbm.log_z()
        (torch.Size([7]), torch.Size([6]), tensor(8.5851))
        >>> rbm.sweep(v, torch.rand(7, 6)).shape
        torch.Size([7, 4])
    """

    def __init__(self, weights: Tensor, visible_bias: Tensor, hidden_bias: Tensor) -> None:
        DiscreteEnergy.__init__(
            self, visible_bias.shape, constraints.independent(constraints.boolean, 1)
        )
        self._register(weights, visible_bias, hidden_bias)

    @classmethod
    def initial(cls, num_visible: int, num_hidden: int, data: Tensor | None = None) -> RBM:
        """Makes a machine to train: small random weights, biases as frequent as the data are.

        Args:
            num_visible: The number of visible units.
            num_hidden: The number of hidden units.
            data: Booleans, with shape ``(N, V)``, from which the visible biases are taken; zero if
                not given.
        """
        bias = torch.zeros(num_visible)
        if data is not None:
            bias = ((data.sum(0) + 1) / (len(data) + 2)).logit().to(bias)  # Laplace's rule
        weights = 0.01 * torch.randn(num_visible, num_hidden)
        parameters = (weights, bias, torch.zeros(num_hidden))
        return cls(*(nn.Parameter(value) for value in parameters))

    @property
    def uniform_shape(self) -> torch.Size:
        """The shape of the draws of a sweep: one for each unit, the hidden ones first."""
        return torch.Size((sum(self.weights.shape),))

    def _hidden_log_odds(self, v: Tensor) -> Tensor:
        return linear(v, self.weights.T, self.hidden_bias)

    def _visible_log_odds(self, h: Tensor) -> Tensor:
        return linear(h, self.weights, self.visible_bias)

    def visible_given_hidden(self, h: Tensor) -> Distribution:
        """Returns p(v | h), whose units are independent.

        Args:
            h: Hidden units, with shape ``(*batch, H)``.

        Returns:
            The distribution of the visible units, with event shape ``(V,)``.
        """
        return Independent(Bernoulli(logits=self._visible_log_odds(h)), 1)

    def joint(self) -> DBM:
        """Returns the energy of visible and hidden units, of the same parameters."""
        return DBM([self.weights], [self.visible_bias, self.hidden_bias])

    def forward(self, v: Tensor) -> Tensor:  # noqa: D102
        v = as_numbers(v, self.weights)
        return -v @ self.visible_bias - softplus(self._hidden_log_odds(v)).sum(-1)

    def conditionals(self, v: Tensor) -> Tensor:  # noqa: D102
        v = as_numbers(v, self.weights)
        off = self._hidden_log_odds(v).unsqueeze(-2) - v.unsqueeze(-1) * self.weights
        gain = (softplus(off + self.weights) - softplus(off)).sum(-1)
        log_odds = self.visible_bias + gain
        return torch.stack([torch.zeros_like(log_odds), log_odds], -1)

    @torch.no_grad()
    def sweep(self, x: Tensor, uniform: Tensor, beta: float | Tensor = 1.0) -> Tensor:  # noqa: D102
        if not (bool((beta == 1).all()) if isinstance(beta, Tensor) else beta == 1):
            raise ValueError(
                f"beta must be 1, got {beta}: a block Gibbs sweep of an RBM leaves its free "
                "energy invariant at no other temperature; temper rbm.joint(), the energy of both "
                "layers"
            )
        if uniform.shape[-1:] != self.uniform_shape:
            raise ValueError(
                f"uniform must have a last side of {self.uniform_shape[0]}, one draw for each "
                f"visible and hidden unit (uniform_shape), got {tuple(uniform.shape)}"
            )
        for_hidden, for_visible = uniform.split(self.weights.shape[::-1], -1)
        h = draw_booleans(self._hidden_log_odds(x), for_hidden)
        return draw_booleans(self._visible_log_odds(h), for_visible)

    def log_z(self) -> Tensor:
        """Sums over the smaller layer, in bounded memory.

        Returns:
            The exact log Z in nats, differentiable.

        Raises:
            ValueError: If both layers have too many units.
        """
        return self.joint().log_z()


class GaussianRBM(_Restricted):
    r"""A restricted Boltzmann machine with real visible units, the hidden booleans summed out.

    .. math::
        E(v, h) &= \sum_i \frac{(v_i - b_i)^2}{2 s_i^2} - c^\top h
        - \sum_{ij} \frac{v_i W_{ij} h_j}{s_i^2} \\
        E(v) &= \sum_i \frac{(v_i - b_i)^2}{2 s_i^2}
        - \sum_j \log\Big(1 + \exp\Big(c_j + \sum_i \frac{v_i W_{ij}}{s_i^2}\Big)\Big)

    A mixture of :math:`2^H` Gaussians of one covariance: :math:`v \mid h \sim
    \mathcal{N}(b + W h, s^2)`. Beware of the convention: other texts divide the last term of
    E(v, h) by :math:`s_i`, which scales W. The data should have about unit variance.

    References:
        | How to center deep Boltzmann machines (Melchior, Fischer and Wiskott, 2016),
        | https://jmlr.org/papers/v17/14-237.html

    Args:
        weights: The weights W, in units of v, with shape ``(V, H)``.
        visible_bias: The biases b, in units of v, with shape ``(V,)``.
        hidden_bias: The biases c, in nats, with shape ``(H,)``.
        scale: The standard deviations :math:`s > 0`, in units of v, with shape ``(V,)`` or a
            number.

    Raises:
        ValueError: If the shapes do not fit or ``scale`` is not positive; in :meth:`log_z`, if
            there are too many hidden units for a sum.

    Example:
        >>> rbm = GaussianRBM(torch.eye(2), torch.zeros(2), torch.zeros(2))
        >>> v = torch.zeros(7, 2)
        >>> rbm(v).shape, rbm.hidden_given_visible(v).mean.shape, rbm.log_z()
        (torch.Size([7]), torch.Size([7, 2]), tensor(3.7860))
    """

    def __init__(
        self,
        weights: Tensor,
        visible_bias: Tensor,
        hidden_bias: Tensor,
        scale: Tensor | float = 1.0,
    ) -> None:
        Energy.__init__(self, visible_bias.shape)
        self._register(weights, visible_bias, hidden_bias)
        scale = scale if isinstance(scale, Tensor) else torch.as_tensor(scale).to(visible_bias)
        if scale.shape not in (torch.Size(), visible_bias.shape) or not bool((scale > 0).all()):
            raise ValueError(
                f"scale must be positive, a number or of shape {tuple(visible_bias.shape)}, got "
                f"{scale}"
            )
        self.constant("scale", scale)

    def _hidden_log_odds(self, v: Tensor) -> Tensor:
        return (v / self.scale.square()) @ self.weights + self.hidden_bias

    def visible_given_hidden(self, h: Tensor) -> Distribution:
        """Returns p(v | h), whose units are independent.

        Args:
            h: Hidden units, with shape ``(*batch, H)``.

        Returns:
            The distribution of the visible units, with event shape ``(V,)``.
        """
        return Independent(Normal(self.visible_bias + h @ self.weights.T, self.scale), 1)

    def _base(self, v: Tensor) -> Tensor:
        return 0.5 * ((v - self.visible_bias) / self.scale).square().sum(-1)

    def forward(self, v: Tensor) -> Tensor:  # noqa: D102
        return self._base(v) - softplus(self._hidden_log_odds(v)).sum(-1)

    def joint_energy(self, v: Tensor, h: Tensor) -> Tensor:
        """Evaluates E(v, h).

        Args:
            v: Visible units, with shape ``(*batch, V)``.
            h: Hidden units, with shape ``(*batch, H)``.

        Returns:
            The energy in nats, with shape ``(*batch,)``.
        """
        return self._base(v) - (self._hidden_log_odds(v) * h).sum(-1)

    def log_z(self) -> Tensor:
        """Sums over the hidden units, in bounded memory.

        Returns:
            The exact log Z in nats, differentiable.

        Raises:
            ValueError: If there are too many hidden units.
        """
        size = len(self.hidden_bias)
        check_number_of_terms(size, "hidden units")
        b = self.visible_bias

        def log_weight(h: Tensor) -> Tensor:
            shift = (b + h @ self.weights.T).square() - b.square()
            return h @ self.hidden_bias + (shift / (2 * self.scale.square())).sum(-1)

        width = self.scale.log().expand(b.shape) + 0.5 * math.log(2 * math.pi)
        return width.sum() + log_sum_of_booleans(log_weight, size, b, len(b))
