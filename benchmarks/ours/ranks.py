"""Our sampler on the MLP energy with its chains shared by ranks: the time of the slowest rank."""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time

import torch

import pyro_ebm as ebm

KERNELS = {"MALA": ebm.kernels.MALA, "ChEES": ebm.kernels.ChEES}
NUM_MESSAGES = 200


def launch(ranks):
    """Starts this module on so many ranks, and passes on what the first one prints."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += [f"--nproc-per-node={ranks}", "-m", "benchmarks.ours.ranks", *sys.argv[1:]]
    raise SystemExit(subprocess.run(command, check=False).returncode)


def pin():
    """Gives each rank a core of its own, where there are enough."""
    if hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        if len(cores) >= ebm.ranks.num_ranks():
            os.sched_setaffinity(0, {cores[ebm.ranks.rank()]})


def latency():
    """The seconds that a sum of five numbers over ranks takes."""
    numbers, found = torch.zeros(5, dtype=torch.float64), []
    for _ in range(NUM_MESSAGES):
        began = time.perf_counter()
        ebm.ranks.total(numbers)
        found.append(time.perf_counter() - began)
    return statistics.median(found)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--ranks", type=int, required=True)
    parser.add_argument("--chains", type=int, required=True)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--kernel", choices=list(KERNELS), required=True)
    args = parser.parse_args()
    if "RANK" not in os.environ:
        launch(args.ranks)
    torch.set_num_threads(1)
    ebm.ranks.start()
    pin()
    torch.manual_seed(0)
    energy = ebm.energies.MLP((2,), [128, 128], base_scale=1.0)
    kernel = KERNELS[args.kernel](ebm.Boltzmann(energy))
    settings = {"num_chains": args.chains, "compile": True, "save": (), "disable_progbar": True}
    ebm.MCMC(kernel, 10, 10, **settings).run()  # compiles
    mcmc = ebm.MCMC(kernel, args.steps, args.steps, **settings)
    mcmc.run()
    times = torch.tensor([[mcmc.warmup_time, mcmc.sampling_time]], dtype=torch.float64)
    warmup, sampling = ebm.ranks.gathered(times).amax(0).tolist()
    moments = mcmc.draws.moments()["x"]
    found = {
        "seconds_per_warmup_step": warmup / args.steps,
        "seconds_per_step": sampling / args.steps,
        "message_seconds": latency(),
        "square": (moments.variance + moments.mean.square()).mean().item(),
        "step_size": mcmc.state.step_size.item(),
        "engine": mcmc.engine,
    }
    if ebm.ranks.rank() == 0:
        print(json.dumps(found))


if __name__ == "__main__":
    main()
