"""The driver: Pyro's face, many chains, nothing lost."""

import functools
import pickle

import pyro
import pyro.distributions as dist
import pytest
import torch
from cases import FAR_SIGHTED, KERNELS, SKEWED, SKEWED_BY_KERNEL, UNADJUSTED
from laws import assert_chain_mean, assert_close
from pyro.infer import MCMC as PyroMCMC
from pyro.infer.reparam import LocScaleReparam
from torch import tensor
from torch.distributions import constraints

import pyro_ebm as ebm
from pyro_ebm.diagnostics import bulk_ess
from pyro_ebm.energies import Gaussian, Laplace
from pyro_ebm.kernels import HMC, MALA, ULA, ChEES
from pyro_ebm.kernels.transition import blocks


def normal_model(y):
    loc = pyro.sample("loc", dist.Normal(0.0, 2.0))
    scale = pyro.sample("scale", dist.Gamma(2.0, 1.0))
    with pyro.plate("groups", 3):
        effect = pyro.sample("effect", dist.Normal(loc, 1.0))
    pyro.sample("y", dist.Normal(effect.sum(-1), scale), obs=y)


def quiet(kernel, *args, **kwargs):
    return ebm.MCMC(kernel, *args, disable_progbar=True, **kwargs)


@pytest.mark.parametrize(("kernel", "target"), SKEWED_BY_KERNEL)
def test_recovers_the_moments_of_a_skewed_target_after_warmup(kernel, target):
    energy = SKEWED[target]()
    potential_start = energy.sample(300).reshape(300, *energy.event_shape)
    mcmc = quiet(
        KERNELS[kernel](ebm.Boltzmann(energy)),
        60,
        200,
        num_chains=300,
        initial_params={"x": potential_start},
    )
    mcmc.run()
    draws = mcmc.get_samples(group_by_chain=True)["x"]
    assert draws.shape == (300, 60, *energy.event_shape)
    exact = energy.sample(1_000_000)
    assert_chain_mean(draws, exact.mean(0))
    assert_chain_mean(draws**2, (exact**2).mean(0))


@pytest.mark.parametrize("kernel", FAR_SIGHTED)
def test_finds_a_far_and_badly_scaled_target_from_the_default_start(kernel):
    energy = Gaussian(tensor([100.0, -3.0, 0.001]), tensor([0.01, 1.0, 1e6]))
    mcmc = quiet(KERNELS[kernel](ebm.Boltzmann(energy)), 100, 600, num_chains=64)
    mcmc.run()
    assert_chain_mean(mcmc.get_samples(group_by_chain=True)["x"], energy.mean)
    assert max(mcmc.diagnostics()["x"]["r_hat"]) < 1.05


@pytest.mark.parametrize("kernel", KERNELS)
def test_the_same_kernels_run_inside_pyros_own_driver(kernel):
    target = Laplace(torch.zeros(2), 1.0) + Gaussian(tensor([2.0, 2.0]), 1.0)  # skewed
    grid = torch.linspace(-10, 10, 100_001)
    truth = ((-grid.abs() - 0.5 * (grid - 2) ** 2).softmax(0) * grid).sum()
    make = KERNELS[kernel]
    if kernel in UNADJUSTED:
        make = functools.partial(getattr(ebm.kernels, kernel), step_size=UNADJUSTED[kernel])
    recipe = make(ebm.Boltzmann(target))
    mcmc = PyroMCMC(recipe, num_samples=1500, warmup_steps=200, disable_progbar=True)
    mcmc.run()
    draws = mcmc.get_samples(group_by_chain=True)["x"]
    bias = 0.02 if kernel in UNADJUSTED else 0.0
    standard_error = draws.std((0, 1)) / bulk_ess(draws).sqrt()
    assert_close(draws.mean((0, 1)), truth.expand(2), standard_error + bias / 5)
    found = mcmc.diagnostics()
    assert found["divergences"] == {"chain 0": []}
    assert found["sample_stats"]["chain 0"]["lp"].shape == (1500,)
    torch.testing.assert_close(found["sample_stats"]["chain 0"]["lp"], -target(draws[0]))


