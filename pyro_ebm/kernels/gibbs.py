r"""Gibbs sampling: every site is drawn from its conditional, given all the others.

.. math:: p(x_i = a_k \mid x_{-i}) = \frac{\exp(-U(x_{i \to k}))}{\sum_l \exp(-U(x_{i \to l}))}
"""

from __future__ import annotations

__all__ = ["Gibbs"]

import torch
from torch import Tensor

from ..arguments import check_count
from ..discrete import DiscreteTarget
from ..distributions import Boltzmann
from ..potential import Model, Potential
from .discrete import DiscreteKernel, DiscreteState
from .transition import Info, uniform_like


class Gibbs(DiscreteKernel):
    r"""Systematic Gibbs sweeps.

    In a sweep every site is drawn once from its conditional, those of one colour at once: no two
    of them interact. A lattice takes two colours (a checkerboard), a Boltzmann machine with layers
    two blocks. The invariant law is :math:`e^{-U}`, exactly, and nothing is rejected.

    The energy has to know its conditionals, as :class:`~pyro_ebm.energies.DiscreteEnergy` does. Of
    any other energy over an alphabet, a callable or a sum, a sweep draws *one* site of each chain,
    chosen at random, by :math:`K - 1` evaluations: exact too, but :math:`S` times as long a way;
    :class:`~pyro_ebm.kernels.GibbsWithGradients` chooses better. A step to a non-finite potential
    is not made, and is counted.

    References:
        | Stochastic relaxation, Gibbs distributions, and the Bayesian restoration of images (Geman
        | and Geman, 1984), https://doi.org/10.1109/TPAMI.1984.4767596

    Args:
        model: A :class:`~pyro_ebm.Boltzmann` over an alphabet, if any.
        num_sweeps: The number of sweeps in a step. What is kept of a step costs about as much as a
            sweep does.

    Raises:
        ValueError: If ``num_sweeps`` is not positive; in use, if the target is continuous.

    Example:
        >>> import pyro_ebm as ebm
        >>> from torch.distributions import constraints
        >>> class Chain(ebm.energies.DiscreteEnergy):
        ...     def forward(self, x):
        ...         return -(x[..., 1:] * x[..., :-1]).sum(-1)
        ...
        ...     def conditionals(self, x):
        ...         pad = torch.nn.functional.pad
        ...         field = pad(x[..., 1:], (0, 1)) + pad(x[..., :-1], (1, 0))
        ...         return field.unsqueeze(-1) * torch.tensor([-1.0, 1.0])
        >>> spins = constraints.independent(ebm.energies.spins, 1)
        >>> target = ebm.Boltzmann(Chain((6,), spins, colours=torch.arange(6) % 2))
        >>> mcmc = ebm.MCMC(Gibbs(target), 50, 50, num_chains=8, disable_progbar=True)
        >>> mcmc.run()
        >>> mcmc.get_samples(group_by_chain=True)["x"].shape
        torch.Size([8, 50, 6])
    """

    def __init__(self, model: Model | Boltzmann | None = None, *, num_sweeps: int = 1) -> None:
        super().__init__(model)
        check_count("num_sweeps", num_sweeps)
        self.num_sweeps = num_sweeps

    def look(self, target: DiscreteTarget, z: Tensor) -> tuple[Tensor, Tensor]:  # noqa: D102
        num_uniforms = target.num_uniforms(z) if target.can_sweep else 2
        return target.value(z), z.new_empty(len(z), num_uniforms, 0)

    def noise(  # noqa: D102
        self, state: DiscreteState, generator: torch.Generator, *num_steps: int
    ) -> tuple[Tensor, ...]:
        num_chains, num_draws, _ = state.changes.shape
        like = state.z.new_empty(1).expand(num_chains, self.num_sweeps, num_draws)
        return (uniform_like(like, generator, *num_steps),)

    def step(  # noqa: D102
        self, potential: Potential, state: DiscreteState, noise: tuple[Tensor, ...]
    ) -> tuple[DiscreteState, Info]:
        target, (uniform,) = self.target_of(potential), noise
        z, value = state.z, state.potential
        for row in uniform.unbind(1):
            if target.can_sweep:
                z = target.sweep(z, row)
            else:
                z, value = _one_site(target, z, value, *row.unbind(-1))
        if target.can_sweep:
            value = target.value(z)
        finite = value.isfinite()
        moved = state._replace(
            z=torch.where(finite.unsqueeze(-1), z, state.z),
            potential=torch.where(finite, value, state.potential),
        )
        return moved, Info(~finite, finite.to(value.dtype), finite)


def _one_site(
    target: DiscreteTarget, z: Tensor, value: Tensor, at: Tensor, uniform: Tensor
) -> tuple[Tensor, Tensor]:
    """Draws one site of each chain from its conditional, by the energies of its other values."""
    num_values = target.num_values
    site = (at * target.num_sites(z)).long()
    shifts = torch.arange(num_values, device=z.device).unsqueeze(-1)
    places = (target.place_at(z, site) + shifts) % num_values
    others = [target.with_place(z, site, place) for place in places[1:]]
    found = target.value(torch.cat(others)).unflatten(0, (num_values - 1, -1))
    values = torch.cat([value.unsqueeze(0), found])
    below = (-values).softmax(0).cumsum(0)[:-1]
    drawn = (uniform >= below).sum(0)
    place = places.gather(0, drawn.unsqueeze(0)).squeeze(0)
    return target.with_place(z, site, place), values.gather(0, drawn.unsqueeze(0)).squeeze(0)
