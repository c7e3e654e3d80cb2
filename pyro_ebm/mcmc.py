"""Many chains at once, with the face of Pyro's own MCMC."""

from __future__ import annotations

__all__ = ["MCMC"]

import contextlib
import functools
import os
import time
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from .arguments import check_count
from .distributions import Boltzmann
from .engine import Compile
from .kernels.acceleration import History, Runner
from .kernels.adaptation import Adaptation
from .kernels.base import Kernel
from .kernels.chees import ChEES
from .kernels.gibbs import Gibbs
from .kernels.transition import State, blocks, seeded_generator, statistics
from .layout import cat_in_order, chains_innermost
from .potential import Model
from .ranks.errors import agreed, first_ahead
from .ranks.group import gathered, largest, num_ranks, own_stream, rank
from .runs.checkpoint import (
    Checkpoints,
    plain,
    random_state,
    rebuilt,
    set_random_state,
)
from .runs.draws import Draws, refuse_draws
from .runs.fingerprint import SETTINGS, of_run, same_run, same_target
from .runs.results import Results, tell_kept
from .runs.sharding import own_chains, parts_of_all_ranks, take_own, two_states, widest
from .runs.signals import Signals
from .runs.turns import in_turn
from .starting import check_rows

HANDED_OVER_STEPS = 64
HANDED_OVER_NUMBERS = 2**23
"""How many steps are stored at once: so many, and no more than that many numbers."""


