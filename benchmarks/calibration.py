"""Whether the error bars of log Z are right: how often the truth is in the 95 % interval.

Runs of an estimator are independent chains, so that 25 of them are one run of 25 times as many
chains, cut into pieces. There are four such runs, each with a plan of its own, hence 100 estimates
for each estimator and target. An interval is 1.96 standard errors on either side.

    python -m benchmarks.calibration [target ...]
"""

import argparse
import json
from pathlib import Path
from typing import NamedTuple

import pyro
import torch

import pyro_ebm as ebm
from pyro_ebm.energies import RBM, Banana, Gaussian, Ising, TwoModes
from pyro_ebm.energies.discrete import DiscreteEnergy
from pyro_ebm.kernels.transition import seeded_generator
from pyro_ebm.logz import Plan, plan
from pyro_ebm.logz.annealing import Direction, anneal
from pyro_ebm.logz.base import LogZ
from pyro_ebm.logz.bridge import linked, met
from pyro_ebm.logz.ladder import climb, num_levels
from pyro_ebm.logz.smc import sail, temperatures
from pyro_ebm.logz.thermodynamic import integrated, stepped

NUM_PLANS, NUM_EACH = 4, 25
DIGITS = Path(__file__).parent.parent / "tests" / "data" / "rbm_digits.json"


def machine() -> RBM:
    """A Boltzmann machine of 64 visible and 10 hidden units, trained on digits."""
    kept = json.loads(DIGITS.read_text())
    return RBM(*(torch.tensor(kept[name]) for name in "Wbc"))


TARGETS = {
    "gaussian": lambda: Gaussian(
        torch.tensor([1.0, -0.5]), torch.tensor([[2.0, 0.9], [0.9, 1.0]])
    ),
    "gaussian 20-D": lambda: Gaussian(torch.linspace(-3, 3, 20), torch.linspace(0.1, 10, 20)),
    "two modes": lambda: TwoModes(theta=-1.386294361119891),
    "banana": lambda: Banana(scale=2.0, curvature=0.3),
    "ising 8x8": lambda: Ising((8, 8), 0.4),
    "rbm on digits": machine,
}
"""Energies whose log Z is known exactly: in closed form, by Kaufman's formula on the torus, by a
sum over the smaller layer. Continuous ones are run as plain callables, so that nothing but their
value is used; discrete ones move as they do by themselves."""


def annealed(made: Plan, num: int, generator: torch.Generator, num_rungs: int) -> list[Direction]:
    """AIS from the base: 256 walkers."""
    walkers = made.path.draw_base(num * 256, generator)
    log_w, _ = anneal(made, walkers, made.rungs(num_rungs), generator)
    return [Direction.of(part) for part in log_w[-1].chunk(num)]


def sequential(
    made: Plan, num: int, generator: torch.Generator, num_particles: int
) -> list[Direction]:
    """SMC: 32 islands."""
    found = sail(made, temperatures(made), num * num_particles, num * 32, generator)
    return [found._replace(log_z=part).direction() for part in found.log_z.chunk(num)]


def bridged(made: Plan, num: int, generator: torch.Generator) -> list[LogZ]:
    """The bridge: 32 chains of 60 draws, and as many draws of the base; of many spans if it is
    far."""
    ladder = climb(made, num * 32, 60, num_levels(made), generator)
    of_base = -made.path.draw_base(num * 32 * 60, generator).excess
    of_target = -ladder.excess[..., -1].T
    ess = min(ebm.diagnostics.bulk_ess(of_target).item(), of_target.numel()) / num
    parts = [ladder._replace(excess=part) for part in ladder.excess.chunk(num, 1)]
    each = zip(of_base.chunk(num), of_target.chunk(num), parts, strict=True)
    return [met(base, target, ess) or linked(part) for base, target, part in each]


def laddered(made: Plan, num: int, generator: torch.Generator) -> dict[str, list[LogZ]]:
    """Thermodynamic integration and stepping stones: 32 chains of 60 steps."""
    ladder = climb(made, num * 32, 60, 2 * num_levels(made) + 1, generator)
    parts = [ladder._replace(excess=part) for part in ladder.excess.chunk(num, 1)]
    return {"thermodynamic": [*map(integrated, parts)], "stepping stone": [*map(stepped, parts)]}


def runs(made: Plan, generator: torch.Generator, *, discrete: bool) -> dict[str, list]:
    """All estimators.

    On a continuous target AIS has 32 rungs, and SMC half of the particles that it takes by
    itself; on a discrete one AIS an eighth of the rungs, and SMC all particles.
    """
    num_rungs = max(32, made.num_fine // 8) if discrete else 32
    return {
        "AIS": annealed(made, NUM_EACH, generator, num_rungs),
        "SMC": sequential(made, NUM_EACH, generator, 2048 if discrete else 1024),
        "bridge": bridged(made, NUM_EACH, generator),
        **laddered(made, NUM_EACH, generator),
    }


class Coverage(NamedTuple):
    """What many independent estimates say of their error bars."""

    covered: int
    """How many intervals hold the truth."""
    total: int
    mean_z: float
    """The mean error in standard errors: the bias."""
    sd_z: float
    """Its standard deviation: 1 if the standard errors are right."""
    std_error: float
    """The mean standard error, in nats."""
    lower: int
    """How many lower bounds are below the truth."""

    @classmethod
    def of(cls, found: list, truth: float) -> "Coverage":
        z = torch.tensor([(one.value - truth) / one.std_error for one in found])
        bounds = [one.bound if isinstance(one, Direction) else one.lower for one in found]
        return cls(
            int((z.abs() < 1.96).sum()),
            len(z),
            z.mean().item(),
            z.std().item(),
            sum(one.std_error for one in found) / len(found),
            sum(bound < truth for bound in bounds),
        )

    def __str__(self) -> str:
        return (
            f"{self.covered:3} of {self.total}  z {self.mean_z:+.2f} ± {self.sd_z:.2f}  "
            f"SE {self.std_error:.4f} nats  lower bound holds {self.lower}"
        )


def coverage(name: str, seed: int = 0) -> dict[str, Coverage]:
    """Runs all estimators on a target, by name."""
    energy, found = TARGETS[name](), {}
    discrete = isinstance(energy, DiscreteEnergy)
    boltzmann = (
        ebm.Boltzmann(energy)
        if discrete
        else ebm.Boltzmann(lambda x: energy(x), event_shape=energy.event_shape)
    )
    pyro.set_rng_seed(seed)
    for _ in range(NUM_PLANS):
        made = plan(boltzmann)
        generator = seeded_generator(made.scouts.device)
        for estimator, estimates in runs(made, generator, discrete=discrete).items():
            found.setdefault(estimator, []).extend(estimates)
    truth = energy.log_z().item()
    return {estimator: Coverage.of(estimates, truth) for estimator, estimates in found.items()}


def main() -> None:
    """Prints a line for each target and estimator."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("targets", nargs="*", help=f"of {', '.join(TARGETS)}; all if none")
    torch.set_default_dtype(torch.float64)
    for name in parser.parse_args().targets or TARGETS:
        for estimator, found in coverage(name).items():
            print(f"{name:14} {estimator:15} {found}", flush=True)


if __name__ == "__main__":
    main()
