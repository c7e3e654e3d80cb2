"""Our chains on Ising lattices: how fast they forget at the critical point, and what they find."""

import argparse
import json
import math
import time

import torch

import pyro_ebm as ebm
from pyro_ebm.diagnostics import bulk_ess
from pyro_ebm.energies import Ising
from pyro_ebm.energies.kaufman import CRITICAL_COUPLING

CHAINS = 32
CRITICAL = {"SwendsenWang": (1_000, 1), "Gibbs": (400, 50)}
"""Draws on 64x64 at the critical point, and the steps from each to the next."""
FLIPS = 20_000
"""The steps of single flips: five to a site, too few for an ESS but by how little they forget."""
LATTICES = (
    ("32x32, K = 0.3", 32, 0.3, 64, 500),
    ("32x32, K = 0.5", 32, 0.5, 64, 500),
    ("16x16, critical", 16, CRITICAL_COUPLING, 128, 3_000),
    ("64x64, T = 2", 64, 0.5, 32, 500),
)
"""Side, coupling, chains and Gibbs sweeps, of which a fifth more are made before."""
ONSAGER = (1 - math.sinh(2 * 0.5) ** -4) ** (1 / 8)


def draw(kernel, num_draws, first, thin=1):
    """Returns draws ``(chain, draw, side, side)`` with the CPU seconds that they took."""
    mcmc = ebm.MCMC(
        kernel,
        num_draws,
        warmup_steps=0,
        num_chains=len(first),
        thin=thin,
        initial_params={"x": first},
        disable_progbar=True,
    )
    began = time.process_time()
    mcmc.run()
    return mcmc.get_samples(group_by_chain=True)["x"], time.process_time() - began, mcmc.engine


def critical(scale):
    """ESS of |m| per second of CPU, of chains that start where clusters have left them."""
    energy = Ising((64, 64), CRITICAL_COUPLING)
    target = ebm.Boltzmann(energy)
    clusters = ebm.kernels.SwendsenWang(target)
    first = draw(clusters, 1, torch.ones(CHAINS, 64, 64), thin=100)[0][:, -1]
    found = {}
    for name, (num_draws, thin) in CRITICAL.items():
        kernel = getattr(ebm.kernels, name)(target)
        x, seconds, engine = draw(kernel, max(100, round(num_draws * scale)), first, thin)
        magnetisation = x.mean((-2, -1)).abs().double()
        ess = bulk_ess(magnetisation).item()
        found[name] = {
            "steps": x.shape[1] * thin,
            "seconds_per_step": seconds / (x.shape[1] * thin),
            "ess_per_step": ess / (x.shape[1] * thin),
            "ess": ess,
            "ess_per_second": ess / seconds,
            "engine": engine,
        } | summary(magnetisation, "magnetisation")
        if name == "SwendsenWang":
            variance = magnetisation.var().item()
    x, seconds, engine = draw(ebm.kernels.SingleFlip(target), 1, first, thin=FLIPS)
    found["SingleFlip"] = {
        "steps": FLIPS,
        "seconds_per_step": seconds / FLIPS,
        "ess_per_second_at_most": forgetting(first, x[:, -1], variance) * CHAINS / 2 / seconds,
        "engine": engine,
    }
    return found


def forgetting(first, last, variance):
    """The rate -log rho of forgetting |m|, from the first states to the last, in equilibrium.

    What forgets slowly forgets more slowly later: half of this, for each chain, is at least the
    number of effective draws.
    """
    change = last.mean((-2, -1)).abs().double() - first.mean((-2, -1)).abs().double()
    return -math.log1p(-change.square().mean().item() / (2 * variance))


def summary(values, name):
    """The mean of ``(chain, draw)`` and its standard error by the means of independent chains."""
    means = values.double().mean(1)
    return {name: means.mean().item(), f"{name}_error": means.std().item() / len(means) ** 0.5}


def exact_energy(side, coupling):
    """Energy per site in units of the coupling, by Kaufman's formula."""
    k = torch.tensor(coupling, dtype=torch.float64, requires_grad=True)
    (bonds,) = torch.autograd.grad(Ising((side, side), k).log_z(), k)
    return -bonds.item() / side**2


def lattices():
    found = {}
    for name, side, coupling, num_chains, num_sweeps in LATTICES:
        energy = Ising((side, side), coupling)
        kernel = ebm.kernels.Gibbs(ebm.Boltzmann(energy))
        first = torch.ones(num_chains, side, side)
        x, _, _ = draw(kernel, num_sweeps // 5 * 6 // 5, first, thin=5)
        x = x[:, len(x[0]) // 6 :]
        found[name] = {"exact": exact_energy(side, coupling)}
        found[name] |= summary(-energy.bonds(x) / side**2, "energy")
        if side == 64:
            found[name] |= {"onsager": ONSAGER} | summary(x.mean((-2, -1)), "magnetisation")
    return found


if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.manual_seed(0)
    parser = argparse.ArgumentParser()
    parser.add_argument("--scale", type=float, required=True)
    scale = parser.parse_args().scale
    print(json.dumps({"critical": critical(scale), "lattices": lattices()}))
