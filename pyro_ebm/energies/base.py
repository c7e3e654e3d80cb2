r"""The contract of an energy and its algebra.

An energy maps a point to nats, low where the point is likely:

.. math:: p(x) = \exp(-E(x)) / Z, \qquad Z = \int \exp(-E(x)) \, dx

Any callable ``x (*batch, *event) -> (*batch,)`` is an energy. :class:`Energy` adds what is known
about one: its event shape, its support and, where they exist in closed form, ``log_z()`` and
``sample()``.
"""

from __future__ import annotations

__all__ = [
    "Energy",
    "Mixture",
    "Scaled",
    "Sum",
    "Tempered",
    "check_energy",
    "mixture",
    "module_of",
    "real_support",
    "reference_tensor",
    "trainable_parameters",
]

import functools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.distributions import constraints


class Energy(nn.Module):
    r"""An energy :math:`E(x)` in nats, with what is known about it.

    A subclass defines ``forward``. One that knows its normaliser sets ``has_log_z = True`` and
    defines :meth:`log_z`; one that can draw exactly sets ``has_sample = True`` and defines
    :meth:`sample`.

    Energies compose: ``a + b`` is the product of experts (AND), ``w * a`` weighs, ``a / T``
    tempers, ``a - w * b`` is NOT (it may not be normalisable) and :func:`mixture` is OR.

    Args:
        event_shape: The shape of one point.
        support: Where the energy is defined; all real numbers unless given.

    Example:
        >>> class Quartic(Energy):
        ...     def forward(self, x):
        ...         return x.pow(4).sum(-1)
        >>> energy = Quartic(event_shape=(2,))
        >>> energy(torch.ones(5, 2)).shape, energy.grad(torch.ones(5, 2))[0]
        (torch.Size([5]), tensor([4., 4.]))
    """

    has_log_z: bool = False
    has_sample: bool = False
    batch_shape: torch.Size = torch.Size()
    """The shape of the batch of laws, where each datum has its own, as in a conditional field."""

    def __init__(
        self, event_shape: Sequence[int] = (), support: constraints.Constraint | None = None
    ) -> None:
        super().__init__()
        self.event_shape = torch.Size(event_shape)
        if support is None:
            support = real_support(len(self.event_shape))
        if support.event_dim != len(self.event_shape):
            raise ValueError(
                f"support {support} has event_dim {support.event_dim}, but event_shape is "
                f"{tuple(self.event_shape)}; wrap it as constraints.independent(support, n)"
            )
        self.support = support

    def forward(self, x: Tensor) -> Tensor:
        """Evaluates the energy.

        Args:
            x: Points, with shape ``(*batch, *event)``.

        Returns:
            The energy in nats, with shape ``(*batch,)``.
        """
        raise NotImplementedError(
            f"{type(self).__name__} must define forward(x) -> energy in nats"
        )

    def log_z(self) -> Tensor:
        r"""Returns the exact :math:`\log \int \exp(-E(x)) dx` in nats, where ``has_log_z``."""
        raise NotImplementedError(
            f"log Z of {type(self).__name__} has no closed form; estimate it with pyro_ebm.logz"
        )

    def sample(self, num_samples: int) -> Tensor:
        r"""Draws exactly from :math:`\exp(-E)/Z`, where ``has_sample``.

        Args:
            num_samples: The number of independent draws.

        Returns:
            Points, with shape ``(num_samples, *event)``.
        """
        raise NotImplementedError(
            f"{type(self).__name__} has no exact sampler; use pyro_ebm.MCMC with a kernel"
        )

    def grad(self, x: Tensor, create_graph: bool = False) -> Tensor:
        r"""Evaluates :math:`\nabla_x E(x)`.

        Args:
            x: Points, with shape ``(*batch, *event)``.
            create_graph: Whether the result can be differentiated again, as score matching needs.

        Returns:
            The gradient, with shape ``(*batch, *event)``.
        """
        with torch.enable_grad():
            x = x if x.requires_grad else x.detach().requires_grad_()
            return torch.autograd.grad(self(x).sum(), x, create_graph=create_graph)[0]

    def score(self, x: Tensor, create_graph: bool = False) -> Tensor:
        r"""Evaluates :math:`\nabla_x \log p(x) = -\nabla_x E(x)`; see :meth:`grad`."""
        return -self.grad(x, create_graph)

    def constant(self, name: str, value: Tensor | float) -> None:
        """Keeps ``value`` under ``name``: a Parameter is learned, anything else is data."""
        if isinstance(value, nn.Parameter):
            self.register_parameter(name, value)
        else:
            self.register_buffer(name, torch.as_tensor(value))

    def __add__(self, other: Callable[[Tensor], Tensor]) -> Sum:
        return Sum([self, other])

    def __radd__(self, other: Callable[[Tensor], Tensor] | int) -> Energy:
        return self if other == 0 else Sum([other, self])

    def __sub__(self, other: Callable[[Tensor], Tensor]) -> Sum:
        return Sum([self, Scaled(_as_energy(other, self), -1.0)])

    def __mul__(self, weight: float | Tensor) -> Scaled:
        return Scaled(self, weight)

    __rmul__ = __mul__

    def __truediv__(self, temperature: float | Tensor) -> Tempered:
        return Tempered(self, temperature)


