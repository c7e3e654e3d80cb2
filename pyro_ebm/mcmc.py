"""Many chains at once, with the face of Pyro's own MCMC."""

from __future__ import annotations

__all__ = ["MCMC"]

import os
import time
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from pyro import poutine
from pyro.infer.mcmc.api import AbstractMCMC
from pyro.infer.mcmc.util import select_samples
from torch import Tensor
from tqdm.auto import tqdm

from .arguments import check_count
from .diagnostics import bulk_ess, nested_r_hat, split_r_hat
from .distributions import Boltzmann
from .draws import Draws
from .engine import Compile
from .kernels.acceleration import History, Runner
from .kernels.adaptation import Adaptation
from .kernels.base import Kernel
from .kernels.chees import ChEES
from .kernels.gibbs import Gibbs
from .kernels.transition import seeded_generator, statistics
from .layout import cat_in_order, chains_innermost
from .potential import Model

HANDED_OVER_STEPS = 64
HANDED_OVER_NUMBERS = 2**23
"""How many steps are stored at once: so many, and no more than that many numbers."""


class MCMC(AbstractMCMC):
    r"""Runs a kernel on many chains at once: chains are a dimension of a tensor, not processes.

    Warmup adapts step size and metric over all chains together and then stops. Of the chains that
    a quarter of it leaves hopelessly far above the others, ``mcmc.rejoined`` says which went on
    from the places of others (:mod:`~pyro_ebm.kernels.lost`). Ctrl-C keeps the
    draws made so far. Noise comes from a generator seeded by torch's, so ``pyro.set_rng_seed``
    makes a run repeatable.

    Args:
        kernel: A kernel with a target (a Pyro model, a :class:`~pyro_ebm.Boltzmann` or
            ``potential_fn=``), or a target alone: then :class:`~pyro_ebm.kernels.ChEES` samples
            it, with ``metric_rank=None``, and nothing needs to be tuned; a discrete one
            :class:`~pyro_ebm.kernels.Gibbs`.
        num_samples: The number of draws to keep, per chain.
        warmup_steps: The number of steps to adapt in; ``num_samples`` if not given, as in Pyro.
        num_chains: The number of chains.
        initial_params: Unconstrained starting values, chains first; uniform in (-2, 2) if not
            given, and discrete ones uniform over all points.
        num_superchains: If given, chains start in that many groups, each at one point, which
            nested R-hat needs; it must divide ``num_chains``. Groups of which a chain is in
            ``mcmc.rejoined`` are no longer independent of one another.
        compile: How far to take the step up the rungs of :mod:`pyro_ebm.engine`: ``"auto"`` traces
            it into a graph, with the same numbers bit for bit, and compiles loops of steps to
            native code once what is left to do would take longer otherwise; ``True`` compiles at
            once, which takes five to ten seconds; ``False`` does neither. ``mcmc.engine`` says
            what was reached, and why.
        disable_progbar: Whether to be silent.
        thin: Of how many steps the last is kept: ``num_samples * thin`` steps are made.
            Divergences of the steps between are counted.
        save: The names of the sites to keep, all if not given; with ``()`` none, and only moments
            remain, of every site and chain (``mcmc.draws.moments()``).
        store: A folder to stream the draws to, in place of memory; for as many chains as there is
            disk. :meth:`pyro_ebm.Draws.open` reads it, after a crash too.

    Raises:
        ValueError: If a count is not positive, ``initial_params`` does not have ``num_chains``
            rows, ``num_superchains`` does not divide ``num_chains``, ``save`` names no site, or
            ``store`` holds draws already; and whatever the kernel's target raises.

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
        thin: int = 1,
        save: Sequence[str] | None = None,
        store: str | os.PathLike | None = None,
    ) -> None:
        warmup_steps = num_samples if warmup_steps is None else warmup_steps
        check_count("num_samples", num_samples)
        check_count("num_chains", num_chains)
        check_count("warmup_steps", warmup_steps, least=0)
        check_count("thin", thin)
        if num_superchains is not None:
            check_count("num_superchains", num_superchains)
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
        kernel = kernel if isinstance(kernel, Kernel) else _kernel_of(kernel)
        super().__init__(kernel, num_chains, transforms=None)
        self.num_samples = num_samples
        self.warmup_steps = warmup_steps
        self.initial_params = initial_params
        self.num_superchains = num_superchains
        self.compile = compile
        self.disable_progbar = disable_progbar
        self.thin, self.save = thin, save
        self.store = None if store is None else Path(store)
        self._runner: Runner | None = None
        self.rejoined = torch.zeros(num_chains, dtype=torch.bool)
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
        self.state = self.kernel.init(self.potential, chains_innermost(self._start()))
        self.generator = seeded_generator(self.state.z.device)
        began = time.perf_counter()
        num_steps = self.warmup_steps + self.num_samples * self.thin
        of_warmup = None if self.store is None else self.store / "warmup"
        self._warmup = self._draws_of(self.warmup_steps, 1, of_warmup)
        self.draws = self._draws_of(self.num_samples, self.thin, self.store)
        with tqdm(total=num_steps, disable=self.disable_progbar) as progress:
            self._runner = Runner(self.kernel, self.potential, self.state, num_steps, self.compile)
            adaptation = self.kernel.adaptation(self.warmup_steps)
            self._draw(self._warmup, "warmup", progress, adaptation)
            if adaptation.rejoined is not None:
                self.rejoined = adaptation.rejoined.cpu()
            self.warmup_time = time.perf_counter() - began
            self._draw(self.draws, "sample", progress, None)
        self.sampling_time = time.perf_counter() - began - self.warmup_time

    def _start(self) -> Tensor:
        if self.initial_params is not None:
            return self.potential.flatten(self.initial_params)
        groups = self.num_superchains or self.num_chains
        return self.potential.initialize(groups).repeat_interleave(
            self.num_chains // groups, dim=0
        )

    def _draws_of(self, num_draws: int, thin: int, store: Path | None) -> Draws:
        return Draws(
            self.potential, num_draws, self.num_chains, thin=thin, save=self.save, store=store
        )

    def _draw(
        self, draws: Draws, stage: str, progress: tqdm, adaptation: Adaptation | None
    ) -> None:
        num_steps, waiting, interrupted = draws.num_draws * draws.thin, [], False
        at_once = max(1, min(HANDED_OVER_STEPS, HANDED_OVER_NUMBERS // self.state.z.numel()))
        progress.set_description(stage)
        try:
            for state, history in self._runner.run(
                self.state, num_steps, self.generator, adaptation
            ):
                self.state = state
                waiting.append(history)
                if sum(len(h.z) for h in waiting) >= at_once:
                    _hand_over(draws, waiting)
                progress.set_postfix_str(self._runner.rung.name, refresh=False)
                progress.update(len(history.z))
        except KeyboardInterrupt:
            interrupted = True
        _hand_over(draws, waiting)
        if interrupted:
            if adaptation is not None or not draws.count:
                raise KeyboardInterrupt
            warnings.warn(
                f"interrupted after {draws.count} of {draws.num_draws} draws: they are kept",
                stacklevel=3,
            )

    @property
    def engine(self) -> str:
        """The rung of :mod:`pyro_ebm.engine` that the run reached, and why that one."""
        return "" if self._runner is None else str(self._runner.rung)

    @property
    def num_draws(self) -> int:
        """The number of draws per chain, fewer than asked for after an interrupt."""
        return self.draws.count

    @property
    def sample_stats(self) -> dict[str, Tensor]:
        """What happened at each draw, by ArviZ's names, with shape ``(chain, draw)``."""
        return self.draws.stats()

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
        values = self.draws.values()
        return select_samples(values, num_samples, group_by_chain) if values else {}

    def get_warmup(self) -> dict[str, Tensor]:
        """Returns the warmup steps by site, ``(chain, step, *shape)``: no sample of the target."""
        return self._warmup.values()

    def diagnostics(self) -> dict[str, dict]:
        """Returns effective sample size and R-hat per site, divergences and acceptance per chain.

        ``n_eff`` is :func:`~pyro_ebm.diagnostics.bulk_ess`, ``r_hat`` is rank-normalised and
        split; with ``num_superchains`` there is ``nested_r_hat`` too. Of a site that was not saved
        there is the classical R-hat alone, from its moments, and without saved sites no list of
        the divergent draws (``mcmc.draws.totals()`` counts them).
        """
        found: dict[str, dict] = {}
        for name, draws in self.get_samples(group_by_chain=True).items():
            found[name] = {"n_eff": bulk_ess(draws), "r_hat": split_r_hat(draws)}
            if self.num_superchains:
                found[name]["nested_r_hat"] = nested_r_hat(draws, self.num_superchains)
        for name, r_hat in self.draws.r_hat().items():
            found.setdefault(name, {"r_hat": r_hat})
        totals = self.draws.totals()
        width = len(str(self.num_chains - 1))
        chains = [f"chain {c:0{width}d}" for c in range(self.num_chains)]
        if "diverging" in self.sample_stats:
            found["divergences"] = {
                chain: row.nonzero().flatten().tolist()
                for chain, row in zip(chains, self.sample_stats["diverging"], strict=True)
            }
        if "acceptance_rate" in totals:
            rates = (totals["acceptance_rate"] / self.draws.num_steps).tolist()
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
        num_divergences = int(self.draws.totals()["diverging"].sum())
        print(f"\nNumber of divergences: {num_divergences}")  # noqa: T201
        if num_rejoined := int(self.rejoined.sum()):
            print(f"Chains lost in warmup that rejoined the others: {num_rejoined}")  # noqa: T201


def _kernel_of(target: Model | Boltzmann) -> Kernel:
    if isinstance(target, Boltzmann) and target.support.is_discrete:
        return Gibbs(target)
    return ChEES(target, metric_rank=None)


def _hand_over(draws: Draws, waiting: list[History]) -> None:
    if waiting:
        stats = [statistics(history, history.info) for history in waiting]
        joined = {name: cat_in_order([one[name] for one in stats]) for name in stats[0]}
        draws.append(cat_in_order([history.z for history in waiting]), joined)
        waiting.clear()


def _label(name: str, shape: torch.Size, flat_index: int) -> str:
    if not shape:
        return name
    index = torch.unravel_index(torch.tensor(flat_index), shape)
    return f"{name}[{','.join(str(i.item()) for i in index)}]"
