"""Our objectives, in a bare torch loop; for the timed ones also under SVI and compiled."""

import functools

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import transforms
from pyro.infer import SVI
from torch import nn

import pyro_ebm as ebm
from benchmarks import learning_cell as cell
from pyro_ebm import objectives as o
from pyro_ebm.kernels import ULA

RESTARTED = 0.2
"""The share of moved chains that begin at data: what the guide advises for a short training."""
AHEAD = 4
"""The updates of a generator for each of the energy that it plays against."""


class Flow(nn.Module):
    """Four affine couplings over a Gaussian that covers the data."""

    def __init__(self, data):
        super().__init__()
        self.register_buffer("scale", 1.5 * data.std(0))
        self.couplings = nn.ModuleList(transforms.affine_coupling(2, [32]) for _ in range(4))
        self.swap = transforms.Permute(torch.tensor([1, 0]))

    def forward(self):
        base = dist.Normal(torch.zeros(2), 1.0).to_event(1)
        wide = transforms.AffineTransform(torch.zeros(2), self.scale, event_dim=1)
        steps = [step for coupling in self.couplings for step in (coupling, self.swap)]
        return dist.TransformedDistribution(base, [*steps, wide])


def plain(make):
    def objective(energy, data):
        p, it = ebm.Boltzmann(energy, event_shape=(2,)), make()
        return lambda x: -it.surrogate(p, x).mean(), []

    return objective


def in_pairs(make):
    """Half of each batch, by noise of both signs, for the price of all of it."""

    def objective(energy, data):
        p, it = ebm.Boltzmann(energy, event_shape=(2,)), make(antithetic=True)
        return lambda x: -it.surrogate(p, x[: len(x) // 2]).mean(), []

    return objective


def nce(energy, data):
    mean, covariance = data.mean(0), data.T.cov()
    it = o.NoiseContrastive(dist.MultivariateNormal(mean, covariance), ratio=2)
    p = ebm.Boltzmann(energy, event_shape=(2,))
    return lambda x: -it.surrogate(p, x).mean(), [it.log_normalizer()]


def fce(energy, data):
    flow = Flow(data)
    it, p = o.FlowContrastive(flow), ebm.Boltzmann(energy, event_shape=(2,))
    return lambda x: -it.surrogate(p, x).mean(), [it.log_normalizer(), *flow.parameters()]


def adversarial(energy, data):
    """The generator keeps ahead: so many updates of its own, and fast ones, for each of E."""
    flow = Flow(data)
    ahead = torch.optim.Adam(flow.parameters(), lr=1e-2)
    it, p = o.Adversarial(flow, cell.CHAINS), ebm.Boltzmann(energy, event_shape=(2,))

    def loss(x):
        for _ in range(AHEAD):
            ahead.zero_grad()
            (-it.surrogate(p, x).mean()).backward(inputs=[*flow.parameters()])
            ahead.step()
        return -it.surrogate(p, x).mean()

    return loss, []


def ula():
    return ULA(step_size=cell.STEP_SIZE)


def pcd():
    how = {"reinit_prob": RESTARTED, "reinit_from": "data", "num_moved": cell.CHAINS}
    return o.PersistentCD(ula(), cell.SLOTS, cell.NUM_STEPS, **how)


OBJECTIVES = {
    "CD": in_pairs(functools.partial(o.ContrastiveDivergence, ula(), cell.NUM_STEPS)),
    "PCD": plain(pcd),
    "DSM": in_pairs(functools.partial(o.DenoisingScoreMatching, cell.SIGMA)),
    "SSM": plain(o.SlicedScoreMatching),
    "short run": plain(lambda: o.ShortRun(ula(), cell.NUM_STEPS)),
    "improved CD": plain(lambda: o.ImprovedCD(ula(), cell.NUM_STEPS)),
    "Jarzynski": plain(lambda: o.Jarzynski(ula(), 4 * cell.CHAINS, cell.NUM_STEPS // 4)),
    "SM": plain(o.ScoreMatching),
    "NCE": nce,
    "conditional NCE": plain(lambda: o.ConditionalNoiseContrastive(noise_scale=0.5, num_noise=2)),
    "flow-contrastive": fce,
    "adversarial": adversarial,
    "energy discrepancy": plain(lambda: o.EnergyDiscrepancy(noise_scale=0.5, num_noise=8)),
    "maximum likelihood": plain(lambda: o.MaximumLikelihood(half_width=8.0, tol=0.01)),
}


def timed(make, factor, driver, energy, chains):
    it, p = make(), ebm.Boltzmann(energy, event_shape=(2,))

    def loss(x):
        return -it.surrogate(p, x).mean()

    def from_chains(x):
        if isinstance(it, o.PersistentCD):
            it.chains["x"] = chains
        return loss(x)

    def model(x):
        with pyro.plate("data", len(x)):
            pyro.sample("x", p, obs=x)

    if driver == "bare":
        return cell.by_adam(energy, loss), from_chains, factor
    pyro.clear_param_store()
    if driver == "model":
        return cell.by_adam(energy, it(model, ebm.no_guide)), from_chains, factor
    svi = SVI(model, ebm.no_guide, pyro.optim.Adam({"lr": 1e-3}), loss=it)
    return svi.step, from_chains, factor


def make_pcd(compile):
    return o.PersistentCD(ula(), cell.CHAINS, cell.NUM_STEPS, compile=compile)


def make_dsm(compile):
    return o.DenoisingScoreMatching(cell.SIGMA, compile=compile)


PER_SIGMA = 1 / cell.SIGMA**2
"""Our loss is weighed by the variance of the noise, which an optimizer like Adam does not see."""

DRIVERS = {"bare": "", "model": ", torch optimizer on a model", "svi": ", SVI"}

TIMED = {
    f"{name}{' compiled' if compile else ''}{word}": functools.partial(
        timed, functools.partial(make, compile), factor, driver
    )
    for name, make, factor in (("PCD", make_pcd, 1.0), ("DSM", make_dsm, PER_SIGMA))
    for compile in (False, True)
    for driver, word in DRIVERS.items()
    if compile or driver == "bare"
}


if __name__ == "__main__":
    cell.run(OBJECTIVES, TIMED, f"pyro_ebm {ebm.__version__}")