def test_pyros_driver_gets_constrained_draws_of_a_model():
    mcmc = PyroMCMC(HMC(normal_model), num_samples=30, warmup_steps=30, disable_progbar=True)
    mcmc.run(tensor(1.0))
    draws = mcmc.get_samples()
    assert {name: tuple(v.shape) for name, v in draws.items()} == {
        "effect": (30, 3),
        "loc": (30,),
        "scale": (30,),
    }
    assert (draws["scale"] > 0).all()
    mcmc.summary()


def test_pyros_driver_starts_where_it_is_told():
    kernel = ULA(potential_fn=lambda p: 0.5 * p["a"].square().sum(), step_size=1e-12)
    mcmc = PyroMCMC(
        kernel,
        num_samples=2,
        warmup_steps=0,
        initial_params={"a": tensor([5.0, 7.0])},
        disable_progbar=True,
    )
    mcmc.run()
    assert_close(mcmc.get_samples()["a"], tensor([[5.0, 7.0]] * 2), torch.full((2, 2), 1e-4))


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_kernel_is_pickled_before_and_after_use(kernel):
    recipe = KERNELS[kernel](ebm.Boltzmann(Gaussian(torch.zeros(2), 1.0)))
    quiet(pickle.loads(pickle.dumps(recipe)), 3, 3).run()


def test_takes_a_potential_function_of_a_dict():
    def potential_fn(params):
        return 0.5 * (params["a"] - 1).square().sum() + 2 * params["b"].square()

    start = {"a": torch.zeros(50, 2), "b": torch.zeros(50)}
    mcmc = quiet(MALA(potential_fn=potential_fn), 60, 60, num_chains=50, initial_params=start)
    mcmc.run()
    draws = mcmc.get_samples(group_by_chain=True)
    assert_chain_mean(draws["a"], torch.ones(2))
    assert_chain_mean(draws["b"] ** 2, 0.25)


def test_has_pyros_face():
    mcmc = quiet(HMC(normal_model), num_samples=20, warmup_steps=15, num_chains=12)
    mcmc.run(tensor(1.0))
    draws = mcmc.get_samples()
    assert {name: tuple(v.shape) for name, v in draws.items()} == {
        "effect": (240, 3),
        "loc": (240,),
        "scale": (240,),
    }
    assert mcmc.get_samples(group_by_chain=True)["effect"].shape == (12, 20, 3)
    assert mcmc.get_samples(num_samples=7)["effect"].shape == (7, 3)
    assert mcmc.get_warmup()["scale"].shape == (12, 15)
    assert constraints.positive.check(mcmc.get_warmup()["scale"]).all()
    found = mcmc.diagnostics()
    assert found["effect"]["n_eff"].shape == found["effect"]["r_hat"].shape == (3,)
    assert list(found["divergences"]) == [f"chain {c:02d}" for c in range(12)]
    assert set(found["acceptance rate"]) == set(found["divergences"])


def test_statistics_are_those_of_the_draws():
    mcmc = quiet(HMC(normal_model), num_samples=20, warmup_steps=15, num_chains=5)
    mcmc.run(tensor(1.0))
    stats = mcmc.sample_stats
    draws = mcmc.get_samples()
    value, _ = mcmc.potential.value_and_grad(mcmc.potential.unconstrain(draws))
    torch.testing.assert_close(stats["lp"], -value.unflatten(0, (5, 20)), rtol=1e-4, atol=1e-4)
    assert (stats["energy"] >= -stats["lp"]).all()  # the kinetic energy is not negative
    assert stats["step_size"].unique().numel() == 1  # adaptation is over
    assert mcmc.warmup_stats["step_size"].unique().numel() > 5
    assert stats["acceptance_rate"].gt(0).any()


