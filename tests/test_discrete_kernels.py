"""Discrete kernels sample the law that enumeration gives, at any temperature."""

import itertools
import math

import pyro
import pytest
import torch
from discrete_cases import (
    DISCRETE,
    DISCRETE_BY_KERNEL,
    DISCRETE_KERNELS,
    Pairs,
    Potts,
    ising,
    torus,
    uneven,
)
from laws import assert_chain_mean, assert_close, assert_counts
from torch import tensor
from torch.distributions import constraints

import pyro_ebm as ebm
from pyro_ebm import Boltzmann, kernels
from pyro_ebm.energies import Ising, spins
from pyro_ebm.kernels import Info, run
from pyro_ebm.kernels.cluster import connected_components
from pyro_ebm.kernels.transition import seeded_generator
from pyro_ebm.potential import Potential

TEMPERATURE = 1.6


def boltzmann_of(name, temperature=TEMPERATURE):
    energy, told = DISCRETE[name]()
    return Boltzmann(energy, temperature=temperature, **told)


class Enumerated:
    """All points of a target, and their probabilities by its definition."""

    def __init__(self, boltzmann):
        self.potential = Potential.of(boltzmann)
        target = self.potential.discrete
        num_sites = target.num_sites(torch.empty(1, self.potential.dim))
        values = range(target.num_values)
        self.places = tensor(list(itertools.product(values, repeat=num_sites)))
        self.weights = target.num_values ** torch.arange(num_sites - 1, -1, -1)
        self.z = target.points(self.places, torch.empty(()))
        x = self.potential.constrain(self.z)["x"]
        energy = boltzmann.energy(x).detach()
        self.probs = (-energy / boltzmann.temperature).softmax(0)

    def draw(self, num):
        return self.z[torch.multinomial(self.probs, num, replacement=True)]

    def count(self, z):
        index = (self.potential.discrete.places(z) * self.weights).sum(-1)
        return torch.bincount(index, minlength=len(self.probs))

    def check(self, z):
        """Point by point where there are few, and along lines that order them."""
        counts = self.count(z)
        assert_counts(counts, self.probs)
        for seed in range(3):
            line = torch.randn(self.z.shape[1], generator=torch.Generator().manual_seed(seed))
            order = (self.z @ line).argsort()
            cell = (50 * self.probs[order].cumsum(0)).long().clamp(max=49)
            cells = torch.zeros(2, 50, dtype=torch.float64)
            cells.index_add_(1, cell, torch.stack([counts, self.probs])[:, order].double())
            assert_counts(cells[0], cells[1] / cells[1].sum())


def move(kernel, potential, z, num_steps):
    state = kernel.init(potential, z)
    *_, (state, info) = run(kernel, potential, state, num_steps, seeded_generator(z.device))
    return state, info


@pytest.mark.parametrize(("kernel", "target"), DISCRETE_BY_KERNEL)
def test_leaves_exact_draws_invariant(kernel, target):
    law = Enumerated(boltzmann_of(target))
    z = law.draw(5000)
    state, _ = move(DISCRETE_KERNELS[kernel](), law.potential, z, 10)
    assert (state.z != z).any(-1).double().mean() > 0.7
    law.check(state.z)


FEW = ["ising_3x3", "one_hot_5x3", "curved_integers"]


@pytest.mark.parametrize(
    ("kernel", "target"),
    [
        pytest.param(kernel, target, marks=() if target in FEW else pytest.mark.slow)
        for kernel, target in DISCRETE_BY_KERNEL
    ],
)
def test_finds_the_law_from_a_uniform_start(kernel, target):
    law = Enumerated(boltzmann_of(target))
    swept = kernel == "SwendsenWang" or (kernel == "Gibbs" and law.potential.discrete.can_sweep)
    num_steps = {"DiscreteMALA": 100, "DiscreteTempering": 40}.get(kernel, 25 if swept else 150)
    z = law.potential.initialize(1500)
    state, _ = move(DISCRETE_KERNELS[kernel](), law.potential, z, num_steps)
    law.check(state.z)


@pytest.mark.parametrize("target", ["ising_3x3", "bipartite_5+3", "curved_one_hot"])
def test_chains_start_at_uniform_draws(target):
    law = Enumerated(boltzmann_of(target))
    uniform = torch.full_like(law.probs, 1 / len(law.probs))
    assert_counts(law.count(law.potential.initialize(20_000)), uniform)


