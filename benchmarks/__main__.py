"""Our samplers against Pyro's NUTS and NumPyro's, on the same models, on one thread.

The measure is effective sample size per second: bulk, of x and of its square, the least over all
coordinates. «hot» counts the sampling alone, «cold» everything from the model to the last draw, in
a process that has imported everything. A row whose R-hat is above 1.02 is void, and says so.
"""

import argparse
import json
import os
import platform
import subprocess
import tempfile
import time
from pathlib import Path

import numpy as np
import pyro
import torch
from pyro.infer import MCMC, NUTS

import pyro_ebm as ebm
from benchmarks.targets import TARGETS
from pyro_ebm.diagnostics import bulk_ess, split_r_hat

HERE = Path(__file__).parent
RESULTS = HERE / "results"
PEERS = HERE.parent / ".venv-peers" / "bin" / "python"


def quality(draws):
    """Returns the least effective sample size of x and x squared, and the largest R-hat."""
    flat = torch.cat([v.reshape(*v.shape[:2], -1) for v in draws.values()], -1)
    both = torch.cat([flat, flat.square()], -1)
    return bulk_ess(both).min().item(), split_r_hat(flat).max().item()


def pyro_nuts(target, num_draws, seed):
    began = time.perf_counter()
    warm = []
    mcmc = MCMC(
        NUTS(TARGETS[target]),
        num_draws,
        warmup_steps=num_draws,
        disable_progbar=True,
        hook_fn=lambda kernel, params, stage, i: (
            warm.append(time.perf_counter()) if stage == "Sample" and i == 0 else None
        ),
    )
    mcmc.run()
    ended = time.perf_counter()
    return mcmc.get_samples(group_by_chain=True), ended - warm[0], ended - began, "one chain"


def numpyro_nuts(num_chains):
    """NumPyro in its own environment, if there is one: `make bench` installs it."""

    def run(target, num_draws, seed):
        flags = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "draws.npz"
            command = [PEERS, HERE / "peers" / "numpyro_nuts.py", "--target", target]
            command += ["--seed", seed, "--draws", num_draws, "--chains", num_chains, "--out", out]
            found = subprocess.run(
                [str(word) for word in command],
                env={**os.environ, "XLA_FLAGS": flags, "OMP_NUM_THREADS": "1"},
                check=True,
                capture_output=True,
                text=True,
            )
            times = json.loads(found.stdout.splitlines()[-1])
            draws = {name: torch.from_numpy(v) for name, v in np.load(out).items()}
        return draws, times["hot"], times["cold"], f"NumPyro {times['version']}"

    return run


def ours(kernel, num_chains, compile):
    def run(target, num_draws, seed):
        began = time.perf_counter()
        mcmc = ebm.MCMC(
            kernel(TARGETS[target]),
            num_draws,
            warmup_steps=num_draws,
            num_chains=num_chains,
            compile=compile,
            disable_progbar=True,
        )
        mcmc.run()
        cold = time.perf_counter() - began
        return mcmc.get_samples(group_by_chain=True), mcmc.sampling_time, cold, mcmc.engine

    return run


SAMPLERS = {
    "Pyro NUTS": pyro_nuts,
    "NumPyro NUTS, 64 chains": numpyro_nuts(64),
    "HMC, 64 chains, eager": ours(ebm.kernels.HMC, 64, False),
    "HMC, 64 chains, graph": ours(ebm.kernels.HMC, 64, "auto"),
    "HMC, 64 chains, native": ours(ebm.kernels.HMC, 64, True),
    "HMC, 1,024 chains, native": ours(ebm.kernels.HMC, 1024, True),
    "MALA, 64 chains, native": ours(ebm.kernels.MALA, 64, True),
}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--draws", type=int, default=500, help="draws and warmup steps per chain")
    parser.add_argument("--seeds", type=int, default=3)
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for target in TARGETS:
        for sampler, run in SAMPLERS.items():
            if "NumPyro" in sampler and not PEERS.exists():
                print(f"{target:18} {sampler:26} left out: `make bench` installs it")
                continue
            for seed in range(args.seeds):
                pyro.set_rng_seed(seed)
                draws, hot, cold, engine = run(target, args.draws, seed)
                ess, r_hat = quality(draws)
                rows.append(
                    dict(target=target, sampler=sampler, seed=seed, ess=ess, r_hat=r_hat,
                         hot_seconds=hot, cold_seconds=cold, engine=engine)
                )  # fmt: skip
                print(
                    f"{target:18} {sampler:26} ESS {ess:8.0f}  R-hat {r_hat:.3f}  "
                    f"hot {ess / hot:9.1f}/s  cold {ess / cold:9.1f}/s"
                    + ("  VOID: not mixed" if r_hat > 1.02 else ""),
                    flush=True,
                )
                save(rows, args.draws)


def save(rows, num_draws):
    """Saves what there is after each row, so that an interrupt loses none."""
    about = {
        "command": "python -m benchmarks",
        "draws": num_draws,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "pyro": pyro.__version__,
        "machine": platform.machine(),
        "threads": 1,
        "dtype": str(torch.get_default_dtype()),
    }
    RESULTS.mkdir(exist_ok=True)
    text = json.dumps({"about": about, "rows": rows}, indent=1)
    (RESULTS / "sampling.json").write_text(text + "\n")


if __name__ == "__main__":
    main()
