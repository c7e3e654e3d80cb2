"""Shapes, dtypes, supports and plates: laws that hold whatever these are."""

import contextlib
import operator

import pyro
import torch
from hypothesis import strategies as st
from pyro import poutine
from pyro.distributions import constraints
from pyro.infer import SVI
from pyro.optim import SGD
from torch import tensor
from torch.distributions import biject_to

import pyro_ebm as ebm
from examples import FEW_AND_MANY, hold
from pyro_ebm import Boltzmann
from pyro_ebm.energies import MLP, Energy, Gaussian, Laplace, mixture
from pyro_ebm.kernels import HMC, run
from pyro_ebm.kernels.transition import seeded_generator
from pyro_ebm.objectives import ScoreMatching
from pyro_ebm.potential import Potential

SHAPES = st.lists(st.integers(1, 3), max_size=2).map(tuple)
DTYPES = st.sampled_from([torch.float32, torch.float64])


def gaussian(event_shape, dtype):
    loc = torch.linspace(-1, 1, max(1, torch.Size(event_shape).numel()), dtype=dtype)
    return Gaussian(loc.reshape(event_shape), tensor(1.5, dtype=dtype))


@FEW_AND_MANY
def test_log_prob_has_the_shape_of_the_batch_and_the_dtype_of_the_energy(num_examples):
    def law(event, batch, sample, dtype, known):
        energy = gaussian(event, dtype)
        plain = {} if known else {"event_shape": event}
        p = Boltzmann(energy if known else (lambda x: energy(x)), **plain).expand(batch)
        assert p.batch_shape == batch
        assert p.event_shape == event
        x = torch.randn((*sample, *batch, *event), dtype=dtype)
        value = p.log_prob(x)
        assert value.shape == sample + batch
        assert value.dtype == dtype
        expected = -energy(x) - (energy.log_z() if known else 0)
        torch.testing.assert_close(value, expected.expand(value.shape))
        if known:
            assert p.sample(sample).shape == x.shape
            assert p.sample(sample).dtype == dtype
        whole = p.to_event(len(batch)).log_prob(x)
        torch.testing.assert_close(whole, value.reshape(*sample, -1).sum(-1).reshape(sample))

    hold(
        law,
        num_examples,
        event=SHAPES,
        batch=SHAPES,
        sample=SHAPES,
        dtype=DTYPES,
        known=st.booleans(),
    )


@FEW_AND_MANY
def test_a_point_of_the_wrong_shape_is_refused(num_examples):
    def law(event, shape):
        p = Boltzmann(gaussian(event, torch.float64))
        x = torch.randn(shape)
        ends = len(shape) >= len(event) and shape[len(shape) - len(event) :] == event
        try:
            value = p.log_prob(x)
        except ValueError as error:
            said = str(error)
            assert not ends, f"{shape} is refused: {said}"
            return
        assert ends, f"{shape} is taken for {event}"
        assert value.shape == shape[: len(shape) - len(event)]

    hold(law, num_examples, event=SHAPES, shape=st.lists(st.integers(1, 3), max_size=3).map(tuple))


