"""A regression whose smoothness is an energy: stock NUTS and our MALA sample the same posterior.

The curve has one height per knot and a wide, unspecific prior; an energy that is low where the
curve bends little multiplies it, as a factor of the model. Run with ``--out DIR`` to keep the
pictures.
"""

import argparse
from pathlib import Path

import arviz
import pyro
import pyro.distributions as dist
import torch
from pyro.infer import MCMC, NUTS

import pyro_ebm as ebm
from pyro_ebm.diagnostics import bulk_ess, split_r_hat

NUM_KNOTS = 12


def bending(curve):
    """The energy of a curve, in nats: what its second differences cost."""
    return 3.0 * curve.diff(n=2, dim=-1).square().sum(-1)


def model(knot, y):
    curve = pyro.sample("curve", dist.Normal(0.0, 5.0).expand([NUM_KNOTS]).to_event(1))
    noise = pyro.sample("noise", dist.HalfNormal(1.0))
    ebm.energy_factor("smooth", bending, curve)
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(curve[..., knot], noise), obs=y)


def observations(num_rows):
    """A noisy sine, seen at random places."""
    x = torch.rand(num_rows)
    knot = (x * NUM_KNOTS).long()
    y = torch.sin(2 * torch.pi * (knot + 0.5) / NUM_KNOTS) + 0.4 * torch.randn(num_rows)
    return knot, y


def moments(draws):
    """Mean and Monte Carlo standard error of draws ``(chain, draw, *event)``."""
    return draws.mean((0, 1)), draws.flatten(0, 1).std(0) / bulk_ess(draws).sqrt()


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, help="a folder for the pictures")
    parser.add_argument("--smoke", action="store_true", help="a small run")
    args = parser.parse_args()
    torch.set_default_dtype(torch.float64)
    pyro.set_rng_seed(0)
    knot, y = observations(60)

    num_samples = 100 if args.smoke else 500
    nuts = MCMC(NUTS(model), num_samples, warmup_steps=100, disable_progbar=args.smoke)
    nuts.run(knot, y)
    mala = ebm.MCMC(
        ebm.kernels.MALA(model), 2500, warmup_steps=500, num_chains=16, disable_progbar=args.smoke
    )
    mala.run(knot, y)

    idata = ebm.to_arviz(mala)
    print(arviz.summary(idata).to_string())
    if args.out:
        args.out.mkdir(parents=True, exist_ok=True)
        few = idata.isel(chain=slice(4))  # a trace of 32 chains shows nothing
        axes = arviz.plot_trace(few, var_names=["noise", "curve"], compact=True)
        axes.ravel()[0].figure.savefig(args.out / "energy_factors_trace.png", dpi=120)

    by_nuts, by_mala = (run.get_samples(group_by_chain=True) for run in (nuts, mala))
    for name in ("curve", "noise"):
        (mean, error), (reference, its_error) = moments(by_mala[name]), moments(by_nuts[name])
        z = (mean - reference) / (error**2 + its_error**2).sqrt()
        print(f"{name}: largest difference of the means {z.abs().max():.1f} standard errors")
        assert split_r_hat(by_mala[name]).max() < 1.01
        assert z.abs().max() < 5, f"NUTS and MALA disagree on {name}"


if __name__ == "__main__":
    main()
