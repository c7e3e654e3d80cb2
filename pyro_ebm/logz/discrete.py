r"""The path to a discrete target, from sites that are independent of each other.

.. math::
    U_0(x) = -\sum_i f_i(x_i), \qquad \sum_k e^{f_i(a_k)} = 1

Walkers move by Gibbs sweeps at any :math:`\beta`, which leave :math:`U_0 + \beta V` invariant
without a rejection: the log weights of the values of a site are :math:`(1 - \beta) f_i` and
:math:`\beta` times those of the target. Where sites attract each other in pairs, whole clusters
move too, and any kernel of discrete targets can be given.
"""

from __future__ import annotations

__all__ = ["DiscretePath"]

import copy
import math

import torch
from torch import Tensor

from ..distributions import Boltzmann
from ..energies.alphabet import alphabet_of
from ..energies.base import reference_tensor
from ..energies.boltzmann_machines import RBM
from ..energies.discrete import DiscreteEnergy, as_numbers
from ..kernels.cluster import SwendsenWang
from ..kernels.discrete import DiscreteKernel
from .between import Between, check_moves, is_attracting
from .continuous import draws_exactly
from .path import Path, Walkers, taken

WIDTH = 0.1
"""The share of the uniform law in a base that is fitted: it covers what the draws do not show."""
BLOCK = 2**20
"""The sites of the walkers that move at once: of more, memory is slower than arithmetic."""
SHARE_OF_CLUSTERS = 1 / 3
"""The share of moves in which clusters turn before the sweep. They cost some six sweeps, in which
sites forget as much of their energy; what sweeps do not turn, a domain, takes longer than that."""


