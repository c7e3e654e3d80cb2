r"""The task of composing: two models of a family, each of a part of the data, multiplied.

.. math:: p(x \mid a) \propto p(x) \, \sigma(x_0), \qquad p(x \mid b) \propto p(x) \, \sigma(x_1),
    \qquad p_{ab}(x) \propto p(x \mid a) \, p(x \mid b)

Where the law p of the plane is known, so is the product: what is right and what is up, with soft
edges, so that the parts overlap.
"""

from __future__ import annotations

__all__ = ["Parts", "composition", "draw_product", "parts_of"]

import warnings
from typing import NamedTuple

import torch
from torch import Generator, Tensor
from torch.nn.functional import logsigmoid

from ..datasets import Toy
from ..distributions import Boltzmann
from ..kernels.hamiltonian import HMC
from ..mcmc import MCMC
from ..metrics.base import Estimate
from ..metrics.two_sample import energy_distance
from ..zoo.base import Generative

POOL = 4
"""How many draws of the first model there are to begin a chain at."""

NUM_STEPS = 60
"""For how many steps the chains of the task adapt, and go on after that."""

MIN_STARTS = 10
"""How many starts the weights have to be worth, below which a warning says so."""

CELLS = 600
"""The cells along a side of the square that exact draws come from, of equal density within."""


class Parts(NamedTuple):
    """Two parts of a law of the plane to learn from, and what their product is."""

    first: Tensor
    """Points to the right, with shape ``(n, 2)``."""
    second: Tensor
    """Points up, with shape ``(n, 2)``."""
    product: Tensor
    """Exact draws from the product of the two densities, with shape ``(m, 2)``."""
    again: Tensor
    """As many others of them: how near draws of the very product come."""


def parts_of(law: Toy, num_points: int, num_draws: int, generator: Generator) -> Parts:
    """Draws points of two parts of a law, and from the product of their densities.

    Args:
        law: The law.
        num_points: How many points to draw of each part.
        num_draws: How many to draw from the product, twice.
        generator: The source of them all.

    Example:
        >>> from pyro_ebm.datasets import two_moons
        >>> found = parts_of(two_moons, 50, 20, Generator().manual_seed(0))
        >>> found.first.shape, found.product.shape
        (torch.Size([50, 2]), torch.Size([20, 2]))
    """
    first, second = (_part(law, axis, num_points, generator) for axis in (0, 1))
    product, again = _exact(law, 2 * num_draws, generator).chunk(2)
    return Parts(first, second, product, again)


def _part(law: Toy, axis: int, num_points: int, generator: Generator) -> Tensor:
    kept = []
    while sum(map(len, kept)) < num_points:
        x = law(num_points, generator)
        kept.append(x[torch.rand(num_points, generator=generator) < x[:, axis].sigmoid()])
    return torch.cat(kept)[:num_points]


def _exact(law: Toy, num_draws: int, generator: Generator) -> Tensor:
    width = 2 * law.half_width / CELLS
    middles = -law.half_width + width * (torch.arange(CELLS) + 0.5)
    points = torch.cartesian_prod(middles, middles)
    log_p = torch.cat([law.log_prob(some) for some in points.split(20_000)])
    log_product = 2 * log_p + logsigmoid(points).sum(-1)
    weights = (log_product - log_product.max()).exp()
    cells = weights.multinomial(num_draws, replacement=True, generator=generator)
    return points[cells] + width * (torch.rand(num_draws, 2, generator=generator) - 0.5)


@torch.no_grad()
def draw_product(
    first: Generative,
    second: Generative,
    num_samples: int,
    warmup_steps: int = NUM_STEPS,
    num_draws: int = NUM_STEPS,
) -> Tensor:
    r"""Draws from the product of the densities of two fitted models, by chains of HMC.

    .. math:: p(x) \propto p_1(x) \, p_2(x)

    which the chains leave invariant. Each begins at a draw of the first model, one of four times
    as many in proportion to the density of the second, so that modes which no chain would cross
    between have their weights by it: the more draws, the nearer to those of the product. Sharp
    densities of many coordinates leave few draws with a weight, which a warning says.

    Args:
        first: A model over all real numbers with a density, normalised or not.
        second: Another, of points of the same shape.
        num_samples: The number of chains, of which the ends are returned.
        warmup_steps: For how many steps a chain adapts.
        num_draws: For how many it goes on after that.

    Returns:
        Points, with shape ``(num_samples, *event)``.

    Raises:
        NotImplementedError: If one has no density that can be evaluated.
        RuntimeError: If one is not fitted.

    Example:
        >>> from pyro_ebm.zoo import Independent
        >>> right = Independent((2,)).fit(1 + torch.randn(400, 2))
        >>> left = Independent((2,)).fit(torch.randn(400, 2) - 1)
        >>> draw_product(right, left, 50, warmup_steps=20, num_draws=20).shape
        torch.Size([50, 2])
    """
    energies = []
    for model in (first, second):
        model.check_fitted()
        energy = model.as_energy()
        if energy is None:
            raise NotImplementedError(f"{type(model).__name__} has no density to multiply")
        energies.append(energy)
    pool = first.sample(POOL * num_samples).reshape(-1, *energies[0].event_shape)
    weights = (-energies[1](pool)).softmax(0)
    worth = 1 / weights.square().sum().item()
    if worth < MIN_STARTS:
        warnings.warn(
            f"the {len(pool)} draws of the first model are worth {worth:.1f} of the product: the "
            "chains begin at few points, and weights of modes apart are not those of the product; "
            "draw more, or begin with the model that is nearer to it",
            stacklevel=2,
        )
    chosen = weights.multinomial(num_samples, replacement=True)
    mcmc = MCMC(
        HMC(Boltzmann(energies[0] + energies[1]), step_size=0.1, num_steps=5),
        num_samples=num_draws,
        warmup_steps=warmup_steps,
        num_chains=num_samples,
        initial_params={"x": pool[chosen]},
        compile=False,
        disable_progbar=True,
    )
    mcmc.run()
    ends = mcmc.get_samples(group_by_chain=True)["x"][:, -1]
    return ends.reshape(num_samples, *first.event_shape)


def composition(first: Generative, second: Generative, exact: Tensor) -> Estimate:
    """Computes how far draws from the product of two models are from the product that is known.

    Args:
        first: A fitted model of one part.
        second: A fitted model of the other.
        exact: Exact draws from the product of the true densities, with shape ``(n, *event)``.

    Returns:
        The energy distance from as many draws of :func:`draw_product`, in units of x; unbiased,
        but for what the chains miss.

    Raises:
        NotImplementedError: If a model has no density that can be evaluated.
    """
    draws = draw_product(first, second, len(exact), NUM_STEPS, NUM_STEPS)
    return energy_distance(draws, exact)
