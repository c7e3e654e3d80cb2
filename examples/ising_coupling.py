"""How strongly do spins pull at their neighbours? A posterior whose likelihood has no normaliser.

A picture of 64 spins is seen; their coupling is not. Its likelihood contains log Z, a sum over
2^64 pictures. The exchange algorithm does without: at every step it draws a picture at the
proposed coupling, and compares the two. Kaufman's formula (1949) knows log Z of a torus without a
field, so that the answer can be looked up; the kernel is not told. That twice as many steps of the
inner chain change nothing is how to see, where no formula helps, that they were enough.

    python examples/ising_coupling.py --out report/
"""

import argparse
from pathlib import Path

import matplotlib.pyplot as plt
import pyro
import pyro.distributions as dist
import torch

import pyro_ebm as ebm
from pyro_ebm.diagnostics import bulk_ess
from pyro_ebm.energies.kaufman import log_z_of_torus

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--out", default="report/", help="where to save the picture")
parser.add_argument("--smoke", action="store_true", help="a run of a few seconds")
args = parser.parse_args()

torch.set_num_threads(1)  # lattices this small gain nothing from a second thread
torch.set_default_dtype(torch.float64)
pyro.set_rng_seed(0)
SIDES, TRUTH = (8, 8), 0.4
prior = dist.Exponential(2.0)

seen = ebm.MCMC(
    ebm.kernels.SwendsenWang(ebm.Boltzmann(ebm.energies.Ising(SIDES, TRUTH))),
    100,
    100,
    num_chains=1,
    disable_progbar=True,
)
seen.run()
spins = seen.get_samples()["x"][-1]


def model(s):
    coupling = pyro.sample("coupling", prior)
    lattice = ebm.energies.Ising(SIDES, coupling, field=0.0)  # of which log Z is not known
    pyro.sample("s", ebm.Boltzmann(lattice), obs=s)


def posterior(num_inner_steps):
    kernel = ebm.kernels.Exchange(
        model, inner=ebm.kernels.SwendsenWang(), num_inner_steps=num_inner_steps
    )
    num_samples = 60 if args.smoke else 500
    mcmc = ebm.MCMC(kernel, num_samples, 60, num_chains=64, disable_progbar=True)
    mcmc.run(spins)
    return mcmc.get_samples(group_by_chain=True)["coupling"]


grid = torch.linspace(0, 2, 10_001)[1:]
log_density = prior.log_prob(grid) + grid * ebm.energies.Ising(SIDES, 1.0).bonds(spins)
shares = (log_density - log_z_of_torus(grid, *SIDES)).softmax(0)
mean = (shares * grid).sum()
print(f"exact       {mean:.4f}, sd {(shares * (grid - mean) ** 2).sum().sqrt():.4f}")

Path(args.out).mkdir(parents=True, exist_ok=True)
plt.plot(grid, shares / (grid[1] - grid[0]), label="Kaufman's formula")
for num_inner_steps in (20, 40):
    draws = posterior(num_inner_steps)
    error = draws.std() / bulk_ess(draws).sqrt()
    print(f"{num_inner_steps} inner steps {draws.mean():.4f} ± {error:.4f}, sd {draws.std():.4f}")
    label = f"exchange, {num_inner_steps} inner steps"
    plt.hist(draws.flatten(), bins=60, density=True, histtype="step", label=label)
    assert abs(draws.mean() - mean) < 5 * error
plt.axvline(TRUTH, color="grey", label="truth")
plt.xlim(0, 1)
plt.xlabel("coupling")
plt.legend()
plt.savefig(Path(args.out) / "ising_coupling.png")
