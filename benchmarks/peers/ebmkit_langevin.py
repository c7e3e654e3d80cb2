"""ebmkit's Langevin dynamics."""

import time
from importlib.metadata import version

import torch
from ebm.samplers import LangevinDynamics

from benchmarks import langevin_cell
from benchmarks.peers.torch_energy import Energy


def make(layers, start):
    energy, x = Energy(layers), torch.from_numpy(start)
    sampler = LangevinDynamics(step_size=langevin_cell.STEP_SIZE)

    def walk(num_steps):
        began = time.perf_counter()
        states = sampler.sample(energy, x, steps=num_steps)
        return states.numpy(), time.perf_counter() - began

    return walk


if __name__ == "__main__":
    torch.set_num_threads(1)
    langevin_cell.run(make, f"ebmkit {version('ebmkit')}")
