r"""Contrastive divergence with the term that is usually left out: how chains follow the energy."""

from __future__ import annotations

__all__ = ["ImprovedCD"]

import torch
from pyro.infer import ELBO
from torch import Tensor

from ..arguments import check_at_least
from ..distributions import Boltzmann
from ..energies.base import module_of
from ..kernels.langevin import ULA
from ..kernels.transition import Info, normal_like
from ..potential import Potential, unconstrained_log_density
from .base import SECOND_DERIVATIVE
from .chains import Contrastive, End, unconstrained_data


class ImprovedCD(Contrastive):
    r"""Improved contrastive divergence: CD-k, and chains that are pulled towards the model.

    .. math::
        \hat\ell(x) = -U_\theta(z) + U_\theta(\bar z_k)
        - w \left( U_{\bar\theta}(z_k) - D \log |z_k - z_k'| \right), \qquad
        z_k = \bar z_{k-1} - \eta \nabla U_\theta(\bar z_{k-1}) + \sqrt{2 \eta} \, \xi

    where a bar stops the gradient, :math:`z` are the data and :math:`z_k` their chains after k
    steps, in unconstrained space, and :math:`z_k'` is the nearest other chain. The bracket
    estimates, up to a constant, :math:`\mathrm{KL}(q \,\|\, p_{\bar\theta})` of the law q of the
    chains: their energy, minus their entropy by nearest neighbours. Its gradient moves the
    parameters through the last step of the chains alone, with the energy itself held fixed, so as
    to make that step a better sampler. It keeps the energy from running away where chains go.

    **Biased**, as contrastive divergence is. On :math:`\mathcal{N}(0, v I)` in D dimensions with
    precision :math:`\lambda` its mean gradient is :math:`\tfrac{D}{2} (v_k - v) + w \eta a D
    v_{k-1} (\lambda - 1/v_k)`, where :math:`a = 1 - \eta \lambda` and :math:`v_j` is the variance
    after j steps. As the authors do, it *adds* the divergence to the loss; the exact gradient of
    Hinton's difference of two divergences would subtract it. The entropy needs distinct chains,
    and is noisy in one and two dimensions. Its value is no measure of progress.

    References:
        | Improved contrastive divergence training of energy-based models (Du, Li, Tenenbaum and
        | Mordatch, 2021), https://arxiv.org/abs/2012.01316

    Args:
        kernel: :class:`~pyro_ebm.kernels.ULA`, without a target.
        num_steps: The number of steps k.
        kl_weight: The weight w of the divergence.
        elbo: The ELBO that takes care of the rest of a model.

    Raises:
        ValueError: If ``kernel`` is another, ``num_steps`` not positive or ``kl_weight`` negative;
            in use, if there are fewer than two data or these are not finite, or if the energy is
            conditional or breaks its contract.

    Example:
        >>> import pyro_ebm as ebm
        >>> objective = ImprovedCD(ebm.kernels.ULA(step_size=0.1), num_steps=5)
        >>> p = ebm.Boltzmann(ebm.energies.MLP(event_shape=(2,)))
        >>> objective.surrogate(p, torch.randn(7, 2)).shape
        torch.Size([7])
    """

    def __init__(
        self,
        kernel: ULA,
        num_steps: int = 1,
        kl_weight: float = 1.0,
        elbo: ELBO | None = None,
    ) -> None:
        super().__init__(kernel, num_steps, elbo)
        if not isinstance(kernel, ULA):
            raise ValueError(
                "ImprovedCD differentiates a Langevin step: kernel must be ULA, got "
                f"{type(kernel).__name__}"
            )
        check_at_least("kl_weight", kl_weight, 0)
        self.kl_weight = kl_weight

    def why_not_divided(self) -> str:  # noqa: D102
        return SECOND_DERIVATIVE

    def surrogate(self, boltzmann: Boltzmann, x: Tensor, name: str = "x") -> Tensor:  # noqa: D102
        self.check(boltzmann, x, name)
        self._check_one_law(boltzmann, x, name)
        batch_shape = x.shape[: x.dim() - len(boltzmann.event_shape)]
        potential = Potential.of_batch(boltzmann, batch_shape, x)
        z = self._last_step(boltzmann, potential, unconstrained_data(boltzmann, x), name)
        value, grad = potential.value_and_grad(z.detach())
        self.last_info[name] = Info(diverging=~value.isfinite())
        x_neg = potential.constrain(z.detach())["x"].reshape(x.shape)
        # The gradient of U at the chains, but not in the parameters behind U.
        energy = value + (grad * (z - z.detach())).sum(-1)
        divergence = (energy - _log_spacing(z)).reshape(batch_shape)
        contrast = boltzmann.log_density(x) - boltzmann.log_density(x_neg)
        return contrast - self.kl_weight * divergence

    def _last_step(
        self, boltzmann: Boltzmann, potential: Potential, z: Tensor, name: str
    ) -> Tensor:
        """Makes the steps, and keeps how the last of them depends on the parameters."""

        def at(z: Tensor) -> tuple[Tensor, Tensor]:
            z = z.detach().requires_grad_()
            u = potential.unflatten(z)["x"]
            return z, unconstrained_log_density(boltzmann.expand(()), u)

        early = End(z)
        if self.num_steps > 1:
            early = self.walk(potential, z, self.num_steps - 1, name)
        eta = self.kernel.step_size
        with torch.enable_grad():
            _, (z, log_density) = self.settle(early, at, name)
            (score,) = torch.autograd.grad(log_density.sum(), z, create_graph=True)
        noise = normal_like(z.detach(), self.generator(z.device))
        return z.detach() + eta * score + (2 * eta) ** 0.5 * noise

    def _check_one_law(self, boltzmann: Boltzmann, x: Tensor, name: str) -> None:
        module = module_of(boltzmann.energy)
        if module is not None and module is not boltzmann.energy:
            raise ValueError(
                "ImprovedCD compares the chains of one law with one another, and the energy of "
                f"site '{name}' is conditional (functools.partial); use ContrastiveDivergence"
            )
        if x.numel() == boltzmann.event_shape.numel():
            raise ValueError(
                f"ImprovedCD measures the distances of chains, and site '{name}' has one datum"
            )


def _log_spacing(z: Tensor) -> Tensor:
    r"""Returns :math:`D \log |z - z'|` with the nearest other of some points ``(n, D)``."""
    with torch.no_grad():
        distance = torch.cdist(z, z).fill_diagonal_(torch.inf)
        nearest = distance.argmin(-1)
    return z.shape[1] * (z - z[nearest]).norm(dim=-1).log()
