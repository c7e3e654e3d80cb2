r"""An energy, an objective and a kernel, as a generative model."""

from __future__ import annotations

__all__ = ["EBM"]

import copy
import math

import pyro
import torch
from torch import Tensor
from typing_extensions import Self

from ..discrete import bijection_of
from ..distributions import Boltzmann
from ..energies.analytic import Gaussian
from ..energies.base import Energy
from ..energies.neural import MLP
from ..energies.whitened import Whitened
from ..kernels.base import Kernel
from ..kernels.gibbs import Gibbs
from ..kernels.hamiltonian import HMC
from ..kernels.langevin import MALA
from ..kernels.resampling import systematic
from ..kernels.transition import seeded_generator
from ..logz.integration import quadrature
from ..mcmc import MCMC
from ..objectives.base import Objective, no_guide
from ..objectives.contrastive import PersistentCD
from ..objectives.score_matching import DenoisingScoreMatching
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
    data, or anywhere on a discrete support. How far they came from there is for
    ``mcmc.diagnostics()`` to say.

    ``log_prob`` is of kind "exact" where the energy knows its log Z; of points of one or two
    coordinates it is of kind "estimate", with log Z by quadrature to 1e-4 nats; else it is of kind
    "none": :func:`pyro_ebm.compare` then estimates log Z by :func:`pyro_ebm.logz.estimate`, with
    its bracket, and so may you. ``typicality`` is :math:`-E(x)`.

    Args:
        energy: The energy; its parameters learn.
        objective: The objective; persistent contrastive divergence with 256 chains of 20 MALA
            steps, or of a Gibbs sweep over discrete values, unless given.
        training: How to train.
        sampler: A kernel without a target, which draws and has to be exact;
            :class:`~pyro_ebm.kernels.MALA`, or :class:`~pyro_ebm.kernels.Gibbs`, unless given.
        warmup_steps: For how many steps chains that draw adapt step size and metric.
        num_draws: For how many steps they go on after that; these are kept in ``mcmc``.

    Raises:
        ValueError: If ``energy`` is no :class:`~pyro_ebm.energies.Energy`.

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
        if not isinstance(energy, Energy):
            raise ValueError(
                "energy must be a pyro_ebm.energies.Energy, which is saved with the model and "
                f"knows its event_shape, got {type(energy).__name__}: subclass Energy around a "
                "network of your own, or begin with EBM.for_plane(x) or EBM.for_table(x)"
            )
        super().__init__(energy.event_shape)
        self.energy = energy
        discrete = energy.support.is_discrete
        self.objective = (
            PersistentCD(
                Gibbs() if discrete else MALA(step_size=0.01),
                num_chains=256,
                num_steps=1 if discrete else 20,
            )
            if objective is None
            else objective
        )
        self.training_plan = Training() if training is None else training
        if sampler is None:
            sampler = Gibbs() if discrete else MALA(step_size=0.01)
        self.sampler = sampler
        self.warmup_steps = warmup_steps
        self.num_draws = num_draws
        self.register_buffer("noise", None)
        self.register_buffer("chains", None)

    @classmethod
    def for_plane(cls, x: Tensor) -> Self:
        """Makes a model of points of the plane that needs no tuning.

        A network tilts a wide Gaussian, in whitened units; denoising score matching trains it,
        without chains that could fail to keep up, and the parameters are averaged. It learns the
        law of the data blurred by 0.07 of their spread, and is nearly blind to the weights of
        modes with nothing between them: for those use
        :class:`~pyro_ebm.objectives.PersistentCD` with ``reinit_prob``.

        Args:
            x: The points to be fitted to, with shape ``(n, 2)``: their moments set the units.

        Returns:
            A model to ``fit``.

        Raises:
            ValueError: If the shape is another, a value not finite or the covariance singular.

        Example:
            >>> import pyro_ebm as ebm
            >>> EBM.for_plane(ebm.datasets.two_moons(100)).training_plan.num_steps
            2000
        """
        check_data("x", x, (2,))
        energy = Whitened.by_data(MLP((2,), (128, 128), base_scale=2.0), x)
        plan = Training(2000, batch_size=256, lr=4e-3, ema=0.99)
        return cls(energy, DenoisingScoreMatching(sigma=0.07), plan)

    @classmethod
    def for_table(cls, x: Tensor) -> Self:
        """Makes a model of rows of real columns that needs no tuning.

        Columns may have scales of their own and be correlated: a network tilts a Gaussian with
        their mean and covariance, in whitened units; persistent chains of HMC train it, and the
        parameters are averaged. Some hundred rows are few: judge it by held-out ones.

        Args:
            x: The rows to be fitted to, with shape ``(n, columns)``: their moments set the units.

        Returns:
            A model to ``fit``.

        Raises:
            ValueError: If the shape is another, a value not finite or the covariance singular.

        Example:
            >>> EBM.for_table(torch.randn(100, 13)).event_shape
            torch.Size([13])
        """
        if x.dim() != 2:
            raise ValueError(f"x must have shape (n, columns), got {tuple(x.shape)}")
        check_data("x", x, x.shape[1:])
        energy = Whitened.by_data(MLP(x.shape[1:], (128, 128), base_scale=1.0), x)
        kernel = HMC(step_size=0.3, num_steps=5, target_accept_prob=0.7)
        objective = PersistentCD(kernel, num_chains=256, num_steps=1)
        plan = Training(400, batch_size=128, lr=3e-3, clip_norm=1.0, ema=0.99)
        return cls(energy, objective, plan, sampler=kernel, warmup_steps=60, num_draws=60)

    @classmethod
    def for_images(cls, x: Tensor) -> Self:
        """Makes a model of small images, digits for one, that needs no tuning.

        A network tilts a Gaussian with the mean and covariance of the pixels, so that it learns
        only what is not Gaussian about them; persistent chains of HMC train it. It is the model of
        ``examples/digits_ebm_vs_vae.py``. Pixels must vary: give integer grey levels some noise.

        Args:
            x: The images to be fitted to, with shape ``(n, channels, height, width)``.

        Returns:
            A model to ``fit``.

        Raises:
            ValueError: If the shape is another, a value not finite or the covariance singular.

        Example:
            >>> EBM.for_images(torch.randn(100, 1, 4, 4)).event_shape
            torch.Size([1, 4, 4])
        """
        if x.dim() != 4:
            raise ValueError(
                f"x must have shape (n, channels, height, width), got {tuple(x.shape)}"
            )
        check_data("x", x, x.shape[1:])
        units = Whitened.by_data(MLP((x[0].numel(),), ()), x.flatten(1))
        moments = Gaussian(x.mean(0), torch.cholesky_inverse(units.scale_tril))
        network = MLP(x.shape[1:], (256, 256), base_scale=100 * x.std().item())
        narrowest = torch.linalg.matrix_norm(moments.precision, 2).rsqrt().item()
        kernel = HMC(step_size=0.7 * narrowest, num_steps=5, target_accept_prob=0.7)
        objective = PersistentCD(kernel, num_chains=256, num_steps=4, reinit_prob=0.002)
        return cls(network + moments, objective, Training(2500, clip_norm=1.0), sampler=kernel)

    def fit(self, x: Tensor, progress: bool = True) -> Self:  # noqa: D102
        check_data("x", x, self.event_shape)
        self.history = {}
        if not self.energy.support.is_discrete:
            z = self._bijection.inv(x)
            self.noise = torch.stack([z.mean(0), z.std(0)])
        self.history = train(
            self._model,
            no_guide,
            self.objective,
            x,
            self.training_plan,
            progress=progress,
            after_step=self._tune,
        )
        self.chains = self._last_chains()
        return self

    def _last_chains(self) -> Tensor | None:
        """The chains of training, if there are any, where they have weights in proportion."""
        chains, log_weights = (
            getattr(self.objective, name, {}).get("x") for name in ("chains", "log_weights")
        )
        if chains is None or log_weights is None:
            return chains
        return chains[systematic(log_weights.softmax(0), seeded_generator(chains.device))]

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
            initial_params=self._start(num_samples),
            disable_progbar=True,
        )
        self.mcmc.run()
        return self.mcmc.get_samples(group_by_chain=True)["x"][:, -1]

    def _start(self, num_samples: int) -> dict[str, Tensor] | None:
        if self.chains is None and self.noise is None:
            return None  # uniform over all points
        if self.chains is None:
            mean, spread = self.noise
            return {"x": mean + spread * torch.randn(num_samples, *mean.shape).to(mean)}
        num = len(self.chains)
        rounds = [torch.randperm(num) for _ in range(-(-num_samples // num))]
        shape = self.event_shape if self.noise is None else self.noise.shape[1:]
        return {"x": self.chains[torch.cat(rounds)[:num_samples]].reshape(num_samples, *shape)}

    def as_energy(self) -> Energy:  # noqa: D102
        return self.energy

    @property
    def num_evaluations(self) -> int | None:
        """Gradients of the energy in the chain behind one draw, for HMC and MALA."""
        each = {HMC: getattr(self.sampler, "num_steps", None), MALA: 1}.get(type(self.sampler))
        return None if each is None else each * (self.warmup_steps + self.num_draws)

    @torch.no_grad()
    def log_prob(self, x: Tensor) -> Likelihood:  # noqa: D102
        check_data("x", x, self.event_shape)
        if self.boltzmann.is_normalized:
            return Likelihood("exact", self.boltzmann.log_prob(x))
        if self.energy.support.is_discrete or self.event_shape.numel() > _MAX_QUADRATURE:
            return Likelihood("none")
        log_z = quadrature(self.boltzmann, tol=_QUADRATURE_TOL)
        value = self.typicality(x) - log_z.value
        return Likelihood("estimate", value, torch.full_like(value, log_z.std_error))

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
        return bijection_of(self.energy.support)


_MAX_QUADRATURE = 2
_QUADRATURE_TOL = 1e-4
