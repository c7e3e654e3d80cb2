"""The targets as Pyro models, of which Pyro's NUTS and our kernels sample the very same."""

import functools

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints

import pyro_ebm as ebm
from benchmarks.observations import dtype_of, observations
from pyro_ebm.potential import Potential


def eight_schools(y, sigma):
    """Eight schools, non-centred (Rubin, 1981): 10 latents."""
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("schools", len(y)):
        eta = pyro.sample("eta", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(mu + tau * eta, sigma), obs=y)


def logistic(x, y):
    """Logistic regression on the breast cancer data, 569 rows: 31 latents."""
    bias = pyro.sample("bias", dist.Normal(0.0, 2.5))
    weights = pyro.sample("weights", dist.Normal(0.0, 1.0).expand([30]).to_event(1))
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Bernoulli(logits=bias + x @ weights), obs=y)


def energy_alone(energy):
    pyro.sample("x", ebm.Boltzmann(energy))


def gaussian(precision):
    """A Gaussian of condition number 1e4, along the axes or rotated: 100 latents."""
    energy = ebm.energies.Gaussian(torch.zeros(len(precision)), precision)
    return functools.partial(energy_alone, energy)


def banana():
    """A curved Gaussian with E x² = (100, 19): 2 latents."""
    return functools.partial(energy_alone, ebm.energies.Banana())


def funnel():
    """Neal's funnel, non-centred: 10 latents."""
    v = pyro.sample("v", dist.Normal(0.0, 3.0))
    eta = pyro.sample("eta", dist.Normal(0.0, 1.0).expand([9]).to_event(1))
    pyro.deterministic("x", (v / 2).exp() * eta)


def latent_gp(x, rho, alpha, f_tilde):
    """Where the covariance cannot be factorized the answer is not a number, and is rejected."""
    rho, alpha = rho[..., None, None], alpha[..., None, None]
    covariance = alpha**2 * torch.exp(-0.5 * ((x[:, None] - x) / rho) ** 2)
    root, failed = torch.linalg.cholesky_ex(covariance + 1e-10 * torch.eye(len(x)))
    f = (root @ f_tilde.unsqueeze(-1)).squeeze(-1)
    return torch.where(failed.unsqueeze(-1) > 0, torch.nan, f)


def gp_pois_regr(x, k):
    """Poisson counts with a Gaussian process for their log rate: 13 latents."""
    rho = pyro.sample("rho", dist.Gamma(25.0, 4.0))
    alpha = pyro.sample("alpha", dist.HalfNormal(2.0))
    f_tilde = pyro.sample("f_tilde", dist.Normal(0.0, 1.0).expand([len(x)]).to_event(1))
    f = latent_gp(x, rho, alpha, f_tilde)
    with pyro.plate("data", len(x)):
        pyro.sample("k", dist.Poisson(f.exp()), obs=k)


def hmm_example(y):
    """A hidden Markov model of two states over 100 times: 4 latents."""
    theta = [pyro.sample(f"theta{i}", dist.Dirichlet(torch.ones(2))) for i in (1, 2)]
    flat = dist.ImproperUniform(constraints.positive_ordered_vector, (), (2,))
    mu = pyro.sample("mu", flat)
    pyro.factor("prior of mu", dist.Normal(torch.tensor([3.0, 10.0]), 1.0).log_prob(mu).sum())
    emission = dist.Normal(mu, 1.0).log_prob(y.unsqueeze(-1))
    steps = torch.stack(theta).log() + emission[1:].unsqueeze(-2)
    # Time 9 i + 3 j + k is at [k, j, i], so that neighbours are multiplied in few operations.
    steps = steps.reshape(-1, 3, 3, 2, 2).permute(2, 1, 0, 3, 4)
    for _ in range(3):
        steps = functools.reduce(product, steps.unbind(0))
    pyro.factor("y", (emission[0].unsqueeze(-1) + steps).logsumexp((-2, -1)))


def product(a, b):
    """The product of matrices of two rows, in logs."""
    return torch.logaddexp(*(a[..., :, i, None] + b[..., None, i, :] for i in range(2)))


def ark(y):
    """An autoregression of order five on 200 times: 7 latents."""
    alpha = pyro.sample("alpha", dist.Normal(0.0, 10.0))
    beta = pyro.sample("beta", dist.Normal(0.0, 10.0).expand([5]).to_event(1))
    sigma = pyro.sample("sigma", dist.HalfCauchy(2.5))
    past = torch.stack([y[4 - k : len(y) - 1 - k] for k in range(5)], dim=-1)
    with pyro.plate("data", len(y) - 5):
        pyro.sample("y", dist.Normal(alpha + past @ beta, sigma), obs=y[5:])


MODELS = {
    "eight_schools": eight_schools,
    "arK": ark,
    "hmm_example": hmm_example,
    "gp_pois_regr": gp_pois_regr,
    "logistic": logistic,
    "banana": banana,
    "funnel": funnel,
    "gaussian_axis": gaussian,
    "gaussian_rotated": gaussian,
}
BUILDERS = (gaussian, banana)
"""Those that make an energy once and return the model."""


def model_of(name):
    """Returns the model of a target, in the default dtype, which is to be ``dtype_of(name)``."""
    dtype = torch.get_default_dtype()
    data = {key: torch.from_numpy(v).to(dtype) for key, v in observations(name).items()}
    fn = MODELS[name]
    return fn(**data) if fn in BUILDERS else functools.partial(fn, **data)


def use_dtype_of(name):
    torch.set_default_dtype(getattr(torch, dtype_of(name)))


def potential_of(name):
    return Potential.of(model_of(name))


def starting_points(potential, num_chains, seed):
    """Returns unconstrained arrays by site: where every sampler starts."""
    torch.manual_seed(seed)
    found = potential.unflatten(potential.initialize(num_chains))
    return {name: np.ascontiguousarray(value.numpy()) for name, value in found.items()}
