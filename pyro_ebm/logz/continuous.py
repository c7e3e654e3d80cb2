r"""The path to a continuous target, in coordinates in which the target looks round.

.. math:: z = \mu + L w, \qquad U(w) = U(\mu + L w) - \log |L|

with :math:`\mu` the mean of some draws of the target and :math:`L L^\top` their covariance, times
the square of a width above one. The base is the standard normal of w unless a law is given: then
it covers what the draws do, somewhat more widely.
"""

from __future__ import annotations

__all__ = ["ContinuousPath", "ContinuousWalkers", "affine", "draws_exactly"]

import math
from collections.abc import Callable
from typing import NamedTuple

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import identity_transform

from ..distributions import Boltzmann
from ..energies.analytic import LOG_2PI
from ..energies.base import Energy
from ..engine import trace
from ..kernels.base import Kernel
from ..kernels.langevin import MALA
from ..kernels.metric import FEW_DIMENSIONS, Metric
from ..kernels.transition import normal_like, run
from ..potential import Potential, Site
from .path import Path

WIDTH = 1.5
"""The width of the base in standard deviations of the draws, in few dimensions."""
WIDTH_COST = 1.3
"""The length that the width may add to the path: in many dimensions it is less wide."""

ValueAndGrad = Callable[[Tensor], tuple[Tensor, Tensor]]


class ContinuousWalkers(NamedTuple):
    """Walkers with all that a kernel wants to know at their points."""

    z: Tensor
    """The round coordinates w, with shape ``(C, D)``."""
    value: Tensor
    """U in nats, ``(C,)``."""
    grad: Tensor
    """Its gradient, ``(C, D)``."""
    base_value: Tensor
    """U_0 in nats, ``(C,)``."""
    base_grad: Tensor
    """Its gradient, ``(C, D)``."""

    @property
    def excess(self) -> Tensor:
        """V = U - U_0 in nats and float64, ``(C,)``; infinite where U is not finite."""
        usable = self.value.isfinite() & self.grad.isfinite().all(-1)
        return (self.value.double() - self.base_value.double()).where(usable, math.inf)


class ContinuousPath(Path):
    """The path from a normal, or another law, to a continuous target.

    Args:
        potential: The target, in unconstrained space.
        kernel: What moves the walkers, in round coordinates; it needs a Metropolis step.
        draws: Points ``(n, D)`` of the target, to which the coordinates are fitted.
        boltzmann: The target once more, if it is one.
        base: The base, a normalised law of one point of ``boltzmann``, if not fitted.

    Raises:
        ValueError: If fewer than two of ``draws`` are finite.
    """

    def __init__(
        self,
        potential: Potential,
        kernel: Kernel,
        draws: Tensor,
        boltzmann: Boltzmann | None = None,
        base: dist.TorchDistribution | None = None,
    ) -> None:
        self.potential = potential
        self.kernel = kernel
        self.boltzmann = boltzmann
        self.base = base
        self.loc, self.tril = affine(draws, widened=True)
        self.log_volume = self.tril.diagonal().log().sum()
        self.exact = boltzmann is not None and draws_exactly(boltzmann)
        self.step_size = kernel.step_size if kernel.adapt_step_size else None
        self.target_accept_prob = kernel.target_accept_prob
        self._graphs: dict[int, ValueAndGrad] = {}
        self._traceable = True
        if base is not None:
            known = Boltzmann(
                _guarded(base),
                event_shape=boltzmann.event_shape,
                support=boltzmann.support,
            )
            self._of_base = Potential.of(known).value_and_grad

    def draw_base(  # noqa: D102
        self, num_walkers: int, generator: torch.Generator
    ) -> ContinuousWalkers:
        if self.base is None:
            like = self.potential.start.new_empty(num_walkers, self.potential.dim)
            return self.locate(normal_like(like, generator))
        return self._at(self.base.sample((num_walkers,)))

    def draw_target(self, num_walkers: int) -> ContinuousWalkers:  # noqa: D102
        return self._at(self.boltzmann.sample((num_walkers,)))

    def _at(self, x: Tensor) -> ContinuousWalkers:
        z = self.potential.unconstrain({"x": x})
        return self.locate(
            torch.linalg.solve_triangular(self.tril, (z - self.loc).mT, upper=False).mT
        )

    def points(self, walkers: ContinuousWalkers) -> Tensor:
        """Returns where walkers are in unconstrained space, ``(C, D)``."""
        return self.loc + walkers.z @ self.tril.mT

    @torch.no_grad()
    def locate(self, z: Tensor) -> ContinuousWalkers:  # noqa: D102
        self.num_gradients += len(z)
        u = self.loc + z @ self.tril.mT
        value, grad = self._evaluate(u)
        value, grad = value - self.log_volume, grad @ self.tril
        if self.base is None:
            base_value = 0.5 * (z.square().sum(-1) + LOG_2PI * z.shape[-1])
            return ContinuousWalkers(z, value, grad, base_value, z)
        base_value, base_grad = self._of_base(u)
        base_value, base_grad = base_value - self.log_volume, base_grad @ self.tril
        return ContinuousWalkers(z, value, grad, base_value, base_grad)

    def _evaluate(self, u: Tensor) -> tuple[Tensor, Tensor]:
        if len(u) not in self._graphs and self._traceable:
            rung = trace(self.potential.value_and_grad, (u,))
            self._graphs[len(u)], self._traceable = rung.fn, rung.name == "graph"
        return self._graphs.get(len(u), self.potential.value_and_grad)(u)

    def move(  # noqa: D102
        self,
        walkers: ContinuousWalkers,
        beta: Tensor,
        step_size: Tensor,
        num_steps: int,
        generator: torch.Generator,
    ) -> tuple[ContinuousWalkers, Tensor]:
        between = _Between(self, walkers, beta.to(walkers.z))
        site = Site("w", walkers.z.shape[1:], identity_transform, ())
        potential = Potential(between, [site], walkers.z)
        state = self._sized(self.kernel.init(potential, walkers.z), step_size)
        total = torch.zeros_like(walkers.value)
        for now, info in run(self.kernel, potential, state, num_steps, generator):
            if info.accept_prob is None:
                raise ValueError(
                    "kernel must have a Metropolis step, got "
                    f"{type(self.kernel).__name__}: use MALA or HMC instead"
                )
            total += info.accept_prob
            between.settle(now.z)
        return between.walkers, total / num_steps

    def _sized(self, state: tuple, step_size: Tensor) -> tuple:
        """Gives each walker its own step size, which kernels see as a factor of its units."""
        if step_size.dim() == 0:
            return state._replace(step_size=step_size.to(state.z))
        one = step_size.max()
        ratio = (step_size / one).to(state.z).unsqueeze(-1)
        ratio = ratio.sqrt() if isinstance(self.kernel, MALA) else ratio
        return state._replace(step_size=one.to(state.z), metric=Metric(state.metric.scale * ratio))

    def refitted(self, walkers: ContinuousWalkers) -> ContinuousPath:  # noqa: D102
        if self.base is not None or len(walkers.z) < 10 * self.potential.dim:
            return self
        path = ContinuousPath(self.potential, self.kernel, self.points(walkers), self.boltzmann)
        path.num_gradients = self.num_gradients
        path._graphs, path._traceable = self._graphs, self._traceable
        return path


