"""One of our kernels with its defaults."""

import time

import numpy as np
import torch

import pyro_ebm as ebm
from benchmarks import cell
from benchmarks.targets import model_of, use_dtype_of

COMPILE = {"auto": "auto", "True": True, "False": False}


def main():
    args = cell.arguments("kernel", "compile", "metric_rank")
    torch.set_num_threads(1)
    use_dtype_of(args.target)
    torch.manual_seed(args.seed)
    start = {name: torch.from_numpy(value) for name, value in np.load(args.start).items()}
    began = time.perf_counter()
    model = model_of(args.target)

    def sample():
        mcmc = ebm.MCMC(
            getattr(ebm.kernels, args.kernel)(model, metric_rank=int(args.metric_rank)),
            args.draws,
            warmup_steps=args.draws,
            num_chains=args.chains,
            initial_params=start,
            compile=COMPILE[args.compile],
            disable_progbar=True,
        )
        mcmc.run()
        return mcmc

    mcmc = sample()
    cold = time.perf_counter() - began
    again = sample()
    cell.answer(
        args,
        {name: v.numpy() for name, v in mcmc.get_samples(group_by_chain=True).items()},
        cold=cold,
        hot=again.sampling_time,
        engine=again.engine,
        num_steps=gradients(mcmc.sample_stats),
    )


def gradients(stats):
    """Returns the gradients of each draw: of its trajectory, or one."""
    return stats.get("n_steps", torch.ones_like(stats["lp"])).numpy()


if __name__ == "__main__":
    main()
