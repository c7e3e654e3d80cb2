"""Kernels: transitions that leave a distribution invariant, or say by how much they do not."""

from .annealed import annealed_langevin
from .base import Kernel
from .chees import ChEES
from .hamiltonian import HMC
from .langevin import MALA, ULA
from .metropolis import RandomWalk
from .microcanonical import MAMS, MCLMC
from .nuts import NUTS
from .stochastic import SGHMC, SGLD
from .tempering import ParallelTempering
from .transition import Info, State, run
from .underdamped import GHMC, UnderdampedLangevin

__all__ = [
    "GHMC",
    "HMC",
    "MALA",
    "MAMS",
    "MCLMC",
    "NUTS",
    "SGHMC",
    "SGLD",
    "ULA",
    "ChEES",
    "Info",
    "Kernel",
    "ParallelTempering",
    "RandomWalk",
    "State",
    "UnderdampedLangevin",
    "annealed_langevin",
    "run",
]
