"""BlackJAX's NUTS with its defaults, after its window adaptation of each chain."""

import blackjax

from benchmarks.peers.blackjax_run import run

KERNEL = blackjax.nuts.build_kernel()


def warmup(log_density, num_steps, key, position):
    adaptation = blackjax.window_adaptation(blackjax.nuts, log_density)
    (state, parameters), _ = adaptation.run(key, position, num_steps=num_steps)
    return state, parameters


def step(log_density, parameters, key, state):
    state, info = KERNEL(key, state, log_density, **parameters)
    return state, info.num_integration_steps


if __name__ == "__main__":
    run(warmup, step)