class _Between:
    """U at some beta, which remembers what it was last asked, so that nothing is asked twice."""

    def __init__(self, path: ContinuousPath, walkers: ContinuousWalkers, beta: Tensor) -> None:
        self.path = path
        self.beta = beta
        self.walkers = self.seen = walkers

    def __call__(self, z: Tensor) -> tuple[Tensor, Tensor]:
        if z is not self.seen.z:
            self.seen = self.path.locate(z)
        seen, beta = self.seen, self.beta
        rows = beta.unsqueeze(-1)
        value = (1 - beta) * seen.base_value + beta * seen.value
        return value, (1 - rows) * seen.base_grad + rows * seen.grad

    def settle(self, z: Tensor) -> None:
        """Learns where a step of the kernel led."""
        at_last = (z == self.seen.z).all(-1)
        stayed = (z == self.walkers.z).all(-1)
        if not bool((at_last | stayed).all()):
            self.walkers = self.path.locate(z)
            return
        self.walkers = ContinuousWalkers(
            *(
                torch.where(at_last.unsqueeze(-1) if new.dim() > 1 else at_last, new, old)
                for new, old in zip(self.seen, self.walkers, strict=True)
            )
        )


def _guarded(law: dist.TorchDistribution) -> Callable[[Tensor], Tensor]:
    """Minus the log density of a law, infinite where it has none, in place of an error."""
    anchor = law.sample()

    def energy(x: Tensor) -> Tensor:
        inside = law.support.check(x)
        rows = inside.reshape(*inside.shape, *(1,) * (x.dim() - inside.dim()))
        return torch.where(inside, -law.log_prob(torch.where(rows, x, anchor)), math.inf)

    return energy


def affine(draws: Tensor, *, widened: bool) -> tuple[Tensor, Tensor]:
    """The mean of draws and a root of their covariance.

    Args:
        draws: Points, with shape ``(n, D)``.
        widened: Whether to make the root wider than the draws are.

    Returns:
        The mean ``(D,)`` and a lower triangular root ``(D, D)``; it is diagonal in more than 100
        dimensions.

    Raises:
        ValueError: If fewer than two draws are finite.
    """
    rows = draws.double()
    rows = rows[rows.isfinite().all(-1)]
    if len(rows) < 2:
        raise ValueError(
            f"only {len(rows)} of {len(draws)} draws of the target are finite: it may not be "
            "normalisable, or too steep for the kernel"
        )
    dim = rows.shape[-1]
    loc, scale = rows.mean(0), rows.std(0).clamp(min=1e-12)
    tril = scale.diag_embed()
    if dim <= FEW_DIMENSIONS:
        share = dim / (dim + len(rows))
        correlation = torch.corrcoef(rows.mT).reshape(dim, dim).nan_to_num(nan=0.0)
        correlation = (1 - share) * correlation + share * torch.eye(dim).to(rows)
        correlation.diagonal().fill_(1.0)
        root, failed = torch.linalg.cholesky_ex(correlation)
        if not failed:
            tril = scale.unsqueeze(-1) * root
    if widened:
        tril = tril * min(WIDTH, math.exp(WIDTH_COST / math.sqrt(2 * dim / math.pi)))
    return loc.to(draws), tril.to(draws)


def draws_exactly(boltzmann: Boltzmann) -> bool:
    """Whether draws of it are exact: those of an energy that knows how, at temperature one."""
    energy, temperature = boltzmann.energy, boltzmann.temperature
    cold = not isinstance(temperature, Tensor) and temperature == 1.0
    return (
        isinstance(energy, Energy)
        and energy.has_sample
        and cold
        and boltzmann.support is energy.support
    )
