"""BlackJAX's adaptive tempered SMC with HMC, whose mass matrix is tuned to the particles.

Its step size is not tuned, and so there are two, which suit these targets. Half of the particles
stay effective at a temperature, as in its documentation; moves are as many as it makes by default.
"""

import blackjax
import jax
import jax.numpy as jnp
from blackjax.smc import extend_params
from blackjax.smc.resampling import systematic
from blackjax.smc.tuning.from_particles import inverse_mass_matrix_from_particles
from jax.scipy.stats import norm

from benchmarks import evidence_cell

LEAPFROGS, MOVES = 5, 10
PER_PARTICLE = LEAPFROGS * MOVES + 1
"""The gradients of a particle at a temperature: its start is evaluated once."""
PILOTS = 1000
STEP_SIZES, SHARE = (0.1, 0.3), 0.5


def sampler_of(target, step_size):
    def log_prior(x):
        return norm.logpdf(x, scale=target.base_scale).sum()

    def log_likelihood(x):
        return -target.energy(x, jnp) - log_prior(x)

    def parameters(inverse_mass_matrix):
        return extend_params(
            {
                "step_size": jnp.asarray(step_size),
                "num_integration_steps": jnp.asarray(LEAPFROGS),
                "inverse_mass_matrix": inverse_mass_matrix,
            }
        )

    return blackjax.inner_kernel_tuning(
        blackjax.adaptive_tempered_smc,
        log_prior,
        log_likelihood,
        blackjax.hmc.build_kernel(),
        blackjax.hmc.init,
        systematic,
        lambda key, state, info: parameters(inverse_mass_matrix_from_particles(state.particles)),
        parameters(target.base_scale**2 * jnp.eye(target.dim)),
        num_mcmc_steps=MOVES,
        target_ess=SHARE,
    )


def runner_of(target, step_size, num_particles):
    """From keys to the log Z of each, and the number of its temperatures."""
    sampler = sampler_of(target, step_size)

    @jax.jit
    @jax.vmap
    def run(key):
        key, first = jax.random.split(key)
        start = target.base_scale * jax.random.normal(first, (num_particles, target.dim))

        def unfinished(now):
            return now[1].sampler_state.tempering_param < 1

        def move(now):
            key, state, log_z, count = now
            key, step = jax.random.split(key)
            state, info = sampler.step(step, state)
            return key, state, log_z + info.log_likelihood_increment, count + 1

        begin = (key, sampler.init(start), jnp.zeros(()), 0)
        _, _, log_z, count = jax.lax.while_loop(unfinished, move, begin)
        return log_z, count

    return run


def estimate(target, budgets, num_seeds):
    keys = jax.random.split(jax.random.key(0), num_seeds)
    found = {}
    for step_size in STEP_SIZES:
        _, counts = runner_of(target, step_size, PILOTS)(keys)
        for budget in budgets:
            num_particles = round(budget / (PER_PARTICLE * float(counts.mean())))
            log_z, taken = runner_of(target, step_size, num_particles)(keys)
            gradients = num_particles * PER_PARTICLE * float(taken.mean())
            found[f"SMC, step size {step_size}", budget] = log_z.tolist(), gradients
    return found


if __name__ == "__main__":
    jax.config.update("jax_enable_x64", True)
    evidence_cell.run(estimate, f"BlackJAX {blackjax.__version__}")
