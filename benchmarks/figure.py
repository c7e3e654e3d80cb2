"""Draws the results, so that they can be read in black and white."""

import matplotlib as mpl
import matplotlib.pyplot as plt

from benchmarks import langevin, learning, posteriordb, results, sampling, scale
from benchmarks.samplers import SAMPLERS

MARKERS = "osD^v<>Pp*hX8d"
LINES = ["-", "--", ":", "-."]
MOST_NATS = 5.0
"""Where the axis of divergences ends: what is beyond has not learned."""


def add_arguments(parser):
    """None: it draws what there is."""


def main(args):
    """Parts without a figure are tables alone."""
    mpl.use("Agg")
    figures = {
        "sampling": (of_sampling, sampling.medians),
        "langevin": (of_langevin, langevin.medians),
        "scale": (of_scale, scale.medians),
        "learning": (of_learning, learning.best),
        "posteriordb": (of_posteriordb, lambda rows: [row for row in rows if "failed" not in row]),
    }
    for name, (draw, table_of) in figures.items():
        table = table_of(results.load(name)["rows"])
        if not table:
            print(f"no figure of {name}: there are no rows that count")
            continue
        figure = draw(table)
        path = results.FOLDER / f"{name}.png"
        figure.savefig(path, dpi=150, bbox_inches="tight")
        plt.close(figure)
        print(path.name)


def of_sampling(table):
    """A row for each target; ours filled, others hollow; a line from the least to the most."""
    known = list(dict.fromkeys(sampler.label for sampler in SAMPLERS))
    there = {name for found in table.values() for name, _ in found}
    names = [name for name in known if name in there] + sorted(there - set(known))
    ours = {name for found in table.values() for (name, _), v in found.items() if v["ours"]}
    height = 1 + 1.3 * len(table)
    figure, axes = plt.subplots(1, 2, figsize=(12, height), sharey=True)
    for axis, kind in zip(axes, ("cold", "hot"), strict=True):
        for i, found in enumerate(table.values()):
            for (name, _), values in found.items():
                j = names.index(name)
                draw_one(axis, values, kind, i + 0.8 * ((j + 0.5) / len(names) - 0.5), j)
            axis.axhline(i + 0.5, color="0.85", linewidth=0.8)
        axis.set(xscale="log", xlabel="effective samples per second", title=kind)
        axis.grid(axis="x", color="0.9")
    axes[0].set_yticks(range(len(table)), [name.replace("_", " ") for name in table])
    axes[0].invert_yaxis()
    handles = [
        plt.Line2D([], [], color="black", linestyle="", marker=MARKERS[j % len(MARKERS)],
                   markerfacecolor="black" if name in ours else "white",
                   label=f"{'pyro_ebm ' if name in ours else ''}{name}")
        for j, name in enumerate(names)
    ]  # fmt: skip
    below = (0.5, 0.11 - 0.6 / height)
    figure.legend(handles=handles, loc="upper center", bbox_to_anchor=below, ncols=3)
    return figure


def draw_one(axis, values, kind, y, j):
    median, least, most = values[f"{kind}_per_second"]
    axis.plot([least, most], [y, y], color="black", linewidth=0.8)
    face = "black" if values["ours"] else "white"
    marker = MARKERS[j % len(MARKERS)]
    axis.plot(median, y, marker=marker, color="black", markerfacecolor=face, markersize=5)


def of_langevin(table):
    figure, axis = plt.subplots(figsize=(6, 4))
    for j, (library, found) in enumerate(table.items()):
        ratios = [ratio for _, ratio in found.values()]
        if library != langevin.OURS:
            style = {"marker": MARKERS[j], "linestyle": LINES[j % len(LINES)]}
            axis.plot(list(found), ratios, color="black", label=f"against {library}", **style)
    axis.axhline(1.0, color="0.6", linewidth=0.8)
    axis.set(xscale="log", yscale="log", xlabel="chains")
    axis.set(ylabel="our time per Langevin step / theirs", title="2-128-128-1 MLP energy")
    if len(axis.get_lines()) > 1:
        axis.legend()
    return figure


