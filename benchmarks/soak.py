"""An hour of PCD training on one core: whether memory stays flat, chains alive, nothing leaks.

An MLP learns points of the plane as the guide says: persistent chains in a replay buffer,
compiled, some of which begin anew; a kernel whose step size follows the energy; a monitor, an
average of the parameters, checkpoints. The monitor keeps its records on purpose, up to half a MiB
of each: they are counted apart, and the rest of the memory has to be flat.
"""

import collections
import gc
import itertools
import math
import os
import resource
import statistics
import tempfile
import time

import numpy as np
import pyro
import torch
from pyro.infer import SVI

import pyro_ebm as ebm
from benchmarks import results
from pyro_ebm.runs.checkpoint import Checkpoints

CHAINS, MOVED, BATCH = 2_048, 256, 256
WARMED_UP = 0.5
"""The part of the run after which memory has to be flat."""
BLOCKS = 6
"""Into how many means the rest is cut, whose scatter is the error of the slope."""
MAX_Z = 5.0
TARGET = 0.7
"""The acceptance that the step size follows."""
MIB = 2**20
COUNTS = ("tensors", "graphs", "compiled", "file descriptors", "threads")


def add_arguments(parser):
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--every", type=float, default=30.0, help="seconds from record to record")


def main(args):
    torch.set_num_threads(1)
    about = results.about(f"soak --minutes {args.minutes:g}", every=args.every)
    about |= {"target": "MLP 2-128-128-1 on pinwheel", "chains": CHAINS, "moved": MOVED}
    rows, stopped = [], ""
    with tempfile.TemporaryDirectory() as folder:
        try:
            for row in train(folder, 60 * args.minutes, args.every):
                rows.append(row)
                results.save("soak", about, rows)
                print(line(row), flush=True)
        except ebm.objectives.TrainingDiverged as error:
            stopped = str(error)
        kept = Checkpoints(folder)
        kept.load()
    verdict = judge(rows) | {"stopped": stopped, "last checkpoint": kept.step}
    results.save("soak", about | {"verdict": verdict}, rows)
    report(verdict)


def train(folder, seconds, every):
    """Trains for so many seconds, and yields a record whenever it is time for one."""
    torch.manual_seed(0)
    pyro.clear_param_store()
    data = ebm.datasets.pinwheel(10_000).float()
    energy = ebm.energies.MLP((2,), (128, 128), base_scale=4.0)
    kernel = ebm.kernels.MALA(step_size=0.005)
    objective = ebm.objectives.PersistentCD(
        kernel, CHAINS, num_steps=20, reinit_prob=0.05, num_moved=MOVED, compile=True
    )

    def model(x):
        with pyro.plate("data", len(x)), pyro.poutine.scale(scale=1 / len(x)):
            pyro.sample("x", ebm.Boltzmann(energy), obs=x)

    # At five times the rate the energy had grown so steep after 129,000 updates that it ran off.
    optimizer = pyro.optim.Adam({"lr": 2e-4}, {"clip_norm": 1.0})
    monitor = ebm.objectives.Monitor(SVI(model, ebm.no_guide, optimizer, loss=objective))
    average = ebm.objectives.ExponentialAverage(energy, decay=0.999)
    parts = {"monitor": monitor, "energy": energy, "average": average}
    began = due = time.perf_counter()
    before = {}
    with ebm.objectives.Resumable(folder, **parts) as training:
        for step in training.steps(10**12):
            monitor.step(data[torch.randint(len(data), (BATCH,))])
            average.update()
            kernel.step_size *= math.exp(0.1 * (monitor.history["acceptance"][-1] - TARGET))
            now = time.perf_counter()
            if now >= due and step > 0:
                due = now + every
                row = {"seconds": now - began, "step": step + 1, **of_process()}
                row |= of_training(monitor, objective, energy, before)
                yield row
            if now - began > seconds:
                break


def of_process():
    """Memory in bytes, and what a leak would make more of."""
    gc.collect()
    kinds = collections.Counter(map(type, gc.get_objects()))
    of = {
        name: sum(number for kind, number in kinds.items() if issubclass(kind, base))
        for name, base in (("tensors", torch.Tensor), ("graphs", torch.fx.Graph))
    }
    with open("/proc/self/statm") as file:
        resident = int(file.read().split()[1]) * resource.getpagesize()
    return {
        "resident": resident,
        "most resident": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        **of,
        "file descriptors": len(os.listdir("/proc/self/fd")),
        "threads": len(os.listdir("/proc/self/task")),
    }


