"""Where log Z moves with what is learned or inferred, a routine that leaves it out is refused."""

import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch
from laws import assert_chain_mean
from pyro.infer import HMC, MCMC, NUTS, SVI, Trace_ELBO
from pyro.infer.autoguide import AutoNormal
from torch import nn, tensor

import pyro_ebm as ebm
from pyro_ebm.energies import MLP, Energy, Gaussian


def learnable_site(energy):
    def model(x):
        with pyro.plate("data", len(x)):
            pyro.sample("x", ebm.Boltzmann(energy), obs=x)

    return model


def step(model, guide=ebm.no_guide, loss=None):
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.01}), loss or Trace_ELBO())
    return svi.step(torch.randn(5, 2))


@pytest.mark.parametrize("registered", [True, False])
def test_a_plain_elbo_on_a_learnable_site_warns(registered):
    energy = MLP((2,), (8,))
    model = learnable_site(energy)

    def registering(x):
        pyro.module("energy", energy)
        model(x)

    with pytest.warns(
        UserWarning, match="site 'x' has an unnormalised, learnable energy"
    ) as caught:
        step(registering if registered else model)
    assert "loss=pyro_ebm.objectives.PersistentCD" in str(caught[0].message)


def test_a_plain_elbo_on_a_learnable_closure_warns():
    def model(x):
        b = pyro.param("b", tensor(1.0))
        with pyro.plate("data", len(x)):
            pyro.sample(
                "x", ebm.Boltzmann(lambda x: b * x.square().sum(-1), event_shape=(2,)), obs=x
            )

    with pytest.warns(UserWarning, match="site 'x' has an unnormalised, learnable energy"):
        step(model)


def test_a_plain_elbo_on_a_learnable_latent_warns():
    energy = MLP((2,), (8,))

    def model(x):
        pyro.module("energy", energy)
        pyro.sample("z", ebm.Boltzmann(energy))

    with pytest.warns(UserWarning, match="site 'z' has an unnormalised, learnable energy"):
        step(model, AutoNormal(model))


def test_a_plain_elbo_on_a_learnable_factor_warns():
    energy = MLP((2,), (8,))

    def model(x):
        pyro.module("energy", energy)
        ebm.energy_factor("f", energy, x.mean(0))

    with pytest.warns(UserWarning, match="factor 'f' has a learnable energy"):
        step(model)


@pytest.mark.parametrize(
    "energy",
    [
        lambda: MLP((2,), (8,)).requires_grad_(False),
        lambda: Gaussian(nn.Parameter(torch.zeros(2)), 1.0),
    ],
    ids=["frozen", "normalized"],
)
def test_a_sound_elbo_does_not_warn(energy):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        step(learnable_site(energy()))


def test_a_fixed_prior_with_trainable_parameters_does_not_warn():
    energy = MLP((2,), (8,))

    def model(x):
        z = pyro.sample("z", ebm.Boltzmann(energy))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        step(model, AutoNormal(model))


def test_objectives_do_not_warn():
    objective = ebm.objectives.PersistentCD(ebm.kernels.ULA(step_size=0.01), num_chains=8)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        step(learnable_site(MLP((2,), (8,))), loss=objective)


def observed_depends_on_latent():
    b = pyro.sample("b", dist.LogNormal(0.0, 1.0))
    pyro.sample(
        "x", ebm.Boltzmann(lambda x: b * x.square().sum(-1), event_shape=(2,)), obs=torch.ones(2)
    )


def latent_depends_on_latent():
    b = pyro.sample("b", dist.LogNormal(0.0, 1.0))
    pyro.sample("x", ebm.Boltzmann(lambda x: b * x.square().sum(-1), event_shape=(2,)))


def trained_energy_depends_on_latent():
    b = pyro.sample("b", dist.LogNormal(0.0, 1.0))
    net = MLP((2,), (4,))
    pyro.sample("x", ebm.Boltzmann(lambda x: b * net(x), event_shape=(2,)), obs=torch.ones(2))


DRIVERS = {
    "our MALA": lambda m: ebm.MCMC(ebm.kernels.MALA(m), 3, 3, disable_progbar=True).run(),
    "our HMC": lambda m: ebm.MCMC(ebm.kernels.HMC(m), 3, 3, disable_progbar=True).run(),
    "our kernel in Pyro's driver": lambda m: MCMC(ebm.kernels.MALA(m), 3, 3).run(),
    "stock NUTS": lambda m: MCMC(NUTS(m), 3, 3).run(),
    "stock HMC": lambda m: MCMC(HMC(m), 3, 3).run(),
}


