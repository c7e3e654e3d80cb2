"""ebmkit's objectives, with its own defaults where the benchmark sets nothing."""

from importlib.metadata import version

from ebm.buffer import ReplayBuffer
from ebm.losses import ContrastiveDivergence, DenoisingScoreMatching, SlicedScoreMatching
from ebm.samplers import LangevinDynamics

from benchmarks import learning_cell as cell


def langevin():
    return LangevinDynamics(step_size=cell.STEP_SIZE, steps=cell.NUM_STEPS)


def once(make):
    """An objective made for each energy, as a function of a batch."""

    def objective(energy, data):
        loss = make()
        return lambda x: loss(energy, x).loss, []

    return objective


def pcd():
    buffer = ReplayBuffer(cell.SLOTS, (2,), reinit_prob=cell.RESTARTED)
    return ContrastiveDivergence(langevin(), buffer)


def timed_pcd(energy, chains):
    buffer = ReplayBuffer(len(chains), (2,), reinit_prob=0.0)
    loss = ContrastiveDivergence(langevin(), buffer)

    def from_chains(x):
        buffer.data = chains.clone()
        return loss(energy, x).loss

    return cell.by_adam(energy, lambda x: loss(energy, x).loss), from_chains, 1.0


def timed_dsm(energy, chains):
    def loss(x):
        return dsm(energy, x).loss

    dsm = DenoisingScoreMatching(cell.SIGMA)
    return cell.by_adam(energy, loss), loss, 1.0


if __name__ == "__main__":
    cell.run(
        {
            "CD": once(lambda: ContrastiveDivergence(langevin())),
            "PCD": once(pcd),
            "DSM": once(lambda: DenoisingScoreMatching(cell.SIGMA)),
            "SSM": once(SlicedScoreMatching),
        },
        {"PCD": timed_pcd, "DSM": timed_dsm},
        f"ebmkit {version('ebmkit')}",
    )
