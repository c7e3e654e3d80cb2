r"""Objectives: surrogates for :math:`\log p(x)` whose gradient trains an energy.

An objective maps a :class:`~pyro_ebm.Boltzmann` and a value to a tensor of batch shape, the
*surrogate*: its gradient in the energy's parameters stands in for that of the intractable
log-likelihood. Its value is nothing to compare or to watch. As a Pyro ELBO, an objective puts the
surrogate in the place of each learnable unnormalised site of a model and leaves everything else
(latents, guides, plates, subsampling, masks, the other sites) to the ELBO it wraps.
"""

from __future__ import annotations

__all__ = [
    "CONTRASTIVE",
    "LIKELIHOOD",
    "Evaluation",
    "Objective",
    "leaves_of",
    "no_guide",
    "register_module",
]

import copy
import warnings
import weakref
from abc import abstractmethod
from collections.abc import Callable
from typing import Any, NamedTuple

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import ELBO, Trace_ELBO
from pyro.poutine.messenger import Messenger
from pyro.poutine.trace_struct import Trace
from torch import Tensor, nn
from torch.distributions import biject_to, constraints

from ..distributions import Boltzmann, base_distribution
from ..energies.base import check_energy, module_of, trainable_parameters
from ..guards import unconstrained_parameter
from ..ranks.divided import is_divided, put_apart
from .conditions import check_uses_conditions, has_conditions_that_learn
from .memory import as_put, kept, put

CONTRASTIVE = "contrastive loss"
"""What a loss is called that is the energy of data less that of chains: no measure of progress."""

LIKELIHOOD = "negative log-likelihood"
"""What a loss is called that is that, or an estimate of it."""


SECOND_DERIVATIVE = (
    "the derivative of a derivative is asked for when the ranks have taken the parameters apart. "
    "Use NoiseContrastive, or PersistentCD with MALA, or leave the energy whole on each rank"
)
"""Why an energy whose parameters are divided among ranks cannot be differentiated twice."""


class Evaluation(NamedTuple):
    """What an objective was asked of a site, and what it said."""

    boltzmann: Boltzmann
    """The distribution whose energy learns."""
    x: Tensor
    """The value of the site, with shape ``(*batch, *event)``."""
    surrogate: Tensor
    """The surrogate in nats, with shape ``(*batch,)``, without a gradient."""


def no_guide(*args: object, **kwargs: object) -> None:
    """The guide of a model without latents: samples nothing."""