def of_scale(table):
    figure, axes = plt.subplots(1, 2, figsize=(10, 4))
    for j, (compile, found) in enumerate(table.items()):
        style = {"color": "black", "marker": MARKERS[j], "linestyle": LINES[j % len(LINES)]}
        chains = list(found)
        cost = [1e9 * values["seconds_per_chain_step"] for values in found.values()]
        memory = [values["peak_bytes"] / 2**20 for values in found.values()]
        axes[0].plot(chains, cost, label=f"compile={compile}", **style)
        axes[1].plot(chains, memory, label=f"peak, compile={compile}", **style)
    draws = [values["draws_bytes"] / 2**20 for values in found.values()]
    axes[1].plot(chains, draws, color="0.6", label="the draws alone")
    axes[0].set(ylabel="nanoseconds per chain and step", title="eight schools")
    axes[1].set(ylabel="MiB above the start", title="peak memory")
    for axis in axes:
        axis.set(xscale="log", yscale="log", xlabel="chains")
        axis.legend()
    return figure


def of_posteriordb(rows):
    """How far off the worst mean and the worst standard deviation are; the gates dashed."""
    figure, axes = plt.subplots(1, 2, figsize=(10, 4), sharey=True)
    names = [name for name in posteriordb.NAMES if any(r["posterior"] == name for r in rows)]
    for j, kernel in enumerate(posteriordb.KERNELS):
        same = [row for row in rows if row["kernel"] == kernel]
        y = [names.index(row["posterior"]) + 0.2 * (j - 0.5) for row in same]
        style = {"color": "black", "linestyle": "", "marker": MARKERS[j], "label": kernel}
        style |= {"markerfacecolor": "black" if j == 0 else "white"}
        axes[0].plot([row["z"] for row in same], y, **style)
        axes[1].plot([row["sd_ratio"] for row in same], y, **style)
    for axis, gates in zip(axes, ([4.0], [0.9, 1.1]), strict=True):
        for gate in gates:
            axis.axvline(gate, color="0.6", linestyle="--", linewidth=0.8)
    axes[0].set(xlabel="worst error of a mean, in standard errors", xlim=(0, None))
    axes[1].set(xlabel="worst standard deviation / the reference's")
    axes[0].set_yticks(range(len(names)), [name.replace("_", " ") for name in names])
    axes[0].invert_yaxis()
    axes[1].legend()
    return figure


def of_learning(table):
    """A column for each target: ours filled, others hollow, crossed out where mass left; the
    median over seeds, and a line from the least to the most."""
    names = [n for n in (*learning.COMMON, *learning.OTHERS) if any(n == key[0] for key in table)]
    size = {"figsize": (14, 5.5), "sharex": True, "sharey": True}
    figure, axes = plt.subplots(1, len(learning.TARGETS), **size)
    for axis, target in zip(axes, learning.TARGETS, strict=True):
        for (objective, library), cells in table.items():
            if target not in cells:
                continue
            j = list(learning.LIBRARIES).index(library)
            cell, y = cells[target], names.index(objective) + 0.2 * (j - 1)
            style = {"color": "black", "marker": MARKERS[j], "linestyle": "", "markersize": 4}
            style["markerfacecolor"] = "black" if library == learning.OURS else "white"
            kls = [min(kl, MOST_NATS) for kl in cell.by_seed.values()]
            axis.plot([min(kls), max(kls)], [y, y], color="black", linewidth=0.8)
            axis.plot(min(cell.kl, MOST_NATS), y, **style)
            if cell.left:
                axis.plot(min(cell.kl, MOST_NATS), y, color="black", marker="x", markersize=9)
        axis.set(xscale="log", title=target.replace("_", " "))
        axis.set_xticks([0.02, 0.1, 0.5, 2.0], ["0.02", "0.1", "0.5", "2"])
        axis.minorticks_off()
        axis.set_xlabel(f"KL(truth || model), nats\n({MOST_NATS:.0f} and more at the edge)")
        axis.grid(axis="x", color="0.9")
    axes[0].set_yticks(range(len(names)), names)
    axes[0].invert_yaxis()
    handles = [
        plt.Line2D([], [], color="black", linestyle="", marker=MARKERS[j], label=library,
                   markerfacecolor="black" if library == learning.OURS else "white")
        for j, library in enumerate(learning.LIBRARIES)
    ]  # fmt: skip
    handles.append(plt.Line2D([], [], color="black", linestyle="", marker="x", label="mass left"))
    figure.legend(handles=handles, loc="upper center", bbox_to_anchor=(0.5, 0.0), ncols=4)
    return figure
