"""What a run of many chains has found, with the face of Pyro's own MCMC."""

from __future__ import annotations

__all__ = ["Results", "tell_kept"]

import warnings
from typing import Any

import torch
from pyro.infer.mcmc.api import AbstractMCMC
from pyro.infer.mcmc.util import select_samples
from torch import Tensor

from ..diagnostics import bulk_ess, nested_r_hat, split_r_hat
from ..printing import advice, summary_table
from ..ranks.group import rank
from .checkpoint import Checkpoints
from .draws import Draws

MADE_ANEW = ("potential", "generator", "_runner", "_signals")
"""What of a run is no result, and mostly cannot be pickled."""


class Results(AbstractMCMC):
    """Draws, statistics and diagnostics, read from where a run keeps them."""

    num_superchains: int | None
    rejoined: Tensor
    _draws: Draws | None = None
    _warmup: Draws

    def __getstate__(self) -> dict[str, Any]:
        """Returns all but what a run makes anew: its potential, its compiled code, its noise."""
        state = {name: value for name, value in vars(self).items() if name not in MADE_ANEW}
        # Pickled, the inverse of a bijection has forgotten what it is the inverse of.
        bijections = {name: inverse.inv for name, inverse in (self.transforms or {}).items()}
        return {**state, "transforms": bijections}

    def __setstate__(self, state: dict[str, Any]) -> None:
        transforms = {name: bijection.inv for name, bijection in state["transforms"].items()}
        vars(self).update(state, transforms=transforms or None, _runner=None)

    @property
    def draws(self) -> Draws:
        """Where the draws are.

        Raises:
            ValueError: If nothing was run yet.
        """
        if self._draws is None:
            raise ValueError("there are no draws before a run: call run() first")
        return self._draws

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
        if num_samples is None and not group_by_chain:
            return {name: draws.flatten(0, 1) for name, draws in values.items()}
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
            if not draws.numel():  # of a site without coordinates
                continue
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

        Where steps diverged, or R-hat is above 1.1, it says what that means and what to try. Of
        several ranks the first one prints.

        Args:
            prob: The probability within the printed equal-tailed interval.

        Raises:
            ValueError: If there are no draws.
        """
        if rank() > 0:
            return
        if not self.num_draws:
            raise ValueError("there are no draws: the run ended before the first")
        samples = {name: draws for name, draws in self.get_samples().items() if draws.numel()}
        checks, totals = self.diagnostics(), self.draws.totals()
        num_divergences = int(totals["diverging"].sum())
        lines = [summary_table(samples, checks, prob), ""]
        lines.append(f"Number of divergences: {num_divergences}")
        if num_rejoined := int(self.rejoined.sum()):
            lines.append(f"Chains lost in warmup that rejoined the others: {num_rejoined}")
        r_hats = [check["r_hat"].flatten() for check in checks.values() if "r_hat" in check]
        worst = torch.cat(r_hats).nan_to_num().max().item() if r_hats else 0.0
        num_steps = None
        if "n_steps" in totals:
            num_steps = totals["n_steps"].double().mean().item() / self.draws.num_steps
        is_model = self.kernel.model is not None
        lines += advice(num_divergences, worst, num_steps, is_model=is_model)
        print(*lines, sep="\n")  # noqa: T201


def tell_kept(error: Exception, stage: str, draws: Draws, checkpoints: Checkpoints | None) -> None:
    """Notes on an error what a run had made before; a warning says it where Python has no notes.

    Args:
        error: The error.
        stage: Where it was raised, ``"warmup"`` or ``"sample"``.
        draws: What was kept of this stage.
        checkpoints: What the run goes on from, if anything.
    """
    of, where = ("draws", "get_samples") if stage == "sample" else ("warmup steps", "get_warmup")
    note = f"{draws.count} of {draws.num_draws} {of} were made before, and are kept: {where}()"
    if checkpoints is not None:
        note += f"; run() goes on from step {checkpoints.step}"
    if hasattr(error, "add_note"):
        error.add_note(note)
    else:
        warnings.warn(note, stacklevel=8)
