"""What ArviZ gets is what was drawn, under the names that ArviZ gives it."""

import json

import arviz
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import MCMC as PyroMCMC
from pyro.infer import NUTS
from torch import tensor

import pyro_ebm as ebm
from pyro_ebm.energies import Gaussian
from pyro_ebm.kernels import HMC, MALA

Y = tensor([0.3, -1.0, 2.0])


def model(y):
    loc = pyro.sample("loc", dist.Normal(0.0, 2.0))
    with pyro.plate("groups", 3):
        effect = pyro.sample("effect", dist.Normal(loc, 1.0))
        shift = pyro.sample("shift", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        ebm.energy_factor("pull", lambda e: e.square(), effect)
        pyro.deterministic("double", 2 * effect)
        pyro.sample("y", dist.Normal(effect + shift.sum(-1), 1.5), obs=y)


def run(kernel=HMC, num_chains=4, **kwargs):
    mcmc = ebm.MCMC(kernel(model), 8, 5, num_chains=num_chains, disable_progbar=True, **kwargs)
    mcmc.run(Y)
    return mcmc


def dataset(idata, group):
    found = idata[group]
    return found.to_dataset() if hasattr(found, "to_dataset") else found


def groups(idata):
    return set(idata.children) if hasattr(idata, "children") else set(idata.groups())


def test_every_group_is_there():
    assert groups(ebm.to_arviz(run())) == {
        "posterior",
        "sample_stats",
        "warmup_posterior",
        "warmup_sample_stats",
        "observed_data",
    }
    assert "warmup_posterior" not in groups(ebm.to_arviz(run(), save_warmup=False))


def test_posterior_has_the_draws_plates_and_deterministic_sites():
    mcmc = run()
    posterior = dataset(ebm.to_arviz(mcmc), "posterior")
    draws = mcmc.get_samples(group_by_chain=True)
    assert set(posterior.data_vars) == {"loc", "effect", "shift", "double"}
    assert posterior["effect"].dims == ("chain", "draw", "groups")
    assert posterior["shift"].dims == ("chain", "draw", "groups", "shift_dim_1")
    assert posterior["double"].dims == ("chain", "draw", "groups")
    torch.testing.assert_close(tensor(posterior["effect"].values), draws["effect"])
    torch.testing.assert_close(tensor(posterior["double"].values), 2 * draws["effect"])


def test_sample_stats_have_arvizs_names_and_the_right_sign():
    mcmc = run()
    stats = dataset(ebm.to_arviz(mcmc), "sample_stats")
    assert set(stats.data_vars) == {
        "lp",
        "acceptance_rate",
        "accepted",
        "diverging",
        "step_size",
        "n_steps",
        "energy",
    }
    assert stats["diverging"].dtype == bool
    assert (stats["energy"] >= -stats["lp"]).all()
    assert "energy" not in dataset(ebm.to_arviz(run(MALA)), "sample_stats")
    draws = {k: v[1, 2] for k, v in mcmc.get_samples(group_by_chain=True).items()}
    with pyro.validation_enabled(False):
        trace = pyro.poutine.trace(pyro.poutine.condition(model, draws)).get_trace(Y)
    assert stats["lp"].values[1, 2] == pytest.approx(trace.log_prob_sum().item())


def test_observed_data_hold_data_and_no_factor():
    observed = dataset(ebm.to_arviz(run()), "observed_data")
    assert set(observed.data_vars) == {"y"}
    assert observed["y"].dims == ("groups",)
    assert observed["y"].values.tolist() == Y.tolist()


def test_log_likelihood_is_that_of_the_normalized_sites_alone():
    mcmc = run()
    idata = ebm.to_arviz(mcmc, log_likelihood=True)
    found = dataset(idata, "log_likelihood")
    assert set(found.data_vars) == {"y"}
    draws = mcmc.get_samples(group_by_chain=True)
    loc = draws["effect"] + draws["shift"].sum(-1)
    torch.testing.assert_close(tensor(found["y"].values), dist.Normal(loc, 1.5).log_prob(Y))
    with pytest.raises(ValueError, match=r"log_likelihood of \['pull'\] is refused"):
        ebm.to_arviz(mcmc, log_likelihood=["pull"])


def test_log_likelihood_of_an_unnormalized_site_is_refused():
    def unnormalized():
        pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", ebm.Boltzmann(lambda x: x.pow(4), event_shape=()), obs=tensor(0.5))

    mcmc = ebm.MCMC(MALA(unnormalized), 5, 5, disable_progbar=True)
    mcmc.run()
    for wanted in (True, ["x"]):
        with pytest.raises(ValueError, match=r"is refused: an unnormalised factor or energy"):
            ebm.to_arviz(mcmc, log_likelihood=wanted)
    assert "log_likelihood" not in groups(ebm.to_arviz(mcmc))


def test_what_depends_on_a_latent_that_was_summed_out_is_left_out():
    def mixture(y):
        loc = pyro.sample("loc", dist.Normal(tensor([0.0, 3.0]), 1.0).to_event(1))
        pyro.deterministic("gap", loc.diff())
        pyro.sample("near", dist.Normal(loc.sum(), 1.0), obs=tensor(2.5))
        with pyro.plate("data", len(y)):
            k = pyro.sample("k", dist.Categorical(tensor([0.3, 0.7])))
            pyro.deterministic("own", loc[k])
            pyro.sample("y", dist.Normal(loc[k], 1.0), obs=y)

    mcmc = ebm.MCMC(MALA(mixture), 5, 5, disable_progbar=True)
    mcmc.run(Y)
    with pytest.warns(UserWarning, match=r"\['own'\] are not exported: .* of \['k'\]"):
        idata = ebm.to_arviz(mcmc, log_likelihood=True)
    assert set(dataset(idata, "posterior").data_vars) == {"loc", "gap"}
    assert set(dataset(idata, "log_likelihood").data_vars) == {"near"}
    with (
        pytest.raises(ValueError, match=r"log_likelihood of \['y'\] is refused.*was summed out"),
        pytest.warns(UserWarning, match="not exported"),
    ):
        ebm.to_arviz(mcmc, log_likelihood=["y"])


def test_a_normalised_energy_has_a_likelihood():
    def normalised():
        with pyro.plate("rows", 2, dim=-2), pyro.plate("columns", 3, dim=-1):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            energy = ebm.Boltzmann(lambda x: 0.5 * (x - z) ** 2, event_shape=(), log_z=0.9189)
            pyro.sample("x", energy, obs=torch.arange(6.0).reshape(2, 3))

    mcmc = ebm.MCMC(MALA(normalised), 4, 5, num_chains=2, thin=3, disable_progbar=True)
    mcmc.run()
    idata = ebm.to_arviz(mcmc, log_likelihood=True)
    found = dataset(idata, "log_likelihood")["x"]
    assert found.dims == ("chain", "draw", "rows", "columns")
    off = torch.arange(6.0).reshape(2, 3) - mcmc.get_samples(group_by_chain=True)["z"]
    torch.testing.assert_close(tensor(found.values), -0.5 * off.square() - 0.9189)
    assert dataset(idata, "observed_data")["x"].dims == ("rows", "columns")
    assert dataset(idata, "posterior").attrs["thinning"] == 3


def test_warmup_has_the_draws_of_warmup():
    mcmc = run()
    idata = ebm.to_arviz(mcmc)
    for name, draws in mcmc.get_warmup().items():
        found = dataset(idata, "warmup_posterior")[name].values
        torch.testing.assert_close(tensor(found), draws)


def test_a_boltzmann_target_has_no_model_to_replay():
    mcmc = ebm.MCMC(MALA(ebm.Boltzmann(Gaussian(torch.zeros(2), 1.0))), 5, 5, disable_progbar=True)
    mcmc.run()
    idata = ebm.to_arviz(mcmc, dims={"x": ["axis"]}, coords={"axis": ["east", "north"]})
    posterior = dataset(idata, "posterior")
    assert posterior["x"].dims == ("chain", "draw", "axis")
    assert posterior["axis"].values.tolist() == ["east", "north"]
    with pytest.raises(ValueError, match="needs a Pyro model"):
        ebm.to_arviz(mcmc, log_likelihood=True)


@pytest.mark.parametrize("driver", ["ours", "pyros"])
@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"dims": {"efect": ["school"], "shift": ["groups", "axis"]}},
            r"dims names no site: \['efect'\]; the sites are \['double', 'effect', .* 'y'\]",
        ),
        (
            {"coords": {"school": "abc", "axis": [0, 1]}, "dims": {"shift": ["groups", "axis"]}},
            r"coords names no dimension: \['school'\]; the dimensions are "
            r"\['axis', 'chain', 'draw', 'groups'",
        ),
        (
            {"dims": {"effect": ["groups", "axis"]}},
            r"dims of 'effect' must be at most 1, .* shape \(3,\), got \['groups', 'axis'\]",
        ),
    ],
)
def test_refuses_names_of_nothing(given, message, driver):
    mcmc = run()
    if driver == "pyros":
        mcmc = PyroMCMC(MALA(model), num_samples=2, warmup_steps=1, disable_progbar=True)
        mcmc.run(Y)
    with pytest.raises(ValueError, match=message):
        ebm.to_arviz(mcmc, **given)


