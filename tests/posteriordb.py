"""Four posteriors of posteriordb as Pyro models, with data and exact moments.

Data and models: https://github.com/stan-dev/posteriordb @28f8d3d6. The moments in
``posteriordb.json`` are exact: the Gaussian block is integrated in closed form and the scale by
quadrature, and they agree with posteriordb's 10,000 reference draws.
"""

import json
import pathlib
from collections.abc import Callable
from typing import NamedTuple

import pyro
import pyro.distributions as dist
import torch
from torch import tensor

KEPT = json.loads(pathlib.Path(__file__).with_suffix(".json").read_text())


class Posterior(NamedTuple):
    model: Callable
    columns: Callable
    """Turns draws by site into one column per parameter, ``(*batch, parameter)``."""
    mean: torch.Tensor
    sd: torch.Tensor


def flat(*shape):
    """A flat prior that stock Pyro can draw a start from."""
    return dist.Normal(0.0, 1.0).expand(shape).to_event(len(shape)).mask(False)


def flat_positive():
    return dist.HalfCauchy(1.0).mask(False)


def data_of(name):
    return {key: tensor(value) for key, value in KEPT[name]["data"].items()}


def eight_schools(y, sigma):
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("schools", len(y)):
        eta = pyro.sample("eta", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(mu + tau * eta, sigma), obs=y)


def regression(x, y, prior_of_sigma):
    beta = pyro.sample("beta", flat(2))
    sigma = pyro.sample("sigma", prior_of_sigma)
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(beta[0] + beta[1] * x, sigma), obs=y)


def kidscore_momiq(kid_score, mom_iq):
    regression(mom_iq, kid_score, dist.HalfCauchy(2.5))


def logmesquite_logvolume(weight, diam1, diam2, canopy_height):
    regression((diam1 * diam2 * canopy_height).log(), weight.log(), flat_positive())


def ark(y):
    alpha = pyro.sample("alpha", dist.Normal(0.0, 10.0))
    beta = pyro.sample("beta", dist.Normal(0.0, 10.0).expand([5]).to_event(1))
    sigma = pyro.sample("sigma", dist.HalfCauchy(2.5))
    past = torch.stack([y[4 - k : len(y) - 1 - k] for k in range(5)], dim=-1)
    with pyro.plate("time", len(past)):
        pyro.sample("y", dist.Normal(alpha + past @ beta, sigma), obs=y[5:])


def columns_of_schools(draws):
    theta = draws["mu"].unsqueeze(-1) + draws["tau"].unsqueeze(-1) * draws["eta"]
    return torch.cat([theta, draws["mu"].unsqueeze(-1), draws["tau"].unsqueeze(-1)], dim=-1)


def columns_of_regression(draws):
    return torch.cat([draws["beta"], draws["sigma"].unsqueeze(-1)], dim=-1)


def columns_of_ark(draws):
    return torch.cat([draws["alpha"].unsqueeze(-1), columns_of_regression(draws)], dim=-1)


MODELS = {
    "eight_schools": (eight_schools, columns_of_schools),
    "kidscore_momiq": (kidscore_momiq, columns_of_regression),
    "arK": (ark, columns_of_ark),
    "logmesquite_logvolume": (logmesquite_logvolume, columns_of_regression),
}


def posterior(name):
    model, columns = MODELS[name]
    data = data_of(name)
    mean, sd = (tensor(list(KEPT[name][key].values())) for key in ("exact_mean", "exact_sd"))
    return Posterior(lambda: model(**data), columns, mean, sd)
