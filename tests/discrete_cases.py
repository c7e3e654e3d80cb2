"""What the laws of discrete kernels run over: small energies of which every point is known."""

import itertools

import torch
from torch import nn, tensor
from torch.distributions import constraints

from pyro_ebm import kernels
from pyro_ebm.energies import DiscreteEnergy, spins


def torus(height, width):
    """The bonds of a torus, each once, and three colours or two."""
    sites = torch.arange(height * width).reshape(height, width)
    edges = [torch.stack([sites, sites.roll(-1, d)], -1).reshape(-1, 2) for d in (0, 1)]
    return torch.cat(edges)


def first_fit(num_sites, edges):
    colours = [-1] * num_sites
    for i in range(num_sites):
        near = {colours[j] for e in edges.tolist() if i in e for j in e}
        colours[i] = next(c for c in range(num_sites) if c not in near)
    return tensor(colours)


class Pairs(DiscreteEnergy):
    """Spins (or booleans, their product for their agreement) with couplings and a field."""

    def __init__(self, shape, edges, couplings, field, site=spins):
        num_sites = torch.Size(shape).numel()
        support = constraints.independent(site, len(shape))
        super().__init__(shape, support, first_fit(num_sites, edges).reshape(shape))
        self.register_buffer("edges", edges)
        self.constant("couplings", couplings)
        self.constant("field", field)

    def forward(self, x):
        x = x.flatten(-len(self.event_shape))
        i, j = self.edges.unbind(-1)
        pairs = (self.couplings * x[..., i] * x[..., j]).sum(-1)
        return -pairs - (self.field.flatten() * x).sum(-1)

    def conditionals(self, x):
        flat = x.flatten(-len(self.event_shape))
        i, j = self.edges.unbind(-1)
        local = self.field.flatten().expand(flat.shape)
        local = local.index_add(-1, i, self.couplings * flat[..., j])
        local = local.index_add(-1, j, self.couplings * flat[..., i])
        values = self.alphabet.decode(torch.arange(2))
        return (local.unsqueeze(-1) * values).reshape(*x.shape, 2)


class Potts(DiscreteEnergy):
    """Integers, or one-hot vectors, whose agreement is worth something; each has a field."""

    def __init__(self, edges, couplings, field, one_hot=False):
        num_sites, num_values = field.shape
        if one_hot:
            shape, site = field.shape, constraints.independent(constraints.one_hot, 1)
        else:
            shape = (num_sites,)
            site = constraints.independent(constraints.integer_interval(0, num_values - 1), 1)
        super().__init__(shape, site, first_fit(num_sites, edges))
        self.register_buffer("edges", edges)
        self.constant("couplings", couplings)
        self.constant("field", field)

    def one_hot(self, x):
        if self.alphabet.one_hot:
            return x
        return (x.unsqueeze(-1) == torch.arange(self.num_values)).to(self.field)

    def forward(self, x):
        y = self.one_hot(x)
        i, j = self.edges.unbind(-1)
        agree = (y[..., i, :] * y[..., j, :]).sum(-1)
        return -(self.couplings * agree).sum(-1) - (self.field * y).sum((-2, -1))

    def conditionals(self, x):
        y = self.one_hot(x)
        i, j = self.edges.unbind(-1)
        local = self.field.expand(y.shape)
        local = local.index_add(-2, i, self.couplings[:, None] * y[..., j, :])
        return local.index_add(-2, j, self.couplings[:, None] * y[..., i, :])


class Curved(nn.Module):
    """A smooth function of a point, of which no conditional is known, nor is a tangent exact."""

    def __init__(self, event_shape):
        super().__init__()
        self.event_dim = len(event_shape)
        dim = torch.Size(event_shape).numel()
        seeded = torch.Generator().manual_seed(5)
        self.register_buffer("inner", torch.randn(dim, 6, generator=seeded) / dim**0.5)
        self.register_buffer("outer", torch.randn(6, generator=seeded) * 1.5)

    def forward(self, x):
        x = x.flatten(-self.event_dim)
        return torch.tanh(x @ self.inner + 0.3) @ self.outer


def uneven(num, low, high):
    """Numbers between two others, in no order."""
    return low + (high - low) * ((torch.arange(num) * 0.618034 + 0.3) % 1)


def ising(height, width):
    edges = torus(height, width)
    field = uneven(height * width, -0.1, 0.4).reshape(height, width)
    return Pairs((height, width), edges, uneven(len(edges), 0.1, 0.5), field)


def frustrated():
    edges = torus(3, 3)
    return Pairs((9,), edges, uneven(len(edges), -0.5, 0.6), uneven(9, -0.3, 0.5))


def bipartite():
    edges = tensor(list(itertools.product(range(5), range(5, 8))))
    biases = uneven(8, -1.0, 0.6)
    return Pairs((8,), edges, uneven(15, -1.2, 1.5), biases, constraints.boolean)


def potts():
    edges = torus(3, 3)
    return Potts(edges, uneven(len(edges), 0.1, 0.7), uneven(27, -0.4, 0.5).reshape(9, 3))


def words():
    edges = torch.stack([torch.arange(4), torch.arange(1, 5)], -1)
    field = uneven(15, -0.8, 0.7).reshape(5, 3)
    return Potts(edges, uneven(4, -0.4, 0.9), field, one_hot=True)


DISCRETE = {
    "ising_3x3": lambda: (ising(3, 3), {}),
    "ising_3x4": lambda: (ising(3, 4), {}),
    "frustrated_3x3": lambda: (frustrated(), {}),
    "bipartite_5+3": lambda: (bipartite(), {}),
    "potts_3x3": lambda: (potts(), {}),
    "one_hot_5x3": lambda: (words(), {}),
    "curved_spins": lambda: (
        Curved((2, 3)),
        {"event_shape": (2, 3), "support": constraints.independent(spins, 2)},
    ),
    "curved_one_hot": lambda: (
        Curved((4, 3)),
        {"event_shape": (4, 3), "support": constraints.independent(constraints.one_hot, 1)},
    ),
    "curved_integers": lambda: (
        Curved((4,)),
        {
            "event_shape": (4,),
            "support": constraints.independent(constraints.integer_interval(-1, 2), 1),
        },
    ),
}
"""Energies and what a Boltzmann has to be told besides: no symmetry leaves one as it is."""

DISCRETE_KERNELS = {
    "Gibbs": kernels.Gibbs,
    "SingleFlip": kernels.SingleFlip,
    "GibbsWithGradients": kernels.GibbsWithGradients,
    "DiscreteMALA": lambda *args: kernels.DiscreteMALA(*args, step_size=0.6),
    "SwendsenWang": kernels.SwendsenWang,
    "DiscreteTempering": lambda *args: kernels.DiscreteTempering(
        kernels.DiscreteMALA(*args, step_size=0.6), num_temperatures=3
    ),
}

WITH_COUPLINGS = ["ising_3x3", "ising_3x4", "frustrated_3x3", "potts_3x3"]
"""What Swendsen-Wang serves."""

DISCRETE_BY_KERNEL = [
    (kernel, target)
    for kernel in DISCRETE_KERNELS
    for target in DISCRETE
    if kernel != "SwendsenWang" or target in WITH_COUPLINGS
]
"""Pairs of a kernel and a target that it serves."""
