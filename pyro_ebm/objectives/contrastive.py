r"""Contrastive divergence: data against samples of the model.

The gradient of the log-likelihood of an energy is a difference of two phases,

.. math::
    \nabla_\theta \log p_\theta(x)
    = -\nabla_\theta E_\theta(x) + \mathbb{E}_{p_\theta}[\nabla_\theta E_\theta]

and these objectives differ in the chains that stand in for the second. The kernel has to fit the
support: a discrete one, such as :class:`~pyro_ebm.kernels.Gibbs`, for a discrete energy.
"""

from __future__ import annotations

__all__ = ["ContrastiveDivergence", "PersistentCD", "ShortRun"]

import torch
from pyro.infer import ELBO
from torch import Tensor, nn

from ..arguments import check_between, check_count
from ..distributions import Boltzmann
from ..energies.base import module_of
from ..kernels.base import Kernel
from .base import CONTRASTIVE
from .chains import OneChainEach, Persistent, constrained, unconstrained_data


class ContrastiveDivergence(OneChainEach):
    r"""Contrastive divergence (CD-k): the chains start at the data and make k steps.

    .. math::
        \hat\ell(x) = -E_\theta(x)/T + E_\theta(x^-)/T, \qquad x^- \sim K_\theta^k(\cdot \mid x)

    with :math:`x^-` held fixed under the gradient. **Biased**: it follows no objective exactly,
    and with an unadjusted kernel inherits its bias. On :math:`\mathcal{N}(0, v)` with
    :class:`~pyro_ebm.kernels.ULA` of step size h the precision converges to :math:`(1 - \sqrt{1 -
    2h/v})/h` for every k, with a Metropolis-adjusted kernel to :math:`1/v`. Its value is no
    measure of progress.

    Each datum has its own chain, so conditional energies, masks and plates of any shape are
    served. Its noise is most of the scatter of a gradient: with ``antithetic=True`` a datum has
    two chains, whose noise is opposite at every step,

    .. math:: \hat\ell(x) = -E_\theta(x)/T + \tfrac12 [E_\theta(x^+) + E_\theta(x^-)]/T

    which cancels what is linear in it. The mean is the same. On a Gaussian of precision
    :math:`\lambda`, with one step of :class:`~pyro_ebm.kernels.ULA` of size h, the variance is
    :math:`2 D (\lambda h)^2`, without the :math:`2 h \lambda^2 (1 - \lambda h)^2 |x|^2` that one
    chain has besides. Half as many data in a batch make up for the price.

    References:
        | Training products of experts by minimizing contrastive divergence (Hinton, 2002),
        | https://doi.org/10.1162/089976602760128018

    Args:
        kernel: A kernel without a target.
        num_steps: The number of steps k.
        elbo: The ELBO that takes care of the rest of a model.
        antithetic: Whether each datum has two chains of opposite noise.
        compile: Whether steps and gradient are compiled, see :class:`PersistentCD`.

    Raises:
        ValueError: If ``num_steps`` is not positive, or chains are to be antithetic and the kernel
            is neither ULA nor MALA; in use, if data are empty or not finite, the energy breaks
            its contract, or it is conditional and chains are to be antithetic.

    Example:
        >>> import pyro_ebm as ebm
        >>> objective = ContrastiveDivergence(ebm.kernels.MALA(step_size=0.1), num_steps=5)
        >>> p = ebm.Boltzmann(ebm.energies.MLP(event_shape=(2,)))
        >>> objective.surrogate(p, torch.randn(7, 2)).shape
        torch.Size([7])
    """

    def __init__(
        self,
        kernel: Kernel,
        num_steps: int = 1,
        elbo: ELBO | None = None,
        *,
        antithetic: bool = False,
        compile: bool = False,
    ) -> None:
        super().__init__(kernel, num_steps, elbo, compile, in_pairs=antithetic)
        if antithetic and type(kernel).opposite is Kernel.opposite:
            raise ValueError(
                "antithetic chains need noise that can be turned round: kernel must be ULA or "
                f"MALA, got {type(kernel).__name__}"
            )
        self.antithetic = antithetic

    def check(self, boltzmann: Boltzmann, x: Tensor, name: str) -> None:  # noqa: D102
        super().check(boltzmann, x, name)
        if self.antithetic and module_of(boltzmann.energy) is not boltzmann.energy:
            raise ValueError(
                f"antithetic=True needs an energy that is a module, the same for all data, and "
                f"that of site '{name}' is not: leave it out"
            )


