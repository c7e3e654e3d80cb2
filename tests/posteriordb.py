"""Eleven posteriors of posteriordb as Pyro models, with their data and reference moments.

Data and models: https://github.com/stan-dev/posteriordb @28f8d3d6 (BSD 3-clause, Stan developers
and their assignees). Parameters and priors are those of the Stan code. The moments in
``posteriordb.json`` are exact where they come without ``mcse``: the Gaussian block is integrated
in closed form and the scale by quadrature, and they agree with posteriordb's 10,000 reference
draws. The others are the moments of these draws, with the standard errors of the means.

``python tests/posteriordb.py [name ...]`` prints how the default kernel and NUTS do.
"""

import json
import pathlib
import sys
import time
from collections.abc import Callable
from typing import NamedTuple

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints

import pyro_ebm as ebm
from pyro_ebm.diagnostics import bulk_ess, split_r_hat

HERE = pathlib.Path(__file__).parent
KEPT = json.loads((HERE / "posteriordb.json").read_text())


class Posterior(NamedTuple):
    model: Callable
    columns: Callable
    """Turns draws ``(chain, draw, *shape)`` by site into ``(chain, draw, parameter)``."""
    mean: torch.Tensor
    sd: torch.Tensor
    mcse: torch.Tensor
    """The standard errors of ``mean``: zero where it is exact."""


def flat(*shape):
    """A flat prior that stock Pyro can draw a start from."""
    return dist.Normal(0.0, 1.0).expand(shape).to_event(len(shape)).mask(False)


def flat_positive():
    return dist.HalfCauchy(1.0).mask(False)


def improper(support):
    """A flat prior on pairs."""
    return dist.ImproperUniform(support, (), (2,))


def normal(num, scale):
    return dist.Normal(0.0, scale).expand([num]).to_event(1)


def eight_schools(y, sigma):
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("schools", len(y)):
        eta = pyro.sample("eta", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(mu + tau * eta, sigma), obs=y)


def regression(y, features, prior_of_beta, prior_of_sigma):
    beta = pyro.sample("beta", prior_of_beta)
    observe(y, features @ beta, pyro.sample("sigma", prior_of_sigma))


def observe(y, mean, sigma):
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(mean, sigma), obs=y)


def with_intercept(*features):
    return torch.stack([torch.ones_like(features[0]), *features], dim=-1)


def kidscore_momiq(kid_score, mom_iq, **unused):
    regression(kid_score, with_intercept(mom_iq), flat(2), dist.HalfCauchy(2.5))


def kidscore_interaction(kid_score, mom_iq, mom_hs):
    features = with_intercept(mom_hs, mom_iq, mom_hs * mom_iq)
    regression(kid_score, features, flat(4), dist.HalfCauchy(2.5))


def logmesquite_logvolume(weight, diam1, diam2, canopy_height):
    volume = diam1 * diam2 * canopy_height
    regression(weight.log(), with_intercept(volume.log()), flat(2), flat_positive())


def logearn_height_male(earn, height, male):
    regression(earn.log(), with_intercept(height, male), flat(3), flat_positive())


def blr(X, y):
    regression(y, X, normal(5, 10.0), dist.HalfNormal(10.0))


def ark(y):
    alpha = pyro.sample("alpha", dist.Normal(0.0, 10.0))
    beta = pyro.sample("beta", normal(5, 10.0))
    past = torch.stack([y[4 - k : len(y) - 1 - k] for k in range(5)], dim=-1)
    observe(y[5:], alpha + past @ beta, pyro.sample("sigma", dist.HalfCauchy(2.5)))


def kilpisjarvi(x, y, pmualpha, psalpha, pmubeta, psbeta):
    alpha = pyro.sample("alpha", dist.Normal(pmualpha, psalpha))
    beta = pyro.sample("beta", dist.Normal(pmubeta, psbeta))
    observe(y, alpha + beta * x, pyro.sample("sigma", flat_positive()))


def latent_gp(x, rho, alpha, f_tilde):
    r""":math:`f = L \tilde f` with :math:`L L^\top` the covariance, over any batch.

    Far out it cannot be factorized: Stan throws and rejects, here it is not a number.
    """
    rho, alpha = rho[..., None, None], alpha[..., None, None]
    covariance = alpha**2 * torch.exp(-0.5 * ((x[:, None] - x) / rho) ** 2)
    root, failed = torch.linalg.cholesky_ex(covariance + 1e-10 * torch.eye(len(x)))
    f = (root @ f_tilde.unsqueeze(-1)).squeeze(-1)
    return torch.where(failed.unsqueeze(-1) > 0, torch.nan, f)


def gp_pois_regr(x, k):
    rho = pyro.sample("rho", dist.Gamma(25.0, 4.0))
    alpha = pyro.sample("alpha", dist.HalfNormal(2.0))
    f = latent_gp(x, rho, alpha, pyro.sample("f_tilde", normal(len(x), 1.0)))
    with pyro.plate("data", len(x)):
        pyro.sample("k", dist.Poisson(f.exp()), obs=k)


def hmm_example(y):
    theta = [pyro.sample(f"theta{i}", dist.Dirichlet(torch.ones(2))) for i in (1, 2)]
    mu = pyro.sample("mu", improper(constraints.positive_ordered_vector))
    pyro.factor("prior of mu", dist.Normal(torch.tensor([3.0, 10.0]), 1.0).log_prob(mu).sum())
    emission = dist.Normal(mu, 1.0).log_prob(y.unsqueeze(-1))
    steps = torch.stack(theta).log() + emission[1:].unsqueeze(-2)
    pyro.factor("y", (emission[0].unsqueeze(-1) + joined(steps)).logsumexp((-2, -1)))


