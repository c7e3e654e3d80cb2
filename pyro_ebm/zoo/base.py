r"""The contract of a generative model: fit, draw, score.

Models differ in what they can say of :math:`\log p(x)`, and a number means nothing without its
*kind*:

=========== ==========================================================================
kind        what ``value`` is
=========== ==========================================================================
"exact"     :math:`\log p(x)` to machine precision
"bound"     a lower bound on :math:`\log p(x)`, in expectation
"estimate"  an estimate of :math:`\log p(x)` that may err to either side
"none"      nothing: the model has no likelihood that can be computed
=========== ==========================================================================

Numbers of unlike kinds are never ranked together.
"""

from __future__ import annotations

__all__ = [
    "Density",
    "Generative",
    "Kind",
    "Likelihood",
    "check_binary",
    "check_data",
    "check_known",
]

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn
from typing_extensions import Self

from ..energies.base import Energy
from ..mcmc import MCMC
from ..restoring import denoise, inpaint
from ..validation import unvalidated
from .saving import read_file, write_file
from .settings import arguments_of

Kind = Literal["exact", "bound", "estimate", "none"]


class Likelihood(NamedTuple):
    """What a model says of the likelihood of some examples, and how far to trust it.

    Example:
        >>> Likelihood("none").value is None
        True
    """

    kind: Kind
    """What ``value`` is; see :mod:`pyro_ebm.zoo.base`."""
    value: Tensor | None = None
    """Nats per example, with shape ``(n,)``; nothing where the kind is "none"."""
    std_error: Tensor | None = None
    """The Monte Carlo standard error of each value, with shape ``(n,)``, where there is one."""


