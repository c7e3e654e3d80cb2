r"""Restoring points from evidence: coordinates that are missing, or noise on all of them.

.. math:: x_U \sim p(x_U \mid x_K), \qquad x \sim p(x \mid y)

Both draw with a kernel from the energy given the evidence (:mod:`pyro_ebm.energies.conditional`),
each point by a chain of its own. The mean over draws is the estimate of least expected square
error.
"""

from __future__ import annotations

__all__ = ["denoise", "inpaint"]

import torch
from torch import Tensor

from .discrete import bijection_of
from .distributions import Boltzmann
from .energies.base import Energy
from .energies.conditional import clamp, observe
from .kernels.base import Kernel
from .kernels.gibbs import Gibbs
from .kernels.hamiltonian import HMC
from .kernels.transition import run, seeded_generator
from .layout import chains_innermost
from .potential import Potential


def inpaint(
    energy: Energy,
    x: Tensor,
    known: Tensor,
    kernel: Kernel | None = None,
    num_draws: int = 100,
    warmup_steps: int = 100,
    start: Tensor | None = None,
) -> Tensor:
    r"""Draws the unknown coordinates of points given the known ones.

    The invariant law of a chain is :math:`p(x_U \mid x_K)`, where the kernel is exact. How far a
    chain comes in its steps is for its starts and its length to say: a second run from other
    starts should agree.

    Args:
        energy: The energy of whole points, over all real numbers or an alphabet.
        x: The points, with shape ``(n, *event)``; what they hold where unknown is not looked at,
            but has to be a number.
        known: Which coordinates are known, booleans with shape ``(*event)``.
        kernel: A kernel without a target; HMC unless given, or Gibbs sweeps over an alphabet.
        num_draws: The number of draws of each point.
        warmup_steps: The number of steps before them, in which the kernel adapts.
        start: Points whose unknown coordinates are where chains begin, ``(n, *event)``; those of
            other points, ``x`` in another order, unless given.

    Returns:
        Whole points, with shape ``(num_draws, n, *event)``.

    Raises:
        ValueError: If a shape does not fit, ``num_draws`` is not positive, the kernel does not
            serve the support, or that is neither real nor an alphabet.

    Example:
        >>> import pyro_ebm as ebm
        >>> pair = ebm.energies.Gaussian(torch.zeros(2), torch.tensor([[2.0, 1.0], [1.0, 2.0]]))
        >>> x = torch.tensor([[4.0, 0.0], [-4.0, 0.0]])
        >>> draws = inpaint(pair, x, torch.tensor([True, False]))
        >>> draws.shape, draws[:, :, 1].mean(0).sign()
        (torch.Size([100, 2, 2]), tensor([-1.,  1.]))
    """
    _check_energy(energy)
    given = clamp(energy, x, known)
    start = x.roll(1, 0) if start is None else start
    begin = start.reshape(len(x), -1)[:, ~known.flatten()]
    draws = _drawn(given, begin, kernel, num_draws, warmup_steps)
    return given.complete(draws).to(x.dtype)


def denoise(
    energy: Energy,
    y: Tensor,
    noise: float,
    kernel: Kernel | None = None,
    num_draws: int = 100,
    warmup_steps: int = 100,
) -> Tensor:
    r"""Draws points given readings of them with noise; chains begin at the readings.

    .. math:: p(x \mid y) \propto \exp(-E(x)) \, \mathcal{N}(y; x, \sigma^2) \quad\text{or}\quad
        \exp(-E(x)) \prod_i q^{[x_i \ne y_i]} (1 - q)^{[x_i = y_i]}

    Args:
        energy: The energy of clean points, over all real numbers or an alphabet.
        y: The readings, with shape ``(n, *event)``.
        noise: The standard deviation :math:`\sigma` in units of x; over an alphabet, the
            probability q of a wrong reading of a coordinate.
        kernel: A kernel without a target; HMC unless given, or Gibbs sweeps over an alphabet.
        num_draws: The number of draws of each point.
        warmup_steps: The number of steps before them, in which the kernel adapts.

    Returns:
        Points, with shape ``(num_draws, n, *event)``.

    Raises:
        ValueError: If a shape does not fit, ``num_draws`` is not positive, ``noise`` is no such
            number, the kernel does not serve the support, or that is neither real nor an alphabet.

    Example:
        >>> import pyro_ebm as ebm
        >>> prior = ebm.energies.Gaussian(torch.zeros(3), 1.0)
        >>> denoise(prior, torch.randn(5, 3), noise=0.5).shape
        torch.Size([100, 5, 3])
    """
    _check_energy(energy)
    return _drawn(observe(energy, y, noise), y, kernel, num_draws, warmup_steps).to(y.dtype)


def _check_energy(energy: object) -> None:
    if not isinstance(energy, Energy):
        raise ValueError(
            f"energy must be an Energy, got {type(energy).__name__}: a function is made one by a "
            "subclass, and of a Boltzmann give energy / temperature"
        )


@torch.no_grad()
def _drawn(
    given: Energy, start: Tensor, kernel: Kernel | None, num_draws: int, warmup_steps: int
) -> Tensor:
    """Draws from each law of a batch by a chain of its own: ``(num_draws, n, *event)``."""
    if num_draws < 1:
        raise ValueError(f"num_draws must be at least 1, got {num_draws}")
    target, batch = Boltzmann(given), given.batch_shape
    bijection = bijection_of(target.support)
    if kernel is None:
        kernel = Gibbs() if target.support.is_discrete else HMC(step_size=0.1, num_steps=5)
    z = bijection.inv(start).reshape(batch.numel(), -1)
    potential = Potential.of_batch(target, batch, z)
    state = kernel.init(potential, chains_innermost(z))
    generator, adaptation = seeded_generator(z.device), kernel.adaptation(warmup_steps)
    for moved, _ in run(kernel, potential, state, warmup_steps, generator, adaptation):
        state = moved
    kept = [state.z for state, _ in run(kernel, potential, state, num_draws, generator)]
    return bijection(torch.stack(kept).reshape(num_draws, *batch, *given.event_shape))
