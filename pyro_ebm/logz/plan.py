r"""Finds a base, a schedule and step sizes, before anything is estimated.

The base is fitted to draws of the target, never to its form. Then walkers go from it to the target
once: each rung is as far from the last as keeps their *conditional effective sample size* at nine
tenths,

.. math:: \frac{(\sum_i u_i)^2}{n \sum_i u_i^2} = 0.9, \qquad u_i = e^{-\delta V(z_i)},

they are resampled and moved, and the step size of the kernel follows their acceptance. What they
find is kept as a plan, which later walkers follow without learning any more: so their weights are
unbiased, and they are independent of each other.
"""

from __future__ import annotations

__all__ = ["Plan", "as_plan", "plan", "scout"]

import math
import warnings
from collections.abc import Mapping
from typing import NamedTuple

import pyro.distributions as dist
import torch
from torch import Tensor

from ..distributions import Boltzmann
from ..energies.base import reference_tensor
from ..kernels.acceleration import Runner
from ..kernels.base import Kernel
from ..kernels.hamiltonian import HMC
from ..kernels.resampling import systematic
from ..kernels.transition import seeded_generator
from ..layout import chains_innermost
from ..potential import Model, Potential
from ..ranks.divided import brought_together
from ..ranks.group import alone
from .base import check_distribution
from .continuous import ContinuousPath
from .discrete import DiscretePath
from .path import Path, taken

NUM_SCOUTS = 512
"""The number of walkers that go first."""
CONDITIONAL_ESS = 0.9
"""The part of them that a rung leaves effective."""
MAX_RUNGS = 500
"""The number of rungs after which a target counts as out of reach."""
FINE, FEWEST_FINE, MOST_FINE = 16, 16, 2000
"""The rungs of walkers that are never resampled: times the length of the path squared, and the
fewest and the most."""
LONG_PATH, MAX_FITS, GAINED = 12, 4, 0.8
"""The number of rungs above which the base is fitted once more, to where the scouts came; how
often, at most; and the part of its length down to which that has to shorten the path to go on."""
SHORT, WORTH = 2.0, 0.05
"""The length of a path from uniform sites that is short enough, and the part of its square, in
nats, by which another base over sites has to be nearer to the target to be tried."""
NUM_TRIES, FIRST_TRIES = 3, 10
"""How often the scouts move at a rung, and at the first."""
GAIN = 1.5
"""By how much the log of the step size follows the acceptance."""
NUM_CHAINS, WARMUP_STEPS, NUM_DRAWS, NUM_LEAPFROGS = 32, 200, 60, 8
"""The run that looks for the target: it is bounded, so that one that is not there is seen."""
STUCK, STUCK_PER_DIM = 10.0, 5.0
"""Chains of which U is so many nats above the lowest, and so many more for each dimension, are
held up where the target has next to no mass: the base is not fitted to them."""
GROWING = 1.5
"""By how much the spread of chains that have settled cannot grow."""


class Plan(NamedTuple):
    """A path and how to walk it."""

    path: Path
    betas: Tensor
    """The rungs of the scouts, from 0 to 1, in float64, ``(K,)``."""
    lengths: Tensor
    r"""How far each is from the base, :math:`\int \mathrm{sd}_\beta(V) \, d\beta`, ``(K,)``."""
    step_sizes: Tensor
    """The step size that suits each, ``(K,)``."""
    scouts: Tensor
    """Where the scouts were at each, ``(K, n, *state)``."""
    covered: float
    """The part of the base where the energy is finite, by the scouts that set out there."""

    def rungs(self, num_rungs: int) -> Tensor:
        """Returns inverse temperatures from 0 to 1 at equal distances, ``(num_rungs + 1,)``."""
        places = self.lengths[-1] * torch.linspace(0, 1, num_rungs + 1).to(self.lengths)
        betas = _interpolated(places, self.lengths, self.betas)
        betas[0], betas[-1] = 0.0, 1.0
        return betas

    @property
    def num_fine(self) -> int:
        r"""The rungs after which walkers that are never resampled still weigh about alike.

        The variance of their log weights is about the square of the length over the number of
        rungs.
        """
        wanted = math.ceil(FINE * self.lengths[-1].item() ** 2)
        return min(max(wanted, FEWEST_FINE), MOST_FINE)

    def step_size(self, beta: Tensor) -> Tensor:
        """Returns the step size that suits inverse temperatures, in their shape."""
        return _interpolated(beta.double(), self.betas, self.step_sizes.log()).exp()

    def near(self, betas: Tensor, num_walkers: int, generator: torch.Generator) -> Tensor:
        """Returns points about at equilibrium, ``(len(betas), num_walkers, *state)``."""
        rung = torch.searchsorted(self.betas, betas.contiguous()).clamp(max=len(self.betas) - 1)
        order = torch.rand(
            len(betas), self.scouts.shape[1], generator=generator, device=self.scouts.device
        )
        repeats = math.ceil(num_walkers / self.scouts.shape[1])
        rows = order.argsort(-1).repeat(1, repeats)[:, :num_walkers]
        return self.scouts[rung.unsqueeze(-1), rows]


