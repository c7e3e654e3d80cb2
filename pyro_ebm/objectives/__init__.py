"""Objectives: losses for Pyro's SVI that learn energies."""

from .base import Objective, no_guide
from .contrastive import ContrastiveDivergence, PersistentCD
from .score_matching import DenoisingScoreMatching

__all__ = [
    "ContrastiveDivergence",
    "DenoisingScoreMatching",
    "Objective",
    "PersistentCD",
    "no_guide",
]
