"""Energies: what is known of a distribution up to its normaliser."""

from .alphabet import spins
from .analytic import Gaussian, GaussianMixture, Laplace
from .base import Energy, Mixture, Scaled, Sum, Tempered, mixture
from .discrete import DiscreteEnergy
from .landscapes import Banana, DoubleWell, Funnel, TwoModes
from .neural import MLP, Classifier, Conv
from .whitened import Whitened

__all__ = [
    "MLP",
    "Banana",
    "Classifier",
    "Conv",
    "DiscreteEnergy",
    "DoubleWell",
    "Energy",
    "Funnel",
    "Gaussian",
    "GaussianMixture",
    "Laplace",
    "Mixture",
    "Scaled",
    "Sum",
    "Tempered",
    "TwoModes",
    "Whitened",
    "mixture",
    "spins",
]
