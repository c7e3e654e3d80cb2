"""How well energies are learned: five densities on the plane, one network, one budget.

All objectives of a library train the same network from the same weights on the same batches until
the same budget is spent, at the same learning rates, of which the best counts. The judge is the
divergence of the energy, normalised on a grid, from the density that the data were drawn from.
"""

import json
import math
import statistics
import tempfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from benchmarks import process, results, state
from pyro_ebm import datasets

TARGETS = ("rings", "two_moons", "checkerboard", "pinwheel", "eight_gaussians")
OURS = "pyro_ebm"
LIBRARIES = {
    OURS: ("own", "benchmarks.ours.learning"),
    "torchebm": ("torch", "benchmarks.peers.torchebm_learning"),
    "ebmkit": ("torch", "benchmarks.peers.ebmkit_learning"),
}
COMMON = ("CD", "PCD", "DSM", "SSM")
"""The objectives that all libraries have."""
OTHERS = (
    *("short run", "improved CD", "Jarzynski", "SM", "NCE", "conditional NCE"),
    *("flow-contrastive", "adversarial", "energy discrepancy", "maximum likelihood"),
)
NUM_DATA = 50_000
NEAR, FAR = 6.0, 12.0
"""Half the sides of the squares where the data lie, and where models are looked for."""
CELLS = 240
"""Of the near grid along each axis, and as many of the far one: edges of the board lie between."""
LEFT = 0.01
"""The share of a model's mass in the far square alone above which it is said to have left."""


def add_arguments(parser):
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--budget", type=float, default=1e6, help="gradients of the energy")
    parser.add_argument("--rates", default="0.003,0.01", help="learning rates, with commas")
    parser.add_argument("--targets", default=",".join(TARGETS))
    parser.add_argument("--objectives", default=",".join((*COMMON, *OTHERS)))
    parser.add_argument("--libraries", default=",".join(LIBRARIES))
    parser.add_argument("--limit", type=float, default=3600.0, help="seconds of one process")


def main(args):
    about = results.about("learning", budget=args.budget, rates=args.rates, dtype="float32")
    codes = {name: code_of(name) for name in LIBRARIES}
    rows = state.kept("learning", about, lambda row: row["code"] == codes[row["library"]])
    for seed in range(args.seeds):
        for target in args.targets.split(","):
            for library in args.libraries.split(","):
                environment, module = LIBRARIES[library]
                if not process.exists(environment):
                    print(f"left out: {library} (`make bench-learning` installs it)")
                    continue
                known = COMMON + (OTHERS if library == OURS else ())
                done = {row["objective"] for row in rows if is_cell(row, library, target, seed)}
                names = [n for n in args.objectives.split(",") if n in known and n not in done]
                if not names:
                    continue
                here = {"library": library, "target": target, "seed": seed}
                stamp = state.stamp(codes[library])
                for row in measure(environment, module, target, names, seed, args):
                    rows.append(here | row | stamp)
                results.save("learning", about, rows)
                print(f"{target}, {library}, seed {seed}: done", flush=True)
    report(rows)


def code_of(library):
    own = [f"{LIBRARIES[library][1].replace('.', '/')}.py"]
    files = [*own, *(["pyro_ebm/**/*.py"] if library == OURS else [])]
    return state.digest("benchmarks/learning_cell.py", "pyro_ebm/datasets.py", *files)


def is_cell(row, library, target, seed):
    return (row["library"], row["target"], row["seed"]) == (library, target, seed)


def measure(environment, module, target, names, seed, args):
    """Rows of one library, one for each objective and rate."""
    toy = getattr(datasets, target)
    generator = torch.Generator().manual_seed(seed)
    near, far = grid(NEAR), grid(FAR)
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "data.npz"
        x = toy(NUM_DATA, generator=generator).float()
        np.savez(data, x=x.numpy(), near=near.float().numpy(), far=far.float().numpy())
        words = {"data": data, "out": folder, "names": ",".join(names), "rates": args.rates}
        words |= {"budget": args.budget, "seed": seed}
        try:
            found = json.loads(process.run(environment, module, words, args.limit))
        except process.Failed as failure:
            print(f"{target}, {module}: {failure}")
            return []
        rows = []
        for row in found["found"]:
            judged = {}
            if "failed" not in row:
                energies = np.load(row.pop("energies"))
                judged = judge(toy.log_prob(near), energies["near"], energies["far"])
            rows.append(row | judged | {"engine": found["engine"]})
    return rows


def grid(half_width):
    """Midpoints of cells, in float64, with shape ``(CELLS^2, 2)``."""
    width = 2 * half_width / CELLS
    middle = -half_width + width * (torch.arange(CELLS, dtype=torch.float64) + 0.5)
    return torch.cartesian_prod(middle, middle)


