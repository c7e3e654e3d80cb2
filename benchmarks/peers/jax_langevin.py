"""Langevin dynamics as a compiled `jax.lax.scan` that keeps the last states alone."""

import time

import jax
import jax.numpy as jnp

from benchmarks import langevin_cell


def energy_of(layers):
    *hidden, last = [(jnp.asarray(weight).T, jnp.asarray(bias)) for weight, bias in layers]

    def energy(x):
        h = x
        for weight, bias in hidden:
            h = jax.nn.silu(h @ weight + bias)
        return jnp.sum(h @ last[0] + last[1]) + 0.5 * jnp.sum(x * x)

    return energy


def make(layers, start):
    grad = jax.grad(energy_of(layers))
    eta = langevin_cell.STEP_SIZE

    def step(x, key):
        noise = jax.random.normal(key, x.shape)
        return x - eta * grad(x) + jnp.sqrt(2 * eta) * noise, None

    run = jax.jit(lambda x, keys: jax.lax.scan(step, x, keys)[0])

    def walk(num_steps):
        began = time.perf_counter()
        states = jax.block_until_ready(run(start, jax.random.split(jax.random.key(0), num_steps)))
        return states, time.perf_counter() - began

    return walk


if __name__ == "__main__":
    langevin_cell.run(make, f"JAX {jax.__version__}")
