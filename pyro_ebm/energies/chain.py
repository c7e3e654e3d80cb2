r"""A chain of labels whose scores data give: the linear-chain conditional random field.

.. math::
    p(y \mid x) \propto \exp\Big(\sum_t u_t(y_t; x) + \sum_t A_t(y_t, y_{t+1})\Big)

Everything about it is exact, in time :math:`O(T K^2)`, by passing messages along the chain.
"""

from __future__ import annotations

__all__ = ["ChainCRF"]

import torch
from torch import Tensor
from torch.distributions import constraints

from .discrete import DiscreteEnergy


class ChainCRF(DiscreteEnergy):
    r"""A linear-chain conditional random field, for labelling sequences.

    .. math:: E(y) = -\sum_{t=1}^{T} u_t(y_t) - \sum_{t=1}^{T-1} A_t(y_t, y_{t+1}), \qquad
        y_t \in \{0, \dots, K - 1\}

    The scores u come from data, through any network; each datum of their batch has its own law.
    Log Z, marginals, draws and the most probable labels are exact, and the first two are
    differentiable. So a Pyro model needs no objective to learn it:

    .. code-block:: python

        def model(x, y):
            pyro.module("network", network)
            crf = ChainCRF(network(x), pyro.param("transitions", torch.zeros(K, K)))
            with pyro.plate("data", len(x)):
                pyro.sample("y", Boltzmann(crf), obs=y)

    Sequences shorter than T are padded: with ``lengths``, what is beyond the end has the label 0,
    and weighs nothing.

    References:
        | Conditional random fields: probabilistic models for segmenting and labeling sequence
        | data (Lafferty, McCallum and Pereira, 2001), https://dl.acm.org/doi/10.5555/645530.655813

    Args:
        unary: The scores :math:`u`, in nats, with shape ``(*batch, T, K)``.
        transitions: The scores :math:`A` of a label, the first index, followed by another, in
            nats, with shape ``(K, K)`` or ``(*batch, T - 1, K, K)``.
        lengths: The lengths of the sequences, from 1 to T, with shape ``(*batch,)``; all T if not
            given.

    Raises:
        ValueError: If a shape does not fit, or a length is none.

    Example:
        >>> crf = ChainCRF(torch.zeros(7, 5, 3), torch.eye(3))
        >>> crf.log_z().shape, crf.marginals().shape, crf.mode().shape, crf.sample(4).shape
        (torch.Size([7]), torch.Size([7, 5, 3]), torch.Size([7, 5]), torch.Size([4, 7, 5]))
    """

    has_log_z = True
    has_sample = True
    linear_in = ("unary", "transitions")

    def __init__(self, unary: Tensor, transitions: Tensor, lengths: Tensor | None = None) -> None:
        if unary.dim() < 2 or unary.shape[-1] < 2:
            raise ValueError(
                "unary must have shape (*batch, T, K) with two labels or more, got "
                f"{tuple(unary.shape)}"
            )
        batch, (num_steps, num_labels) = unary.shape[:-2], unary.shape[-2:]
        square = (num_labels, num_labels)
        if transitions.shape not in (square, (*batch, num_steps - 1, *square)):
            raise ValueError(
                f"transitions must have shape {square} or {(*batch, num_steps - 1, *square)} to "
                f"fit unary of shape {tuple(unary.shape)}, got {tuple(transitions.shape)}"
            )
        support = constraints.independent(constraints.integer_interval(0, num_labels - 1), 1)
        super().__init__((num_steps,), support, torch.arange(num_steps) % 2)
        self.batch_shape = batch
        self.constant("unary", unary)
        self.constant("transitions", transitions)
        self.has_lengths = lengths is not None
        if self.has_lengths:
            if lengths.shape != batch or not bool(((lengths > 0) & (lengths <= num_steps)).all()):
                raise ValueError(
                    f"lengths must be from 1 to {num_steps}, of shape {tuple(batch)}, got "
                    f"{lengths}"
                )
            self.register_buffer("lengths", lengths)
        else:
            self.lengths = None

    def _scores(self) -> tuple[Tensor, Tensor]:
        """Returns unary scores and transitions for each step, with all that padding means."""
        num_steps, num_labels = self.unary.shape[-2:]
        unary, transitions = self.unary, self.transitions
        if transitions.dim() == 2:
            transitions = transitions.expand(num_steps - 1, -1, -1)
        if self.has_lengths:
            steps = torch.arange(num_steps, device=unary.device)
            inside = (steps < self.lengths.unsqueeze(-1)).unsqueeze(-1)
            padding = unary.new_full((num_labels,), -torch.inf)
            padding[0] = 0
            unary = torch.where(inside, unary, padding)
            transitions = torch.where(inside[..., 1:, :, None], transitions, 0)
        return unary, transitions

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        unary, transitions = self._scores()
        shape = torch.broadcast_shapes(x.shape, unary.shape[:-1])
        y = x.long().expand(shape)
        chosen = unary.expand(*shape, -1).gather(-1, y.unsqueeze(-1)).squeeze(-1)
        rows = transitions.expand(*shape[:-1], *transitions.shape[-3:])
        index = y[..., :-1, None, None].expand(*rows.shape[:-2], 1, rows.shape[-1])
        moved = rows.gather(-2, index).squeeze(-2).gather(-1, y[..., 1:].unsqueeze(-1))
        energy = -chosen.sum(-1) - moved.squeeze(-1).sum(-1)
        return energy.to(x.dtype) if x.is_floating_point() else energy

    def conditionals(self, x: Tensor) -> Tensor:  # noqa: D102
        unary, transitions = self._scores()
        shape = torch.broadcast_shapes(x.shape, unary.shape[:-1])
        y = x.long().expand(shape)
        tables = transitions.expand(*shape[:-1], *transitions.shape[-3:])
        rows = y[..., :-1, None, None].expand(*tables.shape[:-2], 1, tables.shape[-1])
        columns = y[..., 1:, None, None].expand(*tables.shape[:-1], 1)
        edge = unary.new_zeros(*shape[:-1], 1, unary.shape[-1])
        from_left = torch.cat([edge, tables.gather(-2, rows).squeeze(-2)], -2)
        from_right = torch.cat([tables.gather(-1, columns).squeeze(-1), edge], -2)
        return unary + from_left + from_right

    def _forward_messages(self) -> list[Tensor]:
        r"""Returns :math:`\log \sum_{y_{1:t-1}}` of all up to each step: T of ``(*batch, K)``."""
        unary, transitions = self._scores()
        messages = [unary[..., 0, :]]
        for t in range(1, unary.shape[-2]):
            ahead = (messages[-1].unsqueeze(-1) + transitions[..., t - 1, :, :]).logsumexp(-2)
            messages.append(ahead + unary[..., t, :])
        return messages

    def _backward_messages(self) -> list[Tensor]:
        """Returns the log sums over all beyond each step: T of ``(*batch, K)``."""
        unary, transitions = self._scores()
        messages = [torch.zeros_like(unary[..., 0, :])]
        for t in range(unary.shape[-2] - 1, 0, -1):
            beyond = (messages[-1] + unary[..., t, :]).unsqueeze(-2)
            messages.append((beyond + transitions[..., t - 1, :, :]).logsumexp(-1))
        return messages[::-1]

    def log_z(self) -> Tensor:  # noqa: D102
        return self._forward_messages()[-1].logsumexp(-1)

    def marginals(self) -> Tensor:
        """Evaluates the probability of each label at each step.

        Returns:
            The probabilities, with shape ``(*batch, T, K)``.
        """
        ahead, behind = self._forward_messages(), self._backward_messages()
        return (torch.stack(ahead, -2) + torch.stack(behind, -2)).softmax(-1)

    def pair_marginals(self) -> Tensor:
        """Evaluates the probability of each pair of labels at each two steps that follow.

        Returns:
            The probabilities, with shape ``(*batch, T - 1, K, K)``.
        """
        unary, transitions = self._scores()
        ahead = torch.stack(self._forward_messages(), -2)[..., :-1, :].unsqueeze(-1)
        behind = torch.stack(self._backward_messages(), -2)[..., 1:, :] + unary[..., 1:, :]
        joint = ahead + transitions + behind.unsqueeze(-2)
        return joint.flatten(-2).softmax(-1).unflatten(-1, joint.shape[-2:])

    def sample(self, num_samples: int) -> Tensor:
        """Draws labels exactly: the last from its marginal, each before it given the next.

        Args:
            num_samples: The number of independent draws of each datum's labels.

        Returns:
            Labels, with shape ``(num_samples, *batch, T)``.
        """
        _, transitions = self._scores()
        messages = self._forward_messages()
        y = _draw(messages[-1].expand(num_samples, *messages[-1].shape))
        labels = [y]
        for t in range(len(messages) - 2, -1, -1):
            table = transitions[..., t, :, :].mT  # given the next label, of each one before
            table = table.expand(num_samples, *self.batch_shape, *table.shape[-2:])
            index = y[..., None, None].expand(*y.shape, 1, table.shape[-1])
            y = _draw(messages[t] + table.gather(-2, index).squeeze(-2))
            labels.append(y)
        return torch.stack(labels[::-1], -1).to(self.unary.dtype)

    def mode(self) -> Tensor:
        """Finds the most probable labels, by the Viterbi algorithm.

        Returns:
            Labels, with shape ``(*batch, T)``.
        """
        unary, transitions = self._scores()
        best, came_from = unary[..., 0, :], []
        for t in range(1, unary.shape[-2]):
            value, origin = (best.unsqueeze(-1) + transitions[..., t - 1, :, :]).max(-2)
            best = value + unary[..., t, :]
            came_from.append(origin)
        labels = [best.argmax(-1)]
        for origin in came_from[::-1]:
            labels.append(origin.gather(-1, labels[-1].unsqueeze(-1)).squeeze(-1))
        return torch.stack(labels[::-1], -1).to(unary.dtype)


def _draw(logits: Tensor) -> Tensor:
    return torch.distributions.Categorical(logits=logits, validate_args=False).sample()
