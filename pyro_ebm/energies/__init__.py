"""Energies: what is known of a distribution up to its normaliser."""

from .alphabet import spins
from .analytic import Gaussian, GaussianMixture, Laplace
from .base import Energy, Mixture, Scaled, Sum, Tempered, mixture
from .boltzmann_machines import RBM, GaussianRBM
from .chain import ChainCRF
from .conditional import clamp, observe
from .deep_boltzmann import DBM
from .dense_boltzmann import BoltzmannMachine
from .discrete import DiscreteEnergy
from .exponential import ExponentialFamily
from .from_distribution import FromDistribution
from .graphs import IsingGraph, MarkovRandomField
from .landscapes import Banana, DoubleWell, Funnel, TwoModes
from .lattice import Ising, Potts
from .negation import Without
from .neural import MLP, Classifier, Conv
from .particles import Particles
from .whitened import Whitened

__all__ = [
    "DBM",
    "MLP",
    "RBM",
    "Banana",
    "BoltzmannMachine",
    "ChainCRF",
    "Classifier",
    "Conv",
    "DiscreteEnergy",
    "DoubleWell",
    "Energy",
    "ExponentialFamily",
    "FromDistribution",
    "Funnel",
    "Gaussian",
    "GaussianMixture",
    "GaussianRBM",
    "Ising",
    "IsingGraph",
    "Laplace",
    "MarkovRandomField",
    "Mixture",
    "Particles",
    "Potts",
    "Scaled",
    "Sum",
    "Tempered",
    "TwoModes",
    "Whitened",
    "Without",
    "clamp",
    "mixture",
    "observe",
    "spins",
]
