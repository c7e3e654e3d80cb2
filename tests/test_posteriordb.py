"""Real posteriors with exact means: each mean within 4 of its standard errors."""

import pyro.infer
import pytest
import torch
from posteriordb import MODELS, posterior

import pyro_ebm as ebm
from pyro_ebm.diagnostics import bulk_ess, split_r_hat
from pyro_ebm.kernels import HMC, MALA
from pyro_ebm.potential import Potential

NUM_SIGMAS = 4  # the gate of posteriordb itself
LARGEST_R_HAT = 1.01

NUM_LEAPFROGS = {"eight_schools": 8, "kidscore_momiq": 20, "arK": 12, "logmesquite_logvolume": 8}
"""About half a turn along the widest direction; in kidscore_momiq that is a narrow ridge."""

QUICK = ["eight_schools", "arK", "logmesquite_logvolume"]


def slow_unless(quick, names=tuple(MODELS)):
    """All names, those beyond ``quick`` marked slow."""
    marks = {True: (), False: pytest.mark.slow}
    return [pytest.param(name, marks=marks[name in quick]) for name in names]


def assert_means(target, draws):
    """Gates the means of ``(chain, draw, parameter)``, but first that the chains have mixed."""
    r_hat, ess = split_r_hat(draws), bulk_ess(draws)
    assert bool((r_hat < LARGEST_R_HAT).all()), f"R-hat {r_hat.tolist()}"
    flat = draws.flatten(0, 1)
    z = (flat.mean(0) - target.mean) / (flat.std(0) / ess.sqrt())
    assert bool((z.abs() < NUM_SIGMAS).all()), f"z = {z.tolist()}, ESS = {ess.tolist()}"


def draw(target, kernel, num_samples, warmup_steps, num_chains):
    mcmc = ebm.MCMC(kernel, num_samples, warmup_steps, num_chains, disable_progbar=True)
    mcmc.run()
    return target.columns(mcmc.get_samples(group_by_chain=True))


@pytest.mark.parametrize("name", slow_unless(QUICK))
def test_hmc_finds_the_means(name):
    target = posterior(name)
    kernel = HMC(target.model, num_steps=NUM_LEAPFROGS[name])
    assert_means(target, draw(target, kernel, num_samples=400, warmup_steps=200, num_chains=24))


@pytest.mark.parametrize(
    "name", slow_unless(["logmesquite_logvolume"], ["logmesquite_logvolume", "eight_schools"])
)
def test_mala_finds_the_means_where_no_ridge_is_narrow(name):
    target = posterior(name)
    draws = draw(target, MALA(target.model), num_samples=2000, warmup_steps=600, num_chains=32)
    assert_means(target, draws)


@pytest.mark.parametrize("name", slow_unless(["logmesquite_logvolume"]))
def test_stock_nuts_finds_the_means(name):
    target = posterior(name)
    kernel = pyro.infer.NUTS(
        target.model, jit_compile=True, ignore_jit_warnings=True, full_mass=True
    )
    mcmc = pyro.infer.MCMC(kernel, num_samples=500, warmup_steps=300, disable_progbar=True)
    mcmc.run()
    assert_means(target, target.columns(mcmc.get_samples(group_by_chain=True)))


@pytest.mark.parametrize("name", MODELS)
def test_our_potential_is_that_of_pyro(name):
    """One density through both: the Jacobian of every constrained site included."""
    target = posterior(name)
    ours = Potential.of(target.model)
    z = ours.initialize(3)
    _, pyros, _, _ = pyro.infer.mcmc.util.initialize_model(target.model)
    expected = torch.stack([pyros(values) for values in _rows(ours.unflatten(z))])
    torch.testing.assert_close(ours.value_and_grad(z)[0], expected)


def _rows(values):
    return [{k: v[i] for k, v in values.items()} for i in range(3)]
