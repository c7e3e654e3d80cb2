"""Log Z with an error bar."""

from .base import LogZ
from .integration import quadrature

__all__ = ["LogZ", "quadrature"]
