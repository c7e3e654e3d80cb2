"""One network that classifies digits and draws them: a classifier read as an energy (JEM).

The logits of a classifier are the energies of the classes. One Pyro model observes the images, by
the energy, and their labels, by the softmax; the same network learns both. It is set against
itself, trained to classify alone: accuracy and calibration on images that neither has seen. Then
chains draw each digit from its own conditional energy.

    python examples/jem_digits.py --out report/
"""

import argparse
import copy
import math
from pathlib import Path

import pyro
import torch
from pyro.infer import SVI, Trace_ELBO
from torch import nn

import pyro_ebm as ebm
from pyro_ebm.metrics import Estimate
from pyro_ebm.zoo import Training

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--out", default="report/", help="where to save the picture")
parser.add_argument("--smoke", action="store_true", help="a run of a few seconds")
args = parser.parse_args()

torch.set_num_threads(1)  # matrices this small gain nothing from a second thread
torch.manual_seed(0)
noise = torch.Generator().manual_seed(0)
PLAN = Training(num_steps=40 if args.smoke else 2500, batch_size=128, lr=1e-3, clip_norm=1.0)
CHAIN = 10 if args.smoke else 200
EACH = 36  # draws of each digit, as many as test images


def real_valued(images):
    """Maps pixels from [0, 1] to [-2, 2], and adds noise of a standard deviation of 0.3."""
    return 4 * images - 2 + 0.3 * torch.randn(images.shape, generator=noise)


digits = ebm.datasets.digits()
train = real_valued(digits.train.repeat(8, 1, 1, 1))  # each image with eight draws of the noise
labels = digits.train_labels.repeat(8)
test = real_valued(digits.test)

# a Gaussian with the moments of all digits, tilted by the logits of each
flat = train.flatten(1)
precision = torch.cholesky_inverse(torch.linalg.cholesky(torch.cov(flat.T)))
moments = ebm.energies.Gaussian(train.mean(0), precision)


network = nn.Sequential(
    nn.Flatten(),
    *(nn.Linear(64, 200), nn.SiLU(), nn.Linear(200, 200), nn.SiLU()),
    nn.Linear(200, 10),
)
joint = ebm.energies.Classifier((1, 8, 8), network, base_scale=100.0)
plain = copy.deepcopy(joint)
energy = joint + moments


def fit(model, loss, after_step=lambda: None):
    pyro.set_rng_seed(0)
    pyro.clear_param_store()
    optimizer = PLAN.optimizer()
    svi = SVI(model, ebm.no_guide, optimizer, loss)
    for step in range(PLAN.num_steps):
        rows = torch.randint(len(train), (PLAN.batch_size,))
        with pyro.poutine.scale(scale=1 / PLAN.batch_size), pyro.validation_enabled(step == 0):
            svi.step(train[rows], labels[rows])
        optimizer.step()
        after_step()


def jem(x, y):
    with pyro.plate("data", len(x)):
        x = pyro.sample("x", ebm.Boltzmann(energy), obs=x)
        pyro.sample("y", joint.label(x), obs=y)


def alone(x, y):
    pyro.module("plain", plain)
    with pyro.plate("data", len(x)):
        pyro.sample("y", plain.label(x), obs=y)


kernel = ebm.kernels.HMC(step_size=0.2, num_steps=5, target_accept_prob=0.7)
objective = ebm.objectives.PersistentCD(kernel, num_chains=200, num_steps=4, reinit_prob=0.002)


def tune():
    """Follows the energy as it sharpens: the step size moves towards its target acceptance."""
    acceptance = objective.last_info["x"].accept_prob.mean().item()
    kernel.step_size *= math.exp(0.1 * (acceptance - kernel.target_accept_prob))


fit(alone, Trace_ELBO())
fit(jem, objective, tune)


@torch.no_grad()
def judge(name, classifier):
    """Prints accuracy, mean log score and expected calibration error over ten bins."""
    label = classifier.label(test)
    sure, guess = label.probs.max(-1)
    hit = (guess == digits.test_labels).double()
    score = label.log_prob(digits.test_labels).double()
    bins = (10 * sure).long().clamp(max=9)
    gap = sum((hit[bins == b] - sure[bins == b]).sum().abs() for b in range(10)) / len(test)
    means = (
        Estimate(v.mean().item(), v.std().item() / math.sqrt(len(test))) for v in (hit, score)
    )
    print(f"{name:26}", *(f"{mean!s:22}" for mean in means), f"{gap:.3f}")
    return hit.mean().item()


print(f"{'held-out images':26} {'accuracy':22} {'log p(y|x) (nats)':22} calibration error")
judge("classifier alone", plain)
accuracy = judge("JEM", joint)

# each digit from its own energy, by chains that start at draws of no digit
start = moments.sample(EACH)
draws = {}
for digit in range(10):
    p = ebm.Boltzmann(joint.given(digit) + moments)
    mcmc = ebm.MCMC(
        ebm.kernels.HMC(p, step_size=kernel.step_size, num_steps=5),
        CHAIN,
        warmup_steps=CHAIN,
        num_chains=EACH,
        initial_params={"x": start},
        disable_progbar=True,
    )
    mcmc.run()
    draws[str(digit)] = mcmc.get_samples(group_by_chain=True)["x"][:, -1]

with torch.no_grad():
    read = [plain.label(x).probs.argmax(-1) == int(digit) for digit, x in draws.items()]
shares = torch.stack(read).double().mean(1).tolist()
print("\nshare of the draws of each digit that the classifier alone reads as it")
print(*(f"{digit}: {share:.2f} " for digit, share in zip(draws, shares, strict=True)))

print(f"\n{'against held-out images':26} C2ST (0.5: no telling)  squared MMD")
other = train[: len(digits.train)][torch.randperm(len(digits.train))[: len(test)]]
samples = {
    "JEM, 36 of each digit": torch.cat(list(draws.values())),
    "other real images": other,
    "a Gaussian of all digits": moments.sample(len(test)),
}
bandwidth = torch.pdist(test.flatten(1)).median().item()
for name, x in samples.items():
    apart = ebm.metrics.classifier_two_sample(test, x)
    print(f"{name:26} {apart!s:23} {ebm.metrics.mmd(test, x, bandwidth)}")

figure = ebm.plotting.sample_grids(draws, rows=6, columns=6)
Path(args.out).mkdir(parents=True, exist_ok=True)
figure.savefig(Path(args.out) / "jem_digits.png")
assert accuracy >= (0.7 if args.smoke else 0.96)
