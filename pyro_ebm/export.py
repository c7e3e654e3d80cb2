"""Draws and what happened at them, as ArviZ reads them: on ArviZ 0.23 and on 1.x."""

from __future__ import annotations

__all__ = ["to_arviz"]

import datetime
import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pyro
import torch
from pyro import poutine
from pyro.infer import config_enumerate
from pyro.infer.mcmc.api import AbstractMCMC
from torch import Tensor

from .distributions import Boltzmann, base_distribution
from .latents import subsampled_plates
from .mcmc import MCMC
from .runs.turns import in_turn
from .validation import unvalidated
from .version import __version__

if TYPE_CHECKING:
    import numpy as np
    import xarray as xr

Groups = dict[str, dict[str, Tensor]]


@in_turn
def to_arviz(
    mcmc: AbstractMCMC,
    *,
    log_likelihood: bool | Sequence[str] = False,
    save_warmup: bool = True,
    coords: Mapping[str, Sequence] | None = None,
    dims: Mapping[str, Sequence[str]] | None = None,
) -> Any:  # noqa: ANN401  the type depends on the version of ArviZ
    """Exports a run to ArviZ, from :class:`pyro_ebm.MCMC` or from ``pyro.infer.MCMC``.

    Groups: ``posterior`` (latent and deterministic sites), ``sample_stats`` (``lp``,
    ``acceptance_rate``, ``accepted``, ``diverging``, ``step_size``, ``n_steps``, and ``energy``,
    the Hamiltonian, for kernels with a momentum only), both again with the prefix ``warmup_``,
    ``observed_data``, and ``log_likelihood`` if asked for. ``lp`` is the log density in
    unconstrained space up to a constant. Dimensions are named after plates. An unnormalised factor
    or site is never a log-likelihood: leave-one-out on it would be wrong without a sign.

    Args:
        mcmc: A finished run.
        log_likelihood: Whether to evaluate the log-likelihood of every normalised observed site,
            or the names of those wanted.
        save_warmup: Whether to export warmup, where the run kept it.
        coords: Labels by dimension.
        dims: Names of the dimensions of a variable after chain and draw, from the left.

    Warns:
        UserWarning: If a deterministic site depends on a latent which was summed out: it is left
            out.

    Returns:
        An ``xarray.DataTree`` with ArviZ 1.x, an ``arviz.InferenceData`` with 0.23.

    Raises:
        ImportError: If ArviZ is not installed.
        ValueError: If the log-likelihood of an unnormalised site is asked for, or of one that
            depends on a latent which was summed out, or there is none to give; if there are no
            draws, or those of some site were not saved; if ``dims`` names no site, or more
            dimensions than it has, or ``coords`` no dimension.

    Example:
        >>> import pyro_ebm as ebm
        >>> target = ebm.Boltzmann(ebm.energies.Gaussian(torch.zeros(2), 1.0))
        >>> mcmc = ebm.MCMC(ebm.kernels.MALA(target), 20, 20, num_chains=4, disable_progbar=True)
        >>> mcmc.run()
        >>> idata = to_arviz(mcmc)
        >>> dict(idata["posterior"].sizes)
        {'chain': 4, 'draw': 20, 'x_dim_0': 2}
    """
    try:
        import arviz
        import xarray
    except ImportError as error:
        raise ImportError("to_arviz needs ArviZ: pip install 'pyro_ebm[arviz]'") from error

    groups = _draws_of_ours(mcmc, save_warmup) if isinstance(mcmc, MCMC) else _draws_of_pyros(mcmc)
    dims, coords = dims or {}, coords or {}
    named = {**_plates_of_sites(mcmc), **dims}
    sites = set(groups["posterior"])
    if mcmc.kernel.model is not None:
        replay = _Replay(mcmc, groups["posterior"])
        groups["posterior"].update(replay.deterministic())
        groups["observed_data"] = replay.observed()
        if log_likelihood:
            groups["log_likelihood"] = replay.log_likelihood(log_likelihood)
        named = {**replay.plates(), **named}
        sites |= set(groups["posterior"]) | set(replay.names())
    elif log_likelihood:
        raise ValueError(
            "log_likelihood needs a Pyro model with an observed site; this target has none"
        )
    _check_dims(dims, sites, groups)
    attrs = _attributes(mcmc)
    datasets = {
        group: _dataset(xarray, group, variables, named, coords, attrs)
        for group, variables in groups.items()
        if variables
    }
    there = {str(d) for found in datasets.values() for d in found.dims}.union(*named.values())
    if unknown := sorted(set(coords) - there):
        raise ValueError(
            f"coords names no dimension: {unknown}; the dimensions are {sorted(there)}"
        )
    if int(arviz.__version__.split(".")[0]) >= 1:
        return xarray.DataTree.from_dict(datasets)
    return arviz.InferenceData(**datasets)


