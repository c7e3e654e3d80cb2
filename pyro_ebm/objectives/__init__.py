"""Objectives: losses for Pyro's SVI that learn energies."""

from .averaging import ExponentialAverage
from .base import Objective, no_guide
from .contrastive import ContrastiveDivergence, PersistentCD
from .monitor import Monitor, TrainingDiverged
from .score_matching import DenoisingScoreMatching

__all__ = [
    "ContrastiveDivergence",
    "DenoisingScoreMatching",
    "ExponentialAverage",
    "Monitor",
    "Objective",
    "PersistentCD",
    "TrainingDiverged",
    "no_guide",
]
