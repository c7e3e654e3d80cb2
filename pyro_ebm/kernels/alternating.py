r"""Models that mix discrete and continuous sites: each by a kernel of its own, in turn.

A kernel that leaves :math:`p(s \mid z)` invariant leaves the joint law invariant, too, and so does
one for :math:`p(z \mid s)`; hence does the one after the other.
"""

from __future__ import annotations

__all__ = ["Alternating", "AlternatingState"]

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..potential import Model, Potential, Site
from .adaptation import Adaptation
from .base import Kernel
from .discrete import DiscreteKernel, DiscreteState
from .discrete_tempering import DiscreteTempering
from .tempering import ParallelTempering
from .transition import Info, State


class AlternatingState(NamedTuple):
    """What the next step needs."""

    z: Tensor
    """Chains, with shape ``(C, D)``."""
    potential: Tensor
    """U at ``z`` in nats, with shape ``(C,)``."""
    step_size: Tensor
    """The step size of the last kernel, 0-d."""
    metric: tuple
    """Its metric."""
    inner: tuple[State | DiscreteState, ...]
    """The state of each kernel, at its own coordinates."""
    infos: tuple[Info, ...]
    """What happened in the last step of each; empty before the first."""


class Alternating(Kernel):
    r"""Gibbs within HMC: discrete sites by discrete kernels, the rest by a continuous one.

    In a step every kernel makes one, given where the others have brought the rest, in the order in
    which they are named. The invariant law is that of the model, exactly, if every kernel leaves
    its own target invariant, and it holds for a plain :class:`~pyro_ebm.Boltzmann` site among
    others, for an energy factor, or for Pyro's own discrete distributions, which are then not
    summed out. Warmup adapts each kernel as it would alone.

    The energy of a discrete site given the rest of a model has no conditionals that are known, so
    that :class:`~pyro_ebm.kernels.Gibbs` draws one site at a time by :math:`K - 1` evaluations.
    :class:`~pyro_ebm.kernels.GibbsWithGradients` and :class:`~pyro_ebm.kernels.DiscreteMALA` take
    the gradient of the model in its discrete values instead, where it has one. The statistics of a
    draw are those of the last kernel; a divergence is one of any.

    References:
        | Stochastic relaxation, Gibbs distributions, and the Bayesian restoration of images (Geman
        | and Geman, 1984), https://doi.org/10.1109/TPAMI.1984.4767596

    Args:
        model: A Pyro model.
        sites: A discrete kernel without a target for each discrete site, by name.
        rest: A kernel without a target for all continuous sites together; none if there are none.

    Raises:
        ValueError: If there is no kernel, one has a target of its own, is tempered or of the wrong
            kind; in use, if a name is no discrete latent of the model, or there are continuous
            sites and ``rest`` is missing, or the other way round.

    Example:
        >>> import pyro, pyro_ebm as ebm
        >>> import pyro.distributions as dist
        >>> def model():
        ...     z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...     s = pyro.sample("s", dist.Bernoulli(0.3).expand([2]).to_event(1))
        ...     pyro.sample("y", dist.Normal(z + s.sum(-1), 0.5), obs=torch.tensor(1.7))
        >>> kernel = Alternating(model, {"s": ebm.kernels.Gibbs()}, rest=ebm.kernels.HMC())
        >>> mcmc = ebm.MCMC(kernel, 10, 10, num_chains=8, disable_progbar=True)
        >>> mcmc.run()
        >>> {name: draws.shape for name, draws in sorted(mcmc.get_samples().items())}
        {'s': torch.Size([80, 2]), 'z': torch.Size([80])}
    """

    branch_free = False

    def __init__(
        self,
        model: Model | None = None,
        sites: Mapping[str, DiscreteKernel] | None = None,
        *,
        rest: Kernel | None = None,
    ) -> None:
        self.sites = dict(sites or {})
        self.rest = rest
        for name, kernel in self.sites.items():
            if not isinstance(kernel, DiscreteKernel):
                raise ValueError(
                    f"the kernel of site '{name}' must be a discrete one, such as Gibbs(), got "
                    f"{type(kernel).__name__}"
                )
        if rest is not None and (isinstance(rest, DiscreteKernel) or not isinstance(rest, Kernel)):
            raise ValueError(
                f"rest must be a continuous kernel, such as HMC(), got {type(rest).__name__}"
            )
        if not self.sites:
            raise ValueError("sites must name a discrete site and its kernel, got none")
        if any(isinstance(k, DiscreteTempering | ParallelTempering) for k in self.kernels):
            raise ValueError("kernels must not be tempered: their replicas have no rest in common")
        if any(kernel.target or kernel.potential_fn for kernel in self.kernels):
            raise ValueError(
                "the kernels must have no target of their own: give it to Alternating"
            )
        last = self.kernels[-1]
        super().__init__(
            model,
            step_size=last.step_size,
            adapt_step_size=last.adapt_step_size,
            adapt_mass_matrix=last.adapt_mass_matrix,
            target_accept_prob=last.target_accept_prob,
            metric_rank=last.metric_rank,
        )

    @property
    def kernels(self) -> list[Kernel]:
        """All kernels, in their order."""
        return [*self.sites.values(), *(() if self.rest is None else (self.rest,))]

    def bind(
        self, args: tuple, kwargs: dict, initial_params: dict[str, Tensor] | None
    ) -> Potential:
        """Builds the potential of the model, its discrete sites among the others.

        Args:
            args: What the model takes.
            kwargs: What the model takes by name.
            initial_params: Values with chains first, if given.
        """
        potential = Potential.of(self.target, args, kwargs, discrete=tuple(self.sites))
        rest = [site.name for site in potential.sites if site.name not in self.sites]
        if bool(rest) != (self.rest is not None):
            raise ValueError(
                f"rest must be a kernel for the continuous sites {rest}, got None"
                if rest
                else f"the model has no continuous site for rest={type(self.rest).__name__}"
            )
        return potential

    def init(self, potential: Potential, z: Tensor) -> AlternatingState:  # noqa: D102
        parts = self._parts(potential, z)
        inner = tuple(
            kernel.init(part, z[:, columns])
            for kernel, (part, columns) in zip(self.kernels, parts, strict=True)
        )
        return AlternatingState(z.detach(), *_of_last(inner), inner, ())

    def adaptation(self, warmup_steps: int) -> Adaptation:  # noqa: D102
        return _EachItsOwn([kernel.adaptation(warmup_steps) for kernel in self.kernels])

    def noise(  # noqa: D102
        self, state: AlternatingState, generator: torch.Generator, *num_steps: int
    ) -> tuple[Tensor, ...]:
        pairs = zip(self.kernels, state.inner, strict=True)
        noises = [kernel.noise(own, generator, *num_steps) for kernel, own in pairs]
        self._widths = [len(noise) for noise in noises]
        return tuple(part for noise in noises for part in noise)

    def step(  # noqa: D102
        self, potential: Potential, state: AlternatingState, noise: tuple[Tensor, ...]
    ) -> tuple[AlternatingState, Info]:
        z, inner, infos, begin = state.z.clone(), [], [], 0
        parts = self._parts(potential, z)
        for kernel, own, width, (part, columns) in zip(
            self.kernels, state.inner, self._widths, parts, strict=True
        ):
            here = kernel.init(part, z[:, columns])
            looked = ("z", "potential", "changes" if hasattr(own, "changes") else "grad")
            own = own._replace(**{name: getattr(here, name) for name in looked})
            own, info = kernel.step(part, own, noise[begin : begin + width])
            z[:, columns] = own.z
            begin += width
            inner.append(own)
            infos.append(info)
        diverging = torch.stack([info.diverging for info in infos]).any(0)
        moved = AlternatingState(z, *_of_last(inner), tuple(inner), tuple(infos))
        return moved, infos[-1]._replace(diverging=diverging)

    def _parts(self, potential: Potential, z: Tensor) -> list[tuple[Potential, Tensor]]:
        """The potential of each kernel's own columns, given what the others of ``z`` are then."""
        columns, begin = {}, 0
        for site in potential.sites:
            columns[site.name] = torch.arange(begin, begin + site.shape.numel(), device=z.device)
            begin += site.shape.numel()
        rest = [site for site in potential.sites if site.name not in self.sites]
        groups = [[site for site in potential.sites if site.name == name] for name in self.sites]
        parts = []
        for group in (*groups, rest) if rest else groups:
            own = torch.cat([columns[site.name] for site in group])
            parts.append((_given(potential, z, own, group), own))
        return parts


