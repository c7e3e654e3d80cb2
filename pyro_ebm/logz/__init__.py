"""Log Z with an error bar."""

from .annealing import ais
from .automatic import estimate, evidence
from .base import LogZ, Rungs
from .bridge import bridge
from .discrete import DiscretePath
from .exact import exact
from .flow import flow
from .held_out import held_out
from .importance import importance
from .integration import quadrature
from .path import Path
from .plan import Plan, plan, scout
from .smc import smc
from .thermodynamic import stepping_stone, thermodynamic

__all__ = [
    "DiscretePath",
    "LogZ",
    "Path",
    "Plan",
    "Rungs",
    "ais",
    "bridge",
    "estimate",
    "evidence",
    "exact",
    "flow",
    "held_out",
    "importance",
    "plan",
    "quadrature",
    "scout",
    "smc",
    "stepping_stone",
    "thermodynamic",
]