@pytest.mark.slow
@pytest.mark.parametrize("kernel", DISCRETE_KERNELS)
def test_finds_the_law_of_a_larger_lattice(kernel):
    law = Enumerated(Boltzmann(ising(4, 4)))
    one_site = kernel in ("SingleFlip", "GibbsWithGradients")
    z = law.potential.initialize(6000)
    state, _ = move(DISCRETE_KERNELS[kernel](), law.potential, z, 600 if one_site else 100)
    law.check(state.z)


@pytest.mark.parametrize("kernel", DISCRETE_KERNELS)
def test_has_no_period_on_a_flat_target(kernel):
    flat = Pairs((3,), tensor([[0, 1], [1, 2]]), torch.zeros(2), torch.zeros(3))
    law = Enumerated(Boltzmann(flat))
    state, _ = move(DISCRETE_KERNELS[kernel](), law.potential, torch.ones(4000, 3), 60)
    law.check(state.z)


@pytest.mark.parametrize(("kernel", "target"), DISCRETE_BY_KERNEL)
def test_state_is_never_stale(kernel, target):
    potential = Potential.of(boltzmann_of(target))
    recipe = DISCRETE_KERNELS[kernel]()
    state, _ = move(recipe, potential, potential.initialize(50), 9)
    again = recipe.init(potential, state.z)
    torch.testing.assert_close(state.potential, again.potential)
    torch.testing.assert_close(state.changes, again.changes)


@pytest.mark.parametrize(("kernel", "target"), DISCRETE_BY_KERNEL)
def test_chains_do_not_see_one_another(kernel, target):
    potential = Potential.of(boltzmann_of(target))
    recipe = DISCRETE_KERNELS[kernel]()
    z = potential.initialize(20)
    noise = recipe.noise(recipe.init(potential, z), torch.Generator().manual_seed(3))
    together, _ = recipe.step(potential, recipe.init(potential, z), noise)
    for c in (0, 7):
        alone, _ = recipe.step(
            potential, recipe.init(potential, z[c : c + 1]), tuple(n[c : c + 1] for n in noise)
        )
        assert torch.equal(alone.z, together.z[c : c + 1])


@pytest.mark.parametrize("target", ["ising_3x4", "potts_3x3", "one_hot_5x3"])
def test_changes_are_exact_where_conditionals_are_known(target):
    boltzmann = boltzmann_of(target)
    potential = Potential.of(boltzmann)
    discrete = potential.discrete
    z = potential.initialize(5)
    value, changes = discrete.value_and_changes(z)
    energy = boltzmann.energy(potential.constrain(z)["x"])
    torch.testing.assert_close(value, energy / TEMPERATURE)
    for site, place in itertools.product(range(changes.shape[1]), range(changes.shape[2])):
        every = torch.full((5,), site), torch.full((5,), place)
        other = discrete.value(discrete.with_place(z, *every))
        torch.testing.assert_close(changes[:, site, place], other - value)


@pytest.mark.parametrize("target", ["curved_spins", "curved_one_hot", "curved_integers"])
def test_changes_of_any_other_energy_are_those_of_its_tangent(target):
    potential = Potential.of(boltzmann_of(target))
    discrete = potential.discrete
    z = potential.initialize(5)
    _, grad = potential.value_and_grad(z)
    _, changes = discrete.value_and_changes(z)
    for site, place in itertools.product(range(changes.shape[1]), range(changes.shape[2])):
        there = discrete.with_place(z, torch.full((5,), site), torch.full((5,), place))
        torch.testing.assert_close(changes[:, site, place], (grad * (there - z)).sum(-1))


def test_a_batch_of_points_is_one_chain_or_many():
    p = boltzmann_of("ising_3x3")
    law = Enumerated(p)
    both = Potential.of(p.expand([2]))
    for kernel in DISCRETE_KERNELS.values():
        together, _ = move(kernel(), both, law.draw(6000).reshape(3000, -1), 8)
        law.check(together.z.reshape(6000, -1))
    each = tensor([0.8, 2.5])
    hot_and_cold = Boltzmann(p.energy, temperature=each).expand([2])
    potential = Potential.of_batch(hot_and_cold, (2,), torch.empty(()))
    laws = [Enumerated(Boltzmann(p.energy, temperature=float(t))) for t in each]
    z = torch.stack([own.draw(3000) for own in laws], 1).reshape(6000, -1)
    for name, kernel in DISCRETE_KERNELS.items():
        if name != "SwendsenWang":
            state, _ = move(kernel(), potential, z, 8)
            for k, own in enumerate(laws):
                own.check(state.z[k::2])


