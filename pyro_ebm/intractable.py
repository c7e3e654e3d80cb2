r"""Models with observed energies whose log Z moves with what is inferred.

.. math::
    p(\theta \mid y) \propto e^{-U_0(\theta)} \prod_i \frac{q_i(y_i \mid \theta)}{Z_i(\theta)},
    \qquad q_i(x \mid \theta) = e^{-E_i(x; \theta) / T_i}

:math:`U_0` holds the prior and all sites that have a density. What is left out is :math:`Z_i`, so
that :class:`Intractable` knows the posterior only up to a factor that matters, and beside it the
law of each site i given the latents, which a kernel may draw from.
"""

from __future__ import annotations

__all__ = ["Intractable", "Pairs"]

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from pyro import poutine
from pyro.infer.autoguide.initialization import InitMessenger
from torch import Tensor

from .batching import batched, value_and_grad_of
from .discrete import DiscreteTarget, bijection_of, discrete_target
from .engine import Rung, trace
from .latents import uniform_in_support
from .observed import Law, intractable_sites
from .potential import Model, Potential, Site, unconstrained_log_density
from .validation import unvalidated


class Pairs(NamedTuple):
    """The couplings and fields of a site given the latents of each chain, over its temperature."""

    edges: Tensor
    """Pairs of sites, with shape ``(M, 2)``."""
    couplings: Tensor
    """What agreement is worth in nats, of each datum of each chain, ``(C * N, M)``."""
    field: Tensor
    """In nats, ``(C * N, *sites)`` for spins, else ``(C * N, *sites, K)``."""
    event_shape: torch.Size
    site_shape: torch.Size


