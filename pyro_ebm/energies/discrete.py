r"""Energies of points with finitely many values at each site, which know their conditionals.

.. math::
    p(x_i = a_k \mid x_{-i}) \propto \exp(-E(x_1, \dots, x_i = a_k, \dots, x_S))

All that Gibbs sampling, flips that are informed by the energy, pseudolikelihood and iterated
conditional modes need of an energy are these conditionals, and which sites are independent of each
other given the rest: sites of one colour.
"""

from __future__ import annotations

__all__ = ["DiscreteEnergy", "as_numbers", "draw_booleans", "structure"]

from collections.abc import Sequence
from contextlib import AbstractContextManager

import torch
from torch import Tensor
from torch.distributions import constraints
from torch.utils._python_dispatch import _disable_current_modes

from .alphabet import alphabet_of
from .base import Energy


class DiscreteEnergy(Energy):
    r"""An energy over an alphabet that knows its conditionals.

    A subclass defines ``forward`` and :meth:`conditionals`. One whose sites can be moved together
    faster than colour by colour overrides :meth:`sweep`.

    Args:
        event_shape: The shape of one point.
        support: One of ``constraints.boolean``, :data:`~pyro_ebm.energies.spins`,
            ``constraints.integer_interval`` and ``constraints.one_hot``, within
            ``constraints.independent`` for more than one site.
        colours: The colour of each site, with shape ``(*sites)``: sites of one colour do not
            interact with each other. Each site has its own if not given.

    Raises:
        ValueError: If the support is no alphabet.

    Example:
        >>> from pyro_ebm.energies import spins
        >>> class Field(DiscreteEnergy):
        ...     def forward(self, x):
        ...         return -0.5 * x.sum(-1)
        ...
        ...     def conditionals(self, x):
        ...         values = torch.tensor([-1.0, 1.0])
        ...         return (0.5 * values).expand(*x.shape, 2)
        >>> free = torch.zeros(3, dtype=torch.long)  # no site interacts with another
        >>> field = Field((3,), constraints.independent(spins, 1), free)
        >>> field.sweep(-torch.ones(3), torch.tensor([0.1, 0.3, 0.9]))
        tensor([-1.,  1.,  1.])
    """

    linear_in: tuple[str, ...] = ()
    """The names of all its parameters, if the energy is linear in them together: at a temperature
    T it is then the same energy with these over T, and so is its log Z."""

    def __init__(
        self,
        event_shape: Sequence[int],
        support: constraints.Constraint,
        colours: Tensor | None = None,
    ) -> None:
        super().__init__(event_shape, support)
        alphabet = alphabet_of(support)
        if alphabet is None:
            raise ValueError(
                "support must be booleans, spins, integers of an interval or one-hot vectors, got "
                f"{support}"
            )
        self.alphabet = alphabet
        if colours is None:
            colours = torch.arange(self.site_shape.numel()).reshape(self.site_shape)
        self.register_buffer("colours", colours, persistent=False)
        with structure():
            self.num_colours = int(colours.max()) + 1

    @property
    def num_values(self) -> int:
        """The number of values of a site, K."""
        return self.event_shape[-1] if self.alphabet.one_hot else self.alphabet.size

    @property
    def site_shape(self) -> torch.Size:
        """The shape of the sites of a point: that of the event, but for one-hot vectors."""
        return self.event_shape[:-1] if self.alphabet.one_hot else self.event_shape

    @property
    def uniform_shape(self) -> torch.Size:
        """The shape of the uniform draws that a sweep of one point takes: one for each site.

        An energy that draws what it has summed out as well, such as the hidden units of an RBM,
        takes more.
        """
        return self.site_shape

    def conditionals(self, x: Tensor) -> Tensor:
        r"""Evaluates the log conditionals of every site, given all the others.

        Args:
            x: Points, with shape ``(*batch, *event)``.

        Returns:
            :math:`-E(x_{i \to k})` in nats, up to a constant for each point and site, with shape
            ``(*batch, *sites, K)``.
        """
        raise NotImplementedError(f"{type(self).__name__} must define conditionals(x)")

    @torch.no_grad()
    def sweep(self, x: Tensor, uniform: Tensor, beta: float | Tensor = 1.0) -> Tensor:
        r"""Draws every site once from its conditional: a systematic Gibbs sweep.

        It leaves :math:`\exp(-\beta E)` invariant, exactly: colour by colour, sites of one colour
        at once.

        Args:
            x: Points, with shape ``(*batch, *event)``.
            uniform: Uniform draws in [0, 1), with shape ``(*batch, *uniform_shape)``.
            beta: The inverse temperature, to broadcast with ``(*batch, *sites, 1)``.

        Returns:
            Points, with the shape of ``x``.
        """
        for colour in range(self.num_colours):
            own = self.colours == colour
            below = (beta * self.conditionals(x)).softmax(-1).cumsum(-1)[..., :-1]
            places = (uniform.unsqueeze(-1) >= below).sum(-1)
            drawn = self.alphabet.decode(places, x, self.num_values)
            x = torch.where(own.unsqueeze(-1) if self.alphabet.one_hot else own, drawn, x)
        return x


def structure() -> AbstractContextManager:
    """Keeps out of a trace what depends on the shape of an energy alone, such as its colours.

    A model may build its energy anew at each run, from latents; its trace is then of what these
    decide.
    """
    return _disable_current_modes()


def as_numbers(x: Tensor, like: Tensor) -> Tensor:
    """Turns booleans and integers into floating-point numbers, and leaves these as they are.

    Args:
        x: Points.
        like: A tensor whose dtype they take.
    """
    return x if x.is_floating_point() else x.to(like.dtype)


def draw_booleans(log_odds: Tensor, uniform: Tensor) -> Tensor:
    r"""Draws booleans: 1 where :math:`u \ge 1 - \sigma(a)`, in as few passes as can be.

    Args:
        log_odds: The log odds :math:`a` of 1, in nats.
        uniform: Uniform draws :math:`u` in [0, 1), of the same shape.

    Returns:
        Zeros and ones, with the dtype of ``log_odds``.
    """
    return log_odds.sigmoid().add_(uniform).ge(1).to(log_odds.dtype)
