"""Faults of what a long run keeps, and of what ranks tell each other."""

from mutants.fault import group

FAULTS = [
    *group(
        "mcmc.py",
        "test_broken_off.py",
        (
            "error in a run: the steps of its block are lost",
            "with contextlib.suppress(Exception):  # the first error is the one to tell of\n"
            "                self._hand_over(draws, waiting)",
            "with contextlib.suppress(Exception):",
            "test_broken_off.py -k readable",
        ),
        (
            "error in a run: no checkpoint is written",
            "self._save(due=self._checkpoints.step != self._step)",
            "pass",
            "test_broken_off.py -k checkpoint",
        ),
        (
            "error in a run: one of the disk hides it",
            "with contextlib.suppress(Exception):  # the first error",
            "with contextlib.nullcontext():  # the first error",
            "test_broken_off.py -k disk",
        ),
    ),
    *group(
        "runs/results.py",
        "test_passed_on.py -k transforms",
        (
            "pickle: inverses forget what they invert",
            "{name: inverse.inv for name, inverse in (self.transforms or {}).items()}",
            "dict(self.transforms or {})",
        ),
    ),
    *group(
        "runs/arrays.py",
        "test_passed_on.py -k once",
        (
            "pickle: draws are in it twice",
            "rows[:count] if count < len(rows) else rows",
            "rows[:count]",
        ),
    ),
    *group(
        "runs/turns.py",
        "test_passed_on.py -k turns",
        (
            "threads: each takes its own turn",
            "_turns.setdefault(os.getpid(), threading.RLock())",
            "threading.RLock()",
        ),
    ),
    *group(
        "objectives/records.py",
        "test_records.py",
        (
            "records: of a block always the first",
            "which.getrandbits(32) % block",
            "0",
        ),
        (
            "records: cut within a block",
            "// half * half",
            "// self.block * self.block",
        ),
        (
            "records: blocks do not grow",
            "_thinned(self._old, 2, len(self)), 2 * self.block",
            "_thinned(self._old, 2, len(self)), self.block",
        ),
    ),
    *group(
        "objectives/sharding.py",
        "test_training_on_ranks.py",
        (
            "division: the chains of the first rank for all",
            "torch.arange(rank() * num_chains, (rank() + 1) * num_chains) % there",
            "torch.arange(0, num_chains) % there",
        ),
        (
            "division: noise goes on where it was",
            '"state": new_stream(kept["state"], here)',
            '"state": kept["state"]',
        ),
        (
            "division: what differs is the first rank's",
            "if where is not None:\n            raise ValueError",
            "if False:\n            raise ValueError",
        ),
    ),
    *group(
        "objectives/jarzynski.py",
        "test_training_on_ranks.py -k weighed",
        (
            "weights of ranks: the sign of what was resampled",
            "+ (offset - offsets[name])",
            "- (offset - offsets[name])",
        ),
    ),
    *group(
        "objectives/chains.py",
        "test_training_on_ranks.py -k mixture",
        (
            "noise of ranks: without the spread of their means",
            "(within + between).sqrt()",
            "within.sqrt()",
        ),
    ),
    *group(
        "objectives/readings.py",
        "test_training_on_ranks.py",
        (
            "records of ranks: each its own",
            "if num_ranks() == 1:",
            "if True:",
        ),
    ),
    *group(
        "logz/thermodynamic.py",
        "test_ranks.py -k one_estimate",
        (
            "ladder of ranks: each its own",
            "estimated(ladder.of_all_ranks())",
            "estimated(ladder)",
        ),
    ),
    *group(
        "logz/importance.py",
        "test_ranks.py -k one_estimate",
        (
            "importance on ranks: the same draws on each",
            "with own_stream():",
            "if True:",
        ),
    ),
    *group(
        "compare/sharding.py",
        "test_comparing_on_ranks.py",
        (
            "cells of ranks: in the order of ranks",
            "[parts[i % num][i // num] for i in range(len(cells))]",
            "[cell for part in parts for cell in part]",
        ),
        (
            "cells of ranks: unlike data are taken",
            "digest.update(x.detach().cpu().contiguous().numpy().tobytes())",
            "pass",
        ),
    ),
    *group(
        "map_estimate.py",
        "test_comparing_on_ranks.py",
        (
            "search of ranks: the same starts on each",
            "    with own_stream():\n        x = _lowest",
            "    if True:\n        x = _lowest",
        ),
        (
            "search of ranks: the highest point of all",
            "best = value.where(~value.isnan(), torch.inf).argmin(0)\n        rows",
            "best = value.where(~value.isnan(), torch.inf).argmax(0)\n        rows",
        ),
    ),
    *group(
        "distributions.py",
        "test_distributions.py -k tempered_rbm",
        (
            "tempered draws: the block sweep at temperature 1",
            "and bool((beta != 1).any()):",
            "and (beta := torch.ones_like(beta)).sum() < 0:",
        ),
    ),
    *group(
        "ranks/divided.py",
        "test_divided_on_ranks.py",
        (
            "divided energies: a part is kept for the whole",
            "return x.full_tensor() if is_divided(x) else x",
            "return x.to_local() if is_divided(x) else x",
        ),
        (
            "divided energies: parameters stay together",
            "        unit.reshard()",
            "        pass",
        ),
        (
            "divided energies: among whom does not matter",
            "if size != num_ranks():",
            "if False:",
        ),
    ),
    *group(
        "ranks/training.py",
        "test_divided_on_ranks.py",
        (
            "divided energies: what ranks have whole is not averaged beside them",
            "divided, parameters = _apart(parameters)",
            "divided, parameters = parameters, []",
        ),
        (
            "divided energies: an optimizer goes on with whole numbers",
            "            self._divide_states(divided)\n",
            "",
        ),
    ),
    *group(
        "engine.py",
        "test_divided_on_ranks.py",
        (
            "divided energies: what was brought together once is in the graph for ever",
            "        _check_silent(self.module)\n",
            "",
        ),
    ),
    *group(
        "objectives/monitor.py",
        "test_divided_on_ranks.py",
        (
            "divided energies: the norm of a part of the gradient",
            "whole(p.grad.detach().norm()).double()",
            "getattr(p.grad, 'to_local', lambda: p.grad)().detach().norm().double()",
        ),
    ),
]