@pytest.mark.parametrize(
    ("kernel", "side", "coupling"),
    [
        (kernels.SwendsenWang(), 16, 0.44068679350977),
        (kernels.SwendsenWang(), 32, 0.5),
        (kernels.Gibbs(num_sweeps=2), 32, 0.3),
    ],
    ids=["critical", "ordered", "disordered"],
)
def test_has_the_energy_of_a_large_torus(kernel, side, coupling):
    coupling = tensor(coupling, requires_grad=True)
    energy = Ising((side, side), coupling)
    (bonds,) = torch.autograd.grad(energy.log_z(), coupling)
    potential = Potential.of(Boltzmann(energy))
    start = kernel.init(potential, potential.initialize(16))
    steps = run(kernel, potential, start, 160, seeded_generator(bonds.device))
    values = [state.potential for state, _ in steps]
    assert_chain_mean(torch.stack(values[60:], 1), -coupling.item() * bonds)


# the kernels one by one


def test_gibbs_sweeps_as_often_as_asked():
    potential = Potential.of(boltzmann_of("ising_3x4"))
    z = potential.initialize(30)
    two, one = kernels.Gibbs(num_sweeps=2), kernels.Gibbs()
    (noise,) = two.noise(two.init(potential, z), torch.Generator().manual_seed(0))
    at_once, _ = two.step(potential, two.init(potential, z), (noise,))
    state = one.init(potential, z)
    for k in range(2):
        state, _ = one.step(potential, state, (noise[:, k : k + 1],))
    assert torch.equal(at_once.z, state.z)


def test_single_flips_accept_as_metropolis_does():
    field = 0.7
    one = Pairs((1,), torch.zeros(0, 2, dtype=torch.long), torch.zeros(0), tensor([field]))
    potential = Potential.of(Boltzmann(one))
    kernel = kernels.SingleFlip()
    up, down = (kernel.init(potential, tensor([[s]])) for s in (1.0, -1.0))
    flip = tensor([0.1]), tensor([0.5]), tensor([0.999])
    fallen, info = kernel.step(potential, up, flip)
    assert_close(info.accept_prob, math.exp(-2 * field), 1e-12)
    assert fallen.z.item() == 1
    risen, info = kernel.step(potential, down, flip)
    assert (risen.z.item(), info.accept_prob.item()) == (1, 1)
    stays, info = kernel.step(potential, up, (tensor([0.6]), tensor([0.5]), tensor([0.0])))
    assert (stays.z.item(), info.accept_prob.item()) == (1, 1)


def test_gibbs_with_gradients_proposes_by_its_formula():
    field = tensor([0.7, -0.2])
    two = Pairs((2,), torch.zeros(0, 2, dtype=torch.long), torch.zeros(0), field)
    potential = Potential.of(Boltzmann(two, temperature=2.0))
    kernel = kernels.GibbsWithGradients()
    z = tensor([[1.0, 1.0]])
    weights = torch.cat([(-field / 2).exp(), torch.ones(1)])
    edges = (weights.cumsum(0) / weights.sum()).tolist()

    def outcome(which):
        noise = tensor([which]), tensor([0.0])
        state, info = kernel.step(potential, kernel.init(potential, z), noise)
        return state.z.tolist()[0], info.accept_prob.item()

    assert outcome(edges[0] - 1e-9)[0] == [-1, 1]
    assert outcome(edges[0] + 1e-9)[0] == [1, -1]
    assert outcome(edges[1] - 1e-9)[0] == [1, -1]
    assert outcome(edges[1] + 1e-9) == ([1, 1], 1)
    back = torch.stack([(field[0] / 2).exp(), (-field[1] / 2).exp(), torch.ones(())])
    ratio = math.exp(-field[0]) * (back[0] / back.sum()) / (weights[0] / weights.sum())
    assert_close(outcome(0.0)[1], min(1.0, ratio.item()), 1e-12)


