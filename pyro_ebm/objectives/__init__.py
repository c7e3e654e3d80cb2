"""Objectives: losses for Pyro's SVI that learn energies."""

from .adversarial import Adversarial, FlowContrastive
from .averaging import ExponentialAverage
from .base import Objective, no_guide
from .contrastive import ContrastiveDivergence, PersistentCD, ShortRun
from .energy_discrepancy import EnergyDiscrepancy
from .improved_contrastive import ImprovedCD
from .jarzynski import Jarzynski
from .likelihood import MaximumLikelihood
from .monitor import Monitor, TrainingDiverged
from .noise_contrastive import ConditionalNoiseContrastive, NoiseContrastive
from .pseudolikelihood import PseudoLikelihood, RatioMatching
from .resume import Resumable
from .score_matching import DenoisingScoreMatching, ScoreMatching, SlicedScoreMatching

__all__ = [
    "Adversarial",
    "ConditionalNoiseContrastive",
    "ContrastiveDivergence",
    "DenoisingScoreMatching",
    "EnergyDiscrepancy",
    "ExponentialAverage",
    "FlowContrastive",
    "ImprovedCD",
    "Jarzynski",
    "MaximumLikelihood",
    "Monitor",
    "NoiseContrastive",
    "Objective",
    "PersistentCD",
    "PseudoLikelihood",
    "RatioMatching",
    "Resumable",
    "ScoreMatching",
    "ShortRun",
    "SlicedScoreMatching",
    "TrainingDiverged",
    "no_guide",
]
