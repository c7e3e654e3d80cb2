"""A cell of the Gibbs benchmark: one library, the models and numbers of chains that it serves."""

import argparse
import json

import numpy as np

COUPLING = 0.3
SIDE = 64
SWEEPS = 10
"""How many sweeps are made between states that are looked at."""
REPEATS = 3
"""How often a cell is timed; the fastest counts."""
CELLS = {"ising": {1: 400, 64: 40, 1_024: 5}, "rbm": {64: 40}}
"""How many states are looked at, by model and number of chains: about as long for each."""


def start(model, num_chains, num_sites):
    """Booleans, one row for each chain."""
    generator = np.random.default_rng(0)
    return generator.random((num_chains, num_sites if model == "rbm" else SIDE**2)) < 0.5


def energies(model, states, weights):
    """Energies per site of booleans ``(..., sites)``; hidden units are summed out."""
    if model == "ising":
        s = 2.0 * states.reshape(*states.shape[:-1], SIDE, SIDE) - 1
        bonds = s * (np.roll(s, 1, -1) + np.roll(s, 1, -2))
        return -bonds.mean((-2, -1))
    v = states.astype(np.float64)
    hidden = np.logaddexp(0, weights["hidden_bias"] + v @ weights["weights"])
    return -(v @ weights["visible_bias"] + hidden.sum(-1)) / v.shape[-1]


def mean_and_error(values):
    """The mean of ``(states, chains)`` and its standard error: by chains, or by batches of one."""
    if values.shape[1] == 1:
        values = values[: len(values) // 20 * 20].reshape(20, -1).T
    parts = values.mean(0)
    return float(parts.mean()), float(parts.std(ddof=1) / len(parts) ** 0.5)


def run(makers, engine):
    """Times a library and prints CPU seconds per sweep, with the mean energy that it finds.

    Args:
        makers: By model, a function from the weights and the first states to another, which makes
            a number of times ``SWEEPS`` sweeps from where it stands, and returns the states after
            each of these with the seconds that they took.
        engine: What runs, and its version.
    """
    parser = argparse.ArgumentParser()
    parser.add_argument("--weights", required=True)
    parser.add_argument("--scale", type=float, required=True)
    parser.add_argument("--engine")
    args = parser.parse_args()
    weights = dict(np.load(args.weights))
    found = {}
    for model, make in makers.items():
        for num_chains, num_states in CELLS[model].items():
            num_states = max(4, round(num_states * args.scale))
            if num_chains == 1:
                num_states = max(40, num_states)
            first = start(model, num_chains, len(weights["visible_bias"]))
            walk = make(weights, first)
            walk(max(4, num_states // 8))  # compiles what is to be compiled, and forgets the start
            times = []
            for _ in range(REPEATS):
                states, seconds = walk(num_states)
                times.append(seconds)
            mean, error = mean_and_error(energies(model, states, weights))
            found[f"{model}, {num_chains}"] = {
                "seconds_per_sweep": min(times) / (num_states * SWEEPS),
                "energy": mean,
                "energy_error": error,
            }
    print(json.dumps({"engine": engine, "cells": found}))
