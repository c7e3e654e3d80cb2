"""NUTS builds the trees it says, weighs their points by the energy, and samples its target."""

import itertools
import math
import shutil

import pytest
import torch
from cases import SKEWED
from laws import assert_close, assert_mean, assert_same_law
from posteriordb import posterior
from pyro.infer import MCMC as PyroMCMC
from torch import tensor
from torch.utils._pytree import tree_leaves

import pyro_ebm as ebm
from pyro_ebm.diagnostics import bulk_ess, split_r_hat
from pyro_ebm.energies import Banana, Gaussian
from pyro_ebm.kernels import HMC, NUTS, run
from pyro_ebm.kernels.acceleration import Runner
from pyro_ebm.kernels.hamiltonian import leapfrog
from pyro_ebm.kernels.metric import Metric
from pyro_ebm.kernels.tree import Checkpoints, begin, extend, renew, uniforms
from pyro_ebm.potential import Potential

STANDARD = Gaussian(torch.zeros(1, dtype=torch.float64), 1.0)


def flat_potential(energy):
    return Potential.of(ebm.Boltzmann(energy))


def transitions(kernel, energy, z, num_steps=1, seed=0):
    potential = flat_potential(energy)
    generator = torch.Generator().manual_seed(seed)
    return list(run(kernel, potential, kernel.init(potential, z), num_steps, generator))


def turns(momenta):
    """The U-turn criterion by its formula, over the points of one subtree in order of time."""
    first, last = momenta[0], momenta[-1]
    q = momenta.sum(0) - 0.5 * (first + last)
    return bool(first @ q <= 0) or bool(last @ q <= 0)


def some_subtree_turns(momenta):
    """Asks each binary subtree, the whole included, by recursion."""
    if len(momenta) == 1:
        return False
    half = len(momenta) // 2
    parts = (momenta[:half], momenta[half:])
    return turns(momenta) or any(map(some_subtree_turns, parts))


def tree_by_recursion(points, directions):
    """The depth, the leaves and the leapfrog steps of one tree; ``points`` maps time to p."""
    left, right, num_steps = 0, 0, 0
    for depth, forward in enumerate(directions):
        size = 2**depth
        new = range(right + 1, right + 1 + size) if forward else range(left - size, left)
        in_order = list(new) if forward else list(new)[::-1]
        stops = [
            n
            for n in range(1, size + 1)
            for span in (2**k for k in range(1, depth + 1) if n % 2**k == 0)
            if turns(torch.stack([points[t] for t in sorted(in_order[n - span : n])]))
        ]
        if stops:
            return depth, (left, right), num_steps + min(stops)
        num_steps += size
        left, right = min(left, *new), max(right, *new)
        if turns(torch.stack([points[t] for t in range(left, right + 1)])):
            return depth + 1, (left, right), num_steps
    return len(directions), (left, right), num_steps


@pytest.mark.parametrize("step_size", [0.1, 0.25, 0.6])
def test_builds_the_trees_of_the_recursion(step_size):
    num_chains, max_depth = 60, 5
    energy = Banana(scale=1.0, curvature=0.5)
    potential = flat_potential(energy)
    state = NUTS(step_size=step_size).init(potential, energy.sample(num_chains))
    state = state._replace(metric=Metric(tensor([0.7, 1.4])))
    momentum = torch.randn(num_chains, 2)
    points = {0: momentum}
    for sign in (1, -1):
        moved, p = state._replace(step_size=sign * state.step_size), momentum
        for t in range(1, 2**max_depth):
            moved, p = leapfrog(potential, moved, p)
            points[sign * t] = p
    seed = torch.randint(2**62, (num_chains,))
    forward = seed.unsqueeze(-1) >> torch.arange(max_depth) & 1
    start = (momentum.T.contiguous(), 0.5 * momentum.square().sum(-1))
    now, checkpoints, found = begin(state, *start), Checkpoints.empty(start[0], max_depth), {}
    for _ in range(1, 2**max_depth):
        now, end = extend(potential, state, now, checkpoints, seed)
        for c in end.over.nonzero().flatten().tolist():
            sizes = (now.depth[c].item(), now.num_steps[c].item())
            found.setdefault(c, (*sizes, end.saturated[c], now.tree.momentum_sum[:, c]))
        now = renew(now, end.over, *start)
    depths = set()
    for c in range(num_chains):
        depth, (left, right), num_steps = tree_by_recursion(
            {t: p[c] for t, p in points.items()}, forward[c].tolist()
        )
        *sizes, saturated, momentum_sum = found[c]
        assert sizes == [depth, num_steps]
        inside = torch.stack([points[t][c] for t in range(left, right + 1)])
        if saturated or num_steps != 2**depth - 1:
            assert not some_subtree_turns(inside)
        torch.testing.assert_close(momentum_sum, inside.sum(0))
        depths.add(depth)
    assert len(depths) >= 3


