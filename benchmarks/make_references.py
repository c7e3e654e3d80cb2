"""Finds the moments that have no closed form, once: ``python -m benchmarks references``.

Where a Gaussian block can be integrated out, or few dimensions are left, by quadrature in float64;
elsewhere by a long run of NumPyro's NUTS, held against one of BlackJAX's.
"""

import math
import tempfile
from pathlib import Path

import numpy as np
import torch

from benchmarks import process
from benchmarks.observations import observations
from benchmarks.references import Moments, exact, save
from benchmarks.targets import potential_of, starting_points
from pyro_ebm.diagnostics import bulk_ess, split_r_hat

LONG_CHAINS = 64


def add_arguments(parser):
    parser.add_argument("--targets", nargs="+", choices=[*QUADRATURES, *SAMPLED], default=None)
    parser.add_argument("--draws", type=int, default=2000, help="of a long run, per chain")


def main(args):
    torch.set_default_dtype(torch.float64)
    for name in args.targets or [*QUADRATURES, *SAMPLED]:
        how, moments = QUADRATURES[name]() if name in QUADRATURES else long_run(name, args.draws)
        save(name, how, moments)
        print(f"{name}: {how}", flush=True)


def tensors(name):
    return {key: torch.from_numpy(value) for key, value in observations(name).items()}


def linear_gaussian(design, y, noise, prior):
    """Returns mean and covariance of coefficients, and the log evidence, all in batches."""
    covariance = design @ (prior[:, None] * design.mT) + torch.diag_embed(noise)
    gain = prior[:, None] * torch.linalg.solve(covariance, design).mT
    mean = (gain @ y.unsqueeze(-1)).squeeze(-1)
    spread = torch.diag(prior) - gain @ (design * prior)
    evidence = torch.distributions.MultivariateNormal(torch.zeros(len(y)), covariance)
    return mean, spread.diagonal(dim1=-2, dim2=-1), evidence.log_prob(y)


def averaged(log_weight, mean, variance):
    """Averages means and variances ``(K, D)`` over grid points of log weight ``(K,)``."""
    weight = log_weight.softmax(0)
    return exact(weight @ mean, weight @ (variance + mean.square()))


def eight_schools():
    y, sigma = tensors("eight_schools").values()
    log_tau = torch.linspace(-20.0, 8.0, 8001)
    tau = log_tau.exp()
    design = torch.cat([tau[:, None, None] * torch.eye(8), torch.ones(len(tau), 8, 1)], dim=-1)
    prior = torch.tensor([1.0] * 8 + [25.0])
    mean, variance, log_evidence = linear_gaussian(
        design, y, sigma.square().expand(len(tau), 8), prior
    )
    log_weight = log_evidence + log_tau - (tau / 5).square().log1p()
    found = averaged(log_weight, mean, variance)
    return "quadrature over log tau, the rest is Gaussian", {
        "eta": Moments(*(v[:8] for v in found)),
        "mu": Moments(*(v[8:] for v in found)),
        "tau": averaged(log_weight, tau[:, None], torch.zeros(len(tau), 1)),
    }


def ark():
    y = tensors("arK")["y"]
    past = torch.stack([y[4 - k : len(y) - 1 - k] for k in range(5)], dim=-1)
    design = torch.cat([torch.ones(len(past), 1), past], dim=-1)
    log_sigma = torch.linspace(math.log(0.08), math.log(0.4), 801)
    sigma = log_sigma.exp()
    mean, variance, log_evidence = linear_gaussian(
        design.expand(len(sigma), -1, -1),
        y[5:],
        sigma.square()[:, None].expand(-1, len(past)),
        torch.full((6,), 100.0),
    )
    log_weight = log_evidence + log_sigma - (sigma / 2.5).square().log1p()
    found = averaged(log_weight, mean, variance)
    return "quadrature over log sigma, the rest is Gaussian", {
        "alpha": Moments(*(v[:1] for v in found)),
        "beta": Moments(*(v[1:] for v in found)),
        "sigma": averaged(log_weight, sigma[:, None], torch.zeros(len(sigma), 1)),
    }


