"""Bad input gets one clear error: whatever is given, there is no bare crash and no silence.

Of every entry one argument is replaced by a value that may make no sense. Either the value is one
that the documents allow, and the entry takes it; or it is refused with the name of the argument.
"""

import math
from functools import partial
from typing import NamedTuple

import pytest
import torch
from hypothesis import strategies as st
from torch import nn, tensor

import pyro_ebm as ebm
from examples import FEW_AND_MANY, hold
from pyro_ebm import Boltzmann, kernels, logz, objectives
from pyro_ebm.energies import MLP, Banana, Gaussian, Ising
from pyro_ebm.kernels import run
from pyro_ebm.kernels.transition import seeded_generator
from pyro_ebm.potential import Potential

REFUSALS = (ValueError, TypeError, KeyError)
NO_NUMBERS = ["a", "1", "", None, (), [1.0], {}, 1 + 1j, object, math, lambda: 1, b"1"]
ODD_NUMBERS = [0, -1, -0.0, math.nan, math.inf, -math.inf, 5e-324, 1e308, 2.5, -7, 1, 2, 3, 0.5]
ODD_TENSORS = [
    lambda: tensor(0.3),
    lambda: tensor(math.nan),
    lambda: tensor(-1.0),
    lambda: tensor([1.0, 2.0]),
    lambda: torch.zeros(0),
    lambda: tensor(1j),
]
VALUES = st.one_of(
    st.sampled_from(NO_NUMBERS),
    st.sampled_from(ODD_NUMBERS),
    st.sampled_from(ODD_TENSORS).map(lambda make: make()),
    st.floats(-10, 10),
    st.integers(-3, 4),
)


class Domain(NamedTuple):
    """The values that an argument may have."""

    numbers: str
    """"real" or "whole"."""
    low: float
    high: float
    closed: bool = False
    """Whether the bounds belong to it."""
    none: bool = False

    def __contains__(self, value):
        if value is None:
            return self.none
        if isinstance(value, torch.Tensor) and self.numbers == "real":
            value = value.item() if value.numel() == 1 else None
        kinds = (int,) if self.numbers == "whole" else (int, float)
        if not isinstance(value, kinds):
            return False
        return self.low <= value <= self.high if self.closed else self.low < value < self.high


class Levels(NamedTuple):
    """Positive numbers, one or more of them, in a tensor or in a list."""

    lists: bool

    def __contains__(self, value):
        if isinstance(value, list | tuple):
            return self.lists and len(value) > 0 and all(one in POSITIVE for one in value)
        if isinstance(value, torch.Tensor):
            return value.numel() > 0 and all(one in POSITIVE for one in value.flatten().tolist())
        return value in POSITIVE


POSITIVE = Domain("real", 0, math.inf)
COUNT = Domain("whole", 1, math.inf, closed=True)
COUNT_OR_NONE = COUNT._replace(none=True)
POSITIVE_OR_NONE = POSITIVE._replace(none=True)
OPEN = Domain("real", 0, 1)
CLOSED = Domain("real", 0, 1, closed=True)
NOT_NEGATIVE = Domain("real", 0, 1.7e308, closed=True)
ACCEPT = {"step_size": POSITIVE, "target_accept_prob": OPEN}

mala = partial(kernels.MALA, step_size=0.1)
ula = partial(kernels.ULA, step_size=0.1)

