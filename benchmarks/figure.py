"""Draws the results, so that they can be read in black and white."""

import matplotlib as mpl
import matplotlib.pyplot as plt

from benchmarks import langevin, results, sampling, scale

MARKERS = "osD^v<>Pp*hX8d"


def add_arguments(parser):
    """None: it draws what there is."""


def main(args):
    mpl.use("Agg")
    figures = {"sampling": of_sampling, "langevin": of_langevin, "scale": of_scale}
    for name, draw in figures.items():
        rows = results.load(name)["rows"]
        if not rows:
            print(f"no figure of {name}: it was not measured")
            continue
        figure = draw(rows)
        path = results.FOLDER / f"{name}.png"
        figure.savefig(path, dpi=150, bbox_inches="tight")
        plt.close(figure)
        print(path.name)


def of_sampling(rows):
    """A row for each target; ours filled, others hollow; a line from the least to the most."""
    table = sampling.medians(rows)
    names = list(dict.fromkeys(name for found in table.values() for name in found))
    figure, axes = plt.subplots(1, 2, figsize=(12, 1 + 1.1 * len(table)), sharey=True)
    for axis, kind in zip(axes, ("cold", "hot"), strict=True):
        for i, found in enumerate(table.values()):
            for j, name in enumerate(names):
                if name in found:
                    draw_one(axis, found[name], kind, i + 0.8 * (j / len(names) - 0.5), j)
            axis.axhline(i + 0.5, color="0.85", linewidth=0.8)
        axis.set(xscale="log", xlabel="effective samples per second", title=kind)
        axis.grid(axis="x", color="0.9")
    axes[0].set_yticks(range(len(table)), [name.replace("_", " ") for name in table])
    axes[0].invert_yaxis()
    ours = {name for found in table.values() for name, values in found.items() if values["ours"]}
    handles = [
        plt.Line2D([], [], color="black", linestyle="", marker=MARKERS[j % len(MARKERS)],
                   markerfacecolor="black" if name in ours else "white",
                   label=f"{'pyro_ebm ' if name in ours else ''}{name[0]}, {name[1]:,} chains")
        for j, name in enumerate(names)
    ]  # fmt: skip
    figure.legend(handles=handles, loc="upper center", bbox_to_anchor=(0.5, 0.02), ncols=3)
    return figure


def draw_one(axis, values, kind, y, j):
    median, least, most = values[f"{kind}_per_second"]
    axis.plot([least, most], [y, y], color="black", linewidth=0.8)
    face = "black" if values["ours"] else "white"
    marker = MARKERS[j % len(MARKERS)]
    axis.plot(median, y, marker=marker, color="black", markerfacecolor=face, markersize=5)


def of_langevin(rows):
    figure, axis = plt.subplots(figsize=(6, 4))
    for j, (library, found) in enumerate(langevin.medians(rows).items()):
        ratios = [ratio for _, ratio in found.values()]
        if library != langevin.OURS:
            style = {"marker": MARKERS[j], "linestyle": ["-", "--", ":", "-."][j]}
            axis.plot(list(found), ratios, color="black", label=f"against {library}", **style)
    axis.axhline(1.0, color="0.6", linewidth=0.8)
    axis.set(xscale="log", yscale="log", xlabel="chains")
    axis.set(ylabel="our time per Langevin step / theirs", title="2-128-128-1 MLP energy")
    if len(axis.get_lines()) > 1:
        axis.legend()
    return figure


def of_scale(rows):
    figure, axes = plt.subplots(1, 2, figsize=(10, 4))
    for j, (compile, found) in enumerate(scale.medians(rows).items()):
        style = {"color": "black", "marker": MARKERS[j], "linestyle": ["-", "--"][j]}
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
