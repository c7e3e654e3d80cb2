r"""Contrastive divergence: data against samples of the model.

The gradient of the log-likelihood of an energy is a difference of two phases,

.. math::
    \nabla_\theta \log p_\theta(x)
    = -\nabla_\theta E_\theta(x) + \mathbb{E}_{p_\theta}[\nabla_\theta E_\theta]

and these objectives differ in the chains that stand in for the second.
"""

from __future__ import annotations

__all__ = ["ContrastiveDivergence", "PersistentCD"]

import weakref

import torch
from pyro.infer import ELBO
from torch import Tensor

from ..distributions import Boltzmann
from ..energies.base import module_of
from ..kernels.base import Kernel
from ..kernels.transition import Info, State, run, seeded_generator
from ..potential import Potential
from .base import CONTRASTIVE, Objective


class _Contrastive(Objective):
    """An objective that runs a kernel on the energy."""

    loss_name = CONTRASTIVE

    def __init__(self, kernel: Kernel, num_steps: int, elbo: ELBO | None) -> None:
        super().__init__(elbo)
        if num_steps < 1:
            raise ValueError(f"num_steps must be at least 1, got {num_steps}")
        self.kernel = kernel
        self.num_steps = num_steps
        self.last_info: dict[str, Info] = {}
        """What happened in the last step of the chains of each site."""
        self._generators: dict[torch.device, torch.Generator] = {}

    def _generator(self, device: torch.device) -> torch.Generator:
        if device not in self._generators:
            self._generators[device] = seeded_generator(device)
        return self._generators[device]

    def _move(self, potential: Potential, state: State, name: str) -> State:
        generator = self._generator(state.z.device)
        *_, (state, info) = run(self.kernel, potential, state, self.num_steps, generator)
        self.last_info[name] = info
        return state


class ContrastiveDivergence(_Contrastive):
    r"""Contrastive divergence (CD-k): the chains start at the data and make k steps.

    .. math::
        \hat\ell(x) = -E_\theta(x)/T + E_\theta(x^-)/T, \qquad x^- \sim K_\theta^k(\cdot \mid x)

    with :math:`x^-` held fixed under the gradient. **Biased**: it follows no objective exactly,
    and with an unadjusted kernel inherits its bias. On :math:`\mathcal{N}(0, v)` with
    :class:`~pyro_ebm.kernels.ULA` of step size h the precision converges to :math:`(1 - \sqrt{1 -
    2h/v})/h` for every k, with a Metropolis-adjusted kernel to :math:`1/v`. Its value is no
    measure of progress.

    Each datum has its own chain, so conditional energies, masks and plates of any shape are
    served.

    References:
        | Training products of experts by minimizing contrastive divergence (Hinton, 2002),
        | https://doi.org/10.1162/089976602760128018

    Args:
        kernel: A kernel without a target.
        num_steps: The number of steps k.
        elbo: The ELBO that takes care of the rest of a model.

    Raises:
        ValueError: If ``num_steps`` is not positive; in use, if data are empty or not finite or
            the energy breaks its contract.

    Example:
        >>> import pyro_ebm as ebm
        >>> objective = ContrastiveDivergence(ebm.kernels.MALA(step_size=0.1), num_steps=5)
        >>> p = ebm.Boltzmann(ebm.energies.MLP(event_shape=(2,)))
        >>> objective.surrogate(p, torch.randn(7, 2)).shape
        torch.Size([7])
    """

    def __init__(self, kernel: Kernel, num_steps: int = 1, elbo: ELBO | None = None) -> None:
        super().__init__(kernel, num_steps, elbo)

    def surrogate(self, boltzmann: Boltzmann, x: Tensor, name: str = "x") -> Tensor:  # noqa: D102
        self.check(boltzmann, x, name)
        batch_shape = x.shape[: x.dim() - len(boltzmann.event_shape)]
        potential = Potential.of_batch(boltzmann, batch_shape, x)
        start = potential.unconstrain({"x": x.detach().reshape(-1, *boltzmann.event_shape)})
        state = self.kernel.init(potential, start)
        z = self._move(potential, state, name).z
        x_neg = potential.constrain(z)["x"].reshape(x.shape)
        return boltzmann.log_density(x) - boltzmann.log_density(x_neg)


