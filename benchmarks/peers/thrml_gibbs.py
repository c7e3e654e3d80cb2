"""thrml's block Gibbs, chains by `jax.vmap`, compiled."""

import time
from importlib.metadata import version

import jax
import jax.numpy as jnp
import numpy as np
from thrml import Block, SamplingSchedule, SpinNode, sample_states
from thrml.models import IsingEBM, IsingSamplingProgram

from benchmarks import gibbs_cell


def walk_of(nodes, edges, biases, couplings, blocks, first):
    """Moves chains.

    Args:
        nodes: The sites.
        edges: Pairs of them.
        biases: The field of each, in nats.
        couplings: What each pair is worth, in nats.
        blocks: The numbers of the sites of each block.
        first: Booleans, by block.
    """
    model = IsingEBM(nodes, edges, jnp.asarray(biases), jnp.asarray(couplings), jnp.array(1.0))
    free = [Block([nodes[i] for i in block]) for block in blocks]
    program = IsingSamplingProgram(model, free, [])
    keys, state = jax.random.key(0), [jnp.asarray(part) for part in first]

    def sample(key, state, schedule):
        return sample_states(key, program, schedule, state, [], free)

    compiled = {}

    def walk(num_states):
        nonlocal keys, state
        schedule = SamplingSchedule(gibbs_cell.SWEEPS, num_states, gibbs_cell.SWEEPS)
        keys, key = jax.random.split(keys)
        each = jax.random.split(key, len(state[0]))
        if num_states not in compiled:
            moved = jax.jit(jax.vmap(lambda key, state: sample(key, state, schedule)))
            compiled[num_states] = moved.lower(each, state).compile()
        began = time.process_time()
        kept = jax.block_until_ready(compiled[num_states](each, state))
        seconds = time.process_time() - began
        state = [part[:, -1] for part in kept]
        return kept, seconds

    return walk


def ising(_, first):
    side = gibbs_cell.SIDE
    nodes = [SpinNode() for _ in range(side**2)]
    number = np.arange(side**2).reshape(side, side)
    pairs = [
        (i, j)
        for dim in (0, 1)
        for i, j in zip(number.ravel(), np.roll(number, -1, dim).ravel(), strict=True)
    ]
    colour = (np.add.outer(np.arange(side), np.arange(side)) % 2).ravel()
    blocks = [np.flatnonzero(colour == c) for c in (0, 1)]
    walk = walk_of(
        nodes,
        [(nodes[i], nodes[j]) for i, j in pairs],
        np.zeros(side**2, np.float32),
        np.full(len(pairs), gibbs_cell.COUPLING, np.float32),
        blocks,
        [first[:, block] for block in blocks],
    )

    def ordered(num_states):
        kept, seconds = walk(num_states)
        states = np.empty((num_states, len(first), side**2), bool)
        for block, part in zip(blocks, kept, strict=True):
            states[:, :, block] = np.asarray(part).swapaxes(0, 1)
        return states, seconds

    return ordered


def rbm(weights, first):
    """Booleans as spins: v = (s + 1) / 2, the hidden block first, as others sweep."""
    w = weights["weights"]
    num_visible, num_hidden = w.shape
    nodes = [SpinNode() for _ in range(num_visible + num_hidden)]
    visible, hidden = nodes[:num_visible], nodes[num_visible:]
    biases = np.concatenate(
        [
            weights["visible_bias"] / 2 + w.sum(1) / 4,
            weights["hidden_bias"] / 2 + w.sum(0) / 4,
        ]
    )
    blocks = [range(num_visible, num_visible + num_hidden), range(num_visible)]
    walk = walk_of(
        nodes,
        [(v, h) for v in visible for h in hidden],
        biases.astype(np.float32),
        (w / 4).ravel(),
        blocks,
        [np.zeros((len(first), num_hidden), bool), first],
    )

    def of_visible(num_states):
        kept, seconds = walk(num_states)
        return np.asarray(kept[1]).swapaxes(0, 1), seconds

    return of_visible


if __name__ == "__main__":
    gibbs_cell.run({"ising": ising, "rbm": rbm}, f"thrml {version('thrml')}")