class DiscretePath(Path):
    r"""The path from independent sites to a discrete target, by sweeps, clusters or a kernel.

    An energy that knows its conditionals is swept colour by colour, or as fast as it can from a
    uniform base. Any other callable is evaluated at all values of one site after the other: that
    takes as many evaluations as there are sites times values.

    An RBM is taken with its hidden units, of which log Z is the same, as a sweep of both layers
    costs no more than one of the visible: the base is over both. At a temperature other than one
    the two are not the same law, and the visible units are swept one by one.

    A sweep moves single sites, and takes long to turn a domain of a lattice at its critical point.
    Where the energy is one of pairs of sites with couplings that are not negative, in any field
    (:class:`~pyro_ebm.energies.Ising`, :class:`~pyro_ebm.energies.Potts`,
    :class:`~pyro_ebm.energies.IsingGraph`), all clusters are turned before every third sweep, on
    average (:class:`~pyro_ebm.kernels.SwendsenWang`). On other targets whose walkers do not mix,
    the draws of the target behind an upper bound do not either, and the bracket may close beside
    the truth.

    Args:
        boltzmann: The target, over an alphabet.
        logits: The log probabilities :math:`f` of the values of each site in the base, normalised
            here, with shape ``(*sites, K)``; of an RBM those of all units, the visible first. All
            values are alike if not given.
        kernel: What moves the walkers, in place of sweeps and clusters: any kernel of discrete
            targets, without a target of its own. Its step size, if it has one, is tuned unless it
            says otherwise.

    Raises:
        ValueError: If the support is no alphabet, ``logits`` has another shape, or the kernel is
            not one of the target.

    Example:
        >>> import pyro_ebm as ebm
        >>> path = DiscretePath(ebm.Boltzmann(ebm.energies.Ising((3, 3), 0.3)))
        >>> walkers = path.draw_base(5, torch.Generator().manual_seed(0))
        >>> walkers.z.shape, walkers.excess.dtype
        (torch.Size([5, 3, 3]), torch.float64)
    """

    conditional_ess = 0.98

    def __init__(
        self,
        boltzmann: Boltzmann,
        logits: Tensor | None = None,
        kernel: DiscreteKernel | None = None,
    ) -> None:
        self.rbm = boltzmann.energy if _has_hidden(boltzmann) else None
        if self.rbm is not None:
            boltzmann = Boltzmann(self.rbm.joint())
        alphabet = alphabet_of(boltzmann.support)
        if alphabet is None:
            raise ValueError(
                f"support {boltzmann.support} must be booleans, spins, integers of an interval or "
                "one-hot vectors: a path from independent sites goes to no other"
            )
        self.boltzmann = boltzmann
        self.alphabet = alphabet
        shape = boltzmann.event_shape
        self.sites = shape[:-1] if alphabet.one_hot else shape
        self.num_values = shape[-1] if alphabet.one_hot else alphabet.size
        self.exact = draws_exactly(boltzmann)
        energy = boltzmann.energy
        own = isinstance(energy, DiscreteEnergy) and boltzmann.support is energy.support
        self.energy: DiscreteEnergy | None = energy if own else None
        self.event_shape = shape
        self.sweeps = kernel is None
        """Whether a move ends with a sweep."""
        if kernel is not None:
            check_moves(kernel, boltzmann)
            self.step_size = kernel.step_size if kernel.adapt_step_size else None
            self.target_accept_prob = kernel.target_accept_prob
            self.largest_step_size = kernel.largest_step_size
        elif own and is_attracting(boltzmann):
            kernel = SwendsenWang()
        self.kernel = kernel
        """What moves the walkers before it, if anything."""
        self.logits: Tensor | None = None
        if logits is not None:
            if logits.shape != (*self.sites, self.num_values):
                raise ValueError(
                    f"logits must have shape {(*self.sites, self.num_values)}, one number for "
                    f"each value of each site, got {tuple(logits.shape)}"
                )
            self.logits = logits.log_softmax(-1)

    @property
    def _like(self) -> Tensor:
        like = reference_tensor(self.boltzmann.energy)
        return like if like.is_floating_point() else like.new_zeros((), dtype=torch.float32)

    def _uniform(self, shape: torch.Size, generator: torch.Generator) -> Tensor:
        like = self._like
        return torch.rand(shape, generator=generator, dtype=like.dtype, device=like.device)

    def _points(self, places: Tensor) -> Tensor:
        return self.alphabet.decode(places, self._like, self.num_values)

    def draw_base(self, num_walkers: int, generator: torch.Generator) -> Walkers:  # noqa: D102
        uniform = self._uniform(torch.Size((num_walkers, *self.sites)), generator)
        if self.logits is None:
            return self.locate(self._points((uniform * self.num_values).long()))
        return self.locate(self._points(_chosen(self.logits, uniform)))

    def draw_target(self, num_walkers: int) -> Walkers:  # noqa: D102
        return self.locate(self.boltzmann.sample((num_walkers,)).to(self._like.dtype))

    @torch.no_grad()
    def locate(self, z: Tensor) -> Walkers:  # noqa: D102
        self.num_gradients += len(z)
        return self.placed(z, -self.boltzmann.log_density(z))

    def placed(self, z: Tensor, value: Tensor) -> Walkers:
        """Puts walkers at points ``z (C, *event)``, where U is known ``(C,)``."""
        value = value.detach().double()
        return Walkers(z, (value - self.base_value(z)).where(value.isfinite(), math.inf))

    def base_value(self, z: Tensor) -> Tensor:
        """Evaluates U_0 at points ``z (C, *event)``, in nats and float64, ``(C,)``."""
        if self.logits is None:
            size = self.sites.numel() * math.log(self.num_values)
            return z.new_full((len(z),), size, dtype=torch.float64)
        places = self.alphabet.encode(z).unsqueeze(-1)
        logits = self.logits.double().expand(*places.shape[:-1], -1)
        return -logits.gather(-1, places).reshape(len(z), -1).sum(-1)

    @torch.no_grad()
    def move(  # noqa: D102
        self,
        walkers: Walkers,
        beta: Tensor,
        step_size: Tensor,
        num_steps: int,
        generator: torch.Generator,
    ) -> tuple[Walkers, Tensor]:
        size = max(1, BLOCK // self.sites.numel())
        if len(walkers.z) <= size:
            return self._moved(walkers, beta, step_size, num_steps, generator)
        parts = [
            self._moved(
                taken(walkers, rows),
                *(x[rows] if x.dim() else x for x in (beta, step_size)),
                num_steps,
                generator,
            )
            for rows in torch.arange(len(walkers.z), device=walkers.z.device).split(size)
        ]
        moved, accept_prob = zip(*parts, strict=True)
        return Walkers(*map(torch.cat, zip(*moved, strict=True))), torch.cat(accept_prob)

    def _moved(
        self,
        walkers: Walkers,
        beta: Tensor,
        step_size: Tensor,
        num_steps: int,
        generator: torch.Generator,
    ) -> tuple[Walkers, Tensor]:
        rows = beta.to(walkers.z.dtype)
        accept_prob = torch.zeros_like(walkers.excess)
        for _ in range(num_steps):
            accepted = torch.ones_like(accept_prob)
            if self.kernel is not None and (not self.sweeps or self._turns(generator)):
                between = Between(self, beta, walkers)
                walkers, accepted = between.moved(self.kernel, step_size, generator)
            if self.sweeps:
                walkers = self.locate(self._swept(walkers.z, rows, generator))
            accept_prob += accepted / num_steps
        return walkers, accept_prob

    def _turns(self, generator: torch.Generator) -> bool:
        """Whether it is the turn of clusters, of all walkers."""
        device = generator.device
        return bool(torch.rand((), generator=generator, device=device) < SHARE_OF_CLUSTERS)

    def _swept(self, z: Tensor, beta: Tensor, generator: torch.Generator) -> Tensor:
        if self.energy is None:
            return self._visited(z, beta, generator)
        uniform = self._uniform(z.shape[:1] + self.uniform_shape, generator)
        return self.swept(z, beta, uniform)

    @property
    def uniform_shape(self) -> torch.Size:
        """The shape of the uniform draws that a sweep of one walker takes."""
        return self.energy.uniform_shape if self._sweeps_by_itself else self.sites

    @property
    def _sweeps_by_itself(self) -> bool:
        return self.logits is None and not isinstance(self.energy, RBM)

    def swept(self, z: Tensor, beta: Tensor, uniform: Tensor) -> Tensor:
        """Draws every site from its conditional, where the energy knows it.

        Args:
            z: Walkers, with shape ``(C, *event)``.
            beta: The inverse temperature, of all or of each: ``()`` or ``(C,)``.
            uniform: Uniform draws in [0, 1), with shape ``(C, *uniform_shape)``.
        """
        energy, temperature = self.energy, self.boltzmann.temperature
        if beta.dim():
            beta = beta.reshape(-1, *(1,) * (len(self.sites) + 1))
        if self._sweeps_by_itself:
            return energy.sweep(z, uniform, beta / temperature)
        for colour in range(energy.num_colours):
            log_weights = beta / temperature * energy.conditionals(z)
            drawn = self._points(_chosen(self._with_base(log_weights, beta), uniform))
            own = energy.colours == colour
            z = torch.where(own.unsqueeze(-1) if self.alphabet.one_hot else own, drawn, z)
        return z

    @property
    def gain(self) -> float:
        r"""By how much the base is nearer to its target than a uniform one, in nats.

        .. math:: \sum_i \sum_k p_{ik} \log (K p_{ik}), \qquad \log p_i = f_i

        which is the difference of their divergences from a law with the same marginals.
        """
        if self.logits is None:
            return 0.0
        logits = self.logits.double()
        return (logits.exp() * (logits + math.log(self.num_values))).sum().item()

    def _with_base(self, log_weights: Tensor, beta: Tensor) -> Tensor:
        return log_weights if self.logits is None else log_weights + (1 - beta) * self.logits

    def _visited(self, z: Tensor, beta: Tensor, generator: torch.Generator) -> Tensor:
        """Draws site after site, with the energy evaluated at each value of it."""
        num_sites, num_values = self.sites.numel(), self.num_values
        uniform = self._uniform(torch.Size((num_sites, len(z), 1)), generator)
        beta = beta.reshape(-1, 1, 1)
        places = self.alphabet.encode(z).reshape(len(z), num_sites)
        logits = None if self.logits is None else self.logits.reshape(num_sites, num_values)
        for i in range(num_sites):
            tried = places.repeat(num_values, 1, 1)
            tried[..., i] = torch.arange(num_values, device=z.device).unsqueeze(-1)
            points = self._points(tried.reshape(-1, *self.sites))
            self.num_gradients += len(points)
            value = self.boltzmann.log_density(points).reshape(num_values, -1).mT.unsqueeze(1)
            log_weights = beta * value
            if logits is not None:
                log_weights = log_weights + (1 - beta) * logits[i]
            places[:, i] = _chosen(log_weights, uniform[i]).squeeze(-1)
        return self._points(places.reshape(-1, *self.sites))

    def fitted(self, draws: Tensor) -> DiscretePath:
        """Returns a path to the same target from a base that is fitted to points of it.

        Args:
            draws: Points ``(n, *event)`` of the target, of an RBM visible ones.
        """
        z = as_numbers(draws, self._like)
        if self.rbm is not None:
            with torch.no_grad():
                z = torch.cat([z, self.rbm.hidden_given_visible(z).sample()], -1)
        return self.refitted(Walkers(z, z.new_zeros(len(z))))

    def refitted(self, walkers: Walkers) -> DiscretePath:  # noqa: D102
        places = self.alphabet.encode(walkers.z)
        values = torch.arange(self.num_values, device=places.device)
        shares = (places.unsqueeze(-1) == values).double().mean(0)
        path = copy.copy(self)
        path.logits = ((1 - WIDTH) * shares + WIDTH / self.num_values).log().to(self._like.dtype)
        return path


def _has_hidden(boltzmann: Boltzmann) -> bool:
    """Whether it is an RBM whose joint law has the same log Z."""
    energy, temperature = boltzmann.energy, boltzmann.temperature
    return (
        isinstance(energy, RBM)
        and boltzmann.support is energy.support
        and bool(torch.as_tensor(temperature) == 1)
    )


def _chosen(log_weights: Tensor, uniform: Tensor) -> Tensor:
    """Draws places ``(*,)`` by log weights ``(*, K)`` and uniform draws ``(*,)``."""
    below = log_weights.softmax(-1).cumsum(-1)[..., :-1]
    return (uniform.unsqueeze(-1) >= below).sum(-1)
