"""Real posteriors with known moments: means within 4 standard errors, sds within 10 %.

All run in float64, as every test does. Only gp_pois_regr needs it: its jitter of 1e-10 is below
the resolution of float32, in which the covariance cannot be factorized at a third of the points
near the mode, and the others have an error of half a nat; elsewhere float32 errs by under 2e-4.
"""

import pyro.infer
import pytest
import torch
from posteriordb import KERNELS, MODELS, compare, data_of, posterior, sample
from pyro.infer.autoguide.initialization import init_to_value

from pyro_ebm.diagnostics import bulk_ess
from pyro_ebm.kernels import HMC, MALA
from pyro_ebm.potential import Potential

QUICK = {("eight_schools", "default"), ("logmesquite_logvolume", "default")}
"""The runs of less than 8 seconds on one core."""

RUNS = [(name, kernel) for name in MODELS for kernel in KERNELS]

STICKS = {("gp_pois_regr", "NUTS"): "one draw in 54 diverges in the neck: R-hat is 1.06"}
"""Runs that find the moments, by chains that have not mixed."""

NUM_LEAPFROGS = {"eight_schools": 8, "kidscore_momiq": 20, "arK": 12, "logmesquite_logvolume": 8}
"""About half a turn along the widest direction; in kidscore_momiq that is a narrow ridge."""


def slow_unless(quick, cases):
    """All cases, those beyond ``quick`` marked slow."""
    found = []
    for case in cases:
        marks = [] if case in quick else [pytest.mark.slow]
        marks += [pytest.mark.xfail(reason=STICKS[case], strict=True)] if case in STICKS else []
        found.append(pytest.param(case, marks=marks, id=_id(case)))
    return found


def _id(case):
    return case if isinstance(case, str) else "-".join(case)


def assert_passed(outcome):
    assert outcome.passed, f"{outcome}\n{outcome!r}"


@pytest.mark.parametrize("run", slow_unless(QUICK, RUNS))
def test_finds_the_moments_with_nothing_tuned_by_hand(run):
    name, kernel = run
    target = posterior(name)
    assert_passed(sample(target, KERNELS[kernel](target.model)))


@pytest.mark.parametrize("name", slow_unless({"eight_schools"}, NUM_LEAPFROGS))
def test_hmc_of_a_given_length_finds_the_moments(name):
    target = posterior(name)
    assert_passed(sample(target, HMC(target.model, num_steps=NUM_LEAPFROGS[name])))


@pytest.mark.parametrize(
    "name", slow_unless({"logmesquite_logvolume"}, ["logmesquite_logvolume", "eight_schools"])
)
def test_mala_finds_the_moments_where_no_ridge_is_narrow(name):
    target = posterior(name)
    assert_passed(sample(target, MALA(target.model), num_samples=2000, warmup_steps=600))


@pytest.mark.parametrize("name", slow_unless({"logmesquite_logvolume"}, NUM_LEAPFROGS))
def test_stock_nuts_finds_the_moments(name):
    """The references and the columns, judged by a sampler that is not ours."""
    target = posterior(name)
    kernel = pyro.infer.NUTS(
        target.model, jit_compile=True, ignore_jit_warnings=True, full_mass=True
    )
    mcmc = pyro.infer.MCMC(kernel, num_samples=500, warmup_steps=300, disable_progbar=True)
    mcmc.run()
    draws = target.columns(mcmc.get_samples(group_by_chain=True))
    outcome = compare(target, draws)
    square = (draws - draws.mean((0, 1))).square()
    of_variance = square.flatten(0, 1).std(0) / bulk_ess(square).sqrt()
    of_sd = of_variance / (2 * square.mean((0, 1)))  # relative, of so short a run
    assert (outcome.r_hat < 1.01).all(), outcome
    assert (outcome.z.abs() < 4).all(), outcome
    assert ((outcome.sd_ratio - 1).abs() < 5 * of_sd).all(), outcome


def near_the_mode(potential, num_points):
    """Points that stay within a standard deviation or so along each axis, so that each term of a
    density weighs enough in its differences to be seen."""
    mode = potential.initialize(1)
    optimizer = torch.optim.LBFGS([mode], max_iter=2000, line_search_fn="strong_wolfe")

    def closure():
        value, mode.grad = potential.value_and_grad(mode)
        return value.sum()

    optimizer.step(closure)
    shift = 1e-4 * torch.eye(potential.dim)
    rise = potential.value_and_grad(mode + shift)[1] - potential.value_and_grad(mode - shift)[1]
    scale = (rise.diagonal() / 2e-4).abs().rsqrt()
    return mode + scale * torch.randn(num_points, potential.dim)


@pytest.mark.parametrize("name", MODELS)
def test_our_potential_is_that_of_pyro(name):
    """One density through both: the Jacobian of every constrained site included."""
    target = posterior(name)
    ours = Potential.of(target.model)
    z = near_the_mode(ours, 3)
    start = {site: value[0] for site, value in ours.constrain(z).items()}
    _, pyros, _, _ = pyro.infer.mcmc.util.initialize_model(
        target.model, init_strategy=init_to_value(values=start), max_plate_nesting=1
    )
    expected = torch.stack([pyros(values) for values in _rows(ours.unflatten(z))])
    torch.testing.assert_close(ours.value_and_grad(z)[0], expected)


def _rows(values):
    num_rows = len(next(iter(values.values())))
    return [{name: value[i] for name, value in values.items()} for i in range(num_rows)]


