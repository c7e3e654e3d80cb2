"""BlackJAX's ChEES: jittered HMC of one step size and one length, adapted over all chains at once.

As its documentation shows it, with Adam at the rate of the paper, 0.025
(https://proceedings.mlr.press/v130/hoffman21a.html). ``--metric`` is its own option: none by
default, or the diagonal one.
"""

import time

import blackjax
import jax
import jax.numpy as jnp
import numpy as np
import optax
from blackjax.adaptation.base import get_filter_adapt_info_fn

from benchmarks import cell
from benchmarks.peers.densities import log_density_of

STEP_SIZE = 0.1
"""To begin with."""
LEARNING_RATE = 0.025


def main():
    args = cell.arguments("metric")
    start = cell.flat_start(args)
    began = time.perf_counter()
    log_density = log_density_of(args.target, args.dtype)

    functions = {}
    """Those of the parameters that are no arrays, which a compiled function cannot return."""

    @jax.jit
    def warm(key, positions):
        warmup = blackjax.chees_adaptation(
            log_density,
            args.chains,
            mass_matrix_estimation=None if args.metric == "None" else args.metric,
            adaptation_info_fn=get_filter_adapt_info_fn(),  # keeps nothing of the warmup
        )
        optimizer = optax.adam(LEARNING_RATE)
        (states, parameters), _ = warmup.run(
            key, positions, STEP_SIZE, optimizer, args.draws, max_sampling_steps=args.draws
        )
        functions.update({name: v for name, v in parameters.items() if callable(v)})
        return states, {name: v for name, v in parameters.items() if not callable(v)}

    @jax.jit
    def sample(key, states, parameters):
        step = jax.vmap(blackjax.dynamic_hmc(log_density, **parameters, **functions).step)

        def one(states, key):
            states, info = step(jax.random.split(key, args.chains), states)
            return states, (states.position, info.num_integration_steps)

        return jax.lax.scan(one, states, jax.random.split(key, args.draws))[1]

    keys = jax.random.split(jax.random.key(args.seed), 3)
    states, parameters = warm(keys[0], jnp.asarray(start))
    draws, num_steps = jax.block_until_ready(sample(keys[1], states, parameters))
    cold = time.perf_counter() - began
    began = time.perf_counter()
    jax.block_until_ready(sample(keys[2], states, parameters))
    hot = time.perf_counter() - began
    cell.answer(
        args,
        {"z": np.swapaxes(np.asarray(draws), 0, 1)},
        cold=cold,
        hot=hot,
        engine=f"BlackJAX {blackjax.__version__}",
        num_steps=np.asarray(num_steps).T,
    )


if __name__ == "__main__":
    main()