def plan(
    target: Boltzmann | Model,
    args: tuple = (),
    kwargs: Mapping | None = None,
    *,
    kernel: Kernel | None = None,
    base: dist.TorchDistribution | None = None,
    draws: Tensor | None = None,
) -> Plan:
    r"""Finds a base, a schedule and step sizes for a target; estimators take what it finds.

    Without ``draws``, 32 chains of :class:`~pyro_ebm.kernels.HMC` look for the target in
    unconstrained space, from uniform starts in a cube of side 4; what none of them finds, and the
    base does not cover, stays unseen by every estimator. The base is normal with their mean, and
    one and a half times their standard deviation (less in many dimensions).

    On a discrete support no search is needed: walkers go from uniform sites by Gibbs sweeps, of
    sites that attract each other in pairs by cluster moves too
    (:class:`~pyro_ebm.logz.DiscretePath`), or by ``kernel``, any one of discrete targets; and the
    base is fitted to where they came if that makes the path shorter by a fifth; with ``draws`` it
    is fitted to these, nine parts in ten.

    Args:
        target: A Boltzmann distribution without a batch, or a Pyro model.
        args: What the model takes.
        kwargs: What the model takes by name.
        kernel: What moves walkers, without a target and with a Metropolis step; its step size is
            in units of the base, and tuned unless it says otherwise.
            :class:`~pyro_ebm.kernels.HMC` of four leapfrogs if not given, or what suits a discrete
            target.
        base: The base, in place of a fitted one: a normalised law of one point that covers the
            target.
        draws: Points ``(n, *event)`` of the target to fit the base to, in place of a run: the data
            that an energy was trained on, or draws of a long run.

    Raises:
        ValueError: If the target has a batch, the kernel has a target or no Metropolis step,
            ``base`` is not normalised, ``base`` or ``draws`` is given for a model, or no path of
            500 rungs reaches the target.

    Example:
        >>> import pyro_ebm as ebm
        >>> found = plan(ebm.Boltzmann(ebm.energies.Banana(scale=1.0, curvature=0.5)))
        >>> found.betas[0].item(), found.betas[-1].item()
        (0.0, 1.0)
    """
    boltzmann = target if isinstance(target, Boltzmann) else None
    discrete = boltzmann is not None and boltzmann.support.is_discrete
    if discrete and base is not None:
        raise ValueError(
            f"base must be None, as support {boltzmann.support} is discrete: walkers come from "
            "independent sites; for others give estimators "
            "pyro_ebm.logz.scout(pyro_ebm.logz.DiscretePath(boltzmann, logits), generator)"
        )
    _check(boltzmann, kernel, base, draws)
    if discrete:
        return _plan_discrete(boltzmann, kernel, draws)
    kernel = HMC(step_size=0.5, num_steps=4) if kernel is None else kernel
    with brought_together() as divided:
        potential = Potential.of(target, args, kwargs)
    kernel.check_divided(divided)
    generator = seeded_generator(potential.start.device)
    num_gradients = 0
    if draws is None:
        with alone():  # ranks make the same plan
            z, num_gradients = _search(potential, generator)
    else:
        z = potential.unconstrain({"x": draws.to(potential.start)})
    path = ContinuousPath(potential, kernel, z, boltzmann, base)
    path.num_gradients = num_gradients
    found = scout(path, generator)
    gained = draws is None and len(found.betas) > LONG_PATH
    for _ in range(MAX_FITS):
        if not gained:
            break
        path = found.path.refitted(found.path.locate(found.scouts[-1]))
        if path is found.path:
            break
        before, found = found, scout(path, generator)
        gained = found.lengths[-1] < GAINED * before.lengths[-1]
    return found


