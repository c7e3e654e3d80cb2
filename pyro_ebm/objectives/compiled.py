"""The steps of training chains as native code, compiled once for a whole training run.

Parameters are live in compiled code: an optimizer that moves them in place is seen. All else that
a step depends on is part of a key, and another key is compiled anew.
"""

from __future__ import annotations

__all__ = ["MOST_VARIANTS", "CompiledSteps", "law_of"]

import warnings
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.distributions import constraints

from ..distributions import Boltzmann
from ..energies.base import module_of
from ..engine import Graph, compile_block, loop, trace
from ..kernels.base import Kernel
from ..kernels.transition import Info, State, blocks, noise_of
from ..potential import Potential
from ..ranks.divided import wrapped

Walk = Callable[[Tensor, torch.Generator], tuple[Tensor, Tensor | None, Info | None]]

MOST_VARIANTS = 4
"""How many different energies, shapes and settings are compiled before the rest runs eagerly."""


class CompiledSteps:
    """A number of steps of one kernel, compiled for the energies that it meets.

    Args:
        kernel: The kernel.
        num_steps: The number of steps to make each time.
        in_pairs: Whether the second half of the chains takes noise opposite to the first's.
    """

    def __init__(self, kernel: Kernel, num_steps: int, *, in_pairs: bool = False) -> None:
        self._kernel = kernel
        self._num_steps = num_steps
        self._in_pairs = in_pairs
        self._known: dict[tuple, tuple[Boltzmann, Callable | None]] = {}
        self._warned = False

    def __getstate__(self) -> dict[str, object]:
        return {**vars(self), "_known": {}}  # code of this process

    def find(
        self, boltzmann: Boltzmann, batch_shape: Sequence[int], z: Tensor, name: str
    ) -> Walk | None:
        """Returns what is compiled for an energy, compiling it when it is met first.

        Args:
            boltzmann: The distribution of one point, or of the batch.
            batch_shape: The shape of the batch of chains.
            z: The chains, with shape ``(C, D)``.
            name: The site.

        Returns:
            What moves chains, given them and the source of the noise, and says where they were
            before a last step that is still to be judged, or what happened in it; nothing where
            steps have to stay eager, and one warning says why.
        """
        obstacle = self.obstacle(boltzmann, name)
        if obstacle:
            return self._eager(obstacle)
        key = law_of(boltzmann), tuple(batch_shape), (z.shape, z.dtype, z.device)
        if key not in self._known:
            if len(self._known) == MOST_VARIANTS:
                return self._eager(
                    f"the energy of site '{name}', its settings or the shape of its chains have "
                    f"changed {MOST_VARIANTS} times"
                )
            others = wrapped(module_of(boltzmann.energy))
            if others:
                return self._eager(
                    f"the energy of site '{name}' sends messages to other ranks ({others})"
                )
            potential = Potential.of_batch(boltzmann, batch_shape, z)
            self._known[key] = boltzmann, self._compile(potential, z)
        return self._known[key][1]

    def obstacle(self, boltzmann: Boltzmann, name: str) -> str:
        """Says why steps have to stay eager, if so.

        Args:
            boltzmann: The distribution.
            name: The site.
        """
        module = module_of(boltzmann.energy)
        if module is None or module is not boltzmann.energy:
            return f"the energy of site '{name}' is no module, or is conditional"
        if not self._kernel.branch_free:
            return f"a step of {type(self._kernel).__name__} cannot be traced whole"
        return ""

    def _compile(self, potential: Potential, z: Tensor) -> Walk | None:
        kernel, num_steps = self._kernel, self._num_steps
        state = kernel.init(potential, z)
        in_pairs = self._in_pairs
        generator = torch.Generator(z.device).manual_seed(0)
        any_noise = noise_of(kernel, state, generator, num_steps, in_pairs=in_pairs)
        rows = tuple(part[0] for part in any_noise)
        step_size = state.step_size

        def begin(z: Tensor, step_size: Tensor) -> State:
            return kernel.init(potential, z)._replace(step_size=step_size)

        start = trace(begin, (z, step_size), lasting=True)
        step = trace(
            lambda s, noise: kernel.step(potential, s, noise), (state, rows), lasting=True
        )
        for rung in (start, step):
            if not isinstance(rung.fn, Graph):
                return None
            rung.fn.rewrite()

        with torch.no_grad():
            said = [k for k, field in enumerate(step.fn(state, rows)[1]) if field is not None]
            is_judged_later = kernel.propose(state, rows) is not None
        if is_judged_later:
            block = _up_to_the_last(kernel, start.fn, step.fn)
        else:
            block = _whole(start.fn, step.fn, said)
        # As 0-d, the compiler would follow the value of a double, and analyse all twice.
        native = compile_block(block, (z, step_size[None]), any_noise, step.size + start.size)
        if native.fn is None:
            return None

        def walk(z: Tensor, generator: torch.Generator) -> tuple:
            noise = [
                noise_of(kernel, state, generator, n, in_pairs=in_pairs)
                for n in blocks(z, num_steps)
            ]
            carry = z, z.new_tensor([kernel.step_size])
            end, fields = native.fn(carry, tuple(map(torch.cat, zip(*noise, strict=True))))
            if is_judged_later:
                return *end, None
            info = Info(**{Info._fields[k]: v for k, v in zip(said, fields, strict=True)})
            return *end, None, info

        return walk

    def _eager(self, reason: str) -> None:
        if not self._warned:
            self._warned = True
            warnings.warn(f"these chains run eagerly, because {reason}", stacklevel=4)


