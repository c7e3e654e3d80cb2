"""Our Gibbs sweeps, on the rung of the engine that is asked for."""

import sys
import time

import torch

import pyro_ebm as ebm
from benchmarks import gibbs_cell
from pyro_ebm.kernels.acceleration import WORTH_TRACING, Runner

COMPILE = {"eager": False, "graph": "auto", "native": True}
RUNG = sys.argv[sys.argv.index("--engine") + 1]


def walk_of(energy, first):
    """Moves chains by the kernel, as the driver does."""
    kernel = ebm.kernels.Gibbs(ebm.Boltzmann(energy), num_sweeps=gibbs_cell.SWEEPS)
    potential = kernel.bind((), {}, {"x": first})
    state = kernel.init(potential, potential.flatten({"x": first}))
    runner = Runner(kernel, potential, state, WORTH_TRACING, COMPILE[RUNG])
    if runner.rung.name != RUNG:
        raise RuntimeError(str(runner.rung))
    generator = torch.Generator().manual_seed(0)

    def walk(num_states):
        nonlocal state
        began, kept = time.process_time(), []
        for moved, history in runner.run(state, num_states, generator):
            state = moved
            kept.append(history.z)
        seconds = time.process_time() - began
        return torch.cat(kept).flatten(2).numpy() > 0, seconds

    return walk


def ising(_, first):
    energy = ebm.energies.Ising((gibbs_cell.SIDE, gibbs_cell.SIDE), gibbs_cell.COUPLING)
    spins = 2 * torch.from_numpy(first).float() - 1
    return walk_of(energy, spins.unflatten(-1, energy.event_shape))


def rbm(weights, first):
    names = ("weights", "visible_bias", "hidden_bias")
    energy = ebm.energies.RBM(*(torch.from_numpy(weights[name]) for name in names))
    return walk_of(energy, torch.from_numpy(first).float())


if __name__ == "__main__":
    torch.set_num_threads(1)
    gibbs_cell.run({"ising": ising, "rbm": rbm}, f"pyro_ebm {ebm.__version__}")
