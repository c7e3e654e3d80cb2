"""The posteriors to sample: Pyro models with their data."""

import pyro
import pyro.distributions as dist
import torch
from sklearn.datasets import load_breast_cancer

EFFECT = torch.tensor([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
ERROR = torch.tensor([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])


def eight_schools():
    """Eight schools, non-centred (Rubin, 1981): 10 latents."""
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("schools", 8):
        eta = pyro.sample("eta", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(mu + tau * eta, ERROR), obs=EFFECT)


def _breast_cancer():
    x, y = load_breast_cancer(return_X_y=True)
    x = torch.tensor((x - x.mean(0)) / x.std(0))
    return x.to(torch.get_default_dtype()), torch.tensor(y).to(torch.get_default_dtype())


def logistic_regression():
    """Logistic regression on the breast cancer data, 569 rows: 31 latents."""
    x, y = _DATA
    bias = pyro.sample("bias", dist.Normal(0.0, 2.5))
    weights = pyro.sample("weights", dist.Normal(torch.zeros(30), 1.0).to_event(1))
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Bernoulli(logits=bias + x @ weights), obs=y)


_DATA = _breast_cancer()
TARGETS = {"eight schools": eight_schools, "logistic 569x30": logistic_regression}
