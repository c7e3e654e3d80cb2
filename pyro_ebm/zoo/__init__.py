"""The zoo: generative models with one contract, to put on one scorecard."""

from .autoregressive import Autoregressive
from .base import Generative, Likelihood
from .baselines import GaussianMixture, Independent
from .diffusion import Diffusion
from .ebm import EBM
from .flow import Flow
from .gan import GAN
from .rbm import RBM
from .training import Training
from .vae import VAE

__all__ = [
    "EBM",
    "GAN",
    "RBM",
    "VAE",
    "Autoregressive",
    "Diffusion",
    "Flow",
    "GaussianMixture",
    "Generative",
    "Independent",
    "Likelihood",
    "Training",
]