@pytest.mark.parametrize("name", MODELS)
def test_our_potential_is_that_of_the_stan_code(name):
    """Up to a constant, the log density written out by hand, with the Jacobian by autograd."""
    potential = Potential.of(posterior(name).model)
    z = near_the_mode(potential, 4)

    def log_density(row):
        def free(row):
            values = potential.constrain(row)
            return torch.cat(
                [values[s.name].flatten()[: s.shape.numel()] for s in potential.sites]
            )

        jacobian = torch.autograd.functional.jacobian(free, row)
        density = STAN[name](potential.constrain(row), **data_of(name))
        return density + jacobian.slogdet().logabsdet

    expected = -torch.stack([log_density(row) for row in z])
    found = potential.value_and_grad(z)[0]
    torch.testing.assert_close(found - found[0], expected - expected[0])


def normal(x, mean, sd):
    return (-0.5 * ((x - mean) / sd) ** 2 - torch.as_tensor(sd).log()).expand_as(x).sum()


def cauchy(x, scale):
    return -(1 + (x / scale) ** 2).log()


def stan_eight_schools(v, y, sigma):
    prior = normal(v["eta"], 0, 1) + normal(v["mu"], 0, 5) + cauchy(v["tau"], 5)
    return prior + normal(y, v["eta"] * v["tau"] + v["mu"], sigma)


def stan_kidscore_momiq(v, kid_score, mom_iq, mom_hs):
    mean = v["beta"][0] + v["beta"][1] * mom_iq
    return cauchy(v["sigma"], 2.5) + normal(kid_score, mean, v["sigma"])


def stan_kidscore_interaction(v, kid_score, mom_iq, mom_hs):
    b = v["beta"]
    mean = b[0] + b[1] * mom_hs + b[2] * mom_iq + b[3] * mom_hs * mom_iq
    return cauchy(v["sigma"], 2.5) + normal(kid_score, mean, v["sigma"])


def stan_logmesquite_logvolume(v, weight, diam1, diam2, canopy_height):
    mean = v["beta"][0] + v["beta"][1] * (diam1 * diam2 * canopy_height).log()
    return normal(weight.log(), mean, v["sigma"])


def stan_logearn_height_male(v, earn, height, male):
    mean = v["beta"][0] + v["beta"][1] * height + v["beta"][2] * male
    return normal(earn.log(), mean, v["sigma"])


def stan_ark(v, y):
    prior = normal(v["alpha"], 0, 10) + normal(v["beta"], 0, 10) + cauchy(v["sigma"], 2.5)
    for t in range(5, len(y)):
        mean = v["alpha"] + sum(v["beta"][k] * y[t - 1 - k] for k in range(5))
        prior = prior + normal(y[t], mean, v["sigma"])
    return prior


def stan_blr(v, X, y):
    prior = normal(v["beta"], 0, 10) + normal(v["sigma"], 0, 10)
    return prior + normal(y, X @ v["beta"], v["sigma"])


def stan_kilpisjarvi(v, x, y, pmualpha, psalpha, pmubeta, psbeta):
    prior = normal(v["alpha"], pmualpha, psalpha) + normal(v["beta"], pmubeta, psbeta)
    return prior + normal(y, v["alpha"] + v["beta"] * x, v["sigma"])


def stan_gp_pois_regr(v, x, k):
    gamma = 24 * v["rho"].log() - 4 * v["rho"]
    prior = gamma + normal(v["alpha"], 0, 2) + normal(v["f_tilde"], 0, 1)
    distance = torch.cdist(x.unsqueeze(-1), x.unsqueeze(-1))
    covariance = v["alpha"] ** 2 * (-(distance**2) / (2 * v["rho"] ** 2)).exp()
    f = torch.linalg.cholesky(covariance + 1e-10 * torch.eye(len(x))) @ v["f_tilde"]
    return prior + (k * f - f.exp()).sum()


def stan_hmm_example(v, y):
    theta = torch.stack([v["theta1"], v["theta2"]])
    prior = normal(v["mu"][0], 3, 1) + normal(v["mu"][1], 10, 1)
    emission = -0.5 * (y.unsqueeze(-1) - v["mu"]) ** 2
    gamma = emission[0]
    for t in range(1, len(y)):
        gamma = (gamma.unsqueeze(-1) + theta.log()).logsumexp(0) + emission[t]
    return prior + gamma.logsumexp(0)


def stan_low_dim_gauss_mix(v, y):
    mu, sigma, theta = v["mu"], v["sigma"], v["theta"]
    prior = normal(mu, 0, 2) + normal(sigma, 0, 2) + 4 * theta.log() + 4 * (1 - theta).log()
    parts = [-0.5 * ((y - mu[i]) / sigma[i]) ** 2 - sigma[i].log() for i in range(2)]
    return prior + torch.logaddexp(theta.log() + parts[0], (1 - theta).log() + parts[1]).sum()


STAN = {
    "eight_schools": stan_eight_schools,
    "kidscore_momiq": stan_kidscore_momiq,
    "kidscore_interaction": stan_kidscore_interaction,
    "logmesquite_logvolume": stan_logmesquite_logvolume,
    "logearn_height_male": stan_logearn_height_male,
    "arK": stan_ark,
    "blr": stan_blr,
    "kilpisjarvi": stan_kilpisjarvi,
    "gp_pois_regr": stan_gp_pois_regr,
    "hmm_example": stan_hmm_example,
    "low_dim_gauss_mix": stan_low_dim_gauss_mix,
}