def test_discrete_mala_proposes_by_its_formula():
    field, alpha, temperature = 0.7, 0.4, 2.0
    one = Pairs((1,), torch.zeros(0, 2, dtype=torch.long), torch.zeros(0), tensor([field]))
    potential = Potential.of(Boltzmann(one, temperature=temperature))
    kernel = kernels.DiscreteMALA(step_size=alpha)
    up = kernel.init(potential, tensor([[1.0]]))
    cost = 1 / (2 * alpha)
    down = 1 / (1 + math.exp(field / temperature + cost))
    rise = 1 / (1 + math.exp(-field / temperature + cost))

    def outcome(uniform):
        state, info = kernel.step(potential, up, (tensor([[uniform]]), tensor([0.0])))
        return state.z.item(), info.accept_prob.item()

    assert outcome(down - 1e-9)[0] == -1
    assert outcome(down + 1e-9) == (1, 1)
    ratio = math.exp(-2 * field / temperature) * rise / down
    assert_close(outcome(0.0)[1], min(1.0, ratio), 1e-12)


def test_discrete_mala_meets_its_target_acceptance():
    side = 12
    energy = Pairs(
        (side, side), torus(side, side), torch.full((2 * side**2,), 0.3), uneven(144, -0.2, 0.4)
    )
    kernel = kernels.DiscreteMALA(Boltzmann(energy))
    mcmc = ebm.MCMC(kernel, 100, 300, 32, disable_progbar=True, compile=False)
    mcmc.run()
    rate = mcmc.sample_stats["acceptance_rate"].mean()
    # The last window of dual averaging sees 60 steps of 32 chains.
    assert_close(rate, 0.574, 0.3 / math.sqrt(60))
    assert mcmc.state.step_size < kernel.largest_step_size


def test_discrete_mala_steps_no_further_than_its_largest_step():
    flat = Pairs((5,), tensor([[0, 1]]), torch.zeros(1), torch.zeros(5))
    potential = Potential.of(Boltzmann(flat))
    for kernel in (kernels.DiscreteMALA(), kernels.DiscreteMALA(adapt_step_size=False)):
        state, tuner = kernel.init(potential, torch.ones(8, 5)), kernel.adaptation(200)
        always = Info(torch.zeros(8) > 0, accept_prob=torch.ones(8))
        for _ in range(200):
            state = tuner.update(state, always)
            assert state.step_size <= kernel.largest_step_size
        largest = kernel.largest_step_size if kernel.adapt_step_size else kernel.step_size
        assert_close(state.step_size, largest, 1e-12)


@pytest.mark.parametrize("num_edges", [0, 5, 20, 40])
def test_components_are_connected_and_apart(num_edges):
    for _ in range(20):
        first, second = torch.randint(25, (2, num_edges))
        reach = torch.eye(25, dtype=torch.bool)
        reach[first, second] = reach[second, first] = True
        for _ in range(5):
            reach = (reach.double() @ reach.double()) > 0
        label = connected_components(25, first, second)
        assert torch.equal(label[:, None] == label, reach)


def test_swendsen_wang_bonds_as_its_formula_says():
    coupling, temperature = 0.4, 2.0
    pair = Pairs((2,), tensor([[0, 1]]), tensor([coupling]), torch.zeros(2))
    potential = Potential.of(Boltzmann(pair, temperature=temperature))
    kernel = kernels.SwendsenWang()
    bond = 1 - math.exp(-2 * coupling / temperature)
    for uniform, joined in ((bond - 1e-9, True), (bond + 1e-9, False)):
        noise = (
            tensor([[uniform, 0.1, 0.9]]),
        )  # the first site's cluster flips, the second's not
        state, _ = kernel.step(potential, kernel.init(potential, tensor([[1.0, 1.0]])), noise)
        assert state.z.tolist() == [[-1, -1] if joined else [-1, 1]]
    apart, _ = kernel.step(
        potential, kernel.init(potential, tensor([[1.0, -1.0]])), (tensor([[0.0, 0.9, 0.1]]),)
    )
    assert apart.z.tolist() == [[1, 1]]


