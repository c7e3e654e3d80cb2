r"""Joint distribution tests: a kernel renews the parameters, and the data renew themselves.

.. math:: \theta' \sim k(\theta' \mid \theta; y), \qquad y' \sim p(y \mid \theta')

If the kernel leaves the posterior of any data invariant, then a pair that begins as a draw of the
joint law stays one, and its parameters follow the prior, which is known. What a kernel does wrong
adds up, since the data follow it. Many pairs go side by side, each as a chain with its own data.

References:
    | Getting it right: joint distribution tests of posterior simulators (Geweke, 2004),
    | https://doi.org/10.1198/016214504000001132
"""

import pytest
import torch
from cases import KERNELS, METROPOLISED
from discrete_cases import DISCRETE_KERNELS
from laws import assert_counts, assert_follows
from torch import tensor
from torch.distributions import Exponential, Gamma, constraints

from pyro_ebm import Boltzmann
from pyro_ebm.energies import IsingGraph, spins
from pyro_ebm.energies.enumeration import enumerate_points
from pyro_ebm.kernels import ULA, run
from pyro_ebm.kernels.transition import seeded_generator
from pyro_ebm.potential import Potential


class Product:
    """Two positive numbers of which the data see the product: a skewed, curved posterior."""

    prior = Gamma(tensor([2.0, 1.5]), tensor([1.0, 2.0]))
    support = constraints.independent(constraints.positive, 1)

    def draw(self, num):
        x = self.prior.sample((num,))
        return x, self.data(x)

    def data(self, x):
        return Exponential(x.prod(-1, keepdim=True).expand(-1, 3)).sample()

    def energy(self, y):
        def energy(x):
            rate = x.prod(-1)
            return -self.prior.log_prob(x).sum(-1) + rate * y.sum(-1) - 3 * rate.log()

        return energy

    def check(self, x):
        for d, (shape, rate) in enumerate(((2.0, 1.0), (1.5, 2.0))):
            assert_follows(
                x[:, d], lambda t, a=shape, b=rate: torch.special.gammainc(tensor(a), b * t)
            )


class Spins:
    """Spins that pull at each other and are seen through noise."""

    prior = IsingGraph(
        tensor([[0, 1], [1, 2], [2, 0], [2, 3]]), 0.5, tensor([0.4, -0.2, 0.1, 0.3])
    )
    support = constraints.independent(spins, 1)

    def draw(self, num):
        points, probs = self.law()
        x = points[torch.multinomial(probs, num, replacement=True)]
        return x, self.data(x)

    def law(self):
        points = enumerate_points(self.support, (4,), torch.zeros(()))
        return points, (-self.prior(points)).softmax(0)

    def data(self, x):
        return x + 0.8 * torch.randn_like(x)

    def energy(self, y):
        return lambda x: self.prior(x) + (y - x).square().sum(-1) / (2 * 0.8**2)

    def check(self, x):
        points, probs = self.law()
        found = (x[:, None] == points).all(-1).double().argmax(-1)
        assert_counts(found.bincount(minlength=len(points)), probs)


def renewed(kernel, model, num_chains, num_rounds):
    """The parameters of pairs that began as exact draws, after some rounds."""
    x, y = model.draw(num_chains)
    generator, state = seeded_generator(x.device), None
    for _ in range(num_rounds):
        target = Boltzmann(model.energy(y), event_shape=x.shape[1:], support=model.support)
        potential = Potential.of_batch(target, (num_chains,), x)
        z = potential.unconstrain({"x": x})
        *_, (state, _) = run(kernel, potential, given(kernel, potential, z, state), 1, generator)
        x = potential.constrain(state.z)["x"]
        y = model.data(x)
    return x


def given(kernel, potential, z, state):
    """The state of chains whose data are new; a momentum lasts, replicas begin where they are."""
    fresh = kernel.init(potential, z)
    if state is None or hasattr(state, "replicas"):
        return fresh
    looked = ("potential", "changes" if hasattr(state, "changes") else "grad")
    return state._replace(**{name: getattr(fresh, name) for name in looked})


@pytest.mark.parametrize("kernel", METROPOLISED)
def test_pairs_of_parameters_and_data_stay_exact(kernel):
    model = Product()
    model.check(renewed(KERNELS[kernel](), model, 4000, 20))


@pytest.mark.parametrize("kernel", [name for name in DISCRETE_KERNELS if name != "SwendsenWang"])
def test_pairs_of_spins_and_data_stay_exact(kernel):
    model = Spins()
    model.check(renewed(DISCRETE_KERNELS[kernel](), model, 4000, 20))


def test_a_biased_kernel_is_found_out():
    model = Product()
    with pytest.raises(AssertionError, match="distance"):
        model.check(renewed(ULA(step_size=0.3), model, 4000, 20))


@pytest.mark.slow
@pytest.mark.parametrize("kernel", METROPOLISED)
def test_many_pairs_stay_exact_for_long(kernel):
    model = Product()
    model.check(renewed(KERNELS[kernel](), model, 40_000, 100))