KERNELS = {
    "ULA": (ula, {"step_size": POSITIVE}),
    "MALA": (kernels.MALA, ACCEPT),
    "RandomWalk": (kernels.RandomWalk, ACCEPT),
    "HMC": (kernels.HMC, ACCEPT | {"num_steps": COUNT, "jitter": CLOSED}),
    "ChEES": (kernels.ChEES, ACCEPT | {"length": POSITIVE, "max_steps": COUNT}),
    "NUTS": (
        kernels.NUTS,
        ACCEPT | {"max_tree_depth": Domain("whole", 1, 20, closed=True)},
    ),
    "GHMC": (kernels.GHMC, ACCEPT | {"friction": POSITIVE}),
    "UnderdampedLangevin": (
        partial(kernels.UnderdampedLangevin, step_size=0.1),
        {"step_size": POSITIVE, "friction": POSITIVE},
    ),
    "MAMS": (kernels.MAMS, ACCEPT | {"num_steps": COUNT_OR_NONE, "jitter": CLOSED}),
    "MCLMC": (
        kernels.MCLMC,
        {"step_size": POSITIVE, "length": POSITIVE_OR_NONE, "energy_variance": POSITIVE},
    ),
    "SGLD": (partial(kernels.SGLD, step_size=0.1), {"step_size": POSITIVE}),
    "SGHMC": (
        partial(kernels.SGHMC, step_size=0.1),
        {
            "step_size": POSITIVE,
            "friction": POSITIVE,
            "noise_estimate": Domain("real", 0, 1 - 1e-16, closed=True),
        },
    ),
    "ParallelTempering": (
        lambda **given: kernels.ParallelTempering(mala(), **given),
        {"num_temperatures": Domain("whole", 2, math.inf, closed=True), "num_steps": COUNT},
    ),
}
KERNELS_DISCRETE = {
    "Gibbs": (kernels.Gibbs, {"num_sweeps": COUNT}),
    "DiscreteMALA": (kernels.DiscreteMALA, ACCEPT),
    "DiscreteTempering": (
        lambda **given: kernels.DiscreteTempering(kernels.Gibbs(), **given),
        {"num_temperatures": Domain("whole", 2, math.inf, closed=True), "num_steps": COUNT},
    ),
}
STANDARD = torch.distributions.MultivariateNormal(
    torch.zeros(2, dtype=torch.float64), torch.eye(2, dtype=torch.float64)
)
OBJECTIVES = {
    "ContrastiveDivergence": (
        partial(objectives.ContrastiveDivergence, mala()),
        {"num_steps": COUNT},
    ),
    "ShortRun": (partial(objectives.ShortRun, mala()), {"num_steps": COUNT}),
    "PersistentCD": (
        partial(objectives.PersistentCD, mala(), 8),
        {
            "num_steps": COUNT,
            "reinit_prob": CLOSED,
            "num_moved": Domain("whole", 1, 8, closed=True, none=True),
        },
    ),
    "Jarzynski": (
        partial(objectives.Jarzynski, ula(), 8),
        {"num_steps": COUNT, "ess_threshold": CLOSED},
    ),
    "ImprovedCD": (
        partial(objectives.ImprovedCD, ula()),
        {"num_steps": COUNT, "kl_weight": NOT_NEGATIVE},
    ),
    "MaximumLikelihood": (
        objectives.MaximumLikelihood,
        {"half_width": POSITIVE, "tol": POSITIVE},
    ),
    "DenoisingScoreMatching": (
        lambda sigma: objectives.DenoisingScoreMatching(sigma),
        {"sigma": Levels(lists=True)},
    ),
    "SlicedScoreMatching": (objectives.SlicedScoreMatching, {"num_projections": COUNT}),
    "NoiseContrastive": (
        partial(objectives.NoiseContrastive, STANDARD),
        {"ratio": POSITIVE},
    ),
    "ConditionalNoiseContrastive": (
        lambda noise_scale=1.0, **given: objectives.ConditionalNoiseContrastive(
            noise_scale, **given
        ),
        {"noise_scale": POSITIVE, "num_noise": COUNT},
    ),
    "EnergyDiscrepancy": (
        lambda noise_scale=1.0, **given: objectives.EnergyDiscrepancy(noise_scale, **given),
        {"noise_scale": POSITIVE, "num_noise": COUNT, "stabilization": NOT_NEGATIVE},
    ),
    "PseudoLikelihood": (objectives.PseudoLikelihood, {"num_sites": COUNT_OR_NONE}),
    "RatioMatching": (objectives.RatioMatching, {"num_sites": COUNT_OR_NONE}),
    "ExponentialAverage": (
        lambda decay: objectives.ExponentialAverage(nn.Linear(2, 1), decay),
        {"decay": OPEN},
    ),
}
TARGET = Boltzmann(Gaussian(torch.zeros(2), 1.0))
DISCRETE_TARGET = Boltzmann(Ising((3, 3), 0.2))
ENTRIES = {
    "Boltzmann": (partial(Boltzmann, Banana()), {"temperature": Levels(lists=False)}),
    "MCMC": (
        lambda num_samples=5, **given: ebm.MCMC(kernels.MALA(TARGET), num_samples, **given),
        {
            "num_samples": COUNT,
            "warmup_steps": Domain("whole", 0, math.inf, closed=True, none=True),
            "num_chains": COUNT,
            "thin": COUNT,
        },
    ),
}
NEVER = Domain("real", 1, 0)
ESTIMATORS = {
    "ais": (partial(logz.ais, TARGET), {"num_chains": NEVER, "num_rungs": NEVER}),
    "smc": (
        partial(logz.smc, TARGET),
        {"num_particles": NEVER, "num_islands": NEVER, "conditional_ess": NEVER},
    ),
    "bridge": (
        partial(logz.bridge, TARGET),
        {"num_chains": NEVER, "num_steps": NEVER, "num_samples": NEVER},
    ),
    "thermodynamic": (
        partial(logz.thermodynamic, TARGET),
        {"num_chains": NEVER, "num_steps": NEVER, "num_rungs": NEVER},
    ),
    "stepping_stone": (
        partial(logz.stepping_stone, TARGET),
        {"num_chains": NEVER, "num_steps": NEVER, "num_rungs": NEVER},
    ),
    "importance": (partial(logz.importance, TARGET), {"num_samples": NEVER}),
    "quadrature": (partial(logz.quadrature, TARGET), {"half_width": NEVER, "tol": NEVER}),
    "map_estimate": (
        partial(ebm.map_estimate, DISCRETE_TARGET, method="annealing"),
        {"num_starts": NEVER, "num_sweeps": NEVER},
    ),
}
"""Of what takes long, values that it takes are left out."""


