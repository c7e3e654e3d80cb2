"""Pyro's NUTS with its defaults: one chain, in one process."""

import time

import numpy as np
import pyro
import torch
from pyro.infer import MCMC, NUTS
from torch.distributions import biject_to

from benchmarks import cell
from benchmarks.targets import model_of, use_dtype_of


def main():
    args = cell.arguments("jit")
    torch.set_num_threads(1)
    use_dtype_of(args.target)
    pyro.set_rng_seed(args.seed)
    start = {name: torch.from_numpy(value)[0] for name, value in np.load(args.start).items()}
    began = time.perf_counter()
    sampling_began = []

    def note(kernel, params, stage, step):
        if stage == "Sample" and not sampling_began:
            sampling_began.append(time.perf_counter())

    kernel = NUTS(
        model_of(args.target),
        jit_compile=args.jit == "True",
        ignore_jit_warnings=True,
        init_strategy=lambda site: biject_to(site["fn"].support)(start[site["name"]]),
        max_plate_nesting=1,
    )
    mcmc = MCMC(
        kernel,
        args.draws,
        warmup_steps=args.draws,
        disable_progbar=True,
        hook_fn=note,
    )
    mcmc.run()
    ended = time.perf_counter()
    draws = {name: v.numpy() for name, v in mcmc.get_samples(group_by_chain=True).items()}
    cell.answer(
        args,
        draws,
        cold=ended - began,
        # Nothing of the first run's sampling is ever warmer in a second run.
        hot=ended - sampling_began[0],
        engine=f"Pyro {pyro.__version__}",
    )


if __name__ == "__main__":
    main()
