"""Which model of eight schools do the data favour? Evidence with an error bar, and a bracket.

Coaching was tried at eight schools; each reports an effect and its standard error (Rubin, 1981).
Three Pyro models say how the true effects hang together. Their marginal likelihoods are estimated
by walkers from a fitted base, in both directions, and compared; since all that is Gaussian in them
can be integrated by hand, and the rest on a line, the answers are known.

    python examples/evidence.py --out report/
"""

import argparse
import functools
import math
from pathlib import Path

import pyro
import pyro.distributions as dist
import torch

import pyro_ebm as ebm

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--out", default="report/", help="where to save the picture")
parser.add_argument("--smoke", action="store_true", help="a run of a few seconds")
args = parser.parse_args()

torch.set_num_threads(1)  # matrices this small gain nothing from a second thread
torch.set_default_dtype(torch.float64)
pyro.set_rng_seed(0)
y = torch.tensor([28.0, 8, -3, 7, -1, 1, 18, 12])
sigma = torch.tensor([15.0, 10, 16, 11, 9, 11, 10, 18])
ALL_ALIKE, EACH_ITS_OWN = 5.0, 20.0  # the prior scales of an effect, in points of the test


def same():
    """One effect everywhere."""
    mu = pyro.sample("mu", dist.Normal(0.0, ALL_ALIKE))
    pyro.sample("y", dist.Normal(mu, sigma).to_event(1), obs=y)


def separate():
    """Effects that have nothing to do with each other."""
    theta = pyro.sample("theta", dist.Normal(0.0, EACH_ITS_OWN).expand([8]).to_event(1))
    pyro.sample("y", dist.Normal(theta, sigma).to_event(1), obs=y)


def hierarchical():
    """Effects that differ by as much as the data say."""
    mu = pyro.sample("mu", dist.Normal(0.0, ALL_ALIKE))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    eta = pyro.sample("eta", dist.Normal(0.0, 1.0).expand([8]).to_event(1))
    pyro.sample("y", dist.Normal(mu + tau * eta, sigma).to_event(1), obs=y)


def gaussian(variance_of_mean, variance_of_effects):
    """The exact log density of y where effects are normal about a normal mean."""
    shared = torch.as_tensor(variance_of_mean) * torch.ones(8, 8)
    own = torch.as_tensor(variance_of_effects)[..., None, None] * torch.eye(8)
    law = dist.MultivariateNormal(torch.zeros(8), shared + own + sigma.square().diag())
    return law.log_prob(y)


log_tau = torch.linspace(-15, 12, 20_001)
terms = gaussian(ALL_ALIKE**2, log_tau.exp() ** 2) + dist.HalfCauchy(5.0).log_prob(log_tau.exp())
exact = {
    same: gaussian(ALL_ALIKE**2, 0.0).item(),
    separate: gaussian(0.0, EACH_ITS_OWN**2).item(),
    hierarchical: ((terms + log_tau).logsumexp(0) + (log_tau[1] - log_tau[0]).log()).item(),
}

smc = functools.partial(ebm.logz.smc, num_particles=512 if args.smoke else 4096)
found = {model: ebm.logz.evidence(model, estimator=smc) for model in exact}
print("log evidence, in nats       estimate          bracket              exact")
for model, z in found.items():
    value = f"{z.value:.3f} ± {z.std_error:.3f}"
    print(f"{model.__name__:26} {value:18} [{z.lower:.2f}, {z.upper:.2f}]   {exact[model]:.3f}")

gain = found[same].value - found[separate].value
error = math.hypot(found[same].std_error, found[separate].std_error)
print(f"one effect is favoured over eight by {gain:.2f} ± {error:.2f} nats")

Path(args.out).mkdir(parents=True, exist_ok=True)
found[hierarchical].plot().savefig(Path(args.out) / "evidence.png")

for model, z in found.items():
    assert abs(z.value - exact[model]) < 5 * z.std_error
assert gain > 5 * error
