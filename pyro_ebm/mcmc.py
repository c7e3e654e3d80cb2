"""Many chains at once, with the face of Pyro's own MCMC."""

from __future__ import annotations

__all__ = ["MCMC"]

import time
import warnings

import numpy as np
import torch
from pyro import poutine
from pyro.infer.mcmc.api import AbstractMCMC
from pyro.infer.mcmc.util import select_samples
from torch import Tensor
from tqdm.auto import tqdm

from .diagnostics import bulk_ess, nested_r_hat, split_r_hat
from .distributions import Boltzmann
from .engine import Compile
from .kernels.acceleration import History, Runner
from .kernels.adaptation import Adaptation
from .kernels.base import Kernel
from .kernels.hamiltonian import HMC
from .kernels.transition import seeded_generator, statistics
from .potential import Model


class MCMC(AbstractMCMC):
    r"""Runs a kernel on many chains at once: chains are a dimension of a tensor, not processes.

    Warmup adapts step size and metric over all chains together and then stops. Ctrl-C keeps the
    draws made so far. Noise comes from a generator seeded by torch's, so ``pyro.set_rng_seed``
    makes a run repeatable.

    Args:
        kernel: A kernel with a target (a Pyro model, a :class:`~pyro_ebm.Boltzmann` or
            ``potential_fn=``), or a target alone: then :class:`~pyro_ebm.kernels.HMC` samples it.
        num_samples: The number of draws to keep, per chain.
        warmup_steps: The number of steps to adapt in; ``num_samples`` if not given, as in Pyro.
        num_chains: The number of chains.
        initial_params: Unconstrained starting values, chains first; uniform in (-2, 2) if not
            given.
        num_superchains: If given, chains start in that many groups, each at one point, which
            nested R-hat needs; it must divide ``num_chains``.
        compile: How far to take the step up the rungs of :mod:`pyro_ebm.engine`: ``"auto"`` traces
            it into a graph, with the same numbers bit for bit, and compiles loops of steps to
            native code once what is left to do would take minutes otherwise; ``True`` compiles at
            once, which takes about ten seconds; ``False`` does neither. ``mcmc.engine`` says what
            was reached, and why.
        disable_progbar: Whether to be silent.

    Raises:
        ValueError: If a count is not positive, ``initial_params`` does not have ``num_chains``
            rows, or ``num_superchains`` does not divide ``num_chains``; and whatever the kernel's
            target raises.

    Example:
        >>> import pyro_ebm as ebm
        >>> kernel = ebm.kernels.MALA(ebm.Boltzmann(ebm.energies.Gaussian(torch.zeros(2), 1.0)))
        >>> mcmc = MCMC(kernel, 100, warmup_steps=100, num_chains=16, disable_progbar=True)
        >>> mcmc.run()
        >>> mcmc.get_samples(group_by_chain=True)["x"].shape
        torch.Size([16, 100, 2])
    """

    def __init__(
        self,
        kernel: Kernel | Model | Boltzmann,
        num_samples: int,
        warmup_steps: int | None = None,
        num_chains: int = 4,
        initial_params: dict[str, Tensor] | None = None,
        *,
        num_superchains: int | None = None,
        compile: Compile = "auto",
        disable_progbar: bool = False,
    ) -> None:
        warmup_steps = num_samples if warmup_steps is None else warmup_steps
        if num_samples < 1 or num_chains < 1 or warmup_steps < 0:
            raise ValueError(
                "num_samples and num_chains must be positive and warmup_steps not negative, got "
                f"{num_samples}, {num_chains} and {warmup_steps}"
            )
        if num_superchains is not None and num_chains % num_superchains:
            raise ValueError(
                f"num_superchains must divide num_chains, got {num_superchains} and {num_chains}"
            )
        for name, value in (initial_params or {}).items():
            if value.shape[:1] != (num_chains,):
                raise ValueError(
                    f"initial_params['{name}'] must have num_chains={num_chains} rows, got shape "
                    f"{tuple(value.shape)}"
                )
        kernel = kernel if isinstance(kernel, Kernel) else HMC(kernel)
        super().__init__(kernel, num_chains, transforms=None)
        self.num_samples = num_samples
        self.warmup_steps = warmup_steps
        self.initial_params = initial_params
        self.num_superchains = num_superchains
        self.compile = compile
        self.disable_progbar = disable_progbar
        self._runner: Runner | None = None
        self.warmup_time = 0.0
        self.sampling_time = 0.0

    @poutine.block
    def run(self, *args: object, **kwargs: object) -> None:
        """Draws the samples.

        Args:
            args: What the model takes.
            kwargs: What the model takes by name.

        Raises:
            KeyboardInterrupt: If interrupted before the first draw; later interrupts keep the
                draws.
        """
        self._args, self._kwargs = args, kwargs
        self.potential = self.kernel.bind(args, kwargs, self.initial_params)
        self.transforms = {site.name: site.bijection.inv for site in self.potential.sites}
        self.state = self.kernel.init(self.potential, self._start())
        self.generator = seeded_generator(self.state.z.device)
        began = time.perf_counter()
        with tqdm(
            total=self.warmup_steps + self.num_samples, disable=self.disable_progbar
        ) as progress:
            num_steps = self.warmup_steps + self.num_samples
            self._runner = Runner(self.kernel, self.potential, self.state, num_steps, self.compile)
            adaptation = self.kernel.adaptation(self.warmup_steps)
            self._warmup = self._draw(self.warmup_steps, "warmup", progress, adaptation)
            self.warmup_time = time.perf_counter() - began
            self._draws = self._draw(self.num_samples, "sample", progress, None)
        self.sampling_time = time.perf_counter() - began - self.warmup_time

    def _start(self) -> Tensor:
        if self.initial_params is not None:
            return self.potential.flatten(self.initial_params)
        groups = self.num_superchains or self.num_chains
        return self.potential.initialize(groups).repeat_interleave(
            self.num_chains // groups, dim=0
        )

    def _draw(
        self, num_steps: int, stage: str, progress: tqdm, adaptation: Adaptation | None
    ) -> _Draws:
        draws = _Draws(self.state.z, num_steps)
        progress.set_description(stage)
        try:
            for state, history in self._runner.run(
                self.state, num_steps, self.generator, adaptation
            ):
                self.state = state
                draws.append(history)
                progress.set_postfix_str(self._runner.rung.name, refresh=False)
                progress.update(len(history.z))
        except KeyboardInterrupt:
            if adaptation is not None or not draws.count:
                raise
            warnings.warn(
                f"interrupted after {draws.count} of {num_steps} draws: they are kept",
                stacklevel=3,
            )
        return draws

    @property
    def engine(self) -> str:
        """The rung of :mod:`pyro_ebm.engine` that the run reached, and why that one."""
        return "" if self._runner is None else str(self._runner.rung)

    @property
    def num_draws(self) -> int:
        """The number of draws per chain, fewer than asked for after an interrupt."""
        return self._draws.count

    @property
    def sample_stats(self) -> dict[str, Tensor]:
        """What happened at each draw, by ArviZ's names, with shape ``(chain, draw)``."""
        return self._draws.stats()

    @property
    def warmup_stats(self) -> dict[str, Tensor]:
        """What happened at each warmup step, with shape ``(chain, step)``."""
        return self._warmup.stats()

    def get_samples(
        self, num_samples: int | None = None, group_by_chain: bool = False
    ) -> dict[str, Tensor]:
        """Returns the draws by site, in the sites' own supports.

        Args:
            num_samples: If given, that many are resampled with replacement, as in Pyro.
            group_by_chain: Whether to keep chains apart.

        Returns:
            Draws of shape ``(chain * draw, *shape)``, or ``(chain, draw, *shape)``.
        """
        return select_samples(self._constrained(self._draws), num_samples, group_by_chain)

    def get_warmup(self) -> dict[str, Tensor]:
        """Returns the warmup steps by site, ``(chain, step, *shape)``: no sample of the target."""
        return self._constrained(self._warmup)

    def _constrained(self, draws: _Draws) -> dict[str, Tensor]:
        return self.potential.constrain(draws.z[:, : draws.count])

    def diagnostics(self) -> dict[str, dict]:
        """Returns effective sample size and R-hat per site, divergences and acceptance per chain.

        ``n_eff`` is :func:`~pyro_ebm.diagnostics.bulk_ess`, ``r_hat`` is rank-normalised and
        split; with ``num_superchains`` there is ``nested_r_hat`` too.
        """
        found: dict[str, dict] = {}
        for name, draws in self.get_samples(group_by_chain=True).items():
            found[name] = {"n_eff": bulk_ess(draws), "r_hat": split_r_hat(draws)}
            if self.num_superchains:
                found[name]["nested_r_hat"] = nested_r_hat(draws, self.num_superchains)
        stats = self.sample_stats
        width = len(str(self.num_chains - 1))
        chains = [f"chain {c:0{width}d}" for c in range(self.num_chains)]
        found["divergences"] = {
            chain: row.nonzero().flatten().tolist()
            for chain, row in zip(chains, stats["diverging"], strict=True)
        }
        if "acceptance_rate" in stats:
            rates = stats["acceptance_rate"].mean(1).tolist()
            found["acceptance rate"] = dict(zip(chains, rates, strict=True))
        return found

    def summary(self, prob: float = 0.9) -> None:
        """Prints mean, spread, quantiles, effective sample size and R-hat of every coordinate.

        Args:
            prob: The probability within the printed equal-tailed interval.
        """
        low, high = (1 - prob) / 2, (1 + prob) / 2
        rows = [["", "mean", "std", f"{low:.1%}", "50.0%", f"{high:.1%}", "n_eff", "r_hat"]]
        checks = self.diagnostics()
        for name, draws in self.get_samples().items():
            values = draws.double().reshape(len(draws), -1)
            quantiles = torch.from_numpy(
                np.quantile(values.cpu().numpy(), [low, 0.5, high], axis=0)
            ).to(values)
            columns = [values.mean(0), values.std(0), *quantiles]
            columns += [checks[name][key].flatten() for key in ("n_eff", "r_hat")]
            for i, row in enumerate(torch.stack(columns, dim=1).tolist()):
                rows.append([_label(name, draws.shape[1:], i), *(f"{v:.2f}" for v in row)])
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        for row in rows:
            print("  ".join(cell.rjust(w) for cell, w in zip(row, widths, strict=True)))  # noqa: T201
        num_divergences = sum(map(len, checks["divergences"].values()))
        print(f"\nNumber of divergences: {num_divergences}")  # noqa: T201


class _Draws:
    """Flat draws ``(C, N, D)`` and their statistics ``(C, N)``, filled from the left."""

    def __init__(self, z: Tensor, num_draws: int) -> None:
        self.z = z.new_empty(len(z), num_draws, z.shape[-1])
        self.buffers: dict[str, Tensor] = {}
        self.count = 0

    def append(self, history: History) -> None:
        end = self.count + len(history.z)
        self.z[:, self.count : end] = history.z.transpose(0, 1)
        for name, values in statistics(history, history.info).items():
            if name not in self.buffers:
                self.buffers[name] = values.new_empty(self.z.shape[:2])
            self.buffers[name][:, self.count : end] = values.T
        self.count = end

    def stats(self) -> dict[str, Tensor]:
        return {name: values[:, : self.count] for name, values in self.buffers.items()}


def _label(name: str, shape: torch.Size, flat_index: int) -> str:
    if not shape:
        return name
    index = torch.unravel_index(torch.tensor(flat_index), shape)
    return f"{name}[{','.join(str(i.item()) for i in index)}]"