def taken(make, domains, argument, value):
    """What an entry makes of a value, if it is one that it may have; else it has to be refused."""
    made, refusal = outcome(lambda: make(**{argument: value}))
    if value in domains[argument]:
        assert refusal is None, f"{argument}={value!r} is refused: {refusal}"
        return made
    assert refusal is not None, f"{argument}={value!r} is taken without a word"
    assert argument in refusal, f"{argument}={value!r}: the error says '{refusal}'"
    return None


def outcome(fn):
    """What a function returns, or what it says as it refuses."""
    try:
        return fn(), None
    except REFUSALS as error:
        return None, str(error)


@FEW_AND_MANY
@pytest.mark.parametrize("name", KERNELS)
def test_kernels_refuse_by_name_and_move_by_the_rest(name, num_examples):
    make, domains = KERNELS[name]
    potential = Potential.of(Boltzmann(Banana(1.0, 0.4)))

    def law(argument, value):
        kernel = taken(make, domains, argument, value)
        if kernel is None or (isinstance(value, int) and value > 10):
            return
        z = torch.randn(4, 2)
        state = kernel.init(potential, z)
        for now, _ in run(kernel, potential, state, 2, seeded_generator(z.device)):
            state = now
        assert state.z.isfinite().all()
        assert state.potential.isfinite().all()

    hold(law, num_examples, argument=st.sampled_from(sorted(domains)), value=VALUES)


@FEW_AND_MANY
@pytest.mark.parametrize("name", KERNELS_DISCRETE)
def test_discrete_kernels_refuse_by_name_and_move_by_the_rest(name, num_examples):
    make, domains = KERNELS_DISCRETE[name]
    potential = Potential.of(DISCRETE_TARGET)

    def law(argument, value):
        kernel = taken(make, domains, argument, value)
        if kernel is None:
            return
        state = kernel.init(potential, potential.initialize(3))
        *_, (state, _) = run(kernel, potential, state, 2, seeded_generator(state.z.device))
        assert state.z.abs().eq(1).all()
        torch.testing.assert_close(state.potential, potential.discrete.value(state.z))

    hold(law, num_examples, argument=st.sampled_from(sorted(domains)), value=VALUES)


