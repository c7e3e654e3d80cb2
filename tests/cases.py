"""What the laws run over: name -> constructor. A new algorithm adds one row here."""

import math

import torch
from torch import nn, tensor
from torch.distributions import constraints

from pyro_ebm import kernels, logz
from pyro_ebm.energies import (
    DBM,
    MLP,
    RBM,
    Banana,
    BoltzmannMachine,
    ChainCRF,
    Classifier,
    Conv,
    DiscreteEnergy,
    DoubleWell,
    ExponentialFamily,
    Funnel,
    Gaussian,
    GaussianMixture,
    GaussianRBM,
    Ising,
    IsingGraph,
    Laplace,
    MarkovRandomField,
    Particles,
    Potts,
    TwoModes,
    Whitened,
    Without,
    mixture,
    spins,
)

ENERGIES_EXACT = {
    "gaussian_number": lambda: Gaussian(tensor(0.7), 2.5),
    "gaussian_diagonal": lambda: Gaussian(tensor([1.0, -2.0]), tensor([0.5, 4.0])),
    "gaussian_matrix": lambda: Gaussian(tensor([1.0, -0.5]), tensor([[2.0, 0.9], [0.9, 1.0]])),
    "gaussian_image": lambda: Gaussian(torch.arange(6.0).reshape(2, 3), tensor([1.0, 2.0, 3.0])),
    "gaussian_image_matrix": lambda: Gaussian(
        tensor([[1.0], [-0.5]]), tensor([[2.0, 0.9], [0.9, 1.0]])
    ),
    "laplace_number": lambda: Laplace(tensor(-0.4), 0.7),
    "laplace_vector": lambda: Laplace(tensor([1.0, -1.0]), tensor([0.5, 2.0])),
    "gaussian_mixture_isotropic": lambda: GaussianMixture(
        [1.0, 3.0, 2.0], tensor([[-2.0, 0.0], [1.0, 1.0], [0.5, -2.0]]), tensor([0.5, 0.8, 0.6])
    ),
    "gaussian_mixture_diagonal": lambda: GaussianMixture(
        [0.7, 0.3], tensor([[0.0, 1.0], [2.0, -1.0]]), tensor([[0.4, 1.0], [0.9, 0.5]])
    ),
    "two_modes": lambda: TwoModes(theta=-0.8, a=-2.0, b=1.5),
    "double_well": lambda: DoubleWell(beta=2.0),
    "double_well_tilted": lambda: DoubleWell(beta=1.5, tilt=0.6),
    "banana": lambda: Banana(scale=1.5, curvature=0.4),
    "banana_reference": lambda: Banana(),
    "funnel": lambda: Funnel(num_dims=3, scale=1.0),
    "mixture": lambda: mixture(
        [DoubleWell(beta=1.0, tilt=0.5), Laplace(tensor(3.0), 0.5), TwoModes(0.5, -3.0, -1.0)],
        [1.0, 2.0, 1.0],
    ),
    "mixture_plane": lambda: mixture(
        [Banana(scale=1.0, curvature=0.5), Gaussian(tensor([2.0, 0.0]), tensor([4.0, 1.0]))],
        [0.35, 0.65],
    ),
    "whitened": lambda: Whitened(
        Banana(scale=1.0, curvature=0.4), tensor([2.0, -1.0]), tensor([[1.5, 0.0], [-0.6, 0.5]])
    ),
}
"""Energies with exact log_z() and sample()."""


def numbers(*shape, scale=0.7):
    """The same unequal numbers at each call, whatever the seed."""
    count = math.prod(shape)
    return scale * (3.7 * torch.arange(1.0, count + 1)).sin().reshape(shape)


def learned(*shape):
    return nn.Parameter(numbers(*shape))


def moments(x):
    return torch.stack([x, x.square(), x.pow(4)], -1)


