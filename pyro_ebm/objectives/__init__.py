"""Objectives: losses for Pyro's SVI that learn energies."""

from .adversarial import Adversarial, FlowContrastive
from .base import Objective, no_guide
from .contrastive import ContrastiveDivergence, PersistentCD
from .energy_discrepancy import EnergyDiscrepancy
from .noise_contrastive import ConditionalNoiseContrastive, NoiseContrastive
from .pseudolikelihood import PseudoLikelihood, RatioMatching
from .score_matching import DenoisingScoreMatching, ScoreMatching, SlicedScoreMatching

__all__ = [
    "Adversarial",
    "ConditionalNoiseContrastive",
    "ContrastiveDivergence",
    "DenoisingScoreMatching",
    "EnergyDiscrepancy",
    "FlowContrastive",
    "NoiseContrastive",
    "Objective",
    "PersistentCD",
    "PseudoLikelihood",
    "RatioMatching",
    "ScoreMatching",
    "SlicedScoreMatching",
    "no_guide",
]
