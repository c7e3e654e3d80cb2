"""A kernel's face for ``pyro.infer.MCMC``: one chain, one dict of values at a time."""

from __future__ import annotations

__all__ = ["PyroFace"]

from collections import OrderedDict
from collections.abc import Callable

import torch
from pyro.infer.mcmc.mcmc_kernel import MCMCKernel
from torch import Tensor

from ..distributions import Boltzmann
from ..potential import Model, Potential
from ..ranks.group import alone
from .transition import run, seeded_generator, statistics


class PyroFace(MCMCKernel):
    """The target of a kernel, and the one chain that ``pyro.infer.MCMC`` asks it to move.

    Args:
        model: A Pyro model or a :class:`~pyro_ebm.Boltzmann`, if any.
        potential_fn: In its place, a function from a dict of unconstrained values to nats.

    Raises:
        ValueError: If both are given.
    """

    def __init__(
        self,
        model: Model | Boltzmann | None,
        potential_fn: Callable[[dict[str, Tensor]], Tensor] | None,
    ) -> None:
        if model is not None and potential_fn is not None:
            raise ValueError("a kernel takes a model or potential_fn, not both")
        self.target = model
        self.potential_fn = potential_fn
        self.transforms: dict | None = None
        self._initial_params: dict[str, Tensor] | None = None

    @property
    def model(self) -> Model | None:
        """The Pyro model, if the target is one."""
        return None if isinstance(self.target, Boltzmann) else self.target

    def bind(
        self, args: tuple, kwargs: dict, initial_params: dict[str, Tensor] | None
    ) -> Potential:
        """Builds the potential of the kernel's own target.

        Args:
            args: What the model takes.
            kwargs: What the model takes by name.
            initial_params: Unconstrained values with chains first, if given.
        """
        return Potential.of(
            self.target,
            args,
            kwargs,
            potential_fn=self.potential_fn,
            initial_params=initial_params,
        )

    @property
    def initial_params(self) -> dict[str, Tensor] | None:
        """The unconstrained values at which the one chain begins."""
        return self._initial_params

    @initial_params.setter
    def initial_params(self, params: dict[str, Tensor]) -> None:
        self._initial_params = params

    def setup(self, warmup_steps: int, *args: object, **kwargs: object) -> None:
        """Prepares the chain."""
        given = self._initial_params
        rows = None if given is None else {k: v.unsqueeze(0) for k, v in given.items()}
        self._potential = self.bind(args, kwargs, rows)
        self.transforms = {site.name: site.bijection.inv for site in self._potential.sites}
        z = self._potential.initialize(1) if rows is None else self._potential.starting_at(rows)
        self._state = self.init(self._potential, z)
        self._generator = seeded_generator(z.device)
        self._adaptation = self.adaptation(warmup_steps)
        self._warmup_left = warmup_steps
        self._record: list[dict[str, Tensor]] = []
        self._params = self._initial_params = self._values()

    def sample(self, params: dict[str, Tensor]) -> dict[str, Tensor]:
        """Moves the chain once, from ``params``."""
        if params is not self._params:
            z = self._potential.flatten({k: v.unsqueeze(0) for k, v in params.items()})
            tuned = self._state
            self._state = self.init(self._potential, z)._replace(
                step_size=tuned.step_size, metric=tuned.metric
            )
        adaptation = self._adaptation if self._warmup_left > 0 else None
        with alone():  # this driver makes the same chain on every rank
            ((self._state, info),) = run(
                self, self._potential, self._state, 1, self._generator, adaptation
            )
        self._warmup_left -= 1
        if self._warmup_left < 0:
            self._record.append(statistics(self._state, info))
        self._params = self._values()
        return self._params

    def _values(self) -> dict[str, Tensor]:
        return {k: v.squeeze(0) for k, v in self._potential.unflatten(self._state.z).items()}

    def logging(self) -> OrderedDict:
        """What the progress bar shows."""
        shown = OrderedDict([("step size", f"{self._state.step_size.item():.2e}")])
        if self._record and "acceptance_rate" in self._record[-1]:
            rate = torch.cat([draw["acceptance_rate"] for draw in self._record]).mean()
            shown["acc. prob"] = f"{rate.item():.3f}"
        return shown

    def diagnostics(self) -> dict:
        """Divergent draws, the mean acceptance rate, and every statistic of every draw."""
        stats = {
            name: torch.cat([draw[name] for draw in self._record]).cpu()
            for name in (self._record[0] if self._record else ())
        }
        found = {"divergences": stats["diverging"].nonzero().flatten().tolist() if stats else []}
        if "acceptance_rate" in stats:
            found["acceptance rate"] = stats["acceptance_rate"].mean().item()
        return {**found, "sample_stats": stats}

    def cleanup(self) -> None:
        """Forgets where the chain began, so that a next chain begins elsewhere."""
        self._initial_params = None
