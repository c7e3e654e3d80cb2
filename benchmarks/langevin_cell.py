"""A cell of the Langevin benchmark: one library, all numbers of chains."""

import argparse
import json

import numpy as np

STEP_SIZE = 0.01
NUM_STEPS = {1: 10_000, 64: 4_000, 1_024: 400, 16_384: 64}
"""How many steps are timed, by the number of chains: about as long for each."""


def start(num_chains):
    return np.random.default_rng(0).standard_normal((num_chains, 2)).astype(np.float32)


def run(make, engine):
    """Times a library and prints seconds per step, with the last states' second moment.

    Args:
        make: From the layers, a list of ``(weight, bias)``, and the starting points ``(C, 2)`` to
            a function from a number of steps to the last states and the seconds they took.
        engine: What runs, and its version.
    """
    parser = argparse.ArgumentParser()
    parser.add_argument("--weights", required=True)
    parser.add_argument("--scale", type=float, required=True)
    args = parser.parse_args()
    kept = np.load(args.weights)
    layers = [(kept[f"weight{i}"], kept[f"bias{i}"]) for i in range(len(kept.files) // 2)]
    found = {}
    for num_chains, num_steps in NUM_STEPS.items():
        num_steps = max(2, round(num_steps * args.scale))
        walk = make(layers, start(num_chains))
        walk(num_steps)  # compiles what is to be compiled
        states, seconds = walk(num_steps)
        square = np.asarray(states, dtype=np.float64) ** 2
        error = square.mean(-1).std() / np.sqrt(num_chains)
        found[num_chains] = {
            "seconds_per_step": seconds / num_steps,
            "square": square.mean(),
            "square_error": error,
        }
    print(json.dumps({"engine": engine, "chains": found}))
