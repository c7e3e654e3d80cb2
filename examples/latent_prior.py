"""A prior that is learned: an energy in latent space, against the standard normal of a VAE.

Noisy readings of a signal that lies on two unequal shapes in the plane. A linear decoder, a guide
and, in one of two models, the energy of the latents learn together, by SVI. The truth is known and
the plane is small, so all is judged by quadrature: the likelihood of held-out readings, the law of
the noiseless signal, and whether the prior is the aggregate of the posteriors, as it has to be
where learning has ended.

    python examples/latent_prior.py --out report/
"""

import argparse
import math
from pathlib import Path

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import SVI, Trace_ELBO
from torch import nn

import pyro_ebm as ebm
from pyro_ebm.metrics import Estimate
from pyro_ebm.zoo import Training

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--out", default="report/", help="where to save the picture")
parser.add_argument("--smoke", action="store_true", help="a run of a few seconds")
args = parser.parse_args()

torch.set_num_threads(1)  # matrices this small gain nothing from a second thread
pyro.set_rng_seed(0)
NOISE = 0.25  # of a reading, in units of the signal
PLAN = Training(num_steps=150 if args.smoke else 3000, batch_size=256, lr=1e-2)

banana = ebm.energies.Banana(scale=1.2, curvature=0.5)
spot = ebm.energies.Gaussian(torch.tensor([-0.5, 4.5]), torch.tensor([4.0, 2.0]))
truth = ebm.energies.mixture([banana, spot], [0.7, 0.3])


def readings(n):
    return truth.sample(n) + NOISE * torch.randn(n, 2)


train, test = readings(4_000), readings(200 if args.smoke else 2_000)


class Latent(nn.Module):
    """x = W z + b + noise, with z from an energy or, without one, from a standard normal."""

    def __init__(self, energy=None):
        super().__init__()
        self.energy = energy
        self.log_z = None
        self.decoder = nn.Linear(2, 2)
        self.encoder = nn.Sequential(nn.Linear(2, 64), nn.SiLU(), nn.Linear(64, 4))

    def prior(self):
        if self.energy is None:
            return dist.Normal(0.0, 1.0).expand([2]).to_event(1)
        return ebm.Boltzmann(self.energy, log_z=self.log_z)

    def model(self, x):
        pyro.module("latent", self)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", self.prior())
            pyro.sample("x", dist.Normal(self.decoder(z), NOISE).to_event(1), obs=x)

    def guide(self, x):
        loc, log_scale = self.encoder(x).chunk(2, -1)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))

    def fit(self, loss):
        optimizer = PLAN.optimizer()
        with pyro.get_param_store().scope():
            svi = SVI(self.model, self.guide, optimizer, loss)
            for step in range(PLAN.num_steps):
                rows = torch.randint(len(train), (PLAN.batch_size,))
                with (
                    pyro.poutine.scale(scale=1 / PLAN.batch_size),
                    pyro.validation_enabled(step == 0),
                ):
                    svi.step(train[rows])
                optimizer.step()
        return self

    def log_law(self, s):
        """Evaluates the log density of the signal W z + b, up to a constant."""
        shifted = (s - self.decoder.bias).T
        return self.prior().log_prob(torch.linalg.solve(self.decoder.weight, shifted).T)


# the tilt of a standard normal, learned from the guide's draws against chains of the prior
tilt = ebm.energies.MLP((2,), hidden_sizes=(64, 64), base_scale=1.0)
objective = ebm.objectives.PersistentCD(
    ebm.kernels.HMC(step_size=0.2, num_steps=5), num_chains=256, num_steps=4, reinit_prob=0.02
)
models = {
    "normal prior": Latent().fit(Trace_ELBO()),
    "learned prior": Latent(tilt).fit(objective),
}
# with log Z known, a plain ELBO is a bound of the likelihood again
models["learned prior"].log_z = ebm.logz.quadrature(ebm.Boltzmann(tilt)).value

# the signal on a grid of the plane, which holds all but 1e-6 of the mass
side_0, side_1 = torch.linspace(-7, 7, 141), torch.linspace(-5, 15, 201)
grid = torch.cartesian_prod(side_0, side_1)
mean, covariance = train.mean(0), torch.cov(train.T) - NOISE**2 * torch.eye(2)
gaussian = ebm.energies.Gaussian(mean, torch.linalg.inv(covariance))
with torch.no_grad():
    laws = {"truth": -truth(grid), "the best Gaussian": -gaussian(grid)}
    laws |= {name: model.log_law(grid) for name, model in models.items()}
    laws = {name: law.log_softmax(0) for name, law in laws.items()}


@torch.no_grad()
def judge(law):
    """Returns log p(x) of readings, the divergence of the signal, and that of the prior."""
    noise = dist.Normal(grid, NOISE).to_event(1)
    joint = torch.stack([law + noise.log_prob(x) for x in test])
    aggregate = joint.log_softmax(-1).logsumexp(0) - math.log(len(test))
    of_signal = (laws["truth"].exp() * (laws["truth"] - law)).sum().item()
    of_prior = (aggregate.exp() * (aggregate - law)).sum().item()
    return joint.logsumexp(-1).double(), of_signal, of_prior


def bound(model):
    with pyro.get_param_store().scope(), torch.no_grad():
        loss = Trace_ELBO(num_particles=20, vectorize_particles=False)
        return -loss.loss(model.model, model.guide, test) / len(test)


def averaged(values):
    return Estimate(values.mean().item(), values.std().item() / math.sqrt(len(values)))


print(f"{'held out, in nats':20}log p(x)         ELBO     KL(signal)  KL(aggregate, prior)")
found = {}
for name, law in laws.items():
    found[name] = score, of_signal, of_prior = judge(law)
    elbo = f"{bound(models[name]):.3f}" if name in models else ""
    print(f"{name:20}{averaged(score)!s:17}{elbo:9}{of_signal:<12.3f}{of_prior:.3f}")
# a normal prior and a linear decoder make a Gaussian law of x: they cannot pass the best one
rival = "normal prior" if args.smoke else "the best Gaussian"
gain = averaged(found["learned prior"][0] - found[rival][0])
print(f"the learned prior gains {gain} nats over the {rival.removeprefix('the ')}")

figure = ebm.plotting.landscape(
    {"truth": truth} | {name: lambda s, m=m: -m.log_law(s) for name, m in models.items()},
    truth.sample(500),
    extent=(-5, 5, -3, 9),
)
Path(args.out).mkdir(parents=True, exist_ok=True)
figure.savefig(Path(args.out) / "latent_prior.png")

assert gain.value > 5 * gain.std_error
if not args.smoke:
    for learned, shapeless in zip(
        found["learned prior"][1:], found["the best Gaussian"][1:], strict=True
    ):
        assert learned < shapeless / 5
