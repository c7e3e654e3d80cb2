"""What ``test_divided_on_ranks.py`` has two processes do: an energy is divided between them."""

import sys
import warnings
from pathlib import Path

import pyro
import torch
from pyro.distributions import constraints
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from training_on_ranks import NUM_STEPS, Training, refused, stopped

import pyro_ebm as ebm
from pyro_ebm.kernels import HMC, MALA, ULA, ChEES, GibbsWithGradients
from pyro_ebm.objectives import (
    ConditionalNoiseContrastive,
    ContrastiveDivergence,
    DenoisingScoreMatching,
    EnergyDiscrepancy,
    ImprovedCD,
    Jarzynski,
    NoiseContrastive,
    PersistentCD,
    ScoreMatching,
    ShortRun,
    SlicedScoreMatching,
)
from pyro_ebm.ranks.divided import whole

OBJECTIVES = {
    "ContrastiveDivergence": lambda: ContrastiveDivergence(MALA(step_size=0.1), 2),
    "PersistentCD": lambda: PersistentCD(ULA(step_size=0.05), 16, 2),
    "compiled": lambda compile=True: PersistentCD(MALA(step_size=0.1), 16, 2, compile=compile),
    "ShortRun": lambda: ShortRun(MALA(step_size=0.1), 3),
    "Jarzynski": lambda: Jarzynski(ULA(step_size=0.05), 16),
    "NoiseContrastive": lambda: NoiseContrastive(
        pyro.distributions.Normal(torch.zeros(2), 2.0).to_event(1)
    ),
    "ConditionalNoiseContrastive": lambda: ConditionalNoiseContrastive(0.5),
    "EnergyDiscrepancy": lambda: EnergyDiscrepancy(0.5),
}
REFUSED = {
    "ImprovedCD": lambda: ImprovedCD(ULA(step_size=0.05), 2),
    "ScoreMatching": ScoreMatching,
    "SlicedScoreMatching": SlicedScoreMatching,
    "DenoisingScoreMatching": lambda: DenoisingScoreMatching(0.3),
    "HMC": lambda: PersistentCD(HMC(step_size=0.1), 16, 2),
    "ChEES": lambda: ContrastiveDivergence(ChEES(step_size=0.1), 2),
}


def energy_of(prepare):
    pyro.set_rng_seed(3)
    energy = ebm.energies.MLP((2,), hidden_sizes=(7, 5), base_scale=2.0)
    if prepare is not None:
        prepare(energy)
    return energy


def in_parts_of_its_layers(energy):
    """As large networks are: a layer at a time is brought together."""
    for layer in energy.network:
        if next(layer.parameters(), None) is not None:
            fully_shard(layer)
    fully_shard(energy)


def replicated(energy):
    energy.network = DistributedDataParallel(energy.network)


def trained(make, prepare, average=True, num_steps=4):
    """Learns an energy that is tilted by a parameter of the model; returns all that it learned."""
    pyro.clear_param_store()
    energy = energy_of(prepare)
    data = torch.randn(40, 2, generator=torch.Generator().manual_seed(1)).exp()
    shard = data[ebm.ranks.share(len(data))]

    def model(x):
        shift = pyro.param("shift", torch.zeros(2))
        with pyro.plate("data", len(data), subsample=x):
            pyro.sample("x", ebm.Boltzmann(energy), obs=x)
            pyro.sample("y", pyro.distributions.Normal(shift, 1.0).to_event(1), obs=x)

    optim = pyro.optim.Adam({"lr": 0.01})
    optim = ebm.ranks.Averaged(optim) if average else optim
    svi = pyro.infer.SVI(model, ebm.no_guide, optim, loss=make())
    pyro.set_rng_seed(20 + ebm.ranks.rank())
    for _ in range(num_steps):
        svi.step(shard[torch.randint(len(shard), (8,))])
    learned = [whole(p).detach().flatten() for p in energy.parameters()]
    return torch.cat([*learned, pyro.param("shift").detach()])


def learns(prepare, names=OBJECTIVES):
    return {name: trained(OBJECTIVES[name], prepare) for name in names}


def draws(prepare, kernel):
    p = ebm.Boltzmann(energy_of(prepare))
    compile = prepare is not None  # which it has to refuse
    mcmc = ebm.MCMC(kernel(p), 10, 10, 16, disable_progbar=True, compile=compile)
    mcmc.run()
    return mcmc.get_samples()["x"]


