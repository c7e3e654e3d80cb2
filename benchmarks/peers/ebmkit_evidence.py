"""ebmkit's AIS with its own kernel: both its schedules, and a budget spent in either way.

It runs the chains of all seeds at once, so that the step size that they adapt is of all of them.
"""

import math
from importlib.metadata import version

import torch
from ebm.ais import ais_log_z

from benchmarks import evidence_cell

CHAINS, TEMPERATURES = 64, 1000
"""Its defaults."""
LEAPFROGS = 5
"""Of its default kernel, which evaluates its start anew."""


def estimate(target, budgets, num_seeds):
    torch.manual_seed(0)
    found = {}
    for budget in budgets:
        moves = budget // (LEAPFROGS + 1)
        sizes = {
            "more temperatures": (CHAINS, moves // CHAINS),
            "more chains": (max(1, moves // TEMPERATURES), TEMPERATURES),
        }
        for schedule in ("linear", "geometric"):
            for name, (chains, temperatures) in sizes.items():
                result = ais_log_z(
                    lambda x: target.energy(x, torch),
                    (target.dim,),
                    base_scale=target.base_scale,
                    n_temps=temperatures,
                    n_chains=num_seeds * chains,
                    schedule=schedule,
                )
                log_w = result.log_weights.reshape(num_seeds, chains)
                log_z = log_w.logsumexp(1) - math.log(chains)
                gradients = chains * temperatures * (LEAPFROGS + 1)
                found[f"AIS, {schedule}, {name}", budget] = log_z.tolist(), gradients
    return found


if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    evidence_cell.run(estimate, f"ebmkit {version('ebmkit')}")