def test_swendsen_wang_refuses_what_is_not_all_of_the_energy():
    class WithMore(Pairs):
        def forward(self, x):
            return super().forward(x) - 0.3 * x[..., 0] * x[..., 1] * x[..., 2]

    more = WithMore((3,), tensor([[0, 1]]), torch.ones(1), torch.zeros(3))
    kernel = kernels.SwendsenWang(Boltzmann(more))
    with pytest.raises(ValueError, match="not all of the energy of WithMore"):
        ebm.MCMC(kernel, 5, 5, disable_progbar=True).run()
    boolean = Pairs((2,), tensor([[0, 1]]), torch.ones(1), torch.zeros(2), constraints.boolean)
    with pytest.raises(ValueError, match="not all of the energy of Pairs"):
        kernels.SwendsenWang(Boltzmann(boolean)).bind((), {}, None)
    repelling = Potts(tensor([[0, 1]]), -torch.ones(1), torch.zeros(2, 3))
    with pytest.raises(ValueError, match=r"must not be negative .* got -1: sample with .*Gibbs"):
        move(kernels.SwendsenWang(), Potential.of(Boltzmann(repelling)), torch.zeros(1, 2), 1)
    for target in ("curved_spins", "curved_integers"):
        potential = Potential.of(boltzmann_of(target))
        with pytest.raises(ValueError, match=r"needs an energy with edges .*kernels.Gibbs"):
            kernels.SwendsenWang().init(potential, potential.initialize(2))


@pytest.mark.parametrize("name", ["Gibbs", "DiscreteMALA", "SwendsenWang"])
def test_tempering_crosses_between_modes_and_tunes_each_level(name):
    energy = Pairs((3, 3), torus(3, 3), torch.full((18,), 0.8), uneven(9, -0.02, 0.06))
    p = Boltzmann(energy, temperature=TEMPERATURE)
    law, num_chains = Enumerated(p), 800
    kernel = kernels.DiscreteTempering(DISCRETE_KERNELS[name](p), num_temperatures=5)
    up = {"x": torch.ones(num_chains, 3, 3)}
    quiet = {"disable_progbar": True, "compile": False}
    mcmc = ebm.MCMC(kernel, 25, 50, num_chains, initial_params=up, **quiet)
    mcmc.run()
    law.check(mcmc.get_samples(group_by_chain=True)["x"][:, -1].flatten(1))
    state = mcmc.state
    assert (state.betas.diff() > 0).all()
    assert (state.betas[0], state.betas[-1]) == (0, 1)
    assert state.num_restarts.double().mean() > 1
    assert state.swap_prob.max() - state.swap_prob.min() < 0.25
    assert (name == "DiscreteMALA") == bool(state.step_sizes.diff().abs().max() > 0)
    values = [law.potential.discrete.value(z) for z in state.replicas.z.split(num_chains)]
    for beta, value in zip(state.betas[1:].tolist(), values, strict=True):
        probs = (beta * law.probs.log()).softmax(0)
        every = law.potential.discrete.value(law.z)
        mean = (probs * every).sum()
        error = (probs * (every - mean) ** 2).sum().sqrt() / math.sqrt(num_chains)
        assert_close(value.mean(), mean, error)


def test_tempering_refuses_kernels_that_do_not_fit():
    gibbs = kernels.Gibbs()
    for wrong in (kernels.HMC(), kernels.DiscreteTempering(gibbs)):
        with pytest.raises(ValueError, match="must be an untempered discrete kernel"):
            kernels.DiscreteTempering(wrong)
    with pytest.raises(ValueError, match=r"Gibbs moves discrete sites: use DiscreteTempering"):
        kernels.ParallelTempering(gibbs)
    with pytest.raises(ValueError, match="num_temperatures must be at least 2, got 1"):
        kernels.DiscreteTempering(gibbs, num_temperatures=1)
    with pytest.raises(ValueError, match="num_steps must be at least 1, got 0"):
        kernels.DiscreteTempering(gibbs, num_steps=0)


# in the drivers


@pytest.mark.parametrize("kernel", DISCRETE_KERNELS)
def test_a_graph_gives_the_same_draws_bit_for_bit(kernel):
    draws, rungs = {}, {}
    for compile in (False, "auto"):
        pyro.set_rng_seed(4)
        recipe = DISCRETE_KERNELS[kernel](boltzmann_of("ising_3x4"))
        mcmc = ebm.MCMC(recipe, 80, 40, 6, disable_progbar=True, compile=compile)
        mcmc.run()
        draws[compile] = mcmc.get_samples(group_by_chain=True)["x"]
        rungs[compile] = mcmc.engine.split()[0]
    assert rungs == {False: "eager", "auto": "eager" if kernel == "SwendsenWang" else "graph"}
    assert torch.equal(draws[False], draws["auto"])