class _EachItsOwn:
    """Tunes each kernel by what happened in its own steps."""

    rejoined = None  # the place of another chain would not fit the other sites of this one

    def __init__(self, adaptations: list[Adaptation]) -> None:
        self.adaptations = adaptations
        for adaptation in adaptations:
            adaptation.rejoins = False

    def update(self, state: AlternatingState, info: Info) -> AlternatingState:
        """Learns from a step and returns the state with what has been tuned."""
        inner = tuple(
            adaptation.update(own, its)
            for adaptation, own, its in zip(
                self.adaptations, state.inner, state.infos, strict=True
            )
        )
        _, step_size, metric = _of_last(inner)
        return state._replace(inner=inner, step_size=step_size, metric=metric)

    def state_dict(self) -> dict[str, Any]:
        """Returns all that it has learned, with which another one goes on."""
        return {"each": [adaptation.state_dict() for adaptation in self.adaptations]}

    def load_state_dict(self, found: dict[str, Any]) -> None:
        """Goes on from what :meth:`state_dict` of one for as many steps returned."""
        for adaptation, own in zip(self.adaptations, found["each"], strict=True):
            adaptation.load_state_dict(own)


def _of_last(inner: tuple | list) -> tuple[Tensor, Tensor, tuple]:
    last = inner[-1]
    return last.potential, last.step_size, last.metric


def _given(potential: Potential, z: Tensor, columns: Tensor, sites: list[Site]) -> Potential:
    """The potential of some columns of ``z``; it takes several points of each chain, too."""

    def value_and_grad(own: Tensor) -> tuple[Tensor, Tensor]:
        whole = z.repeat(len(own) // len(z), 1)
        whole[:, columns] = own
        value, grad = potential.value_and_grad(whole)
        return value, grad[:, columns]

    discrete = potential.within.get(sites[0].name)
    if discrete is not None:
        discrete = discrete.given(value_and_grad)
    return Potential(value_and_grad, sites, potential.start, discrete=discrete)