class ShortRun(OneChainEach):
    r"""Short-run training: the chains start at noise, make k steps, and are forgotten.

    .. math::
        \hat\ell(x) = -E_\theta(x)/T + E_\theta(x^-)/T, \qquad
        x^- \sim K_\theta^k(\cdot \mid z), \quad z \sim p_0

    with :math:`x^-` held fixed under the gradient. The noise :math:`p_0` is Gaussian in
    unconstrained space, with the mean and spread of the first batch; over a discrete support it is
    uniform. **Biased**, unless k is long
    enough for chains to forget where they began: what comes to match the data is not
    :math:`p_\theta` but the law of the run, :math:`\mathbb{E}_{K_\theta^k p_0}[\nabla_\theta
    E_\theta] = \mathbb{E}_\mathrm{data}[\nabla_\theta E_\theta]`, so that k steps from noise
    generate well while the energy is no log density. On :math:`\mathcal{N}(0, v)`, with
    :class:`~pyro_ebm.kernels.ULA` of step size h and noise of variance s, the precision
    :math:`\lambda` solves :math:`a^{2k} s + 2h (1 - a^{2k})/(1 - a^2) = v` with :math:`a = 1 -
    h \lambda`. Draw from such a model as it was trained. Its value is no measure of progress.

    Each datum has its own chain, so conditional energies, masks and plates of any shape are
    served.

    References:
        | Learning non-convergent non-persistent short-run MCMC toward energy-based model
        | (Nijkamp, Hill, Zhu and Wu, 2019), https://arxiv.org/abs/1904.09770

    Args:
        kernel: A kernel without a target.
        num_steps: The number of steps k.
        elbo: The ELBO that takes care of the rest of a model.
        compile: Whether steps and gradient are compiled, see :class:`PersistentCD`.

    Raises:
        ValueError: If ``num_steps`` is not positive; in use, if data are empty or not finite, if
            the energy breaks its contract, or if one name is used for data of two sizes.

    Example:
        >>> import pyro_ebm as ebm
        >>> objective = ShortRun(ebm.kernels.ULA(step_size=0.1), num_steps=20)
        >>> p = ebm.Boltzmann(ebm.energies.MLP(event_shape=(2,)))
        >>> objective.surrogate(p, torch.randn(7, 2)).shape
        torch.Size([7])
    """

    def __init__(
        self,
        kernel: Kernel,
        num_steps: int = 100,
        elbo: ELBO | None = None,
        *,
        compile: bool = False,
    ) -> None:
        super().__init__(kernel, num_steps, elbo, compile)

    def start(self, boltzmann: Boltzmann, z: Tensor, name: str) -> Tensor:  # noqa: D102
        return self.fresh(boltzmann, z, len(z), name)


