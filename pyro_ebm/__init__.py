"""Energy-based models as first-class citizens of Pyro."""

from . import (
    datasets,
    diagnostics,
    energies,
    kernels,
    logz,
    metrics,
    objectives,
    plotting,
    ranks,
    zoo,
)
from .compare import compare
from .distributions import Boltzmann, energy_factor
from .export import to_arviz
from .map_estimate import MAPEstimate, map_estimate
from .mcmc import MCMC
from .objectives.base import no_guide
from .restoring import denoise, inpaint
from .runs.draws import Draws
from .version import __version__

__all__ = [
    "MCMC",
    "Boltzmann",
    "Draws",
    "MAPEstimate",
    "__version__",
    "compare",
    "datasets",
    "denoise",
    "diagnostics",
    "energies",
    "energy_factor",
    "inpaint",
    "kernels",
    "logz",
    "map_estimate",
    "metrics",
    "no_guide",
    "objectives",
    "plotting",
    "ranks",
    "to_arviz",
    "zoo",
]