def _plan_discrete(boltzmann: Boltzmann, kernel: Kernel | None, draws: Tensor | None) -> Plan:
    path = DiscretePath(boltzmann, kernel=kernel)
    generator = seeded_generator(reference_tensor(boltzmann.energy).device)
    if draws is not None:
        return scout(path.fitted(draws), generator)
    found = scout(path, generator)
    if found.lengths[-1] < SHORT:
        return found
    fitted = path.refitted(path.locate(found.scouts[-1]))
    if fitted.gain < WORTH * found.lengths[-1] ** 2:
        return found
    again = scout(fitted, generator)
    return again if again.lengths[-1] < GAINED * found.lengths[-1] else found


def as_plan(
    target: Boltzmann | Plan, kernel: Kernel | None, base: dist.TorchDistribution | None
) -> Plan:
    """Makes a plan, unless there is one.

    Raises:
        ValueError: If there is one, and a kernel or base beside it.
    """
    if not isinstance(target, Plan):
        return plan(target, kernel=kernel, base=base)
    if kernel is not None or base is not None:
        raise ValueError("a plan has its kernel and base: give them to pyro_ebm.logz.plan")
    return target


def _check(
    boltzmann: Boltzmann | None,
    kernel: Kernel | None,
    base: dist.TorchDistribution | None,
    draws: Tensor | None,
) -> None:
    if kernel is not None and not (kernel.target is None and kernel.potential_fn is None):
        raise ValueError("kernel must come without a target: it is bound to a path to it")
    if boltzmann is None:
        if base is not None or draws is not None:
            raise ValueError("base and draws are of one point of a Boltzmann, not of a model")
        return
    check_distribution(boltzmann)
    if isinstance(base, Boltzmann) and not base.is_normalized:
        raise ValueError("base must be normalised: give the Boltzmann its log_z")
    if base is not None and (base.batch_shape or base.event_shape != boltzmann.event_shape):
        raise ValueError(
            f"base must be over one point, with event_shape {tuple(boltzmann.event_shape)}, got "
            f"batch_shape {tuple(base.batch_shape)} and event_shape {tuple(base.event_shape)}"
        )
    if draws is not None and draws.shape[1:] != boltzmann.event_shape:
        raise ValueError(
            f"draws must have shape (n, *event) with event {tuple(boltzmann.event_shape)}, got "
            f"{tuple(draws.shape)}"
        )


def _search(potential: Potential, generator: torch.Generator) -> tuple[Tensor, int]:
    """Runs chains until they should be where the target is, and returns their draws."""
    kernel = HMC(num_steps=NUM_LEAPFROGS, metric_rank=None)
    start = chains_innermost(potential.initialize(NUM_CHAINS))
    state = kernel.init(potential, start)
    runner = Runner(kernel, potential, state, WARMUP_STEPS + NUM_DRAWS, "auto")
    num_gradients = torch.zeros((), dtype=torch.float64, device=start.device)
    kept, values = [], []
    tuning = kernel.adaptation(WARMUP_STEPS)
    for now, history in runner.run(state, WARMUP_STEPS, generator, tuning):
        state = now
        num_gradients += history.info.num_steps.sum()
    for _, history in runner.run(state, NUM_DRAWS, generator):
        num_gradients += history.info.num_steps.sum()
        kept.append(history.z)
        values.append(history.potential)
    z, height = torch.cat(kept), torch.cat(values).double().mean(0)
    _check_settled(z)
    here = ~(height > height.nan_to_num(nan=math.inf).min() + STUCK + STUCK_PER_DIM * z.shape[-1])
    z = z[:, here]
    return z.flatten(0, 1), int(num_gradients)


def _check_settled(z: Tensor) -> None:
    """Warns of chains that run off: what has no normaliser has no place to stay at."""
    early, late = (part.double().flatten(0, 1) for part in z.chunk(2))
    if not bool(z.isfinite().all()):
        warnings.warn(
            "chains that look for the target left the numbers: its energy has no lower bound, or "
            "is too steep for them, and it may not be normalisable",
            UserWarning,
            stacklevel=4,
        )
        return
    grown = (late.std(0) / early.std(0)).max().item()
    if grown > GROWING:
        warnings.warn(
            f"chains that look for the target run off: their spread grew {grown:.2f}-fold from "
            f"the first half of {len(z)} steps to the second. The energy may not be normalisable; "
            "if it is, give draws= of a longer run to pyro_ebm.logz.plan",
            UserWarning,
            stacklevel=4,
        )


