"""Energies: what is known of a distribution up to its normaliser."""

from .analytic import Banana, DoubleWell, Funnel, Gaussian, GaussianMixture, Laplace, TwoModes
from .base import Energy, Mixture, Scaled, Sum, mixture
from .neural import MLP, Conv

__all__ = [
    "MLP",
    "Banana",
    "Conv",
    "DoubleWell",
    "Energy",
    "Funnel",
    "Gaussian",
    "GaussianMixture",
    "Laplace",
    "Mixture",
    "Scaled",
    "Sum",
    "TwoModes",
    "mixture",
]