ENERGIES_NEURAL = {
    "mlp": lambda: MLP(event_shape=(2,), hidden_sizes=(8, 8)),
    "mlp_number": lambda: MLP(event_shape=(), hidden_sizes=(8,)),
    "mlp_matrix": lambda: MLP(event_shape=(2, 3), hidden_sizes=(8,), base_scale=2.0),
    "conv": lambda: Conv(event_shape=(1, 4, 5), channels=(3, 4)),
    "classifier": lambda: Classifier(
        (2,), nn.Sequential(nn.Linear(2, 8), nn.SiLU(), nn.Linear(8, 3))
    ),
    "classifier_image": lambda: Classifier(
        (1, 2, 3), nn.Sequential(nn.Conv2d(1, 3, 2), nn.SiLU(), nn.Flatten(), nn.Linear(6, 4))
    ),
    "whitened_mlp": lambda: Whitened(
        MLP((2,), (8,)), tensor([2.0, -1.0]), tensor([[1.5, 0.0], [-0.6, 0.5]])
    ),
    "sum": lambda: MLP((2,), (8,)) + Gaussian(tensor([1.0, 0.0]), 2.0),
    "sum_with_callable": lambda: MLP((2,), (8,)) + (lambda x: x.pow(4).sum(-1)),
    "weighted": lambda: 0.3 * MLP((2,), (8,)),
    "tempered": lambda: MLP((2,), (8,)) / 4.0,
    "difference": lambda: Gaussian(torch.zeros(2), 1.0) - 0.1 * MLP((2,), (8,)),
    "gaussian_rbm": lambda: GaussianRBM(learned(2, 3), learned(2), learned(3), tensor([0.8, 1.2])),
    "particles": lambda: Particles(3, 2, trap=1.5, sigma=tensor(0.2)),
    "exponential_family": lambda: ExponentialFamily(
        moments, nn.Parameter(tensor([0.5, -1.0, -0.3])), event_shape=()
    ),
    "without": lambda: Without(MLP((2,), (8,)), Gaussian(tensor([1.0, 0.0]), 2.0), ceiling=4.0),
    "mixture_given_log_z": lambda: mixture(
        [MLP((2,), (8,)), Banana(1.0, 0.3)], [0.2, 0.8], log_z=[0.4, 1.0]
    ),
}
"""Energies without, those of the algebra included."""

ENERGIES = ENERGIES_EXACT | ENERGIES_NEURAL


class OneHotPairs(DiscreteEnergy):
    """Any energy of one-hot vectors that knows no more than the contract asks of it."""

    def __init__(self):
        super().__init__((3, 2), constraints.independent(constraints.one_hot, 1))
        self.ties = nn.Parameter(numbers(6, 6))

    def forward(self, x):
        x = x.flatten(-2).to(self.ties.dtype)
        return ((x @ self.ties) * x).sum(-1)

    def conditionals(self, x):
        values = []
        for site in range(3):
            there = torch.arange(3) == site
            each = [torch.where(there[:, None], value, x) for value in torch.eye(2).to(x)]
            values.append(torch.stack([-self(point) for point in each], -1))
        return torch.stack(values, -2)


def symmetric(size):
    ties = numbers(size, size).triu(1)
    return nn.Parameter(ties + ties.T)


TREE = tensor([[0, 1], [2, 1], [1, 3], [3, 4]])
LOOPS = tensor([[0, 1], [2, 1], [2, 3], [3, 0], [1, 3], [4, 0]])

ENERGIES_DISCRETE = {
    "ising_torus": lambda: Ising((3, 3), learned()),
    "ising_torus_field": lambda: Ising((3, 3), learned(), learned(3, 3)),
    "ising_open": lambda: Ising((2, 4), learned(), learned(), periodic=False),
    "ising_cube": lambda: Ising((2, 2, 2), learned(), learned(2, 2, 2), periodic=False),
    "ising_even_torus": lambda: Ising((4, 3), learned(), learned(4, 3)),
    "ising_ring": lambda: Ising((6,), learned(), learned(6)),
    "potts_torus": lambda: Potts((3, 3), 2, learned(), learned(2)),
    "potts_open": lambda: Potts((2, 3), 3, learned(), learned(2, 3, 3), periodic=False),
    "potts_ring": lambda: Potts((4,), 4, learned()),
    "ising_graph": lambda: IsingGraph(LOOPS, learned(6), learned(5)),
    "ising_tree": lambda: IsingGraph(TREE, learned(), learned(5)),
    "random_field": lambda: MarkovRandomField(learned(5, 3), LOOPS, learned(6, 3, 3)),
    "random_field_potts": lambda: MarkovRandomField(
        learned(4, 3), LOOPS[:5], nn.Parameter(0.8 * torch.eye(3))
    ),
    "chain": lambda: ChainCRF(learned(5, 3), learned(3, 3)),
    "chain_inhomogeneous": lambda: ChainCRF(learned(4, 3), learned(3, 3, 3)),
    "boltzmann_machine": lambda: BoltzmannMachine(symmetric(6), learned(6)),
    "boltzmann_machine_spins": lambda: BoltzmannMachine(symmetric(6), learned(6), spins),
    "rbm": lambda: RBM(learned(6, 3), learned(6), learned(3)),
    "rbm_wide": lambda: RBM(learned(4, 6), learned(4), learned(6)),
    "rbm_joint": lambda: RBM(learned(5, 3), learned(5), learned(3)).joint(),
    "dbm": lambda: DBM([learned(4, 3), learned(3, 2)], [learned(4), learned(3), learned(2)]),
    "dbm_deep": lambda: DBM(
        [learned(3, 2), learned(2, 2), learned(2, 3)],
        [learned(3), learned(2), learned(2), learned(3)],
    ),
    "one_hot": OneHotPairs,
}
"""Energies over an alphabet, skewed, with few enough points to list."""