class Objective(ELBO):
    r"""A loss for Pyro's SVI that can learn unnormalised sites.

    A subclass defines :meth:`surrogate`. Use it as ``SVI(model, guide, optim, loss=objective)``,
    as any ELBO, or call ``-objective.surrogate(boltzmann, x).mean()`` in a bare torch loop.

    The energy's parameters are registered with Pyro under ``"<site>.energy"`` where the model did
    not register them itself, so that they move.

    Args:
        elbo: The ELBO that takes care of the rest of the model.
    """

    loss_name: str = "surrogate loss"
    """What the value of the loss is, for records and figures."""

    serves_latents: bool = True
    """Whether the surrogate carries the gradient of log p to the value of the site."""
    serves_continuous: bool = True
    """Whether the site may have a continuous support."""
    serves_discrete: bool = False
    """Whether the site may have a discrete support."""
    passing: tuple[str, ...] = ("evaluations",)
    """The attributes that hold nothing of the next update, of those that are dicts."""

    of_chains: tuple[str, ...] = ()
    """Those of them that have a row for each of ``num_chains`` persistent chains."""

    def __init__(self, elbo: ELBO | None = None) -> None:
        super().__init__()
        self.evaluations: dict[str, Evaluation] = {}
        """What Pyro's last run of the model asked of each site."""
        self.elbo = Trace_ELBO() if elbo is None else elbo
        self._checked: set[tuple[weakref.ref, bool, torch.dtype]] = set()

    def __getstate__(self) -> dict[str, Any]:
        """Leaves out of a copy what this process alone knows: graphs, and which energy it saw."""
        known = {**vars(self), "_checked": set()}
        return known | {name: {} for name in self.passing if name in known}

    @abstractmethod
    def surrogate(self, boltzmann: Boltzmann, x: Tensor, name: str = "x") -> Tensor:
        r"""Evaluates the surrogate for :math:`\log p(x)`.

        Args:
            boltzmann: The distribution whose energy learns.
            x: Data, or values of a latent, with shape ``(*batch, *event)``.
            name: The site; objectives that keep chains keep them apart by it.

        Returns:
            The surrogate in nats, with shape ``(*batch,)``.
        """

    def register(self, name: str) -> None:
        """Registers with Pyro what the objective itself learns for a site, if anything.

        Args:
            name: The site.
        """

    def state_dict(self) -> dict[str, Any]:
        """Returns what the objective takes from one update to the next.

        That is all its dicts, by site or device, with chains, generators and estimates; its own
        modules; and the step size of its kernel. Dicts get new values, none is changed in place.
        """
        kernel = getattr(self, "kernel", None)
        found: dict[str, Any] = {"dicts": {}, "modules": {}}
        for name, value in vars(self).items():
            if isinstance(value, dict) and name not in self.passing:
                try:
                    found["dicts"][name] = {_text(key): kept(v) for key, v in value.items()}
                except TypeError as error:
                    where = f"{name} of {type(self).__name__}"
                    raise TypeError(f"{error}, as is in {where}: name it in passing") from error
            elif isinstance(value, nn.Module):
                found["modules"][name] = dict(value.state_dict())
        found["step size"] = getattr(kernel, "step_size", None)
        return found

    def load_state_dict(self, found: dict[str, Any], device: torch.device | None = None) -> None:
        """Goes on from what :meth:`state_dict` of one like this returned.

        Args:
            found: What was returned.
            device: Where tensors belong, if not where they are.

        Raises:
            ValueError: If its modules are not like those that were kept.
        """
        for name, values in found["dicts"].items():
            here = vars(self)[name]
            before = {_text(key): value for key, value in here.items()}
            here.clear()
            for key, value in values.items():
                value = as_put(value, before.get(key), device)
                here[value.device if isinstance(value, torch.Generator) else key] = value
        for name, values in found["modules"].items():
            put(vars(self)[name].state_dict(), values)
        if found["step size"] is not None:
            self.kernel.step_size = found["step size"]

    def pooled(self, dicts: list[dict[str, Any]]) -> dict[str, Any]:
        """Pools what several ranks keep, where it is neither the same on all nor rows of chains.

        Args:
            dicts: For each rank its dicts by name, as in :meth:`state_dict`.

        Returns:
            Those that are pooled, by name.
        """
        return {}

    def loss(
        self, model: Callable, guide: Callable, *args: object, **kwargs: object
    ) -> torch.Tensor | float:
        """Evaluates the loss, without moving parameters or persistent chains."""
        return self.elbo.loss(self._swapped(model), guide, *args, **kwargs)

    def loss_and_grads(
        self, model: Callable, guide: Callable, *args: object, **kwargs: object
    ) -> torch.Tensor | float:
        """Evaluates the loss and adds its gradient to the parameters."""
        return self.elbo.loss_and_grads(self._swapped(model), guide, *args, **kwargs)

    def differentiable_loss(
        self, model: Callable, guide: Callable, *args: object, **kwargs: object
    ) -> Tensor:
        """Evaluates the loss as a tensor to call ``backward`` on."""
        return self.elbo.differentiable_loss(self._swapped(model), guide, *args, **kwargs)

    def _get_trace(
        self, model: Callable, guide: Callable, args: tuple, kwargs: dict
    ) -> tuple[Trace, Trace]:
        return self.elbo._get_trace(self._swapped(model), guide, args, kwargs)

    def _swapped(self, model: Callable) -> Callable:
        return _Swap(self)(model)

    def check(self, boltzmann: Boltzmann, x: Tensor, name: str) -> None:
        """Checks the data, and an energy once, when first seen.

        Raises:
            ValueError: If there is no distribution; if the objective does not serve its support;
                if the data do not have the shape of the event, are empty, not numbers, not finite,
                on the edge of the support or outside of it; if the energy breaks its contract, is
                divided among ranks in a way that the objective does not serve, or ignores a
                condition that ``functools.partial`` gives it.
        """
        if not isinstance(boltzmann, Boltzmann):
            raise ValueError(
                "a surrogate is of a Boltzmann distribution, got "
                f"{type(boltzmann).__name__}: give Boltzmann(energy)"
            )
        support, value = boltzmann.support, x.detach()
        self._check_kind(support, name)
        data = f"data of site '{name}', with shape {tuple(x.shape)},"
        _check_data(boltzmann, value, data)
        module = module_of(boltzmann.energy)
        conditional = module is not boltzmann.energy
        if module is None:
            return
        # Not by id: a later energy may be given the address of one that is gone.
        seen = (weakref.ref(module), conditional, x.dtype)
        if seen in self._checked:
            return
        if is_divided(module) and self.why_not_divided():
            raise ValueError(
                f"{type(self).__name__} cannot serve site '{name}', whose energy is divided among "
                f"ranks (fully_shard): {self.why_not_divided()}"
            )
        if conditional and not check_uses_conditions(boltzmann.energy, value, name):
            return
        if not conditional and not support.is_discrete:
            try:
                check_energy(module, value.reshape(-1, *boltzmann.event_shape)[:2])
            except RuntimeError as error:
                raise ValueError(f"the energy cannot take {data} of {x.dtype}: {error}") from error
        self._checked.add(seen)

    def why_not_divided(self) -> str:
        """Says why the parameters of an energy must not be divided among ranks, if so."""
        return ""

    def _check_kind(self, support: constraints.Constraint, name: str) -> None:
        if not (self.serves_discrete if support.is_discrete else self.serves_continuous):
            kind = "discrete" if support.is_discrete else "continuous"
            ways = {
                "discrete": "PseudoLikelihood, RatioMatching, EnergyDiscrepancy, or PersistentCD "
                "with a kernel such as Gibbs",
                "continuous": "ScoreMatching, NoiseContrastive or PersistentCD",
            }
            raise ValueError(
                f"{type(self).__name__} cannot serve the {kind} site '{name}', whose support is "
                f"{support}; use {ways[kind]}"
            )