def posterior(prepare, kernel):
    """Draws of a model in which the energy is a factor."""
    energy = energy_of(prepare)

    def model():
        x = pyro.sample("x", pyro.distributions.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.factor("energy", -energy(x))

    mcmc = ebm.MCMC(kernel(model), 10, 10, 16, disable_progbar=True, compile=False)
    mcmc.run()
    return mcmc.get_samples()["x"]


def log_z(prepare, kernel):
    """Estimates, by walkers that each rank moves by itself."""
    p = ebm.Boltzmann(energy_of(prepare))
    points = torch.randn(200, 2, generator=torch.Generator().manual_seed(1))
    pyro.set_rng_seed(8 + ebm.ranks.rank())
    made = ebm.logz.plan(p, kernel=kernel, draws=points)
    found = ebm.logz.ais(made, num_chains=64, num_rungs=10), ebm.logz.importance(made)
    return torch.tensor([each[:3] for each in found])


def spins(prepare):
    """Draws of an energy of six bits, and log Z."""
    pyro.set_rng_seed(3)
    energy = torch.nn.Sequential(
        torch.nn.Linear(6, 7), torch.nn.Tanh(), torch.nn.Linear(7, 1), torch.nn.Flatten(-2)
    )
    if prepare is not None:
        prepare(energy)
    bits = constraints.independent(constraints.boolean, 1)
    p = ebm.Boltzmann(energy, event_shape=(6,), support=bits)
    pyro.set_rng_seed(8 + ebm.ranks.rank())
    kernel = GibbsWithGradients(p)
    mcmc = ebm.MCMC(kernel, 10, 10, 16, disable_progbar=True, compile=False)
    mcmc.run()
    log_z = ebm.logz.ais(p, num_chains=64, num_rungs=10)
    return torch.cat([mcmc.get_samples()["x"].flatten(), torch.tensor(log_z[:3])])


def norms(prepare):
    """Of gradients that are the same on both ranks, and so the same as their average."""
    pyro.clear_param_store()
    energy = energy_of(prepare)

    def model(x):
        with pyro.plate("data", len(x)):
            pyro.sample("x", ebm.Boltzmann(energy), obs=x)

    optim = ebm.ranks.Averaged(pyro.optim.Adam({"lr": 0.01}))
    svi = pyro.infer.SVI(model, ebm.no_guide, optim, loss=EnergyDiscrepancy(0.5))
    monitor = ebm.objectives.Monitor(svi)
    pyro.set_rng_seed(4)
    for _ in range(2):
        monitor.step(torch.ones(5, 2))
    return torch.tensor(list(monitor.history["gradient norm"]))


def goes_on(folder):
    """A run that was stopped, and one of it that nothing stopped."""

    def make(seed=7):
        return Training("PersistentCD", seed=seed, prepare=fully_shard)

    never = Training("PersistentCD").live(folder / "never divided").found()
    undisturbed = make().live(folder / "undisturbed").found()
    status, before = stopped(make, folder / "stopped", folder / "copy")
    after = make(seed=99).live(folder / "stopped").found()
    return {
        "never divided": never,
        "undisturbed": undisturbed,
        "status": status,
        "before": before,
        "after": after,
    }


def diverges(folder):
    """A step that is not sound, after which all is as it was before some steps."""
    run = Training(prepare=fully_shard)
    seen = []
    for step in range(NUM_STEPS):
        seen.append(run.found()["parameters"])
        run.energy.broken = step == 6 and ebm.ranks.rank() == 1
        try:
            run.step()
        except ebm.objectives.TrainingDiverged as error:
            return {"good": seen[error.good_step], "now": run.found()["parameters"]}
    return None


def main():
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    folder = Path(sys.argv[1])
    ebm.ranks.start(timeout=60)
    number = ebm.ranks.rank()
    mine_alone = init_device_mesh("cpu", (2, 1), mesh_dim_names=("other", "own"))["own"]
    found = {
        "whole": learns(None, [name for name in OBJECTIVES if name != "compiled"])
        | {"compiled": trained(lambda: OBJECTIVES["compiled"](compile=False), None)},
        "divided": learns(fully_shard),
        "by layers": learns(in_parts_of_its_layers),
        "replicated": learns(replicated, ["PersistentCD", "compiled"]),
        "refused": {
            name: refused(lambda make=make: trained(make, fully_shard))
            for name, make in REFUSED.items()
        },
        "draws": [draws(prepare, MALA) for prepare in (None, fully_shard)],
        "draws refused": refused(lambda: draws(fully_shard, ChEES)),
        "posterior": [posterior(prepare, MALA) for prepare in (None, fully_shard)],
        "spins": [spins(prepare) for prepare in (None, fully_shard)],
        "posterior refused": refused(lambda: posterior(fully_shard, ChEES)),
        "log Z": [log_z(prepare, MALA()) for prepare in (None, fully_shard)],
        "log Z refused": refused(lambda: log_z(fully_shard, None)),
        "divided alone": refused(
            lambda: trained(
                OBJECTIVES["PersistentCD"], lambda energy: fully_shard(energy, mesh=mine_alone)
            )
        ),
        "norms": [norms(prepare) for prepare in (None, fully_shard)],
        "goes on": goes_on(folder),
        "diverged": diverges(folder),
    }
    torch.save(found, folder / f"rank-{number}.pt")


if __name__ == "__main__":
    main()
