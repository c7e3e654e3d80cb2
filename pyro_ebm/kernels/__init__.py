"""Kernels: transitions that leave a distribution invariant, or say by how much they do not."""

from .base import Kernel
from .hamiltonian import HMC
from .langevin import MALA, ULA
from .metropolis import RandomWalk
from .microcanonical import MAMS, MCLMC
from .nuts import NUTS
from .transition import Info, State, run
from .underdamped import GHMC, UnderdampedLangevin

__all__ = [
    "GHMC",
    "HMC",
    "MALA",
    "MAMS",
    "MCLMC",
    "NUTS",
    "ULA",
    "Info",
    "Kernel",
    "RandomWalk",
    "State",
    "UnderdampedLangevin",
    "run",
]