class PersistentCD(_Contrastive):
    r"""Persistent contrastive divergence (PCD): the chains go on from where they were.

    .. math:: \hat\ell(x) = -E_\theta(x)/T + \frac1C \sum_c E_\theta(x_c^-)/T, \qquad
        x_c^- \leftarrow K_\theta^k(\cdot \mid x_c^-)

    Each chain keeps its slot: it is moved and written back to where it came from. Unbiased in the
    limit of slow learning with an exact kernel; chains do not cross between well-separated modes,
    and then the weights of the modes are not learned. With ``reinit_prob`` each chain is, before
    each update, replaced with that probability by noise: a replay buffer in the sense of Du and
    Mordatch. Noise, here and at the beginning, is Gaussian in unconstrained space with the mean
    and spread of the first batch.

    An evaluation without gradients (``SVI.evaluate_loss``) uses the chains as they are and leaves
    them there.

    References:
        | Training restricted Boltzmann machines using approximations to the likelihood gradient
        | (Tieleman, 2008), https://doi.org/10.1145/1390156.1390290
        | Implicit generation and modeling with energy-based models (Du and Mordatch, 2019),
        | https://arxiv.org/abs/1903.08689

    Args:
        kernel: A kernel without a target.
        num_chains: The number of chains C.
        num_steps: The number of steps k per update.
        reinit_prob: The probability with which a chain begins anew, per update.
        elbo: The ELBO that takes care of the rest of a model.

    Raises:
        ValueError: If a count is not positive or ``reinit_prob`` not in [0, 1]; in use, if data
            are empty or not finite, if the energy breaks its contract, or if one name is used for
            two energies.

    Example:
        >>> import pyro_ebm as ebm
        >>> objective = PersistentCD(ebm.kernels.MALA(step_size=0.1), num_chains=64, num_steps=5)
        >>> p = ebm.Boltzmann(ebm.energies.MLP(event_shape=(2,)))
        >>> (-objective.surrogate(p, torch.randn(7, 2)).mean()).backward()
        >>> objective.chains["x"].shape
        torch.Size([64, 2])
    """

    def __init__(
        self,
        kernel: Kernel,
        num_chains: int,
        num_steps: int = 1,
        reinit_prob: float = 0.0,
        elbo: ELBO | None = None,
    ) -> None:
        super().__init__(kernel, num_steps, elbo)
        if num_chains < 1:
            raise ValueError(f"num_chains must be at least 1, got {num_chains}")
        if not 0 <= reinit_prob <= 1:
            raise ValueError(f"reinit_prob must be between 0 and 1, got {reinit_prob}")
        self.num_chains = num_chains
        self.reinit_prob = reinit_prob
        self.chains: dict[str, Tensor] = {}
        """The chains of each site in unconstrained space, with shape ``(C, D)``."""
        self._noise: dict[str, tuple[Tensor, Tensor]] = {}
        self._owners: dict[str, weakref.ref] = {}

    def surrogate(self, boltzmann: Boltzmann, x: Tensor, name: str = "x") -> Tensor:  # noqa: D102
        self.check(boltzmann, x, name)
        self._check_owner(boltzmann, name)
        one = boltzmann.expand(())
        potential = Potential.of_batch(one, (self.num_chains,), x)
        if name not in self.chains:
            rows = x.detach().reshape(-1, *boltzmann.event_shape)
            z = potential.unconstrain({"x": rows})
            self._noise[name] = z.mean(0), z.std(0, correction=0).clamp(min=1e-3)
            self.chains[name] = self._fresh(name, self.num_chains)
        if torch.is_grad_enabled():
            self._reinitialize(name)
            state = self.kernel.init(potential, self.chains[name])
            self.chains[name] = self._move(potential, state, name).z
        x_neg = potential.constrain(self.chains[name])["x"]
        return boltzmann.log_density(x) - one.log_density(x_neg).mean()

    def _fresh(self, name: str, num_chains: int) -> Tensor:
        mean, spread = self._noise[name]
        noise = mean.new_empty(num_chains, len(mean))
        return mean + spread * noise.normal_(generator=self._generator(mean.device))

    def _reinitialize(self, name: str) -> None:
        if self.reinit_prob:
            chains = self.chains[name]
            u = chains.new_empty(len(chains)).uniform_(generator=self._generator(chains.device))
            fresh = self._fresh(name, len(chains))
            anew = (u < self.reinit_prob).unsqueeze(-1)
            self.chains[name] = torch.where(anew, fresh, chains)

    def _check_owner(self, boltzmann: Boltzmann, name: str) -> None:
        module = module_of(boltzmann.energy)
        if module is None:
            return
        if module is not boltzmann.energy:
            raise ValueError(
                "PersistentCD keeps its chains apart from the data, and the energy of site "
                f"'{name}' is conditional (functools.partial); use ContrastiveDivergence"
            )
        owner = self._owners.setdefault(name, weakref.ref(module))()
        if owner is not module:
            raise ValueError(
                f"the chains of '{name}' belong to another energy: give each its own name= in "
                "surrogate(), or use one objective per energy"
            )
