r"""An energy given evidence of each point: some of its coordinates, or all of them with noise.

.. math::
    p(x_U \mid x_K) \propto \exp(-E(x_U, x_K)), \qquad
    p(x \mid y) \propto \exp(-E(x)) \, p(y \mid x)

Each datum has a law of its own: the energy has the batch of the evidence. What is known of the
conditionals of discrete sites stays known, so that Gibbs sweeps serve.
"""

from __future__ import annotations

__all__ = ["Clamped", "ClampedSites", "Noisy", "NoisySites", "check_noise", "clamp", "observe"]

import math

import torch
from torch import Tensor, nn
from torch.distributions import constraints

from .alphabet import alphabet_of
from .base import Energy
from .discrete import DiscreteEnergy
from .whitened import is_real


def clamp(energy: Energy, x: Tensor, known: Tensor) -> Energy:
    r"""Holds coordinates of an energy fast: what is left is an energy of the unknown ones.

    .. math:: E(u) = E_0(x), \qquad x_U = u, \quad x_K \text{ as given}

    Args:
        energy: The energy :math:`E_0`, over all real numbers or over an alphabet that is not
            one-hot.
        x: The points whose known coordinates hold, with shape ``(*batch, *event)``.
        known: Which coordinates are known, booleans with shape ``(*event)``.

    Returns:
        An energy with batch shape ``(*batch,)`` and event shape ``(U,)``, the unknown coordinates
        in their order; its ``complete(u)`` puts them beside the known.

    Raises:
        ValueError: If a shape does not fit, no coordinate is unknown, or the support is another.

    Example:
        >>> from pyro_ebm.energies import Gaussian
        >>> pair = Gaussian(torch.zeros(2), torch.tensor([[2.0, 1.0], [1.0, 2.0]]))
        >>> given = clamp(pair, torch.tensor([[3.0, 0.0]]), torch.tensor([True, False]))
        >>> given.grad(torch.tensor([[-1.5]]))  # the mean of the second given the first
        tensor([[0.]])
    """
    kind = ClampedSites if isinstance(energy, DiscreteEnergy) else Clamped
    return kind(energy, x, known)


def observe(energy: Energy, y: Tensor, noise: float) -> Energy:
    r"""Adds what noisy readings say: the energy of the posterior of each point given its reading.

    .. math:: E(x) = E_0(x) - \log p(y \mid x)

    Real readings are :math:`y = x + \sigma \epsilon` with standard normal noise. Over an alphabet
    of K values a reading is wrong with probability q, and then any other value alike.

    Args:
        energy: The energy :math:`E_0`, over all real numbers or over an alphabet that is not
            one-hot.
        y: The readings, with shape ``(*batch, *event)``.
        noise: The standard deviation :math:`\sigma` in units of x, or the probability q.

    Returns:
        An energy with batch shape ``(*batch,)`` and the event shape of ``energy``.

    Raises:
        ValueError: If the shape does not fit, ``noise`` is not positive or no probability below 1,
            or the support is another.

    Example:
        >>> from pyro_ebm.energies import Gaussian
        >>> prior = Gaussian(torch.zeros(1), 1.0)
        >>> given = observe(prior, torch.tensor([[5.0]]), noise=0.5)
        >>> given.grad(torch.tensor([[4.0]]))  # the reading weighs four times as much
        tensor([[0.]])
    """
    kind = NoisySites if isinstance(energy, DiscreteEnergy) else Noisy
    return kind(energy, y, noise)


class Clamped(Energy):
    """What :func:`clamp` makes of any energy."""

    def __init__(self, energy: Energy, x: Tensor, known: Tensor) -> None:
        support = constraints.independent(_site_support(energy), 1)
        gaps = _Gaps(energy, x, known)
        super().__init__(gaps.unknown.shape, support)
        self.batch_shape = _batch_of("x", energy, x)
        self.energy = energy
        self.complete = gaps

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        return self.energy(self.complete(x))


class ClampedSites(DiscreteEnergy):
    """What :func:`clamp` makes of an energy that knows its conditionals."""

    def __init__(self, energy: DiscreteEnergy, x: Tensor, known: Tensor) -> None:
        support = constraints.independent(_site_support(energy), 1)
        gaps = _Gaps(energy, x, known)
        own = energy.colours.flatten()[gaps.unknown]
        super().__init__((len(own),), support, own.unique(return_inverse=True)[1])
        self.batch_shape = _batch_of("x", energy, x)
        self.energy = energy
        self.complete = gaps

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        return self.energy(self.complete(x))

    def conditionals(self, x: Tensor) -> Tensor:  # noqa: D102
        of_all = self.energy.conditionals(self.complete(x))
        return of_all.flatten(-1 - len(self.energy.event_shape), -2)[..., self.complete.unknown, :]


