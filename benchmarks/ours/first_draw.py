"""Seconds until there is a first draw of eight schools, from after the imports, without warmup."""

import time

BEFORE = time.perf_counter()

import argparse  # noqa: E402
import json  # noqa: E402

import torch  # noqa: E402

import pyro_ebm as ebm  # noqa: E402
from benchmarks.targets import model_of  # noqa: E402

COMPILE = {"auto": "auto", "True": True, "False": False}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--chains", type=int, required=True)
    parser.add_argument("--compile", choices=COMPILE, required=True)
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    began = time.perf_counter()
    mcmc = ebm.MCMC(
        model_of("eight_schools"),
        1,
        warmup_steps=0,
        num_chains=args.chains,
        compile=COMPILE[args.compile],
        disable_progbar=True,
    )
    mcmc.run()
    found = mcmc.get_samples(group_by_chain=True)["mu"]
    seconds = time.perf_counter() - began
    if found.shape[:2] != (args.chains, 1):
        raise RuntimeError(f"draws have shape {tuple(found.shape)}")
    numbers = {"seconds": seconds, "imports": began - BEFORE, "engine": mcmc.engine}
    print(json.dumps(numbers))


if __name__ == "__main__":
    main()
