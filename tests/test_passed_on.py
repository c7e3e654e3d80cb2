"""A run can be handed to another process, and runs of several threads take turns."""

import copy
import pickle
import threading
import time

import pyro
import pyro.distributions as dist
import pytest
import torch
from cases import KERNELS
from discrete_cases import DISCRETE, DISCRETE_KERNELS
from laws import assert_chain_mean
from torch import tensor

import pyro_ebm as ebm
from pyro_ebm.energies import Banana
from pyro_ebm.kernels import MALA, Alternating, ChEES, Gibbs

Y = tensor([0.3, -1.0, 2.0])


def model(y):
    scale = pyro.sample("scale", dist.Gamma(2.0, 1.0))
    weights = pyro.sample("weights", dist.Dirichlet(torch.ones(2)))
    with pyro.plate("groups", 3):
        effect = pyro.sample("effect", dist.Normal(weights[0], 1.0))
        pyro.deterministic("double", 2 * effect)
        pyro.sample("y", dist.Normal(effect, scale), obs=y)


def mixed_model():
    flag = pyro.sample("flag", dist.Bernoulli(0.3))
    pyro.sample("x", dist.Normal(2 * flag, 1.0))


def of_spins(kernel):
    energy, told = DISCRETE["ising_3x3"]()
    return kernel(ebm.Boltzmann(energy, **told))


RUNS = {
    **{
        name: lambda make=make: make(ebm.Boltzmann(Banana(1.0, 0.5)))
        for name, make in KERNELS.items()
    },
    **{name: lambda make=make: of_spins(make) for name, make in DISCRETE_KERNELS.items()},
    "Alternating": lambda: Alternating(mixed_model, sites={"flag": Gibbs()}, rest=MALA()),
    "model": lambda: ChEES(model),
}


def pickled(x):
    return pickle.loads(pickle.dumps(x))


def ran(name, **kwargs):
    mcmc = ebm.MCMC(RUNS[name](), 6, 5, num_chains=3, disable_progbar=True, **kwargs)
    mcmc.run(*[Y] * (name == "model"))
    return mcmc


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        assert torch.equal(found[name], values)


def everything(mcmc, capsys):
    capsys.readouterr()
    mcmc.summary()
    exported = ebm.to_arviz(mcmc)
    groups = exported.children if hasattr(exported, "children") else exported.groups()
    arrays = {
        (group.strip("/"), name): tensor(values.values)
        for group in groups
        for name, values in exported[group].data_vars.items()
    }
    return capsys.readouterr().out, str(mcmc.diagnostics()), mcmc.engine, arrays


@pytest.mark.parametrize("passed", [pickled, copy.deepcopy])
@pytest.mark.parametrize("name", RUNS)
def test_a_run_that_was_passed_on_has_all_that_was_found(name, passed, capsys):
    mcmc = ran(name)
    again = passed(mcmc)
    *said, arrays = everything(mcmc, capsys)
    *said_again, arrays_again = everything(again, capsys)
    assert said_again == said
    assert_same(arrays_again, arrays)
    assert_same(again.get_samples(), mcmc.get_samples())
    assert_same(again.warmup_stats, mcmc.warmup_stats)
    assert torch.equal(again.state.z, mcmc.state.z)
    assert torch.equal(again.rejoined, mcmc.rejoined)


def test_it_has_its_transforms_and_can_run_anew():
    mcmc = ran("model")
    again = pickled(mcmc)
    for name, values in mcmc.get_samples().items():
        assert torch.equal(again.transforms[name](values), mcmc.transforms[name](values))
    for one in (mcmc, again):
        pyro.set_rng_seed(5)
        one.run(Y)
    assert_same(again.get_samples(), mcmc.get_samples())


def test_one_on_the_disk_is_found_there(tmp_path):
    mcmc = ran("MALA", store=tmp_path)
    data = pickle.dumps(mcmc)
    assert len(data) < 100_000
    assert_same(pickle.loads(data).get_samples(), mcmc.get_samples())


@pytest.mark.parametrize("passed", [pickled, copy.deepcopy])
def test_one_that_was_traced_goes_on_elsewhere(passed):
    make = lambda: ebm.MCMC(RUNS["ChEES"](), 80, 40, num_chains=3, disable_progbar=True)  # noqa: E731
    pyro.set_rng_seed(5)
    mcmc = make()
    mcmc.run()
    assert mcmc.engine.startswith("graph")
    longer = ebm.MCMC(RUNS["ChEES"](), 90, 40, num_chains=3, disable_progbar=True)
    longer.load_state_dict(passed(mcmc).state_dict())
    longer.run()
    assert torch.equal(
        longer.get_samples(group_by_chain=True)["x"][:, :80],
        mcmc.get_samples(group_by_chain=True)["x"],
    )


def test_draws_are_in_a_pickle_once():
    mcmc = ebm.MCMC(RUNS["MALA"](), 90, 0, num_chains=200, save=("x",), disable_progbar=True)
    mcmc.run()
    held = [*mcmc.draws.values().values(), *mcmc.draws.stats().values()]
    assert len(pickle.dumps(mcmc)) < 1.5 * sum(x.numel() * x.element_size() for x in held)


def test_what_stops_a_pickle_is_named_by_pickle():
    mcmc = ebm.MCMC(
        MALA(ebm.Boltzmann(lambda x: x.square().sum(-1), event_shape=(2,))), 5, 5, num_chains=2
    )
    with pytest.raises((pickle.PicklingError, AttributeError), match="lambda"):
        pickle.dumps(mcmc)


def test_runs_of_several_threads_take_turns():
    errors, runs = [], []
    begin = threading.Barrier(3)

    def slow():
        time.sleep(1e-4)  # another thread goes on
        rate = pyro.sample("rate", dist.Gamma(3.0, 2.0))
        time.sleep(1e-4)
        pyro.deterministic("half", rate / 2)

    def work():
        try:
            mcmc = ebm.MCMC(
                ChEES(slow), 30, 30, num_chains=60, disable_progbar=True, compile=False
            )
            begin.wait()
            mcmc.run()
            runs.append((mcmc, ebm.to_arviz(mcmc)))
        except Exception as error:  # noqa: BLE001  of a thread, told below
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    for mcmc, exported in runs:
        draws = mcmc.get_samples(group_by_chain=True)["rate"]
        assert_chain_mean(draws, tensor(1.5))
        half = tensor(exported["posterior"]["half"].values)
        assert torch.equal(half, draws / 2)
    assert not pyro.poutine.runtime._PYRO_STACK
