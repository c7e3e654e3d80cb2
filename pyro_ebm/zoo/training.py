"""The training loop of models that learn through Pyro's SVI."""

from __future__ import annotations

__all__ = ["Training", "train"]

import math
from collections.abc import Callable
from dataclasses import dataclass

import pyro
import torch
from pyro.infer import ELBO, SVI
from pyro.optim import LambdaLR
from torch import Tensor
from tqdm.auto import tqdm


@dataclass(frozen=True)
class Training:
    r"""How to train: Adam on minibatches, with a rate that falls along half a cosine.

    .. math:: \alpha_t = \alpha_0 \, \frac{1 + \cos(\pi t / T)}{2}

    The vanishing rate averages the noise of the last steps away, as an average of the parameters
    would.

    Args:
        num_steps: The number of updates :math:`T`.
        batch_size: The number of points in a minibatch.
        lr: The first learning rate :math:`\alpha_0`.
        betas: The decay rates of Adam's moments.
        clip_norm: The norm at which the gradient of each parameter tensor is cut.

    Raises:
        ValueError: If a number is not positive.

    Example:
        >>> Training(num_steps=100).lr
        0.001
    """

    num_steps: int = 2000
    batch_size: int = 128
    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)
    clip_norm: float = math.inf

    def __post_init__(self) -> None:
        for name in ("num_steps", "batch_size", "lr", "clip_norm"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")

    def optimizer(self) -> LambdaLR:
        """Makes the optimizer; its ``step`` lowers the rate."""
        settings = {
            "optimizer": torch.optim.Adam,
            "optim_args": {"lr": self.lr, "betas": self.betas},
            "lr_lambda": lambda t: 0.5 * (1 + math.cos(math.pi * min(1.0, t / self.num_steps))),
        }
        clip = None if math.isinf(self.clip_norm) else {"clip_norm": self.clip_norm}
        return LambdaLR(settings, clip_args=clip)


def train(
    model: Callable[[Tensor], object],
    guide: Callable[[Tensor], object],
    loss: ELBO,
    x: Tensor,
    training: Training,
    *,
    progress: bool = True,
    after_step: Callable[[], dict[str, float]] = dict,
) -> dict[str, list[float]]:
    """Trains a model and its guide, in a parameter store of their own.

    Args:
        model: The Pyro model of a minibatch, with shape ``(batch, *event)``.
        guide: Its guide.
        loss: An ELBO or an objective.
        x: The points, with shape ``(n, *event)``.
        training: How to train.
        progress: Whether to show a progress bar.
        after_step: Called after each update; what it returns is recorded.

    Returns:
        The loss in nats per example, and what ``after_step`` returned, at each update.

    Raises:
        RuntimeError: If the loss is not finite.
    """
    history: dict[str, list[float]] = {}
    optimizer = training.optimizer()
    with pyro.get_param_store().scope():
        svi = SVI(_per_example(model), _per_example(guide), optimizer, loss=loss)
        with tqdm(range(training.num_steps), disable=not progress, leave=False) as steps:
            for step in steps:
                batch = x[torch.randint(len(x), (training.batch_size,), device=x.device)]
                loss_now = _finite_loss(svi, batch, step, training)
                for name, value in {"loss": loss_now, **after_step()}.items():
                    history.setdefault(name, []).append(value)
                optimizer.step()
    return history


def _finite_loss(svi: SVI, batch: Tensor, step: int, training: Training) -> float:
    """Makes one update; only the first is validated by Pyro, later ones by the loss they leave."""
    with pyro.validation_enabled(step == 0):
        loss = float(svi.step(batch))
    if not math.isfinite(loss):
        raise RuntimeError(
            f"training diverged: the loss is {loss} at step {step} of {training.num_steps}; try a "
            f"smaller lr or clip_norm than {training.lr:g} and {training.clip_norm:g}"
        )
    return loss


def _per_example(program: Callable[[Tensor], object]) -> Callable[[Tensor], object]:
    """Weighs a minibatch such that the loss is in nats per example, of whatever batch size."""

    def weighed(x: Tensor) -> object:
        with pyro.poutine.scale(scale=1 / len(x)):
            return program(x)

    return weighed
