"""Boltzmann machines on binary digits: an RBM and a deep one, both judged by exact likelihoods.

An RBM of 64 pixels and 10 hidden units learns by persistent contrastive divergence, whose chains
are Gibbs sweeps, through Pyro's SVI; scikit-learn's learns for as many epochs. The sum over hidden
units is short, so that log Z and the log-likelihood of held-out images are exact. A deep Boltzmann
machine of layers 64-10-10 learns in the same way from images that sweeps complete by hidden units.
Two RBMs stand beside variational autoencoders of as many parameters, and their bound on log p.

    python examples/rbm_digits.py --out report/
"""

import argparse
from pathlib import Path

import pyro
import torch
from pyro.infer import SVI

import pyro_ebm as ebm
from pyro_ebm.energies import DBM, RBM
from pyro_ebm.zoo import VAE, Training

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--out", default="report/", help="where to save the picture")
parser.add_argument("--smoke", action="store_true", help="a run of a few seconds")
args = parser.parse_args()

torch.set_num_threads(1)  # matrices this small gain nothing from a second thread
torch.manual_seed(0)
BATCH, EPOCHS = 128, 6 if args.smoke else 300

digits = ebm.datasets.digits(binarize=True)
train, test = digits.train.flatten(1), digits.test.flatten(1)
PLAN = Training(
    num_steps=EPOCHS * len(train) // BATCH, batch_size=BATCH, lr=0.03, betas=(0.5, 0.999)
)


def fit(energy, complete=lambda v: v):
    """Learns by sweeps of 256 chains, five in each update.

    Args:
        energy: What learns.
        complete: From images to points of the energy.
    """
    pyro.set_rng_seed(0)
    pyro.clear_param_store()  # what another machine learned under the same names
    kernel = ebm.kernels.Gibbs(num_sweeps=5)
    objective = ebm.objectives.PersistentCD(kernel, num_chains=256)

    def images(x):
        with pyro.plate("images", len(x)):
            pyro.sample("x", ebm.Boltzmann(energy), obs=x)

    optimizer = PLAN.optimizer()
    svi = SVI(images, ebm.no_guide, optimizer, objective)
    for step in range(PLAN.num_steps):
        x = complete(train[torch.randint(len(train), (BATCH,))])
        with pyro.poutine.scale(scale=1 / BATCH), pyro.validation_enabled(step == 0):
            svi.step(x)
        optimizer.step()


@torch.no_grad()
def judge(name, log_density, log_z):
    """Prints the exact mean log-likelihoods, in nats an image."""
    found = [(log_density(x) - log_z).mean().item() for x in (train, test)]
    print(f"{name:32} train {found[0]:8.3f}  held out {found[1]:8.3f}")
    return found[1]


rbm = RBM.initial(64, 10, train)
pixels = -rbm.visible_bias.detach()


def independent(v):
    return -(torch.nn.functional.softplus(pixels) * v).sum(-1) - (
        torch.nn.functional.softplus(-pixels) * (1 - v)
    ).sum(-1)


judge("independent pixels", independent, 0.0)
fit(rbm)
ours = judge("RBM", lambda v: -rbm(v), rbm.log_z())

from sklearn.neural_network import BernoulliRBM  # noqa: E402  the yardstick, and only that

theirs = -1e9
for rate in (0.01, 0.03, 0.1):
    learned = BernoulliRBM(10, learning_rate=rate, n_iter=EPOCHS, random_state=0).fit(
        train.numpy()
    )
    parts = (learned.components_.T, learned.intercept_visible_, learned.intercept_hidden_)
    other = RBM(*(torch.from_numpy(part).float() for part in parts))
    found = judge(f"scikit-learn's, rate {rate}", lambda v, e=other: -e(v), other.log_z())
    theirs = max(theirs, found)


def rival(latent_dim, num_hidden):
    """Fits a variational autoencoder, and prints its importance-weighted bound."""
    pyro.set_rng_seed(0)
    plan = Training(PLAN.num_steps, lr=5e-3)
    vae = VAE((64,), latent_dim, (num_hidden,), plan, num_importance=1000, binary=True)
    vae.fit(train, progress=False)
    name = f"VAE, {vae.num_parameters} parameters, bound"
    return judge(name, lambda v: vae.log_prob(v).value, 0.0)


small = rival(2, 5)
wide = RBM.initial(64, 64, train)
fit(wide)
bracket = ebm.logz.ais(ebm.Boltzmann(wide))
num_parameters = sum(p.numel() for p in wide.parameters())
best = judge(f"RBM, {num_parameters} parameters", lambda v: -wide(v), bracket.value)
print(f"by {bracket}")
large = rival(8, 27)

dbm = DBM.initial([64, 10, 10], std=0.1)
dbm.bias_0.data = rbm.initial(64, 1, train).visible_bias.data


@torch.no_grad()
def complete(v):
    """Draws the hidden units of images from a start of coins, by sweeps."""
    hidden = dbm.given(v)
    h = torch.rand(len(v), 20).round()
    for _ in range(20):
        h = hidden.sweep(h, torch.rand_like(h))
    return torch.cat([v, h], -1)


fit(dbm, complete)
# summing the hidden units out is exact too
deep = judge(
    "DBM, two hidden layers", lambda v: v @ dbm.bias_0 + dbm.given(v).log_z(), dbm.log_z()
)


def draw(energy, start):
    kernel = ebm.kernels.Gibbs(ebm.Boltzmann(energy), num_sweeps=20)
    mcmc = ebm.MCMC(
        kernel,
        num_samples=5 if args.smoke else 100,
        warmup_steps=0,
        num_chains=len(start),
        initial_params={"x": start},
        disable_progbar=True,
    )
    mcmc.run()
    return mcmc.get_samples(group_by_chain=True)["x"][:, -1, :64].unflatten(-1, (1, 8, 8))


coins = torch.rand(48, 84).round()
panels = {
    "data": digits.test[:48],
    "RBM": draw(rbm, coins[:, :64]),
    "DBM": draw(dbm, coins),
}
Path(args.out).mkdir(parents=True, exist_ok=True)
ebm.plotting.sample_grids(panels).savefig(Path(args.out) / "rbm_digits.png")
assert ours > theirs
assert args.smoke or ours > small
assert args.smoke or best + bracket.value - bracket.upper > large
assert args.smoke or abs(ours + 19.03) < 0.5
