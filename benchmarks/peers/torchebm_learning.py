"""torchebm's objectives, with its own defaults where the benchmark sets nothing."""

from importlib.metadata import version

from torchebm.core import BaseModel
from torchebm.losses import (
    ContrastiveDivergence,
    DenoisingScoreMatching,
    PersistentContrastiveDivergence,
    SlicedScoreMatching,
)
from torchebm.samplers import LangevinDynamics

from benchmarks import learning_cell as cell


class Model(BaseModel):
    def __init__(self, energy):
        super().__init__()
        self.energy = energy

    def forward(self, x):
        return self.energy(x)


def langevin(model):
    return LangevinDynamics(model, step_size=cell.STEP_SIZE)


def cd(energy, data):
    model = Model(energy)
    loss = ContrastiveDivergence(model, langevin(model), k_steps=cell.NUM_STEPS)
    return lambda x: loss(x)[0], []


def pcd(energy, data):
    model = Model(energy)
    loss = PersistentContrastiveDivergence(
        model,
        langevin(model),
        k_steps=cell.NUM_STEPS,
        buffer_size=cell.SLOTS,
        new_sample_ratio=cell.RESTARTED,
    )
    return lambda x: loss(x)[0], []


def dsm(energy, data):
    return DenoisingScoreMatching(Model(energy), noise_scale=cell.SIGMA), []


def ssm(energy, data):
    return SlicedScoreMatching(Model(energy), n_projections=1), []


def timed_pcd(energy, chains):
    model = Model(energy)
    loss = PersistentContrastiveDivergence(
        model,
        langevin(model),
        k_steps=cell.NUM_STEPS,
        buffer_size=len(chains),
        new_sample_ratio=0.0,
        init_steps=0,
        energy_reg_weight=0.0,
    )
    loss.initialize_buffer((2,))

    def from_chains(x):
        loss.replay_buffer.copy_(chains)
        return loss(x)[0]

    return cell.by_adam(energy, lambda x: loss(x)[0]), from_chains, 1.0


def timed_dsm(energy, chains):
    loss = DenoisingScoreMatching(Model(energy), noise_scale=cell.SIGMA)
    return cell.by_adam(energy, loss), loss, 1.0


if __name__ == "__main__":
    cell.run(
        {"CD": cd, "PCD": pcd, "DSM": dsm, "SSM": ssm},
        {"PCD": timed_pcd, "DSM": timed_dsm},
        f"torchebm {version('torchebm')}",
    )
