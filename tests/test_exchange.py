"""Inference where log Z of what was observed moves with the latents: against exact posteriors."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from laws import assert_close, assert_counts
from torch import tensor

import pyro_ebm as ebm
from pyro_ebm import Boltzmann
from pyro_ebm.diagnostics import bulk_ess
from pyro_ebm.energies import Energy, Gaussian, Ising, IsingGraph, Potts
from pyro_ebm.energies.enumeration import enumerate_points
from pyro_ebm.energies.kaufman import log_z_of_torus
from pyro_ebm.kernels import (
    HMC,
    CouplingFromThePast,
    Exchange,
    Gibbs,
    GibbsWithGradients,
    RandomWalk,
    SwendsenWang,
)
from pyro_ebm.potential import Potential

TEMPERATURE = 2.0
FIELD = 0.3


def draws_of(kernel, *args, site, num_chains=128, num_samples=80, warmup=50, **kwargs):
    mcmc = ebm.MCMC(kernel, num_samples, warmup, num_chains, disable_progbar=True, **kwargs)
    mcmc.run(*args)
    assert not mcmc.sample_stats["diverging"].any()
    return mcmc.get_samples(group_by_chain=True)[site]


def assert_posterior(draws, mean, variance, num_sigmas=5):
    """Asserts mean and variance of draws ``(chain, draw)`` by their own Monte Carlo errors."""
    for found, truth in ((draws, mean), ((draws - mean).square(), variance)):
        error = found.std() / bulk_ess(found).sqrt() * num_sigmas / 5
        assert_close(found.mean(), truth, error)


def moments_on(grid, log_density):
    """Mean and variance of a density on evenly spaced points that reach to where it vanishes."""
    weights = (log_density - log_density.max()).exp()
    weights = weights / weights.sum()
    mean = (weights * grid).sum()
    return mean, (weights * (grid - mean).square()).sum()


# A coupling, by enumeration: a skewed prior, a field, a temperature.

COUPLINGS = torch.linspace(0, 1, 2001, dtype=torch.float64)[1:-1]
SPINS = tensor([[1.0, -1.0, 1.0], [1.0, 1.0, 1.0], [1.0, 1.0, -1.0]], dtype=torch.float64)


def prior():
    return dist.Beta(2.0, 4.0)


def log_posterior_of_coupling(data, field=FIELD):
    """On the grid of couplings, for data ``(N, 3, 3)``, with log Z by enumeration."""
    lattice = Ising((3, 3), 1.0)
    points = enumerate_points(lattice.support, (3, 3), torch.empty(()))

    def log_q(x):
        bonds, fields = lattice.bonds(x), (field * x).sum((-2, -1))
        return (COUPLINGS[:, None] * bonds + fields) / TEMPERATURE

    likelihood = (log_q(data) - log_q(points).logsumexp(-1, keepdim=True)).sum(-1)
    return prior().log_prob(COUPLINGS) + likelihood


def lattice_model(data):
    coupling = pyro.sample("coupling", prior())
    lattice = Boltzmann(Ising((3, 3), coupling, FIELD), temperature=TEMPERATURE)
    with pyro.plate("data", len(data)):
        pyro.sample("s", lattice, obs=data)


INNER = {
    "exact": {},
    "from the past": {"inner": CouplingFromThePast()},
    "Gibbs": {"inner": Gibbs(num_sweeps=15), "num_inner_steps": 1},
    "Swendsen-Wang": {"inner": SwendsenWang(), "num_inner_steps": 6},
}


@pytest.mark.parametrize("inner", INNER)
def test_has_the_posterior_of_a_coupling(inner):
    data = torch.stack([SPINS, SPINS.flip(0) * tensor([1.0, 1.0, -1.0])])
    kernel = Exchange(lattice_model, sites=["s"], **INNER[inner])
    length = {"num_chains": 16, "num_samples": 70, "warmup": 40} if "past" in inner else {}
    draws = draws_of(kernel, data, site="coupling", **length)
    assert_posterior(draws, *moments_on(COUPLINGS, log_posterior_of_coupling(data)))


@pytest.mark.parametrize("inner", ["Gibbs", "Swendsen-Wang"])
def test_has_the_posterior_of_data_with_fields_of_their_own(inner):
    fields = tensor([[0.5], [-0.3], [0.1]]) * torch.linspace(-1, 2, 9)
    fields = fields.reshape(3, 3, 3)
    data = torch.stack([SPINS, -SPINS, SPINS.T])

    def model():
        coupling = pyro.sample("coupling", prior())
        energy = Ising((3, 3), coupling, fields)
        with pyro.plate("data", 3):
            pyro.sample("s", Boltzmann(energy, temperature=tensor(TEMPERATURE)), obs=data)

    kernel = Exchange(model, sites=["s"], **INNER[inner])
    log_density = -2 * prior().log_prob(COUPLINGS) + sum(
        log_posterior_of_coupling(x[None], h) for x, h in zip(data, fields, strict=True)
    )
    draws = draws_of(kernel, site="coupling")
    assert_posterior(draws, *moments_on(COUPLINGS, log_density))


@pytest.mark.parametrize("inner", [SwendsenWang(), GibbsWithGradients()], ids=["SW", "GWG"])
def test_has_the_posterior_of_labels(inner):
    labels = tensor([[0.0, 0.0, 1.0], [0.0, 2.0, 2.0]])
    field = tensor([0.4, 0.0, -0.5])

    def model():
        coupling = pyro.sample("coupling", prior())
        energy = Potts((2, 3), 3, 2 * coupling, field, periodic=False)
        pyro.sample("s", Boltzmann(energy), obs=labels)

    lattice = Potts((2, 3), 3, tensor(1.0), periodic=False)
    points = enumerate_points(lattice.support, (2, 3), torch.empty(()))

    def log_q(x):
        return 2 * COUPLINGS[:, None] * lattice.bonds(x) + field[x.long()].sum((-2, -1))

    log_density = log_q(labels[None]).squeeze(-1) - log_q(points).logsumexp(-1)
    kernel = Exchange(model, sites=["s"], inner=inner, num_inner_steps=15)
    draws = draws_of(kernel, site="coupling", num_chains=64)
    assert_posterior(draws, *moments_on(COUPLINGS, log_density + prior().log_prob(COUPLINGS)))


# A precision, in closed form: constrained, in a plate, masked.


class Centred(Energy):
    """A Gaussian that keeps its log Z to itself."""

    def __init__(self, precision, sampler=True):
        super().__init__(())
        self.precision, self.has_sample = precision, sampler

    def forward(self, x):
        return 0.5 * self.precision * x.square()

    def sample(self, num_samples):
        return torch.randn(num_samples).to(self.precision) * self.precision.rsqrt()


NUMBERS = tensor([0.3, -1.2, 0.8, 2.0, -0.4, 0.1, 1.4, -0.9], dtype=torch.float64)


def prior_of_precision():
    return dist.Gamma(1.5, 2.0)


def posterior_of_precision(x):
    return dist.Gamma(1.5 + len(x) / 2, 2.0 + x.square().sum() / 2)


def precision_model(sampler, counted=None, temperature=1.0):
    def model():
        b = pyro.sample("b", prior_of_precision())
        p = Boltzmann(Centred(temperature * b, sampler), temperature=temperature)
        with pyro.plate("data", len(NUMBERS)):
            pyro.sample("x", p if counted is None else p.mask(counted), obs=NUMBERS)

    return model


@pytest.mark.parametrize("masked", [False, True])
def test_has_the_posterior_of_a_precision(masked):
    counted = torch.arange(len(NUMBERS)) % 3 > 0 if masked else torch.ones(8, dtype=torch.bool)
    kernel = Exchange(precision_model(True, counted if masked else None))
    truth = posterior_of_precision(NUMBERS[counted])
    draws = draws_of(kernel, site="b")
    assert_posterior(draws, truth.mean, truth.variance)


def test_has_the_posterior_of_a_precision_by_an_inner_kernel():
    inner = HMC(step_size=0.9, num_steps=2)
    model = precision_model(False, temperature=1.7)
    kernel = Exchange(model, inner=inner, num_inner_steps=8)
    truth = posterior_of_precision(NUMBERS)
    assert_posterior(draws_of(kernel, site="b"), truth.mean, truth.variance)


def test_sites_have_data_of_their_own():
    """A precision that spins, too, say something of: two laws, each with its own draws."""
    field = 0.5

    def model():
        coupling = pyro.sample("coupling", prior())
        with pyro.plate("data", len(NUMBERS)):
            pyro.sample("x", Boltzmann(Centred(2 * coupling)).mask(NUMBERS > -1), obs=NUMBERS)
        lattice = Ising((3, 3), coupling, field)
        pyro.sample("s", Boltzmann(lattice, temperature=TEMPERATURE), obs=SPINS)

    kernel = Exchange(
        model, sites=["s", "x"], inner={"s": Gibbs(num_sweeps=15)}, num_inner_steps=1
    )
    x = NUMBERS[NUMBERS > -1]
    of_numbers = len(x) / 2 * COUPLINGS.log() - COUPLINGS * x.square().sum()
    log_density = log_posterior_of_coupling(SPINS[None], field=field) + of_numbers
    draws = draws_of(kernel, site="coupling")
    assert_posterior(draws, *moments_on(COUPLINGS, log_density))


def test_inner_chains_begin_at_the_data():
    """One that does not move leaves nothing of the likelihood, and all of a flat prior."""

    def model():
        log_b = pyro.sample("log_b", dist.Normal(0.0, 1e6))
        with pyro.plate("data", len(NUMBERS)):
            pyro.sample("x", Boltzmann(Centred(log_b.exp(), False)), obs=NUMBERS)

    kernel = Exchange(model, inner=RandomWalk(step_size=1e-12), num_inner_steps=3)
    mcmc = ebm.MCMC(kernel, 20, 0, 16, disable_progbar=True)
    mcmc.run()
    assert_close(mcmc.sample_stats["acceptance_rate"], 1.0, 1e-6)


def test_two_latents_move_together():
    def model():
        coupling = pyro.sample("coupling", prior())
        field = pyro.sample("field", dist.Normal(0.2, 0.3))
        lattice = Ising((3, 3), coupling, field)
        pyro.sample("s", Boltzmann(lattice, temperature=TEMPERATURE), obs=SPINS)

    fields = torch.linspace(-1.5, 1.9, 121)
    rows = torch.stack(
        [
            log_posterior_of_coupling(SPINS[None], field=h) + dist.Normal(0.2, 0.3).log_prob(h)
            for h in fields
        ]
    )
    draws = draws_of(Exchange(model, sites=["s"]), site="field")
    assert_posterior(draws, *moments_on(fields, rows.logsumexp(1)))


# The kernel in its drivers


def test_graphs_give_the_draws_of_the_model_bit_for_bit():
    data = SPINS[None]
    for inner in (Gibbs(), SwendsenWang()):
        found = []
        for compile in (False, "auto"):
            pyro.set_rng_seed(7)
            kernel = Exchange(lattice_model, sites=["s"], inner=inner, num_inner_steps=2)
            length = {"num_chains": 3, "num_samples": 60, "warmup": 40, "compile": compile}
            found.append(draws_of(kernel, data, site="coupling", **length))
        assert torch.equal(*found)
        assert len(found[0].unique()) > 3


def test_runs_in_the_driver_of_pyro():
    kernel = Exchange(precision_model(True))
    mcmc = pyro.infer.MCMC(kernel, num_samples=30, warmup_steps=30, disable_progbar=True)
    mcmc.run()
    draws = mcmc.get_samples()["b"]
    assert draws.shape == (30,)
    assert bool((draws > 0).all())


def test_a_model_that_vmap_does_not_accept_runs_chain_after_chain():
    def model():  # Gaussian looks whether its precision is positive
        b = pyro.sample("b", prior_of_precision())
        with pyro.plate("data", len(NUMBERS)):
            pyro.sample("x", Boltzmann(Gaussian(tensor(0.0), b)), obs=NUMBERS)

    kernel = Exchange(model, sites=["x"])
    truth = posterior_of_precision(NUMBERS)
    with pytest.warns(UserWarning, match="one chain after the other"):
        draws = draws_of(kernel, site="b", num_chains=16, num_samples=40, warmup=40)
    assert_posterior(draws, truth.mean, truth.variance)


def test_a_proposal_that_is_not_finite_is_rejected_and_counted():
    def model():
        b = pyro.sample("b", dist.Exponential(1.0))
        p = Boltzmann(Centred(torch.where(b < 1.5, b, torch.nan)))
        with pyro.plate("data", len(NUMBERS)):
            pyro.sample("x", p, obs=NUMBERS)

    mcmc = ebm.MCMC(Exchange(model, step_size=1.0), 50, 20, 16, disable_progbar=True)
    mcmc.run()
    assert bool((mcmc.get_samples()["b"] < 1.5).all())
    stats = mcmc.sample_stats
    assert bool(stats["diverging"].any())
    assert not bool((stats["diverging"] & stats["accepted"]).any())


# Refusals


def quartic(b, **kwargs):
    return Boltzmann(lambda x: b * x.pow(4), event_shape=(), **kwargs)


def with_latent(write):
    def model():
        write(pyro.sample("b", dist.Exponential(1.0)))

    return model


def latent_site(b):
    pyro.sample("z", quartic(b))
    pyro.sample("x", quartic(b), obs=tensor(1.0))


def scaled_site(b):
    with pyro.poutine.scale(scale=0.5):
        pyro.sample("x", quartic(b), obs=tensor(1.0))


def subsampled_site(b):
    with pyro.plate("data", 8, subsample_size=4) as rows:
        pyro.sample("x", quartic(b), obs=NUMBERS[rows])


def transformed_site(b):
    moved = dist.TransformedDistribution(quartic(b), [dist.transforms.ExpTransform()])
    pyro.sample("x", moved, obs=tensor(1.0))


def discrete_latent(b):
    k = pyro.sample("k", dist.Bernoulli(0.3))
    pyro.sample("x", quartic(b + k), obs=tensor(1.0))


def known_site(b):
    pyro.sample("x", quartic(b, log_z=-0.25 * b.log()), obs=tensor(1.0))


def intractable_site(b):
    pyro.sample("x", quartic(b), obs=tensor(1.0))


def wide_lattice(b):
    pyro.sample("s", Boltzmann(Ising((8, 8), b, 0.0)), obs=torch.ones(8, 8))


def hindered_lattice(b):
    class Hindered(Ising):
        def forward(self, x):
            return super().forward(x) + 0.1 * x.sum((-2, -1)).square()

    pyro.sample("s", Boltzmann(Hindered((8, 8), b, 0.0)), obs=torch.ones(8, 8))


REFUSED = {
    "latent": (latent_site, {"inner": HMC()}, "energy of site 'z' depends on latent"),
    "scaled": (scaled_site, {"inner": HMC()}, "site 'x' is scaled by 0.5"),
    "subsampled": (subsampled_site, {"inner": HMC()}, "site 'x' is scaled by 2"),
    "transformed": (transformed_site, {"inner": HMC()}, "'x' is a TransformedDistribution"),
    "discrete": (discrete_latent, {"inner": HMC()}, "latent 'k' is discrete"),
    "known": (known_site, {}, "log Z of every observed site is known"),
    "unknown name": (intractable_site, {"sites": ["y"]}, r"got \['y'\]"),
    "unknown inner": (intractable_site, {"inner": {"y": HMC()}}, r"inner names \['y'\]"),
    "no inner": (intractable_site, {}, "'x' cannot be drawn exactly.*inner=kernels.HMC"),
    "no inner spins": (wide_lattice, {}, "'s' cannot be drawn exactly.*inner=kernels.Gibbs"),
    "wrong inner": (wide_lattice, {"inner": HMC()}, "HMC moves continuous sites"),
    "wrong inner spins": (intractable_site, {"inner": Gibbs()}, "Gibbs moves sites with finitely"),
    "other law": (hindered_lattice, {"inner": SwendsenWang()}, "not all of the energy"),
    "other past": (hindered_lattice, {"inner": CouplingFromThePast()}, "not all of the energy"),
    "no past": (intractable_site, {"inner": CouplingFromThePast()}, "draws spins of an energy"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_exchanged_is_refused(case):
    write, options, message = REFUSED[case]
    mcmc = ebm.MCMC(Exchange(with_latent(write), **options), 3, 3, disable_progbar=True)
    with pytest.raises(ValueError, match=message):
        mcmc.run()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Exchange(inner=Exchange()), "untempered kernel of one site"),
        (lambda: Exchange(inner=Gibbs(Boltzmann(Ising((3, 3), 0.1)))), "no target of its own"),
        (lambda: Exchange(num_inner_steps=0), "num_inner_steps must be at least 1, got 0"),
        (lambda: CouplingFromThePast(3), "max_sweeps must be at least 16, got 3"),
        (lambda: Exchange(Boltzmann(Ising((3, 3), 0.1))).bind((), {}, None), "needs a Pyro model"),
        (
            lambda: Exchange().init(Potential.of(quartic(1.0)), torch.zeros(2, 1)),
            "give it the mod",
        ),
    ],
)
def test_bad_arguments_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_nuts_is_refused_and_names_exchange():
    mcmc = ebm.MCMC(ebm.kernels.NUTS(with_latent(wide_lattice)), 3, 3, disable_progbar=True)
    with pytest.raises(ValueError, match=r"sample with pyro_ebm\.kernels\.Exchange"):
        mcmc.run()


# Coupling from the past

FERROMAGNETS = {
    "grid": lambda: Ising((2, 3), 0.8, 0.15, periodic=False),
    "graph": lambda: IsingGraph(
        tensor([[0, 1], [1, 2], [2, 0], [2, 3]]), tensor([0.5, 0.1, 0.3, 0.8]), torch.randn(4) / 3
    ),
}


@pytest.mark.parametrize("energy", FERROMAGNETS)
def test_coupling_from_the_past_draws_exactly(energy):
    p = Boltzmann(FERROMAGNETS[energy](), temperature=1.3)
    points = p.enumerate_support()
    draws = CouplingFromThePast().draw(p, 20_000)
    powers = 2.0 ** torch.arange(p.event_shape.numel())
    first, second = (((x > 0).flatten(1) * powers).sum(-1).long() for x in (points, draws))
    counts = torch.bincount(second, minlength=len(points))[first]
    assert_counts(counts, p.log_prob(points).exp())


def test_coupling_from_the_past_meets_the_same_noise_again():
    met = []

    class Watched(Ising):
        def sweep(self, x, uniform, beta=1.0):
            met.append(uniform.clone())
            return super().sweep(x, uniform, beta)

    CouplingFromThePast().draw(Boltzmann(Watched((4, 4), 0.45)), 8)
    first, last = torch.stack(met[:16]), torch.stack(met[-16:])
    assert len(met) > 16
    assert torch.equal(first, last)


def test_coupling_from_the_past_says_where_it_ends():
    with pytest.raises(ValueError, match=r"a coupling is -0\.3"):
        CouplingFromThePast().draw(Boltzmann(Ising((4, 4), -0.3)), 2)
    with pytest.raises(RuntimeError, match="more than max_sweeps=64, at couplings of up to 2"):
        CouplingFromThePast(64).draw(Boltzmann(Ising((4, 4), 2.0)), 2)


# At size


@pytest.mark.slow
@pytest.mark.parametrize("coupling", [0.25, 0.42])
def test_has_the_posterior_of_a_torus_by_kaufman(coupling):
    """8 x 8 spins; the field of zero keeps Kaufman's formula from the kernel."""
    lattice = Boltzmann(Ising((8, 8), coupling))
    mcmc = ebm.MCMC(SwendsenWang(lattice), 200, 0, 1, disable_progbar=True)
    mcmc.run()
    data = mcmc.get_samples()["x"][-1]
    exponential = dist.Exponential(2.0)

    def model():
        k = pyro.sample("coupling", exponential)
        pyro.sample("s", Boltzmann(Ising((8, 8), k, field=0.0)), obs=data)

    grid = torch.linspace(0, 3, 30_001)[1:]
    log_density = exponential.log_prob(grid) + grid * Ising((8, 8), 1.0).bonds(data)
    truth = moments_on(grid, log_density - log_z_of_torus(grid, 8, 8))
    kernel = Exchange(model, inner=SwendsenWang(), num_inner_steps=30)
    draws = draws_of(kernel, site="coupling", num_chains=64, num_samples=600, warmup=200)
    assert_posterior(draws, *truth, num_sigmas=4)