@pytest.mark.slow
@pytest.mark.parametrize("kernel", ["Gibbs", "DiscreteMALA"])
def test_native_code_gives_the_same_law(kernel):
    p = boltzmann_of("ising_3x4")
    law = Enumerated(p)
    mcmc = ebm.MCMC(DISCRETE_KERNELS[kernel](p), 120, 60, 4000, disable_progbar=True, compile=True)
    mcmc.run()
    assert mcmc.engine.startswith("native")
    law.check(mcmc.get_samples(group_by_chain=True)["x"][:, -1].flatten(1))


def test_is_driven_by_pyro_too():
    p = boltzmann_of("one_hot_5x3")
    mcmc = pyro.infer.MCMC(kernels.Gibbs(p), 60, warmup_steps=20, disable_progbar=True)
    mcmc.run()
    draws = mcmc.get_samples()["x"]
    assert draws.shape == (60, 5, 3)
    assert p.support.check(draws).all()


@pytest.mark.parametrize("target", ["ising_3x4", "potts_3x3", "one_hot_5x3", "curved_integers"])
def test_reports_values_as_they_are(target, capsys):
    p = boltzmann_of(target)
    mcmc = ebm.MCMC(kernels.Gibbs(p), 40, 10, 4, disable_progbar=True)
    mcmc.run()
    draws = mcmc.get_samples(group_by_chain=True)["x"]
    assert draws.shape == (4, 40, *p.event_shape)
    assert p.support.check(draws).all()
    mcmc.summary()
    assert "Number of divergences: 0" in capsys.readouterr().out
    pytest.importorskip("arviz")
    posterior = ebm.to_arviz(mcmc)["posterior"]["x"]
    assert torch.equal(torch.from_numpy(posterior.values), draws)


def test_a_discrete_target_alone_is_sampled_by_gibbs():
    mcmc = ebm.MCMC(boltzmann_of("ising_3x3"), 20, 5, disable_progbar=True)
    mcmc.run()
    assert isinstance(mcmc.kernel, kernels.Gibbs)


@pytest.mark.parametrize(
    "make", [kernels.HMC, kernels.NUTS, kernels.ChEES, kernels.MALA, kernels.RandomWalk]
)
def test_a_continuous_kernel_refuses_a_discrete_site(make):
    wrong = "moves continuous sites, and 'x' is discrete: sample it with kernels."
    for target, fit in (("ising_3x3", "Gibbs"), ("curved_spins", "GibbsWithGradients")):
        with pytest.raises(ValueError, match=f"{make.__name__} {wrong}{fit}$"):
            ebm.MCMC(make(boltzmann_of(target)), 5, 5, disable_progbar=True).run()


@pytest.mark.parametrize("kernel", DISCRETE_KERNELS)
def test_a_discrete_kernel_refuses_a_continuous_site(kernel):
    gaussian = Boltzmann(ebm.energies.Gaussian(torch.zeros(2), 1.0))
    own = "DiscreteMALA" if kernel == "DiscreteTempering" else kernel
    wrong = f"{own} moves sites with finitely many values, and 'x' is continuous.*ChEES"
    with pytest.raises(ValueError, match=wrong):
        ebm.MCMC(DISCRETE_KERNELS[kernel](gaussian), 5, 5, disable_progbar=True).run()


def test_refuses_values_outside_of_the_alphabet():
    for target, wrong in (("ising_3x3", 0.0), ("potts_3x3", 3.0), ("one_hot_5x3", 0.5)):
        p = boltzmann_of(target)
        start = {"x": torch.full((4, *p.event_shape), wrong)}
        mcmc = ebm.MCMC(kernels.Gibbs(p), 5, 5, 4, initial_params=start, disable_progbar=True)
        with pytest.raises(ValueError, match=r"must be of the alphabet .*got"):
            mcmc.run()


def test_informed_kernels_refuse_an_energy_without_a_gradient():
    steps = Boltzmann(
        lambda x: (x.sum(-1) > 0).to(x.dtype),
        event_shape=(3,),
        support=constraints.independent(spins, 1),
    )
    for kernel in (kernels.GibbsWithGradients, kernels.DiscreteMALA):
        with pytest.raises(ValueError, match=r"no gradient in x.*SingleFlip or kernels.Gibbs"):
            ebm.MCMC(kernel(steps), 5, 5, disable_progbar=True).run()
    law = Enumerated(steps)
    for kernel in (kernels.SingleFlip, kernels.Gibbs):
        law.check(move(kernel(), law.potential, law.potential.initialize(4000), 60)[0].z)


