r"""The result that every estimator of log Z returns."""

from __future__ import annotations

__all__ = ["LogZ"]

from typing import NamedTuple


class LogZ(NamedTuple):
    r"""An estimate of :math:`\log Z` with what is known of its error, all in nats.

    Example:
        >>> print(LogZ(1.25, std_error=0.02, ess=830.0, lower=1.2, upper=1.31))
        log Z = 1.250 ± 0.020 nats, in [1.200, 1.310], ESS 830
    """

    value: float
    """The estimate."""
    std_error: float
    """Its standard error."""
    ess: float
    """The effective number of independent weights behind it."""
    lower: float
    """A lower bound, in expectation; minus infinity if none was computed."""
    upper: float
    """An upper bound, in expectation; infinity if none was computed."""

    def __str__(self) -> str:
        return (
            f"log Z = {self.value:.3f} ± {self.std_error:.3f} nats, "
            f"in [{self.lower:.3f}, {self.upper:.3f}], ESS {self.ess:.0f}"
        )