def _check_dims(dims: Mapping[str, Sequence[str]], sites: set[str], groups: Groups) -> None:
    if unknown := sorted(set(dims) - sites):
        raise ValueError(f"dims names no site: {unknown}; the sites are {sorted(sites)}")
    shapes = {name: values.shape for name, values in groups.get("observed_data", {}).items()}
    shapes |= {name: draws.shape[2:] for name, draws in groups["posterior"].items()}
    for name in sorted(dims.keys() & shapes.keys()):
        if len(dims[name]) > len(shapes[name]):
            raise ValueError(
                f"dims of '{name}' must be at most {len(shapes[name])}, one for each dimension of "
                f"its shape {tuple(shapes[name])}, got {list(dims[name])}"
            )


def _draws_of_ours(mcmc: MCMC, save_warmup: bool) -> Groups:
    if not mcmc.num_draws:
        raise ValueError("there are no draws: the run ended before the first")
    if lost := set(mcmc.draws.dims) - set(mcmc.draws.values()):
        raise ValueError(
            f"the draws of {sorted(lost)} were not saved, and without them nothing else of the "
            "model can be told: run with save=None, or read mcmc.draws"
        )
    groups: Groups = {
        "posterior": dict(mcmc.get_samples(group_by_chain=True)),
        "sample_stats": mcmc.sample_stats,
    }
    if save_warmup and mcmc.warmup_steps:
        groups["warmup_posterior"] = mcmc.get_warmup()
        groups["warmup_sample_stats"] = mcmc.warmup_stats
    return groups


def _draws_of_pyros(mcmc: AbstractMCMC) -> Groups:
    """Reads a run of Pyro's driver, whose diagnostics are per chain, in their order."""
    posterior = dict(mcmc.get_samples(group_by_chain=True))
    found = [chain or {} for chain in mcmc._diagnostics]
    if all(chain.get("sample_stats") for chain in found):
        names = found[0]["sample_stats"]
        stats = {name: torch.stack([c["sample_stats"][name] for c in found]) for name in names}
    else:
        diverging = torch.zeros(mcmc.num_chains, mcmc.num_samples, dtype=torch.bool)
        for row, chain in zip(diverging, found, strict=True):
            row[list(chain.get("divergences", ()))] = True
        stats = {"diverging": diverging}
    return {"posterior": posterior, "sample_stats": stats}