@pytest.mark.parametrize("driver", DRIVERS)
@pytest.mark.parametrize(
    "model",
    [observed_depends_on_latent, latent_depends_on_latent, trained_energy_depends_on_latent],
)
def test_mcmc_over_what_log_z_depends_on_is_refused(model, driver):
    with pytest.raises(
        ValueError, match=r"energy of site 'x' depends on latent site\(s\) 'b'"
    ) as e:
        DRIVERS[driver](model)
    assert "log_z=" in str(e.value)
    assert "energy_factor" in str(e.value)
    assert "pyro_ebm.kernels.Exchange" in str(e.value)


def test_mcmc_with_the_exact_log_z_is_served_and_right():
    x = 0.7 * torch.randn(200)

    def model():
        b = pyro.sample("b", dist.Exponential(1.0))
        log_z = 0.5 * (2 * torch.pi / b).log()
        p = ebm.Boltzmann(lambda x: 0.5 * b * x.square(), event_shape=(), log_z=log_z)
        with pyro.plate("data", len(x)):
            pyro.sample("x", p, obs=x)

    # Conjugate: b | x ~ Gamma(1 + n/2, 1 + sum x^2 / 2)
    posterior = dist.Gamma(1 + len(x) / 2, 1 + x.square().sum() / 2)
    mcmc = ebm.MCMC(ebm.kernels.MALA(model), 60, 100, num_chains=100, disable_progbar=True)
    mcmc.run()
    assert_chain_mean(mcmc.get_samples(group_by_chain=True)["b"], posterior.mean)


def test_a_factor_over_latents_is_a_soft_constraint_and_passes():
    def model():
        b = pyro.sample("b", dist.LogNormal(0.0, 1.0))
        ebm.energy_factor("f", lambda b: b.square(), b)

    for driver in DRIVERS.values():
        driver(model)


class Dropping(Energy):
    def __init__(self, layer):
        super().__init__((2,))
        self.layer = layer

    def forward(self, x):
        return self.layer(x).square().sum(-1)


@pytest.mark.parametrize("layer", [lambda: nn.Dropout(0.5), lambda: nn.BatchNorm1d(2)])
@pytest.mark.parametrize("where", ["kernel", "objective"])
def test_layers_in_train_mode_are_refused(layer, where):
    energy = Dropping(layer())
    boltzmann = ebm.Boltzmann(energy)
    objective = ebm.objectives.DenoisingScoreMatching(0.1)
    use = {
        "kernel": lambda: ebm.MCMC(ebm.kernels.MALA(boltzmann), 3, 3, disable_progbar=True).run(),
        "objective": lambda: objective.surrogate(boltzmann, torch.randn(4, 2)),
    }[where]
    with pytest.raises(ValueError, match=rf"\({type(energy.layer).__name__}\) in train mode"):
        use()
    energy.eval()
    use()


BROKEN = {
    "shape": (
        lambda x: x[..., :1].square(),
        r"to shape \(\d,\), one number of nats per point, "
        "got",
    ),
    "dtype": (lambda x: x.square().sum(-1).float(), "must keep dtype and device of x"),
    "detached": (lambda x: x.detach().square().sum(-1), "not differentiable in x"),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_an_energy_that_breaks_its_contract_is_refused_at_the_edge(fault):
    fn, message = BROKEN[fault]

    class Broken(Energy):
        def forward(self, x):
            return fn(x)

    boltzmann = ebm.Boltzmann(Broken((2,)))
    with pytest.raises(ValueError, match=message):
        ebm.MCMC(ebm.kernels.MALA(boltzmann), 3, 3, disable_progbar=True).run()
    with pytest.raises(ValueError, match=message):
        ebm.objectives.DenoisingScoreMatching(0.1).surrogate(boltzmann, torch.randn(4, 2))


def test_a_discrete_latent_is_refused_by_continuous_kernels():
    def model():
        pyro.sample("k", dist.Poisson(3.0))

    with pytest.raises((ValueError, NotImplementedError), match=r"discrete|integer|support"):
        ebm.MCMC(ebm.kernels.HMC(model), 3, 3, disable_progbar=True).run()
