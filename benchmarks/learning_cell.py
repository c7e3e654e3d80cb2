"""A cell of the learning benchmarks: one library on one data set, or its training steps timed.

Nothing but torch is imported, so that it runs where the peers live. All train the same module from
the same weights on the same batches by Adam, whose rate falls to zero along a cosine as the budget
is spent. The budget is counted for all by the same counter, as the multiplications of matrices in
all passes forwards and backwards, in units of one gradient of the energy at one point.
"""

import argparse
import json
import math
import time
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten

BATCH = 256
CHAINS = 256
"""The chains that are moved per update."""
SLOTS = 2_048
"""The size of a replay buffer, of which a batch is moved per update; ours has as many chains."""
NUM_STEPS = 20
STEP_SIZE = 0.005
RESTARTED = 0.05
SIGMA = 0.1
BASE_SCALE = 4.0
REPEATS = 100
"""How many gradients are averaged to see whether a library's update is the right one."""


class Energy(nn.Module):
    """2-128-128-1 with SiLU, tilting a wide Gaussian."""

    def __init__(self, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        layers = [nn.Linear(2, 128), nn.SiLU(), nn.Linear(128, 128), nn.SiLU(), nn.Linear(128, 1)]
        self.network = nn.Sequential(*layers)

    def forward(self, x):
        return self.network(x).squeeze(-1) + x.square().sum(-1) / (2 * BASE_SCALE**2)


def run(objectives, timed, engine):
    """Trains each objective at each rate, or times the steps, and prints what was found.

    Args:
        objectives: By name, functions from an energy and all data to a pair: a function from a
            batch to the loss, and what learns beside the energy.
        timed: By name, functions from an energy and chains ``(C, 2)`` to a triple: a function
            from a batch that makes an update by ``torch.optim.Adam`` at the rate 1e-3; one to the
            loss alone, that puts the chains back first; and what its gradient has to be
            multiplied with to be that of the plain loss.
        engine: What runs, and its version.
    """
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", required=True)
    parser.add_argument("--out", default="")
    parser.add_argument("--names", default="")
    parser.add_argument("--rates", default="0.001")
    parser.add_argument("--budget", type=float, default=0.0)
    parser.add_argument("--updates", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    kept = np.load(args.data)
    if args.updates:
        found = {name: time_steps(make, kept, args.updates) for name, make in timed.items()}
    else:
        names = args.names.split(",")
        rates = [float(rate) for rate in args.rates.split(",")]
        found = [attempt(objectives[n], n, r, kept, args) for n in names for r in rates]
    print(json.dumps({"engine": engine, "found": found}))


def attempt(make, name, rate, kept, args):
    """Trains; what stops it is a result too."""
    try:
        return train(make, name, rate, kept, args)
    except Exception as error:  # noqa: BLE001 - of any library
        return {"objective": name, "rate": rate, "failed": f"{type(error).__name__}: {error}"}


def train(make, name, rate, kept, args):
    """Trains until the budget is spent, and keeps the energy on the grids."""
    energy = Energy(args.seed)
    x = torch.from_numpy(kept["x"])
    torch.manual_seed(1_000 + args.seed)
    batches = torch.Generator().manual_seed(2_000 + args.seed)
    loss, beside = make(energy, x)
    optimizer = torch.optim.Adam([*energy.parameters(), *beside], lr=rate)

    def update():
        batch = x[torch.randint(len(x), (BATCH,), generator=batches)]
        optimizer.zero_grad()
        value = loss(batch)
        value.backward()
        optimizer.step()

    unit = unit_of(energy, x)
    began = time.process_time()
    spent, updates = 0.0, 0
    for _ in range(2):  # what is made once is in the first
        spent += (latest := counted(update) / unit)
        updates += 1
    while spent + latest <= args.budget:
        for group in optimizer.param_groups:
            group["lr"] = rate * 0.5 * (1 + math.cos(math.pi * spent / args.budget))
        update()
        spent += latest
        updates += 1
    row = {
        "objective": name,
        "rate": rate,
        "updates": updates,
        "spent": spent,
        "cpu_seconds": time.process_time() - began,
    }
    path = Path(args.out) / f"{name}-{rate}.npz".replace(" ", "_")
    with torch.no_grad():
        grids = {key: energy(torch.from_numpy(kept[key])).numpy() for key in ("near", "far")}
    np.savez(path, **grids)
    return row | {"energies": str(path)}


def unit_of(energy, x):
    """The multiplications of one gradient of the energy at one point."""

    def gradient():
        points = x[:BATCH].clone().requires_grad_()
        torch.autograd.grad(energy(points).sum(), points)

    return counted(gradient) / BATCH


def counted(fn):
    with Multiplications() as counter:
        fn()
    return counter.count


class Multiplications(TorchDispatchMode):
    """Counts those of matrix products, in every pass of whatever library."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        found = function(*args, **(kwargs or {}))
        if function in (aten.mm.default, aten.bmm.default):
            self.count += args[0].numel() * args[1].shape[-1]
        elif function is aten.addmm.default:
            self.count += args[1].numel() * args[2].shape[-1]
        return found


def time_steps(make, kept, updates):
    """Seconds of an update, and the mean gradient along a fixed direction."""
    energy, x = Energy(), torch.from_numpy(kept["x"])[:BATCH]
    chains = torch.from_numpy(kept["chains"])
    torch.manual_seed(1)
    update, loss, factor = make(energy, chains)
    slopes = []
    direction = [torch.from_numpy(kept[f"direction{i}"]) for i in range(6)]
    for _ in range(REPEATS):
        grads = torch.autograd.grad(loss(x), list(energy.parameters()), materialize_grads=True)
        along = [(g * d).sum().item() for g, d in zip(grads, direction, strict=True)]
        slopes.append(factor * sum(along))
    for _ in range(10):
        update(x)  # compiles what is to be compiled
    seconds, cpu = [], []
    for _ in range(updates):
        began = time.perf_counter(), time.process_time()
        update(x)
        seconds.append(time.perf_counter() - began[0])
        cpu.append(time.process_time() - began[1])
    return {
        "seconds": float(np.median(seconds)),
        "cpu_seconds": float(np.median(cpu)),
        "slope": float(np.mean(slopes)),
        "slope_error": float(np.std(slopes) / math.sqrt(REPEATS)),
    }


def by_adam(energy, loss):
    """The update that every torch loop makes."""
    optimizer = torch.optim.Adam(energy.parameters(), lr=1e-3)

    def update(x):
        optimizer.zero_grad()
        loss(x).backward()
        optimizer.step()

    return update