def scout(path: Path, generator: torch.Generator) -> Plan:
    """Sends walkers along a path for the first time.

    Args:
        path: The path.
        generator: Where the noise comes from.

    Raises:
        ValueError: If the energy is finite at no draw of the base, or 500 rungs do not reach the
            target.

    Example:
        >>> import pyro_ebm as ebm
        >>> wide = plan(ebm.Boltzmann(ebm.energies.DoubleWell(beta=1.0)))
        >>> again = scout(wide.path, torch.Generator().manual_seed(0))
        >>> again.betas[0].item(), again.betas[-1].item()
        (0.0, 1.0)
    """
    walkers = path.draw_base(NUM_SCOUTS, generator)
    covered = walkers.excess.isfinite().double().mean().item()
    step_size = walkers.z.new_tensor(path.step_size or 1.0, dtype=torch.float64)
    betas, lengths, points, steps = [0.0], [0.0], [walkers.z], []
    while betas[-1] < 1:
        if len(betas) > MAX_RUNGS:
            grown = (walkers.z.double().std(0) / points[0].double().std(0)).max().item()
            raise ValueError(
                f"{MAX_RUNGS} rungs from the base did not reach the target, but beta = "
                f"{betas[-1]:.2e} (1 - beta = {1 - betas[-1]:.1e}), where walkers spread "
                f"{grown:.1f} times as wide as the base: either the base is too far, then give a "
                "better base= or draws= to pyro_ebm.logz.plan, or the energy is not normalisable"
            )
        gap, share = _next_gap(walkers.excess, 1 - betas[-1])
        betas.append(betas[-1] + gap if gap < 1 - betas[-1] else 1.0)
        lengths.append(lengths[-1] + math.sqrt(-math.log(share)))
        weights = (-gap * walkers.excess).softmax(0)
        walkers = taken(walkers, systematic(weights.unsqueeze(0), generator)[0])
        beta = step_size.new_tensor(betas[-1])
        for _ in range(NUM_TRIES if steps else FIRST_TRIES):
            walkers, accept_prob = path.move(walkers, beta, step_size, 1, generator)
            if path.step_size is not None:
                miss = accept_prob.double().mean() - path.target_accept_prob
                step_size = step_size * (GAIN * miss).exp()
                step_size = step_size.clamp(max=path.largest_step_size)
        steps.append(step_size)
        points.append(walkers.z)
    return Plan(
        path,
        torch.tensor(betas, dtype=torch.float64, device=step_size.device),
        torch.tensor(lengths, dtype=torch.float64, device=step_size.device),
        torch.stack([steps[0], *steps]),
        torch.stack(points),
        covered,
    )


def _next_gap(excess: Tensor, most: float) -> tuple[float, float]:
    """The largest step in beta that leaves enough walkers effective, and the share it leaves."""
    finite = excess[excess.isfinite()]
    if not len(finite):
        raise ValueError(
            "the energy is not finite at any draw of the base: give a base= that covers the "
            "target to pyro_ebm.logz.plan"
        )
    finite = finite - finite.min()

    def share(gap: float) -> float:
        weights = (-gap * finite).exp()
        return (weights.sum().square() / (len(finite) * weights.square().sum())).item()

    if share(most) >= CONDITIONAL_ESS:
        return most, min(share(most), 1.0 - 1e-9)
    low, high = most * 1e-18, most
    for _ in range(60):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if share(middle) >= CONDITIONAL_ESS else (low, middle)
    return low, min(share(low), 1.0 - 1e-9)


def _interpolated(x: Tensor, at: Tensor, values: Tensor) -> Tensor:
    """Interpolates linearly between rising places ``at``."""
    right = torch.searchsorted(at, x.contiguous()).clamp(1, len(at) - 1)
    low, high = at[right - 1], at[right]
    share = ((x - low) / (high - low)).clamp(0, 1)
    return values[right - 1].lerp(values[right], share)
