"""BlackJAX's adjusted MCLMC (MAMS), each chain tuned as its documentation does."""

import blackjax
import jax
from blackjax.mcmc import adjusted_mclmc_dynamic as mams

from benchmarks.peers.blackjax_run import run

KERNEL = mams.build_kernel(mams.make_random_trajectory_length_fn(True))
TARGET_ACCEPT_PROB = 0.9
"""That of the paper, https://arxiv.org/abs/2503.01707."""


def warmup(log_density, num_steps, key, position):
    # Twice the first part and once the second: as many steps as the other samplers warm up.
    state, found, _ = blackjax.adjusted_mclmc_find_L_and_step_size(
        KERNEL,
        log_density,
        num_steps,
        mams.init(position, log_density, jax.random.fold_in(key, 0)),
        jax.random.fold_in(key, 1),
        target=TARGET_ACCEPT_PROB,
        frac_tune1=1 / 3,
        frac_tune2=1 / 3,
    )
    return state, found


def step(log_density, parameters, key, state):
    state, info = KERNEL(
        key,
        state,
        log_density,
        parameters.step_size,
        inverse_mass_matrix=parameters.inverse_mass_matrix,
        integration_steps_params=(parameters.L / parameters.step_size,),
    )
    return state, info.num_integration_steps


if __name__ == "__main__":
    run(warmup, step)