class Sum(Energy):
    r"""The product of experts (AND).

    .. math:: E(x) = \sum_k E_k(x)

    Args:
        terms: Energies or plain callables over one event shape and one support, at least one an
            :class:`Energy`.

    Raises:
        ValueError: If two terms disagree on the event shape or the support.

    Example:
        >>> from pyro_ebm.energies import Gaussian
        >>> both = Gaussian(torch.zeros(1), 1.0) + Gaussian(torch.ones(1), 3.0)
        >>> both.grad(torch.tensor([0.75]))  # the precision-weighted mean
        tensor([0.])
    """

    def __init__(self, terms: Sequence[Callable[[Tensor], Tensor]]) -> None:
        known = _agreeing([term for term in terms if isinstance(term, Energy)])
        super().__init__(known.event_shape, known.support)
        self.terms = nn.ModuleList(_as_energy(term, known) for term in terms)

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        return sum(term(x) for term in self.terms)


class Scaled(Energy):
    r"""A weighted energy.

    .. math:: E(x) = w \, E_1(x)

    Args:
        energy: The energy :math:`E_1`.
        weight: The weight :math:`w`, a number, a 0-d tensor or a Parameter.

    Example:
        >>> from pyro_ebm.energies import Gaussian
        >>> twice = 2.0 * Gaussian(torch.zeros(1), 1.0)
        >>> twice(torch.tensor([2.0]))
        tensor(4.)
    """

    def __init__(self, energy: Energy, weight: float | Tensor) -> None:
        super().__init__(energy.event_shape, energy.support)
        self.energy = energy
        self.constant("weight", weight)

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        return self.weight.to(x.dtype) * self.energy(x)


class Tempered(Energy):
    r"""An energy at another temperature.

    .. math:: E(x) = E_1(x) / T

    Args:
        energy: The energy :math:`E_1`.
        temperature: The temperature :math:`T`, a number, a 0-d tensor or a Parameter.

    Example:
        >>> from pyro_ebm.energies import Gaussian
        >>> hot = Gaussian(torch.zeros(1), 1.0) / 4.0
        >>> hot(torch.tensor([2.0]))
        tensor(0.5000)
    """

    def __init__(self, energy: Energy, temperature: float | Tensor) -> None:
        super().__init__(energy.event_shape, energy.support)
        self.energy = energy
        self.constant("temperature", temperature)

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        return self.energy(x) / self.temperature.to(x.dtype)


class _Plain(Energy):
    """A plain callable, and the module behind it if there is one, as an energy."""

    def __init__(self, fn: Callable[[Tensor], Tensor], like: Energy) -> None:
        super().__init__(like.event_shape, like.support)
        self.module = module_of(fn)
        self.fn = fn

    def forward(self, x: Tensor) -> Tensor:
        return self.fn(x)


def _as_energy(fn: Callable[[Tensor], Tensor], like: Energy) -> Energy:
    return fn if isinstance(fn, Energy) else _Plain(fn, like)