class Noisy(Energy):
    """What :func:`observe` makes of any energy."""

    def __init__(self, energy: Energy, y: Tensor, noise: float) -> None:
        super().__init__(energy.event_shape, energy.support)
        self.batch_shape = _batch_of("y", energy, y)
        self.energy, self.noise = energy, noise
        self.size = 0 if is_real(energy.support) else alphabet_of(_site_support(energy)).size
        check_noise(noise, self.size)
        self.register_buffer("y", y.detach())

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        y = self.y.to(x.dtype)
        if self.size:
            off = -torch.where(x == y, *_log_likelihoods(self.noise, self.size))
        else:
            off = 0.5 * ((x - y) / self.noise).square()
        return self.energy(x) + off.flatten(x.dim() - len(self.event_shape)).sum(-1)


class NoisySites(DiscreteEnergy):
    """What :func:`observe` makes of an energy that knows its conditionals."""

    def __init__(self, energy: DiscreteEnergy, y: Tensor, noise: float) -> None:
        _site_support(energy)
        super().__init__(energy.event_shape, energy.support, energy.colours)
        self.batch_shape = _batch_of("y", energy, y)
        self.energy = energy
        check_noise(noise, self.num_values)
        right, wrong = _log_likelihoods(noise, self.num_values)
        places = self.alphabet.encode(y.detach()).unsqueeze(-1)
        values = torch.arange(self.num_values, device=y.device)
        self.register_buffer("told", torch.where(places == values, right, wrong))

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        places = self.alphabet.encode(x).unsqueeze(-1)
        told = self.told.expand(*places.shape[:-1], -1).gather(-1, places)
        energy = self.energy(x)
        return energy - told.flatten(x.dim() - len(self.event_shape)).sum(-1).to(energy.dtype)

    def conditionals(self, x: Tensor) -> Tensor:  # noqa: D102
        found = self.energy.conditionals(x)
        return found + self.told.to(found.dtype)


class _Gaps(nn.Module):
    """Points with gaps, to be filled."""

    def __init__(self, energy: Energy, x: Tensor, known: Tensor) -> None:
        super().__init__()
        batch = _batch_of("x", energy, x)
        if known.dtype != torch.bool or known.shape != energy.event_shape or bool(known.all()):
            raise ValueError(
                f"known must be booleans of the event shape {tuple(energy.event_shape)}, not all "
                f"of them true, got {known.dtype} of shape {tuple(known.shape)}"
            )
        self.event_shape = energy.event_shape
        self.register_buffer("x", x.detach().reshape(*batch, -1))
        self.register_buffer("unknown", (~known).flatten().nonzero().flatten())

    def forward(self, u: Tensor) -> Tensor:
        """Puts unknown coordinates ``(*batch, U)`` beside the known: ``(*batch, *event)``."""
        batch = torch.broadcast_shapes(u.shape[:-1], self.x.shape[:-1])
        x = self.x.to(u.dtype).expand(*batch, -1)
        x = x.index_copy(-1, self.unknown, u.expand(*batch, -1))
        return x.reshape(*batch, *self.event_shape)


def _batch_of(name: str, energy: Energy, x: Tensor) -> torch.Size:
    """Checks points, and returns the shape of their batch."""
    num_batch_dims = x.dim() - len(energy.event_shape)
    if num_batch_dims < 0 or x.shape[num_batch_dims:] != energy.event_shape:
        raise ValueError(
            f"{name} must have shape (*batch, {', '.join(map(str, energy.event_shape))}), as the "
            f"energy has event shape {tuple(energy.event_shape)}, got {tuple(x.shape)}"
        )
    return x.shape[:num_batch_dims]


def _site_support(energy: Energy) -> constraints.Constraint:
    """Returns the support of one coordinate."""
    if is_real(energy.support):
        return constraints.real
    alphabet, support = alphabet_of(energy.support), energy.support
    if alphabet is None or alphabet.one_hot:
        raise ValueError(
            "evidence of single coordinates needs an energy over all real numbers or over an "
            f"alphabet that is not one-hot, got support {support}"
        )
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    return support


def check_noise(noise: float, num_values: int = 0) -> None:
    """Checks the noise of readings: a standard deviation, or over an alphabet a probability."""
    if not 0 < noise < (1 if num_values else math.inf):
        kind = "a probability between 0 and 1" if num_values else "positive and finite"
        raise ValueError(f"noise must be {kind}, got {noise}")


def _log_likelihoods(noise: float, num_values: int) -> tuple[float, float]:
    """The log probability of a right reading, and of one that is wrong in one way."""
    return math.log1p(-noise), math.log(noise / (num_values - 1))
