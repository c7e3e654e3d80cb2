r"""Training on data of many ranks: each has its own batch and its own chains, and all one step."""

from __future__ import annotations

__all__ = ["Averaged", "average_gradients"]

from collections.abc import Iterable, Iterator
from itertools import groupby
from typing import Any

import pyro
import torch
import torch.distributed as dist
from pyro.optim import PyroOptim
from torch import Tensor
from torch.utils._pytree import tree_map

from .divided import as_parts, check_divided, is_divided
from .group import first, num_ranks, rank, together, total

BUCKET = 2**23
"""About how many numbers of gradients travel at once, which bounds the memory for their copy."""


def average_gradients(parameters: Iterable[Tensor]) -> None:
    r"""Averages gradients over ranks, in place, as for one process on the data of all.

    .. math:: g = \frac1R \sum_r g_r

    which is the gradient of a mean over all data if ranks have equally many, and of Pyro's loss if
    each rank's is scaled to the whole: ``pyro.plate("data", size, subsample=shard)``. A parameter
    that is without a gradient on every rank stays so. Of parameters that are divided among ranks
    (``fully_shard``) torch has averaged the gradients: they are left as they are.

    Args:
        parameters: Parameters, in the same order on every rank.

    Raises:
        ValueError: If ranks differ in how many numbers there are, or a parameter is divided among
            other ranks.

    Example:
        >>> net = torch.nn.Linear(2, 1)
        >>> net(torch.randn(8, 2)).mean().backward()
        >>> average_gradients(net.parameters())
    """
    divided, parameters = _apart(parameters)
    for p in divided:
        check_divided(p)
    if num_ranks() == 1 or not parameters:
        return
    has = [0.0 if p.grad is None else 1.0 for p in parameters]
    size = float(sum(p.numel() for p in parameters))
    about = torch.tensor([size, size**2, *has], dtype=torch.float64)
    size_sum, square_sum, *has = (total(about)[0] / num_ranks()).tolist()
    if square_sum != size_sum**2:
        raise ValueError(
            f"ranks must average the same parameters, got {size:.0f} numbers on rank {rank()} and "
            f"{size_sum:.1f} in the mean"
        )
    for p in (p for p, h in zip(parameters, has, strict=True) if h and p.grad is None):
        p.grad = torch.zeros_like(p)
    used = [p for p, h in zip(parameters, has, strict=True) if h]
    for _, alike in groupby(used, key=lambda p: (p.dtype, p.device)):
        for bucket in _buckets(alike):
            flat = torch.cat([p.grad.reshape(-1) for p in bucket])
            together(dist.all_reduce, flat)
            flat /= num_ranks()
            for p, part in zip(bucket, flat.split([p.numel() for p in bucket]), strict=True):
                p.grad.copy_(part.reshape(p.shape))


def _apart(parameters: Iterable[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """Those that are divided among ranks, and those that each rank has whole."""
    found: tuple[list[Tensor], list[Tensor]] = ([], [])
    for p in parameters:
        found[not is_divided(p)].append(p)
    return found


def _buckets(parameters: Iterable[Tensor]) -> Iterator[list[Tensor]]:
    bucket: list[Tensor] = []
    for p in parameters:
        bucket.append(p)
        if sum(p.numel() for p in bucket) >= BUCKET:
            yield bucket
            bucket = []
    if bucket:
        yield bucket


class Averaged(PyroOptim):
    """A Pyro optimizer that averages gradients over ranks before it steps.

    Each rank hands its own batch to ``svi.step``, and an objective with persistent chains keeps
    ``num_chains`` of them on each rank, which move by noise of their own. Parameters that are new
    are first made those of the first rank; where they were not, ranks follow the first one's
    gradient in that step. What an optimizer does to a gradient, clipping it for one, it does to
    the average. Parameters that are divided among ranks (``fully_shard``) each rank moves its own
    part of, by gradients that torch has averaged.

    Args:
        optim: The optimizer.

    Example:
        >>> import pyro_ebm as ebm
        >>> energy = ebm.energies.Gaussian(torch.nn.Parameter(torch.zeros(2)), 1.0)
        >>> def model(x):
        ...     with pyro.plate("data", 1000, subsample=x):
        ...         pyro.sample("x", ebm.Boltzmann(energy), obs=x)
        >>> optim = Averaged(pyro.optim.Adam({"lr": 0.1}))
        >>> objective = ebm.objectives.ScoreMatching()
        >>> svi = pyro.infer.SVI(model, ebm.no_guide, optim, loss=objective)
        >>> loss = svi.step(torch.randn(8, 2))
    """

    def __init__(self, optim: PyroOptim) -> None:
        self.optim = optim
        self._known: set[str] = set()

    def __call__(self, params: Iterable[Tensor], *args: object, **kwargs: object) -> None:
        """Steps.

        Args:
            params: The parameters to move.
            args: What the optimizer takes.
            kwargs: What it takes by name.
        """
        params = list(params)
        if num_ranks() > 1:
            named = {pyro.get_param_store().param_name(p): p for p in params}
            params = [named[name] for name in sorted(named)]
            new = [named[name] for name in sorted(named) if name not in self._known]
            self._known |= set(named)
            divided, new = _apart(new)
            self._divide_states(divided)
            if _agree(new):
                average_gradients(params)
            else:
                for p in _apart(params)[1]:
                    p.grad = first(torch.zeros_like(p) if p.grad is None else p.grad)
        self.optim(params, *args, **kwargs)

    def _divide_states(self, parameters: list[Tensor]) -> None:
        """Divides what was kept of an optimizer, and waits for its parameters, as they are."""
        waiting = self.optim._state_waiting_to_be_consumed
        for p in parameters:
            name = pyro.get_param_store().param_name(p)
            if name in waiting:
                waiting[name] = tree_map(
                    lambda x, p=p: as_parts(x, p) if _is_of(x, p) else x, waiting[name]
                )

    def get_state(self) -> dict:
        """Returns the optimizer's state."""
        return self.optim.get_state()

    def set_state(self, state_dict: dict) -> None:
        """Sets the optimizer's state."""
        self.optim.set_state(state_dict)

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401  whatever the optimizer has
        if name == "optim":  # of a copy that is not yet made
            raise AttributeError(name)
        return getattr(self.optim, name)


def _is_of(x: object, parameter: Tensor) -> bool:
    """Whether there is a number for each of a parameter."""
    return isinstance(x, Tensor) and x.shape == parameter.shape and x.dim() > 0


def _agree(parameters: list[Tensor]) -> bool:
    """Makes parameters those of the first rank, and says whether they were on every rank."""
    differ = torch.zeros(1, dtype=torch.float64)
    for p in parameters:
        known = first(p)
        differ += (known != p.detach()).sum().cpu()
        p.data.copy_(known)
    return not parameters or not bool(total(differ)[0])
