r"""Inference of latents on which the log Z of what was observed depends.

.. math:: p(\theta \mid y) \propto p(\theta) \, q(y \mid \theta) / Z(\theta)

is doubly intractable: not only its own normaliser is unknown, but :math:`Z(\theta)` at every point
too. Data :math:`w` that are drawn anew at the proposal say by how much it differs from
:math:`Z(\theta)`:
:math:`\mathbb{E}[q(w \mid \theta) / q(w \mid \theta')] = Z(\theta) / Z(\theta')`.
"""

from __future__ import annotations

__all__ = ["Exchange"]

import copy
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ..intractable import Intractable
from ..potential import Model, Potential
from .adaptation import Adaptation
from .alternating import Alternating
from .base import Kernel
from .discrete_tempering import DiscreteTempering
from .metric import Metric
from .past import SEEDS, CouplingFromThePast
from .tempering import ParallelTempering
from .transition import Info, State, metropolis, normal_like, run, uniform_like

Inner = Kernel | CouplingFromThePast
"""What draws the data of a site."""


class Exchange(Kernel):
    r"""The exchange algorithm: exact where log Z of the observed sites moves with the latents.

    .. math::
        \theta' &= \theta + \epsilon A \xi, \qquad \xi \sim \mathcal{N}(0, I), \qquad
        w \sim p(\cdot \mid \theta') = q(\cdot \mid \theta') / Z(\theta') \\
        \log r &= U(\theta) - U(\theta') + \log q(w \mid \theta) - \log q(w \mid \theta')

    where :math:`U` holds minus :math:`\log q(y \mid \theta)`, the prior and the Jacobian, all but
    :math:`\log Z`, which cancels. Latents move in unconstrained space, as by
    :class:`~pyro_ebm.kernels.RandomWalk`. Every observed :class:`~pyro_ebm.Boltzmann` site without
    a known log Z has data :math:`w` of its own, as many as were observed; its temperature, plates
    and masks count. A non-finite proposal is rejected and counted.

    *Where the draw is exact*, so is the invariant law: an energy draws by its own ``sample``, or a
    discrete support of at most 65,536 points is enumerated, without ``inner``; spins with
    couplings that are not negative draw by
    :class:`inner=CouplingFromThePast() <pyro_ebm.kernels.CouplingFromThePast>`.

    *With a kernel as* ``inner`` it is approximate (double Metropolis-Hastings):
    ``num_inner_steps`` of it lead from the observed data to :math:`w`. What is left of the data in
    :math:`w` makes both likelihoods look alike, and the posterior *too wide*, the prior at worst.
    The bias falls as fast as the inner chain forgets: make another run with twice the steps, in
    which means and standard deviations have to stay.

    A step evaluates the model a few times, and once for each inner step; :class:`~pyro_ebm.MCMC`
    traces it into graphs. A model that vmap does not accept runs one chain after the other, with a
    warning, and takes as many times as long as there are chains. The statistic ``lp`` leaves out
    :math:`\log Z`.

    References:
        | MCMC for doubly-intractable distributions (Murray, Ghahramani and MacKay, 2006),
        | https://arxiv.org/abs/1206.6848
        | A double Metropolis-Hastings sampler for spatial models with intractable normalizing
        | constants (Liang, 2010), https://doi.org/10.1080/00949650902882162

    Args:
        model: A Pyro model.
        inner: What draws the data of each site, if the energy does not: a kernel without a target,
            which has to leave it invariant and is not adapted, or coupling from the past; or
            several of these by the names of their sites.
        num_inner_steps: The number of steps of each kernel.
        sites: The names of the observed sites whose log Z is not to be asked for; all where it is
            not known if not given.
        step_size: The step size :math:`\epsilon > 0`, or its first value.
        adapt_step_size: Whether warmup adapts :math:`\epsilon`.
        adapt_mass_matrix: Whether warmup adapts the units :math:`A` to the spread of draws.
        target_accept_prob: The mean acceptance that adaptation aims at.

    Raises:
        ValueError: If ``num_inner_steps`` is not positive, or ``inner`` is tempered or has a
            target; in use, if log Z of all observed sites is known, or one cannot be drawn exactly
            and has no ``inner``, is scaled or transformed, or a latent is discrete.

    Example:
        >>> import pyro, pyro_ebm as ebm
        >>> import pyro.distributions as dist
        >>> def model(s):
        ...     coupling = pyro.sample("coupling", dist.Exponential(5.0))
        ...     pyro.sample("s", ebm.Boltzmann(ebm.energies.Ising((5, 5), coupling, 0.1)), obs=s)
        >>> kernel = Exchange(model, inner=ebm.kernels.SwendsenWang(), num_inner_steps=5)
        >>> mcmc = ebm.MCMC(kernel, 10, 10, num_chains=8, disable_progbar=True)
        >>> mcmc.run(torch.ones(5, 5))
        >>> mcmc.get_samples(group_by_chain=True)["coupling"].shape
        torch.Size([8, 10])
    """

    branch_free = False

    def __init__(
        self,
        model: Model | None = None,
        *,
        inner: Inner | Mapping[str, Inner] | None = None,
        num_inner_steps: int = 100,
        sites: Sequence[str] | None = None,
        step_size: float = 0.1,
        adapt_step_size: bool = True,
        adapt_mass_matrix: bool = True,
        target_accept_prob: float = 0.234,
    ) -> None:
        super().__init__(
            model,
            step_size=step_size,
            adapt_step_size=adapt_step_size,
            adapt_mass_matrix=adapt_mass_matrix,
            target_accept_prob=target_accept_prob,
        )
        if num_inner_steps < 1:
            raise ValueError(f"num_inner_steps must be at least 1, got {num_inner_steps}")
        for kernel in inner.values() if isinstance(inner, Mapping) else [inner]:
            if kernel is not None:
                _check_inner(kernel)
        self.inner = dict(inner) if isinstance(inner, Mapping) else inner
        self.num_inner_steps = num_inner_steps
        self.sites = sites

    def bind(
        self, args: tuple, kwargs: dict, initial_params: dict[str, Tensor] | None
    ) -> Intractable:
        """Builds the potential of the model, without log Z.

        Args:
            args: What the model takes.
            kwargs: What the model takes by name.
            initial_params: Unconstrained values with chains first, if given.
        """
        if self.model is None:
            raise ValueError(
                "Exchange needs a Pyro model with an observed Boltzmann site, got "
                f"{type(self.target).__name__}"
            )
        potential = Intractable.of_model(self.model, args, kwargs, self.sites)
        if isinstance(self.inner, dict) and (unknown := set(self.inner) - set(potential.observed)):
            raise ValueError(
                f"inner names {sorted(unknown)}, but the sites whose log Z is not known are "
                f"{list(potential.observed)}"
            )
        for name in potential.observed:
            self._check_draws(potential, name)
        return potential

    def init(self, potential: Potential, z: Tensor) -> State:  # noqa: D102
        if not isinstance(potential, Intractable):
            raise ValueError(
                "Exchange moves the latents of a Pyro model, and has no use for a potential or "
                "an energy alone: give it the model"
            )
        z = z.detach()
        step_size = z.new_tensor(self.step_size)
        value, nothing = potential.value(z), torch.zeros_like(z)
        return State(z, value, nothing, step_size, Metric.unit(z, 0))

    def adaptation(self, warmup_steps: int) -> Adaptation:  # noqa: D102
        return _OfDraws(self, warmup_steps)

    def noise(  # noqa: D102
        self, state: State, generator: torch.Generator, *num_steps: int
    ) -> tuple[Tensor, ...]:
        normal = normal_like(state.z, generator, *num_steps)
        uniform = uniform_like(state.potential, generator, *num_steps)
        device = state.z.device
        return normal, uniform, torch.randint(SEEDS, num_steps, generator=generator, device=device)

    @torch.no_grad()
    def step(  # noqa: D102
        self, potential: Intractable, state: State, noise: tuple[Tensor, ...]
    ) -> tuple[State, Info]:
        xi, uniform, seed = noise
        y = state.z + state.metric.move(xi, state.step_size)
        value = potential.value(y)
        there = torch.where(value.isfinite().unsqueeze(-1), y, state.z)
        points = self._points(potential, there, int(seed))
        both = potential.log_density(
            torch.cat([state.z, there]), tuple(torch.cat([w, w]) for w in points)
        )
        here, there = both.double().chunk(2)
        log_ratio = state.potential.double() - value.double() + here - there
        proposal = state._replace(z=y, potential=value)
        moved, accept_prob, accepted = metropolis(state, proposal, log_ratio, uniform)
        return moved, Info(~log_ratio.isfinite(), accept_prob, accepted)

    def _points(self, potential: Intractable, z: Tensor, seed: int) -> tuple[Tensor, ...]:
        """Draws data of each site, given the latents of each chain."""
        generator = torch.Generator(device=z.device).manual_seed(seed)
        return tuple(self._drawn(potential, name, z, generator) for name in potential.observed)

    def _drawn(
        self, potential: Intractable, name: str, z: Tensor, generator: torch.Generator
    ) -> Tensor:
        law, inner = potential.observed[name], self._inner_of(name)
        if inner is None and law.draws_exactly:
            seed = torch.randint(SEEDS, (), generator=generator, device=z.device)
            with torch.random.fork_rng([z.device] if z.is_cuda else []):
                torch.manual_seed(int(seed))
                return potential.drawn(name, z)
        given = potential.given(name, z)
        start = given.unconstrain({name: law.value.expand(law.shape).unsqueeze(0)})
        start = start.repeat(len(z), 1)
        if isinstance(inner, CouplingFromThePast):
            seed = torch.randint(SEEDS, (), generator=generator, device=z.device)
            found = inner.rows(given, start, int(seed))
        else:
            steps = run(inner, given, inner.init(given, start), self.num_inner_steps, generator)
            found = [state.z for state, _ in steps][-1]
        return given.constrain(found)[name].reshape(-1, *law.shape)

    def _inner_of(self, name: str) -> Inner | None:
        return self.inner.get(name) if isinstance(self.inner, dict) else self.inner

    def _check_draws(self, potential: Intractable, name: str) -> None:
        """Raises unless the data of a site can be drawn, as far as can be known before."""
        law, inner = potential.observed[name], self._inner_of(name)
        if inner is None and law.draws_exactly:
            return
        alone = Potential.of(law.boltzmann)
        if isinstance(inner, CouplingFromThePast):
            inner.check(alone)
        elif inner is not None:
            own = copy.copy(inner)
            own.target = law.boltzmann
            own.init(own.bind((), {}, None), alone.initialize(1))
        else:
            fits = "HMC(step_size=...)" if alone.discrete is None else "Gibbs()"
            raise ValueError(
                f"data of site '{name}' cannot be drawn exactly: its energy, "
                f"{type(law.boltzmann.energy).__name__}, has no sampler, and its points are too "
                "many to list. Give a kernel that draws them nearly so, such as "
                f"inner=kernels.{fits}, and num_inner_steps; of spins see SwendsenWang and "
                "CouplingFromThePast, too. If no latent is in the energy, leave it out of sites="
            )


class _OfDraws(Adaptation):
    """Tunes by draws alone: there is no gradient, and no telling which chain is lost."""

    rejoins = False

    def fitted(self, metric: Metric, spread: Tensor, count: Tensor) -> Metric:
        return metric.fit(torch.stack([spread[0], 1 / spread[0]]), count)


def _check_inner(kernel: Inner) -> None:
    if isinstance(kernel, CouplingFromThePast):
        return
    known = isinstance(kernel, Kernel) and not isinstance(
        kernel, Exchange | Alternating | DiscreteTempering | ParallelTempering
    )
    if not known:
        raise ValueError(
            "inner must be an untempered kernel of one site, such as Gibbs(), SwendsenWang() or "
            f"HMC(), got {type(kernel).__name__}"
        )
    if kernel.target is not None or kernel.potential_fn is not None:
        raise ValueError(f"inner={type(kernel).__name__} must have no target of its own")