def hmm_example():
    """By Gauss and Legendre: 40 points for each of two probabilities and two means."""
    y = tensors("hmm_example")["y"]
    node, weight = (torch.from_numpy(v) for v in np.polynomial.legendre.leggauss(40))
    probability = (node + 1) / 2
    low, high = 3.02 + 1.9 * node, 8.83 + 1.0 * node
    a, b, mu1, mu2 = torch.meshgrid(probability, probability, low, high, indexing="ij")
    log_weight = sum(torch.meshgrid(*[weight.log()] * 4, indexing="ij"))
    log_weight = log_weight - 0.5 * ((mu1 - 3).square() + (mu2 - 10).square())
    first, second = (-0.5 * (y[0] - m).square() for m in (mu1, mu2))
    for value in y[1:]:
        first, second = (
            torch.logaddexp(first + to1.log(), second + to2.log()) - 0.5 * (value - m).square()
            for to1, to2, m in ((a, b, mu1), (1 - a, 1 - b, mu2))
        )
    weight = (log_weight + torch.logaddexp(first, second)).flatten().softmax(0)

    def moments(*columns):
        x = torch.stack([column.flatten() for column in columns], dim=-1)
        return exact(weight @ x, weight @ x.square())

    return "quadrature over all four coordinates", {
        "mu": moments(mu1, mu2),
        "theta1": moments(a, 1 - a),
        "theta2": moments(b, 1 - b),
    }


def long_run(name, num_draws):
    """Returns how, and the moments by site."""
    potential = potential_of(name)
    draws, other = (
        nuts(name, potential, module, draws_of_it)
        for module, draws_of_it in (("numpyro_nuts", num_draws), ("blackjax_nuts", num_draws // 2))
    )
    found = {site: estimated(values) for site, values in draws.items()}
    worst = max(apart(found[site], estimated(values)) for site, values in other.items())
    if worst > 4:
        raise RuntimeError(f"{name}: NumPyro and BlackJAX are {worst:.1f} standard errors apart")
    how = (
        f"NumPyro NUTS, float64, {LONG_CHAINS} chains of {num_draws} draws; within {worst:.1f} "
        "standard errors of BlackJAX NUTS with half as many"
    )
    return how, found


def nuts(name, potential, module, num_draws):
    with tempfile.TemporaryDirectory() as folder:
        start, out = Path(folder) / "start.npz", Path(folder) / "draws.npz"
        np.savez(start, **starting_points(potential, LONG_CHAINS, seed=7))
        words = {"target": name, "dtype": "float64", "chains": LONG_CHAINS, "draws": num_draws}
        words |= {"seed": 7, "start": start, "out": out}
        process.run("jax", f"benchmarks.peers.{module}", words, limit=7200)
        return potential.constrain(torch.from_numpy(np.load(out)["z"]))


def estimated(values):
    x = values.reshape(*values.shape[:2], -1)
    if not split_r_hat(x).max() < 1.01:
        raise RuntimeError(f"R-hat {split_r_hat(x).max():.3f}")

    def mcse(v):
        return v.flatten(0, 1).std(0) / bulk_ess(v).sqrt()

    return Moments(x.mean((0, 1)), x.square().mean((0, 1)), mcse(x), mcse(x.square()))


def apart(a, b):
    """The largest difference in standard errors."""
    pairs = (
        (a.mean - b.mean, a.mean_mcse, b.mean_mcse),
        (a.square - b.square, a.square_mcse, b.square_mcse),
    )
    return max(((d.abs() / (s**2 + t**2).sqrt()).max().item()) for d, s, t in pairs)


QUADRATURES = {"eight_schools": eight_schools, "arK": ark, "hmm_example": hmm_example}
SAMPLED = ("gp_pois_regr", "logistic")
