"""Warmup and sampling with a BlackJAX kernel, each one compiled function over all chains."""

import time

import blackjax
import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import cell
from benchmarks.peers.densities import log_density_of


def run(warmup, step):
    """Runs a cell.

    Args:
        warmup: From log density, number of steps, key and position of one chain to its state and
            its parameters.
        step: From log density, parameters, key and state to the next state and the number of its
            gradients.
    """
    args = cell.arguments()
    start = cell.flat_start(args)
    began = time.perf_counter()
    log_density = log_density_of(args.target, args.dtype)

    @jax.jit
    @jax.vmap
    def warm(key, position):
        return warmup(log_density, args.draws, key, position)

    @jax.jit
    @jax.vmap
    def sample(key, state, parameters):
        def one(state, key):
            state, num_steps = step(log_density, parameters, key, state)
            return state, (state.position, num_steps)

        return jax.lax.scan(one, state, jax.random.split(key, args.draws))[1]

    keys = jax.random.split(jax.random.key(args.seed), (2, args.chains))
    state, parameters = warm(keys[0], jnp.asarray(start))
    draws, num_steps = jax.block_until_ready(sample(keys[1], state, parameters))
    cold = time.perf_counter() - began
    began = time.perf_counter()
    jax.block_until_ready(sample(keys[0], state, parameters))
    hot = time.perf_counter() - began
    cell.answer(
        args,
        {"z": np.asarray(draws)},
        cold=cold,
        hot=hot,
        engine=f"BlackJAX {blackjax.__version__}",
        num_steps=np.asarray(num_steps),
    )
