"""Kernels: transitions that leave a distribution invariant, or say by how much they do not."""

from .alternating import Alternating
from .annealed import annealed_langevin
from .base import Kernel
from .chees import ChEES
from .cluster import SwendsenWang
from .discrete import SingleFlip
from .discrete_tempering import DiscreteTempering
from .exchange import Exchange
from .gibbs import Gibbs
from .hamiltonian import HMC
from .informed import DiscreteMALA, GibbsWithGradients
from .langevin import MALA, ULA
from .metropolis import RandomWalk
from .microcanonical import MAMS, MCLMC
from .nuts import NUTS
from .past import CouplingFromThePast
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
    "Alternating",
    "ChEES",
    "CouplingFromThePast",
    "DiscreteMALA",
    "DiscreteTempering",
    "Exchange",
    "Gibbs",
    "GibbsWithGradients",
    "Info",
    "Kernel",
    "ParallelTempering",
    "RandomWalk",
    "SingleFlip",
    "State",
    "SwendsenWang",
    "UnderdampedLangevin",
    "annealed_langevin",
    "run",
]