def split_mix(seed, place):
    """SplitMix64 by its definition, on Python's integers without a sign."""
    x = (seed + place * 0x9E3779B97F4A7C15) % 2**64
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB % 2**64
    return x ^ (x >> 31)


def test_the_uniforms_of_a_chain_are_the_halves_of_its_stream():
    assert split_mix(1234567, 1) == 6457827717110365317  # as published with the generator
    seed = torch.randint(2**62, (200,)) * 2 + torch.randint(2, (200,))
    place = torch.randint(1, 1024, (200,))
    one, other = uniforms(seed, place)
    for c, (a, b) in enumerate(zip(seed.tolist(), place.tolist(), strict=True)):
        high, low = divmod(split_mix(a, b), 2**32)
        assert one[c] == (high + 0.5) / 2**32
        assert other[c] == (low + 0.5) / 2**32


def block_and_steps(kernel, potential, z, num_steps):
    """A block of steps, the same steps one by one, and the calls of the gradient in the block."""
    calls = 0

    def counted(z):
        nonlocal calls
        calls += 1
        return potential.value_and_grad(z)

    state = kernel.init(potential, z)
    noise = kernel.noise(state, torch.Generator().manual_seed(0), num_steps)
    watched = Potential(counted, potential.sites, potential.start)
    block = kernel.block(watched, state, noise)
    steps = []
    for row in zip(*noise, strict=True):
        state, info = kernel.step(potential, state, row)
        steps.append((state, info))
    return block, steps, calls


@pytest.mark.parametrize(
    ("kernel", "energy", "dtype"),
    [
        (NUTS(step_size=0.3), Banana(scale=1.0, curvature=0.5), torch.float64),
        (NUTS(step_size=0.3), Banana(scale=1.0, curvature=0.5), torch.float32),
        (NUTS(step_size=0.1, max_tree_depth=3), Banana(1.0, 0.5), torch.float64),
        (NUTS(step_size=0.1, max_tree_depth=1), Banana(1.0, 0.5), torch.float64),
        (NUTS(step_size=1.7), Banana(scale=1.0, curvature=3.0), torch.float64),
    ],
    ids=["double", "float", "shallow", "one leaf", "diverging"],
)
@pytest.mark.parametrize("num_chains", [1, 40])
def test_a_block_is_its_steps_bit_for_bit_and_no_chain_waits(kernel, energy, dtype, num_chains):
    energy = energy.to(dtype)
    z = energy.sample(num_chains)
    (moved, after, info), steps, calls = block_and_steps(kernel, flat_potential(energy), z, 12)
    for k, (state, info_of_step) in enumerate(steps):
        for name in ("z", "potential", "grad"):
            assert torch.equal(getattr(after, name)[k], getattr(state, name))
        for got, expected in zip(info, info_of_step, strict=True):
            assert torch.equal(got[k], expected)
    assert torch.equal(moved.z, steps[-1][0].z)
    assert torch.equal(moved.grad, steps[-1][0].grad)
    assert calls == info.num_steps.sum(0).max()
    if num_chains > 1 and kernel.max_tree_depth > 3:
        assert calls < info.num_steps.max(1).values.sum()
    if kernel.step_size > 1:
        assert info.diverging.any()


def test_a_run_in_blocks_is_its_steps():
    energy = Banana(scale=1.0, curvature=0.5)
    potential, kernel = flat_potential(energy), NUTS(step_size=0.4)
    state = kernel.init(potential, energy.sample(6))
    runner = Runner(kernel, potential, state, 80, False)
    generator = torch.Generator().manual_seed(2)
    adaptation = kernel.adaptation(10)
    warmup = list(runner.run(state, 10, generator, adaptation))
    assert [len(history.z) for _, history in warmup] == [1] * 10  # each teaches the next
    assert adaptation.t == 10
    state = warmup[-1][0]
    start = generator.get_state()
    histories = [history for _, history in runner.run(state, 70, generator)]
    one_by_one = list(run(kernel, potential, state, 70, generator.set_state(start)))
    assert len(histories) < 10
    for name in ("z", "potential"):
        got = torch.cat([getattr(history, name) for history in histories])
        expected = torch.stack([getattr(state, name) for state, _ in one_by_one])
        assert torch.equal(got, expected)


