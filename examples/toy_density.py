"""One skewed density of the plane, learned twice: by sampling from the model, and without.

A banana is drawn from exactly; a network learns its energy once by persistent contrastive
divergence and once by denoising score matching. On the plane the normaliser is a sum over a grid,
so each landscape is judged by its exact divergence from the truth, not by eye.

    python examples/toy_density.py --out report/
"""

import argparse
import math
from pathlib import Path

import torch

import pyro_ebm as ebm
from pyro_ebm.zoo import EBM, Training

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--out", default="report/", help="where to save the picture")
parser.add_argument("--smoke", action="store_true", help="a run of a few seconds")
args = parser.parse_args()

torch.set_num_threads(1)  # matrices this small gain nothing from a second thread
torch.manual_seed(1)
truth = ebm.energies.Banana(scale=1.5, curvature=0.5)
data = truth.sample(5_000)
SIGMA = 0.15  # the noise of score matching, which learns the law of data plus noise
STEPS = 150 if args.smoke else 1_500

objectives = {
    "contrastive divergence": ebm.objectives.PersistentCD(
        ebm.kernels.MALA(step_size=0.1), num_chains=256, num_steps=10
    ),
    "score matching": ebm.objectives.DenoisingScoreMatching(SIGMA),
}
models = {}
for name, objective in objectives.items():
    energy = ebm.energies.MLP(event_shape=(2,), hidden_sizes=(64, 64), base_scale=6.0)
    plan = Training(num_steps=STEPS, batch_size=256, lr=5e-3)
    models[name] = EBM(energy, objective, plan).fit(data)

# the grid: it holds all but 1e-5 of the mass
side_0, side_1 = torch.linspace(-7, 7, 281), torch.linspace(-6, 22, 561)
grid = torch.cartesian_prod(side_0, side_1)
cell = math.log((side_0[1] - side_0[0]) * (side_1[1] - side_1[0]))


@torch.no_grad()
def log_density(energy):
    """Returns the normalised log density on the grid, by quadrature."""
    return -energy(grid) - (-energy(grid)).logsumexp(0) - cell


def moments(log_p):
    weights = (log_p + cell).exp().unsqueeze(-1)
    mean = (weights * grid).sum(0)
    return mean, (weights * (grid - mean) ** 2).sum(0)


p = log_density(truth)
print(f"{'':24}KL(truth, model)  mean            variance      (nats, units of x)")
print(f"{'truth':24}{0.0:<18.3f}", *(f"{v:<7.2f}" for m in moments(p) for v in m.tolist()))
divergence = {}
for name, model in models.items():
    q = log_density(model.energy)
    divergence[name] = ((p + cell).exp() * (p - q)).sum().item()
    row = (f"{v:<7.2f}" for m in moments(q) for v in m.tolist())
    print(f"{name:24}{divergence[name]:<18.3f}", *row)

figure = ebm.plotting.landscape(
    {"truth": truth} | {name: model.energy for name, model in models.items()},
    data,
    extent=(-5, 5, -4, 10),
)
Path(args.out).mkdir(parents=True, exist_ok=True)
figure.savefig(Path(args.out) / "toy_density.png")

# The Gaussian with the moments of the truth is what a model that learned no shape would reach.
mean, variance = moments(p)
gaussian = log_density(ebm.energies.Gaussian(mean, 1 / variance))
shapeless = ((p + cell).exp() * (p - gaussian)).sum().item()
print(f"{'a Gaussian, for scale':24}{shapeless:.3f}")
assert max(divergence.values()) < (shapeless if args.smoke else shapeless / 5)
