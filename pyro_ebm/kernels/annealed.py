r"""Annealed Langevin sampling of an energy that knows its noise level.

From the widest level to the finest, chains move by a Langevin kernel on :math:`E(x; \sigma_i)`
with a step size proportional to :math:`\sigma_i^2`, so that they cross between modes while the
noise still joins them.
"""

from __future__ import annotations

__all__ = ["annealed_langevin"]

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from ..arguments import check_count
from ..distributions import Boltzmann
from ..energies.base import reference_tensor
from ..potential import Potential
from .langevin import MALA, ULA
from .transition import run, seeded_generator


def annealed_langevin(
    boltzmann: Boltzmann,
    sigmas: Sequence[float] | Tensor,
    num_chains: int,
    num_steps: int = 100,
    kernel: ULA | MALA | None = None,
) -> Tensor:
    r"""Samples an energy learned by denoising score matching at many noise levels.

    .. math::
        x \leftarrow x - \eta_i \nabla E(x; \sigma_i)/T + \sqrt{2 \eta_i} \, \xi, \qquad
        \eta_i = h \sigma_i^2, \quad \sigma_1 > \dots > \sigma_L

    for ``num_steps`` steps per level, from :math:`\mathcal{N}(0, \sigma_1^2)`.

    **Biased**: with exact scores and many steps the draws follow the law of the data with noise
    :math:`\sigma_L`. With finitely many they remember where they began, which matters unless
    :math:`\sigma_1` is of the order of the largest distance in the data; and
    :class:`~pyro_ebm.kernels.ULA` adds its own bias, of order h, which
    :class:`~pyro_ebm.kernels.MALA` does not. Constrained sites move in unconstrained space, in
    which their noise is measured.

    References:
        | Generative modeling by estimating gradients of the data distribution (Song and
        | Ermon, 2019), https://arxiv.org/abs/1907.05600, Algorithm 1, whose step is 2 h.

    Args:
        boltzmann: The distribution, without a batch; its energy is called as ``energy(x,
            sigma=sigma)`` with ``sigma`` of shape ``(num_chains,)``.
        sigmas: The noise levels :math:`\sigma_i`, falling, in units of unconstrained x.
        num_chains: The number of independent chains.
        num_steps: The number of steps at each level.
        kernel: A Langevin kernel without a target, whose step size h is in units of
            :math:`\sigma^2`; ULA with 0.1 by default.

    Returns:
        The last state of the chains, with shape ``(num_chains, *event)``.

    Raises:
        ValueError: If the levels are not positive, finite and falling, a count is not positive, or
            the distribution has a batch.

    Example:
        >>> import pyro_ebm as ebm
        >>> def energy(x, sigma):  # the data are a point at one
        ...     return 0.5 * ((x - 1) / sigma).square()
        >>> p = ebm.Boltzmann(energy, event_shape=())
        >>> x = annealed_langevin(p, [1.0, 0.1, 0.01], num_chains=7)
        >>> x.shape, bool(((x - 1).abs() < 0.1).all())
        (torch.Size([7]), True)
    """
    kernel = ULA(step_size=0.1) if kernel is None else kernel
    start = reference_tensor(boltzmann.energy)
    levels = torch.as_tensor(sigmas).to(start)
    good = levels.dim() == 1 and len(levels) and bool((levels > 0).all() & levels.isfinite().all())
    if not good or not bool((levels.diff() < 0).all()):
        raise ValueError(f"sigmas must be positive, finite and falling numbers, got {sigmas}")
    check_count("num_chains", num_chains)
    check_count("num_steps", num_steps)
    if boltzmann.batch_shape:
        raise ValueError(
            f"annealed_langevin takes no batch, got batch_shape {tuple(boltzmann.batch_shape)}"
        )
    generator = seeded_generator(start.device)
    z = None
    for sigma in levels:
        energy = partial(boltzmann.energy, sigma=sigma.expand(num_chains))
        potential = Potential.of_batch(boltzmann.with_energy(energy), (num_chains,), start)
        if z is None:
            z = sigma * start.new_empty(num_chains, potential.dim).normal_(generator=generator)
        state = kernel.init(potential, z)
        state = state._replace(step_size=state.step_size * sigma**2)
        *_, (state, _) = run(kernel, potential, state, num_steps, generator)
        z = state.z
    return potential.constrain(z)["x"]
