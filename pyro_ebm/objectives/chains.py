"""What the objectives that run chains have in common: noise, moves, and whose chains they are."""

from __future__ import annotations

__all__ = ["Contrastive", "OneChainEach", "Persistent", "constrained", "unconstrained_data"]

import weakref
from collections.abc import Sequence

import torch
from pyro.infer import ELBO
from torch import Tensor

from ..discrete import bijection_of, discrete_target
from ..distributions import Boltzmann
from ..energies.base import module_of, reference_tensor
from ..kernels.base import Kernel
from ..kernels.transition import Info, run, seeded_generator
from ..potential import Potential
from .base import CONTRASTIVE, Objective
from .compiled import CompiledSteps
from .compiled_gradient import CompiledGradient
from .conditions import evaluate_each


class Contrastive(Objective):
    """An objective that runs a kernel on the energy.

    Args:
        kernel: A kernel without a target.
        num_steps: The number of steps per call.
        elbo: The ELBO that takes care of the rest of a model.
        compile: Whether steps, and the gradient of data against chains, are compiled.

    Raises:
        ValueError: If ``num_steps`` is not positive.
    """

    def __init__(
        self, kernel: Kernel, num_steps: int, elbo: ELBO | None, compile: bool = False
    ) -> None:
        super().__init__(elbo)
        if num_steps < 1:
            raise ValueError(f"num_steps must be at least 1, got {num_steps}")
        self.kernel = kernel
        self.num_steps = num_steps
        self.compile = compile
        self._steps = CompiledSteps(kernel, num_steps)
        self._compiled = CompiledGradient(self.evaluate)
        self.last_info: dict[str, Info] = {}
        """What happened in the last step of the chains of each site."""
        self._generators: dict[torch.device, torch.Generator] = {}
        self.noise: dict[str, tuple[Tensor, Tensor]] = {}
        """The mean and spread of the noise of each continuous site in unconstrained space,
        ``(D,)``."""

    def generator(self, device: torch.device) -> torch.Generator:
        """Returns where the randomness of this objective comes from."""
        if device not in self._generators:
            self._generators[device] = seeded_generator(device)
        return self._generators[device]

    def move(
        self, boltzmann: Boltzmann, batch_shape: Sequence[int], z: Tensor, name: str
    ) -> Tensor:
        """Moves the chains of a site by ``num_steps`` steps of the kernel.

        Args:
            boltzmann: The distribution of one point, or of the batch.
            batch_shape: The shape of the batch; there are as many chains as it has elements.
            z: Where they begin, in unconstrained space, with shape ``(C, D)``.
            name: The site.

        Returns:
            Where they are then.
        """
        generator = self.generator(z.device)
        if self.compile:
            walk = self._steps.find(boltzmann, batch_shape, z, name)
            if walk is not None:
                z, self.last_info[name] = walk(z, generator)
                return z
        potential = Potential.of_batch(boltzmann, batch_shape, z)
        state = self.kernel.init(potential, z)
        for moved, info in run(self.kernel, potential, state, self.num_steps, generator):
            state, self.last_info[name] = moved, info
        return state.z

    def evaluate(self, boltzmann: Boltzmann, x: Tensor, x_neg: Tensor) -> tuple[Tensor]:
        """Sets data against chains.

        Args:
            boltzmann: The distribution.
            x: Data, with shape ``(*batch, *event)``.
            x_neg: Where the chains are, with shape ``(*chains, *event)``.

        Returns:
            The surrogate in nats, with shape ``(*batch,)``.
        """
        raise NotImplementedError

    def contrast(self, boltzmann: Boltzmann, x: Tensor, x_neg: Tensor, name: str) -> Tensor:
        """Does that, by native code where the steps are such."""
        if self.compile and not x.requires_grad and not self._steps.obstacle(boltzmann, name):
            return self._compiled(boltzmann, x, x_neg, name=name)[0]
        return self.evaluate(boltzmann, x, x_neg)[0]

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
        z = self.move(boltzmann, batch_shape, start, name)
        x_neg = constrained(boltzmann, z).reshape(x.shape)
        return self.contrast(boltzmann, x, x_neg, name)

    def evaluate(  # noqa: D102
        self, boltzmann: Boltzmann, x: Tensor, x_neg: Tensor
    ) -> tuple[Tensor]:
        both = evaluate_each(Boltzmann.log_density, boltzmann, torch.stack([x, x_neg]))
        return (both[0] - both[1],)


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

    def __init__(
        self,
        kernel: Kernel,
        num_chains: int,
        num_steps: int,
        elbo: ELBO | None,
        compile: bool = False,
    ) -> None:
        super().__init__(kernel, num_steps, elbo, compile)
        if num_chains < 1:
            raise ValueError(f"num_chains must be at least 1, got {num_chains}")
        self.num_chains = num_chains
        self.chains: dict[str, Tensor] = {}
        """The chains of each site in unconstrained space, with shape ``(C, D)``."""
        self._owners: dict[str, weakref.ref] = {}

    def check_owner(self, boltzmann: Boltzmann, name: str) -> None:
        """Checks that chains are those of one energy, which is the same for all data.

        Raises:
            ValueError: If the energy is conditional, or the chains belong to another one.
        """
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
