"""Our sampler on eight schools with a given number of chains: its time, and its memory."""

import argparse
import json
import resource
import sys
from pathlib import Path

import torch

import pyro_ebm as ebm
from benchmarks.targets import model_of


def peak_memory():
    """Returns the most bytes this process ever held.

    Not from getrusage on Linux, where a child begins with the peak of the process it came from.
    """
    status = Path("/proc/self/status")
    if status.exists():
        words = next(line for line in status.read_text().splitlines() if "VmHWM" in line).split()
        return 1024 * int(words[1])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--chains", type=int, required=True)
    parser.add_argument("--draws", type=int, required=True)
    parser.add_argument("--compile", choices=["auto", "True"], required=True)
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    baseline = peak_memory()
    mcmc = ebm.MCMC(
        model_of("eight_schools"),
        args.draws,
        warmup_steps=args.draws,
        num_chains=args.chains,
        compile=args.compile == "True" or "auto",
        disable_progbar=True,
    )
    mcmc.run()
    gradients = mcmc.sample_stats["n_steps"].double().mean().item()
    per_step = mcmc.sampling_time / (args.chains * args.draws)
    print(
        json.dumps(
            {
                "seconds_per_chain_step": per_step,
                "seconds_per_gradient": per_step / gradients,
                "peak_bytes": peak_memory() - baseline,
                "baseline_bytes": baseline,
                "draws_bytes": 4 * args.chains * args.draws * mcmc.potential.dim,
                "engine": mcmc.engine,
            }
        )
    )


if __name__ == "__main__":
    main()
