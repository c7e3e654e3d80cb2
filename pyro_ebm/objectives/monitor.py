r"""Watching a training run: what each update did, and when to stop.

The loss of most objectives says little: that of contrastive divergence is a gap between two
energies, near zero in good training and in bad; the negative log-likelihood alone shows progress.
So each is recorded under its own name, beside what does say something, in nats per point and in
pure numbers; and a run that breaks is stopped and put back to where it was sound.
"""

from __future__ import annotations

__all__ = ["Monitor", "TrainingDiverged"]

import math
import statistics
from collections.abc import Sequence
from typing import Any, NamedTuple

import pyro
import torch
from pyro.infer import SVI
from pyro.infer.util import torch_item, zero_grads
from torch import Tensor

from ..distributions import Boltzmann
from ..energies.base import trainable_parameters
from ..ranks.divided import whole
from .base import LIKELIHOOD, Evaluation
from .checkpoint import Checkpoint, objective_of, optimizer_and_objective, set_both, tensors
from .readings import READINGS, Readings, over_ranks
from .records import Record

MIN_ACCEPTANCE = 0.01
"""Chains that accept less than this stand still."""

OF_ALL = "gradient norm of all parameters"

ADVICE = {
    "number": "a smaller lr, clip_norm in the optimizer, or data without outliers",
    "gap": "a smaller lr, more kernel steps per update, clip_norm in the optimizer, or an energy "
    "that is held back (a smaller base_scale, weight decay)",
    "drift": "an energy that holds its chains (a finite, smaller base_scale), a smaller lr, a "
    "smaller step_size of the kernel, or reinit_prob",
    "acceptance": "a smaller step_size of the kernel, a smaller lr, or a kernel that is adapted",
}


class TrainingDiverged(RuntimeError):
    """Training broke, and was put back to the last sound step.

    Args:
        message: What was seen, where training went back to, and what to try.
        step: The update at which it was seen, counted from 0.
        good_step: The number of updates behind the state that was put back.
        history: All records up to the end, those of the broken steps too.

    Example:
        >>> TrainingDiverged("the loss is nan", 7, 0, {"loss": [1.0]}).good_step
        0
    """

    def __init__(
        self, message: str, step: int, good_step: int, history: dict[str, Record]
    ) -> None:
        super().__init__(message)
        self.step = step
        self.good_step = good_step
        self.history = history


class _Alarm(NamedTuple):
    seen: str
    kind: str