def test_labels_are_those_given_for_plates_chains_and_names_of_ones_own():
    idata = ebm.to_arviz(
        run(),
        dims={"shift": ["school", "axis"], "y": ["school"]},
        coords={"groups": list("abc"), "school": list("xyz"), "axis": [7, 8], "chain": range(4)},
        log_likelihood=True,
    )
    posterior = dataset(idata, "posterior")
    assert posterior["effect"]["groups"].values.tolist() == list("abc")
    assert posterior["shift"].dims == ("chain", "draw", "school", "axis")
    assert posterior["shift"]["axis"].values.tolist() == [7, 8]
    for group in ("observed_data", "log_likelihood"):
        assert dataset(idata, group)["y"]["school"].values.tolist() == list("xyz")


def test_names_may_be_of_sites_that_have_nothing_to_export():
    def model():
        loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        with pyro.plate("data", 20, subsample_size=4) as rows:
            pyro.sample("y", dist.Normal(loc, 1.0), obs=torch.arange(20.0)[rows])

    mcmc = ebm.MCMC(ebm.kernels.SGLD(model, step_size=0.01), 5, 5, disable_progbar=True)
    mcmc.run()
    idata = ebm.to_arviz(mcmc, dims={"y": ["data"]}, coords={"data": range(20)})
    assert dataset(idata, "posterior")["loc"].dims == ("chain", "draw")


