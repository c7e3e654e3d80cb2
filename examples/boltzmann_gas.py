"""A Lennard-Jones cluster from cold to hot: what the Boltzmann-Gibbs law says of it, and exactly.

Seven particles attract and repel one another in a harmonic trap. At each of some temperatures many
chains sample p(x) = exp(-E(x)/T)/Z, and four laws that hold exactly are put to the test:

- the virial theorem, <x . grad E> = n d T, whatever the interaction;
- the centre of mass is Gaussian, with a mean square of d T / (n k), whatever the interaction;
- how likely an energy is at one temperature against another is exp(-E (1/T - 1/T')) but for a
  constant: the slope of a logistic regression on the energy alone;
- for two particles, the mean energy by quadrature over their distance.

    python examples/boltzmann_gas.py --out report/
"""

import argparse
import math
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch.func import grad

import pyro_ebm as ebm
from pyro_ebm.energies import Particles
from pyro_ebm.metrics import Estimate
from pyro_ebm.plotting import STYLES

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--out", default="report/", help="where to save the figure")
parser.add_argument("--smoke", action="store_true", help="a run of a few seconds")
args = parser.parse_args()

torch.set_num_threads(1)  # tensors this small gain nothing from a second thread
torch.set_default_dtype(torch.float64)
torch.manual_seed(0)
NUM_PARTICLES, NUM_DIMS, TRAP = 7, 3, 0.5
TEMPERATURES = [1.0, 0.9] if args.smoke else [2.0, 1.4, 1.0, 0.7, 0.5]
NUM_CHAINS, NUM_SAMPLES, WARMUP = (32, 40, 80) if args.smoke else (48, 150, 100)


def sweep(energy):
    """Samples an energy from hot to cold; returns draws (chains, draws, n, d) by temperature."""
    side = torch.arange(3) - 1.0
    sites = 1.2 * torch.cartesian_prod(side, side, side)[: energy.event_shape[0]]
    start = sites + 0.05 * torch.randn(NUM_CHAINS, *energy.event_shape)
    draws = {}
    for temperature in TEMPERATURES:
        kernel = ebm.kernels.HMC(
            ebm.Boltzmann(energy, temperature=temperature), step_size=0.02, num_steps=30
        )
        mcmc = ebm.MCMC(
            kernel, NUM_SAMPLES, WARMUP, NUM_CHAINS, {"x": start}, disable_progbar=True
        )
        mcmc.run()
        draws[temperature] = mcmc.get_samples(group_by_chain=True)["x"]
        start = draws[temperature][:, -1]
    return draws


def mean(values):
    """The mean of values (chains, draws), with a standard error by the spread of the chains."""
    of_chains = values.mean(1)
    return Estimate(of_chains.mean().item(), of_chains.std().item() / math.sqrt(len(of_chains)))


def slope(cold, hot):
    """By how much the log odds of the colder one fall with the energy, by Newton's method."""
    energy, scale = torch.cat([cold, hot]), torch.cat([cold, hot]).std()
    rows = torch.stack([torch.ones_like(energy), (energy - energy.mean()) / scale], -1)
    is_cold = (torch.arange(len(energy)) < len(cold)).double()
    weights = torch.zeros(2)
    for _ in range(20):
        p = (rows @ weights).sigmoid()
        hessian = rows.T @ (rows * (p * (1 - p)).unsqueeze(-1))
        weights = weights + torch.linalg.solve(hessian, rows.T @ (is_cold - p))
    return -(weights[1] / scale).item()


def gap(cold, hot):
    """The slope of draws (chains, draws), with its error by the spread of eight groups."""
    groups = zip(cold.chunk(8), hot.chunk(8), strict=True)
    found = torch.tensor([slope(a.flatten(), b.flatten()) for a, b in groups])
    return Estimate(found.mean().item(), found.std().item() / math.sqrt(len(found)))


def pair_energy(temperature):
    """The mean energy of two particles: that of their centre, and of their distance."""
    r = torch.linspace(0.5, 20.0, 200_001)
    energy = TRAP * r.square() / 4 + 4 * (r**-12 - r**-6)
    log_weights = (NUM_DIMS - 1) * r.log() - energy / temperature
    return NUM_DIMS * temperature / 2 + (log_weights.softmax(0) @ energy).item()


checks = []


def against(estimate, known):
    """Shows an estimate, and remembers how many standard errors it is from what is known."""
    checks.append(abs(estimate.value - known) / estimate.std_error)
    return f"{estimate!s} ({known:.3f})"


cluster = Particles(NUM_PARTICLES, NUM_DIMS, trap=TRAP)
pair = Particles(2, NUM_DIMS, trap=TRAP)
clusters, pairs = sweep(cluster), sweep(pair)
energies, above = {}, None
print("estimates of chains, and in brackets what is known")
print(f"{'T':6}{'energy':16}{'virial / n d':24}{'mean square of centre':26}", end="")
print(f"{'1/T less that above':26}{'energy of a pair'}")
for temperature, x in clusters.items():
    with torch.no_grad():
        energies[temperature] = energy = cluster(x)
        of_pair = pair(pairs[temperature])
    force = torch.vmap(grad(lambda point: cluster(point)))(x.flatten(0, 1)).reshape(x.shape)
    virial = (x * force).sum((-1, -2)) / (NUM_PARTICLES * NUM_DIMS)
    centre = x.mean(-2).square().sum(-1)
    law = ""
    if above:
        law = against(gap(energy, energies[above]), 1 / temperature - 1 / above)
    above = temperature
    print(
        f"{temperature:<6}{mean(energy)!s:16}{against(mean(virial), temperature):24}"
        f"{against(mean(centre), NUM_DIMS * temperature / (NUM_PARTICLES * TRAP)):26}{law:26}"
        f"{against(mean(of_pair), pair_energy(temperature))}"
    )
print(f"\nof {len(checks)} numbers the farthest is {max(checks):.1f} standard errors from its law")

figure = Figure(figsize=(11, 3.6), layout="constrained")
energy_axis, heat_axis, law_axis = figure.subplots(1, 3)
levels = {t: mean(e).value for t, e in energies.items()}
heat = {t: (e.var() / t**2).item() for t, e in energies.items()}
energy_axis.plot(list(levels), list(levels.values()), "ko-")
energy_axis.set(title="mean energy", xlabel="T", ylabel="nats times T")
heat_axis.plot(list(heat), list(heat.values()), "ko-")
heat_axis.axhline(NUM_PARTICLES * NUM_DIMS / 2, color="0.6", linewidth=0.8)
heat_axis.set(title="heat capacity Var(E) / T² (grey: a solid)", xlabel="T")
for (temperature, energy), (colour, dash) in zip(energies.items(), STYLES, strict=False):
    counts, edges = torch.histogram(energy.flatten(), 60, density=True)
    middle = (edges[1:] + edges[:-1]) / 2
    law_axis.plot(middle, counts, color=colour, linestyle=dash, label=f"T = {temperature:g}")
law_axis.set(title="how likely an energy is", xlabel="E")
law_axis.legend()
Path(args.out).mkdir(parents=True, exist_ok=True)
figure.savefig(Path(args.out) / "boltzmann_gas.png")
assert max(checks) < 5
