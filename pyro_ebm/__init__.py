"""Energy-based models as first-class citizens of Pyro."""

from . import energies, kernels, objectives
from .distributions import Boltzmann, energy_factor
from .mcmc import MCMC
from .objectives.base import no_guide

__version__ = "0.1.0"
__all__ = ["MCMC", "Boltzmann", "energies", "energy_factor", "kernels", "no_guide", "objectives"]
