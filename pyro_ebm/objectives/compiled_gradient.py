r"""A surrogate together with its gradient as native code, compiled once for a whole training run.

The gradient of score matching in the parameters is a derivative of a derivative, and most of an
eager update is the bookkeeping of it. Here one graph evaluates

.. math:: \hat\ell_i, \qquad \nabla_\theta \sum_i w_i \hat\ell_i

whose weights w do not enter into the first. Weights that are all the same, as those of a mean or
of a plate are, only multiply the second, which is evaluated beforehand with weights of one.
Others, those of a mask say, are known once the gradient is asked for: then it is evaluated again.
"""

from __future__ import annotations

__all__ = ["CompiledGradient"]

import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, once_differentiable

from ..distributions import Boltzmann
from ..energies.base import module_of, trainable_parameters
from ..engine import compile_function
from ..ranks.divided import wrapped
from .base import leaves_of
from .compiled import MOST_VARIANTS, law_of

Evaluate = Callable[..., tuple[Tensor, ...]]


class CompiledGradient:
    """A function of a law and data, compiled with its gradient for the energies that it meets.

    Args:
        evaluate: From a law and tensors to the surrogate ``(*batch,)``, to be differentiated in
            the parameters of the energy, and to other tensors, which are not. Free of randomness.
    """

    def __init__(self, evaluate: Evaluate) -> None:
        self._evaluate = evaluate
        self._known: dict[tuple, tuple[_Call, _Native | None]] = {}
        self._warned = False

    def __getstate__(self) -> dict[str, object]:
        return {**vars(self), "_known": {}}  # code of this process

    def __call__(self, boltzmann: Boltzmann, *data: Tensor, name: str) -> tuple[Tensor, ...]:
        """Evaluates the function, by native code where a gradient may be asked for.

        Args:
            boltzmann: The law.
            data: The tensors.
            name: The site.

        Returns:
            What the function returns.
        """
        if torch.is_grad_enabled():
            call = _Call.of(boltzmann, data)
            native = self._find(call, name)
            if native is not None:
                return _Weighed.apply(native, call.tensors, *native.parameters)
        return self._evaluate(boltzmann, *data)

    def _find(self, call: _Call, name: str) -> _Native | None:
        """Returns what is compiled for a call, compiling it when it is met first."""
        obstacle = call.obstacle
        if obstacle:
            return self._eager(obstacle, name)
        key = call.key()
        if key not in self._known:
            if len(self._known) == MOST_VARIANTS:
                changed = f"or the shape of its data has changed {MOST_VARIANTS} times"
                return self._eager(changed, name)
            self._known[key] = call, self._compile(call, name)
        return self._known[key][1]

    def _compile(self, call: _Call, name: str) -> _Native | None:
        others = wrapped(module_of(call.boltzmann.energy))
        if others:
            return self._eager(f"sends messages to other ranks ({others})", name)
        parameters = trainable_parameters(call.boltzmann.energy)
        value, again = (self._evaluate(*call.on(call.tensors))[0] for _ in range(2))
        own = set(map(id, parameters))
        kept = set(map(id, leaves_of(value))) & set(map(id, leaves_of(again)))
        if not own or kept - own:
            return self._eager("learns something else than the parameters of a module", name)
        ones = torch.ones_like(value)

        def value_and_grad(weights: Tensor, *tensors: Tensor) -> tuple:
            with torch.enable_grad():
                value, *others = self._evaluate(*call.on(tensors))
                grads = torch.autograd.grad(value, parameters, weights, allow_unused=True)
            return *grads, value.detach(), *others

        code = compile_function(value_and_grad, (ones, *call.tensors)).fn
        return None if code is None else _Native(code, ones, parameters)

    def _eager(self, reason: str, name: str) -> None:
        if not self._warned:
            self._warned = True
            warnings.warn(
                f"this gradient is not compiled, because the energy of site '{name}' {reason}",
                stacklevel=5,
            )