def test_a_kernel_without_momentum_reports_no_energy():
    mcmc = quiet(MALA(ebm.Boltzmann(Gaussian(torch.zeros(2), 1.0))), 5, 5)
    mcmc.run()
    assert set(mcmc.sample_stats) == {
        "lp",
        "step_size",
        "diverging",
        "acceptance_rate",
        "accepted",
    }
    mcmc = quiet(ULA(ebm.Boltzmann(Gaussian(torch.zeros(2), 1.0)), step_size=0.1), 5, 5)
    mcmc.run()
    assert set(mcmc.sample_stats) == {"lp", "step_size", "diverging"}


def test_a_seed_makes_a_run_repeatable():
    def draws():
        pyro.set_rng_seed(5)
        mcmc = quiet(HMC(normal_model), 10, 10)
        mcmc.run(tensor(1.0))
        return mcmc.get_samples()["effect"]

    assert torch.equal(draws(), draws())


def test_superchains_start_at_one_point_each():
    kernel = ULA(ebm.Boltzmann(Gaussian(torch.zeros(2), 1.0)), step_size=1e-14)
    mcmc = quiet(kernel, 2, 0, num_chains=12, num_superchains=3)
    mcmc.run()
    starts = mcmc.get_samples(group_by_chain=True)["x"][:, 0].round(decimals=4)
    assert len(starts.unique(dim=0)) == 3
    assert torch.equal(starts[0], starts[3])
    assert mcmc.diagnostics()["x"]["nested_r_hat"].min() > 1.5  # frozen chains have not mixed


def test_nested_r_hat_passes_many_short_mixed_chains():
    mcmc = quiet(
        MALA(ebm.Boltzmann(Gaussian(torch.zeros(2), 1.0))),
        5,
        100,
        num_chains=512,
        num_superchains=16,
    )
    mcmc.run()
    assert mcmc.diagnostics()["x"]["nested_r_hat"].max() < 1.02


def test_a_run_streams_to_a_folder_what_it_would_keep_in_memory(tmp_path):
    def draws(**kwargs):
        pyro.set_rng_seed(6)
        mcmc = quiet(HMC(normal_model), 10, 15, num_chains=6, **kwargs)
        mcmc.run(tensor(1.0))
        return mcmc

    kept = draws().get_samples(group_by_chain=True)
    draws(store=tmp_path / "run")
    found = ebm.Draws.open(tmp_path / "run").values()
    assert set(found) == set(kept)
    for name, values in kept.items():
        assert torch.equal(found[name], values)
    with pytest.raises(ValueError, match="holds draws"):
        draws(store=tmp_path / "run")


def test_thinning_makes_more_steps_and_keeps_as_many_draws():
    def steps(num_samples, thin):
        pyro.set_rng_seed(7)
        mcmc = quiet(MALA(normal_model), num_samples, 15, num_chains=3, thin=thin)
        mcmc.run(tensor(1.0))
        return mcmc.get_samples(group_by_chain=True)["loc"]

    assert torch.equal(steps(4, 3), steps(12, 1)[:, 2::3])


def test_the_acceptance_rate_counts_the_steps_between_draws():
    mcmc = quiet(MALA(normal_model), 4, 15, num_chains=3, thin=3)
    mcmc.run(tensor(1.0))
    rates = mcmc.diagnostics()["acceptance rate"].values()
    assert all(0 < rate <= 1 for rate in rates)
    totals = mcmc.draws.totals()["acceptance_rate"]
    torch.testing.assert_close(tensor(list(rates)), totals.double() / 12)


