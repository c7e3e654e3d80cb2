"""One posterior of posteriordb with a kernel that nobody has tuned by hand, judged on the spot.

The posteriors, their data and their reference moments are those of the tests.
"""

import argparse
import json
import sys
import time

import torch

import pyro_ebm as ebm
from benchmarks.process import ROOT
from pyro_ebm.diagnostics import bulk_ess

sys.path.append(str(ROOT / "tests"))
import posteriordb


def main():
    parser = argparse.ArgumentParser()
    for name in ("posterior", "kernel"):
        parser.add_argument(f"--{name}", required=True)
    for name in ("chains", "draws", "seed"):
        parser.add_argument(f"--{name}", type=int, required=True)
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(args.seed)
    began = time.perf_counter()
    target = posteriordb.posterior(args.posterior)
    kernel = posteriordb.KERNELS[args.kernel](target.model)
    mcmc = ebm.MCMC(kernel, args.draws, args.draws, args.chains, disable_progbar=True)
    mcmc.run()
    seconds = time.perf_counter() - began
    stats = mcmc.sample_stats
    draws = target.columns(mcmc.get_samples(group_by_chain=True))
    outcome = posteriordb.compare(target, draws, int(stats["diverging"].sum()))
    ess = bulk_ess(draws).min().item()
    worst_sd = outcome.sd_ratio[(outcome.sd_ratio - 1).abs().argmax()]
    numbers = {
        "passed": outcome.passed,
        "z": outcome.z.abs().max().item(),
        "sd_ratio": worst_sd.item(),
        "r_hat": outcome.r_hat.max().item(),
        "divergences": outcome.divergences,
        "ess": ess,
        "ess_per_gradient": ess / stats["n_steps"].sum().item(),
        "seconds": seconds,
        "sampling_seconds": mcmc.sampling_time,
        "engine": mcmc.engine,
    }
    print(json.dumps(numbers))


if __name__ == "__main__":
    main()