class _Replay:
    """The model of a run, replayed at its draws for all that the run did not store."""

    def __init__(self, mcmc: AbstractMCMC, posterior: dict[str, Tensor]) -> None:
        self.mcmc = mcmc
        self.posterior = dict(posterior)
        first = {name: draws[0, 0] for name, draws in self.posterior.items()}
        with unvalidated():
            self.sites = dict(self._trace(first).nodes)
            self.summed = [name for name in self._latents() if name not in self.posterior]
            self.beneath = self._beneath_summed(first) if self.summed else set()

    @poutine.block
    def _trace(self, values: dict[str, Tensor], sum_from: int | None = None) -> poutine.Trace:
        model = poutine.condition(self.mcmc.kernel.model, data=values)
        if sum_from is not None:
            model = poutine.enum(config_enumerate(model), first_available_dim=sum_from)
        return poutine.trace(model).get_trace(*self.mcmc._args, **self.mcmc._kwargs)

    def names(self) -> list[str]:
        """The sites of the model, whether or not there is something of them to export."""
        return [name for name, site in self.sites.items() if site["type"] == "sample"]

    def _latents(self) -> list[str]:
        return [
            name
            for name, site in self.sites.items()
            if site["type"] == "sample"
            and not site["is_observed"]
            and not poutine.util.site_is_subsample(site)
        ]

    def _beneath_summed(self, first: dict[str, Tensor]) -> set[str]:
        """Finds the sites that depend on a latent which was summed out, and has no draws."""
        sites = [site for site in self.sites.values() if site["type"] == "sample"]
        nesting = -min(
            (f.dim for s in sites for f in s["cond_indep_stack"] if f.vectorized), default=0
        )
        found = set()
        for name, site in self._trace(first, sum_from=-1 - nesting).nodes.items():
            if site["type"] != "sample" or poutine.util.site_is_subsample(site):
                continue
            if site["infer"].get("_deterministic"):
                moved = site["value"].shape != self.sites[name]["value"].shape
            else:
                moved = site["fn"].log_prob(site["value"]).dim() > nesting
            found |= {name} if moved else set()
        return found

    def _observed(self) -> dict[str, dict]:
        """The observed sites, but for those of which every evaluation sees other rows."""
        shown_in_part = {plate.name for plate in subsampled_plates(self.sites.values())}
        return {
            name: site
            for name, site in self.sites.items()
            if site["type"] == "sample"
            and site["is_observed"]
            and name not in self.posterior
            and not shown_in_part.intersection(f.name for f in site["cond_indep_stack"])
            and not site["infer"].get("_deterministic")
            and not site["infer"].get("is_auxiliary")
            and not poutine.util.site_is_subsample(site)
        }

    def observed(self) -> dict[str, Tensor]:
        return {name: site["value"] for name, site in self._observed().items()}

    def deterministic(self) -> dict[str, Tensor]:
        names = [
            n for n, site in self.sites.items() if site.get("infer", {}).get("_deterministic")
        ]
        if lost := sorted(self.beneath.intersection(names)):
            warnings.warn(
                f"the deterministic sites {lost} are not exported: they depend on a latent of "
                f"{self.summed}, which were summed out and have no draws",
                stacklevel=5,
            )
        names = [name for name in names if name not in self.beneath]
        return self._over_draws(lambda t: {n: t.nodes[n]["value"] for n in names}) if names else {}

    def log_likelihood(self, wanted: bool | Sequence[str]) -> dict[str, Tensor]:
        normalized = [
            name
            for name, site in self._observed().items()
            if _is_normalized(site) and name not in self.beneath
        ]
        names = normalized if wanted is True else list(wanted)
        refused = sorted(set(names) - set(normalized))
        if refused or not names:
            raise ValueError(
                f"log_likelihood of {refused or 'this model'} is refused: an unnormalised factor "
                "or energy is no log-likelihood, and leave-one-out on it is wrong without a sign; "
                "nor is that of a minibatch: remove subsample_size before exporting; nor that of "
                "data which depend on a latent that was summed out: sum over it in the model, as "
                "pyro.distributions.MixtureSameFamily does. "
                f"Normalised observed sites here: {normalized}"
            )
        return self._over_draws(
            lambda t: {n: t.nodes[n]["fn"].log_prob(t.nodes[n]["value"]) for n in names}
        )

    def _over_draws(self, read: Callable[[poutine.Trace], dict[str, Tensor]]) -> dict[str, Tensor]:
        shape = next(iter(self.posterior.values())).shape[:2]
        rows = {name: draws.flatten(0, 1) for name, draws in self.posterior.items()}

        def one(values: dict[str, Tensor]) -> dict[str, Tensor]:
            return read(self._trace(values))

        with torch.no_grad(), unvalidated():
            try:
                found = torch.func.vmap(one, randomness="different")(rows)
            except RuntimeError:  # a model with Python branches on its latents
                each = [one({n: v[i] for n, v in rows.items()}) for i in range(shape.numel())]
                found = {name: torch.stack([values[name] for values in each]) for name in each[0]}
        return {name: values.unflatten(0, shape) for name, values in found.items()}

    def plates(self) -> dict[str, list[str]]:
        return {
            name: _dims_of_plates(name, site)
            for name, site in self.sites.items()
            if site["type"] == "sample" and not poutine.util.site_is_subsample(site)
        }