class PersistentCD(Persistent):
    r"""Persistent contrastive divergence (PCD): the chains go on from where they were.

    .. math:: \hat\ell(x) = -E_\theta(x)/T + \frac1C \sum_c E_\theta(x_c^-)/T, \qquad
        x_c^- \leftarrow K_\theta^k(\cdot \mid x_c^-)

    Each chain keeps its slot: it is moved and written back to where it came from. Unbiased in the
    limit of slow learning with an exact kernel; chains do not cross between well-separated modes,
    and then the weights of the modes are not learned. With ``reinit_prob`` each chain that is
    moved is first, with that probability, replaced by noise or by a datum of the batch. Noise,
    here and at the beginning, is Gaussian in unconstrained space with the mean and spread of the
    first batch, or uniform over a discrete support.

    With ``num_moved`` fewer chains than there are make an update: a random subset, drawn anew
    each time, is moved and compared with the data, which is the replay buffer of Du and Mordatch.
    An update costs as much as with so many chains, and the phases of successive updates are
    nearly independent; but a chain waits for :math:`C / n` updates in the mean, and lags behind
    an energy that learns fast.

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
        reinit_prob: The probability with which a chain begins anew, each time it is moved.
        elbo: The ELBO that takes care of the rest of a model.
        reinit_from: Where such a chain begins: "noise" or "data".
        num_moved: The number of chains n that an update moves; all if none is given.
        compile: Whether the steps of the chains, and the gradient of data against chains, are
            compiled into native code, with the same noise and the same numbers to rounding. It
            takes most of a minute at the first update, and again where the number of chains, the
            shape of the data or a setting of the energy changes; parameters may move in place as
            they like, and the step size of the kernel too. An energy that reads Python state
            beyond the numbers and tensors of its modules must stay eager; one that is a closure
            or conditional does, with a warning.

    Raises:
        ValueError: If a count is not positive, ``num_moved`` more than there are chains,
            ``reinit_prob`` not in [0, 1] or ``reinit_from`` neither of the two; in use, if data
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

    loss_name = CONTRASTIVE
    serves_discrete = True

    def __init__(
        self,
        kernel: Kernel,
        num_chains: int,
        num_steps: int = 1,
        reinit_prob: float = 0.0,
        elbo: ELBO | None = None,
        *,
        reinit_from: str = "noise",
        num_moved: int | None = None,
        compile: bool = False,
    ) -> None:
        super().__init__(kernel, num_chains, num_steps, elbo, compile)
        if num_moved is not None:
            check_count("num_moved", num_moved, least=0)
        if num_moved is not None and not 1 <= num_moved <= num_chains:
            raise ValueError(
                f"num_moved must be between 1 and num_chains={num_chains}, got {num_moved}"
            )
        if reinit_from not in ("noise", "data"):
            raise ValueError(f'reinit_from must be "noise" or "data", got {reinit_from!r}')
        check_between("reinit_prob", reinit_prob, 0, 1, inside=False)
        self.reinit_prob = reinit_prob
        self.reinit_from = reinit_from
        self.num_moved = num_moved

    def surrogate(self, boltzmann: Boltzmann, x: Tensor, name: str = "x") -> Tensor:  # noqa: D102
        self.check(boltzmann, x, name)
        self.check_owner(boltzmann, name)
        if name not in self.chains:
            data = unconstrained_data(boltzmann, x)
            self.chains[name] = self.fresh(boltzmann, data, self.num_chains, name)
        if torch.is_grad_enabled():
            return self._update(boltzmann, x, name)
        return self.evaluate(boltzmann, x, self.chains[name])[0]

    def _update(self, boltzmann: Boltzmann, x: Tensor, name: str) -> Tensor:
        """Moves chains, all or some, and sets the data against them."""
        chains, some = self.chains[name], None
        if self.num_moved not in (None, len(chains)):
            generator = self.generator(chains.device)
            order = torch.randperm(len(chains), generator=generator, device=chains.device)
            some = order[: self.num_moved]
        z = chains if some is None else chains[some]
        if self.reinit_prob:
            z = self._begin_anew(boltzmann, z, unconstrained_data(boltzmann, x), name)
        end = self.move(boltzmann.expand(()), (len(z),), z, name)
        z, (surrogate, _) = self.settle(end, self.against(boltzmann, x, name), name)
        self.chains[name] = z if some is None else chains.index_copy(0, some, z)
        return surrogate

    def evaluate(  # noqa: D102
        self, boltzmann: Boltzmann, x: Tensor, z: Tensor
    ) -> tuple[Tensor, Tensor]:
        x_neg = constrained(boltzmann, z)
        batch = x.shape[: x.dim() - len(boltzmann.event_shape)]
        one = boltzmann.expand(())
        is_one_law = isinstance(one.energy, nn.Module) and not isinstance(one.temperature, Tensor)
        if is_one_law and boltzmann.batch_shape in (batch, ()):
            rows = torch.cat([x.reshape(-1, *boltzmann.event_shape), x_neg])
            of_data, of_chains = one.log_density(rows).split([batch.numel(), len(x_neg)])
            of_data = of_data.reshape(batch)
        else:
            of_data, of_chains = boltzmann.log_density(x), one.log_density(x_neg)
        return of_data - of_chains.mean(), of_chains

    def _begin_anew(self, boltzmann: Boltzmann, chains: Tensor, data: Tensor, name: str) -> Tensor:
        generator = self.generator(chains.device)
        u = chains.new_empty(len(chains)).uniform_(generator=generator)
        if self.reinit_from == "noise":
            begun = self.fresh(boltzmann, data, len(chains), name)
        else:
            rows = torch.empty_like(u, dtype=torch.long)
            begun = data[rows.random_(0, len(data), generator=generator)]
        anew = (u < self.reinit_prob).unsqueeze(-1)
        return torch.where(anew, begun, chains)