def judge(log_p, near, far):
    """The divergence of truth from model, and the mass of the model beyond the near square.

    The model is normalised on both squares: on the fine grid where the data lie, on the coarse one
    around it.
    """
    near, far = (torch.from_numpy(energy).double() for energy in (near, far))
    if not bool(near.isfinite().all() & far.isfinite().all()):
        return {"kl": None, "void": "not finite"}
    beyond = grid(FAR).abs().amax(-1) > NEAR
    area = (2 * NEAR / CELLS) ** 2
    log_within = (-near).logsumexp(0) + math.log(area)
    log_beyond = (-far[beyond]).logsumexp(0) + 2 * math.log(2 * FAR / CELLS)
    log_z = torch.logaddexp(log_within, log_beyond)
    p = log_p.exp() * area
    kl = torch.where(p > 0, p * (log_p + near + log_z), 0.0).sum().item()
    outside = (log_beyond - log_z).exp().item()
    return {"kl": kl, "outside": outside, "void": "left the square" if outside > LEFT else ""}


class Cell(NamedTuple):
    """One objective of one library on one density, at the better of the rates."""

    by_seed: dict
    """The divergence from the truth in nats, by seed."""
    left: bool
    """Whether mass left the square under any seed."""
    rate: float

    @property
    def kl(self):
        return statistics.median(self.by_seed.values())


class Behind(NamedTuple):
    """A cell of a peer whose median is lower than ours."""

    library: str
    objective: str
    target: str
    ours: float
    theirs: float
    difference: float
    """Ours less theirs, the mean over seeds, each of which has its data, weights and batches."""
    error: float
    """The standard error of that over seeds; not a number with one."""

    def __str__(self):
        return (
            f"{self.objective:5}{self.target.replace('_', ' '):17}{self.library:10}"
            f"{self.ours:.3f} against {self.theirs:.3f}, by {self.difference:+.3f} "
            f"+- {self.error:.3f}"
        )


def best(rows):
    """Returns ``{(objective, library): {target: cell}}``."""
    found = {}
    for row in rows:
        if row.get("kl") is not None:
            rates = found.setdefault((row["objective"], row["library"]), {})
            rates.setdefault(row["target"], {}).setdefault(row["rate"], []).append(row)
    return {
        key: {target: cell_of(by_rate) for target, by_rate in targets.items()}
        for key, targets in found.items()
    }


def cell_of(by_rate):
    cells = [
        Cell({row["seed"]: row["kl"] for row in same}, any(row["void"] for row in same), rate)
        for rate, same in by_rate.items()
    ]
    return min(cells, key=lambda cell: cell.kl)


def report(rows):
    print("\nKL(truth || model) in nats, the median over seeds; * its mass left the square")
    print(f"  {'':19}{'':10}" + "".join(f"{target.replace('_', ' '):>17}" for target in TARGETS))
    found = best(rows)
    for objective in (*COMMON, *OTHERS):
        for library in LIBRARIES:
            cells = found.get((objective, library))
            if cells:
                texts = [text_of(cells.get(target)) for target in TARGETS]
                print(f"  {objective:19}{library:10}" + "".join(f"{t:>17}" for t in texts))
    compared, lost = against(found)
    print(f"ours <= theirs in {compared - len(lost)} of {compared} cells; elsewhere behind,")
    print("by the mean difference over seeds and its standard error")
    for cell in lost:
        print(f"  {cell}")
    print("over all densities and seeds, the mean logarithm of ours / theirs")
    for (objective, library), (mean, error) in overall(found).items():
        print(f"  {objective:5}{library:10}{mean:+.3f} +- {error:.3f}")
    for row in rows:
        if "failed" in row:
            print(f"FAILED {row['library']}, {row['objective']}, {row['target']}: {row['failed']}")
    print(state.span([row | {"ours": row["library"] == OURS} for row in rows]))


def against(found):
    """Returns how many cells of peers there are to compare with, and those that are lower."""
    compared, lost = 0, []
    for (objective, library), cells in found.items():
        ours = found.get((objective, OURS), {}) if library != OURS else {}
        for target in ours.keys() & cells.keys():
            compared += 1
            if ours[target].kl > cells[target].kl:
                gaps = differences(ours[target], cells[target])
                medians = ours[target].kl, cells[target].kl
                lost.append(Behind(library, objective, target, *medians, *gaps))
    return compared, sorted(lost, key=lambda cell: (cell.objective, cell.library, cell.target))


def differences(ours, theirs):
    """Returns the mean over seeds of ours less theirs, and its standard error."""
    seeds = ours.by_seed.keys() & theirs.by_seed.keys()
    return mean_of([ours.by_seed[seed] - theirs.by_seed[seed] for seed in seeds])


def overall(found):
    """Returns ``{(objective, library): (mean, error)}`` of the log ratios of ours to theirs."""
    ratios = {}
    for (objective, library), cells in found.items():
        ours = found.get((objective, OURS), {}) if library != OURS else {}
        ratios[objective, library] = [
            math.log(ours[target].by_seed[seed] / kl)
            for target in ours.keys() & cells.keys()
            for seed, kl in cells[target].by_seed.items()
            if seed in ours[target].by_seed
        ]
    return {key: mean_of(each) for key, each in ratios.items() if each}


def mean_of(each):
    """Returns the mean and its standard error; not a number where there are too few."""
    if not each:
        return math.nan, math.nan
    error = statistics.stdev(each) / math.sqrt(len(each)) if len(each) > 1 else math.nan
    return statistics.mean(each), error


def text_of(cell):
    return "-" if cell is None else f"{cell.kl:.3f}{'*' if cell.left else ''}"