def test_blocks_of_long_trajectories_are_short(monkeypatch):
    monkeypatch.setattr("pyro_ebm.kernels.acceleration.MOST_LEAPFROGS", 64)
    monkeypatch.setattr("pyro_ebm.kernels.transition.FIRST_STEPS", 64)
    kernel, energy = NUTS(step_size=0.2), Gaussian(torch.zeros(2), 1.0)
    potential = flat_potential(energy)
    state = kernel.init(potential, energy.sample(3))
    runner = Runner(kernel, potential, state, 30, False)
    found = [history for _, history in runner.run(state, 30, torch.Generator().manual_seed(2))]
    for before, after in itertools.pairwise(found[:-1]):
        assert len(after.z) == 64 // before.info.num_steps.max()
    assert len(found[0].z) == 1
    assert sum(len(history.z) for history in found) == 30


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="needs a C++ compiler")
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_native_blocks_of_any_length_are_the_graph_to_rounding():
    potential, kernel = Potential.of(posterior("eight_schools").model), NUTS(step_size=0.4)
    state = kernel.init(potential, potential.initialize(9))
    native, graph = (Runner(kernel, potential, state, 200, way) for way in (True, "auto"))
    assert native.rung.name == "native"
    for num_steps in (1, 2, 7, 70):
        ends = []
        for runner in (native, graph):
            generator = torch.Generator().manual_seed(num_steps)
            *_, (end, history) = runner.run(state, num_steps, generator)
            ends.append((end, history))
        (end, history), (expected_end, expected) = ends
        torch.testing.assert_close(end, expected_end, rtol=1e-8, atol=1e-8)
        torch.testing.assert_close(history, expected, rtol=1e-8, atol=1e-8)
        state = expected_end


def test_a_tree_of_depth_one_is_one_metropolis_step():
    z = torch.randn(40_000, 1)
    kernel = NUTS(step_size=1.0, max_tree_depth=1)
    potential = flat_potential(STANDARD)
    state = kernel.init(potential, z)
    noise = kernel.noise(state, torch.Generator().manual_seed(0))
    moved, info = kernel.step(potential, state, noise)
    assert_mean(info.accept_prob, 0.9208331516788689)  # as test_hmc_accepts_as_often
    assert_mean(info.accepted, 0.9208331516788689)
    ahead, _ = leapfrog(potential, state, noise[0])
    behind, _ = leapfrog(potential, state._replace(step_size=-state.step_size), noise[0])
    is_ahead, is_behind = moved.z == ahead.z, moved.z == behind.z
    assert torch.equal((is_ahead | is_behind).squeeze(-1), info.accepted)
    assert_mean(is_ahead[info.accepted].squeeze(-1).double(), 0.5)


def test_a_tree_without_a_turn_is_full_and_weighs_its_points_by_their_energy():
    # One start and one momentum, all directions and choices: the law of a draw given the start.
    # None turns, since the hills of the potential are too low to stop it.
    num_chains, max_depth = 200_000, 2
    potential = Potential.of_batch(
        ebm.Boltzmann(lambda x: 0.8 * (2 * x.squeeze(-1)).cos(), event_shape=(1,)),
        (num_chains,),
        torch.zeros(1),
    )
    kernel = NUTS(step_size=0.6, max_tree_depth=max_depth)
    state = kernel.init(potential, torch.full((num_chains, 1), 2.3))
    momentum = torch.full((num_chains, 1), 2.5)
    _, seed = kernel.noise(state, torch.Generator().manual_seed(1))
    moved, info = kernel.step(potential, state, (momentum, seed))
    weight, place = {}, {}
    for sign in (1, -1):
        end, p = state._replace(step_size=sign * state.step_size), momentum
        for t in range(4):
            weight[sign * t] = -(end.potential[0] + 0.5 * p[0].square().sum()).item()
            place[sign * t] = end.z[0].item()
            end, p = leapfrog(potential, end, p)
    weight = {t: math.exp(value - weight[0]) for t, value in weight.items()}
    law = dict.fromkeys(weight, 0.0)
    for first in (1, -1):
        takes_first = min(1.0, weight[first])
        for second in (1, -1):
            edge = first if first == second else 0
            new = (edge + second, edge + 2 * second)
            total = sum(weight[t] for t in new)
            takes_new = min(1.0, total / (1 + weight[first]))
            for t in new:
                law[t] += 0.25 * takes_new * weight[t] / total
            law[first] += 0.25 * (1 - takes_new) * takes_first
            law[0] += 0.25 * (1 - takes_new) * (1 - takes_first)
    assert info.num_steps.eq(3).all()
    assert info.tree_depth.eq(2).all()
    assert info.reached_max_treedepth.all()
    assert max(weight.values()) > 2 * min(weight.values())
    assert math.isclose(sum(law.values()), 1.0)
    for t, probability in law.items():
        found = torch.isclose(moved.z[:, 0], tensor(place[t])).double().mean()
        assert_close(found, probability, math.sqrt(probability / num_chains))


