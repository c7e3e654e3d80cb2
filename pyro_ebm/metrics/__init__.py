"""Metrics of samples, scores and densities, each with a standard error.

Samples are tensors of shape ``(n, *event)``; events are flattened, sums are done in float64.
"""

from .base import Estimate
from .detection import auroc
from .known_law import ModeWeights, kl_divergence, mode_weights
from .neighbours import PrecisionRecall, data_copying, precision_recall
from .restoration import restoration_error
from .two_sample import classifier_two_sample, energy_distance, mmd, sliced_wasserstein

__all__ = [
    "Estimate",
    "ModeWeights",
    "PrecisionRecall",
    "auroc",
    "classifier_two_sample",
    "data_copying",
    "energy_distance",
    "kl_divergence",
    "mmd",
    "mode_weights",
    "precision_recall",
    "restoration_error",
    "sliced_wasserstein",
]