LEAVES = {
    "gaussian": lambda: gaussian((2,), torch.float64),
    "laplace": lambda: Laplace(tensor([0.3, -1.0]), 0.7),
    "plain": lambda: lambda x: x.pow(4).sum(-1),
}
NUMBERS = st.floats(0.1, 5.0).map(lambda number: round(number, 3))
COMPOSED = st.recursive(
    st.sampled_from(["gaussian", "laplace"]),
    lambda inner: st.one_of(
        st.tuples(st.just("+"), inner, st.one_of(inner, st.just("plain"))),
        st.tuples(st.just("-"), inner, st.one_of(inner, st.just("plain"))),
        st.tuples(st.just("*"), NUMBERS, inner),
        st.tuples(st.just("/"), inner, NUMBERS),
        st.tuples(st.just("mixture"), inner, inner, NUMBERS),
    ),
    max_leaves=6,
)
OPERATORS = {"+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.truediv}


def made(tree):
    """The energy of an expression."""
    if not isinstance(tree, tuple):
        return LEAVES[tree]() if isinstance(tree, str) else tree
    name, *parts = tree
    if name == "mixture":
        return mixture([made(parts[0]), made(parts[1])], [parts[2], 1.0], log_z=[0.3, -0.2])
    return OPERATORS[name](*map(made, parts))


def worth(tree, x):
    """What the expression says at points, by plain arithmetic."""
    if not isinstance(tree, tuple):
        return LEAVES[tree]()(x) if isinstance(tree, str) else tree
    name, *parts = tree
    if name == "mixture":
        weights = tensor([parts[2], 1.0]) / (parts[2] + 1.0)
        one, other = weights.log() - tensor([0.3, -0.2])
        return -torch.logaddexp(one - worth(parts[0], x), other - worth(parts[1], x))
    return OPERATORS[name](*(worth(part, x) for part in parts))


@FEW_AND_MANY
def test_the_algebra_of_energies_is_that_of_their_values(num_examples):
    def law(tree, batch):
        energy = made(tree)
        assert isinstance(energy, Energy)
        assert energy.event_shape == (2,)
        x = torch.randn(*batch, 2)
        value = energy(x)
        assert value.shape == batch
        torch.testing.assert_close(value, torch.as_tensor(worth(tree, x)))
        grad = energy.grad(x)
        torch.testing.assert_close(energy.score(x), -grad)
        assert not list(energy.parameters())

    hold(law, num_examples, tree=COMPOSED, batch=SHAPES)


INTERVALS = st.tuples(st.floats(-5, 5), st.floats(0.1, 5)).map(
    lambda pair: constraints.interval(pair[0], pair[0] + pair[1])
)
SITES = st.one_of(
    st.sampled_from([constraints.real, constraints.positive, constraints.unit_interval]),
    st.floats(-5, 5).map(constraints.greater_than),
    st.floats(-5, 5).map(constraints.less_than),
    INTERVALS,
)
SUPPORTS = st.one_of(
    SITES.map(lambda site: (constraints.independent(site, 1), 3)),
    st.sampled_from(
        [
            (constraints.simplex, 3),
            (constraints.ordered_vector, 3),
            (constraints.real_vector, 3),
        ]
    ),
)


@FEW_AND_MANY
def test_chains_stay_on_the_support_and_count_its_jacobian(num_examples):
    def law(case):
        support, dim = case
        p = Boltzmann(
            lambda x: 0.5 * (x - 0.2).square().sum(-1), event_shape=(dim,), support=support
        )
        potential = Potential.of(p)
        z = potential.initialize(4)
        x = potential.constrain(z)["x"]
        assert x.shape == (4, dim)
        assert support.check(x).all()
        torch.testing.assert_close(potential.unconstrain({"x": x}), z, atol=1e-6, rtol=1e-6)
        bijection = biject_to(support)
        jacobian = bijection.log_abs_det_jacobian(z, x).reshape(4, -1).sum(-1)
        value, grad = potential.value_and_grad(z)
        torch.testing.assert_close(value, -p.log_density(x) - jacobian)
        assert grad.shape == z.shape
        kernel = HMC(step_size=0.3, num_steps=3)
        state = kernel.init(potential, z)
        *_, (state, _) = run(kernel, potential, state, 3, seeded_generator(z.device))
        assert support.check(potential.constrain(state.z)["x"]).all()

    hold(law, num_examples, case=SUPPORTS)


@FEW_AND_MANY
def test_plates_and_masks_weigh_a_surrogate_as_any_site(num_examples):
    """The loss is that of the sum of surrogates, each times what its plates say."""
    torch.manual_seed(0)
    energy = MLP((2,), (3,))

    def law(sizes, subsample, masked):
        pyro.clear_param_store()
        x = torch.randn(*sizes, 2)
        keep = torch.rand(sizes) < 0.7 if masked else torch.ones(sizes, dtype=torch.bool)
        outer = sizes[-1] if sizes else 1
        count = min(subsample, outer)
        rows = torch.arange(count)

        def model():
            with contextlib.ExitStack() as plates:
                for d, size in enumerate(sizes[:-1]):
                    plates.enter_context(pyro.plate(f"plate_{d}", size, dim=d - len(sizes)))
                if sizes:
                    plates.enter_context(pyro.plate("data", outer, subsample=rows, dim=-1))
                own, its = (x[..., rows, :], keep[..., rows]) if sizes else (x, keep)
                with poutine.mask(mask=its):
                    pyro.sample("x", Boltzmann(energy), obs=own)

        loss = SVI(model, ebm.no_guide, SGD({"lr": 0.0}), loss=ScoreMatching()).evaluate_loss()
        surrogate = ScoreMatching().surrogate(Boltzmann(energy), x).detach()
        weighed = torch.where(keep, surrogate, 0.0)
        if sizes:
            weighed = weighed[..., rows] * (outer / count)
        torch.testing.assert_close(tensor(float(loss)), -weighed.sum())

    hold(
        law,
        num_examples,
        sizes=st.lists(st.integers(1, 4), max_size=3).map(tuple),
        subsample=st.integers(1, 4),
        masked=st.booleans(),
    )
