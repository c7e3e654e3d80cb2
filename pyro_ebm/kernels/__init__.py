"""Kernels: transitions that leave a distribution invariant, or say by how much they do not."""

from .base import Kernel
from .hamiltonian import HMC
from .langevin import MALA, ULA
from .transition import Info, State, run

__all__ = ["HMC", "MALA", "ULA", "Info", "Kernel", "State", "run"]
