"""The estimator that suits a target, and the evidence of a Pyro model."""

from __future__ import annotations

__all__ = ["estimate", "evidence"]

from collections.abc import Callable

from torch.distributions import biject_to

from ..distributions import Boltzmann
from ..potential import Model
from .annealing import ais
from .base import LogZ
from .exact import known
from .integration import quadrature
from .plan import Plan, plan
from .smc import smc


def estimate(target: Boltzmann | Plan) -> LogZ:
    r"""Estimates log Z by the cheapest estimator that suits the target.

    ========================================  ==================================================
    the target                                the estimator
    ========================================  ==================================================
    log Z is known, or a sum over few         :func:`~pyro_ebm.logz.exact`
    up to three unconstrained dimensions      :func:`~pyro_ebm.logz.quadrature`, unless the
                                              density is too sharp for its grid
    a discrete support                        :func:`~pyro_ebm.logz.ais`, with its bracket:
                                              sweeps are cheap, and many rungs serve them best
    else, and of a :func:`plan`               :func:`~pyro_ebm.logz.smc`, with its bracket
    ========================================  ==================================================

    Args:
        target: A Boltzmann distribution without a batch, or a :func:`~pyro_ebm.logz.plan`.

    Returns:
        The estimate; ``method`` says which estimator it is of.

    Warns:
        UserWarning: If the bracket does not close.

    Raises:
        ValueError: If the distribution has a batch, and whatever
            :func:`~pyro_ebm.logz.plan` raises.

    Example:
        >>> import torch, pyro_ebm as ebm
        >>> energy = ebm.energies.Gaussian(torch.zeros(2), 1.0)
        >>> print(estimate(ebm.Boltzmann(energy)))
        log Z = 1.838 ± 0.000 nats, in [1.838, 1.838], ESS inf
        >>> estimate(ebm.Boltzmann(energy, temperature=2.0)).method
        'quadrature'
    """
    if isinstance(target, Plan):
        return smc(target)
    found = known(target)
    if found is not None:
        return found
    if target.support.is_discrete:
        return ais(target)
    shape = biject_to(target.support).inverse_shape(target.event_shape)
    if 1 <= shape.numel() <= 3:
        try:
            return quadrature(target)
        except ValueError:
            pass  # too sharp for its grid; walkers find it
    return smc(target)


def evidence(
    model: Model,
    *args: object,
    estimator: Callable[[Plan], LogZ] = smc,
    **kwargs: object,
) -> LogZ:
    r"""Estimates the marginal likelihood of a Pyro model: the log evidence of its observations.

    .. math:: \log p(y) = \log \int p(y \mid \theta) \, p(\theta) \, d\theta

    over all continuous latents, in unconstrained space with the Jacobian; discrete ones that Pyro
    enumerates are summed over. All constants count: sites are normalised as their distributions
    are, and an improper prior (``ImproperUniform``, ``mask(False)``) or a factor adds what it is,
    so that evidences with one compare with nothing else. Compare two models of the same
    observations by the difference of their log evidences, whose error is that of both.

    Args:
        model: The model, with its observations in it or given as arguments.
        args: What the model takes.
        estimator: From a plan to log Z: :func:`~pyro_ebm.logz.smc` or another of this namespace,
            or ``functools.partial`` of it.
        kwargs: What the model takes by name.

    Returns:
        The log evidence.

    Warns:
        UserWarning: If the bracket does not close.

    Raises:
        ValueError: If the model has no continuous latent, a subsampled plate, or a log Z that
            depends on its latents.

    Example:
        >>> import torch, pyro, pyro.distributions as dist
        >>> pyro.set_rng_seed(0)
        >>> def model(y):
        ...     mean = pyro.sample("mean", dist.Normal(0.0, 2.0))
        ...     with pyro.plate("data", len(y)):
        ...         pyro.sample("y", dist.Normal(mean, 1.0), obs=y)
        >>> y = torch.tensor([0.5, 1.5, 0.8])
        >>> exact = dist.MultivariateNormal(torch.zeros(3), torch.eye(3) + 4.0).log_prob(y).item()
        >>> z = evidence(model, y)
        >>> abs(z.value - exact) < 4 * z.std_error
        True
    """
    return estimator(plan(model, args, kwargs))
