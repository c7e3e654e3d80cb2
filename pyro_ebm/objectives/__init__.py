"""Objectives: losses for Pyro's SVI that learn energies."""

from .base import Objective, no_guide
from .contrastive import ContrastiveDivergence, PersistentCD, ShortRun
from .improved_contrastive import ImprovedCD
from .jarzynski import Jarzynski
from .likelihood import MaximumLikelihood
from .score_matching import DenoisingScoreMatching

__all__ = [
    "ContrastiveDivergence",
    "DenoisingScoreMatching",
    "ImprovedCD",
    "Jarzynski",
    "MaximumLikelihood",
    "Objective",
    "PersistentCD",
    "ShortRun",
    "no_guide",
]
