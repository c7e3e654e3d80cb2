"""The zoo: generative models with one contract, to put on one scorecard."""

from .base import Generative, Likelihood
from .ebm import EBM
from .training import Training
from .vae import VAE

__all__ = ["EBM", "VAE", "Generative", "Likelihood", "Training"]
