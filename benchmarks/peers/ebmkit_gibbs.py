"""ebmkit's Gibbs sampler, which serves its RBM; of the Ising model it has none."""

from importlib.metadata import version

import torch
from ebm.nets import RBM
from ebm.samplers import GibbsSampler

from benchmarks import gibbs_cell
from benchmarks.peers.torch_gibbs import walk_of


def rbm(weights, first):
    energy = RBM(*weights["weights"].shape)
    energy.W.data = torch.from_numpy(weights["weights"].T.copy())
    energy.b.data = torch.from_numpy(weights["visible_bias"])
    energy.c.data = torch.from_numpy(weights["hidden_bias"])
    sampler = GibbsSampler(steps=gibbs_cell.SWEEPS)

    def sweeps(v, num_sweeps):
        return sampler.sample(energy, v, steps=num_sweeps)

    return walk_of(sweeps, first)


if __name__ == "__main__":
    torch.set_num_threads(1)
    gibbs_cell.run({"rbm": rbm}, f"ebmkit {version('ebmkit')}")
