r"""Games of two players: the energy against a distribution that learns beside it.

Both have one value V, which the energy raises and the other player lowers. The surrogate is V,
with the gradient turned round where the other player enters: one backward pass serves both, in
SVI as in a bare loop. The other player needs a tractable density and reparametrised draws, as a
normalising flow has.
"""

from __future__ import annotations

__all__ = ["Adversarial", "FlowContrastive"]

from collections.abc import Callable, Sequence

import torch
from pyro.infer import ELBO
from torch import Tensor, nn
from torch.distributions import Distribution

from ..arguments import check_count
from ..distributions import Boltzmann
from ..energies.base import module_of
from .base import Objective, register_module
from .noise_contrastive import (
    NoiseContrastive,
    check_distribution,
    check_inside,
    log_prob_of_data,
)

Player = Callable[[], Distribution]


class FlowContrastive(NoiseContrastive):
    r"""Flow contrastive estimation: NCE against a flow that learns to be hard to tell from data.

    .. math:: V(\theta, c, \alpha) = \mathbb{E}_d \log \sigma(G(x)) + \nu \, \mathbb{E}_{q_\alpha}
        \log \sigma(-G(y)), \qquad G = -E_\theta/T - c - \log q_\alpha - \log \nu

    The energy and c raise V, the flow lowers it. For a fixed flow the energy's optimum is that of
    :class:`~pyro_ebm.objectives.NoiseContrastive`, consistent with no bias; the flow is drawn to
    the data (at :math:`\nu = 1` by the Jensen-Shannon divergence), where noise is most telling. A
    flow that begins far from the data has hardly a gradient: begin with one that covers them, or
    fit it by likelihood first.

    SVI registers the flow as ``"<site>.noise"`` and moves it with the same optimizer; give it a
    rate of its own with ``pyro.optim.Adam(lambda name: ...)``.

    References:
        | Flow contrastive estimation of energy-based models (Gao, Nijkamp, Kingma, Xu, Dai and
        | Wu, 2020), https://arxiv.org/abs/1912.00589

    Args:
        noise: The flow: a module, called without arguments, that returns a distribution; or a
            function that does so with ``pyro.param``.
        ratio: The number :math:`\nu > 0` of noise points per datum.
        learn_log_normalizer: Whether c is learned; it is zero if not.
        elbo: The ELBO that takes care of the rest of a model.

    Raises:
        ValueError: As :class:`~pyro_ebm.objectives.NoiseContrastive`, and if ``noise`` is a
            distribution, of which nothing would learn, or has no reparametrised draws.

    Example:
        >>> import pyro.distributions as dist
        >>> from pyro.distributions import transforms
        >>> import pyro_ebm as ebm
        >>> class Flow(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.spline = transforms.spline_coupling(2)
        ...
        ...     def forward(self):
        ...         base = dist.Normal(torch.zeros(2), 1.0).to_event(1)
        ...         return dist.TransformedDistribution(base, [self.spline])
        >>> objective = FlowContrastive(Flow())
        >>> p = ebm.Boltzmann(ebm.energies.MLP(event_shape=(2,)))
        >>> (-objective.surrogate(p, torch.randn(7, 2)).mean()).backward()
    """

    serves_discrete = False

    def __init__(
        self,
        noise: Player,
        ratio: float = 1.0,
        learn_log_normalizer: bool = True,
        elbo: ELBO | None = None,
    ) -> None:
        _check_player("noise", noise)
        super().__init__(noise, ratio, learn_log_normalizer, elbo)

    def register(self, name: str) -> None:  # noqa: D102
        super().register(name)
        if isinstance(self.noise, nn.Module):
            register_module(f"{name}.noise", self.noise)

    def _against(
        self, noise: Distribution, x: Tensor, shape: Sequence[int], name: str
    ) -> tuple[Tensor, Tensor, Tensor]:
        log_q_x = log_prob_of_data(noise, x, name)
        y, log_q_y = _draw("noise", noise, shape)
        return _turned(log_q_x), y, log_q_y


