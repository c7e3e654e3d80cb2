"""Restore digits from noise: the Ising posterior, its most probable image and its marginals.

One pixel in ten of a binary digit is flipped. Given the noisy image, the digit is again an Ising
model: couplings say what images are like, and the noise is a field on every pixel. Two priors
learn from clean images by pseudolikelihood: one coupling for all pixels, on digits of 32 x 32;
and a coupling for each two neighbours and a field for each pixel, on the original 8 x 8. No
coupling is negative, so a graph cut finds the most probable image, and annealing is held against
it. The marginals come from Gibbs sampling.

    python examples/image_restoration.py --out report/
"""

import argparse
import math
from pathlib import Path

import torch
from torch.nn import Parameter
from torch.nn.functional import interpolate

import pyro_ebm as ebm
from pyro_ebm.energies import Ising, IsingGraph
from pyro_ebm.metrics import Estimate

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--out", default="report/", help="where to save the picture")
parser.add_argument("--smoke", action="store_true", help="a run of a few seconds")
args = parser.parse_args()

torch.set_num_threads(1)  # tensors this small gain nothing from a second thread
torch.manual_seed(0)
FLIPPED = 0.1
LOG_ODDS = 0.5 * math.log((1 - FLIPPED) / FLIPPED)  # what a reading of +1 adds to the field
NUM_IMAGES, NUM_SAMPLES, NUM_CHAINS = (4, 50, 8) if args.smoke else (100, 100, 16)
NUM_STARTS = 64 if args.smoke else 256  # of annealing: 64 miss the exact energy on an image in ten


def binary(images, scale):
    """Digits as spins, with shape (n, side, side), larger ones with smooth edges."""
    larger = interpolate(images, scale_factor=scale, mode="bilinear") if scale > 1 else images
    return torch.where(larger.squeeze(1) >= 0.5, 1.0, -1.0)


def corrupted(images):
    return torch.where(torch.rand_like(images) < FLIPPED, -images, images)


def neighbours(side):
    """Pairs of pixels of a grid that touch, at a corner too."""
    site = torch.arange(side * side).reshape(side, side)
    pairs = [
        (site[:, 1:], site[:, :-1]),
        (site[1:], site[:-1]),
        (site[1:, 1:], site[:-1, :-1]),
        (site[1:, :-1], site[:-1, 1:]),
    ]
    return torch.cat([torch.stack([a.flatten(), b.flatten()], -1) for a, b in pairs])


def learn(prior, images, lr):
    """Fits a prior to clean images, by the conditionals of all pixels; attraction only."""
    objective = ebm.objectives.PseudoLikelihood(num_sites=64)
    optimizer = torch.optim.Adam(prior.parameters(), lr)
    for _ in range(30 if args.smoke else 300):
        x = images[torch.randint(len(images), (64,))]
        optimizer.zero_grad()
        (-objective.surrogate(ebm.Boltzmann(prior), x).mean()).backward()
        optimizer.step()
        with torch.no_grad():
            prior.coupling.clamp_(min=0.0)
    return prior.requires_grad_(False)


def restore(name, posterior, clean, noisy, num_sweeps):
    """Restores images by every way; prints errors and returns the images and their errors."""
    ways = {"most probable, exact": [], "most probable, annealed": [], "marginals": []}
    excess = []
    for reading in noisy:
        p = ebm.Boltzmann(posterior(reading))
        exact = ebm.map_estimate(p)
        annealed = ebm.map_estimate(p, "annealing", num_sweeps=num_sweeps, num_starts=NUM_STARTS)
        assert exact.exact
        excess.append((annealed.energy - exact.energy).item())
        mcmc = ebm.MCMC(
            ebm.kernels.Gibbs(p), NUM_SAMPLES, 50, NUM_CHAINS, compile=False, disable_progbar=True
        )
        mcmc.run()
        mean = mcmc.get_samples()["x"].mean(0)
        found = (exact.x, annealed.x, torch.where(mean > 0, 1.0, -1.0))
        for way, image in zip(ways.values(), found, strict=True):
            way.append(image.reshape(clean.shape[1:]))
    images = {"clean": clean, "corrupted": noisy}
    images |= {way: torch.stack(found) for way, found in ways.items()}
    errors = {way: (x != clean).double().mean((1, 2)) for way, x in images.items()}
    print(f"\n{name:26} pixels that are wrong    of the corrupted image's")
    for way in ("corrupted", *ways):
        wrong = errors[way]
        share = Estimate(wrong.mean().item(), wrong.std().item() / math.sqrt(len(wrong)))
        print(f"{way:26} {share!s:24} {share.value / errors['corrupted'].mean():.2f}")
    met = sum(abs(e) < 1e-3 for e in excess)
    print(f"annealing met the exact energy on {met} of {len(excess)} images, and is", end=" ")
    print(f"{max(excess):.2g} nats above it at most")
    return images, {
        way: wrong.mean() / errors["corrupted"].mean() for way, wrong in errors.items()
    }


digits = ebm.datasets.digits()
chosen = torch.randperm(len(digits.test))[:NUM_IMAGES]

# one coupling and one field for all pixels of large digits
clean = binary(digits.test[chosen], 4)
smooth = Ising((32, 32), Parameter(torch.tensor(0.5)), Parameter(torch.tensor(0.0)), False)
learn(smooth, binary(digits.train, 4), lr=0.02)
print(f"coupling {smooth.coupling.item():.3f}, field {smooth.field.item():.3f}")


def large_posterior(reading):
    return Ising((32, 32), smooth.coupling, smooth.field + LOG_ODDS * reading, periodic=False)


name = "one coupling, 32 x 32"
images, shares = restore(name, large_posterior, clean, corrupted(clean), num_sweeps=400)

# a coupling for each pair that touches, and a field for each pixel, of digits as they are
edges = neighbours(8)
local = IsingGraph(edges, Parameter(torch.full((len(edges),), 0.1)), Parameter(torch.zeros(64)))
learn(local, binary(digits.train, 1).flatten(1), lr=0.02)


def small_posterior(reading):
    return IsingGraph(edges, local.coupling, local.field + LOG_ODDS * reading.flatten())


clean = binary(digits.test[chosen], 1)
name = "a coupling for each pair, 8 x 8"
restore(name, small_posterior, clean, corrupted(clean), num_sweeps=100)

pictures = {way: (1 + x[:8].unsqueeze(1)) / 2 for way, x in images.items()}
figure = ebm.plotting.sample_grids(pictures, rows=4, columns=2)
Path(args.out).mkdir(parents=True, exist_ok=True)
figure.savefig(Path(args.out) / "image_restoration.png")
assert max(share for way, share in shares.items() if way != "corrupted") < 0.5