class Mixture(Energy):
    r"""A mixture of energies (OR), made by :func:`mixture`.

    .. math:: E(x) = -\log \sum_k w_k \exp(-E_k(x) - \log Z_k)
    """

    def __init__(
        self,
        energies: Sequence[Energy],
        weights: Tensor,
        given_log_z: Sequence[float | Tensor] | None,
    ) -> None:
        known = _agreeing(energies)
        super().__init__(known.event_shape, known.support)
        self.energies = nn.ModuleList(energies)
        self.constant("weights", weights)
        self.given_log_z = given_log_z

    @property
    def has_log_z(self) -> bool:
        """Whether the mixture is normalised: every part knew its own log Z."""
        return self.given_log_z is None

    @property
    def has_sample(self) -> bool:
        """Whether every part draws exactly and the weights are those of normalised parts."""
        return self.has_log_z and all(energy.has_sample for energy in self.energies)

    def _log_z_of_parts(self) -> Tensor:
        given = self.given_log_z
        parts = [energy.log_z() for energy in self.energies] if given is None else given
        return torch.stack([torch.as_tensor(part).to(self.weights) for part in parts])

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        energies = torch.stack([energy(x) for energy in self.energies], dim=-1)
        log_weights = self.weights.log() - self._log_z_of_parts()
        return -(log_weights.to(energies) - energies).logsumexp(-1)

    def log_z(self) -> Tensor:  # noqa: D102
        return self.weights.sum().log() if self.has_log_z else super().log_z()

    def sample(self, num_samples: int) -> Tensor:  # noqa: D102
        if not self.has_sample:
            return super().sample(num_samples)
        counts = torch.multinomial(self.weights, num_samples, replacement=True)
        draws = torch.stack([energy.sample(num_samples) for energy in self.energies], dim=1)
        return draws[torch.arange(num_samples), counts]


def mixture(
    energies: Sequence[Energy],
    weights: Sequence[float] | Tensor,
    log_z: Sequence[float | Tensor] | None = None,
) -> Mixture:
    r"""Mixes energies (OR).

    .. math:: E(x) = -\log \sum_k w_k \exp(-E_k(x) - \log Z_k)

    The weights are those of the *normalised* parts, so every :math:`\log Z_k` is needed: exact
    where the part has one, else given. With ``log_z`` given the result is as exact as those
    numbers, and is not marked as normalised.

    Args:
        energies: The parts, over one event shape and one support.
        weights: The weights :math:`w_k > 0`, with shape ``(K,)``; they are normalised to one.
        log_z: The :math:`\log Z_k` in nats; zeros weigh the unnormalised densities instead.

    Raises:
        ValueError: If a part does not know its log Z and none is given, if a weight is not
            positive, or if the parts disagree on event shape or support.

    Example:
        >>> from pyro_ebm.energies import Gaussian
        >>> parts = [Gaussian(torch.tensor([-2.0]), 1.0), Gaussian(torch.tensor([2.0]), 4.0)]
        >>> either = mixture(parts, [0.25, 0.75])
        >>> either.log_z(), either.sample(7).shape
        (tensor(0.), torch.Size([7, 1]))
    """
    learned = isinstance(weights, nn.Parameter)
    weights = weights if learned else torch.as_tensor(weights)
    if weights.shape != (len(energies),) or not bool((weights > 0).all()):
        raise ValueError(
            f"weights must be {len(energies)} positive numbers, one per energy, got {weights}"
        )
    unknown = [type(energy).__name__ for energy in energies if not energy.has_log_z]
    if log_z is None and unknown:
        raise ValueError(
            f"the weights of a mixture need log Z of every part, but {', '.join(unknown)} has "
            "none in closed form; pass log_z=[...] (estimates from pyro_ebm.logz, or zeros to "
            "weigh the unnormalised densities)"
        )
    return Mixture(energies, weights if learned else weights / weights.sum(), log_z)


def real_support(event_dim: int) -> constraints.Constraint:
    """Returns the support of all real tensors with ``event_dim`` dimensions."""
    standard = {0: constraints.real, 1: constraints.real_vector}
    return standard.get(event_dim) or constraints.independent(constraints.real, event_dim)


