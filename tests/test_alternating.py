"""Models that mix discrete and continuous sites are sampled from their joint law."""

import itertools
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from discrete_cases import Pairs, uneven
from laws import assert_counts, assert_follows
from torch import tensor
from torch.distributions import constraints

import pyro_ebm as ebm
from pyro_ebm import kernels
from pyro_ebm.energies import spins
from pyro_ebm.kernels import run
from pyro_ebm.kernels.transition import seeded_generator

STATES = tensor(list(itertools.product((-1.0, 1.0), repeat=3))).double()
ENERGY = Pairs((3,), tensor([[0, 1], [1, 2]]), tensor([0.7, -0.4]), uneven(3, -0.5, 0.6)).double()
WEIGHTS = tensor([0.8, -0.5, 0.3]).double()
TEMPERATURE, SCALE, Y = 1.6, 0.7, 0.9


def sites():
    """A discrete site by its energy, a continuous one, and an observation of both."""
    s = pyro.sample("s", ebm.Boltzmann(ENERGY, temperature=TEMPERATURE))
    z = pyro.sample("z", dist.Normal(0.3, 1.0))
    pyro.sample("y", dist.Normal(z + (s * WEIGHTS).sum(-1), SCALE), obs=tensor(Y))


def law_of_sites():
    """The probabilities of the discrete states, and the normal law of z given each."""
    energy = ENERGY(STATES)
    shift = STATES @ WEIGHTS
    evidence = dist.Normal(0.3 + shift, math.hypot(1.0, SCALE)).log_prob(tensor(Y))
    precision = 1 + SCALE**-2
    mean = (0.3 + (Y - shift) / SCALE**2) / precision
    return (evidence - energy / TEMPERATURE).softmax(0), mean, precision**-0.5


LOCS = tensor([-1.0, 0.5, 2.0]).double()


def labels():
    """Pyro's own discrete distribution, whose values are indices."""
    with pyro.plate("data", 2):
        k = pyro.sample("k", dist.Categorical(tensor([0.5, 0.3, 0.2])))
        z = pyro.sample("z", dist.Normal(LOCS[k], 1.0))
        pyro.sample("y", dist.Normal(z, SCALE), obs=tensor([Y, -2.0]))


def law_of_labels():
    evidence = dist.Normal(LOCS, math.hypot(1.0, SCALE)).log_prob(tensor(Y))
    precision = 1 + SCALE**-2
    mean = (LOCS + Y / SCALE**2) / precision
    return (evidence + tensor([0.5, 0.3, 0.2]).log()).softmax(0), mean, precision**-0.5


def chains(kernel, num_chains, num_steps):
    potential = kernel.bind((), {}, None)
    state = kernel.init(potential, potential.initialize(num_chains))
    generator = seeded_generator(state.z.device)
    *_, (state, info) = run(kernel, potential, state, num_steps, generator)
    return state, info, potential.constrain(state.z)


def check(index, z, law):
    probs, mean, sd = law
    assert_counts(torch.bincount(index, minlength=len(probs)), probs)
    assert_follows((z - mean[index]) / sd, dist.Normal(0.0, 1.0).cdf)


RESTS = {"HMC": kernels.HMC(step_size=0.5, num_steps=3), "MALA": kernels.MALA(step_size=0.4)}


@pytest.mark.parametrize(
    ("discrete", "rest"),
    [
        (kernels.Gibbs, "HMC"),
        (kernels.SingleFlip, "MALA"),
        (kernels.GibbsWithGradients, "MALA"),
        (kernels.DiscreteMALA, "HMC"),
    ],
)
def test_samples_the_joint_law(discrete, rest):
    kernel = kernels.Alternating(sites, {"s": discrete()}, rest=RESTS[rest])
    state, _, values = chains(kernel, 2000, 60)
    check((values["s"] > 0).long() @ tensor([4, 2, 1]), values["z"], law_of_sites())
    again = kernel.init(kernel.bind((), {}, None), state.z)
    torch.testing.assert_close(state.potential, again.potential)


def test_moves_pyros_own_discrete_sites_without_summing_them_out():
    kernel = kernels.Alternating(labels, {"k": kernels.Gibbs()}, rest=RESTS["HMC"])
    _, _, values = chains(kernel, 2000, 40)
    assert values["k"].dtype == torch.long
    check(values["k"][:, 0], values["z"][:, 0], law_of_labels())


