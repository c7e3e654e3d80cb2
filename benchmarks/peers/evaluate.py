"""Log densities and gradients of a target at given points, by JAX."""

import argparse

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.peers.densities import log_density_of

parser = argparse.ArgumentParser()
for name in ("target", "dtype", "points", "out"):
    parser.add_argument(f"--{name}", required=True)
args = parser.parse_args()
log_density = log_density_of(args.target, args.dtype)
points = jnp.asarray(np.load(args.points), args.dtype)
value, grad = jax.vmap(jax.value_and_grad(log_density))(points)
np.savez(args.out, value=value, grad=grad)
