r"""Maximum likelihood, where log Z is a sum that a machine can do.

.. math::
    \nabla_\theta \log p_\theta(x)
    = -\nabla_\theta E_\theta(x) + \mathbb{E}_{p_\theta}[\nabla_\theta E_\theta]

Every other objective stands in for this one; here nothing does.
"""

from __future__ import annotations

__all__ = ["MaximumLikelihood"]

import torch
from pyro.infer import ELBO
from torch import Tensor, nn
from torch.distributions import biject_to

from ..arguments import check_positive
from ..distributions import Boltzmann
from ..energies.enumeration import MAX_POINTS
from ..summation import enumerate_support, fit_grid, log_z_of_grid
from .base import LIKELIHOOD, Objective


class MaximumLikelihood(Objective):
    r"""Maximum likelihood, exactly: log Z is known or summed up, and differentiated.

    .. math:: \hat\ell(x) = \log p_\theta(x) = -E_\theta(x)/T - \log Z_\theta

    Log Z is the energy's own where that is known. Else it is a sum over all points of a discrete
    support (booleans, integers of an interval, one-hot vectors, or tensors of these: at most four
    million points), or, in one to three unconstrained dimensions, over a grid that is fitted anew
    at each call as :func:`pyro_ebm.logz.quadrature` does: exact to ``tol`` for a smooth density
    whose mass the first grid sees.

    **Unbiased, and its value means something**: it is the log-likelihood itself, so that the loss
    can be watched, and compared with that of any other model. A conditional energy has a log Z for
    each datum; the limit of four million points is on all of them together.

    Args:
        half_width: Half the side of the first box in unconstrained space, in units of u.
        tol: The error of log Z, in nats, at which the grid is fine enough.
        elbo: The ELBO that takes care of the rest of a model.

    Raises:
        ValueError: If ``half_width`` or ``tol`` is not positive; in use, if data are empty, not
            finite or outside of the support, if the energy breaks its contract, or if the event is
            too large for a sum.

    Example:
        >>> import pyro_ebm as ebm
        >>> p = ebm.Boltzmann(lambda x: x.square() / 2, event_shape=())
        >>> MaximumLikelihood().surrogate(p, torch.zeros(1)).exp()
        tensor([0.3989])
    """

    serves_discrete = True
    loss_name = LIKELIHOOD

    def __init__(
        self, half_width: float = 50.0, tol: float = 1e-6, elbo: ELBO | None = None
    ) -> None:
        super().__init__(elbo)
        for name, value in (("half_width", half_width), ("tol", tol)):
            check_positive(name, value)
        self.half_width = half_width
        self.tol = tol

    def surrogate(self, boltzmann: Boltzmann, x: Tensor, name: str = "x") -> Tensor:  # noqa: D102
        self.check(boltzmann, x, name)
        log_density = boltzmann.log_density(x)
        if boltzmann.is_normalized and not boltzmann.sums_log_z:
            return log_density - boltzmann.log_z
        law = boltzmann.expand(() if _is_one_law(boltzmann, x) else log_density.shape)
        return log_density - self._log_z(law, x, name).to(log_density)

    def _log_z(self, law: Boltzmann, x: Tensor, name: str) -> Tensor:
        way_out = "give Boltzmann its log_z, or use another objective, such as PersistentCD"
        if not law.support.is_discrete:
            dim = biject_to(law.support).inverse_shape(law.event_shape).numel()
            if dim > 3:
                raise ValueError(
                    f"site '{name}' has {dim} unconstrained dimensions, and MaximumLikelihood "
                    f"integrates over at most 3: {way_out}"
                )
            grid, _ = fit_grid(law, x, self.half_width, self.tol)
            return log_z_of_grid(law, grid)
        try:
            points = enumerate_support(law, x)
        except ValueError as error:
            raise ValueError(f"site '{name}': {error}; {way_out}") from error
        batch = law.batch_shape
        if len(points) * batch.numel() > MAX_POINTS:
            raise ValueError(
                f"log Z of site '{name}' is a sum over {len(points)} points for each of "
                f"{batch.numel()} data, more than {MAX_POINTS} together; use smaller minibatches"
            )
        each = points.reshape(-1, *(1,) * len(batch), *law.event_shape)
        each = each.expand(len(points), *batch, *law.event_shape)
        return law.log_density(each).double().logsumexp(0)


def _is_one_law(boltzmann: Boltzmann, x: Tensor) -> bool:
    """Tells whether all data have one log Z: a single point then has a single energy."""
    if isinstance(boltzmann.temperature, Tensor) and boltzmann.temperature.numel() > 1:
        return False
    if isinstance(boltzmann.energy, nn.Module):
        return True
    batch_dim = x.dim() - len(boltzmann.event_shape)
    point = x.detach().reshape(-1, *boltzmann.event_shape)[:1]
    with torch.no_grad():
        try:
            energy = boltzmann.energy(point.reshape(*(1,) * batch_dim, *boltzmann.event_shape))
        except RuntimeError:
            return False  # what it is conditioned on does not fit a single point
    return energy.numel() == 1