def test_moments_and_totals_are_there_without_a_single_draw(capsys):
    mcmc = quiet(HMC(normal_model), 40, 30, num_chains=8, save=())
    mcmc.run(tensor(1.0))
    assert mcmc.get_samples() == {}
    found = mcmc.diagnostics()
    assert found["effect"]["r_hat"].shape == (3,)
    assert "n_eff" not in found["effect"]
    assert "divergences" not in found
    assert set(found["acceptance rate"]) == {f"chain {c}" for c in range(8)}
    assert mcmc.draws.moments()["effect"].mean.shape == (8, 3)
    mcmc.summary()
    assert "Number of divergences" in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"draws of \['effect', 'loc', 'scale'\] were not saved"):
        ebm.to_arviz(mcmc)


@pytest.mark.parametrize("at", [1, 7, 20])
def test_an_interrupt_keeps_the_draws_made_so_far(at):
    calls = 0

    class Interrupting(MALA):
        def step(self, potential, state, noise):
            nonlocal calls
            calls += 1
            if calls == 10 + at + 1:
                raise KeyboardInterrupt
            return super().step(potential, state, noise)

    mcmc = quiet(Interrupting(ebm.Boltzmann(Gaussian(torch.zeros(2), 1.0))), 30, 10)
    with pytest.warns(UserWarning, match=f"interrupted after {at} of 30 draws: they are kept"):
        mcmc.run()
    assert mcmc.num_draws == at
    assert mcmc.get_samples(group_by_chain=True)["x"].shape == (4, at, 2)
    assert mcmc.sample_stats["lp"].shape == (4, at)
    mcmc.diagnostics()


def test_an_interrupt_in_warmup_is_raised():
    class Interrupting(MALA):
        def step(self, potential, state, noise):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        quiet(Interrupting(ebm.Boltzmann(Gaussian(torch.zeros(2), 1.0))), 30, 10).run()


def test_summary_prints_a_row_for_each_coordinate(capsys):
    mcmc = quiet(HMC(normal_model), 20, 15)
    mcmc.run(tensor(1.0))
    mcmc.summary()
    printed = capsys.readouterr().out
    for row in ("effect[0]", "effect[2]", "loc", "scale", "n_eff", "r_hat", "divergences: "):
        assert row in printed


def centred_funnel():
    x0 = pyro.sample("x0", dist.Normal(0.0, 3.0))
    with pyro.plate("plate", 9):
        pyro.sample("x", dist.Normal(0.0, (x0 / 2).exp()))


def test_summary_tells_of_a_funnel_and_its_advice_is_the_way_out(capsys):
    mcmc = quiet(ChEES(centred_funnel, max_steps=30), 20, 90, num_chains=16)
    mcmc.run()
    mcmc.summary()
    told = capsys.readouterr().out
    assert "the chains have not mixed" in told
    assert "non-centred, as pyro.infer.reparam.LocScaleReparam(0.0)" in told

    way_out = pyro.poutine.reparam(centred_funnel, config={"x": LocScaleReparam(0.0)})
    mcmc = quiet(way_out, 60, 60, num_chains=64)
    mcmc.run()
    mcmc.summary()
    assert capsys.readouterr().out.endswith("\nNumber of divergences: 0\n")
    draws = mcmc.get_samples(group_by_chain=True)["x0"]
    assert_chain_mean(draws, tensor(0.0))
    assert_chain_mean(draws.square(), tensor(9.0))


