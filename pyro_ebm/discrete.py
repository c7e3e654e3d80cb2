r"""A discrete target, as the kernels see it that move it.

The chains of a discrete target are points themselves, flat and as floats: there is nothing to
unconstrain. What a kernel may ask of it besides the potential :math:`U = \beta E/T` is how that
changes by setting one site to another value,

.. math:: \Delta_{ik}(x) = U(x_{i \to k}) - U(x)

and a Gibbs sweep, where the energy knows its conditionals. The inverse temperature :math:`\beta`
is 1 but on the path to the target.
"""

from __future__ import annotations

__all__ = [
    "AsIntegers",
    "DiscreteTarget",
    "KnownConditionals",
    "bijection_of",
    "discrete_site",
    "discrete_target",
]

import copy
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeGuard

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import Transform, biject_to, constraints, identity_transform

from .batching import value_and_grad_of
from .distributions import Boltzmann
from .energies.alphabet import Alphabet, alphabet_of
from .energies.discrete import DiscreteEnergy


def bijection_of(support: constraints.Constraint) -> Transform:
    """Returns the map from where chains move to a support: the identity for an alphabet.

    Raises:
        NotImplementedError: If there is none.
    """
    if alphabet_of(support) is not None:
        return identity_transform
    try:
        return biject_to(support)
    except NotImplementedError as error:
        raise NotImplementedError(
            f"there is no bijection from real numbers to the support {support}, on which chains "
            "could move: write the energy in other coordinates, of which this point is a function"
        ) from error


class AsIntegers(Transform):
    """Floats, as chains are, that a model takes as integers."""

    domain = constraints.real
    codomain = constraints.real
    bijective = True

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype

    def __eq__(self, other: object) -> bool:
        return isinstance(other, AsIntegers) and other.dtype == self.dtype

    def _call(self, x: Tensor) -> Tensor:
        return x.round().to(self.dtype)

    def _inverse(self, y: Tensor) -> Tensor:
        return y.to(torch.get_default_dtype())

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """Nothing is stretched."""
        return torch.zeros_like(x)