class MCMC(Results):
    r"""Runs a kernel on many chains at once: chains are a dimension of a tensor, not processes.

    Warmup adapts step size and metric over all chains together and then stops. Of the chains that
    a quarter of it leaves hopelessly far above the others, ``mcmc.rejoined`` says which went on
    from the places of others (:mod:`~pyro_ebm.kernels.lost`). Ctrl-C keeps the
    draws made so far. Noise comes from a generator seeded by torch's, so ``pyro.set_rng_seed``
    makes a run repeatable.

    After :func:`pyro_ebm.ranks.start` under ``torchrun`` the chains are shared by ranks, each with
    noise of its own: tuned as one, and without a message from the end of warmup to the last draw.
    Then each rank has the draws of all, in memory or in the one store that all have written.

    Args:
        kernel: A kernel with a target (a Pyro model, a :class:`~pyro_ebm.Boltzmann` or
            ``potential_fn=``), or a target alone: then :class:`~pyro_ebm.kernels.ChEES` samples
            it, with ``metric_rank=None``, and nothing needs to be tuned; a discrete one
            :class:`~pyro_ebm.kernels.Gibbs`.
        num_samples: The number of draws to keep, per chain.
        warmup_steps: The number of steps to adapt in; ``num_samples`` if not given, as in Pyro.
        num_chains: The number of chains, on all ranks.
        initial_params: Unconstrained starting values, chains first; uniform in (-2, 2) if not
            given, and discrete ones uniform over all points.
        num_superchains: If given, chains start in that many groups, each at one point, which
            nested R-hat needs; it must divide ``num_chains``. Groups of which a chain is in
            ``mcmc.rejoined`` are no longer independent of one another.
        compile: How far to take the step up the rungs of :mod:`pyro_ebm.engine`: ``"auto"`` traces
            it into a graph, with the same numbers bit for bit, and compiles loops of steps to
            native code once what is left to do would take longer otherwise; ``True`` compiles at
            once, which takes about ten seconds; ``False`` does neither. ``mcmc.engine`` says
            what was reached, and why.
        disable_progbar: Whether to be silent.
        thin: Of how many steps the last is kept: ``num_samples * thin`` steps are made.
            Divergences of the steps between are counted.
        save: The names of the sites to keep, all if not given; with ``()`` none, and only moments
            remain, of every site and chain (``mcmc.draws.moments()``).
        store: A folder to stream the draws to, in place of memory; for as many chains as there is
            disk. :meth:`pyro_ebm.Draws.open` reads it, after a crash too.
        checkpoint: A folder with which a run survives its process: :meth:`run` goes on from what
            it finds there, or starts; to more draws too, after the same ``warmup_steps``. Draws
            then go to a store, ``draws`` within it if none is given.
        checkpoint_every: The seconds from one checkpoint to the next; with 0 there is one after
            each block of steps.

    Raises:
        ValueError: If a count is not positive, ``initial_params`` does not have ``num_chains``
            rows for each site, or some where the potential is not finite, ``num_superchains``
            does not divide ``num_chains`` or either is smaller than the number of ranks, ``save``
            names no site,
            ``store`` holds draws already, or ``checkpoint`` is that of another run, version or
            dtype; and whatever the kernel's target raises.
        OSError: If ``checkpoint`` cannot be written, before the first step.

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
        checkpoint: str | os.PathLike | None = None,
        checkpoint_every: float = 30.0,
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
        if initial_params is not None:
            check_rows(initial_params, num_chains)
        kernel = kernel if isinstance(kernel, Kernel) else _kernel_of(kernel)
        super().__init__(kernel, num_chains, transforms=None)
        self.num_samples = int(num_samples)
        self.warmup_steps = warmup_steps
        self.initial_params = initial_params
        self.num_superchains = num_superchains
        self.compile = compile
        self.disable_progbar = disable_progbar
        self.thin, self.save = thin, save
        self.store = None if store is None else Path(store)
        self._checkpoints: Checkpoints | None = None
        if checkpoint is not None:
            self._checkpoints = Checkpoints(checkpoint, every=checkpoint_every)
            self.store = self.store or self._checkpoints.folder / "draws"
        self._runner: Runner | None = None
        self._loaded: dict[str, Any] | None = None
        self._kept: dict[str, Any] | None = None
        self._engine = ""
        self.rejoined = torch.zeros(num_chains, dtype=torch.bool)
        self.warmup_time = 0.0
        self.sampling_time = 0.0

    @in_turn
    def run(self, *args: object, **kwargs: object) -> None:
        """Draws the samples; with a ``checkpoint``, those that are left to draw.

        Ctrl-C and SIGTERM then wait for the end of a block of steps, at which it is written; a
        second one does not wait. Runs of several threads take turns, and no thread may use Pyro
        otherwise while another one runs: to run at the same time takes processes.

        Args:
            args: What the model takes.
            kwargs: What the model takes by name.

        Raises:
            KeyboardInterrupt: If interrupted before the first draw, or on several ranks; later
                interrupts keep the draws.
            RuntimeError: If another process runs in ``checkpoint``, or another rank has ended.
            SystemExit: After SIGTERM with a ``checkpoint``: status 143.
            OSError: If the disk is full; it says what was kept.
            Exception: What the target raises, with a note of what was drawn before, which is kept.
        """
        self._args, self._kwargs = args, kwargs
        found, self._loaded = self._loaded, None
        self._own = own_chains(self.num_chains, self.num_superchains)
        with contextlib.ExitStack() as stack:
            with first_ahead():
                if self._checkpoints is not None:
                    if rank() == 0:
                        stack.enter_context(self._checkpoints.held())
                    found = self._checkpoints.load() or found
                if found is None and self.store is not None:
                    refuse_draws(self.store)
            first, found = self._bind(found)
            spent = found["spent"] if found else 0.0
            self._began = time.perf_counter() - spent
            if found and found["finished"] and found["step"] == self._num_steps:
                self._go_on(found)
            else:
                with Signals() if self._checkpoints else contextlib.nullcontext() as self._signals:
                    self._move(first, found)
                spent = time.perf_counter() - self._began
            self._warmup, self._draws = self._warmup.of_all_ranks(), self.draws.of_all_ranks()
        self.sampling_time = spent - self.warmup_time

    def _bind(self, found: dict[str, Any] | None) -> tuple[State, dict[str, Any] | None]:
        """Makes the first state of the run, which every run that goes on with it makes again.

        Returns with it what this rank goes on from, if there is something.
        """
        random = random_state()
        try:
            parts = found.get("parts", [found]) if found else []
            at_first = parts[0]["at_first"]["random"] if found else random
            set_random_state(at_first)
            self.potential = self.kernel.bind(self._args, self._kwargs, self.initial_params)
            self.transforms = {site.name: site.bijection.inv for site in self.potential.sites}
            settings = {name: getattr(self, name) for name in SETTINGS}
            self._fingerprint = of_run(self.kernel, self.potential, **settings)
            if found:
                same_run(parts[0]["fingerprint"], self._fingerprint)
            start = self._start()
            first = self.kernel.init(self.potential, chains_innermost(start[self._own]))
            if found:
                two = functools.partial(two_states, self.kernel, self.potential, start)
                found = take_own(found, self._own, two)
                same_target(found["at_first"]["potential"], first.potential)
        except Exception:
            set_random_state(random)
            raise
        self._at_first = {"random": at_first, "potential": first.potential}
        self.state = first
        with own_stream():
            self.generator = seeded_generator(first.z.device)
        return first, found

    @property
    def _num_steps(self) -> int:
        return self.warmup_steps + self.num_samples * self.thin

    def _move(self, first: State, found: dict[str, Any] | None) -> None:
        """Makes all steps, or those that are left."""
        self._runner = Runner(self.kernel, self.potential, first, self._num_steps, self.compile)
        adaptation = self.kernel.adaptation(self.warmup_steps)
        if found:
            waiting = self._go_on(found, adaptation)
        else:
            self._step, waiting = 0, []
            self._warmup = self._draws = None
            self._keep(adaptation, [])
            self._save()  # before there are draws, so that a folder with draws has a checkpoint
            self._make_draws({}, {})
        silent = self.disable_progbar or rank() > 0
        with tqdm(total=self._num_steps, initial=self._step, disable=silent) as progress:
            if self._step <= self.warmup_steps:
                self._draw(self._warmup, "warmup", progress, waiting, adaptation)
                if adaptation.rejoined is not None:
                    self.rejoined = gathered(adaptation.rejoined.cpu())
                self.warmup_time = time.perf_counter() - self._began
                waiting = []
            self._draw(self.draws, "sample", progress, waiting, None)

    def _keep(
        self, adaptation: Adaptation | None, waiting: list[History], *, finished: bool = False
    ) -> None:
        """Notes, at the end of a block, all that the next one needs."""
        self._engine = str(self._runner.rung)
        self._kept = {
            "fingerprint": self._fingerprint,
            "at_first": self._at_first,
            "finished": finished,
            "step": self._step,
            "state": self.state,
            "adaptation": None if adaptation is None else adaptation.state_dict(),
            "generator": self.generator.get_state(),
            "random": random_state(),
            "runner": self._runner.state_dict(),
            "engine": self._engine,
            "waiting": list(waiting),
            "warmup": {} if self._warmup is None else self._warmup.state_dict(),
            "draws": {} if self._draws is None else self._draws.state_dict(),
            "rejoined": self.rejoined,
            "warmup_time": self.warmup_time,
            "spent": time.perf_counter() - self._began,
        }

    def _go_on(self, found: dict[str, Any], adaptation: Adaptation | None = None) -> list[History]:
        """Goes to where the run was, and returns the steps that draws have not taken in."""
        device = self.state.z.device
        self._kept = found
        self._step, self.rejoined = found["step"], found["rejoined"]
        self.warmup_time, self._engine = found["warmup_time"], found["engine"]
        self.state = rebuilt(found["state"], device)
        self._make_draws(rebuilt(found["warmup"], device), rebuilt(found["draws"], device))
        if adaptation is not None:
            left = {"steps_left": self._num_steps - self._step}
            self._runner.load_state_dict({**found["runner"], **left}, self.state)
            if found["adaptation"] is not None:
                adaptation.load_state_dict(rebuilt(found["adaptation"], device))
        self.generator.set_state(found["generator"])
        set_random_state(found["random"])
        return rebuilt(found["waiting"], device)

    def _save(self, *, due: bool = True) -> None:
        if self._checkpoints is not None and due:
            beside = (self.store, self.store / "warmup") if self._step else ()
            of_all = parts_of_all_ranks(self._kept)
            with agreed():
                if of_all is not None:
                    self._checkpoints.save(self._step, of_all, beside)

    def state_dict(self) -> dict[str, Any]:
        """Returns what a run needs to go on, as it was after the last whole block of steps.

        It is tensors, numbers and text in dicts and lists; of a ``store``, only where draws are.

        Raises:
            ValueError: If nothing was run yet.
        """
        if self._kept is None:
            raise ValueError("there is no state before a run")
        return plain(self._kept)

    def load_state_dict(self, found: dict[str, Any]) -> None:
        """Has the next :meth:`run` go on from where another one was.

        Args:
            found: What its :meth:`state_dict` returned.
        """
        self._loaded = found

    def _start(self) -> Tensor:
        if self.initial_params is not None:
            return self.potential.starting_at(self.initial_params)
        groups = self.num_superchains or self.num_chains
        return self.potential.initialize(groups).repeat_interleave(
            self.num_chains // groups, dim=0
        )

    def _make_draws(self, warmup: dict[str, Any], draws: dict[str, Any]) -> None:
        of_warmup = None if self.store is None else self.store / "warmup"
        own = self._own if num_ranks() > 1 else None
        make = functools.partial(
            Draws, self.potential, num_chains=self.num_chains, save=self.save, own=own
        )
        with self._writing():
            self._warmup = make(self.warmup_steps, store=of_warmup, going_on=warmup)
            self._draws = make(self.num_samples, thin=self.thin, store=self.store, going_on=draws)

    def _writing(self) -> contextlib.AbstractContextManager:
        return self._checkpoints.advising() if self._checkpoints else contextlib.nullcontext()

    def _draw(
        self,
        draws: Draws,
        stage: str,
        progress: tqdm,
        waiting: list[History],
        adaptation: Adaptation | None,
    ) -> None:
        num_steps, interrupted = draws.num_draws * draws.thin, False
        done = self._step - (0 if adaptation is not None else self.warmup_steps)
        at_once = max(1, min(HANDED_OVER_STEPS, HANDED_OVER_NUMBERS // self.state.z.numel()))
        progress.set_description(stage)
        try:
            z = widest(self.state.z, self.num_chains, self.num_superchains)
            for length in blocks(z, num_steps, done):
                with self._keeping(draws, stage, waiting):
                    for state, history in self._runner.block(
                        self.state, length, self.generator, adaptation
                    ):
                        self.state = state
                        waiting.append(history)
                        if sum(len(h.z) for h in waiting) >= at_once:
                            self._hand_over(draws, waiting)
                        progress.set_postfix_str(self._runner.rung.name, refresh=False)
                        progress.update(len(history.z))
                self._step += length
                self._end_block(draws, adaptation, waiting)
        except KeyboardInterrupt:
            interrupted = True
        self._hand_over(draws, waiting)
        if interrupted:
            if adaptation is not None or not draws.count or num_ranks() > 1:
                raise KeyboardInterrupt
            warnings.warn(
                f"interrupted after {draws.count} of {draws.num_draws} draws: they are kept",
                stacklevel=5,
            )
        elif adaptation is None:
            self._keep(None, [], finished=True)
            self._save()

    @contextlib.contextmanager
    def _keeping(self, draws: Draws, stage: str, waiting: list[History]) -> Iterator[None]:
        """Keeps all steps made before an error, which goes up as it is, with a note of that."""
        try:
            yield
        except Exception as error:
            spent = time.perf_counter() - self._began
            self.warmup_time = self.warmup_time if draws is self._draws else spent
            self.sampling_time = spent - self.warmup_time
            with contextlib.suppress(Exception):  # the first error is the one to tell of
                self._hand_over(draws, waiting)
                if num_ranks() == 1 and self._checkpoints is not None:
                    self._save(due=self._checkpoints.step != self._step)
            tell_kept(error, stage, draws, self._checkpoints)
            raise

    def _end_block(
        self, draws: Draws, adaptation: Adaptation | None, waiting: list[History]
    ) -> None:
        if self._checkpoints is None:
            self._keep(adaptation, waiting)
            return
        by_clock = self._checkpoints.due and rank() == 0  # which alone writes
        # On any rank: all save at once.
        is_due, received = largest(int(by_clock), self._signals.received or 0)
        self._signals.received = received or None
        due_now = bool(is_due or received)
        if due_now and num_ranks() > 1:  # whose blocks are not ready at the same steps
            self._hand_over(draws, waiting)
        self._keep(adaptation, waiting)
        self._save(due=due_now)
        self._signals.deliver()

    def _hand_over(self, draws: Draws, waiting: list[History]) -> None:
        if not waiting:
            return
        stats = [statistics(history, history.info) for history in waiting]
        joined = {name: cat_in_order([one[name] for one in stats]) for name in stats[0]}
        with self._writing():
            draws.append(cat_in_order([history.z for history in waiting]), joined)
        waiting.clear()

    @property
    def engine(self) -> str:
        """The rung of :mod:`pyro_ebm.engine` that the run reached, and why that one."""
        return self._engine


def _kernel_of(target: Model | Boltzmann) -> Kernel:
    if isinstance(target, Boltzmann) and target.support.is_discrete:
        return Gibbs(target)
    return ChEES(target, metric_rank=None)
