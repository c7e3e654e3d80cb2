"""A cell of the sampling benchmark, in a fresh process: what it is told and what it answers."""

import argparse
import json

import numpy as np


def arguments(*more):
    """Reads the command line of a cell; ``more`` are names of further words it is told."""
    parser = argparse.ArgumentParser()
    for name in ("target", "dtype", "start", "out", *more):
        parser.add_argument(f"--{name}", required=True)
    for name in ("chains", "draws", "seed"):
        parser.add_argument(f"--{name}", type=int, required=True)
    return parser.parse_args()


def flat_start(args):
    """Returns the starting points as ``(chain, D)``, sites in the order of their names."""
    start = np.load(args.start)
    return np.concatenate([start[n].reshape(args.chains, -1) for n in sorted(start)], axis=-1)


def answer(args, draws, *, cold, hot, engine, num_steps=None, lockstep=True):
    """Saves the draws and prints the numbers.

    Args:
        args: What the cell was told.
        draws: Arrays ``(chain, draw, *shape)`` by site, or ``{"z": ...}``, flat and unconstrained.
        cold: Seconds from after the imports to the last draw.
        hot: Seconds of sampling, without warmup, in a second run.
        engine: What ran, and its version.
        num_steps: The gradients of each draw ``(chain, draw)``, if known.
        lockstep: Whether all chains wait for the longest trajectory among them.
    """
    np.savez(args.out, **draws)
    numbers = {"cold": cold, "hot": hot, "engine": engine}
    if num_steps is not None:
        executed = np.max(num_steps, axis=0) if lockstep else num_steps
        numbers["gradients_useful"] = float(np.mean(num_steps))
        numbers["gradients_executed"] = float(np.mean(executed))
    print(json.dumps(numbers))
