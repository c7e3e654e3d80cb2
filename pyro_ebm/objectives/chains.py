"""What the objectives that run chains have in common: noise, moves, and whose chains they are.

A budget of training is one of gradients. A step of :class:`~pyro_ebm.kernels.ULA` needs the one
where it begins, and what it asks of its end, that the energy be finite there, the loss finds out
anyway: so k steps cost k gradients.
"""

from __future__ import annotations

__all__ = ["Contrastive", "End", "OneChainEach", "Persistent", "constrained", "unconstrained_data"]

import weakref
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from pyro.infer import ELBO
from torch import Tensor

from ..arguments import check_count
from ..discrete import bijection_of, discrete_target
from ..distributions import Boltzmann
from ..energies.base import module_of, reference_tensor
from ..kernels.base import Kernel
from ..kernels.transition import Info, noises, seeded_generator
from ..potential import Potential
from ..ranks.group import own_stream
from .base import CONTRASTIVE, Objective
from .compiled import CompiledSteps
from .compiled_gradient import CompiledGradient
from .conditions import evaluate_each


class End(NamedTuple):
    """Where a run of chains ended, in unconstrained space."""

    z: Tensor
    """The chains, with shape ``(C, D)``."""
    before: Tensor | None = None
    """Where each was before the last step, if nothing has been evaluated at ``z`` yet."""


