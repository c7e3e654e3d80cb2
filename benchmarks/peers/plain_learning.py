"""The timed updates written down in torch, as what all libraries' gradients must agree with."""

import math

import torch

from benchmarks import learning_cell as cell


def gradient(energy, x, create_graph=False):
    x = x.detach().requires_grad_()
    return torch.autograd.grad(energy(x).sum(), x, create_graph=create_graph)[0]


def timed_pcd(energy, chains):
    eta, state = cell.STEP_SIZE, {}

    def loss(x):
        z = state.get("z", chains)
        for _ in range(cell.NUM_STEPS):
            noise = torch.randn_like(z)
            z = z - eta * gradient(energy, z) + math.sqrt(2 * eta) * noise
        state["z"] = z
        return energy(x).mean() - energy(z).mean()

    def from_chains(x):
        state["z"] = chains
        return loss(x)

    return cell.by_adam(energy, loss), from_chains, 1.0


def timed_dsm(energy, chains):
    def loss(x):
        noise = torch.randn_like(x)
        score = -gradient(energy, x + cell.SIGMA * noise, create_graph=True)
        return (score + noise / cell.SIGMA).square().sum(-1).mean() / 2

    return cell.by_adam(energy, loss), loss, 1.0


if __name__ == "__main__":
    cell.run({}, {"PCD": timed_pcd, "DSM": timed_dsm}, f"torch {torch.__version__}")
