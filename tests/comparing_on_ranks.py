"""What ``test_comparing_on_ranks.py`` has two processes do, together and each alone."""

import sys
import warnings
from pathlib import Path

import pyro
import torch

import pyro_ebm as ebm
from pyro_ebm.compare import compare
from pyro_ebm.kernels import MALA
from pyro_ebm.objectives import PersistentCD
from pyro_ebm.zoo import EBM, VAE, GaussianMixture, Independent, Training


def broken():
    raise RuntimeError("cannot be made")


def trained_by_chains():
    """An energy that learns, and is sampled, by chains, which ranks would share otherwise."""
    objective = PersistentCD(MALA(step_size=0.1), num_chains=32)
    energy = ebm.energies.MLP((2,), hidden_sizes=(8,))
    return EBM(energy, objective, Training(20, 32), warmup_steps=10, num_draws=5)


MODELS = {
    "independent": lambda: Independent((2,)),
    "mixture": lambda: GaussianMixture((2,), 2),
    "broken": broken,
    "vae": lambda: VAE((2,), latent_dim=1, training=Training(20)),
    "energy": trained_by_chains,
}


def card_of(data, **kwargs):
    pyro.set_rng_seed(1)
    card = compare(
        MODELS, *data, ood={"far": data[1] + 9}, num_samples=40, progress=False, **kwargs
    )
    figures = sorted(card.figures)
    drawn = sorted(name for name in card.figures if card.figures[name]() is not None)
    return {
        "rows": [row.numbers() for row in card.rows],
        "table": card.table(),
        "caveats": card.caveats,
        "protocol": card.protocol,
        "figures": figures,
        "drawn": drawn,
        "rankings": card.rankings(),
        "after": torch.rand(3),
    }


def compares(data):
    with ebm.ranks.alone():
        alone = card_of(data, num_seeds=2) if ebm.ranks.rank() == 0 else None
    found = {"alone": alone, "together": card_of(data, num_seeds=2)}
    try:
        card_of([x + ebm.ranks.rank() for x in data])
    except ValueError as error:
        found["unlike"] = str(error)
    return found


def searches():
    """A spin glass, in which descents end at many places."""
    generator = torch.Generator().manual_seed(4)
    edges = torch.combinations(torch.arange(40))
    couplings = torch.randn(len(edges), generator=generator)
    glass = ebm.Boltzmann(ebm.energies.IsingGraph(edges, couplings, torch.zeros(40)))
    pyro.set_rng_seed(2)
    together = ebm.map_estimate(glass, "icm", num_starts=5)
    pyro.set_rng_seed(2)
    num_own = 2 + ebm.ranks.rank()
    with ebm.ranks.own_stream(), ebm.ranks.alone():
        own = ebm.map_estimate(glass, "icm", num_starts=num_own)
    few = ebm.map_estimate(glass, "annealing", num_starts=1, num_sweeps=5)
    return {"together": together, "own": own, "few": few}


def main():
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    folder = Path(sys.argv[1])
    ebm.ranks.start(timeout=120)
    generator = torch.Generator().manual_seed(0)
    data = [torch.randn(n, 2, generator=generator).exp() for n in (80, 20)]
    found = {"compares": compares(data), "searches": searches()}
    torch.save(found, folder / f"rank-{ebm.ranks.rank()}.pt")
    ebm.ranks.wait()


if __name__ == "__main__":
    main()
