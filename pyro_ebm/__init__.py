"""Energy-based models as first-class citizens of Pyro."""

from . import energies, kernels, logz, objectives
from .distributions import Boltzmann, energy_factor
from .export import to_arviz
from .mcmc import MCMC
from .objectives.base import no_guide
from .version import __version__

__all__ = [
    "MCMC",
    "Boltzmann",
    "__version__",
    "energies",
    "energy_factor",
    "kernels",
    "logz",
    "no_guide",
    "objectives",
    "to_arviz",
]