class Adversarial(Objective):
    r"""A generator in place of chains: the energy against a sampler that keeps its entropy.

    .. math:: V(\theta, \phi) = \mathbb{E}_d[-E_\theta(x)/T] + \mathbb{E}_{q_\phi}[E_\theta(y)/T
        + \log q_\phi(y)] = \mathbb{E}_d \log p_\theta(x)
        + \mathrm{KL}(q_\phi \,\|\, p_\theta)

    The energy raises V, the generator lowers it. The entropy is exact, so the generator follows
    the gradient of :math:`\mathrm{KL}(q_\phi \| p_\theta)`, and a generator that matches the model
    gives the energy the gradient of the likelihood. **Biased** as long as it does not: V is an
    upper bound of the likelihood, the energy's gradient is off by that of the divergence, and a
    generator that can never match leaves the energy short of the truth for good. That divergence
    also seeks modes: a mode without generated points is pushed down by nothing. The value of the
    surrogate is the bound, not a measure of progress.

    SVI registers the generator as ``"<site>.generator"`` and moves it with the same optimizer.
    It should learn faster than the energy: ``pyro.optim.Adam(lambda name: {"lr": 1e-2 if
    "generator" in name else 1e-3})``.

    References:
        | Calibrating energy-based generative adversarial networks (Dai, Almahairi, Bachman, Hovy
        | and Courville, 2017), https://arxiv.org/abs/1702.01691
        | No MCMC for me: amortized sampling for fast and stable training of energy-based models
        | (Grathwohl, Kelly, Hashemi, Norouzi, Swersky and Duvenaud, 2021),
        | https://arxiv.org/abs/2010.04230

    Args:
        generator: A module, called without arguments, that returns a distribution with
            reparametrised draws and a density; or a function that does so with ``pyro.param``.
        num_samples: The number of generated points per update, shared by the batch.
        elbo: The ELBO that takes care of the rest of a model.

    Raises:
        ValueError: If ``num_samples`` is not positive, or ``generator`` a distribution, of which
            nothing would learn; in use, if data are empty or not finite, if the energy breaks its
            contract or is conditional, for a discrete site, or if the generator has another event
            shape, a batch, no reparametrised draws, or leaves the support of the energy.

    Example:
        >>> import pyro.distributions as dist
        >>> import pyro_ebm as ebm
        >>> class Generator(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.loc = nn.Parameter(torch.zeros(2))
        ...         self.log_scale = nn.Parameter(torch.zeros(2))
        ...
        ...     def forward(self):
        ...         return dist.Normal(self.loc, self.log_scale.exp()).to_event(1)
        >>> objective = Adversarial(Generator(), num_samples=64)
        >>> p = ebm.Boltzmann(ebm.energies.MLP(event_shape=(2,)))
        >>> (-objective.surrogate(p, torch.randn(7, 2)).mean()).backward()
    """

    def __init__(
        self, generator: Player, num_samples: int = 256, elbo: ELBO | None = None
    ) -> None:
        super().__init__(elbo)
        _check_player("generator", generator)
        check_count("num_samples", num_samples)
        self.generator = generator
        self.num_samples = num_samples

    def register(self, name: str) -> None:  # noqa: D102
        if isinstance(self.generator, nn.Module):
            register_module(f"{name}.generator", self.generator)

    def surrogate(self, boltzmann: Boltzmann, x: Tensor, name: str = "x") -> Tensor:  # noqa: D102
        self.check(boltzmann, x, name)
        module = module_of(boltzmann.energy)
        if module is not None and module is not boltzmann.energy:
            raise ValueError(
                "Adversarial has one generator for all data, and the energy of site "
                f"'{name}' is conditional (functools.partial); use ContrastiveDivergence or "
                "ConditionalNoiseContrastive"
            )
        generator = self.generator()
        check_distribution("generator", generator, boltzmann, name)
        y, log_q = _draw("generator", generator, (self.num_samples,))
        check_inside("generator", boltzmann, y, name)
        divergence = log_q - boltzmann.expand(()).log_density(y)
        return boltzmann.log_density(x) + divergence.mean()


def _check_player(argument: str, player: Player) -> None:
    if isinstance(player, Distribution) or not callable(player):
        raise ValueError(
            f"{argument} must be a torch.nn.Module that returns a distribution, or a function "
            f"that does so with pyro.param, so that it can learn; got {type(player).__name__}"
        )


def _draw(
    argument: str, distribution: Distribution, shape: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """Draws points and their log density, whose gradients are turned round for the player."""
    if not distribution.has_rsample:
        raise ValueError(
            f"{argument} must have reparametrised draws (rsample), which "
            f"{type(distribution).__name__} has not"
        )
    y = distribution.rsample(torch.Size(shape))
    return _turned(y), _turned(distribution.log_prob(y))


def _turned(value: Tensor) -> Tensor:
    """Returns the value itself, with minus its gradient."""
    return 2 * value.detach() - value
