"""torchebm's Langevin dynamics."""

import time
from importlib.metadata import version

import torch
from torchebm.core import BaseModel
from torchebm.samplers import LangevinDynamics

from benchmarks import langevin_cell
from benchmarks.peers.torch_energy import Energy


class Model(BaseModel):
    def __init__(self, layers):
        super().__init__()
        self.energy = Energy(layers)

    def forward(self, x):
        return self.energy(x)


def make(layers, start):
    sampler = LangevinDynamics(Model(layers), step_size=langevin_cell.STEP_SIZE)
    x = torch.from_numpy(start)

    def walk(num_steps):
        began = time.perf_counter()
        states = sampler.sample(x=x, n_steps=num_steps)
        return states.numpy(), time.perf_counter() - began

    return walk


if __name__ == "__main__":
    torch.set_num_threads(1)
    langevin_cell.run(make, f"torchebm {version('torchebm')}")