def test_adapts_each_kernel_in_the_driver():
    kernel = kernels.Alternating(
        sites, {"s": kernels.DiscreteMALA()}, rest=kernels.HMC(step_size=0.01, num_steps=4)
    )
    mcmc = ebm.MCMC(kernel, 25, 75, 400, disable_progbar=True)
    mcmc.run()
    assert mcmc.state.step_size > 0.1
    assert mcmc.state.inner[0].step_size != 0.2
    draws = mcmc.get_samples(group_by_chain=True)
    index = (draws["s"][:, -1] > 0).long() @ tensor([4, 2, 1])
    check(index, draws["z"][:, -1], law_of_sites())
    assert set(mcmc.diagnostics()) >= {"s", "z", "acceptance rate"}
    pytest.importorskip("arviz")
    assert set(ebm.to_arviz(mcmc)["posterior"].data_vars) == {"s", "z"}


def test_several_discrete_sites_need_no_continuous_one():
    def model():
        a = pyro.sample("a", dist.Bernoulli(0.3))
        s = pyro.sample("s", ebm.Boltzmann(ENERGY))
        ebm.energy_factor("tie", lambda a, s: -0.8 * a * s[..., 0] * s[..., 2], a, s)

    kernel = kernels.Alternating(model, {"s": kernels.SingleFlip(), "a": kernels.Gibbs()})
    _, _, values = chains(kernel, 3000, 60)
    energy = ENERGY(STATES)
    tie = 0.8 * STATES[:, 0] * STATES[:, 2]
    log_probs = torch.cat([math.log(0.7) - energy, math.log(0.3) - energy + tie])
    index = (values["s"] > 0).long() @ tensor([4, 2, 1]) + 8 * values["a"].long()
    assert_counts(torch.bincount(index, minlength=16), log_probs.softmax(0))


def test_counts_the_divergences_of_every_kernel():
    both_up = constraints.independent(spins, 1)

    def model():
        energy = ebm.Boltzmann(
            lambda s: torch.where(s.sum(-1) > 1, math.inf, 0.3 * s[..., 0]),
            event_shape=(2,),
            support=both_up,
        )
        s = pyro.sample("s", energy)
        pyro.sample("z", dist.Normal(0.5 * s[..., 0], 1.0))

    kernel = kernels.Alternating(model, {"s": kernels.SingleFlip()}, rest=RESTS["HMC"])
    state, info, values = chains(kernel, 500, 5)
    assert info.diverging.any()
    assert not state.infos[-1].diverging.any()
    assert (values["s"].sum(-1) < 2).all()


def too_many_to_sum():
    grid = constraints.independent(spins, 2)
    law = ebm.Boltzmann(lambda x: -0.1 * x.sum((-2, -1)), event_shape=(9, 9), support=grid)
    s = pyro.sample("s", law)
    pyro.sample("z", dist.Normal(s[..., 0, 0], 1.0))


def test_a_model_names_the_way_out_for_a_discrete_site():
    with pytest.raises(ValueError, match=r"latent 's' is discrete.*kernels.Alternating"):
        ebm.MCMC(kernels.HMC(too_many_to_sum), 5, 5, disable_progbar=True).run()


def test_refuses_kernels_that_do_not_fit():
    bits = ebm.Boltzmann(
        lambda x: x.sum(-1),
        event_shape=(2,),
        support=constraints.independent(spins, 1),
    )
    wrong = [
        (lambda: kernels.Alternating(sites, {"s": kernels.HMC()}), "must be a discrete one"),
        (lambda: kernels.Alternating(sites, {}, rest=kernels.HMC()), "must name a discrete site"),
        (lambda: kernels.Alternating(sites, {"s": kernels.Gibbs(bits)}), "no target of their own"),
        (
            lambda: kernels.Alternating(sites, {"s": kernels.Gibbs()}, rest=kernels.Gibbs()),
            "rest must be a continuous kernel",
        ),
    ]
    for make, message in wrong:
        with pytest.raises(ValueError, match=message):
            make()
    tempered = kernels.DiscreteTempering(kernels.Gibbs())
    with pytest.raises(ValueError, match="must not be tempered"):
        kernels.Alternating(sites, {"s": tempered}, rest=kernels.HMC())
    gibbs, hmc = kernels.Gibbs(), kernels.HMC()
    unfit = [
        ({"z": gibbs}, hmc, "latent 's' is discrete"),
        ({"s": gibbs, "z": gibbs}, hmc, r"\['z'\] are no discrete latents"),
        ({"s": gibbs}, None, r"continuous sites \['z'\], got None"),
    ]
    for by_site, rest, message in unfit:
        kernel = kernels.Alternating(too_many_to_sum, by_site, rest=rest)
        with pytest.raises(ValueError, match=message):
            kernel.bind((), {}, None)
