"""Chains lost in a far flat region go on from the places of others, and no other chain does."""

import functools
import math

import pytest
import torch
from laws import assert_chain_mean
from torch import tensor

import pyro_ebm as ebm
from pyro_ebm import Boltzmann
from pyro_ebm.kernels import HMC, MCLMC, NUTS, ChEES
from pyro_ebm.kernels.adaptation import Adaptation
from pyro_ebm.kernels.lost import lost_chains, rejoin
from pyro_ebm.kernels.stochastic import RelativeUnits
from pyro_ebm.kernels.transition import Info
from pyro_ebm.layout import chains_innermost
from pyro_ebm.potential import Potential

EULER = 0.5772156649015329
NUM_LOST = 24
DEPTH = 100.0


def well_in_a_plain(x):
    """Logs of unit exponentials, and far above them a plain that weighs 1e-36 of them."""
    well = (x - x.clamp(max=30).exp()).sum(-1)
    return -torch.logaddexp(DEPTH + well, -0.5 * (x / 1000).square().sum(-1))


def starts(num_chains=64):
    x = torch.rand(num_chains, 2).log().neg().log()
    lost = torch.zeros(num_chains, dtype=torch.bool)
    lost[torch.randperm(num_chains)[:NUM_LOST]] = True
    x[lost] = 1000 + 1000 * torch.rand(NUM_LOST, 2)
    return x, lost


@pytest.mark.parametrize(
    "make",
    [HMC, functools.partial(NUTS, max_tree_depth=4), functools.partial(ChEES, metric_rank=None)],
    ids=["HMC", "NUTS", "ChEES"],
)
def test_chains_on_a_far_plain_rejoin_and_do_not_decide_for_the_others(make):
    z, lost = starts()
    target = Boltzmann(well_in_a_plain, event_shape=(2,))
    mcmc = ebm.MCMC(make(target), 200, 200, 64, {"x": z}, compile=False, disable_progbar=True)
    mcmc.run()
    assert torch.equal(mcmc.rejoined, lost)
    draws = mcmc.get_samples(group_by_chain=True)["x"]
    assert_chain_mean(draws, tensor([-EULER, -EULER]))
    assert_chain_mean((draws + EULER).square(), tensor([math.pi**2 / 6] * 2))
    assert mcmc.state.metric.scale.max() < 10
    assert mcmc.sample_stats["n_steps"].double().mean() < 16


def test_a_mode_of_some_weight_is_left_alone():
    """A fifth of the other's weight, 20 nats up, where 30 would be too many."""
    sd = tensor([1.0, 1e4])

    def two_modes(x):
        x = x.unsqueeze(-2) - tensor([[0.0, 0.0], [1e6, 1e6]])
        inside = -0.5 * (x / sd.unsqueeze(-1)).square().sum(-1) - tensor([0.0, 20.0])
        return -inside.logsumexp(-1)

    z = torch.randn(64, 2)
    z[:20] = 1e6 + 1e-6 * torch.randn(20, 2)
    target = Boltzmann(two_modes, event_shape=(2,))
    mcmc = ebm.MCMC(HMC(target), 20, 40, 64, {"x": z}, compile=False, disable_progbar=True)
    mcmc.run()
    assert not mcmc.rejoined.any()
    assert mcmc.state.z[:20].gt(1e5).all()


def test_the_others_places_are_taken_evenly():
    target = Potential.of(Boltzmann(lambda x: x.square().sum(-1), event_shape=(2,)))
    kernel = HMC()
    for num_lost in (1, 3, 9, 30):
        z = chains_innermost(torch.randn(32, 2))
        lost = torch.zeros(32, dtype=torch.bool)
        lost[torch.randperm(32)[:num_lost]] = True
        state = kernel.init(target, z)
        after = rejoin(state, lost)
        assert after.z.stride() == z.stride()
        assert torch.equal(after.z[~lost], z[~lost])
        source = (after.z.unsqueeze(1) == z).all(-1).long().argmax(1)
        assert not lost[source].any()
        taken = source[lost].bincount(minlength=32)[~lost]
        assert taken.max() - taken.min() <= 1
        gaps = torch.cat([taken.nonzero().flatten(), tensor([32 - num_lost])]).diff()
        assert gaps.max() - gaps.min() <= 1  # not of the first superchain alone
        for got, expected in zip(after[:3], kernel.init(target, z[source])[:3], strict=True):
            torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("num_chains", [1, 2, 3, 4, 64])
def test_a_chain_is_lost_above_the_lowest_quarter_at_least_two(num_chains):
    potential = torch.rand(num_chains)
    assert not lost_chains(potential, 3).any()
    potential[0] = -1e3  # one that fell into a hole does not take all others with it
    assert not lost_chains(potential, 3).any()
    potential[-1] = math.inf
    assert lost_chains(potential, 3).sum() == (num_chains > 2)
    assert not lost_chains(torch.full((num_chains,), math.inf), 3).any()


def test_rejoining_can_be_traced():
    target = Potential.of(Boltzmann(well_in_a_plain, event_shape=(2,)))
    state = HMC().init(target, starts()[0])

    def give_back(state):
        return rejoin(state, lost_chains(state.potential, 2))

    graph = torch.fx.experimental.proxy_tensor.make_fx(give_back)(state)
    assert "_local_scalar_dense" not in graph.code


def windows_of(adaptation, state):
    info = Info(torch.zeros(64, dtype=torch.bool), torch.full((64,), 0.7))
    for t in range(1, 101):
        before, state = state, adaptation.update(state, info)
        if not torch.equal(before.z, state.z):
            return t
    return None


def test_it_is_not_before_a_quarter_of_warmup_and_not_where_potentials_are_estimates():
    target = Potential.of(Boltzmann(well_in_a_plain, event_shape=(2,)))
    state = HMC().init(target, starts()[0])
    assert windows_of(Adaptation(HMC(), 100), state) == 25
    assert windows_of(RelativeUnits(HMC(), 100), state) is None


def test_energy_goes_on_where_a_chain_rejoins():
    """Else a jump of a hundred nats would count as an error of the integrator."""
    kernel = MCLMC(Boltzmann(well_in_a_plain, event_shape=(2,)))
    target = kernel.bind((), {}, None)
    state = kernel.init(target, starts()[0])
    adaptation = kernel.adaptation(100)
    info = Info(torch.zeros(64, dtype=torch.bool), energy=state.potential + state.kinetic)
    for _ in range(30):
        state = adaptation.update(state, info)
    assert state.potential.max() < 0
    torch.testing.assert_close(state.potential + state.kinetic, info.energy)