def _check_data(boltzmann: Boltzmann, x: Tensor, data: str) -> None:
    support, event = boltzmann.support, boltzmann.event_shape
    if x.shape[max(0, x.dim() - len(event)) :] != event:
        raise ValueError(f"{data} must end with its event_shape {tuple(event)}")
    if not x.numel():
        raise ValueError(f"{data} are empty")
    if not (support.is_discrete or x.is_floating_point()):
        raise ValueError(f"{data} must be floating-point numbers, got {x.dtype}")
    good = x.isfinite().all()
    if support.is_discrete:
        good, where = good & support.check(x).all(), f"outside of the support {support}"
    else:
        u, where = biject_to(support).inv(x), "on the edge of the support"
        good = good if u is x else good & u.isfinite().all()
    if not bool(good):
        raise ValueError(f"{data} are not finite, or lie {where}")


def _text(key: object) -> str:
    return key if isinstance(key, str) else str(key)


class _Swap(Messenger):
    """Puts the surrogate in the place of each learnable unnormalised site."""

    def __init__(self, objective: Objective) -> None:
        super().__init__()
        self.objective = objective
        self.seen: set[int] = set()

    def __enter__(self) -> _Swap:
        self.seen = set()
        self.objective.evaluations.clear()
        return super().__enter__()

    def _pyro_post_param(self, msg: dict) -> None:
        self.seen.add(id(unconstrained_parameter(msg["value"])))

    def _pyro_sample(self, msg: dict) -> None:
        boltzmann = base_distribution(msg["fn"])
        if not isinstance(boltzmann, Boltzmann):
            _check_components(boltzmann, msg["name"])
            return
        parameters = trainable_parameters(boltzmann.energy)
        module, name = module_of(boltzmann.energy), msg["name"]
        is_new = any(id(parameter) not in self.seen for parameter in parameters)
        if boltzmann.is_normalized and not boltzmann.sums_log_z:
            if is_new:  # it learns by its own log p, as any site of Pyro
                register_module(f"{name}.energy", module)
            return
        fixed = not (parameters or has_conditions_that_learn(boltzmann))
        if fixed and (module is not None or not msg["is_observed"]):
            return
        if not msg["is_observed"] and not self.objective.serves_latents:
            raise ValueError(
                f"{type(self.objective).__name__} cannot serve the latent site '{name}': its "
                "surrogate carries no gradient of log p to the guide; use ContrastiveDivergence "
                "or PersistentCD"
            )
        if is_new:
            register_module(f"{name}.energy", module)
        self.objective.register(name)
        msg["fn"] = _rebased(msg["fn"], _Surrogate(boltzmann, self.objective, name))