def joined(steps):
    """The product, in logs, of matrices ``(time, from, to)``: pairs, pairs of pairs, and so on."""
    while len(steps) > 1:
        even = len(steps) // 2 * 2
        pairs = (steps[:even:2].unsqueeze(-1) + steps[1:even:2].unsqueeze(-3)).logsumexp(-2)
        steps = torch.cat([pairs, steps[even:]])
    return steps[0]


def low_dim_gauss_mix(y):
    mu = pyro.sample("mu", improper(constraints.ordered_vector))
    pyro.factor("prior of mu", dist.Normal(0.0, 2.0).log_prob(mu).sum())
    sigma = pyro.sample("sigma", dist.HalfNormal(2.0).expand([2]).to_event(1))
    theta = pyro.sample("theta", dist.Beta(5.0, 5.0))
    weights = dist.Categorical(torch.stack([theta, 1 - theta]))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.MixtureSameFamily(weights, dist.Normal(mu, sigma)), obs=y)


MODELS = {
    "eight_schools": eight_schools,
    "kidscore_momiq": kidscore_momiq,
    "kidscore_interaction": kidscore_interaction,
    "logmesquite_logvolume": logmesquite_logvolume,
    "logearn_height_male": logearn_height_male,
    "arK": ark,
    "blr": blr,
    "kilpisjarvi": kilpisjarvi,
    "gp_pois_regr": gp_pois_regr,
    "hmm_example": hmm_example,
    "low_dim_gauss_mix": low_dim_gauss_mix,
}

DERIVED = {
    "eight_schools": lambda draws, data: {
        "theta": draws["mu"].unsqueeze(-1) + draws["tau"].unsqueeze(-1) * draws["eta"]
    },
    "gp_pois_regr": lambda draws, data: {
        "f": latent_gp(data["x"], draws["rho"], draws["alpha"], draws["f_tilde"])
    },
}
"""What posteriordb counts as a parameter and is no site."""


def data_of(name):
    kept = json.loads((HERE / "posteriordb_data" / f"{KEPT[name]['data']}.json").read_text())
    return {key: torch.tensor(value).to(torch.get_default_dtype()) for key, value in kept.items()}


def posterior(name):
    model, data, kept = MODELS[name], data_of(name), KEPT[name]
    sites = dict.fromkeys(parameter.split("[")[0] for parameter in kept["mean"])

    def columns(draws):
        if name in DERIVED:
            draws = draws | DERIVED[name](draws, data)
        return torch.cat([draws[site].reshape(*draws[site].shape[:2], -1) for site in sites], -1)

    exact = dict.fromkeys(kept["mean"], 0.0)
    moments = (kept["mean"], kept["sd"], kept.get("mcse", exact))
    return Posterior(lambda: model(**data), columns, *(_vector(m.values()) for m in moments))


def _vector(values):
    return torch.tensor(list(values), dtype=torch.get_default_dtype())


class Outcome(NamedTuple):
    """How a run did against the reference, by parameter."""

    r_hat: torch.Tensor
    z: torch.Tensor
    """Errors of the means in their standard errors, ours and the reference's together."""
    sd_ratio: torch.Tensor
    divergences: int
    seconds: float
    """Of a CPU, so that other work on the machine does not count."""

    @property
    def passed(self):
        """The gate of posteriordb's own comparisons, behind one on whether the chains mixed."""
        return bool(
            (self.r_hat < 1.01).all()
            and (self.z.abs() < 4).all()
            and ((self.sd_ratio - 1).abs() < 0.1).all()
        )

    def __str__(self):
        worst_sd = self.sd_ratio[(self.sd_ratio - 1).abs().argmax()]
        return (
            f"R-hat {self.r_hat.max():5.3f}  |z| {self.z.abs().max():4.2f}  "
            f"sd ratio {worst_sd:5.3f}  divergences {self.divergences}  {self.seconds:4.0f} CPU s"
        )


def compare(target, draws, divergences=0, seconds=0.0):
    """Holds draws ``(chain, draw, parameter)`` against the reference."""
    every = draws.flatten(0, 1)
    error = (every.var(0) / bulk_ess(draws) + target.mcse**2).sqrt()
    z, sd_ratio = (every.mean(0) - target.mean) / error, every.std(0) / target.sd
    return Outcome(split_r_hat(draws), z, sd_ratio, divergences, seconds)


def sample(target, kernel, num_samples=500, warmup_steps=500, num_chains=64):
    """Samples a posterior with a kernel, or with the default one if given its model alone."""
    mcmc = ebm.MCMC(kernel, num_samples, warmup_steps, num_chains, disable_progbar=True)
    began = time.process_time()
    mcmc.run()
    seconds = time.process_time() - began
    draws = target.columns(mcmc.get_samples(group_by_chain=True))
    return compare(target, draws, int(mcmc.sample_stats["diverging"].sum()), seconds)


KERNELS = {
    "default": lambda model: model,
    "NUTS": lambda model: ebm.kernels.NUTS(model, metric_rank=None),
}
"""From a model to a kernel that nobody has tuned by hand, both with the same metric."""


def main(names):
    """Prints a line for each posterior and kernel."""
    torch.set_default_dtype(torch.float64)
    for name in names or MODELS:
        for kernel, of in KERNELS.items():
            pyro.set_rng_seed(20)
            target = posterior(name)
            outcome = sample(target, of(target.model))
            verdict = "passed" if outcome.passed else "FAILED"
            print(f"{name:22} {kernel:8} {verdict}  {outcome}", flush=True)  # noqa: T201


if __name__ == "__main__":
    main(sys.argv[1:])