class _Native(NamedTuple):
    """Native code from weights and tensors to the gradients, then the value and what else."""

    code: Callable[..., list[Tensor | None]]
    ones: Tensor
    """Weights of one."""
    parameters: list[nn.Parameter]
    """What the gradients are those of."""


class _Call(NamedTuple):
    """An evaluation, as a function of the tensors that differ from call to call."""

    boltzmann: Boltzmann
    num_data: int
    tensors: list[Tensor]
    """The data, and the conditions of a conditional energy."""

    @classmethod
    def of(cls, boltzmann: Boltzmann, data: Sequence[Tensor]) -> _Call:
        conditions = [v for _, v in _conditions(boltzmann.energy) if isinstance(v, Tensor)]
        return cls(boltzmann, len(data), [tensor.contiguous() for tensor in (*data, *conditions)])

    def on(self, tensors: Sequence[Tensor]) -> tuple[Boltzmann | Tensor, ...]:
        """Returns the law and the data, made of other tensors."""
        data, rest = tensors[: self.num_data], iter(tensors[self.num_data :])
        energy = self.boltzmann.energy
        if not isinstance(energy, partial):
            return self.boltzmann, *data
        given = {k: next(rest) if isinstance(v, Tensor) else v for k, v in _conditions(energy)}
        args = [given.pop(i) for i in range(len(energy.args))]
        return self.boltzmann.with_energy(partial(energy.func, *args, **given)), *data

    @property
    def obstacle(self) -> str:
        """Says why it cannot be compiled, if so."""
        temperature, energy = self.boltzmann.temperature, self.boltzmann.energy
        if module_of(energy) is None:
            return "is no module"
        if isinstance(temperature, Tensor) and temperature.requires_grad:
            return "has a temperature that learns"
        if any(tensor.requires_grad for tensor in self.tensors):
            return "has a condition that learns"
        if any(not isinstance(value, _SETTINGS) for _, value in _conditions(energy)):
            return "has a condition that is neither a tensor nor a number"
        return ""

    def key(self) -> tuple:
        """All that native code depends on, but for the values of tensors."""
        shapes = [(tensor.shape, tensor.dtype, tensor.device) for tensor in self.tensors]
        conditions = _conditions(self.boltzmann.energy)
        settings = [(k, None if isinstance(v, Tensor) else v) for k, v in conditions]
        return law_of(self.boltzmann), *shapes, *settings


_SETTINGS = (Tensor, bool, int, float, str)


def _conditions(energy: Callable) -> list[tuple[int | str, object]]:
    """Returns the conditions of a conditional energy, by place or name."""
    if not isinstance(energy, partial):
        return []
    return [*enumerate(energy.args), *energy.keywords.items()]


class _Weighed(torch.autograd.Function):
    """Native code of value and gradient as one operation of autograd."""

    @staticmethod
    def forward(
        ctx: FunctionCtx, native: _Native, tensors: list[Tensor], *parameters: nn.Parameter
    ) -> tuple[Tensor, ...]:
        found = native.code(native.ones, *tensors)
        ctx.native, ctx.grads = native, found[: len(parameters)]
        ctx.save_for_backward(*tensors, *parameters)
        ctx.set_materialize_grads(False)
        value, *others = found[len(parameters) :]
        ctx.mark_non_differentiable(*others)
        return value, *others

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, weights: Tensor, *_: None) -> tuple[Tensor | None, ...]:
        num = len(ctx.grads)
        tensors = ctx.saved_tensors[:-num]  # raises if they or parameters have moved since
        weight = weights.reshape(-1)[0]
        if not any(weights.stride()) or bool((weights == weight).all()):
            scaled = iter(torch._foreach_mul([g for g in ctx.grads if g is not None], weight))
            grads = [None if grad is None else next(scaled) for grad in ctx.grads]
        else:
            grads = ctx.native.code(weights.contiguous(), *tensors)[:num]
        return None, None, *grads
