r"""Persistent chains with weights that make up for their lagging behind the energy."""

from __future__ import annotations

__all__ = ["Jarzynski"]

import math
from typing import Any

import pyro.distributions as dist
import torch
from pyro.infer import ELBO
from torch import Tensor

from ..arguments import check_between
from ..distributions import Boltzmann
from ..kernels.langevin import ULA
from ..kernels.resampling import systematic
from ..kernels.transition import Info, State, normal_like
from ..potential import Potential
from .base import LIKELIHOOD
from .chains import Persistent, unconstrained_data


class Jarzynski(Persistent):
    r"""Maximum likelihood by weighted persistent chains, with log Z along the way.

    .. math::
        \hat\ell(x) = -U_\theta(x) + \sum_c w_c U_\theta(z_c), \qquad w = \mathrm{softmax}(A)

    Chains move by unadjusted Langevin steps under the energy before the update, and carry the
    weights that the energy after it asks for:

    .. math::
        z_{k+1} &= z_k - h \nabla U_k(z_k) + \sqrt{2h} \, \xi \\
        A_{k+1} &= A_k + \alpha_k(z_k, z_{k+1}) - \alpha_{k+1}(z_{k+1}, z_k) \\
        \alpha_k(z, y) &= U_k(z) + \tfrac12 (y - z) \cdot \nabla U_k(z)
        + \tfrac{h}{4} |\nabla U_k(z)|^2

    Then :math:`\mathbb{E}[f(z_k) e^{A_k}] = Z_k \, \mathbb{E}_{p_k}[f]` for every step size, every
    schedule of parameters or temperature and any number of steps: weighted averages converge to
    those of the model as chains get many, and :math:`\mathbb{E}[e^{A_k}] = Z_k`, without bias.
    The weights move mass between modes that no chain crosses, which
    :class:`~pyro_ebm.objectives.PersistentCD` cannot. A ratio of averages is **biased** by the
    inverse of the effective number of chains: change parameters slowly enough that ``ess`` stays
    away from zero. Where it falls below ``ess_threshold`` the chains are resampled, and weights
    are equal again, with what they amounted to kept in ``log_z``.

    Chains begin as draws of ``start``, with importance weights. Without one they begin as Gaussian
    noise, in unconstrained space, with the mean and spread of the first batch, which suits few
    dimensions alone. A chain that reaches a non-finite energy loses its weight, and is counted in
    ``last_info``.

    The value of the surrogate is an estimate of the log-likelihood, with the estimate of log Z in
    it: a loss that can be watched, slightly optimistic where chains are few. An evaluation without
    gradients weighs the chains for the energy as it is and leaves them.

    References:
        | Efficient training of energy-based models using Jarzynski equality (Carbone, Hua, Coste
        | and Vanden-Eijnden, 2023), https://arxiv.org/abs/2305.19414

    Args:
        kernel: :class:`~pyro_ebm.kernels.ULA`, without a target; its step size is h.
        num_chains: The number of chains.
        num_steps: The number of steps per update.
        ess_threshold: The effective fraction of chains below which they are resampled.
        start: A normalised distribution of one point, near the energy as it is at first.
        elbo: The ELBO that takes care of the rest of a model.

    Raises:
        ValueError: If ``kernel`` is another, a count is not positive or ``ess_threshold`` not in
            [0, 1]; in use, if data are empty or not finite, if ``start`` is not over one point of
            the site, if the energy is conditional or breaks its contract, if one name is used for
            two energies, or if no chain has a finite energy.

    Example:
        >>> import pyro_ebm as ebm
        >>> objective = Jarzynski(ebm.kernels.ULA(step_size=0.1), num_chains=1000)
        >>> p = ebm.Boltzmann(ebm.energies.MLP(event_shape=(2,), base_scale=2.0))
        >>> (-objective.surrogate(p, torch.randn(7, 2)).mean()).backward()
        >>> objective.chains["x"].shape, objective.log_weights["x"].shape
        (torch.Size([1000, 2]), torch.Size([1000]))
    """

    loss_name = LIKELIHOOD
    of_chains = (*Persistent.of_chains, "log_weights", "_states")

    def __init__(
        self,
        kernel: ULA,
        num_chains: int,
        num_steps: int = 1,
        ess_threshold: float = 0.5,
        start: dist.TorchDistribution | None = None,
        elbo: ELBO | None = None,
    ) -> None:
        super().__init__(kernel, num_chains, num_steps, elbo)
        if not isinstance(kernel, ULA):
            raise ValueError(
                "the weights of Jarzynski are those of unadjusted Langevin steps: kernel must be "
                f"ULA, got {type(kernel).__name__}"
            )
        check_between("ess_threshold", ess_threshold, 0, 1, inside=False)
        if isinstance(start, Boltzmann) and not start.is_normalized:
            raise ValueError("start must be normalised: give the Boltzmann its log_z")
        self.ess_threshold = ess_threshold
        self.start = start
        self.log_weights: dict[str, Tensor] = {}
        """The log weights A of the chains of each site since they were last resampled, ``(C,)``;
        with ``chains`` they are a weighted sample of the energy at the last update."""
        self.log_z: dict[str, float] = {}
        """The estimate of log Z of each site, in nats, at the last update."""
        self.ess: dict[str, float] = {}
        """The effective number of chains of each site at the last update, before resampling."""
        self._states: dict[str, State] = {}
        self._offsets: dict[str, float] = {}

    def pooled(self, dicts: list[dict[str, Any]]) -> dict[str, Any]:
        """Puts weights of all ranks in relation to one another."""
        offsets, log_weights, log_z, ess = {}, {}, {}, {}
        for name in dicts[0]["log_weights"]:
            of_ranks = [one["_offsets"].get(name, 0.0) for one in dicts]
            offsets[name] = max(of_ranks)
            weights = [
                one["log_weights"][name] + (offset - offsets[name])
                for one, offset in zip(dicts, of_ranks, strict=True)
            ]
            log_weights[name] = torch.cat(weights)
            log_z[name] = offsets[name] + _log_mean_exp(log_weights[name], name)
            ess[name] = 1 / log_weights[name].softmax(0).square().sum().item()
        own = {"log_weights": log_weights, "_offsets": offsets, "log_z": log_z, "ess": ess}
        return super().pooled(dicts) | own

    def surrogate(self, boltzmann: Boltzmann, x: Tensor, name: str = "x") -> Tensor:  # noqa: D102
        self.check(boltzmann, x, name)
        self.check_owner(boltzmann, name)
        one = boltzmann.expand(())
        potential = Potential.of_batch(one, (self.num_chains,), x)
        if name not in self._states:
            state, log_weights = self._begin(one, potential, x, name)
        elif torch.is_grad_enabled():
            state, log_weights = self._walk(potential, name)
        else:
            state = self._states[name]
            value, _ = potential.value_and_grad(state.z)
            log_weights = self.log_weights[name] + state.potential.double() - value.double()
        weights = log_weights.softmax(0).to(x)
        log_z = self._offsets.get(name, 0.0) + _log_mean_exp(log_weights, name)
        if torch.is_grad_enabled() or name not in self._states:
            self.log_z[name] = log_z
            self._keep(state, log_weights, name)
        expected = (weights * one.log_density(potential.constrain(state.z)["x"])).sum()
        return boltzmann.log_density(x) - log_z - (expected - expected.detach())

    def _begin(
        self, one: Boltzmann, potential: Potential, x: Tensor, name: str
    ) -> tuple[State, Tensor]:
        """Draws the first chains, and their importance weights."""
        if self.start is None:
            z = self.fresh(one, unconstrained_data(one, x), self.num_chains, name)
            noise = torch.distributions.Normal(*self.noise[name])
            state = self.kernel.init(potential, z)
            return state, -state.potential.double() - noise.log_prob(z).double().sum(-1)
        drawn = self.start.sample((self.num_chains,))
        log_prob, drawn = self.start.log_prob(drawn).to(x), drawn.to(x)
        if drawn.shape[1:] != one.event_shape or log_prob.shape != drawn.shape[:1]:
            raise ValueError(
                f"start must be over one point of site '{name}', with event_shape "
                f"{tuple(one.event_shape)}, got batch_shape {tuple(self.start.batch_shape)} and "
                f"event_shape {tuple(self.start.event_shape)}"
            )
        state = self.kernel.init(potential, potential.unconstrain({"x": drawn}))
        with torch.no_grad():
            return state, one.log_density(drawn).double() - log_prob.double()

    def _walk(self, potential: Potential, name: str) -> tuple[State, Tensor]:
        """Moves the chains, first under the energy before the update, then as it is."""
        state, log_weights, h = self._states[name], self.log_weights[name], self.kernel.step_size
        for _ in range(self.num_steps):
            xi = normal_like(state.z, self.generator(state.z.device))
            y = state.z - h * state.grad + math.sqrt(2 * h) * xi
            value, grad = potential.value_and_grad(y)
            moved = state._replace(z=y, potential=value, grad=grad)
            finite = value.isfinite() & grad.isfinite().all(-1)
            log_weights = log_weights + _alpha(state, moved, h) - _alpha(moved, state, h)
            log_weights = torch.where(finite, log_weights, -torch.inf)
            rows = finite.unsqueeze(-1)
            state = state._replace(
                z=torch.where(rows, y, state.z),
                potential=torch.where(finite, value, state.potential),
                grad=torch.where(rows, grad, state.grad),
            )
            self.last_info[name] = Info(diverging=~finite)
        return state, log_weights

    def _keep(self, state: State, log_weights: Tensor, name: str) -> None:
        """Keeps the chains for the next update, resampled if their weights are too unequal."""
        weights = log_weights.softmax(0)
        self.ess[name] = 1 / weights.square().sum().item()
        if self.ess[name] < self.ess_threshold * self.num_chains:
            self._offsets[name] = self.log_z[name]
            kept = systematic(weights, self.generator(state.z.device))
            state = state._replace(
                z=state.z[kept], potential=state.potential[kept], grad=state.grad[kept]
            )
            log_weights = torch.zeros_like(log_weights)
        self._states[name] = state
        self.chains[name] = state.z
        self.log_weights[name] = log_weights


def _alpha(here: State, there: State, h: float) -> Tensor:
    """Returns U minus the log density of a Langevin step, up to a symmetric term, as ``(C,)``."""
    grad = here.grad.double()
    along = ((there.z - here.z).double() * grad).sum(-1)
    return here.potential.double() + 0.5 * along + 0.25 * h * grad.square().sum(-1)


def _log_mean_exp(log_weights: Tensor, name: str) -> float:
    value = log_weights.logsumexp(0).item() - math.log(len(log_weights))
    if not math.isfinite(value):
        raise ValueError(
            f"the weights of the chains of site '{name}' are all zero or not finite: the energy "
            "may not be normalisable, or step_size be too large for it"
        )
    return value