def _whole(start: Callable, step: Callable, said: list[int]) -> Callable:
    """Makes a block of steps that says what happened in the last: the fields ``said`` of Info."""

    def after(state: State, drawn: tuple[Tensor, ...]) -> tuple[State, tuple]:
        state, info = step(state, drawn)
        return state, tuple(info[k] for k in said)

    def block(carry: tuple, noise: tuple[Tensor, ...]) -> tuple[tuple, tuple]:
        z, step_size = carry
        num_steps = torch.full((), noise[0].shape[0], device=z.device)
        one = torch.ones_like(num_steps)
        _, state, info = loop(
            lambda carry: carry[0] < num_steps,
            lambda carry: (carry[0] + 1, *after(carry[1], _row(noise, carry[0]))),
            (one, *after(start(z, step_size.squeeze(0)), tuple(part[0] for part in noise))),
        )
        return (state.z,), info

    return block


def _up_to_the_last(kernel: Kernel, start: Callable, step: Callable) -> Callable:
    """Makes a block of steps the last of which is only proposed, with where it would begin."""

    def block(carry: tuple, noise: tuple[Tensor, ...]) -> tuple[tuple, tuple]:
        z, step_size = carry
        num_steps = torch.full((), noise[0].shape[0], device=z.device)
        none = torch.zeros_like(num_steps)
        k, state = loop(
            lambda carry: carry[0] + 1 < num_steps,
            lambda carry: (carry[0] + 1, step(carry[1], _row(noise, carry[0]))[0]),
            (none, start(z, step_size.squeeze(0))),
        )
        return (kernel.propose(state, _row(noise, k)), state.z), ()

    return block


def _row(noise: tuple[Tensor, ...], k: Tensor) -> tuple[Tensor, ...]:
    return tuple(part.index_select(0, k[None]).squeeze(0) for part in noise)


def law_of(boltzmann: Boltzmann) -> tuple:
    """Returns all that a law depends on, but for the values of parameters and buffers.

    What it names by identity is kept alive by the code that it leads to.

    Args:
        boltzmann: The law, whose energy has a module behind it.
    """
    temperature, module = boltzmann.temperature, module_of(boltzmann.energy)
    if isinstance(temperature, Tensor):
        temperature = id(temperature)
    settings = (temperature, id(module), _of_support(boltzmann.support), boltzmann.batch_shape)
    return *settings, _of_module(module)


def _of_support(part: object) -> object:
    """A constraint by its parts, of which those that are tensors count by identity."""
    if isinstance(part, constraints.Constraint):
        return type(part), *((name, _of_support(value)) for name, value in vars(part).items())
    if isinstance(part, (list, tuple)):
        return tuple(map(_of_support, part))
    return part if isinstance(part, (bool, int, float, str)) else id(part)


_NO_SETTINGS = vars(nn.Module()).keys() - {"training"}


def _of_module(module: nn.Module) -> tuple:
    own = vars(module)
    found = [type(module)]
    for name, value in own.items():
        if name not in _NO_SETTINGS and isinstance(value, (bool, int, float, str, Tensor)):
            found.append((name, id(value) if isinstance(value, Tensor) else value))
    for tensor in (*own["_parameters"].values(), *own["_buffers"].values()):
        found.append((id(tensor), tensor is not None and tensor.requires_grad))
    children = own["_modules"].values()
    return *found, *(_of_module(child) for child in children if child is not None)