def test_shows_progress_unless_told_not_to(capsys):
    kernel = MALA(ebm.Boltzmann(Gaussian(torch.zeros(2), 1.0)))
    ebm.MCMC(kernel, 5, 5).run()
    assert "sample: 100%" in capsys.readouterr().err
    ebm.MCMC(kernel, 5, 5, disable_progbar=True).run()
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda k: ebm.MCMC(k, 0), "num_samples must be at least 1, got 0"),
        (lambda k: ebm.MCMC(k, 5, -1), "warmup_steps must be at least 0, got -1"),
        (lambda k: ebm.MCMC(k, 5, num_chains=0), "num_chains must be at least 1, got 0"),
        (lambda k: ebm.MCMC(k, 5, num_chains=5, num_superchains=2), "must divide num_chains"),
        (
            lambda k: ebm.MCMC(k, 5, num_chains=3, initial_params={"x": torch.zeros(2, 2)}),
            r"initial_params\['x'\] must have num_chains=3 rows, got shape \(2, 2\)",
        ),
        (
            lambda k: ebm.MCMC(k, 5, num_chains=3, initial_params=torch.zeros(3, 2)),
            "initial_params must be a dict .*, got Tensor",
        ),
        (
            lambda k: quiet(k, 5, num_chains=3, initial_params={"z": torch.zeros(3, 2)}).run(),
            r"values must be given for the sites \['x'\], got \['z'\]",
        ),
        (
            lambda k: quiet(k, 5, num_chains=3, initial_params={"x": torch.zeros(3, 4)}).run(),
            r"values of 'x' must have shape \(3, 2\) in unconstrained space",
        ),
        (
            lambda k: quiet(
                k, 5, num_chains=2, initial_params={"x": tensor([[0.0, 1.0], [torch.nan, 2.0]])}
            ).run(),
            "do not in 1 of 2 chains; in chain 1 the values are",
        ),
        (lambda k: quiet(MALA(), 5).run(), "exactly one target"),
        (lambda k: quiet(MALA, 5).run(), "must be an instance, got the class MALA"),
        (lambda k: quiet(Gaussian(torch.zeros(2), 1.0), 5).run(), r"give Boltzmann\(energy\)"),
        (
            lambda k: quiet(k.target.to_event(0).mask(True), 5).run(),
            "got MaskedDistribution: make",
        ),
        (lambda k: quiet(k, 5).get_samples(), "no draws before a run"),
        (lambda k: quiet(k, 5).summary(), "no draws before a run"),
    ],
)
def test_refuses_bad_arguments(make, message):
    kernel = MALA(ebm.Boltzmann(Gaussian(torch.zeros(2), 1.0)))
    with pytest.raises(ValueError, match=message):
        make(kernel)


def test_data_that_are_not_finite_are_named():
    def model(y):
        loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(loc, 1.0), obs=y)

    with pytest.raises(ValueError, match=r"not finite: 'y' \(observed values that are not finite"):
        quiet(model, 5).run(tensor([1.0, torch.nan]))


def test_a_latent_without_coordinates_is_no_obstacle(capsys):
    def model():
        pyro.sample("nothing", dist.Normal(torch.zeros(0), 1.0).to_event(1))
        pyro.sample("a", dist.Normal(0.0, 1.0))

    mcmc = quiet(MALA(model), 5, num_chains=2)
    mcmc.run()
    mcmc.summary()
    assert "nothing" not in capsys.readouterr().out
    assert mcmc.get_samples()["nothing"].shape == (10, 0)


@pytest.mark.parametrize("target", ["model", "boltzmann"])
def test_a_target_alone_is_sampled_by_a_default_kernel(target):
    def model():
        pyro.sample("x", dist.Gamma(3.0, 2.0))

    gamma = ebm.Boltzmann(
        lambda x: 2 * x - 2 * x.log(), event_shape=(), support=constraints.positive
    )
    mcmc = quiet(model if target == "model" else gamma, 60, 60, num_chains=200)
    mcmc.run()
    assert isinstance(mcmc.kernel, ChEES)
    assert_chain_mean(mcmc.get_samples(group_by_chain=True)["x"], 1.5)


def test_noise_is_drawn_for_the_same_blocks_on_every_rung():
    """Else a run in which native code takes over halfway would have other draws by its seed."""
    asked = []

    class Listening(MALA):
        def noise(self, state, generator, *num_steps):
            asked.extend(num_steps)
            return super().noise(state, generator, *num_steps)

    kernel = Listening(ebm.Boltzmann(Laplace(torch.zeros(2), 1.0)))
    ebm.MCMC(kernel, 30, 0, num_chains=3, compile=False, disable_progbar=True).run()
    assert asked == list(blocks(torch.zeros(3, 2), 30))
    assert len(asked) > 1
