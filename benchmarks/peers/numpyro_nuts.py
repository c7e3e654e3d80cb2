"""NumPyro's NUTS with its defaults, all chains vectorised."""

import time

import jax
import numpy as np
import numpyro
from numpyro.infer import MCMC, NUTS

from benchmarks import cell
from benchmarks.peers.densities import log_density_of


def sampling(mcmc, num_draws):
    """The sampling part of a run alone: `MCMC.run` from a state is compiled anew each time."""

    def one(state, _):
        state = mcmc.sampler.sample(state, (), {})
        return state, (state.z, state.num_steps)

    return jax.jit(lambda state: jax.lax.scan(one, state, length=num_draws)[1])


def main():
    args = cell.arguments()
    start = cell.flat_start(args)
    began = time.perf_counter()
    log_density = log_density_of(args.target, args.dtype)
    mcmc = MCMC(
        NUTS(potential_fn=lambda z: -log_density(z)),
        num_warmup=args.draws,
        num_samples=args.draws,
        num_chains=args.chains,
        chain_method="vectorized",
        progress_bar=False,
    )
    mcmc.run(jax.random.key(args.seed), init_params=start, extra_fields=("num_steps",))
    jax.block_until_ready(mcmc.get_samples())
    cold = time.perf_counter() - began
    draws = np.asarray(mcmc.get_samples(group_by_chain=True))
    num_steps = np.asarray(mcmc.get_extra_fields(group_by_chain=True)["num_steps"])
    sample = sampling(mcmc, args.draws)
    jax.block_until_ready(sample(mcmc.last_state))
    began = time.perf_counter()
    jax.block_until_ready(sample(mcmc.last_state))
    hot = time.perf_counter() - began
    engine = f"NumPyro {numpyro.__version__}"
    cell.answer(args, {"z": draws}, cold=cold, hot=hot, engine=engine, num_steps=num_steps)


if __name__ == "__main__":
    main()