class Contrastive(Objective):
    """An objective that runs a kernel on the energy.

    Args:
        kernel: A kernel without a target.
        num_steps: The number of steps per call.
        elbo: The ELBO that takes care of the rest of a model.
        compile: Whether steps, and the gradient of data against chains, are compiled.
        in_pairs: Whether the second half of the chains takes noise opposite to the first's.

    Raises:
        ValueError: If ``num_steps`` is not positive.
    """

    def __init__(
        self,
        kernel: Kernel,
        num_steps: int,
        elbo: ELBO | None,
        compile: bool = False,
        *,
        in_pairs: bool = False,
    ) -> None:
        super().__init__(elbo)
        if not isinstance(kernel, Kernel):
            raise ValueError(
                f"kernel must be a kernel, such as MALA(), got {type(kernel).__name__}"
            )
        check_count("num_steps", num_steps)
        self.kernel = kernel
        self.num_steps = num_steps
        self.compile = compile
        self._in_pairs = in_pairs
        self._steps = CompiledSteps(kernel, num_steps, in_pairs=in_pairs)
        self._compiled = CompiledGradient(self.evaluate)
        self.last_info: dict[str, Info] = {}
        """What happened in the last step of the chains of each site."""
        self._generators: dict[torch.device, torch.Generator] = {}
        self.noise: dict[str, tuple[Tensor, Tensor]] = {}
        """The mean and spread of the noise of each continuous site in unconstrained space,
        ``(D,)``."""

    def why_not_divided(self) -> str:  # noqa: D102
        return self.kernel.why_not_divided()

    def generator(self, device: torch.device) -> torch.Generator:
        """Returns where the randomness of this objective comes from, on each rank another."""
        if device not in self._generators:
            with own_stream():
                self._generators[device] = seeded_generator(device)
        return self._generators[device]

    def pooled(self, dicts: list[dict[str, Any]]) -> dict[str, Any]:  # noqa: D102
        noise = {}
        for name in dicts[0]["noise"]:
            each = zip(*(one["noise"][name] for one in dicts), strict=True)
            mean, spread = map(torch.stack, each)
            within, between = spread.square().mean(0), mean.var(0, correction=0)
            noise[name] = mean.mean(0), (within + between).sqrt()
        return {"noise": noise, "last_info": {}}

    def move(self, boltzmann: Boltzmann, batch_shape: Sequence[int], z: Tensor, name: str) -> End:
        """Moves the chains of a site by ``num_steps`` steps of the kernel.

        Args:
            boltzmann: The distribution of one point, or of the batch.
            batch_shape: The shape of the batch; there are as many chains as it has elements.
            z: Where they begin, in unconstrained space, with shape ``(C, D)``.
            name: The site.

        Returns:
            Where they are then, to be passed on to :meth:`settle`.
        """
        if self.compile:
            walk = self._steps.find(boltzmann, batch_shape, z, name)
            if walk is not None:
                z, before, info = walk(z, self.generator(z.device))
                if info is not None:
                    self.last_info[name] = info
                return End(z, before)
        potential = Potential.of_batch(boltzmann, batch_shape, z)
        return self.walk(potential, z, self.num_steps, name)

    def walk(self, potential: Potential, z: Tensor, num_steps: int, name: str) -> End:
        """Moves chains eagerly.

        Args:
            potential: The target.
            z: Where they begin, with shape ``(C, D)``.
            num_steps: How many steps they make.
            name: The site.

        Returns:
            Where they are then, to be passed on to :meth:`settle`.
        """
        state = self.kernel.init(potential, z)
        generator, in_pairs = self.generator(z.device), self._in_pairs
        each = noises(self.kernel, state, generator, num_steps, in_pairs=in_pairs)
        for number, noise in enumerate(each, start=1):
            ahead = self.kernel.propose(state, noise) if number == num_steps else None
            if ahead is not None:
                return End(ahead, state.z)
            state, self.last_info[name] = self.kernel.step(potential, state, noise)
        return End(state.z)

    def evaluate(self, boltzmann: Boltzmann, x: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        """Sets data against chains.

        Args:
            boltzmann: The distribution.
            x: Data, with shape ``(*batch, *event)``.
            z: Where the chains are, in unconstrained space, with shape ``(C, D)``.

        Returns:
            The surrogate in nats ``(*batch,)``, and the log density of each chain.
        """
        raise NotImplementedError

    def against(
        self, boltzmann: Boltzmann, x: Tensor, name: str
    ) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
        """Returns :meth:`evaluate` of given data, as native code where the steps are such."""
        if self.compile and not x.requires_grad and not self._steps.obstacle(boltzmann, name):
            return partial(self._compiled, boltzmann, x, name=name)
        return partial(self.evaluate, boltzmann, x)

    def settle(
        self, end: End, evaluate: Callable[[Tensor], tuple[Tensor, Tensor]], name: str
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Evaluates chains where they end, and takes back steps to where that is not finite.

        Args:
            end: Where they end.
            evaluate: From chains ``(C, D)`` to two tensors, the second of which is the log
                density of each chain, in nats.
            name: The site.

        Returns:
            Where they are now, and what was evaluated there.
        """
        found = evaluate(end.z)
        if end.before is None:
            return end.z, found
        finite = found[1].detach().isfinite().reshape(-1)
        self.last_info[name] = Info(diverging=~finite)
        if bool(finite.all()):
            return end.z, found
        z = torch.where(finite.unsqueeze(-1), end.z, end.before)
        return z, evaluate(z)

    def fresh(self, boltzmann: Boltzmann, z: Tensor, num_chains: int, name: str) -> Tensor:
        """Draws noise: with the mean and spread of the first data that the site had.

        At a discrete site it is uniform over all points.

        Args:
            boltzmann: The distribution.
            z: The data now, in unconstrained space, with shape ``(n, D)``.
            num_chains: How many points to draw.
            name: The site.

        Raises:
            ValueError: If those data had another number of dimensions.
        """
        generator = self.generator(z.device)
        discrete = discrete_target(boltzmann, (num_chains,), one_each=True)
        if discrete is not None:
            return discrete.draw(z.new_empty(num_chains, z.shape[1]), generator)
        if name not in self.noise:
            self.noise[name] = z.mean(0), z.std(0, correction=0).clamp(min=1e-3)
        mean, spread = self.noise[name]
        if mean.shape != z.shape[1:]:
            raise ValueError(
                f"the noise of '{name}' has {len(mean)} dimensions, and its data now have "
                f"{z.shape[1]}: give each energy its own name= in surrogate()"
            )
        noise = mean.new_empty(num_chains, len(mean))
        return mean + spread * noise.normal_(generator=generator)


def unconstrained_data(boltzmann: Boltzmann, x: Tensor) -> Tensor:
    """Maps data ``(*batch, *event)`` to where chains move, as rows ``(n, D)`` without a gradient.

    Args:
        boltzmann: The distribution, which says the support.
        x: The data.
    """
    rows = x.detach().reshape(-1, *boltzmann.event_shape)
    if not rows.is_floating_point():
        rows = rows.to(reference_tensor(boltzmann.energy))
    return bijection_of(boltzmann.support).inv(rows).reshape(len(rows), -1)


def constrained(boltzmann: Boltzmann, z: Tensor) -> Tensor:
    """Maps chains ``(C, D)`` to points ``(C, *event)``, the reverse of that."""
    bijection = bijection_of(boltzmann.support)
    return bijection(z.reshape(-1, *bijection.inverse_shape(boltzmann.event_shape)))


class OneChainEach(Contrastive):
    """An objective with a chain of its own for each datum."""

    loss_name = CONTRASTIVE
    serves_discrete = True

    def start(self, boltzmann: Boltzmann, z: Tensor, name: str) -> Tensor:
        """Says where chains begin, given the data ``z (n, D)`` in unconstrained space."""
        return z

    def surrogate(self, boltzmann: Boltzmann, x: Tensor, name: str = "x") -> Tensor:  # noqa: D102
        self.check(boltzmann, x, name)
        batch_shape = x.shape[: x.dim() - len(boltzmann.event_shape)]
        start = self.start(boltzmann, unconstrained_data(boltzmann, x), name)
        if self._in_pairs:
            start = start.repeat(2, 1)
        end = self.move(boltzmann, batch_shape, start, name)
        _, (surrogate, _) = self.settle(end, self.against(boltzmann, x, name), name)
        return surrogate

    def evaluate(  # noqa: D102
        self, boltzmann: Boltzmann, x: Tensor, z: Tensor
    ) -> tuple[Tensor, Tensor]:
        x_neg = constrained(boltzmann, z).reshape(-1, *x.shape)
        stack = torch.cat([x.unsqueeze(0), x_neg])
        of_data, *of_chains = evaluate_each(Boltzmann.log_density, boltzmann, stack)
        return of_data - sum(of_chains) / len(of_chains), torch.stack(of_chains)


class Persistent(Contrastive):
    """An objective whose chains stay, apart from the data.

    Args:
        kernel: A kernel without a target.
        num_chains: The number of chains C.
        num_steps: The number of steps per update.
        elbo: The ELBO that takes care of the rest of a model.
        compile: Whether steps are compiled.

    Raises:
        ValueError: If a count is not positive.
    """

    passing = (*Objective.passing, "_owners")
    of_chains = ("chains",)

    def __init__(
        self,
        kernel: Kernel,
        num_chains: int,
        num_steps: int,
        elbo: ELBO | None,
        compile: bool = False,
    ) -> None:
        super().__init__(kernel, num_steps, elbo, compile)
        check_count("num_chains", num_chains)
        self.num_chains = num_chains
        self.chains: dict[str, Tensor] = {}
        """The chains of each site in unconstrained space, with shape ``(C, D)``."""
        self._owners: dict[str, weakref.ref] = {}

    def check_owner(self, boltzmann: Boltzmann, name: str) -> None:
        """Checks that chains are those of one energy, which is the same for all data.

        Raises:
            ValueError: If the energy is conditional, or its temperatures are, or the chains belong
                to another one.
        """
        num_laws = getattr(boltzmann.temperature, "shape", torch.Size()).numel()
        if num_laws not in (1, self.num_chains):
            raise ValueError(
                f"{type(self).__name__} keeps its {self.num_chains} chains apart from the data, "
                f"and site '{name}' has {num_laws} temperatures; use ContrastiveDivergence"
            )
        module = module_of(boltzmann.energy)
        if module is None:
            return
        if module is not boltzmann.energy:
            raise ValueError(
                f"{type(self).__name__} keeps its chains apart from the data, and the energy of "
                f"site '{name}' is conditional (functools.partial); use ContrastiveDivergence"
            )
        owner = self._owners.setdefault(name, weakref.ref(module))()
        if owner is not module:
            raise ValueError(
                f"the chains of '{name}' belong to another energy: give each its own name= in "
                "surrogate(), or use one objective per energy; build a sum of energies once, "
                "outside of the model"
            )
