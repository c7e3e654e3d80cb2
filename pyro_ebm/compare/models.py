"""Models by name, each with settings that serve a kind of data."""

from __future__ import annotations

__all__ = ["MODELS", "make"]

import dataclasses
from collections.abc import Callable

from torch import Tensor

from ..zoo.autoregressive import Autoregressive
from ..zoo.base import Generative
from ..zoo.baselines import GaussianMixture, Independent
from ..zoo.diffusion import Diffusion
from ..zoo.ebm import EBM
from ..zoo.flow import Flow
from ..zoo.gan import GAN
from ..zoo.rbm import RBM
from ..zoo.training import Training
from ..zoo.vae import VAE
from .data import DataKind

WIDTHS = {"plane": (128, 128), "table": (64, 64), "images": (163, 163), "binary": (200,)}
"""The widths of hidden layers, by the kind of data; such that most models of 64 pixels have about
83,000 parameters."""

LATENTS = {"plane": 4, "table": 8, "images": 16, "binary": 16}
"""The number of latents, by the kind of data."""


MAX_PASSES = 100
"""How often models that would learn a table of few rows by heart see each of them at most."""


def make(name: str, kind: DataKind, x: Tensor, *, quick: bool = False) -> Generative | None:
    """Makes a model to fit, with settings for a kind of data.

    Args:
        name: One of :data:`MODELS`.
        kind: The kind of the data.
        x: What it will be fitted to, with shape ``(n, *event)``.
        quick: Whether to train for about a quarter of the time.

    Returns:
        The model; ``None`` if it does not serve that kind of data.

    Raises:
        ValueError: If the name is unknown.

    Example:
        >>> import torch
        >>> x = torch.randn(100, 2)
        >>> type(make("vae", "plane", x)).__name__, make("rbm", "plane", x)
        ('VAE', None)
    """
    if name not in MODELS:
        raise ValueError(f"there is no model {name!r}; there are {', '.join(MODELS)}")
    return MODELS[name](kind, x, quick)


def _plan(quick: bool, short: int, long: int, **kwargs: float) -> Training:
    return Training(short if quick else long, **kwargs)


def _few_passes(plan: Training, kind: DataKind, x: Tensor) -> Training:
    most = max(1, MAX_PASSES * len(x) // plan.batch_size) if kind == "table" else plan.num_steps
    return dataclasses.replace(plan, num_steps=min(plan.num_steps, most))


def _ebm(kind: DataKind, x: Tensor, quick: bool) -> EBM | None:
    makers = {"plane": EBM.for_plane, "table": EBM.for_table, "images": EBM.for_images}
    if kind not in makers:
        return None
    model = makers[kind](x)
    if quick:
        plan = model.training_plan
        part = {"plane": 0.5, "table": 0.5, "images": 0.4}[kind]
        model.training_plan = dataclasses.replace(plan, num_steps=int(part * plan.num_steps))
        model.warmup_steps, model.num_draws = model.warmup_steps // 2, model.num_draws // 2
    return model


def _rbm(kind: DataKind, x: Tensor, quick: bool) -> RBM | None:
    if kind != "binary":
        return None
    return RBM(x.shape[1:], 16, _plan(quick, 2000, 10_000, lr=0.01))


def _vae(kind: DataKind, x: Tensor, quick: bool) -> VAE:
    plan, binary = _plan(quick, 2000, 8000, lr=2e-3), kind == "binary"
    return VAE(x.shape[1:], LATENTS[kind], WIDTHS[kind], plan, binary=binary)


def _gan(kind: DataKind, x: Tensor, quick: bool) -> GAN | None:
    if kind == "binary":
        return None
    if kind == "images":  # with momentum, few latents or a lax critic it collapses
        plan = _plan(quick, 2500, 12_000, lr=2e-3, betas=(0.0, 0.99), ema=0.99)
        return GAN(x.shape[1:], 64, WIDTHS[kind], penalty=1.0, training=plan)
    plan = _plan(quick, 2500, 12_000, lr=5e-4, betas=(0.5, 0.9), ema=0.995)
    return GAN(x.shape[1:], LATENTS[kind], WIDTHS[kind], training=plan)


def _flow(kind: DataKind, x: Tensor, quick: bool) -> Flow | None:
    if kind == "binary":
        return None
    if kind == "table":  # a larger one gives rows that it has not seen -1,000 nats and less
        plan = _few_passes(_plan(quick, 1500, 6000, lr=1e-3), kind, x)
        return Flow(x.shape[1:], num_layers=4, hidden_sizes=(32,), training=plan)
    return Flow(x.shape[1:], training=_plan(quick, 1500, 6000, lr=2e-3))


def _diffusion(kind: DataKind, x: Tensor, quick: bool) -> Diffusion | None:
    if kind == "binary":
        return None
    plan = _plan(quick, 4000, 20_000, lr=2e-3, ema=0.995)
    widths = (230, 230) if kind == "images" else WIDTHS[kind]
    return Diffusion(x.shape[1:], hidden_sizes=widths, training=plan)


def _autoregressive(kind: DataKind, x: Tensor, quick: bool) -> Autoregressive:
    plan, binary = _plan(quick, 1200, 5000, lr=3e-3), kind == "binary"
    plan = _few_passes(plan, kind, x)
    return Autoregressive(x.shape[1:], WIDTHS[kind], training=plan, binary=binary)


def _mixture(kind: DataKind, x: Tensor, quick: bool) -> GaussianMixture | None:
    if kind == "binary":
        return None
    num = {"plane": 16, "table": 3, "images": 20}[kind]
    return GaussianMixture(x.shape[1:], num, min_variance=1e-3)


def _independent(kind: DataKind, x: Tensor, quick: bool) -> Independent:
    return Independent(x.shape[1:], binary=kind == "binary")


MODELS: dict[str, Callable[[DataKind, Tensor, bool], Generative | None]] = {
    "ebm": _ebm,
    "rbm": _rbm,
    "vae": _vae,
    "gan": _gan,
    "flow": _flow,
    "diffusion": _diffusion,
    "autoregressive": _autoregressive,
    "mixture": _mixture,
    "independent": _independent,
}
"""The models that have a name."""
