"""Changes of a discrete point at one of its sites."""

from __future__ import annotations

__all__ = ["known_alphabet", "log_odds_of_changes", "shifted"]

import torch
from torch import Tensor

from ..distributions import Boltzmann
from ..energies.alphabet import Alphabet, alphabet_of
from ..energies.discrete import DiscreteEnergy
from .conditions import evaluate_each


def known_alphabet(boltzmann: Boltzmann, name: str) -> Alphabet:
    """Returns the values of each site of a point, the size of one-hot vectors included.

    Args:
        boltzmann: The distribution.
        name: The site of the model.

    Raises:
        ValueError: If the sites do not all have the same values.
    """
    alphabet = alphabet_of(boltzmann.support)
    if alphabet is None:
        raise ValueError(
            f"site '{name}' has the support {boltzmann.support}, of which single changes are not "
            "known: give its Boltzmann support=constraints.boolean, energies.spins, "
            "constraints.integer_interval(low, high) or constraints.one_hot, with "
            "constraints.independent around it for more than one"
        )
    return alphabet._replace(size=boltzmann.event_shape[-1]) if alphabet.one_hot else alphabet


def shifted(x: Tensor, by: Tensor | int, alphabet: Alphabet) -> Tensor:
    """Moves values on by some places, round and round.

    Args:
        x: Points, with shape ``(*batch, *event)``.
        by: By how many places, to broadcast with ``(*batch, *sites)``.
        alphabet: The values of a site.

    Returns:
        Points, with the dtype of ``x``.
    """
    return alphabet.decode((alphabet.encode(x) + by) % alphabet.size, x, alphabet.size)


def log_odds_of_changes(
    boltzmann: Boltzmann, x: Tensor, name: str, num_sites: int | None = None
) -> Tensor:
    r"""Evaluates :math:`\log p(x') - \log p(x)` for the changes x' of x at one site.

    An energy that knows its conditionals is asked for these; any other is evaluated at each
    change.

    Args:
        boltzmann: The distribution.
        x: Points, with shape ``(*batch, *event)``.
        name: The site of the model.
        num_sites: How many sites to change, drawn at random; all if not given.

    Returns:
        The log odds in nats, with shape ``(K - 1, S, *batch)``, for the other values of each site.
    """
    alphabet = known_alphabet(boltzmann, name)
    shape = x.shape[:-1] if alphabet.one_hot else x.shape
    batch = x.shape[: x.dim() - len(boltzmann.event_shape)]
    num_all = shape[len(batch) :].numel()
    sites = torch.arange(num_all, device=x.device)
    if num_sites is not None and num_sites < num_all:
        sites = torch.randperm(num_all, device=x.device)[:num_sites]
    changes = torch.arange(1, alphabet.size, device=x.device)
    energy = boltzmann.energy
    if isinstance(energy, DiscreteEnergy) and boltzmann.support is energy.support:
        log_density = energy.conditionals(x).reshape(*batch, num_all, -1)[..., sites, :]
        if isinstance(boltzmann.temperature, Tensor) and boltzmann.temperature.dim():
            log_density = log_density / boltzmann.temperature[..., None, None]
        else:
            log_density = log_density / boltzmann.temperature
        places = alphabet.encode(x).reshape(*batch, num_all, 1)[..., sites, :]
        others = log_density.gather(-1, (places + changes) % alphabet.size)
        return (others - log_density.gather(-1, places)).movedim((-1, -2), (0, 1))
    here = torch.nn.functional.one_hot(sites, num_all)
    by = (changes[:, None, None] * here).reshape(-1, *(1,) * len(batch), *shape[len(batch) :])
    values = evaluate_each(Boltzmann.log_density, boltzmann, shifted(x, by, alphabet))
    log_odds = values - boltzmann.log_density(x)
    return log_odds.reshape(len(changes), len(sites), *batch)