@FEW_AND_MANY
@pytest.mark.parametrize("name", OBJECTIVES)
def test_objectives_refuse_by_name(name, num_examples):
    make, domains = OBJECTIVES[name]

    def law(argument, value):
        taken(make, domains, argument, value)

    hold(law, num_examples, argument=st.sampled_from(sorted(domains)), value=VALUES)


@FEW_AND_MANY
@pytest.mark.parametrize("name", ENTRIES)
def test_distributions_and_drivers_refuse_by_name(name, num_examples):
    make, domains = ENTRIES[name]

    def law(argument, value):
        taken(make, domains, argument, value)

    hold(law, num_examples, argument=st.sampled_from(sorted(domains)), value=VALUES)


BAD = st.one_of(
    st.sampled_from([value for value in NO_NUMBERS if value is not None]),
    st.sampled_from([0, -1, math.nan, math.inf, -math.inf, -7]),
    st.sampled_from([lambda: tensor(-1.0), lambda: torch.zeros(0)]).map(lambda make: make()),
    st.floats(-10, -0.1),
    st.integers(-3, 0),
)


@FEW_AND_MANY
@pytest.mark.parametrize("name", ESTIMATORS)
def test_estimators_refuse_by_name_before_they_begin(name, num_examples):
    make, domains = ESTIMATORS[name]

    def law(argument, value):
        taken(make, domains, argument, value)

    hold(law, num_examples, argument=st.sampled_from(sorted(domains)), value=BAD)


SERVES = {
    "ContrastiveDivergence": lambda: objectives.ContrastiveDivergence(mala()),
    "ShortRun": lambda: objectives.ShortRun(mala(), 2),
    "PersistentCD": lambda: objectives.PersistentCD(mala(), 4),
    "Jarzynski": lambda: objectives.Jarzynski(ula(), 4),
    "ImprovedCD": lambda: objectives.ImprovedCD(ula()),
    "MaximumLikelihood": lambda: objectives.MaximumLikelihood(half_width=12.0, tol=0.01),
    "ScoreMatching": objectives.ScoreMatching,
    "SlicedScoreMatching": objectives.SlicedScoreMatching,
    "DenoisingScoreMatching": lambda: objectives.DenoisingScoreMatching(0.3),
    "NoiseContrastive": lambda: objectives.NoiseContrastive(STANDARD),
    "ConditionalNoiseContrastive": lambda: objectives.ConditionalNoiseContrastive(0.5),
    "EnergyDiscrepancy": lambda: objectives.EnergyDiscrepancy(0.5),
}
DATA = st.tuples(
    st.lists(st.integers(0, 3), max_size=3),
    st.sampled_from([1.0, 1.0, 1.0, 1.0, math.nan, math.inf, -math.inf]),
    st.sampled_from([torch.float64, torch.float64, torch.float32, torch.long, torch.bool]),
)


@FEW_AND_MANY
@pytest.mark.parametrize("name", SERVES)
def test_objectives_serve_data_of_any_batch_or_refuse_them(name, num_examples):
    target = Boltzmann(MLP((2,), (4,)))

    def law(data):
        shape, scale, dtype = data
        x = (scale * torch.randn(shape)).to(dtype)
        good = shape[-1:] == [2] and x.numel() > 0 and dtype == torch.float64 and scale == 1.0
        if name == "ImprovedCD":
            good = good and x.numel() > 2
        value, refusal = outcome(lambda: SERVES[name]().surrogate(target, x))
        if not good:
            assert refusal is not None, f"{data} are taken without a word"
            assert "site 'x'" in refusal, f"{data}: the error says '{refusal}'"
            return
        assert refusal is None, f"{data} are refused: {refusal}"
        assert value.shape == x.shape[:-1]
        assert value.isfinite().all()

    hold(law, num_examples, data=DATA)