def trainable_parameters(energy: Callable[[Tensor], Tensor]) -> list[nn.Parameter]:
    """Returns the parameters of an energy that training would move.

    Args:
        energy: A module, a ``functools.partial`` of one (a conditional energy), or any callable.

    Returns:
        Its parameters that require a gradient; none for a callable that is not a module.
    """
    module = module_of(energy)
    return [] if module is None else [p for p in module.parameters() if p.requires_grad]


def module_of(energy: Callable[[Tensor], Tensor]) -> nn.Module | None:
    """Returns the module behind an energy, through ``functools.partial``, if there is one."""
    while isinstance(energy, functools.partial):
        energy = energy.func
    return energy if isinstance(energy, nn.Module) else None


def reference_tensor(energy: Callable[[Tensor], Tensor]) -> Tensor:
    """Returns a tensor of the energy's own dtype and device, else of torch's defaults."""
    module = module_of(energy)
    if module is not None:
        for tensor in (*module.parameters(), *module.buffers()):
            if tensor.is_floating_point():
                return torch.empty((), dtype=tensor.dtype, device=tensor.device)
    return torch.empty(())


def check_energy(
    energy: Callable[[Tensor], Tensor], x: Tensor, differentiable: bool = True
) -> None:
    """Checks once, at the edge, that an energy keeps its contract.

    Args:
        energy: The energy.
        x: Points to try, with shape ``(batch, *event)``.
        differentiable: Whether it must have a gradient in x.

    Raises:
        ValueError: If a layer is in train mode where that makes the energy random or lets points
            see one another, if the energy is random for another reason, if it has the wrong shape,
            dtype or device, or cannot be differentiated.
    """
    module = module_of(energy)
    for name, layer in () if module is None else module.named_modules():
        if layer.training and isinstance(layer, _CHANGES_IN_TRAINING):
            raise ValueError(
                f"energy has layer {name or 'itself'} ({type(layer).__name__}) in train mode, so "
                "that it is not one fixed function; call energy.eval() first (parameters still "
                "learn)"
            )
    with torch.enable_grad():
        x = x.detach().clone().requires_grad_()
        value = energy(x)
    if not isinstance(value, Tensor) or value.shape != x.shape[:1]:
        got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise ValueError(
            f"energy must map x of shape {tuple(x.shape)} to shape {tuple(x.shape[:1])}, one "
            f"number of nats per point, got {got}: sum over the dimensions of one point alone, "
            "as in x.square().sum(-1); a trailing dimension of one needs squeeze(-1)"
        )
    if value.dtype != x.dtype or value.device != x.device:
        raise ValueError(
            f"energy must keep dtype and device of x: x is {x.dtype} on {x.device}, the energy is "
            f"{value.dtype} on {value.device}"
        )
    with torch.no_grad():
        again = energy(x)
    if not torch.allclose(value, again, rtol=1e-4, atol=1e-6, equal_nan=True):
        raise ValueError(
            f"energy must be one fixed function: at the same points it was {value.tolist()} and "
            f"then {again.tolist()}; if a network with Dropout is behind it, call its eval()"
        )
    with torch.enable_grad():
        total = value.sum()
    if not differentiable:
        return
    if not total.requires_grad or torch.autograd.grad(total, x, allow_unused=True)[0] is None:
        raise ValueError(
            "energy is not differentiable in x: its value carries no gradient (detach, numpy or a "
            "threshold inside?)"
        )


_CHANGES_IN_TRAINING = (nn.modules.batchnorm._BatchNorm, nn.modules.dropout._DropoutNd)


def _agreeing(energies: Sequence[Energy]) -> Energy:
    """Returns the first of some energies, which agree on event shape and support."""
    if not energies:
        raise ValueError("at least one term must be an Energy, to say the event shape")
    first = energies[0]
    for other in energies[1:]:
        if other.event_shape != first.event_shape or repr(other.support) != repr(first.support):
            raise ValueError(
                f"energies must share event_shape and support: {type(first).__name__} has "
                f"{tuple(first.event_shape)} on {first.support}, {type(other).__name__} has "
                f"{tuple(other.event_shape)} on {other.support}"
            )
    return first