class DiscreteTarget:
    r"""What a discrete kernel asks of a target of :math:`S` sites with :math:`K` values each.

    Args:
        value: Maps ``z (C, D)`` to :math:`U` in nats ``(C,)``; with one-hot vectors
            :math:`D = S K`, else :math:`D = S`.
        alphabet: The values of a site.
        num_values: Their number :math:`K`.
        value_and_grad: The same with the gradient, where ``value`` cannot be differentiated.
    """

    can_sweep: bool = False
    """Whether it knows how to sweep."""

    def __init__(
        self,
        value: Callable[[Tensor], Tensor],
        alphabet: Alphabet,
        num_values: int,
        value_and_grad: Callable[[Tensor], tuple[Tensor, Tensor]] | None = None,
    ) -> None:
        self.alphabet = alphabet
        self.num_values = num_values
        self.beta: Tensor | float = 1.0
        """The inverse temperature on the path to the target: a number, or one for each chain."""
        self._value = value
        self._value_and_grad = value_and_grad or value_and_grad_of(value)

    @property
    def _width(self) -> int:
        """The number of coordinates of a site."""
        return self.num_values if self.alphabet.one_hot else 1

    def tempered(self, beta: Tensor) -> DiscreteTarget:
        """Returns the target at other temperatures, of each chain its own.

        Args:
            beta: The inverse temperatures, with shape ``(C,)``.
        """
        path = copy.copy(self)
        path.beta = beta
        return path

    def given(self, value_and_grad: Callable[[Tensor], tuple[Tensor, Tensor]]) -> DiscreteTarget:
        """Returns the target of the same values with another potential: that of all the rest.

        Args:
            value_and_grad: Maps ``z (C, D)`` to :math:`U` in nats ``(C,)`` and its gradient.
        """

        def value(z: Tensor) -> Tensor:
            return value_and_grad(z)[0]

        return DiscreteTarget(value, self.alphabet, self.num_values, value_and_grad)

    def num_sites(self, z: Tensor) -> int:
        """The number of sites of chains ``z (C, D)``."""
        return z.shape[-1] // self._width

    def places(self, z: Tensor) -> Tensor:
        """Maps chains ``(*, D)`` to the places of their values in the alphabet, ``(*, S)``."""
        if self.alphabet.one_hot:
            z = z.unflatten(-1, (-1, self.num_values))
        return self.alphabet.encode(z)

    def points(self, places: Tensor, like: Tensor) -> Tensor:
        """Maps places ``(*, S)`` to chains ``(*, D)``, of the dtype of ``like``."""
        z = self.alphabet.decode(places, like, self.num_values)
        return z.flatten(-2) if self.alphabet.one_hot else z

    def contains(self, z: Tensor) -> bool:
        """Whether all values of chains ``(C, D)`` are of the alphabet."""
        places = self.places(z)
        inside = (places >= 0) & (places < self.num_values)
        return bool(inside.all()) and torch.equal(self.points(places, z), z)

    def draw(self, z: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Draws points uniformly, of the shape of chains ``z (C, D)``."""
        places = torch.empty(len(z), self.num_sites(z), dtype=torch.long, device=z.device)
        return self.points(places.random_(0, self.num_values, generator=generator), z)

    def place_at(self, z: Tensor, site: Tensor) -> Tensor:
        """The place of the value at one site ``(C,)`` of each chain ``(C, D)``, ``(C,)``."""
        rows = z.unflatten(-1, (-1, self._width))
        one = rows.gather(1, site[:, None, None].expand(-1, 1, self._width)).flatten(1)
        return self.places(one).squeeze(-1)

    def with_place(self, z: Tensor, site: Tensor, place: Tensor) -> Tensor:
        """Sets one site ``(C,)`` of each chain ``(C, D)`` to a place ``(C,)``."""
        rows = z.unflatten(-1, (-1, self._width))
        own = torch.arange(rows.shape[1], device=z.device) == site.unsqueeze(-1)
        new = self.points(place.unsqueeze(-1), z).unsqueeze(1)
        return torch.where(own.unsqueeze(-1), new, rows).flatten(1)

    @torch.no_grad()
    def value(self, z: Tensor) -> Tensor:
        """Evaluates the potential of chains ``(C, D)``, once or several times over, in nats."""
        beta = self.beta
        return self._value(z) * (beta.repeat(len(z) // len(beta)) if _varies(beta) else beta)

    def value_and_changes(self, z: Tensor) -> tuple[Tensor, Tensor]:
        r"""Evaluates the potential and how it changes.

        The changes are exact where the conditionals are known. Elsewhere they are those of the
        tangent at ``z`` to the energy as a function of real numbers,
        :math:`\nabla_i U(x) \cdot (a_k - x_i)`.

        Args:
            z: Chains, with shape ``(C, D)``.

        Returns:
            The potential in nats ``(C,)``, and the changes by setting each site to each value,
            ``(C, S, K)``.
        """
        value, changes = self._changes(z)
        if not _varies(self.beta):
            return value, changes
        return value * self.beta, changes * self.beta[:, None, None]

    def _changes(self, z: Tensor) -> tuple[Tensor, Tensor]:
        value, grad = self._value_and_grad(z)
        if self.alphabet.one_hot:
            grad, here = (part.unflatten(-1, (-1, self.num_values)) for part in (grad, z))
            return value, grad - (grad * here).sum(-1, keepdim=True)
        values = self.alphabet.decode(torch.arange(self.num_values, device=z.device), z)
        return value, grad.unsqueeze(-1) * (values - z.unsqueeze(-1))

    def num_uniforms(self, z: Tensor) -> int:
        """The number of uniform draws that a sweep of one chain takes, where it can sweep."""
        return self.num_sites(z)

    def sweep(self, z: Tensor, uniform: Tensor) -> Tensor:
        """Draws every site of every chain from its conditional, where it can sweep.

        Args:
            z: Chains, with shape ``(C, D)``.
            uniform: Uniform draws in [0, 1), with shape ``(C, num_uniforms)``.

        Returns:
            Chains, with shape ``(C, D)``.
        """
        raise NotImplementedError("this target does not know its conditionals")


class KnownConditionals(DiscreteTarget):
    """A target whose energy knows its conditionals.

    Args:
        boltzmann: The distribution of a :class:`~pyro_ebm.energies.DiscreteEnergy`.
        rows: How chains make up its batch.
    """

    can_sweep = True

    def __init__(self, boltzmann: Boltzmann, rows: Rows) -> None:
        energy = boltzmann.energy
        super().__init__(rows.value_of(boltzmann), energy.alphabet, energy.num_values)
        self.energy: DiscreteEnergy = energy
        self.temperature = boltzmann.temperature
        self.rows = rows
        self._per_site = (1,) * (len(energy.site_shape) + 1)

    def _changes(self, z: Tensor) -> tuple[Tensor, Tensor]:
        temperature = self.temperature
        if isinstance(temperature, Tensor):
            temperature = temperature.reshape(*temperature.shape, *self._per_site)
        with torch.no_grad():
            logits = self.energy.conditionals(self.rows.of(z, self.energy.event_shape))
            logits = (logits / temperature).reshape(len(z), -1, self.num_values)
            changes = logits.gather(-1, self.places(z).unsqueeze(-1)) - logits
            return self._value(z), changes

    def num_uniforms(self, z: Tensor) -> int:  # noqa: D102
        points = z[0].numel() // self.energy.event_shape.numel()
        return points * self.energy.uniform_shape.numel()

    @torch.no_grad()
    def sweep(self, z: Tensor, uniform: Tensor) -> Tensor:  # noqa: D102
        beta = self.inverse_temperature()
        if isinstance(beta, Tensor):
            beta = beta.reshape(*beta.shape, *self._per_site)
        x = self.rows.of(z, self.energy.event_shape)
        uniform = self.rows.of(uniform, self.energy.uniform_shape)
        return self.energy.sweep(x, uniform, beta).reshape(z.shape)

    def inverse_temperature(self) -> Tensor | float:
        """What the energy is multiplied with: a number, or one to broadcast with the batch."""
        if not _varies(self.beta):
            return self.beta / self.temperature
        return self.rows.per_row(self.beta) / self.temperature


class Rows(NamedTuple):
    """How chains make up a batch of points."""

    batch_shape: torch.Size
    one_each: bool
    """Whether each point of the batch is a chain; else the whole batch is one."""

    def of(self, z: Tensor, shape: Sequence[int]) -> Tensor:
        """Maps chains ``(C, D)`` to points ``(*leading, *batch_shape, *shape)``.

        Chains may be the batch several times over; if once, there is nothing in front of it.
        """
        batch = (*self.batch_shape, *shape)
        once = self.one_each and z.numel() == math.prod(batch)
        return z.reshape(batch if once else (-1, *batch))

    def per_row(self, x: Tensor) -> Tensor:
        """Maps numbers of chains ``(C,)`` to numbers to broadcast with the batch."""
        if self.one_each:
            return self.of(x, ())
        return x.reshape(-1, *(1 for _ in self.batch_shape))

    def value_of(self, boltzmann: Boltzmann) -> Callable[[Tensor], Tensor]:
        """Returns the potential of a distribution, from chains ``(C, D)`` to nats ``(C,)``."""

        def value(z: Tensor) -> Tensor:
            log_density = boltzmann.log_density(self.of(z, boltzmann.event_shape))
            return -log_density.reshape(len(z), -1).sum(-1)

        return value


def discrete_target(
    boltzmann: Boltzmann, batch_shape: Sequence[int], *, one_each: bool
) -> DiscreteTarget | None:
    """Builds the target that a Boltzmann distribution is.

    Args:
        boltzmann: The distribution.
        batch_shape: The shape of a batch of points.
        one_each: Whether each point of the batch is a chain, of the batch once or several times;
            else the whole batch is one.

    Returns:
        The target; ``None`` if its support is no alphabet.
    """
    alphabet = alphabet_of(boltzmann.support)
    if alphabet is None:
        return None
    rows, energy = Rows(torch.Size(batch_shape), one_each), boltzmann.energy
    if isinstance(energy, DiscreteEnergy):
        return KnownConditionals(boltzmann, rows)
    num_values = boltzmann.event_shape[-1] if alphabet.one_hot else alphabet.size
    return DiscreteTarget(rows.value_of(boltzmann), alphabet, num_values)


def discrete_site(fn: TorchDistribution) -> DiscreteTarget | None:
    """Says what values a latent of a model has, before its potential is :meth:`~given`.

    Args:
        fn: Its distribution.

    Returns:
        The target; ``None`` if its support is no alphabet.
    """
    alphabet = alphabet_of(fn.support)
    if alphabet is None:
        return None
    num_values = fn.event_shape[-1] if alphabet.one_hot else alphabet.size
    return DiscreteTarget(_unknown, alphabet, num_values)


def _varies(beta: Tensor | float) -> TypeGuard[Tensor]:
    return isinstance(beta, Tensor)


def _unknown(z: Tensor) -> Tensor:
    raise RuntimeError("the potential of this site alone is not known")