SKEWED = {
    name: ENERGIES_EXACT[name]
    for name in (
        "gaussian_mixture_isotropic",
        "two_modes",
        "double_well_tilted",
        "banana",
        "mixture_plane",
    )
}
"""Targets with exact samples that no reflection leaves as they are: a wrong sign must show."""

KERNELS = {
    "ULA": lambda target=None, **kwargs: kernels.ULA(target, step_size=0.05, **kwargs),
    "MALA": lambda target=None, **kwargs: kernels.MALA(target, step_size=0.2, **kwargs),
    "HMC": lambda target=None, **kwargs: kernels.HMC(target, step_size=0.3, num_steps=4, **kwargs),
    "ChEES": lambda target=None, **kwargs: kernels.ChEES(
        target, step_size=0.3, length=1.2, **kwargs
    ),
    "NUTS": lambda target=None, **kwargs: kernels.NUTS(
        target, step_size=0.3, max_tree_depth=6, **kwargs
    ),
    "RandomWalk": lambda target=None, **kwargs: kernels.RandomWalk(
        target, step_size=0.8, **kwargs
    ),
    "UnderdampedLangevin": lambda target=None, **kwargs: kernels.UnderdampedLangevin(
        target, step_size=0.2, **kwargs
    ),
    "GHMC": lambda target=None, **kwargs: kernels.GHMC(target, step_size=0.5, **kwargs),
    "MAMS": lambda target=None, **kwargs: kernels.MAMS(target, step_size=0.6, **kwargs),
    "MCLMC": lambda target=None, **kwargs: kernels.MCLMC(target, step_size=0.3, **kwargs),
    "SGLD": lambda target=None, **kwargs: kernels.SGLD(target, step_size=0.05, **kwargs),
    "SGHMC": lambda target=None, **kwargs: kernels.SGHMC(target, step_size=0.2, **kwargs),
    "ParallelTempering": lambda target=None, **kwargs: kernels.ParallelTempering(
        kernels.MALA(target, step_size=0.2, **kwargs), num_temperatures=4
    ),
}
"""Kernels with a fixed step size that suits targets of unit scale; warmup may adapt it further."""

UNADJUSTED = {"ULA": 0.02, "UnderdampedLangevin": 0.2, "MCLMC": 0.2, "SGLD": 0.02, "SGHMC": 0.2}
"""Those that do not leave their target invariant exactly, and a step size with a small bias."""

METROPOLISED = [name for name in KERNELS if name not in UNADJUSTED]
"""Those that do."""

MIN_DIM = {"MAMS": 2, "MCLMC": 2}
"""The smallest dimension of a target that a kernel serves, where it is not 1."""

SKEWED_BY_KERNEL = [
    (kernel, target)
    for kernel in METROPOLISED
    for target in SKEWED
    if math.prod(SKEWED[target]().event_shape) >= MIN_DIM.get(kernel, 1)
]
"""Pairs of an exact kernel and a skewed target that it serves."""

FAR_SIGHTED = [name for name in METROPOLISED if name != "RandomWalk"]
"""Those that a gradient pulls in from 2,000 standard deviations away within 600 steps."""

ESTIMATORS = {
    "ais": logz.ais,
    "smc": logz.smc,
    "thermodynamic": logz.thermodynamic,
    "stepping_stone": logz.stepping_stone,
    "bridge": logz.bridge,
    "importance": logz.importance,
}
"""Estimators of log Z that take a plan, with what suits them by default."""
