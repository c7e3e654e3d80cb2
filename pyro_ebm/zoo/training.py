"""The training loops of models: through Pyro's SVI, or by losses of their own."""

from __future__ import annotations

__all__ = ["Player", "Training", "play", "train"]

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import pyro
import torch
from pyro.infer import ELBO, SVI
from pyro.optim import LambdaLR
from torch import Tensor, nn
from tqdm.auto import tqdm

from ..objectives.averaging import ExponentialAverage
from ..objectives.monitor import Monitor


@dataclass(frozen=True)
class Training:
    r"""How to train: Adam on minibatches, with a rate that falls along half a cosine.

    .. math:: \alpha_t = \alpha_0 \, \frac{1 + \cos(\pi t / T)}{2}

    The vanishing rate averages the noise of the last steps away; ``ema`` averages more of it, and
    makes of a run that is cut short, or of a constant rate, a better model.

    Args:
        num_steps: The number of updates :math:`T`.
        batch_size: The number of points in a minibatch.
        lr: The first learning rate :math:`\alpha_0`.
        betas: The decay rates of Adam's moments.
        clip_norm: The norm at which the gradient of each parameter tensor is cut.
        ema: The decay rate of the average of the parameters
            (:class:`~pyro_ebm.objectives.ExponentialAverage`) that the model ends with; without
            one it ends with the last.

    Raises:
        ValueError: If a number is not positive, or ``ema`` not between 0 and 1.

    Example:
        >>> Training(num_steps=100).lr
        0.001
    """

    num_steps: int = 2000
    batch_size: int = 128
    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)
    clip_norm: float = math.inf
    ema: float | None = None

    def __post_init__(self) -> None:
        for name in ("num_steps", "batch_size", "lr", "clip_norm"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        if self.ema is not None and not 0 < self.ema < 1:
            raise ValueError(f"ema must be between 0 and 1, got {self.ema}")

    def decay(self, step: int) -> float:
        """Returns the part of the first learning rate that is left at a step."""
        return 0.5 * (1 + math.cos(math.pi * min(1.0, step / self.num_steps)))

    def optimizer(self) -> LambdaLR:
        """Makes the optimizer; its ``step`` lowers the rate."""
        settings = {
            "optimizer": torch.optim.Adam,
            "optim_args": {"lr": self.lr, "betas": self.betas},
            "lr_lambda": self.decay,
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
        What :class:`~pyro_ebm.objectives.Monitor` records, with the loss in nats per example, and
        what ``after_step`` returned, at each update.

    Raises:
        TrainingDiverged: If training diverges; parameters are those of the last sound step.
    """
    told: dict[str, list[float]] = {}
    average = None
    optimizer = training.optimizer()
    with pyro.get_param_store().scope():
        svi = SVI(_per_example(model), _per_example(guide), optimizer, loss=loss)
        monitor = Monitor(svi)
        with tqdm(range(training.num_steps), disable=not progress, leave=False) as steps:
            for step in steps:
                batch = x[torch.randint(len(x), (training.batch_size,), device=x.device)]
                with pyro.validation_enabled(step == 0):  # later steps do what the first did
                    monitor.step(batch)
                for name, value in after_step().items():
                    told.setdefault(name, []).append(value)
                if training.ema is not None:
                    average = average or ExponentialAverage(pyro.get_param_store(), training.ema)
                    average.update()
                optimizer.step()
        if average is not None:
            average.assign()
    return {name: list(record) for name, record in monitor.history.items()} | told


class Player(NamedTuple):
    """Who lowers a loss of its own: a model has one, a game has two."""

    name: str
    """What its loss is recorded under."""
    module: nn.Module
    """Whose parameters it moves."""
    loss: Callable[[Tensor], Tensor]
    """The mean loss of a minibatch, with shape ``(batch, *event)``."""
    num_updates: int = 1
    """How many updates it makes, on a minibatch each, before the next player's turn."""


def play(
    players: Sequence[Player], x: Tensor, training: Training, *, progress: bool = True
) -> dict[str, list[float]]:
    """Trains players by turns, each by Adam on a loss of its own.

    Args:
        players: The players, in the order of their turns.
        x: The points, with shape ``(n, *event)``.
        training: How to train; a step is a turn of every player.
        progress: Whether to show a progress bar.

    Returns:
        The loss of each player at its last update of each step, by its name.

    Raises:
        RuntimeError: If a loss is not finite; nothing was learned from it.
    """
    learners = [_Learner(player, training) for player in players]
    history: dict[str, list[float]] = {player.name: [] for player in players}
    for step in tqdm(range(training.num_steps), disable=not progress, leave=False):
        for player, learner in zip(players, learners, strict=True):
            history[player.name].append(learner.take_turn(x, step))
    for learner in learners:
        learner.finish()
    return history


class _Learner:
    """A player with its optimizer and the average of its parameters."""

    def __init__(self, player: Player, training: Training) -> None:
        self.player, self.training = player, training
        self.parameters = [p for p in player.module.parameters() if p.requires_grad]
        self.optimizer = torch.optim.Adam(self.parameters, lr=training.lr, betas=training.betas)
        self.average = (
            None if training.ema is None else ExponentialAverage(player.module, training.ema)
        )

    def take_turn(self, x: Tensor, step: int) -> float:
        training = self.training
        self.optimizer.param_groups[0]["lr"] = training.lr * training.decay(step)
        for _ in range(self.player.num_updates):
            batch = x[torch.randint(len(x), (training.batch_size,), device=x.device)]
            loss = self.player.loss(batch)
            if not bool(loss.isfinite()):
                raise RuntimeError(
                    f"training diverged: the {self.player.name} is {loss.item()} at step {step} "
                    f"of {training.num_steps}; lower lr={training.lr}, or set clip_norm"
                )
            self.optimizer.zero_grad()
            loss.backward(inputs=self.parameters)
            for parameter in self.parameters:
                nn.utils.clip_grad_norm_(parameter, training.clip_norm)
            self.optimizer.step()
        if self.average is not None:
            self.average.update()
        return loss.item()

    def finish(self) -> None:
        if self.average is not None:
            self.average.assign()


def _per_example(program: Callable[[Tensor], object]) -> Callable[[Tensor], object]:
    """Weighs a minibatch such that the loss is in nats per example, of whatever batch size."""

    def weighed(x: Tensor) -> object:
        with pyro.poutine.scale(scale=1 / len(x)):
            return program(x)

    return weighed