class Generative(nn.Module, ABC):
    r"""A model that can be fitted to points, drawn from, and asked how typical a point is.

    Guaranteed of every model: :meth:`fit` moves only the model's own parameters and leaves Pyro's
    global parameter store alone; training that diverges raises, and is never repaired; methods
    other than ``fit`` need a fitted model; with one seed (``pyro.set_rng_seed``) they repeat
    themselves.

    Args:
        event_shape: The shape of one point.

    Example:
        >>> class Independent(Generative):
        ...     def fit(self, x, progress=True):
        ...         self.law = torch.distributions.Normal(x.mean(0), x.std(0))
        ...         self.history["loss"] = [-self.law.log_prob(x).flatten(1).sum(1).mean().item()]
        ...         return self
        ...     def sample(self, num_samples):
        ...         return self.law.sample((num_samples,))
        ...     def log_prob(self, x):
        ...         return Likelihood("exact", self.law.log_prob(x).flatten(1).sum(1))
        >>> model = Independent(event_shape=(2,)).fit(torch.randn(100, 2))
        >>> model.sample(5).shape, model.typicality(torch.zeros(3, 2)).shape
        (torch.Size([5, 2]), torch.Size([3]))
    """

    def __init__(self, event_shape: Sequence[int]) -> None:
        super().__init__()
        self.event_shape = torch.Size(event_shape)
        self.history: dict[str, list[float]] = {}
        """What was recorded at each step of training, by name; empty before it."""
        self.mcmc: MCMC | None = None
        """The chains behind the last draws, where the model draws by chains."""

    @abstractmethod
    def fit(self, x: Tensor, progress: bool = True) -> Self:
        """Learns from points, and leaves a record in ``history``, by which a model is fitted.

        Args:
            x: The points, with shape ``(n, *event)``.
            progress: Whether to show a progress bar.

        Returns:
            The model itself.

        Raises:
            ValueError: If ``x`` has another event shape, is empty or not finite.
            RuntimeError: If training diverges.
        """

    @abstractmethod
    def sample(self, num_samples: int) -> Tensor:
        """Draws points, with shape ``(num_samples, *event)``, without a gradient."""

    @abstractmethod
    def log_prob(self, x: Tensor) -> Likelihood:
        """Says what is known of the likelihood of points ``(n, *event)``, and its kind."""

    def typicality(self, x: Tensor) -> Tensor:
        """Scores how much the model takes points for its own: higher is more so.

        The scale is the model's; only the order of scores of one model means anything.

        Args:
            x: The points, with shape ``(n, *event)``.

        Returns:
            The scores, with shape ``(n,)``: the value of :meth:`log_prob` unless the model knows
            better.

        Raises:
            NotImplementedError: If the model has neither a likelihood nor a score of its own.
        """
        value = self.log_prob(x).value
        if value is None:
            raise NotImplementedError(
                f"{type(self).__name__} has no likelihood to score by: define typicality(x)"
            )
        return value

    def as_energy(self) -> Energy | None:
        """Returns the model as an energy, normalised or not, that can be differentiated.

        Its points may be flat. Nothing is returned where the model has no density that can be
        evaluated, or none over an alphabet whose conditionals are known.
        """
        return None

    def inpaint(
        self, x: Tensor, known: Tensor, num_draws: int = 100, warmup_steps: int = 100
    ) -> Tensor:
        """Draws unknown coordinates given the known: exactly, or by chains of an energy.

        See :func:`pyro_ebm.inpaint`; chains begin at samples of the model.

        Args:
            x: The points, with shape ``(n, *event)``.
            known: Which coordinates are known, booleans with shape ``(*event)``.
            num_draws: The number of draws of each point.
            warmup_steps: The number of steps of a chain before them, where there are chains.

        Returns:
            Whole points, with shape ``(num_draws, n, *event)``.

        Raises:
            ValueError: If ``known`` is not a boolean for each coordinate of one point.
            NotImplementedError: If the model can neither.
        """
        energy = self._needed_energy("inpaint")
        check_data("x", x, self.event_shape)
        check_known(known, self.event_shape)
        shape, chains = energy.event_shape, self.mcmc
        start = self.sample(len(x))
        self.mcmc = chains  # those of samples that somebody asked for
        draws = inpaint(
            energy,
            x.reshape(len(x), *shape),
            known.reshape(shape),
            num_draws=num_draws,
            warmup_steps=warmup_steps,
            start=start.reshape(len(x), *shape),
        )
        return draws.reshape(num_draws, *x.shape)

    def denoise(
        self, y: Tensor, noise: float, num_draws: int = 100, warmup_steps: int = 100
    ) -> Tensor:
        """Draws points given noisy readings of them: exactly, or by chains of an energy.

        See :func:`pyro_ebm.denoise`.

        Args:
            y: The readings, with shape ``(n, *event)``.
            noise: The standard deviation of the noise, in units of x; of binary data, the
                probability that a reading is wrong.
            num_draws: The number of draws of each point.
            warmup_steps: The number of steps of a chain before them, where there are chains.

        Returns:
            Points, with shape ``(num_draws, n, *event)``.

        Raises:
            NotImplementedError: If the model can neither.
        """
        energy = self._needed_energy("denoise")
        check_data("y", y, self.event_shape)
        flat = y.reshape(len(y), *energy.event_shape)
        draws = denoise(energy, flat, noise, num_draws=num_draws, warmup_steps=warmup_steps)
        return draws.reshape(num_draws, *y.shape)

    def _needed_energy(self, task: str) -> Energy:
        self.check_fitted()
        energy = self.as_energy()
        if energy is None:
            raise NotImplementedError(
                f"{type(self).__name__} has no density to {task} by, and no conditionals"
            )
        return energy

    @property
    def is_fitted(self) -> bool:
        """Whether training has come to an end."""
        return bool(self.history)

    @property
    def num_parameters(self) -> int:
        """The number of numbers that training moves."""
        return sum(p.numel() for p in self.parameters() if p.requires_grad)

    @property
    def num_evaluations(self) -> int | None:
        """How often a network is evaluated for one draw; ``None`` if the model does not say."""
        return None

    def arguments(self) -> dict[str, object]:
        """Returns the arguments that build the model, as they are now.

        Each is read from the attribute of its name, ``training`` from ``training_plan``; a model
        that keeps one elsewhere says where.

        Raises:
            ValueError: If an argument has no such attribute.
        """
        return arguments_of(self, {"training": "training_plan"})

    def save(self, path: str | Path) -> None:
        """Saves the fitted model as one ``.safetensors`` file, all of it or nothing.

        What was learned and recorded is saved, with the settings of the model and of the energy,
        the objective and the kernels in it; the chains in ``mcmc`` are not.

        Args:
            path: The file. One that exists is replaced once the new one is on the disk.

        Raises:
            ImportError: If safetensors is not installed.
            RuntimeError: If the model is not fitted.
            ValueError: If a setting cannot be written, such as a function; the error says what
                to do.
        """
        self.check_fitted()
        write_file(Path(path), self)

    @classmethod
    def load(cls, path: str | Path, classes: Iterable[type] = ()) -> Self:
        """Loads what :meth:`save` saved.

        The model is fitted, in eval mode, on the CPU; it gives the same log-probabilities, and
        from the same seed the same samples, bit for bit. ``VAE.load`` loads a VAE alone,
        ``Generative.load`` any model.

        Args:
            path: The file.
            classes: Classes of your own that the model is made of.

        Raises:
            ImportError: If safetensors is not installed.
            ValueError: If the file is cut short, of another format or another class, needs a
                class that was not passed, or lacks a tensor.
        """
        return read_file(Path(path), cls, classes)

    def check_fitted(self) -> None:
        """Raises a ``RuntimeError`` if the model was not fitted."""
        if not self.is_fitted:
            raise RuntimeError(
                f"this {type(self).__name__} is not fitted; call fit(x) first, which has to leave "
                "a record in self.history"
            )


