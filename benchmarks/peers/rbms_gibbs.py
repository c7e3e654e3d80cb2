"""The RBM of rbms."""

from importlib.metadata import version

import torch
from rbms.bernoulli_bernoulli.classes import BBRBM

from benchmarks import gibbs_cell
from benchmarks.peers.torch_gibbs import walk_of


def rbm(weights, first):
    params = BBRBM(
        weight_matrix=torch.from_numpy(weights["weights"]),
        vbias=torch.from_numpy(weights["visible_bias"]),
        hbias=torch.from_numpy(weights["hidden_bias"]),
    )
    chains = params.init_chains(len(first))

    def sweeps(v, num_sweeps):
        return params.sample_state(n_steps=num_sweeps, chains=chains | {"visible": v})["visible"]

    return walk_of(sweeps, first)


if __name__ == "__main__":
    torch.set_num_threads(1)
    gibbs_cell.run({"rbm": rbm}, f"rbms {version('rbms')}")