def _is_normalized(site: dict) -> bool:
    base = base_distribution(site["fn"])
    return not isinstance(base, Boltzmann) or base.is_normalized


def _dims_of_plates(name: str, site: dict) -> list[str]:
    batch_dim = len(site["fn"].batch_shape)
    plates = {frame.dim: frame.name for frame in site["cond_indep_stack"] if frame.vectorized}
    return [plates.get(d - batch_dim, f"{name}_dim_{d}") for d in range(batch_dim)]


def _plates_of_sites(mcmc: AbstractMCMC) -> dict[str, list[str]]:
    if not isinstance(mcmc, MCMC):
        return {}
    return {
        name: [dim or f"{name}_dim_{i}" for i, dim in enumerate(dims)]
        for name, dims in mcmc.draws.dims.items()
    }


def _attributes(mcmc: AbstractMCMC) -> dict[str, str | int | float]:
    kernel = mcmc.kernel
    config = {k: v for k, v in vars(kernel).items() if isinstance(v, bool | int | float | str)}
    attrs: dict[str, str | int | float] = {
        "created_at": datetime.datetime.now(datetime.timezone.utc).isoformat(),
        "creation_library": "pyro_ebm",
        "creation_library_version": __version__,
        "creation_library_language": "Python",
        "inference_library": "pyro_ebm" if isinstance(mcmc, MCMC) else "pyro",
        "inference_library_version": __version__ if isinstance(mcmc, MCMC) else pyro.__version__,
        "tuning_steps": mcmc.warmup_steps,
        "kernel": type(kernel).__name__,
        "kernel_config": json.dumps({k: v for k, v in config.items() if not k.startswith("_")}),
    }
    if isinstance(mcmc, MCMC):
        attrs["sampling_time"] = mcmc.sampling_time
        attrs["thinning"] = mcmc.thin
    return attrs


def _dataset(
    xarray: Any,  # noqa: ANN401  the module, imported lazily
    group: str,
    variables: dict[str, Tensor],
    dims: Mapping[str, Sequence[str]],
    coords: Mapping[str, Sequence],
    attrs: dict,
) -> xr.Dataset:
    leading = () if group == "observed_data" else ("chain", "draw")
    arrays = {}
    for name, values in variables.items():
        array = _to_numpy(values, keep_bool="sample_stats" in group)
        event_dim = array.ndim - len(leading)
        own = list(dims.get(name, ()))[:event_dim]
        own += [f"{name}_dim_{i}" for i in range(len(own), event_dim)]
        labels = dict(zip((*leading, *own), array.shape, strict=True))
        index = {d: coords.get(d, range(n)) for d, n in labels.items()}
        arrays[name] = xarray.DataArray(
            array, dims=tuple(labels), coords={d: list(v) for d, v in index.items()}
        )
    if leading:
        attrs = {**attrs, "sample_dims": list(leading)}
    return xarray.Dataset(arrays, attrs=attrs)


def _to_numpy(values: Tensor, keep_bool: bool) -> np.ndarray:
    values = values.detach().cpu()
    if values.dtype == torch.bfloat16:
        values = values.float()
    if values.dtype == torch.bool and not keep_bool:
        values = values.long()
    return values.numpy()