class Monitor:
    r"""Makes the updates of an SVI, records what they do, and stops a run that breaks.

    ``monitor.step`` stands in for ``svi.step``. Of each update it records, before it is made,

    ================= =======================================================================
    the loss          as ``svi.step`` returns it, under the objective's ``loss_name``; where it
                      stands in for no site, as all are normalised, it is that of the ELBO: "loss"
    "gradient norm"   of the energies' parameters, before it is clipped
    "data energy"     the mean of :math:`E/T` over the batch, in nats
    "chain energy"    the same over the chains
    "energy gap"      the first less the second. No measure of progress: it is near zero for a
                      good energy, and for any other whose chains follow it
    "acceptance"      the mean acceptance probability of the chains' last step, or, of a kernel
                      that does not reject, the fraction of chains that moved
    "chain distance"  from the mean of the chains to that of the data, :math:`d`
    "chain spread"    the root mean square distance of the chains from their mean, :math:`s`
    ================= =======================================================================

    as far as the objective has chains. The last two are in unconstrained space, in units of the
    spread of the data, which is their own root mean square distance from their mean. With several
    sites each record has the name of its site behind it. A record is a sequence of floats, one for
    each update, in half a MiB at most: all are as they were for 65,536 updates, and later the last
    8,192; of those before, one of each 2, 4, 8, ... stands for its neighbours, so that figures,
    means and medians of a whole run stay right.

    Training has diverged if

    - the loss, the gradient or an energy is not finite;
    - the gap is, for ``patience`` steps on end, further from zero than ``max_gap`` times
      :math:`\sqrt{D}` nats, about the spread of a density's own energy in D dimensions, and than
      ``max_gap`` times the median of its size so far;
    - the chains have left, with :math:`\sqrt{d^2 + s^2}` above ``max_drift`` as long;
    - their acceptance has been below 0.01 for ten times as long: a step size that is being tuned
      has time to come down.

    On several ranks records are means over ranks, the same on all, and all ranks stop together.

    Then no update is made. Parameters, optimizer, chains with their random generators and the step
    size of the kernel are put back to a step that was sound at least ``keep_every`` steps before
    the first sign, or to the beginning, and :class:`TrainingDiverged` is raised. From there the
    run may go on with another ``svi.optim``. Torch's global random state is left as it is.

    Args:
        svi: What to train with; its loss is an objective, or an ELBO with one number for a loss.
        keep_every: After how many steps the state is kept anew, in memory.
        patience: For how many steps a sign of divergence has to stay.
        max_gap: The gap that is too large, as a multiple of its usual size.
        max_drift: The distance at which chains have left, in units of the spread of the data.

    Raises:
        ValueError: If a number is not positive.

    Example:
        >>> import pyro_ebm as ebm
        >>> p = ebm.Boltzmann(ebm.energies.MLP(event_shape=(2,)))
        >>> def model(x):
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("x", p, obs=x)
        >>> objective = ebm.objectives.PersistentCD(ebm.kernels.MALA(step_size=0.1), num_chains=64)
        >>> svi = SVI(model, ebm.no_guide, pyro.optim.Adam({"lr": 1e-3}), loss=objective)
        >>> monitor = Monitor(svi)
        >>> loss = monitor.step(torch.randn(32, 2))
        >>> list(monitor.history)[:3]
        ['contrastive loss', 'gradient norm', 'data energy']
    """

    def __init__(
        self,
        svi: SVI,
        *,
        keep_every: int = 100,
        patience: int = 25,
        max_gap: float = 20.0,
        max_drift: float = 10.0,
    ) -> None:
        self.keep_every, self.patience = keep_every, patience
        self.max_gap, self.max_drift = max_gap, max_drift
        for name in ("keep_every", "patience", "max_gap", "max_drift"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        self.svi = svi
        self.history: dict[str, Record] = {}
        """The records so far by name, one number for each update, long ago thinned."""
        self.num_steps = 0
        """The number of updates so far."""
        self._names: set[str] = set()
        self._good = self._latest = Checkpoint(svi, 0)
        self._signs: dict[str, int] = {}
        self._readings = Readings(svi)

    def step(self, *args: object, **kwargs: object) -> float:
        """Makes one update.

        Args:
            args: What the model and its guide take.
            kwargs: What they take by name.

        Returns:
            The loss, as ``svi.step`` returns it.

        Raises:
            TrainingDiverged: If training has diverged; it was put back.
        """
        svi = self.svi
        if self.num_steps == 0:
            self._good = self._latest = Checkpoint(svi, 0, self._names)
        elif self.num_steps - self._latest.step >= self.keep_every and not any(
            self._signs.values()
        ):
            self._good = self._latest
            self._latest = Checkpoint(svi, self.num_steps, self._names)
        with pyro.poutine.trace(param_only=True) as capture:
            loss = torch_item(svi.loss_and_grads(svi.model, svi.guide, *args, **kwargs))
        sites = capture.trace.nodes.values()
        params = dict.fromkeys(site["value"].unconstrained() for site in sites)
        self._names |= capture.trace.nodes.keys()
        here = tensors([svi], self._names)  # those seen first are as they were before updates
        self._good.add(here)
        self._latest.add(here)
        alarm = self._record(loss, params)
        if alarm is None:
            svi.optim(params)
        zero_grads(params)
        if alarm is not None:
            self._stop(alarm)
        self.num_steps += 1
        return loss

    def state_dict(self) -> dict[str, Any]:
        """Returns what the next update needs, but for the parameters as they are now.

        The states that it may go back to are part of it.
        """
        own = {
            "history": {name: record.state_dict() for name, record in self.history.items()},
            "num_steps": self.num_steps,
            "signs": self._signs,
            "names": sorted(self._names),
            "readings": self._readings.state_dict(),
        }
        states = {"good": self._good.state_dict()}
        if self._latest is not self._good:
            states["latest"] = self._latest.state_dict()
        return {**own, **states, "svi": optimizer_and_objective(self.svi)}

    def load_state_dict(self, found: dict[str, Any], device: torch.device | None = None) -> None:
        """Goes on from what :meth:`state_dict` of a monitor of another such SVI returned.

        Args:
            found: What was returned.
            device: Where tensors belong, if not where they are.
        """
        set_both(self.svi, found["svi"], device)
        self.history = {name: Record() for name in found["history"]}
        for name, record in self.history.items():
            record.load_state_dict(found["history"][name])
        self.num_steps, self._signs = found["num_steps"], dict(found["signs"])
        self._names = set(found["names"])
        self._readings.load_state_dict(found["readings"], device)
        self._good = self._latest = Checkpoint(self.svi, 0)
        self._good.load_state_dict(found["good"], device)
        if "latest" in found:
            self._latest = Checkpoint(self.svi, 0)
            self._latest.load_state_dict(found["latest"], device)

    def _evaluations(self) -> dict[str, Evaluation]:
        objective = objective_of(self.svi)
        return {} if objective is None else objective.evaluations

    def _loss_name(self, evaluations: dict[str, Evaluation]) -> str:
        objective = objective_of(self.svi)
        if objective is None or not (evaluations or objective.loss_name == LIKELIHOOD):
            return "loss"
        return objective.loss_name

    def _record(self, loss: float, params: dict[Tensor, None]) -> _Alarm | None:
        """Records one evaluation, and says what is wrong with it, if anything."""
        evaluations = self._evaluations()
        own = {
            p for seen in evaluations.values() for p in trainable_parameters(seen.boltzmann.energy)
        }
        norms = {p: whole(p.grad.detach().norm()).double() for p in params if p.grad is not None}
        readings = {"gradient norm": _total([n for p, n in norms.items() if p in (own or params)])}
        several = len(evaluations) > 1
        names = [self._loss_name(evaluations), *readings, OF_ALL]
        for name, seen in evaluations.items():
            suffix = f" of {name}" if several else ""
            names += [record + suffix for record in READINGS]
            for record, value in self._readings.of(name, seen).items():
                readings[record + suffix] = value
        readings[OF_ALL] = _total(list(norms.values()))
        values = torch.stack([value.double() for value in readings.values()]).tolist()
        now = over_ranks({names[0]: loss, **dict(zip(readings, values, strict=True))}, names)
        gradient = now.pop(OF_ALL)
        for name, value in now.items():
            self.history.setdefault(name, Record()).append(value)
        for name, value in (*now.items(), ("gradient norm", gradient)):
            if not math.isfinite(value):
                what = "loss" if name == next(iter(now)) else name
                return _Alarm(f"the {what} is {value}", "number")
        for name, seen in evaluations.items():
            alarm = self._judge(name, seen, f" of {name}" if several else "")
            if alarm is not None:
                return alarm
        return None

    def _judge(self, name: str, seen: Evaluation, suffix: str) -> _Alarm | None:
        """Says whether the chains of a site have shown the same bad sign for too long."""
        now = {
            record: self.history[record + suffix]
            for record in ("energy gap", "chain distance", "chain spread", "acceptance")
            if record + suffix in self.history
        }
        site = f"of site '{name}'"
        if "energy gap" in now:
            limit, usual = self._limit(now["energy gap"], seen.boltzmann, f"gap {site}")
            if self._stays(f"gap {site}", abs(now["energy gap"][-1]) > limit, self.patience):
                return _Alarm(
                    f"the energy gap {site}, data less chains, is {now['energy gap'][-1]:.4g} "
                    f"nats, and has been beyond ±{limit:.4g} for {self.patience} steps (its usual "
                    f"size before: {usual:.2g})",
                    "gap",
                )
        if "chain spread" in now:
            distance, spread = now["chain distance"][-1], now["chain spread"][-1]
            far = math.hypot(distance, spread) > self.max_drift
            if self._stays(f"drift {site}", far, self.patience):
                unit = self._readings.spread(name)
                return _Alarm(
                    f"the chains {site} have left the data: their mean is {distance * unit:.4g} "
                    f"away and their spread {spread * unit:.4g}, in units of x, where the data "
                    f"spread {unit:.4g}; that is beyond {self.max_drift:g} times as far for "
                    f"{self.patience} steps",
                    "drift",
                )
        if "acceptance" in now:
            low, long = now["acceptance"][-1] < MIN_ACCEPTANCE, 10 * self.patience
            if self._stays(f"acceptance {site}", low, long):
                return _Alarm(
                    f"the chains {site} stand still: their acceptance is "
                    f"{now['acceptance'][-1]:.2g} and has been below {MIN_ACCEPTANCE} for {long} "
                    "steps",
                    "acceptance",
                )
        return None

    def _limit(
        self, gaps: Sequence[float], boltzmann: Boltzmann, sign: str
    ) -> tuple[float, float]:
        """Returns the largest sound gap, and the usual size, of the steps before the sign."""
        least = math.sqrt(max(1, boltzmann.event_shape.numel()))
        if abs(gaps[-1]) <= self.max_gap * least:
            return self.max_gap * least, 0.0
        before = gaps[: len(gaps) - 1 - self._signs.get(sign, 0)] or [0.0]
        usual = statistics.median(map(abs, before))
        return self.max_gap * max(least, usual), usual

    def _stays(self, sign: str, seen: bool, patience: int) -> bool:
        self._signs[sign] = self._signs.get(sign, 0) + 1 if seen else 0
        return self._signs[sign] >= patience

    def _stop(self, alarm: _Alarm) -> None:
        step, good, history = self.num_steps, self._good, self.history
        good.restore()
        self.history = {name: record.until(good.step) for name, record in history.items()}
        self.num_steps, self._latest = good.step, good
        self._signs.clear()
        raise TrainingDiverged(
            f"training diverged: {alarm.seen}, at step {step}. Parameters, optimizer, chains and "
            f"the kernel's step size are back where they were after {good.step} steps; try "
            f"{ADVICE[alarm.kind]}",
            step,
            good.step,
            history,
        )


def _total(norms: list[Tensor]) -> Tensor:
    return torch.stack(norms).norm() if norms else torch.zeros((), dtype=torch.float64)
