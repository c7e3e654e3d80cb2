"""nutpie's NUTS with its defaults on the compiled JAX log density, one chain after another.

It keeps its state in float64 whatever the dtype of the density is. «hot» is the difference between
two runs with the same warmup, of all draws and of one.
"""

import time

import jax
import numpy as np
import nutpie
from nutpie.compiled_pyfunc import from_pyfunc

from benchmarks import cell
from benchmarks.peers.densities import log_density_of


def main():
    args = cell.arguments()
    start = cell.flat_start(args).astype(np.float64)
    dim = start.shape[-1]
    began = time.perf_counter()
    log_density = jax.jit(jax.value_and_grad(log_density_of(args.target, args.dtype)))

    def evaluate(z):
        value, grad = log_density(z.astype(args.dtype))
        return float(value), np.asarray(grad, np.float64)

    model = from_pyfunc(
        ndim=dim,
        make_logp_fn=lambda: evaluate,
        make_expand_fn=lambda *seeds: lambda z: {"z": z},
        expanded_dtypes=[np.dtype(np.float64)],
        expanded_shapes=[(dim,)],
        expanded_names=["z"],
        make_initial_point_fn=lambda seed: start[seed % len(start)],
    )

    def sample(num_draws):
        return nutpie.sample(
            model,
            draws=num_draws,
            tune=args.draws,
            chains=args.chains,
            cores=1,
            seed=args.seed,
            save_warmup=False,
            progress_bar=False,
        )

    found = sample(args.draws)
    cold = time.perf_counter() - began
    seconds = []
    for num_draws in (1, args.draws):
        began = time.perf_counter()
        sample(num_draws)
        seconds.append(time.perf_counter() - began)
    cell.answer(
        args,
        {"z": np.asarray(found.posterior["z"])},
        cold=cold,
        hot=seconds[1] - seconds[0],
        engine=f"nutpie {nutpie.__version__}",
        num_steps=np.asarray(found.sample_stats["n_steps"]),
        lockstep=False,
    )


if __name__ == "__main__":
    main()
