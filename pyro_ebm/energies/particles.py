r"""Particles that attract and repel one another, in a trap or a periodic cell.

.. math:: E(x) = \frac k2 \sum_i |x_i|^2
    + \sum_{i < j} 4 \epsilon \left[(\sigma / r_{ij})^{12} - (\sigma / r_{ij})^6\right]
"""

from __future__ import annotations

__all__ = ["Particles"]

import torch
from torch import Tensor
from torch.distributions import constraints

from .base import Energy


class Particles(Energy):
    r"""A cluster or a fluid of Lennard-Jones particles.

    .. math:: E(x) = \frac k2 \sum_i |x_i|^2 + \sum_{i < j} \phi(r_{ij}), \qquad
        \phi(r) = 4 \epsilon \left[(\sigma / r)^{12} - (\sigma / r)^6\right]

    With a trap, particles are held by springs to the origin; their centre of mass is then
    Gaussian, of variance :math:`T / (n k)` in each direction, whatever the interaction. In a cell,
    a particle that leaves on one side comes in on the other, and the distance is that of the
    nearest image. With a cut-off, pairs further apart do not interact, and :math:`\phi` is raised
    so that it has no jump there.

    Energies are in the unit of the temperature: ``Boltzmann(particles, temperature=T)``.
    Particles in one place have an infinite energy, and no gradient.

    Args:
        num_particles: The number of particles n.
        num_dims: The number of directions of space.
        trap: The stiffness k of the trap; none if not given.
        cell: The side of the periodic cell, whose coordinates are from 0 to it; none if not given.
        cutoff: The distance beyond which pairs do not interact; none if not given. In a cell half
            the side is the default, and the most.
        epsilon: The depth :math:`\epsilon` of the well.
        sigma: The distance :math:`\sigma` at which the interaction changes its sign.

    Raises:
        ValueError: If there is neither a trap nor a cell, so that Z is infinite, or both; if a
            number is not positive; or if the cut-off is more than half the cell.

    Example:
        >>> cluster = Particles(2, num_dims=3, trap=1.0)
        >>> cluster(torch.tensor([[0.5, 0.0, 0.0], [-0.5, 0.0, 0.0]]))  # at the distance sigma
        tensor(0.2500)
    """

    def __init__(
        self,
        num_particles: int,
        num_dims: int = 3,
        *,
        trap: float | Tensor | None = None,
        cell: float | None = None,
        cutoff: float | None = None,
        epsilon: float | Tensor = 1.0,
        sigma: float | Tensor = 1.0,
    ) -> None:
        if (trap is None) == (cell is None):
            raise ValueError(
                "particles need a trap or a cell, and not both: without one they drift apart and "
                f"Z is infinite, got trap={trap} and cell={cell}"
            )
        numbers = {
            "num_particles": num_particles,
            "num_dims": num_dims,
            "trap": trap,
            "cell": cell,
            "cutoff": cutoff,
            "epsilon": epsilon,
            "sigma": sigma,
        }
        for name, value in numbers.items():
            if value is not None and not bool(torch.as_tensor(value > 0)):
                raise ValueError(f"{name} must be positive, got {value}")
        if cell is not None:
            cutoff = cell / 2 if cutoff is None else cutoff
            if cutoff > cell / 2:
                raise ValueError(
                    f"cutoff must be at most half the cell, got {cutoff} in a cell of {cell}: "
                    "a particle would meet two images of another"
                )
        within = constraints.real if cell is None else constraints.interval(0.0, cell)
        super().__init__((num_particles, num_dims), constraints.independent(within, 2))
        self.num_particles = num_particles
        self.num_dims = num_dims
        self.cell = cell
        self.cutoff = cutoff
        self.has_trap = trap is not None
        if self.has_trap:
            self.constant("trap", trap)
        else:
            self.trap = None
        self.constant("epsilon", epsilon)
        self.constant("sigma", sigma)

    def square_distances(self, x: Tensor) -> Tensor:
        """Evaluates the squared distances of all pairs, to the nearest image in a cell.

        Args:
            x: Points, with shape ``(*batch, n, d)``.

        Returns:
            The squared distances, with shape ``(*batch, n (n - 1) / 2)``.
        """
        count = self.event_shape[0]
        i, j = torch.triu_indices(count, count, 1, device=x.device)
        apart = x[..., i, :] - x[..., j, :]
        if self.cell is not None:
            apart = apart - self.cell * (apart / self.cell).round().detach()
        return apart.square().sum(-1)

    def _pair_energy(self, square: Tensor) -> Tensor:
        """Evaluates the interaction at squared distances."""
        power = (self.sigma.to(square.dtype).square() / square) ** 3
        return 4 * self.epsilon.to(square.dtype) * power * (power - 1)

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        squares = self.square_distances(x)
        energies = self._pair_energy(squares)
        if self.cutoff is not None:
            edge = squares.new_tensor(self.cutoff**2)
            energies = torch.where(squares < edge, energies - self._pair_energy(edge), 0)
        energy = energies.sum(-1)
        if self.has_trap:
            energy = energy + 0.5 * self.trap.to(x.dtype) * x.square().sum((-1, -2))
        return energy
