r"""Boltzmann machines: a dense one, and restricted ones with hidden units summed out.

.. math::
    E(x) = -\tfrac12 x^\top W x - b^\top x, \qquad
    E(v, h) = -b^\top v - c^\top h - v^\top W h

For more layers see :class:`~pyro_ebm.energies.DBM`.
"""

from __future__ import annotations

__all__ = ["RBM", "BoltzmannMachine", "GaussianRBM"]

import math

import torch
from torch import Tensor, nn
from torch.distributions import Bernoulli, Distribution, Independent, Normal, constraints
from torch.nn.functional import linear, softplus

from .alphabet import spins
from .base import Energy
from .deep_boltzmann import DBM
from .discrete import DiscreteEnergy, draw_booleans
from .enumeration import MAX_POINTS, log_sum_of_booleans


class BoltzmannMachine(DiscreteEnergy):
    r"""A Boltzmann machine in which every unit may be tied to every other.

    .. math:: E(x) = -\tfrac12 x^\top W x - b^\top x
        = -\sum_{i < j} W_{ij} x_i x_j - \sum_i b_i x_i

    over booleans or spins. The diagonal is not used and, as W learns, it stays symmetric. A
    sweep goes from unit to unit; for couplings that are few see :class:`IsingGraph`.

    Args:
        weights: The weights W, symmetric with a zero diagonal, in nats, with shape ``(S, S)``.
        bias: The biases b, in nats, with shape ``(S,)``.
        site: The values of a unit, ``constraints.boolean`` or :data:`~pyro_ebm.energies.spins`.

    Raises:
        ValueError: If ``weights`` is not symmetric, ties a unit to itself, or does not fit
            ``bias``, or if ``site`` is neither of the two; in :meth:`log_z`, if there are too many
            units for a sum.

    Example:
        >>> weights = torch.tensor([[0.0, 2.0], [2.0, 0.0]])
        >>> machine = BoltzmannMachine(weights, torch.zeros(2))
        >>> machine(torch.ones(2)), machine.log_z()  # log(3 + exp(2))
        (tensor(-2.), tensor(2.3408))
    """

    def __init__(
        self,
        weights: Tensor,
        bias: Tensor,
        site: constraints.Constraint = constraints.boolean,
    ) -> None:
        if bias.dim() != 1 or weights.shape != (len(bias), len(bias)):
            raise ValueError(
                f"weights must have shape (S, S) and bias (S,), got {tuple(weights.shape)} and "
                f"{tuple(bias.shape)}"
            )
        values = weights.detach()
        if not torch.equal(values, values.T):
            gap = (values - values.T).abs().max().item()
            raise ValueError(
                f"weights must be symmetric, but differ from their transpose by up to {gap:.3g}; "
                "pass (W + W.T) / 2"
            )
        if bool((values.diagonal() != 0).any()):
            raise ValueError(
                "weights must have a zero diagonal, got "
                f"{values.diagonal()}; what a unit owes to itself belongs in its bias"
            )
        if site not in (constraints.boolean, spins):
            raise ValueError(f"site must be constraints.boolean or energies.spins, got {site}")
        super().__init__(bias.shape, constraints.independent(site, 1))
        self.constant("weights", weights)
        self.constant("bias", bias)

    def _ties(self) -> Tensor:
        ties = (self.weights + self.weights.T) / 2
        return ties - ties.diagonal().diag()

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        return -((0.5 * x @ self._ties() + self.bias) * x).sum(-1)

    def conditionals(self, x: Tensor) -> Tensor:  # noqa: D102
        log_odds = (x @ self._ties() + self.bias) * self.alphabet.step
        return torch.stack([torch.zeros_like(log_odds), log_odds], -1)

    @torch.no_grad()
    def sweep(self, x: Tensor, uniform: Tensor, beta: float | Tensor = 1.0) -> Tensor:  # noqa: D102
        beta = beta.squeeze(-1) if isinstance(beta, Tensor) and beta.dim() else beta
        low, step, ties = self.alphabet.lowest, self.alphabet.step, self._ties()
        betas = beta * x.new_tensor(step).expand(x.shape)
        x = x.clone()
        for i in range(x.shape[-1]):
            log_odds = betas[..., i] * (x @ ties[i] + self.bias[i])
            x[..., i] = low + step * draw_booleans(log_odds, uniform[..., i])
        return x

    def log_z(self) -> Tensor:
        """Sums over all points, in bounded memory.

        Returns:
            The exact log Z in nats, differentiable.

        Raises:
            ValueError: If there are too many units.
        """
        size = len(self.bias)
        _check_size(size, "units")
        low, step = self.alphabet.lowest, self.alphabet.step
        return log_sum_of_booleans(lambda x: -self(low + step * x), size, self.bias, size)


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
        return -v @ self.visible_bias - softplus(self._hidden_log_odds(v)).sum(-1)

    def conditionals(self, v: Tensor) -> Tensor:  # noqa: D102
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
        _check_size(size, "hidden units")
        b = self.visible_bias

        def log_weight(h: Tensor) -> Tensor:
            shift = (b + h @ self.weights.T).square() - b.square()
            return h @ self.hidden_bias + (shift / (2 * self.scale.square())).sum(-1)

        width = self.scale.log().expand(b.shape) + 0.5 * math.log(2 * math.pi)
        return width.sum() + log_sum_of_booleans(log_weight, size, b, len(b))


def _check_size(size: int, kind: str) -> None:
    if 2**size > MAX_POINTS:
        raise ValueError(
            f"log Z of {size} {kind} is a sum over 2 to the {size} terms, more than {MAX_POINTS}; "
            "estimate it with pyro_ebm.logz"
        )
