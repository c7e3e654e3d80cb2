r"""Boltzmann machines in which every unit may be tied to every other."""

from __future__ import annotations

__all__ = ["BoltzmannMachine"]

import torch
from torch import Tensor
from torch.distributions import constraints

from .alphabet import spins
from .discrete import DiscreteEnergy, as_numbers, draw_booleans
from .enumeration import check_number_of_terms, log_sum_of_booleans


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

    linear_in = ("weights", "bias")

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
        self.site = site
        self.constant("weights", weights)
        self.constant("bias", bias)

    def _ties(self) -> Tensor:
        ties = (self.weights + self.weights.T) / 2
        return ties - ties.diagonal().diag()

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        x = as_numbers(x, self.bias)
        return -((0.5 * x @ self._ties() + self.bias) * x).sum(-1)

    def conditionals(self, x: Tensor) -> Tensor:  # noqa: D102
        log_odds = (as_numbers(x, self.bias) @ self._ties() + self.bias) * self.alphabet.step
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
        check_number_of_terms(size, "units")
        low, step = self.alphabet.lowest, self.alphabet.step
        return log_sum_of_booleans(lambda x: -self(low + step * x), size, self.bias, size)