@pytest.mark.parametrize("target", ["double_well_tilted", "banana"])
def test_leaves_its_target_invariant_with_a_big_step(target):
    energy = SKEWED[target]()
    z = energy.sample(12_000).reshape(12_000, -1)
    *_, (state, info) = transitions(NUTS(step_size=0.75, max_tree_depth=5), energy, z, 5)
    assert info.accept_prob.mean() < 0.9  # the weights do matter
    fresh = energy.sample(40_000).reshape(40_000, -1)
    for d in range(z.shape[1]):
        assert_same_law(state.z[:, d], fresh[:, d])
    assert_same_law(state.potential, flat_potential(energy).value_and_grad(fresh)[0])


@pytest.mark.parametrize("depth", [1, 2, 3, 4, 5])
def test_a_full_tree_has_all_its_leaves_and_says_that_the_limit_ended_it(depth):
    # The way round the circle takes 630 steps of this size.
    kernel = NUTS(step_size=0.01, max_tree_depth=depth)
    ((_, info),) = transitions(kernel, Gaussian(torch.zeros(20), 1.0), torch.randn(30, 20))
    assert info.num_steps.eq(2**depth - 1).all()
    assert info.tree_depth.eq(depth).all()
    assert info.reached_max_treedepth.all()


def test_trees_stay_small_in_the_first_quarter_of_warmup():
    kernel = NUTS(step_size=0.01, max_tree_depth=6, adapt_step_size=False, adapt_mass_matrix=False)
    potential = flat_potential(Gaussian(torch.zeros(20), 1.0))
    state = kernel.init(potential, torch.randn(5, 20))
    generator = torch.Generator().manual_seed(0)
    steps = run(kernel, potential, state, 12, generator, kernel.adaptation(12))
    found = [info.num_steps.max().item() for _, info in steps]
    assert found == [63] + 3 * [31] + 8 * [63]


def test_a_trajectory_stops_near_half_a_turn():
    kernel = NUTS(step_size=0.05)
    energy = Gaussian(torch.zeros(50), 1.0)
    ((_, info),) = transitions(kernel, energy, energy.sample(200))
    # Half a turn has 63 steps; a doubling that would pass it by far ends within itself.
    assert (info.num_steps >= 31).all()
    assert (info.num_steps <= 127).all()
    assert not info.reached_max_treedepth.any()
    assert not info.diverging.any()
    assert info.accept_prob.min() > 0.95


@pytest.mark.parametrize(
    "energy",
    [
        Gaussian(
            torch.zeros(3),
            torch.linalg.inv(tensor([[1.0, 0.8, 0.2], [0.8, 2.0, 0.5], [0.2, 0.5, 0.6]])),
        ),
        Banana(scale=1.0, curvature=0.4),
    ],
    ids=["gaussian", "banana"],
)
def test_has_the_law_of_hmc(energy):
    energy = energy.double()
    start = torch.zeros(300, *energy.event_shape)
    moments = []
    for kernel in (NUTS(ebm.Boltzmann(energy)), HMC(ebm.Boltzmann(energy))):
        mcmc = ebm.MCMC(
            kernel, 80, 120, 300, initial_params={"x": start + 0.1}, disable_progbar=True
        )
        mcmc.run()
        x = mcmc.get_samples(group_by_chain=True)["x"]
        moments.append(torch.cat([x, x**2, x[..., :1] * x[..., 1:2]], dim=-1).mean(1))
    a, b = moments
    assert_close(a.mean(0), b.mean(0), ((a.var(0) + b.var(0)) / 300).sqrt())


