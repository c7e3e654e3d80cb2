"""NumPyro's NUTS on one target, all chains vectorised: runs in an environment of its own.

Prints its times as JSON and saves the draws. «hot» is the difference between two compiled runs, of
many draws and of one, after the same warmup.
"""

import argparse
import json
import time

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.infer import MCMC, NUTS
from sklearn.datasets import load_breast_cancer

EFFECT = jnp.array([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
ERROR = jnp.array([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])


def eight_schools():
    mu = numpyro.sample("mu", dist.Normal(0, 5))
    tau = numpyro.sample("tau", dist.HalfCauchy(5))
    with numpyro.plate("schools", 8):
        eta = numpyro.sample("eta", dist.Normal(0, 1))
        numpyro.sample("y", dist.Normal(mu + tau * eta, ERROR), obs=EFFECT)


def logistic_regression():
    x, y = load_breast_cancer(return_X_y=True)
    x = jnp.array((x - x.mean(0)) / x.std(0), dtype=jnp.float32)
    bias = numpyro.sample("bias", dist.Normal(0, 2.5))
    weights = numpyro.sample("weights", dist.Normal(jnp.zeros(30), 1).to_event(1))
    with numpyro.plate("rows", len(y)):
        numpyro.sample("y", dist.Bernoulli(logits=bias + x @ weights), obs=jnp.array(y))


TARGETS = {"eight schools": eight_schools, "logistic 569x30": logistic_regression}


def timed(mcmc, seed):
    began = time.perf_counter()
    mcmc.run(jax.random.PRNGKey(seed))
    jax.block_until_ready(mcmc.get_samples())
    return time.perf_counter() - began


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--target", choices=TARGETS)
    parser.add_argument("--seed", type=int)
    parser.add_argument("--draws", type=int)
    parser.add_argument("--chains", type=int)
    parser.add_argument("--out")
    args = parser.parse_args()

    def sampler(num_samples):
        return MCMC(
            NUTS(TARGETS[args.target]),
            num_warmup=args.draws,
            num_samples=num_samples,
            num_chains=args.chains,
            chain_method="vectorized",
            progress_bar=False,
        )

    many, one = sampler(args.draws), sampler(1)
    cold = timed(many, args.seed)
    draws = {name: np.asarray(v) for name, v in many.get_samples(group_by_chain=True).items()}
    timed(one, args.seed)
    hot = timed(many, args.seed) - timed(one, args.seed)
    np.savez(args.out, **draws)
    print(json.dumps({"cold": cold, "hot": hot, "version": numpyro.__version__}))


if __name__ == "__main__":
    main()
