r"""The law between independent sites and a discrete target, as kernels see it.

.. math::
    U_\beta(x) = -\sum_i (1 - \beta) f_i(x_i) + \beta E(x) / T

Its changes and conditionals are those of both ends, added up. Where the target is one of pairs of
sites, it is one too, with couplings :math:`\beta J / T` and a field that has the base in it: that
of a value k of site i is :math:`\beta h_{ik} / T + (1 - \beta) f_{ik}`, and that of a spin half
the difference of its two.
"""

from __future__ import annotations

__all__ = ["Between", "check_moves", "is_attracting"]

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.distributions import identity_transform

from ..discrete import DiscreteTarget, discrete_target
from ..distributions import Boltzmann
from ..intractable import Pairs
from ..kernels.cluster import SwendsenWang, check_pairs_are_all
from ..kernels.discrete import DiscreteKernel, DiscreteState
from ..kernels.transition import run
from ..potential import Potential, Site
from .path import Walkers

if TYPE_CHECKING:
    from .discrete import DiscretePath


class Between(DiscreteTarget):
    r"""The law at :math:`\beta`, which remembers where it was last evaluated.

    Args:
        path: The path that it is on.
        beta: The inverse temperature, of all walkers or of each: ``()`` or ``(C,)``, float64.
        walkers: Where they are.
    """

    temperature: float = 1.0

    def __init__(self, path: DiscretePath, beta: Tensor, walkers: Walkers) -> None:
        super().__init__(self._evaluate, path.alphabet, path.num_values)
        self.path = path
        self.where = beta
        self.can_sweep = path.energy is not None
        self.seen, self._seen_at = walkers, walkers.z.flatten(1)
        self._of_target = discrete_target(path.boltzmann, (), one_each=False)

    def moved(
        self, kernel: DiscreteKernel, step_size: Tensor, generator: torch.Generator
    ) -> tuple[Walkers, Tensor]:
        """Moves the walkers by one step of a kernel, and tells their acceptance ``(C,)``."""
        shape = self.seen.z.shape
        site = Site("x", shape[1:], identity_transform, ())
        potential = Potential(self.value_and_changes, [site], self._seen_at, discrete=self)
        state: DiscreteState = kernel.init(potential, self._seen_at)
        if kernel.adapt_step_size:
            own = step_size.to(state.z)
            state = state._replace(step_size=own.unsqueeze(-1) if own.dim() else own)
        ((state, info),) = run(kernel, potential, state, 1, generator)
        if not self._has_seen(state.z):
            self._look(state.z)  # some stayed where they were
        return self.seen, info.accept_prob.double()

    def _has_seen(self, z: Tensor) -> bool:
        """Whether it is what was seen last, perhaps as another view of it."""
        return z.data_ptr() == self._seen_at.data_ptr() and z.shape == self._seen_at.shape

    def _look(self, z: Tensor, value: Tensor | None = None) -> None:
        points = z.reshape(-1, *self.path.event_shape)
        if value is None:
            self.seen = self.path.locate(points)
        else:
            self.seen = self.path.placed(points, value)
        self._seen_at = z

    def _evaluate(self, z: Tensor) -> Tensor:
        if not self._has_seen(z):
            self._look(z)
        return self.path.base_value(self.seen.z) + self._rows(len(z)) * self.seen.excess

    def _rows(self, num_rows: int) -> Tensor:
        """The inverse temperatures of walkers that come several times over."""
        return self.where.repeat(num_rows // len(self.where)) if self.where.dim() else self.where

    def value_and_changes(self, z: Tensor) -> tuple[Tensor, Tensor]:  # noqa: D102
        of_target, changes = self._of_target.value_and_changes(z)
        self.path.num_gradients += len(z)
        self._look(z, of_target)
        beta = self._rows(len(z)).to(changes.dtype).reshape(-1, 1, 1)
        changes = beta * changes
        if self.path.logits is not None:
            logits = self.path.logits.reshape(-1, self.num_values).expand_as(changes)
            here = logits.gather(-1, self.places(z).unsqueeze(-1))
            changes = changes + (1 - beta) * (here - logits)
        return self._evaluate(z), changes

    def num_uniforms(self, z: Tensor) -> int:  # noqa: D102
        return self.path.uniform_shape.numel()

    def sweep(self, z: Tensor, uniform: Tensor) -> Tensor:  # noqa: D102
        path = self.path
        x = z.reshape(-1, *path.event_shape)
        beta = self._rows(len(z)).to(z.dtype)
        uniform = uniform.reshape(-1, *path.uniform_shape)
        return path.swept(x, beta, uniform).reshape(z.shape)

    @property
    def energy(self) -> Pairs:
        """Its pairs, if the target says those of its own."""
        path, energy = self.path, self.path.energy
        if not _says_pairs(energy):
            raise AttributeError(f"{type(energy).__name__} does not say its edges and couplings")
        spins = self.alphabet.lowest < 0 and self.num_values == 2
        shape = energy.site_shape if spins else (*energy.site_shape, self.num_values)
        like = self._seen_at
        beta = self.where.to(like)
        over = beta / path.boltzmann.temperature
        rows = beta.reshape(*beta.shape, *(1 for _ in shape)) if beta.dim() else beta
        field = getattr(energy, "field", None)
        if field is not None:
            field = (rows / path.boltzmann.temperature) * field
        if path.logits is not None:
            of_base = path.logits.diff(dim=-1).squeeze(-1) / 2 if spins else path.logits
            of_base = (1 - rows) * of_base
            field = of_base if field is None else field + of_base
        if field is not None:
            field = field.expand(*beta.shape, *shape)
        couplings = over.unsqueeze(-1) * energy.couplings
        return Pairs(energy.edges, couplings, field, energy.event_shape, energy.site_shape)


def is_attracting(boltzmann: Boltzmann) -> bool:
    """Whether it is a law of pairs of sites that attract each other, and of nothing else."""
    energy = boltzmann.energy
    if not _says_pairs(energy) or bool((energy.couplings < 0).any()):
        return False
    potential = Potential.of(boltzmann)
    try:
        check_pairs_are_all(potential.discrete, potential)
    except ValueError:
        return False
    return True


def check_moves(kernel: object, boltzmann: Boltzmann) -> None:
    """Refuses a kernel that does not move walkers of a discrete target.

    Args:
        kernel: The kernel.
        boltzmann: The target.

    Raises:
        ValueError: If the kernel is of continuous targets or keeps replicas, or clusters are
            not all of the target.
    """
    if not isinstance(kernel, DiscreteKernel) or hasattr(kernel, "num_temperatures"):
        raise ValueError(
            f"kernel must be one of sites with finitely many values, such as "
            f"pyro_ebm.kernels.Gibbs() or SwendsenWang(), as support {boltzmann.support} is "
            f"discrete; got {type(kernel).__name__}"
        )
    potential = Potential.of(boltzmann)
    kernel.init(potential, potential.initialize(2))
    if isinstance(kernel, SwendsenWang):
        check_pairs_are_all(potential.discrete, potential)


def _says_pairs(energy: object) -> bool:
    return hasattr(energy, "edges") and hasattr(energy, "couplings")