@pytest.mark.parametrize("target", [0.8, 0.9])
def test_warmup_reaches_the_target_acceptance(target):
    sd = tensor([0.3, 1.0, 2.0, 3.0])
    energy = Gaussian(torch.zeros(4), sd**-2)
    kernel = NUTS(ebm.Boltzmann(energy), step_size=0.3, target_accept_prob=target)
    mcmc = ebm.MCMC(kernel, 60, 300, 64, disable_progbar=True)
    mcmc.run()
    rates = mcmc.sample_stats["acceptance_rate"].mean(1)
    # The last window of dual averaging sees 60 steps of 64 chains: sd of its mean acceptance.
    assert_close(rates.mean(), target, 0.4 / math.sqrt(60 * 8))
    assert not mcmc.sample_stats["reached_max_treedepth"].any()


def test_flags_divergences_in_a_funnel_and_stays():
    def funnel(x):
        return x[..., 0] ** 2 / 18 + 0.5 * (x[..., 1:] ** 2).sum(-1) * (-x[..., 0]).exp()

    target = ebm.Boltzmann(funnel, event_shape=(5,))
    z = torch.cat([torch.linspace(-12, 2, 200).unsqueeze(-1), torch.randn(200, 4)], dim=-1)
    z[:, 1:] *= (0.5 * z[:, :1]).exp()
    kernel = NUTS(step_size=0.5)
    potential = Potential.of_batch(target, (200,), z)
    state = kernel.init(potential, z)
    noise = kernel.noise(state, torch.Generator().manual_seed(0))
    moved, info = kernel.step(potential, state, noise)
    neck, mouth = z[:, 0] < -10, z[:, 0] > 0
    assert info.diverging[neck].all()
    assert not info.diverging[mouth].any()
    at_once = info.diverging & (info.num_steps == 1)
    assert at_once.any()
    assert torch.equal(moved.z[at_once], z[at_once])
    assert not (info.diverging & info.reached_max_treedepth).any()
    assert moved.potential.isfinite().all()


def test_runs_eight_schools():
    target = posterior("eight_schools")
    mcmc = ebm.MCMC(NUTS(target.model), 400, 200, num_chains=32, disable_progbar=True)
    mcmc.run()
    draws = target.columns(mcmc.get_samples(group_by_chain=True))
    assert split_r_hat(draws).max() < 1.01
    flat = draws.flatten(0, 1)
    assert_close(flat.mean(0), target.mean, flat.std(0) / bulk_ess(draws).sqrt())
    stats = mcmc.sample_stats
    assert {"tree_depth", "reached_max_treedepth", "n_steps", "energy"} <= set(stats)
    assert stats["reached_max_treedepth"].dtype == torch.bool
    assert (stats["n_steps"] >= 2 ** stats["tree_depth"] - 1).all()


def test_runs_a_model_in_pyros_own_driver():
    target = posterior("eight_schools")
    mcmc = PyroMCMC(NUTS(target.model), num_samples=40, warmup_steps=40, disable_progbar=True)
    mcmc.run()
    draws = mcmc.get_samples()
    assert {name: tuple(v.shape) for name, v in draws.items()} == {
        "eta": (40, 8),
        "mu": (40,),
        "tau": (40,),
    }
    assert (draws["tau"] > 0).all()
    assert mcmc.diagnostics()["sample_stats"]["chain 0"]["tree_depth"].shape == (40,)


def test_keeps_the_dtype_of_its_target():
    energy = Gaussian(torch.zeros(2), 1.0).float()
    ((state, info),) = transitions(NUTS(step_size=0.5), energy, torch.randn(5, 2).float())
    assert {part.dtype for part in tree_leaves(state)} == {torch.float32}
    assert info.accept_prob.dtype == info.energy.dtype == torch.float32


@pytest.mark.parametrize("depth", [0, 21])
def test_refuses_a_tree_without_depth_or_without_end(depth):
    with pytest.raises(ValueError, match=f"max_tree_depth must be between 1 and 20, got {depth}"):
        NUTS(max_tree_depth=depth)