def of_training(monitor, objective, energy, before):
    """What chains and parameters are; ``before`` keeps the chains of the last record."""
    chains, history = objective.chains["x"], monitor.history
    moved = (chains != before["chains"]).any(-1).double().mean().item() if before else 1.0
    before["chains"] = chains.clone()
    kept = sum(record.nbytes for record in history.values())
    latest = {name: statistics.fmean(record[-100:]) for name, record in history.items()}
    return {
        "records": kept,
        "compiled": len(objective._steps._known) + len(objective._compiled._known),
        "distinct chains": len(chains.unique(dim=0)),
        "moved chains": moved,
        "finite": all(bool(p.isfinite().all()) for p in (*energy.parameters(), chains)),
        "step size": objective.kernel.step_size,
        **{name: latest[name] for name in ("energy gap", "acceptance")},
        **{name: latest[name] for name in ("chain distance", "chain spread", "gradient norm")},
    }


def judge(rows):
    """Says of each claim whether it holds, with the numbers behind it."""
    late = [row for row in rows if row["seconds"] >= WARMED_UP * rows[-1]["seconds"]]
    hours = [row["seconds"] / 3600 for row in late]
    all_of_it, error_of_all = slope(hours, [row["resident"] / MIB for row in late])
    rest = [(row["resident"] - row["records"]) / MIB for row in late]
    of_rest, error = slope(hours, rest)
    grown = [name for name in COUNTS if late[-1][name] > late[0][name]]
    fewest = min(row["distinct chains"] for row in rows)
    return {
        "updates": rows[-1]["step"],
        "minutes": rows[-1]["seconds"] / 60,
        "resident": f"{all_of_it:.2f} ± {error_of_all:.2f} MiB/h",
        "resident but for records": f"{of_rest:.2f} ± {error:.2f} MiB/h",
        "mean resident": statistics.fmean(row["resident"] / MIB for row in late),
        "records": late[-1]["records"] / MIB,
        "counts": {name: [late[0][name], late[-1][name]] for name in COUNTS},
        "fewest distinct chains": fewest,
        "least acceptance": min(row["acceptance"] for row in rows),
        "holds": {
            "memory is flat": of_rest <= MAX_Z * error,
            "nothing leaks": not grown,
            "chains are distinct": fewest == CHAINS,
            "chains are alive": all(itertools.starmap(alive, itertools.pairwise(rows))),
            "all is finite": all(row["finite"] for row in rows),
        },
    }


def alive(before, row):
    """Whether as many chains have moved since a row as updates that choose some of them reach."""
    reached = 1 - (1 - MOVED / CHAINS) ** (row["step"] - before["step"])
    error = math.sqrt(reached * (1 - reached) / CHAINS)
    return row["moved chains"] >= reached - MAX_Z * error - 1 / CHAINS


def slope(x, y):
    """Returns the slope of means of successive values, and its standard error."""
    if len(x) < 2 * BLOCKS:
        return math.nan, math.nan
    x, y = ([part.mean() for part in np.array_split(np.array(v), BLOCKS)] for v in (x, y))
    (found, _), covariance = np.polyfit(x, y, 1, cov=True)
    return float(found), float(covariance[0, 0] ** 0.5)


def line(row):
    return (
        f"{row['seconds'] / 60:5.1f} min {row['step']:8,} updates  "
        f"{row['resident'] / MIB:7.1f} MiB ({row['records'] / MIB:.1f} records)  "
        + "  ".join(f"{row[name]} {name}" for name in COUNTS)
        + f"  gap {row['energy gap']:6.3f}  acceptance {row['acceptance']:.3f}  "
        f"spread {row['chain spread']:.3f}  {row['distinct chains']} distinct"
    )


def report(verdict):
    for name, value in verdict.items():
        if name != "holds":
            print(f"  {name}: {value}")
    for claim, holds in verdict["holds"].items():
        print(f"  {'yes' if holds else 'NO '} {claim}")
