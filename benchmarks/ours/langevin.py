"""Our ULA through the driver, compiled; it keeps every draw."""

import torch

import pyro_ebm as ebm
from benchmarks import langevin_cell


def energy_of(layers):
    energy = ebm.energies.MLP((2,), [len(bias) for _, bias in layers[:-1]], base_scale=1.0)
    linears = [m for m in energy.network if isinstance(m, torch.nn.Linear)]
    for linear, (weight, bias) in zip(linears, layers, strict=True):
        linear.weight.data, linear.bias.data = torch.from_numpy(weight), torch.from_numpy(bias)
    return energy


def make(layers, start):
    target = ebm.Boltzmann(energy_of(layers))
    kernel = ebm.kernels.ULA(target, step_size=langevin_cell.STEP_SIZE)
    x = torch.from_numpy(start)

    def walk(num_steps):
        mcmc = ebm.MCMC(
            kernel,
            num_steps,
            warmup_steps=0,
            num_chains=len(x),
            initial_params={"x": x},
            compile=True,
            disable_progbar=True,
        )
        mcmc.run()
        if not mcmc.engine.startswith("native"):
            raise RuntimeError(mcmc.engine)
        return mcmc.get_samples(group_by_chain=True)["x"][:, -1].numpy(), mcmc.sampling_time

    return walk


if __name__ == "__main__":
    torch.set_num_threads(1)
    langevin_cell.run(make, f"pyro_ebm {ebm.__version__}")