def test_refuses_bad_arguments():
    with pytest.raises(ValueError, match="num_sweeps must be at least 1, got 0"):
        kernels.Gibbs(num_sweeps=0)
    with pytest.raises(ValueError, match="step_size must be positive"):
        kernels.DiscreteMALA(step_size=0.0)


@pytest.mark.parametrize("wall", [math.inf, math.nan], ids=["inf", "nan"])
@pytest.mark.parametrize("kernel", ["Gibbs", "SingleFlip", "GibbsWithGradients", "DiscreteMALA"])
def test_never_moves_to_a_point_without_an_energy(kernel, wall):
    def energy(x):
        return torch.where(x.sum(-1) > 2, wall, 0.3 * x[..., 0] + 0.1 * x[..., 1])

    bits = constraints.independent(constraints.boolean, 1)
    potential = Potential.of(Boltzmann(energy, event_shape=(4,), support=bits))
    start = potential.initialize(6000)
    assert (start.sum(-1) <= 2).all()
    state, _ = move(DISCRETE_KERNELS[kernel](), potential, start, 150)
    every = tensor(list(itertools.product((0.0, 1.0), repeat=4)))
    probs = torch.where(every.sum(-1) > 2, 0.0, (-energy(every)).exp()).nan_to_num()
    index = (state.z @ tensor([8.0, 4.0, 2.0, 1.0])).long()
    assert_counts(torch.bincount(index, minlength=16), probs / probs.sum())


# training


class Field(Pairs):
    """Free spins in a field that learns: one sweep forgets where chains began."""

    def __init__(self, field):
        none = torch.zeros(0, 2, dtype=torch.long)
        super().__init__((len(field),), none, torch.zeros(0), torch.nn.Parameter(field))


@pytest.mark.parametrize("name", ["ContrastiveDivergence", "ShortRun", "PersistentCD"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.long])
def test_contrastive_gradients_are_those_of_the_likelihood(name, dtype):
    field, temperature, n = tensor([0.6, -0.3, 1.2]), 1.6, 20_000
    p = Boltzmann(Field(field), temperature=temperature)
    make = getattr(ebm.objectives, name)
    sizes = {"num_chains": n} if name == "PersistentCD" else {}
    objective = make(kernels.Gibbs(), num_steps=2, **sizes)
    x = (2 * torch.randint(2, (n, 3)) - 1).to(dtype)
    objective.surrogate(p, x).mean().backward()
    truth = (x.double().mean(0) - (field / temperature).tanh()) / temperature
    error = (1 - (field / temperature).tanh() ** 2).sqrt() / math.sqrt(n) / temperature
    assert_close(p.energy.field.grad, truth, error)
    chains = getattr(objective, "chains", {}).get("x", torch.ones(1))
    assert p.support.check(chains).all()


@pytest.mark.slow
def test_compiled_chains_train_a_discrete_energy():
    p = Boltzmann(Field(tensor([0.6, -0.3, 1.2])))
    x, found = torch.ones(50, 3), []
    for compile in (False, True):
        pyro.set_rng_seed(2)
        objective = ebm.objectives.PersistentCD(kernels.Gibbs(), 64, 3, compile=compile)
        for _ in range(3):
            objective.surrogate(p, x)
        found.append(objective.chains["x"])
    assert torch.equal(*found)


def test_noise_over_a_discrete_support_is_uniform():
    p = boltzmann_of("potts_3x3")
    objective = ebm.objectives.PersistentCD(kernels.Gibbs(), num_chains=9000, reinit_prob=1.0)
    noise = objective.fresh(p, torch.zeros(1, 9), 9000, "x")
    for site in noise.unbind(-1):
        assert_counts(torch.bincount(site.long(), minlength=3), torch.full((3,), 1 / 3))


def test_learning_needs_a_kernel_that_fits():
    p = Boltzmann(Field(torch.zeros(3)))
    objective = ebm.objectives.PersistentCD(kernels.MALA(step_size=0.1), num_chains=8)
    with pytest.raises(ValueError, match=r"MALA moves continuous sites.*kernels.Gibbs"):
        objective.surrogate(p, torch.ones(5, 3))
