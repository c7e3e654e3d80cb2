r"""Exact draws of ferromagnets: coupling from the past.

Where all couplings are :math:`J_{ij} \geq 0`, a Gibbs sweep of spins by given uniform draws is
monotone: of two configurations, one nowhere below the other, that stays so. Chains from all up and
from all down, driven by the same draws from the time :math:`-T` on, hold all others between them;
once they have met, at time 0 is what *every* chain since the infinite past would be: a draw from
the law itself.
"""

from __future__ import annotations

__all__ = ["CouplingFromThePast"]

import torch
from torch import Tensor

from ..distributions import Boltzmann
from ..potential import Potential
from .cluster import check_pairs_are_all

FIRST_SWEEPS = 16
SEEDS = 2**31


class CouplingFromThePast:
    r"""Draws spins with couplings that are not negative, exactly, in any field, on any graph.

    Not a transition but a source of independent draws, for :class:`~pyro_ebm.kernels.Exchange`.
    The time T doubles, with the same noise at the same times, until the two outermost chains meet
    at time 0, in every row: as many sweeps, about, as single spins take to forget. That is few
    where couplings are weak or a field rules. Where a lattice of :math:`L \times L` orders, it is
    the time in which it turns round as a whole, of the order of :math:`e^{2 L \sigma}` with the
    tension of an interface :math:`\sigma = 2 K + \log \tanh K`.

    References:
        | Exact sampling with coupled Markov chains and applications to statistical mechanics
        | (Propp and Wilson, 1996),
        | https://doi.org/10.1002/(SICI)1098-2418(199608/09)9:1/2<223::AID-RSA14>3.0.CO;2-O

    Args:
        max_sweeps: The longest past that is looked into. To go on with less than what it takes
            would be biased, so that a draw that needs more is an error.

    Raises:
        ValueError: If ``max_sweeps`` is less than 16; in use, if the energy is not of spins, does
            not say its ``edges`` and ``couplings``, or a coupling is negative.

    Example:
        >>> import pyro_ebm as ebm
        >>> lattice = ebm.Boltzmann(ebm.energies.Ising((9, 9), 0.3, field=0.1))
        >>> CouplingFromThePast().draw(lattice, 5).shape
        torch.Size([5, 9, 9])
    """

    def __init__(self, max_sweeps: int = 2**14) -> None:
        if max_sweeps < FIRST_SWEEPS:
            raise ValueError(f"max_sweeps must be at least {FIRST_SWEEPS}, got {max_sweeps}")
        self.max_sweeps = max_sweeps

    def draw(self, boltzmann: Boltzmann, num_samples: int) -> Tensor:
        """Draws points, by torch's global generator.

        Args:
            boltzmann: The distribution.
            num_samples: The number of independent draws.

        Returns:
            Points, with shape ``(num_samples, *batch, *event)``.
        """
        potential = Potential.of(boltzmann)
        self.check(potential)
        z = potential.initialize(num_samples)
        seed = int(torch.randint(SEEDS, ()))
        return potential.constrain(self.rows(potential, z, seed))[potential.sites[0].name]

    def check(self, potential: Potential) -> None:
        """Raises unless a target is of pairs of spins, and nothing else.

        Args:
            potential: The target.
        """
        target, name = potential.discrete, potential.sites[0].name
        energy = getattr(target, "energy", None)
        if target is None or target.alphabet.lowest >= 0 or not hasattr(energy, "couplings"):
            raise ValueError(
                f"CouplingFromThePast draws spins of an energy that says its edges and couplings, "
                f"such as energies.Ising, and '{name}' is none: draw it by a kernel"
            )
        check_pairs_are_all(target, potential)

    def rows(self, potential: Potential, like: Tensor, seed: int) -> Tensor:
        """Draws spins.

        Args:
            potential: The target.
            like: Chains of it, with shape ``(C, D)``, each of which may have its own law.
            seed: Where the noise comes from.

        Returns:
            Independent draws, with shape ``(C, D)``.

        Raises:
            ValueError: If a coupling is negative.
            RuntimeError: If some chains have not met after ``max_sweeps``.
        """
        target, generator = potential.discrete, torch.Generator(device=like.device)
        couplings, num_uniforms = target.energy.couplings, target.num_uniforms(like)
        if not bool((couplings >= 0).all()):
            raise ValueError(
                f"a coupling is {couplings.min().item():.4g}, and CouplingFromThePast needs all "
                "not to be negative: give them a prior that is positive, or draw by "
                "kernels.Gibbs()"
            )
        blocks = [FIRST_SWEEPS]  # the latest first; each as long as all that are later together
        while sum(blocks) <= self.max_sweeps:
            x = torch.cat([torch.ones_like(like), -torch.ones_like(like)])
            for k in range(len(blocks) - 1, -1, -1):
                generator.manual_seed(seed + k)
                for _ in range(blocks[k]):
                    uniform = like.new_empty(len(like), num_uniforms).uniform_(generator=generator)
                    x = target.sweep(x, torch.cat([uniform, uniform]))
            high, low = x.chunk(2)
            if torch.equal(high, low):
                return high
            blocks.append(sum(blocks))
        raise RuntimeError(
            f"coupling from the past needs more than max_sweeps={self.max_sweeps}, at couplings "
            f"of up to {couplings.max().item():.4g}: single spins do not turn an ordered lattice "
            "round. Draw by kernels.SwendsenWang(), or keep couplings below the critical one by "
            "their prior and initial_params"
        )
