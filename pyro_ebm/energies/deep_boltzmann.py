r"""Boltzmann machines in layers, each tied to the next.

.. math:: E(x_0, \dots, x_L) = -\sum_l b_l^\top x_l - \sum_l x_l^\top W_l x_{l+1}

Given the odd layers the even ones are independent, and the reverse: two colours, whatever the
depth. The same holds for sums, so that log Z costs one sum over the smaller of the two.
"""

from __future__ import annotations

__all__ = ["DBM"]

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor
from torch.distributions import constraints
from torch.nn.functional import softplus

from .discrete import DiscreteEnergy, as_numbers, draw_booleans
from .enumeration import check_number_of_terms, log_sum_of_booleans


class DBM(DiscreteEnergy):
    r"""A deep Boltzmann machine: booleans in two layers or more, the first of them visible.

    .. math:: E(v, h_1, \dots, h_L) = -b_0^\top v - \sum_{l \ge 1} b_l^\top h_l
        - v^\top W_1 h_1 - \sum_{l \ge 2} h_{l-1}^\top W_l h_l

    A point is all layers one after the other, the visible first: :meth:`layers` takes it apart.
    A sweep draws all even layers at once, then all odd ones. With one hidden layer it is the joint
    energy of an :class:`RBM`.

    References:
        | Deep Boltzmann machines (Salakhutdinov and Hinton, 2009),
        | https://proceedings.mlr.press/v5/salakhutdinov09a.html

    Args:
        weights: The weights :math:`W_l`, in nats, each with shape ``(size, size of the next)``.
        biases: The biases :math:`b_l`, in nats, one more than weights, each with shape
            ``(size,)``, or ``(*batch, size)`` where each datum has its own.

    Raises:
        ValueError: If the shapes do not fit; in :meth:`log_z`, if the sum is too large.

    Example:
        >>> biases = [torch.zeros(3), torch.zeros(3), torch.zeros(2)]
        >>> dbm = DBM([torch.eye(3), torch.ones(3, 2)], biases)
        >>> dbm(torch.ones(8)), dbm.log_z()
        (tensor(-9.), tensor(10.2868))
        >>> dbm.mean_field(torch.ones(5, 3)).shape
        torch.Size([5, 8])
    """

    def __init__(self, weights: Sequence[Tensor], biases: Sequence[Tensor]) -> None:
        sizes = [bias.shape[-1] for bias in biases]
        needed = list(pairwise(sizes))
        if not sizes or [tuple(w.shape) for w in weights] != needed:
            raise ValueError(
                f"weights must have the shapes {needed} between layers of {sizes} biases, got "
                f"{[tuple(w.shape) for w in weights]}"
            )
        colours = torch.cat([torch.full((size,), i % 2) for i, size in enumerate(sizes)])
        support = constraints.independent(constraints.boolean, 1)
        super().__init__((sum(sizes),), support, colours)
        self.sizes = sizes
        self.batch_shape = torch.broadcast_shapes(*(bias.shape[:-1] for bias in biases))
        for i, weight in enumerate(weights):
            self.constant(f"weight_{i}", weight)
        for i, bias in enumerate(biases):
            self.constant(f"bias_{i}", bias)

    @classmethod
    def initial(cls, sizes: Sequence[int], std: float = 0.01) -> DBM:
        """Makes a machine to train, with small random weights and no biases.

        Args:
            sizes: The number of units in each layer, the visible first.
            std: The standard deviation of the weights.
        """
        weights = [torch.nn.Parameter(std * torch.randn(pair)) for pair in pairwise(sizes)]
        return cls(weights, [torch.nn.Parameter(torch.zeros(size)) for size in sizes])

    @property
    def linear_in(self) -> tuple[str, ...]:
        """The names of weights and biases: the energy is linear in them."""
        weights = [f"weight_{i}" for i in range(len(self.sizes) - 1)]
        return (*weights, *(f"bias_{i}" for i in range(len(self.sizes))))

    @property
    def weights(self) -> list[Tensor]:
        """The weights between each layer and the next."""
        return [getattr(self, f"weight_{i}") for i in range(len(self.sizes) - 1)]

    @property
    def biases(self) -> list[Tensor]:
        """The biases of each layer."""
        return [getattr(self, f"bias_{i}") for i in range(len(self.sizes))]

    def layers(self, x: Tensor) -> tuple[Tensor, ...]:
        """Takes points apart into layers.

        Args:
            x: Points, with shape ``(*batch, *event)``.

        Returns:
            The layers, the visible first, each with shape ``(*batch, size)``.
        """
        return as_numbers(x, self.bias_0).split(self.sizes, dim=-1)

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        layers = self.layers(x)
        energy = -sum((b * layer).sum(-1) for b, layer in zip(self.biases, layers, strict=True))
        for weight, below, above in zip(self.weights, layers, layers[1:], strict=False):
            energy = energy - ((below @ weight) * above).sum(-1)
        return energy

    def _log_odds(self, layers: Sequence[Tensor], i: int) -> Tensor:
        """Evaluates the log odds of the units of one layer, given the layers beside it."""
        log_odds = self.biases[i]
        if i > 0:
            log_odds = log_odds + layers[i - 1] @ self.weights[i - 1]
        if i + 1 < len(layers):
            log_odds = log_odds + layers[i + 1] @ self.weights[i].T
        return log_odds

    def conditionals(self, x: Tensor) -> Tensor:  # noqa: D102
        layers = self.layers(x)
        log_odds = [self._log_odds(layers, i) for i in range(len(layers))]
        batch = torch.broadcast_shapes(x.shape[:-1], self.batch_shape)
        log_odds = torch.cat([part.expand(*batch, -1) for part in log_odds], -1)
        return torch.stack([torch.zeros_like(log_odds), log_odds], -1)

    @torch.no_grad()
    def sweep(self, x: Tensor, uniform: Tensor, beta: float | Tensor = 1.0) -> Tensor:  # noqa: D102
        beta = beta.squeeze(-1) if isinstance(beta, Tensor) and beta.dim() else beta
        per_site = isinstance(beta, Tensor) and beta.dim() and beta.shape[-1] == x.shape[-1]
        betas = self.layers(beta) if per_site else [beta] * len(self.sizes)
        layers, draws = list(self.layers(x)), self.layers(uniform)
        for colour in (0, 1):
            for i in range(colour, len(layers), 2):
                layers[i] = draw_booleans(betas[i] * self._log_odds(layers, i), draws[i])
        return torch.cat(layers, -1)

    def given(self, v: Tensor) -> DBM:
        r"""Returns the energy of the hidden layers alone, given the visible: E(v, ·).

        Args:
            v: Visible layers, with shape ``(*batch, size)``.

        Returns:
            A machine of one layer less, whose first biases have the batch; its energy leaves out
            :math:`-b_0^\top v`, which does not depend on the hidden units.
        """
        first = self.biases[1] + v @ self.weights[0]
        return DBM(self.weights[1:], [first, *self.biases[2:]])

    def mean_field(self, v: Tensor, num_steps: int = 50) -> Tensor:
        r"""Finds the independent units nearest to the hidden ones, given the visible.

        .. math:: \mu_l = \sigma(b_l + W_l^\top \mu_{l-1} + W_{l+1} \mu_{l+1}), \qquad \mu_0 = v

        by coordinate ascent of :meth:`log_density_bound`, layer by layer.

        Args:
            v: Visible layers, with shape ``(*batch, size)``.
            num_steps: How many times all layers are brought up to date.

        Returns:
            The visible layer and the means of the hidden ones, with shape ``(*batch, *event)``.
        """
        batch = torch.broadcast_shapes(v.shape[:-1], self.batch_shape)
        layers = [v.expand(*batch, -1)]
        layers += [v.new_full((*batch, size), 0.5) for size in self.sizes[1:]]
        for _ in range(num_steps):
            for i in range(1, len(layers)):
                layers[i] = self._log_odds(layers, i).sigmoid()
        return torch.cat(layers, -1)

    def log_density_bound(self, v: Tensor, num_steps: int = 50) -> Tensor:
        r"""Bounds the log density of the visible layer from below, by mean field.

        .. math:: \log \sum_h e^{-E(v, h)} \ge -E(v, \mu) + \sum_i H(\mu_i)

        where H is the entropy of a boolean. Less :meth:`log_z`, it bounds the log-likelihood.

        Args:
            v: Visible layers, with shape ``(*batch, size)``.
            num_steps: As in :meth:`mean_field`.

        Returns:
            The bound in nats, with shape ``(*batch,)``.
        """
        x = self.mean_field(v, num_steps)
        means = x[..., self.sizes[0] :]
        entropy = torch.special.entr(means) + torch.special.entr(1 - means)
        return entropy.sum(-1) - self(x)

    def log_z(self) -> Tensor:
        r"""Sums over the smaller of the even and the odd layers; the others factorise.

        Returns:
            The exact log Z in nats, with shape ``(*batch,)``; differentiable, in bounded memory.

        Raises:
            ValueError: If both have too many units.
        """
        parts = [range(0, len(self.sizes), 2), range(1, len(self.sizes), 2)]
        count = [sum(self.sizes[i] for i in part) for part in parts]
        own = int(count[1] < count[0])
        check_number_of_terms(count[own], f"units, the fewer in layers of {self.sizes},")
        like = self.bias_0

        def log_weight(rows: Tensor) -> Tensor:
            rows = rows.reshape(len(rows), *(1,) * len(self.batch_shape), count[own])
            layers: list[Tensor] = [like.new_zeros(size) for size in self.sizes]
            split = rows.split([self.sizes[i] for i in parts[own]], -1)
            for i, layer in zip(parts[own], split, strict=True):
                layers[i] = layer
            total = rows.new_zeros(rows.shape[:-1])
            for i in parts[own]:
                total = total + (self.biases[i] * layers[i]).sum(-1)
            for i in parts[1 - own]:
                total = total + softplus(self._log_odds(layers, i)).sum(-1)
            return total

        return log_sum_of_booleans(log_weight, count[own], like, max(sum(self.sizes), 1))