class Density(Energy):
    """Minus the log density of a model, which is normalised.

    Args:
        event_shape: The shape of one point.
        log_density: Maps points ``(*batch, *event)`` to nats ``(*batch,)``, differentiably.

    Example:
        >>> Density((2,), lambda x: -x.square().sum(-1))(torch.ones(3, 2))
        tensor([2., 2., 2.])
    """

    def __init__(
        self, event_shape: Sequence[int], log_density: Callable[[Tensor], Tensor]
    ) -> None:
        super().__init__(event_shape)
        self.log_density = log_density

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        rows = x.reshape(-1, *self.event_shape)
        batch = x.shape[: x.dim() - len(self.event_shape)]
        with unvalidated():  # where a chain would go astray it is to be told nan
            return -self.log_density(rows).reshape(batch)


def check_likelihood(likelihood: object, num_points: int) -> Likelihood:
    """Checks what a model says of the likelihood of some points.

    Args:
        likelihood: What it said.
        num_points: How many points there are.

    Raises:
        ValueError: If that is no :class:`Likelihood` of a known kind, or not one value for each
            point.
    """
    if not isinstance(likelihood, Likelihood) or likelihood.kind not in get_args(Kind):
        raise ValueError(
            f"log_prob(x) must return a Likelihood of a kind in {get_args(Kind)}, got "
            f"{getattr(likelihood, 'kind', type(likelihood).__name__)!r}"
        )
    value = likelihood.value
    if value is not None and value.shape != (num_points,):
        raise ValueError(
            f"log_prob(x) must have one value for each of {num_points} points, got shape "
            f"{tuple(value.shape)}: sum over the coordinates of a point"
        )
    return likelihood


def check_data(name: str, x: Tensor, event_shape: Sequence[int]) -> None:
    """Checks points once, at the edge.

    Args:
        name: The argument.
        x: The points.
        event_shape: The shape that each should have.

    Raises:
        ValueError: If they are no tensor, the shape is not ``(n, *event_shape)`` with n at least
            2, or a value is not finite.
    """
    if not isinstance(x, Tensor):
        raise ValueError(f"{name} must be a torch tensor, got {type(x).__name__}")
    if x.dim() == 0 or x.shape[1:] != torch.Size(event_shape) or len(x) < 2:
        raise ValueError(
            f"{name} must have shape (n, {', '.join(map(str, event_shape))}) with n at least 2, "
            f"got {tuple(x.shape)}; reshape it, or build the model with another event_shape"
        )
    bad = int((~x.isfinite()).reshape(len(x), -1).any(-1).sum())
    if bad:
        raise ValueError(f"{name} must be finite, but {bad} of {len(x)} rows are not; drop them")


def check_known(known: Tensor, event_shape: Sequence[int]) -> None:
    """Checks what says which coordinates are known.

    Args:
        known: What says it.
        event_shape: The shape of one point.

    Raises:
        ValueError: If it is not a boolean for each coordinate of one point.
    """
    if known.dtype != torch.bool or known.shape != torch.Size(event_shape):
        raise ValueError(
            f"known must hold booleans of shape {tuple(event_shape)}, the same for all points, "
            f"got {known.dtype} of shape {tuple(known.shape)}: restore points that are known in "
            "different places in groups"
        )


def check_binary(name: str, x: Tensor) -> None:
    """Checks that points are of zeros and ones.

    Args:
        name: The argument.
        x: The points.

    Raises:
        ValueError: If a value is another.
    """
    others = x[(x != 0) & (x != 1)]
    if len(others):
        raise ValueError(
            f"{name} must be of zeros and ones for a binary model, got {others[0].item():.4g}; "
            "pass binary=False, or threshold the data"
        )
