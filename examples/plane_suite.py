"""Families of models on densities of the plane that are known, and weights that some cannot see.

Each family learns each density from draws alone. Where it has a density of its own, its divergence
from the truth is an integral, to the digits printed; of a bound it is a mean over held-out points.
On two modes with nothing between them, score matching is nearly blind to their weights, and a game
may leave one out: the last table says by how much, from several seeds of training. The one before
is of densities that are multiplied: two models, of two parts of the modes, whose product is known.

    python examples/plane_suite.py --out report/

A run that was stopped, and is called again, reads the models that it had fitted.
"""

import argparse
import functools
from pathlib import Path

import torch

import pyro_ebm as ebm
from pyro_ebm.compare import load, make
from pyro_ebm.compare.fitted import Fitted
from pyro_ebm.zoo import EBM, Training

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--out", default="report/", help="where to save the pages")
parser.add_argument("--data", help="some of the densities, by name, with commas; all by default")
parser.add_argument("--smoke", action="store_true", help="a run of a few seconds")
parser.add_argument("--full", action="store_true", help="train for four times as long")
parser.add_argument("--seeds", type=int, default=2, help="of training, in the last table")
args = parser.parse_args()

torch.set_num_threads(1)  # matrices this small gain nothing from a second thread
SUITE = ("two_modes", "two_moons", "eight_gaussians", "rings", "pinwheel", "checkerboard")
FAMILIES = ("ebm", "flow", "autoregressive", "diffusion", "vae", "gan", "mixture", "independent")
if args.smoke:
    SUITE, FAMILIES, args.seeds = SUITE[:1], FAMILIES[-2:], 1
if args.data:
    SUITE = tuple(args.data.split(","))


def maker(name, data):
    return functools.partial(make, name, data.kind, data.train, quick=not args.full)


def compared(models, data, **kwargs):
    kept = Fitted(Path(args.out) / "fitted", f"{data.name}, {args.full}, {args.smoke}")
    kwargs = {"law": data.law, "kept": kept, "progress": False, **kwargs}
    card = ebm.compare(models, data.train, data.test, **kwargs)
    card.protocol = {"data": f"{data.name}: {data.note}", **card.protocol}
    return card


kl, products = {}, []
for source in SUITE:
    data = load(source, quick=not args.full)
    models = {name: maker(name, data) for name in FAMILIES}
    card = compared(models, data, composition=source == "two_modes")
    card.save(Path(args.out) / source)
    kl[source] = {row["model"]: row.get("KL (nats)", "–") for row in card.table()}
    if source == "two_modes":
        products = card.rows
print("divergence from the law of the data (nats): = by quadrature, ≤ of a bound")
print(f"{'':16}" + "".join(f"{source:>18}" for source in SUITE))
for name in FAMILIES:
    print(f"{name:16}" + "".join(f"{kl[source][name]:>18}" for source in SUITE))
if "two_modes" not in SUITE:
    parser.exit()  # what follows is of them
print("\ntwo models of two modes, of the right part and the upper, multiplied: energy distance")
for row in products:
    print(f"{row.model:16} {row.cells()['composition']:>18}")


def ebm_by(objective, data, num_steps, **kwargs):
    """A model of the plane as it is by default, but for its objective."""
    model = EBM.for_plane(data.train)
    plan = Training(6 if args.smoke else num_steps, 256, 4e-3, ema=0.99, **kwargs)
    return EBM(model.energy, objective, plan, warmup_steps=50, num_draws=50)


data = load("two_modes", quick=not args.full)
chains = {"num_chains": 256, "num_steps": 5}
kernel = functools.partial(ebm.kernels.MALA, step_size=0.1)
objectives = {
    "ebm, score matching": lambda: ebm.objectives.DenoisingScoreMatching(sigma=0.07),
    "ebm, persistent": lambda: ebm.objectives.PersistentCD(kernel(), **chains),
    "ebm, begun anew": lambda: ebm.objectives.PersistentCD(kernel(), reinit_prob=0.01, **chains),
    "ebm, Jarzynski": lambda: ebm.objectives.Jarzynski(ebm.kernels.ULA(step_size=0.01), **chains),
}
plans = {"ebm, begun anew": {"clip_norm": 1.0}}  # new chains are far up, and pull hard at first
models = {
    name: lambda name=name, make=make: ebm_by(make(), data, 1000, **plans.get(name, {}))
    for name, make in objectives.items()
}
models |= {name: maker(name, data) for name in FAMILIES if name not in ("ebm", "independent")}
card = compared(models, data, num_seeds=args.seeds)
print(f"\nweights of two modes, 0.8 and 0.2: the error over {args.seeds} seeds, and of the data")
for row in card.rows:
    print(f"{row.model:20} {row.cells()['weight error']:>18}   KL {row.cells()['KL (nats)']}")
print(f"\nthe page: {card.save(Path(args.out) / 'weights')}")
assert card["mixture"].mode_error.value < 0.05
assert card["mixture"].kl.value < 0.05