def test_stock_pyro_runs_are_exported_with_divergences_where_they_happened():
    mcmc = PyroMCMC(NUTS(model), num_samples=6, warmup_steps=4, disable_progbar=True)
    mcmc.run(Y)
    mcmc._diagnostics[0]["divergences"] = [1, 4]
    stats = dataset(ebm.to_arviz(mcmc), "sample_stats")
    assert stats["diverging"].values.tolist() == [[False, True, False, False, True, False]]


def test_our_kernels_in_pyros_driver_export_their_statistics():
    mcmc = PyroMCMC(HMC(model), num_samples=6, warmup_steps=4, disable_progbar=True)
    mcmc.run(Y)
    idata = ebm.to_arviz(mcmc)
    stats = dataset(idata, "sample_stats")
    assert stats["lp"].shape == stats["energy"].shape == (1, 6)
    assert dataset(idata, "posterior")["double"].dims == ("chain", "draw", "groups")


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::RuntimeWarning")
@pytest.mark.parametrize(("num_chains", "num_samples"), [(1, 3), (4, 50), (100, 8)])
def test_arviz_reads_it_and_it_survives_a_file(num_chains, num_samples, tmp_path):
    mcmc = ebm.MCMC(HMC(model), num_samples, 5, num_chains=num_chains, disable_progbar=True)
    mcmc.run(Y)
    idata = ebm.to_arviz(mcmc, log_likelihood=True)
    summary = arviz.summary(idata, var_names=["loc", "effect"])
    assert len(summary) == 4
    idata.to_netcdf(str(tmp_path / "run.nc"))
    again = arviz.from_netcdf(str(tmp_path / "run.nc"))
    attrs = dataset(again, "posterior").attrs
    assert attrs["inference_library"] == "pyro_ebm"
    assert attrs["kernel"] == "HMC"
    assert attrs["tuning_steps"] == 5
    assert json.loads(attrs["kernel_config"])["num_steps"] == 10
    assert attrs["sampling_time"] > 0


def test_a_model_with_python_branches_is_replayed_draw_by_draw():
    def branching():
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        pyro.deterministic("sign", tensor(1.0) if x > 0 else tensor(-1.0))

    mcmc = ebm.MCMC(MALA(branching), 5, 5, disable_progbar=True)
    with pytest.warns(UserWarning, match="one chain after the other"):
        mcmc.run()
    posterior = dataset(ebm.to_arviz(mcmc), "posterior")
    assert (posterior["sign"] * posterior["x"] > 0).all()


def test_odd_dtypes_are_exported():
    mcmc = ebm.MCMC(
        MALA(potential_fn=lambda p: p["a"].square().sum()),
        5,
        5,
        disable_progbar=True,
        initial_params={"a": torch.zeros(4, 2, dtype=torch.bfloat16)},
    )
    mcmc.run()
    assert dataset(ebm.to_arviz(mcmc), "posterior")["a"].dtype == "float32"


def test_a_minibatch_is_neither_the_data_nor_a_likelihood():
    def model():
        loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        with pyro.plate("data", 20, subsample_size=4) as rows:
            pyro.sample("y", dist.Normal(loc, 1.0), obs=torch.arange(20.0)[rows])
        pyro.sample("whole", dist.Normal(loc, 1.0), obs=torch.tensor(0.3))

    mcmc = ebm.MCMC(ebm.kernels.SGLD(model, step_size=0.01), 5, 5, disable_progbar=True)
    mcmc.run()
    assert list(dataset(ebm.to_arviz(mcmc), "observed_data")) == ["whole"]
    found = dataset(ebm.to_arviz(mcmc, log_likelihood=True), "log_likelihood")
    assert list(found) == ["whole"]
    with pytest.raises(ValueError, match="nor is that of a minibatch: remove subsample_size"):
        ebm.to_arviz(mcmc, log_likelihood=["y"])
