"""Combine energies as facts: AND, OR and NOT, on the plane and on digits.

On the plane the truth is a sum over a grid. On digits an expert, a small restricted Boltzmann
machine, learns one class each from binary images; ten of them with their exact log Z are a
classifier. Then two are combined. The product of two machines is one machine with the hidden units
of both, so AND can be sampled in a second way, and the weights of OR are exact.

    python examples/products_of_experts.py --out report/
"""

import argparse
import math
from pathlib import Path

import torch

import pyro_ebm as ebm
from pyro_ebm.energies import RBM, Gaussian, Without, mixture
from pyro_ebm.metrics import Estimate

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--out", default="report/", help="where to save the pictures")
parser.add_argument("--smoke", action="store_true", help="a run of a few seconds")
args = parser.parse_args()

torch.set_num_threads(1)  # matrices this small gain nothing from a second thread
torch.manual_seed(0)
NUM_CHAINS, NUM_SAMPLES = (32, 50) if args.smoke else (128, 400)


def mean(values):
    """The mean of values (chains, draws), with a standard error by the spread of the chains."""
    of_chains = values.double().mean(1)
    return Estimate(of_chains.mean().item(), of_chains.std().item() / math.sqrt(len(of_chains)))


def run(kernel, start=None):
    start = None if start is None else {"x": start}
    mcmc = ebm.MCMC(kernel, NUM_SAMPLES, NUM_SAMPLES, NUM_CHAINS, start, disable_progbar=True)
    mcmc.run()
    return mcmc.get_samples(group_by_chain=True)["x"]


# 1. The plane: a wide spot, a narrow stripe, and what is left of the one without the other.
spot = Gaussian(torch.tensor([0.5, 0.0]), torch.tensor([0.4, 0.7]))
stripe = Gaussian(torch.tensor([0.0, 1.0]), torch.tensor([[1.5, -1.2], [-1.2, 2.0]]))
plane = {
    "spot": spot,
    "stripe": stripe,
    "spot AND stripe": spot + stripe,
    "spot OR stripe": mixture([spot, stripe], [0.3, 0.7]),
    "spot NOT stripe": Without(spot, 3.0 * stripe, ceiling=6.0),
}
side = torch.linspace(-9.0, 9.0, 361)
grid = torch.cartesian_prod(side, side)
print(f"{'on the plane':20}{'mean of x0':26}{'mean of x1':26}{'x0 x1':26}above 0.5, both")
farthest = 0.0
for name, energy in plane.items():
    weights = (-energy(grid)).softmax(0)
    x = run(ebm.kernels.HMC(ebm.Boltzmann(energy), num_steps=8))
    cells = []
    for feature in (
        lambda x: x[..., 0],
        lambda x: x[..., 1],
        lambda x: x.prod(-1),
        lambda x: (x > 0.525).all(-1).float(),  # between two points of the grid
    ):
        found, known = mean(feature(x)), (weights @ feature(grid)).item()
        farthest = max(farthest, abs(found.value - known) / found.std_error)
        cells.append(f"{found!s} ({known:.3f})")
    print(f"{name:20}" + "".join(f"{cell:26}" for cell in cells))
print(f"in brackets by a grid; the farthest is {farthest:.1f} standard errors from it")


# 2. Digits: an expert for each class.
def learn(images):
    rbm = RBM.initial(64, 8, images)
    kernel = ebm.kernels.Gibbs()
    objective = ebm.objectives.PersistentCD(kernel, num_chains=100, num_steps=5)
    optimizer = torch.optim.Adam(rbm.parameters(), lr=5e-3)
    for _ in range(50 if args.smoke else 400):
        x = images[torch.randint(len(images), (100,))]
        optimizer.zero_grad()
        (-objective.surrogate(ebm.Boltzmann(rbm), x).mean()).backward()
        optimizer.step()
    return rbm.requires_grad_(False)


digits = ebm.datasets.digits(binarize=True)
train, test = digits.train.flatten(1), digits.test.flatten(1)
experts = [learn(train[digits.train_labels == digit]) for digit in range(10)]
log_z = [expert.log_z() for expert in experts]


def log_prob(digit, x):
    return -experts[digit](x) - log_z[digit]


scores = torch.stack([log_prob(digit, test) for digit in range(10)])
accuracy = (scores.argmax(0) == digits.test_labels).float().mean().item()
print(f"\nten experts as a classifier are right on {accuracy:.3f} of the held-out digits")

A, B = 3, 8
first, second = experts[A], experts[B]
both = first + second
# away from B, up to where images of A are on average; with log Z, so that no energy is negative
level = -log_prob(B, train[digits.train_labels == A]).mean().item()
only = Without(first, lambda x: -log_prob(B, x), ceiling=level)
merged = RBM(
    torch.cat([first.weights, second.weights], 1),
    first.visible_bias + second.visible_bias,
    torch.cat([first.hidden_bias, second.hidden_bias]),
)
start = train[torch.isin(digits.train_labels, torch.tensor([A, B]))]
start = start[torch.randint(len(start), (NUM_CHAINS,))]
either = mixture([first, second], [0.3, 0.7], [log_z[A], log_z[B]])
informed, tempered = ebm.kernels.DiscreteMALA, ebm.kernels.DiscreteTempering
draws = {
    f"{A}": run(ebm.kernels.Gibbs(ebm.Boltzmann(first))),
    f"{B}": run(ebm.kernels.Gibbs(ebm.Boltzmann(second))),
    f"{A} AND {B}": run(informed(ebm.Boltzmann(both)), start),
    "the same, one machine": run(ebm.kernels.Gibbs(ebm.Boltzmann(merged))),
    f"{A} OR {B}": run(tempered(informed(ebm.Boltzmann(either)), num_temperatures=8), start),
    f"{A} NOT {B}": run(informed(ebm.Boltzmann(only)), start),
}
of_first, of_second = f"log p(x | {A})", f"log p(x | {B})"
print(f"\n{'draws of':24}{of_first:20}{of_second:20}p({A} | x), odds of 3 to 7")
found = {}
for name, x in draws.items():
    logs = log_prob(A, x), log_prob(B, x)
    share = (logs[0] + math.log(0.3) - logs[1] - math.log(0.7)).sigmoid()
    found[name] = tuple(mean(values) for values in (*logs, share))
    print(f"{name:24}" + "".join(f"{value!s:20}" for value in found[name]))


def apart(one, other):
    return abs(one.value - other.value) / math.hypot(one.std_error, other.std_error)


product = found[f"{A} AND {B}"], found["the same, one machine"]
share = found[f"{A} OR {B}"][2]
print(f"\nAND by two ways: {max(map(apart, *product)):.1f} standard errors apart at most")
print(f"share of {A} in OR: {share}, which is 0.3 by its weights")

pictures = {name: x[:36, -1].reshape(-1, 1, 8, 8) for name, x in draws.items()}
Path(args.out).mkdir(parents=True, exist_ok=True)
figure = ebm.plotting.sample_grids(pictures, rows=6, columns=6)
figure.savefig(Path(args.out) / "products_of_experts_digits.png")
figure = ebm.plotting.landscape(plane, extent=(-4, 5, -3, 5))
figure.savefig(Path(args.out) / "products_of_experts_plane.png")
assert farthest < 5
if not args.smoke:
    assert accuracy > 0.9
    assert max(map(apart, *product)) < 5
    assert abs(share.value - 0.3) < 5 * share.std_error
    assert found[f"{A} NOT {B}"][1].value < found[f"{A}"][1].value
