"""The targets as log densities in JAX, over the flat unconstrained vector of our potential.

Sites lie in it in the order of their names. A positive value is the exponential of its coordinate,
a point of the simplex of two is (s, 1 - s) with s its sigmoid.
"""

import jax
import jax.numpy as jnp
from jax.nn import log_sigmoid, softplus
from jax.scipy.special import logsumexp

from benchmarks.observations import observations


def normal(x, mean, scale):
    return jnp.sum(-0.5 * ((x - mean) / scale) ** 2 - jnp.log(scale))


def half_cauchy(log_x, scale):
    return log_x - jnp.log1p((jnp.exp(log_x) / scale) ** 2)


def eight_schools(z, y, sigma):
    eta, mu, log_tau = z[:8], z[8], z[9]
    likelihood = normal(y, mu + jnp.exp(log_tau) * eta, sigma)
    return normal(eta, 0, 1) + normal(mu, 0, 5) + half_cauchy(log_tau, 5) + likelihood


def logistic(z, x, y):
    bias, weights = z[0], z[1:]
    logits = bias + x @ weights
    return normal(bias, 0, 2.5) + normal(weights, 0, 1) + jnp.sum(y * logits - softplus(logits))


def gaussian_axis(z, precision):
    return -0.5 * jnp.sum(precision * z * z)


def gaussian_rotated(z, precision):
    return -0.5 * z @ precision @ z


def banana(z):
    return -0.5 * ((z[0] / 10) ** 2 + (z[1] - 0.03 * (z[0] ** 2 - 100)) ** 2)


def funnel(z):
    return normal(z[:9], 0, 1) + normal(z[9], 0, 3)


def gp_pois_regr(z, x, k):
    log_alpha, f_tilde, log_rho = z[0], z[1:12], z[12]
    alpha, rho = jnp.exp(log_alpha), jnp.exp(log_rho)
    covariance = alpha**2 * jnp.exp(-0.5 * ((x[:, None] - x) / rho) ** 2)
    f = jnp.linalg.cholesky(covariance + 1e-10 * jnp.eye(len(x))) @ f_tilde
    priors = normal(f_tilde, 0, 1) + 25 * log_rho - 4 * rho + log_alpha - alpha**2 / 8
    return priors + jnp.sum(k * f - jnp.exp(f))


def hmm_example(z, y):
    mu = jnp.exp(jnp.array([z[0], z[0] + jnp.exp(z[1])]))
    log_theta = jnp.stack([log_sigmoid(z[2:]), log_sigmoid(-z[2:])], axis=-1)
    emission = -0.5 * (y[:, None] - mu) ** 2

    def forward(last, now):
        return logsumexp(last[:, None] + log_theta, axis=0) + now, None

    likelihood = logsumexp(jax.lax.scan(forward, emission[0], emission[1:])[0])
    jacobian = z[1] + jnp.sum(jnp.log(mu)) + jnp.sum(log_theta)
    return normal(mu, jnp.array([3, 10]), 1) + likelihood + jacobian


def ark(z, y):
    alpha, beta, log_sigma = z[0], z[1:6], z[6]
    past = jnp.stack([y[4 - k : len(y) - 1 - k] for k in range(5)], axis=-1)
    likelihood = normal(y[5:], alpha + past @ beta, jnp.exp(log_sigma))
    return normal(alpha, 0, 10) + normal(beta, 0, 10) + half_cauchy(log_sigma, 2.5) + likelihood


DENSITIES = {
    "eight_schools": eight_schools,
    "arK": ark,
    "hmm_example": hmm_example,
    "gp_pois_regr": gp_pois_regr,
    "logistic": logistic,
    "banana": banana,
    "funnel": funnel,
    "gaussian_axis": gaussian_axis,
    "gaussian_rotated": gaussian_rotated,
}


def log_density_of(name, dtype):
    """Returns a function from the flat vector to the log density up to a constant."""
    jax.config.update("jax_enable_x64", dtype == "float64")
    data = {key: jnp.asarray(value, dtype) for key, value in observations(name).items()}
    return lambda z: DENSITIES[name](z, **data)