def register_module(name: str, module: nn.Module) -> None:
    """Registers a module with Pyro, and sees to it that what moves is the module's own.

    Args:
        name: The name under which it is kept.
        module: The module.

    Raises:
        ValueError: If Pyro keeps other parameters under that name.
    """
    put_apart(module)
    pyro.module(name, module)
    store = pyro.get_param_store()
    if any(p.requires_grad and store.param_name(p) is None for p in module.parameters()):
        raise ValueError(
            f"Pyro's store keeps parameters of another module under the name '{name}', so that "
            "those of this one would never move: call pyro.clear_param_store() first, or load the "
            f"kept ones with pyro.module('{name}', module, update_module_params=True)"
        )


class _Surrogate(Boltzmann):
    """A Boltzmann distribution that scores by an objective's surrogate."""

    def __init__(self, boltzmann: Boltzmann, objective: Objective, name: str) -> None:
        self.__dict__.update(boltzmann.__dict__)
        self.boltzmann = boltzmann
        self.objective = objective
        self.name = name

    def expand(self, batch_shape: torch.Size, _instance: Boltzmann | None = None) -> _Surrogate:
        return _Surrogate(self.boltzmann.expand(batch_shape), self.objective, self.name)

    def log_prob(self, x: Tensor) -> Tensor:
        value = self.objective.surrogate(self.boltzmann, x, self.name)
        seen = Evaluation(self.boltzmann, x.detach(), value.detach())
        self.objective.evaluations[self.name] = seen
        if module_of(self.energy) is None and torch.is_grad_enabled():
            _check_leaves(value, x, self.name)
        return value.expand(torch.broadcast_shapes(value.shape, self.batch_shape))


def _rebased(fn: dist.TorchDistribution, base: Boltzmann) -> dist.TorchDistribution:
    """Replaces the innermost distribution within ``to_event``, ``mask`` and ``expand``."""
    if not hasattr(fn, "base_dist"):
        return base
    fn = copy.copy(fn)
    fn.base_dist = _rebased(fn.base_dist, base)
    return fn


def _check_components(fn: dist.TorchDistribution, name: str) -> None:
    """Refuses a mixture of energies, which no surrogate stands in for."""
    component = base_distribution(getattr(fn, "component_distribution", fn))
    if not isinstance(component, Boltzmann) or component.is_normalized:
        return
    if trainable_parameters(component.energy) or has_conditions_that_learn(component):
        raise ValueError(
            f"site '{name}' is a {type(fn).__name__} of energies without log Z, and no objective "
            "can learn it: make it Boltzmann(energies.mixture([...], weights)), or give its "
            "components their log_z"
        )


def _check_leaves(value: Tensor, x: Tensor, name: str) -> None:
    """Warns where a closure's parameters are nowhere registered, so that they would never move."""
    store = pyro.get_param_store()
    leaves = [leaf for leaf in leaves_of(value) if leaf is not x]
    if not leaves or any(isinstance(p, nn.Parameter) and not store.param_name(p) for p in leaves):
        warnings.warn(
            f"the energy of site '{name}' is a plain function, and Pyro knows no parameter behind "
            "it: it will not learn. Pass the torch.nn.Module itself as the energy "
            "(functools.partial for a conditional one), or register it in the model with "
            "pyro.module or pyro.param",
            UserWarning,
            stacklevel=2,
        )


def leaves_of(value: Tensor) -> list[Tensor]:
    """Returns the leaf tensors that a value's gradient reaches.

    Args:
        value: The value.
    """
    found, seen, queue = [], set(), [value.grad_fn]
    while queue:
        node = queue.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            found.append(node.variable)
        queue += [parent for parent, _ in node.next_functions]
    return found