class Intractable(Potential):
    r"""The potential of a model without the log Z of some of its observed sites.

    It has values, no gradient, and no use but in :class:`~pyro_ebm.kernels.Exchange`.

    Args:
        base: The potential :math:`U_0` of the model without these sites.
        laws_of: Maps the latents ``(D,)`` of one chain to the laws of the sites, by name.
    """

    def __init__(self, base: Potential, laws_of: Callable[[Tensor], dict[str, Law]]) -> None:
        super().__init__(_no_gradient, base.sites, base.start)
        self._base, self._laws_of = base, laws_of
        self._by_graph = False
        self._mapped: dict[str, Callable] = {}
        self._graphs: dict[tuple, Callable] = {}
        with unvalidated():
            self.observed = laws_of(base.initialize(1)[0])
        """The laws at some latents."""

    @classmethod
    def of_model(
        cls, model: Model, args: tuple, kwargs: Mapping, sites: Sequence[str] | None
    ) -> Intractable:
        """Builds the potential of a model.

        Args:
            model: A Pyro model.
            args: What it takes.
            kwargs: What it takes by name.
            sites: The names of the sites whose log Z is left out; all that are observed and
                unnormalised if not given.

        Raises:
            ValueError: If there is no such site, one named is not observed or no
                :class:`~pyro_ebm.Boltzmann`, one is scaled or transformed, the model has a
                discrete latent, or what a :class:`~pyro_ebm.potential.Potential` refuses.
        """
        with poutine.block(), unvalidated():
            started = InitMessenger(uniform_in_support)(model)
            nodes = poutine.trace(started).get_trace(*args, **kwargs).nodes
        names = intractable_sites(nodes, sites)

        def laws_of(z: Tensor) -> dict[str, Law]:
            with poutine.block(), poutine.condition(data=base.constrain(z)):
                nodes = poutine.trace(model).get_trace(*args, **kwargs).nodes
            return {n: Law(*(nodes[n][key] for key in ("fn", "value", "mask"))) for n in names}

        base = Potential.of(poutine.block(model, hide=list(names)), args, kwargs)
        return cls(base, laws_of)

    def traced(self) -> Intractable:
        """Returns the same, with graphs in place of the model, traced when they are asked for."""
        new = copy.copy(self)
        new._by_graph, new._graphs = True, {}
        return new

    @property
    def rung(self) -> Rung:
        """What the model runs as."""
        return Rung(None, "eager", "a model in graphs, and a kernel with branches")

    def value(self, z: Tensor) -> Tensor:
        r"""Evaluates :math:`U_0(\theta) - \sum_i \log q_i(y_i \mid \theta)`.

        Args:
            z: The latents, with shape ``(C, D)``.

        Returns:
            Nats, with shape ``(C,)``.
        """

        def of_data(z: Tensor) -> Tensor:
            return sum(law.log_density(law.value) for law in self._laws_of(z).values())

        def value(z: Tensor) -> Tensor:
            return self._base.value_and_grad(z)[0] - self._over_chains("data", of_data)(z)

        with torch.no_grad():
            return self._run("data", value, z)

    def log_density(self, z: Tensor, points: tuple[Tensor, ...]) -> Tensor:
        r"""Evaluates :math:`\sum_i \log q_i(w_i \mid \theta)`.

        Args:
            z: The latents, with shape ``(C, D)``.
            points: The :math:`w_i` of each chain, of each site, with shape ``(C, *shape)``.

        Returns:
            Nats, with shape ``(C,)``.
        """

        def of_points(z: Tensor, *points: Tensor) -> Tensor:
            laws = self._laws_of(z).values()
            return sum(law.log_density(x) for law, x in zip(laws, points, strict=True))

        with torch.no_grad():
            return self._run("points", self._over_chains("points", of_points), z, *points)

    def drawn(self, name: str, z: Tensor) -> Tensor:
        """Draws data of a site exactly, where its law knows how, by torch's global generator.

        Args:
            name: The site.
            z: The latents, with shape ``(C, D)``.

        Returns:
            Data of each chain, with shape ``(C, *shape)``.
        """

        def of_one(z: Tensor) -> Tensor:
            return self._laws_of(z)[name].boltzmann.sample()

        with torch.no_grad():
            return self._over_chains(f"draw {name}", of_one)(z)

    def given(self, name: str, z: Tensor) -> Potential:
        """Returns the potential of the data of a site, given the latents of each chain.

        Args:
            name: The site.
            z: The latents, with shape ``(C, D)``.

        Returns:
            The potential of as many chains, once or several times over, each of all its data.
        """
        boltzmann = self.observed[name].boltzmann
        bijection = bijection_of(boltzmann.support)
        shape = boltzmann.batch_shape + bijection.inverse_shape(boltzmann.event_shape)

        def of_one(z: Tensor, u: Tensor) -> Tensor:
            own = self._laws_of(z)[name].boltzmann
            return -unconstrained_log_density(own, u.reshape(shape)).sum()

        values = self._over_chains(f"value {name}", of_one)

        def value_and_grad_at(z: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
            return value_and_grad_of(lambda u: values(z, u))(u)

        def value_and_grad(u: Tensor) -> tuple[Tensor, Tensor]:
            return self._run(f"grad {name}", value_and_grad_at, _as_often(z, u), u)

        def value(u: Tensor) -> Tensor:
            return self._run(f"value {name}", values, _as_often(z, u), u)

        discrete = discrete_target(boltzmann, boltzmann.batch_shape, one_each=False)
        if discrete is not None:
            discrete = _GivenLatents(self, name, z, discrete, (value, value_and_grad))
        site = Site(name, shape, bijection, ())
        return Potential(value_and_grad, [site], self.start, discrete=discrete)

    def sweep(self, name: str, z: Tensor, x: Tensor, uniform: Tensor) -> Tensor:
        """Sweeps the data of a discrete site.

        Args:
            name: The site.
            z: The latents, with shape ``(C, D)``.
            x: Data of each chain, flat, with shape ``(C, D)``.
            uniform: Uniform draws, with shape ``(C, num_uniforms)``.

        Returns:
            Data, with the shape of ``x``.
        """

        def of_one(z: Tensor, x: Tensor, uniform: Tensor) -> Tensor:
            own = self._laws_of(z)[name].boltzmann
            target = discrete_target(own, own.batch_shape, one_each=False)
            return target.sweep(x.unsqueeze(0), uniform.unsqueeze(0)).squeeze(0)

        swept = self._over_chains(f"sweep {name}", of_one)
        with torch.no_grad():
            return self._run(f"sweep {name}", swept, z, x, uniform)

    def changes(self, name: str, z: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """Evaluates the potential of the data of a site that knows its conditionals.

        Args:
            name: The site.
            z: The latents, with shape ``(C, D)``.
            x: Data of each chain, flat, with shape ``(C, D)``.

        Returns:
            Nats ``(C,)``, and how they change by setting each site to each value, ``(C, S, K)``.
        """

        def of_one(z: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
            own = self._laws_of(z)[name].boltzmann
            target = discrete_target(own, own.batch_shape, one_each=False)
            return tuple(part.squeeze(0) for part in target.value_and_changes(x.unsqueeze(0)))

        changed = self._over_chains(f"changes {name}", of_one)
        with torch.no_grad():
            return self._run(f"changes {name}", changed, z, x)

    def pairs(self, name: str, z: Tensor) -> Pairs:
        """Says the couplings of a site of a model of pairs, given the latents of each chain.

        Args:
            name: The site.
            z: The latents, with shape ``(C, D)``.
        """
        known = self.observed[name].boltzmann
        energy, batch = known.energy, known.batch_shape
        spins = energy.alphabet.lowest < 0
        sites = energy.site_shape if spins else (*energy.site_shape, energy.num_values)

        def of_one(z: Tensor) -> tuple[Tensor, Tensor]:
            own = self._laws_of(z)[name].boltzmann
            found = own.energy.couplings, getattr(own.energy, "field", None)
            couplings, field = (
                found if found[1] is not None else (found[0], found[0].new_zeros(()))
            )
            shapes = (*batch, len(energy.edges)), (*batch, *sites)
            over = torch.as_tensor(own.temperature)
            return tuple(
                (x / over.reshape(*over.shape, *(1,) * (len(shape) - len(batch)))).expand(shape)
                for x, shape in zip((couplings, field), shapes, strict=True)
            )

        with torch.no_grad():
            found = self._run(f"pairs {name}", self._over_chains(f"pairs {name}", of_one), z)
        couplings, field = found[0].reshape(-1, len(energy.edges)), found[1].reshape(-1, *sites)
        return Pairs(energy.edges, couplings, field, energy.event_shape, energy.site_shape)

    def _over_chains(self, key: str, of_one: Callable) -> Callable:
        return self._mapped.setdefault(key, batched(of_one))

    def _run(self, key: str, fn: Callable, *args: Tensor) -> Tensor | tuple:
        if not self._by_graph:
            return fn(*args)
        full = (key, *(x.shape for x in args))
        if full not in self._graphs:
            self._graphs[full] = trace(fn, args).fn
        return self._graphs[full](*args)

    def _is_finite(self, z: Tensor) -> Tensor:
        return self.value(z).isfinite()


class _GivenLatents(DiscreteTarget):
    """The data of a discrete site, given the latents of each chain."""

    temperature: float = 1.0

    def __init__(
        self,
        potential: Intractable,
        name: str,
        z: Tensor,
        like: DiscreteTarget,
        functions: tuple[Callable, Callable],
    ) -> None:
        super().__init__(functions[0], like.alphabet, like.num_values, functions[1])
        self._potential, self._name, self._z, self._like = potential, name, z, like
        self.can_sweep = like.can_sweep

    @property
    def energy(self) -> Pairs:
        energy = self._potential.observed[self._name].boltzmann.energy
        if not (self.can_sweep and hasattr(energy, "edges") and hasattr(energy, "couplings")):
            raise AttributeError(f"{type(energy).__name__} does not say its edges and couplings")
        if "_pairs" not in vars(self):
            self._pairs = self._potential.pairs(self._name, self._z)
        return self._pairs

    def _changes(self, z: Tensor) -> tuple[Tensor, Tensor]:
        if not self.can_sweep:
            return super()._changes(z)
        return self._potential.changes(self._name, _as_often(self._z, z), z)

    def num_uniforms(self, z: Tensor) -> int:
        return self._like.num_uniforms(z)

    def sweep(self, z: Tensor, uniform: Tensor) -> Tensor:
        return self._potential.sweep(self._name, _as_often(self._z, z), z, uniform)


def _as_often(z: Tensor, u: Tensor) -> Tensor:
    """Latents of the chains that ``u`` is of, which may come several times over."""
    return z if len(z) == len(u) else z.repeat(len(u) // len(z), 1)


def _no_gradient(z: Tensor) -> tuple[Tensor, Tensor]:
    raise NotImplementedError(
        "log Z moves with the latents, and its gradient is not known: sample with "
        "pyro_ebm.kernels.Exchange"
    )
