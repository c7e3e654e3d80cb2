"""A row: one sampler on one target from one seed, run in its process and judged."""

import json
import os
import resource
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from benchmarks import process, state
from benchmarks.observations import dtype_of
from benchmarks.quality import quality
from benchmarks.references import reference
from benchmarks.targets import potential_of, starting_points, use_dtype_of


def measure(target, sampler, chains, seed, num_draws, limit):
    """Runs a cell and returns its row, which has ``failed`` if there was no answer."""
    row = {"target": target, "sampler": sampler.label, "chains": chains, "seed": seed}
    row |= {"ours": sampler.is_ours, "dtype": dtype_of(target), "load": os.getloadavg()[0]}
    row |= state.stamp(state.code(sampler)) | {"limit": limit}
    began = time.perf_counter()
    row |= answer(target, sampler, chains, seed, num_draws, limit)
    return row | {"wall": time.perf_counter() - began}


def answer(target, sampler, chains, seed, num_draws, limit):
    use_dtype_of(target)
    potential = potential_of(target)
    with tempfile.TemporaryDirectory() as folder:
        start, out = Path(folder) / "start.npz", Path(folder) / "draws.npz"
        np.savez(start, **starting_points(potential, chains, seed))
        words = {"target": target, "dtype": dtype_of(target), "chains": chains, "seed": seed}
        words |= {"draws": num_draws, "start": start, "out": out} | sampler.words
        spent = cpu_of_children()
        try:
            printed = process.run(sampler.environment, sampler.module, words, limit)
        except process.Failed as failure:
            cpu = cpu_of_children() - spent
            return {"void": f"{failure}; not tried again", "failed": True, "cpu": cpu}
        spent = cpu_of_children() - spent
        draws = {name: torch.from_numpy(v) for name, v in np.load(out).items()}
    numbers = json.loads(printed.splitlines()[-1])
    if not numbers["hot"] > 0:  # a difference of two times, for nutpie
        return {"void": "sampling took too little time to measure"}
    if "z" in draws:
        draws = potential.constrain(draws["z"].to(torch.get_default_dtype()))
    found = quality(draws, reference(target))
    per_draw = found.ess / (chains * num_draws)
    for name in ("useful", "executed"):
        if f"gradients_{name}" in numbers:
            numbers[f"ess_per_gradient_{name}"] = per_draw / numbers[f"gradients_{name}"]
    return {
        "void": found.void(chains),
        "ess": found.ess,
        "r_hat": found.r_hat,
        "z": found.z,
        "hot_per_second": found.ess / numbers["hot"],
        "cold_per_second": found.ess / numbers["cold"],
        "cpu": spent,
        **numbers,
    }


def cpu_of_children():
    """Seconds of CPU of all ended children: far below ``wall`` where others had the core."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def line(row):
    """A row for the eye."""
    name = f"{row['target']:16} {row['sampler']:24} {row['chains']:5} chains  seed {row['seed']}"
    name += f"  {row['wall']:5.1f} s ({row.get('cpu', 0.0):5.1f} CPU)"
    if "ess" not in row:
        return f"{name}  VOID: {row['void']}"
    return (
        f"{name}  R-hat {row['r_hat']:.3f}  |z| {row['z']:4.1f}  hot {row['hot_per_second']:10.1f}"
        f"/s  cold {row['cold_per_second']:9.1f}/s" + (row["void"] and f"  VOID: {row['void']}")
    )
