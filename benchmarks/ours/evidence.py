"""Our AIS and SMC, one direction alone, with every gradient of their plan counted in each run.

Walkers are independent once there is a plan, so that the estimates of ten seeds are one run, cut
into pieces; each ten have a plan of their own.
"""

import math

import pyro
import pyro.distributions as dist
import torch

import pyro_ebm as ebm
from benchmarks import evidence_cell
from pyro_ebm.kernels.transition import seeded_generator
from pyro_ebm.logz.annealing import anneal
from pyro_ebm.logz.base import log_mean_exp
from pyro_ebm.logz.smc import sail

NUM_EACH = 10
"""The estimates that share a plan."""
LEAPFROGS = 4
"""The mean number of gradients of a move of the default kernel."""
MULTIPLE = 32
"""What the number of walkers is a multiple of: the islands of `smc`, twice the groups of `ais`."""


def annealed(made, gradients):
    """As many rungs as `ais` takes unless it is told, and fewer where few walkers are left."""
    moves = gradients // LEAPFROGS
    num_chains = max(1, moves // (made.num_fine * MULTIPLE)) * MULTIPLE
    num_rungs = min(made.num_fine, moves // num_chains)
    generator = seeded_generator(made.scouts.device)
    walkers = made.path.draw_base(NUM_EACH * num_chains, generator)
    log_w, _ = anneal(made, walkers, made.rungs(num_rungs), generator)
    return [log_mean_exp(part).item() for part in log_w[-1].chunk(NUM_EACH)]


def sequential(made, gradients):
    """At the temperatures, and with the islands, that `smc` takes unless it is told."""
    num_rungs = max(2, math.ceil(made.lengths[-1].item() / math.sqrt(-math.log(0.9))))
    each = max(2, gradients // (LEAPFROGS * (num_rungs - 1) * MULTIPLE))
    generator = seeded_generator(made.scouts.device)
    num_particles, num_islands = NUM_EACH * each * MULTIPLE, NUM_EACH * MULTIPLE
    found = sail(made, made.rungs(num_rungs), num_particles, num_islands, generator)
    return [log_mean_exp(part).item() for part in found.log_z.chunk(NUM_EACH)]


def estimate(target, budgets, num_seeds):
    boltzmann = ebm.Boltzmann(lambda x: target.energy(x, torch), event_shape=(target.dim,))
    scale = torch.full((target.dim,), target.base_scale)
    wide = dist.Normal(torch.zeros_like(scale), scale).to_event(1)
    found = {}
    for seed in range(num_seeds // NUM_EACH):
        for name, base in {"fitted base": None, "same base": wide}.items():
            pyro.set_rng_seed(seed)
            made = ebm.logz.plan(boltzmann, base=base)
            planned = made.path.num_gradients
            for budget in budgets:
                if planned > 0.9 * budget:
                    continue
                for method, run in {"AIS": annealed, "SMC": sequential}.items():
                    values, taken = found.setdefault((f"{method}, {name}", budget), ([], []))
                    before = made.path.num_gradients
                    values += run(made, budget - planned)
                    taken.append(planned + (made.path.num_gradients - before) / NUM_EACH)
    return {key: (values, sum(taken) / len(taken)) for key, (values, taken) in found.items()}


if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    evidence_cell.run(estimate, f"pyro_ebm {ebm.__version__}")
