"""An energy learned by persistent contrastive divergence against a VAE, on real digits.

Both see the same 1,437 images of 8x8 pixels, with Gaussian noise of 1.2 grey levels, so that the
data have a density. They are measured against 360 images that neither has seen.

    python examples/digits_ebm_vs_vae.py --out report/
"""

import argparse
import warnings

import torch

import pyro_ebm as ebm
from pyro_ebm.zoo import EBM, VAE, Training

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--out", default="report/", help="where to save table, figures and page")
parser.add_argument("--smoke", action="store_true", help="a run of a few seconds")
args = parser.parse_args()

torch.set_num_threads(1)  # matrices this small gain nothing from a second thread
noise = torch.Generator().manual_seed(0)


def real_valued(images):
    """Maps pixels from [0, 1] to [-2, 2], and adds noise of a standard deviation of 0.3."""
    return 4 * images - 2 + 0.3 * torch.randn(images.shape, generator=noise)


digits = ebm.datasets.digits()
train = real_valued(digits.train.repeat(8, 1, 1, 1))  # each image with eight draws of the noise
test = real_valued(digits.test)
ood = {
    "shuffled": ebm.datasets.shuffle_pixels(test, generator=noise),
    "upside down": ebm.datasets.upside_down(test),
}

# The energy: a Gaussian with the moments of the data, tilted by a network that learns what is not
# Gaussian about digits. A product of experts is a sum of energies.
torch.manual_seed(0)
flat = train.flatten(1)
precision = torch.cholesky_inverse(torch.linalg.cholesky(torch.cov(flat.T)))
moments = ebm.energies.Gaussian(train.mean(0), precision)
network = ebm.energies.MLP((1, 8, 8), hidden_sizes=(256, 256), base_scale=100.0)
energy = network + moments

kernel = ebm.kernels.HMC(step_size=0.2, num_steps=5, target_accept_prob=0.7)
chain = 20 if args.smoke else 200
models = {
    "EBM": EBM(
        energy,
        ebm.objectives.PersistentCD(kernel, num_chains=256, num_steps=4, reinit_prob=0.002),
        Training(num_steps=30 if args.smoke else 2500, clip_norm=1.0),
        sampler=kernel,
        warmup_steps=chain,
        num_draws=chain,
    ),
    "VAE": VAE(
        (1, 8, 8),
        latent_dim=16,
        hidden_sizes=(163, 163),
        training=Training(num_steps=300 if args.smoke else 4000),
    ),
}

card = ebm.compare(models, train, test, ood=ood)
print(card)
report = card.save(args.out)
print(f"\nthe page with all figures: {report}")

# ArviZ looks at the chains that drew the EBM's samples: the log density and a few pixels.
with warnings.catch_warnings():
    warnings.simplefilter("ignore", FutureWarning)  # ArviZ 0.23 announces 1.0
    import arviz
    import xarray

idata = ebm.to_arviz(models["EBM"].mcmc)
pixels = idata["posterior"]["x"][..., 0, 2:6:3, 2:6:3]
shown = xarray.Dataset({"lp": idata["sample_stats"]["lp"], "x": pixels})
print("\nthe chains of the EBM, by ArviZ")
print(arviz.summary(shown).to_string())

area = card["EBM"].auroc["shuffled"]
print(f"\nAUROC of the EBM against shuffled digits: {area}")
assert area.value - 5 * area.std_error > 0.9
