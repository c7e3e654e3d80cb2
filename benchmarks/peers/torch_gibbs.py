"""What the peers written in torch have in common: a loop of sweeps that keeps some states."""

import time

import torch

from benchmarks import gibbs_cell


def walk_of(sweeps, first):
    """Moves chains.

    Args:
        sweeps: From states and a number of sweeps to states.
        first: Booleans, as numpy has them.
    """
    x = torch.from_numpy(first).float()

    @torch.no_grad()
    def walk(num_states):
        nonlocal x
        began, kept = time.process_time(), []
        for _ in range(num_states):
            x = sweeps(x, gibbs_cell.SWEEPS)
            kept.append(x)
        seconds = time.process_time() - began
        return torch.stack(kept).numpy() > 0, seconds

    return walk
