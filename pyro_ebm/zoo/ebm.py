r"""An energy, an objective and a kernel, as a generative model."""

from __future__ import annotations

__all__ = ["EBM"]

import copy
import math

import pyro
import torch
from torch import Tensor
from torch.distributions import biject_to
from typing_extensions import Self

from ..distributions import Boltzmann
from ..energies.base import Energy
from ..kernels.base import Kernel
from ..kernels.langevin import MALA
from ..mcmc import MCMC
from ..objectives.base import Objective, no_guide
from ..objectives.contrastive import PersistentCD
from .base import Generative, Likelihood, check_data
from .training import Training, train


class EBM(Generative):
    r"""An energy-based model: any energy, learned by any objective, drawn by long adjusted chains.

    .. math:: p(x) = \exp(-E_\theta(x)) / Z_\theta

    **Training.** As the energy sharpens, a kernel of fixed step size would come to reject every
    proposal, and the chains to stand still. So after each update the step size of the objective's
    kernel (the caller's own object: ``objective.kernel.step_size``) moves by :math:`0.1 (a - a^*)`
    on the log scale, where :math:`a` is the acceptance of the chains' last step and :math:`a^*`
    the kernel's ``target_accept_prob``; a kernel with ``adapt_step_size=False``, or one that does
    not reject, is left alone. ``history`` holds the records of
    :class:`~pyro_ebm.objectives.Monitor`, and the step size. The monitor stops a run that
    diverges, and leaves the energy as it was at the last sound step.

    **Drawing.** Each draw is the end of a chain of its own, of ``warmup_steps + num_draws`` steps
    of the sampler, which leaves the learned law exactly invariant. Chains start where the
    persistent chains of training ended, if the objective has any (several start from one where
    more draws than chains are asked for), else from Gaussian noise with the mean and spread of the
    data. How far they came from there is for ``mcmc.diagnostics()`` to say.

    ``log_prob`` is of kind "none": log Z is not known. ``typicality`` is :math:`-E(x)`.

    Args:
        energy: The energy; its parameters learn.
        objective: The objective; persistent contrastive divergence with 256 chains of 20 MALA
            steps unless given.
        training: How to train.
        sampler: A Metropolis-adjusted kernel without a target, which draws;
            :class:`~pyro_ebm.kernels.MALA` unless given.
        warmup_steps: For how many steps chains that draw adapt step size and metric.
        num_draws: For how many steps they go on after that; these are kept in ``mcmc``.

    Example:
        >>> import pyro_ebm as ebm
        >>> energy = ebm.energies.MLP(event_shape=(2,), hidden_sizes=(16,))
        >>> model = EBM(energy, training=Training(num_steps=2), warmup_steps=9, num_draws=9)
        >>> model.fit(torch.randn(100, 2), progress=False).sample(7).shape
        torch.Size([7, 2])
    """

    def __init__(
        self,
        energy: Energy,
        objective: Objective | None = None,
        training: Training | None = None,
        sampler: Kernel | None = None,
        warmup_steps: int = 200,
        num_draws: int = 200,
    ) -> None:
        super().__init__(energy.event_shape)
        self.energy = energy
        self.objective = (
            PersistentCD(MALA(step_size=0.01), num_chains=256, num_steps=20)
            if objective is None
            else objective
        )
        self.training_plan = Training() if training is None else training
        self.sampler = MALA(step_size=0.01) if sampler is None else sampler
        self.warmup_steps = warmup_steps
        self.num_draws = num_draws

    def fit(self, x: Tensor, progress: bool = True) -> Self:  # noqa: D102
        check_data("x", x, self.event_shape)
        self.history = {}
        z = self._bijection.inv(x)
        self.register_buffer("noise", torch.stack([z.mean(0), z.std(0)]))
        self.history = train(
            self._model,
            no_guide,
            self.objective,
            x,
            self.training_plan,
            progress=progress,
            after_step=self._tune,
        )
        return self

    def _model(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("x", self.boltzmann, obs=x)

    def _tune(self) -> dict[str, float]:
        """Moves the step size of the objective's kernel towards its target acceptance."""
        info = getattr(self.objective, "last_info", {}).get("x")
        if info is None or info.accept_prob is None:
            return {}
        kernel, acceptance = self.objective.kernel, info.accept_prob.mean().item()
        if kernel.adapt_step_size:
            kernel.step_size *= math.exp(0.1 * (acceptance - kernel.target_accept_prob))
        return {"step size": kernel.step_size}

    def sample(self, num_samples: int) -> Tensor:  # noqa: D102
        self.check_fitted()
        kernel = copy.copy(self.sampler)
        kernel.target = self.boltzmann
        self.mcmc = MCMC(
            kernel,
            num_samples=self.num_draws,
            warmup_steps=self.warmup_steps,
            num_chains=num_samples,
            initial_params={"x": self._start(num_samples)},
            disable_progbar=True,
        )
        self.mcmc.run()
        return self.mcmc.get_samples(group_by_chain=True)["x"][:, -1]

    def _start(self, num_samples: int) -> Tensor:
        chains = getattr(self.objective, "chains", {}).get("x")
        if chains is None:
            mean, spread = self.noise
            return mean + spread * torch.randn(num_samples, *mean.shape).to(mean)
        rounds = [torch.randperm(len(chains)) for _ in range(-(-num_samples // len(chains)))]
        return chains[torch.cat(rounds)[:num_samples]].reshape(num_samples, *self.noise.shape[1:])

    def log_prob(self, x: Tensor) -> Likelihood:  # noqa: D102
        check_data("x", x, self.event_shape)
        return Likelihood("none")

    @torch.no_grad()
    def typicality(self, x: Tensor) -> Tensor:
        """Returns minus the energy, in nats up to a constant, with shape ``(n,)``."""
        return -self.energy(x)

    @property
    def boltzmann(self) -> Boltzmann:
        """The distribution of the energy, as it is now."""
        return Boltzmann(self.energy)

    @property
    def _bijection(self) -> torch.distributions.Transform:
        return biject_to(self.energy.support)
