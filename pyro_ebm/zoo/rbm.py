r"""A restricted Boltzmann machine, as a generative model of zeros and ones."""

from __future__ import annotations

__all__ = ["RBM"]

from collections.abc import Sequence

import pyro
import torch
from torch import Tensor
from typing_extensions import Self

from ..distributions import Boltzmann
from ..energies.boltzmann_machines import RBM as Machine
from ..kernels.gibbs import Gibbs
from ..mcmc import MCMC
from ..objectives.base import no_guide
from ..objectives.contrastive import PersistentCD
from .base import Generative, Likelihood, check_binary, check_data
from .training import Training, train


class RBM(Generative):
    r"""A restricted Boltzmann machine, learned by persistent chains of block Gibbs.

    .. math:: p(v) = \frac1Z \exp\Big(b^\top v + \sum_j \log(1 + e^{c_j + (v^\top W)_j})\Big)

    Training is stochastic maximum likelihood: :class:`~pyro_ebm.objectives.PersistentCD` with a
    Gibbs sweep, and the biases b begin at the log odds of the data. A draw is the end of a chain
    of its own, of ``num_sweeps`` sweeps from where a chain of training ended; half of them are
    kept in ``mcmc``, whose diagnostics say how far the chains came.

    ``log_prob`` is of kind "exact" where one layer has at most ``max_exact`` units, over whose
    states log Z is summed; else it is of kind "none", and :func:`pyro_ebm.logz.estimate` of
    ``boltzmann`` has it with a bracket. ``typicality`` is minus the free energy.

    References:
        | Training restricted Boltzmann machines using approximations to the likelihood gradient
        | (Tieleman, 2008), https://doi.org/10.1145/1390156.1390290

    Args:
        event_shape: The shape of one point, of zeros and ones.
        num_hidden: The number of hidden units.
        training: How to train.
        num_chains: The number of persistent chains.
        num_sweeps: The number of sweeps of a chain that draws.

    Raises:
        ValueError: If a count is not positive, ``num_sweeps`` is below 2, or, in use, points are
            not of zeros and ones.

    Example:
        >>> model = RBM((2, 3), num_hidden=4, training=Training(num_steps=5), num_sweeps=10)
        >>> x = torch.rand(100, 2, 3).round()
        >>> model = model.fit(x, progress=False)
        >>> model.sample(7).shape, model.log_prob(x).kind
        (torch.Size([7, 2, 3]), 'exact')
    """

    max_exact = 16
    """The largest size of the smaller layer over whose states log Z is summed."""

    def __init__(
        self,
        event_shape: Sequence[int],
        num_hidden: int,
        training: Training | None = None,
        num_chains: int = 512,
        num_sweeps: int = 200,
    ) -> None:
        super().__init__(event_shape)
        least = {"num_hidden": 1, "num_chains": 1, "num_sweeps": 2}
        given = {"num_hidden": num_hidden, "num_chains": num_chains, "num_sweeps": num_sweeps}
        for name, value in given.items():
            if value < least[name]:
                raise ValueError(f"{name} must be at least {least[name]}, got {value}")
        plan = Training(3000, lr=0.03, betas=(0.5, 0.999)) if training is None else training
        self.training_plan = plan
        self.num_hidden, self.num_chains, self.num_sweeps = num_hidden, num_chains, num_sweeps
        self.energy = Machine.initial(self.event_shape.numel(), num_hidden)
        self.objective = PersistentCD(Gibbs(), num_chains)
        self.register_buffer("chains", None)

    @property
    def boltzmann(self) -> Boltzmann:
        """The law of one flat point."""
        return Boltzmann(self.energy)

    def model(self, x: Tensor) -> None:
        """The Pyro model of flat points ``(n, D)``."""
        with pyro.plate("data", len(x)):
            pyro.sample("x", self.boltzmann, obs=x)

    def fit(self, x: Tensor, progress: bool = True) -> Self:  # noqa: D102
        check_data("x", x, self.event_shape)
        check_binary("x", x)
        self.history = {}
        flat = x.flatten(1)
        with torch.no_grad():  # Laplace's rule, as no log odds may be infinite
            self.energy.visible_bias.copy_(((1 + flat.sum(0)) / (2 + len(flat))).logit())
        self.history = train(
            self.model, no_guide, self.objective, flat, self.training_plan, progress=progress
        )
        self.chains = self.objective.chains["x"]
        return self

    @torch.no_grad()
    def sample(self, num_samples: int) -> Tensor:  # noqa: D102
        self.check_fitted()
        num = len(self.chains)
        rounds = [torch.randperm(num) for _ in range(-(-num_samples // num))]
        kept = self.num_sweeps // 2
        self.mcmc = MCMC(
            Gibbs(self.boltzmann),
            num_samples=kept,
            warmup_steps=self.num_sweeps - kept,
            num_chains=num_samples,
            initial_params={"x": self.chains[torch.cat(rounds)[:num_samples]]},
            disable_progbar=True,
        )
        self.mcmc.run()
        ends = self.mcmc.get_samples(group_by_chain=True)["x"][:, -1]
        return ends.to(self.energy.weights).reshape(num_samples, *self.event_shape)

    def as_energy(self) -> Machine:  # noqa: D102
        return self.energy

    @property
    def num_evaluations(self) -> int:
        """The sweeps of the chain behind one draw."""
        return self.num_sweeps

    @torch.no_grad()
    def log_prob(self, x: Tensor) -> Likelihood:  # noqa: D102
        self.check_fitted()
        unnormalised = self.typicality(x)
        if min(self.energy.weights.shape) > self.max_exact:
            return Likelihood("none")
        return Likelihood("exact", unnormalised - self.energy.log_z())

    @torch.no_grad()
    def typicality(self, x: Tensor) -> Tensor:
        """Returns minus the free energy, in nats up to a constant, with shape ``(n,)``."""
        check_data("x", x, self.event_shape)
        check_binary("x", x)
        return -self.energy(x.flatten(1))
