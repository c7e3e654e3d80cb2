"""What ``test_ranks.py`` has two processes do: each saves what it saw to a file of its own."""

import os
import shutil
import signal
import sys
import time
import warnings
from pathlib import Path

import pyro
import torch
import torch.distributed as dist
from torch import nn

import pyro_ebm as ebm
from pyro_ebm.kernels import MALA, MAMS, MCLMC, NUTS, ChEES, ParallelTempering, transition
from pyro_ebm.potential import Potential
from pyro_ebm.runs.checkpoint import plain, rebuilt
from pyro_ebm.runs.sharding import take_own

SHAPE = torch.tensor([0.7, 3.0], dtype=torch.float64)
"""Of two Gamma variables, of which the logs are sampled: skewed, and all is known of them."""

NUM_STEPS, NUM_CHAINS, DIM = 60, 21, 3

SAME = []
"""Whether both ranks had the same to say, each time they joined rows of numbers."""


def log_gamma(params):
    x = params["x"]
    return (x.exp() - SHAPE.to(x) * x).sum(-1)


def kernels():
    start = {"potential_fn": log_gamma}
    return {
        "ChEES": ChEES(metric_rank=None, **start),
        "MALA": MALA(metric_rank=1, **start),
        "NUTS": NUTS(**start),
        "MAMS": MAMS(**start),
        "MCLMC": MCLMC(**start),
        "ParallelTempering": ParallelTempering(MALA(**start), num_temperatures=3),
    }


def mcmc(kernel, num_samples, warmup_steps, num_chains=NUM_CHAINS, **kwargs):
    start = {"x": torch.linspace(-1, 1, 2 * num_chains).reshape(num_chains, 2)}
    return ebm.MCMC(
        kernel,
        num_samples,
        warmup_steps,
        num_chains,
        initial_params=start,
        disable_progbar=True,
        compile=False,
        **kwargs,
    )


def messages():
    """Counts the calls of torch.distributed from here on."""
    count, all_gather = [0], dist.all_gather

    def counting(function):
        def call(*args, **kwargs):
            count[0] += 1
            done = function(*args, **kwargs)
            if function is all_gather and args[0][0].is_floating_point():
                SAME.append(torch.equal(*args[0]))
            return done

        call.__name__ = function.__name__
        return call

    for name in ("all_reduce", "all_gather", "broadcast", "gather"):
        setattr(dist, name, counting(getattr(dist, name)))
    return count


def say_to_each_other():
    pyro.set_rng_seed(0)
    number = ebm.ranks.rank()
    rows = torch.arange(3.0 + number) + 10 * number
    with ebm.ranks.own_stream():
        own = torch.rand(3)
    with ebm.ranks.alone():
        alone = ebm.ranks.num_ranks(), ebm.ranks.total(torch.ones(1))[0].item()
    return {
        "share": [ebm.ranks.share(5).start, ebm.ranks.share(5).stop],
        "total": ebm.ranks.total(torch.tensor([1.5, number]), torch.tensor(number)),
        "mean": ebm.ranks.mean(rows)[0],
        "gathered": ebm.ranks.gathered(rows),
        "gathered flags": ebm.ranks.gathered(rows > 1),
        "gathered nothing": ebm.ranks.gathered(torch.zeros(2, 0)),
        "first": ebm.ranks.first(rows[:2]),
        "own": own,
        "common": torch.rand(3),
        "alone": alone,
    }


def adapts_as_one(count):
    """Feeds an adaptation with what is known beforehand, all of it, and each rank its own."""
    found = {}
    for name, make, num_chains in [
        ("MALA", lambda: MALA(), NUM_CHAINS),
        ("MALA with directions", lambda: MALA(metric_rank=2), NUM_CHAINS),
        ("few chains", lambda: MALA(), 2),
        ("ChEES", lambda: ChEES(metric_rank=None), NUM_CHAINS),
        ("MAMS", lambda: MAMS(), NUM_CHAINS),
        ("MCLMC", lambda: MCLMC(), NUM_CHAINS),
    ]:
        with ebm.ranks.alone():
            alone = _adapted(make(), slice(0, num_chains), num_chains)
        before = count[0]
        together = _adapted(make(), ebm.ranks.share(num_chains), num_chains)
        found[name] = {"alone": alone, "together": together, "messages": count[0] - before}
    return found


def _adapted(kernel, own, num_chains):
    generator = torch.Generator().manual_seed(7)
    energy = ebm.energies.Gaussian(torch.zeros(DIM), torch.ones(DIM))
    state = kernel.init(Potential.of(ebm.Boltzmann(energy)), torch.zeros(num_chains, DIM)[own])
    adaptation, path = kernel.adaptation(NUM_STEPS), []
    for step in range(NUM_STEPS):
        z, grad = torch.randn(2, num_chains, DIM, generator=generator) * torch.arange(1.0, 4.0)
        accept_prob = torch.rand(num_chains, generator=generator)
        potential = torch.rand(num_chains, generator=generator)
        if step == NUM_STEPS // 2 - 1 and num_chains > 2:
            potential[: num_chains // 2] += 1000.0  # all chains of the first rank
        state = state._replace(z=z[own], grad=grad[own], potential=potential[own])
        if hasattr(state, "slope"):
            slope = torch.randn(num_chains, generator=generator)[own].double()
            weight = accept_prob[own].double()
            state = state._replace(slope=(slope * weight).sum() / weight.sum())
        energy = potential + torch.rand(num_chains, generator=generator)
        info = transition.Info(
            torch.zeros(num_chains)[own] > 0, accept_prob[own], energy=energy[own]
        )
        state = adaptation.update(state, info)
        path.append(torch.cat([state.step_size[None], state.metric.scale]))
        if step == NUM_STEPS // 2 - 1:
            after = ebm.ranks.gathered(state.z)
    learned = {
        "path": torch.stack(path),
        "directions": getattr(state.metric.stretch, "matrices", ()),
        "length": getattr(state, "length", None),
        "centre": getattr(state, "centre", None),
        "after": after,
        "rejoined": ebm.ranks.gathered(adaptation.rejoined),
    }
    return {name: x for name, x in learned.items() if x is not None}


def samples(count):
    found = {}
    for name, kernel in kernels().items():
        pyro.set_rng_seed(3)
        run = mcmc(kernel, 4, 40)
        run.run()
        shared = [run.state.step_size, run.state.metric.scale]
        shared += [getattr(run.state, "length", None), getattr(run.state, "betas", None)]
        found[name] = {
            "shared": [x for x in shared if x is not None],
            "own": run.state.z,
            "draws": run.get_samples(group_by_chain=True)["x"],
        }
    pyro.set_rng_seed(4)
    with ebm.ranks.alone():
        mcmc(ChEES(potential_fn=log_gamma), 1, 40).run()
    first = [count[0]]
    for num_samples in (1, 20):
        pyro.set_rng_seed(4)
        mcmc(ChEES(potential_fn=log_gamma), num_samples, 40).run()
        first.append(count[0])
    found["messages"] = torch.tensor(first).diff().tolist()
    pyro.set_rng_seed(5)
    run = mcmc(ChEES(potential_fn=log_gamma), 120, 80, num_chains=60, num_superchains=30)
    run.run()
    found["law"] = {
        "draws": run.get_samples(group_by_chain=True)["x"],
        "moments": run.draws.moments()["x"],
        "diagnostics": run.diagnostics(),
        "num_chains": len(run.state.z),
    }
    return found


def stores(folder):
    found = {}
    for name, kwargs in {"memory": {}, "store": {"store": folder / "store"}}.items():
        pyro.set_rng_seed(6)
        run = mcmc(ChEES(potential_fn=log_gamma), 40, 30, thin=2, **kwargs)
        run.run()
        found[name] = {
            "draws": run.get_samples(group_by_chain=True)["x"].clone(),
            "stats": {k: v.clone() for k, v in run.sample_stats.items()},
            "moments": run.draws.moments()["x"],
            "totals": run.draws.totals(),
        }
    return found


def checkpoints(folder):
    """A run that nobody stops; and one that the scheduler stops on one rank alone."""
    found = {}
    for stage, num_calls in (("warmup", 20), ("sample", 75)):
        for name in ("whole", "stopped"):
            calls = [0]

            def energy(params, name=name, calls=calls, num_calls=num_calls):
                calls[0] += 1
                stop = name == "stopped" and ebm.ranks.rank() == 1 and calls[0] == num_calls
                if stop:
                    signal.raise_signal(signal.SIGTERM)
                return log_gamma(params)

            pyro.set_rng_seed(8)
            kept = {"checkpoint": folder / f"{stage}-{name}"}
            run = mcmc(MALA(potential_fn=energy, metric_rank=2), 40, 50, **kept)
            try:
                run.run()
            except SystemExit as end:
                found[stage, "status"] = end.code
                found[stage, "step"] = run._step
                if ebm.ranks.rank() == 0:
                    copy = folder / f"{stage}-copy"
                    shutil.copytree(folder / f"{stage}-{name}", copy)
                ebm.ranks.wait()
                run = mcmc(MALA(potential_fn=energy, metric_rank=2), 40, 50, **kept)
                run.run()
            found[stage, name] = run.get_samples(group_by_chain=True)["x"].clone()
    return found


def divided():
    """What each rank takes of a run that one process has left in the middle of a window."""
    kernel = MALA(potential_fn=log_gamma)
    pyro.set_rng_seed(9)
    with ebm.ranks.alone():
        run = mcmc(kernel, 4, 50)
        run.run()
        state = run.state
        adaptation = kernel.adaptation(50)
        info = transition.Info(state.potential < 0, torch.full_like(state.potential, 0.5))
        for _ in range(23):
            state = adaptation.update(state, info)
    kept = run.state_dict() | {"adaptation": adaptation.state_dict()}
    kept = plain(kept | {"state": state})
    own = ebm.ranks.share(NUM_CHAINS)
    part = take_own(kept, own, lambda _: [kernel.init(run.potential, state.z[:n]) for n in (1, 2)])
    return _sums(part) | {"whole": _sums(kept)}


def _sums(kept):
    state, window = rebuilt(kept["state"]), rebuilt(kept["adaptation"])["tuning"].window
    fields = ("z", "grad", "potential")
    return {
        **{name: getattr(state, name) for name in fields},
        "scale": state.metric.scale,
        **{name: getattr(window, name) for name in ("origin", "total", "count")},
        "generator": kept["generator"],
    }


def train(data):
    """Learns by the gradient of all ranks, and on one rank with all data."""
    score = ebm.objectives.ScoreMatching()
    found = {"together": _trained(data, ebm.ranks.share(len(data)), score)}
    with ebm.ranks.alone():
        found["alone"] = _trained(data, slice(None), score)
    persistent = ebm.objectives.PersistentCD(MALA(step_size=0.1), num_chains=16, num_steps=2)
    seed = ebm.ranks.rank()  # with which parameters differ
    found["persistent"] = _trained(data, ebm.ranks.share(len(data)), persistent, seed)
    found["chains"] = persistent.chains["x"]
    unused, half = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(2))
    if ebm.ranks.rank() == 1:
        half.grad = torch.ones(2)
    ebm.ranks.average_gradients([unused, half])
    found["partly"] = unused.grad, half.grad
    try:
        ebm.ranks.average_gradients([nn.Parameter(torch.zeros(2 + ebm.ranks.rank()))])
    except ValueError as error:
        found["unequal"] = str(error)
    return found


def _trained(data, own, objective, seed=0):
    pyro.clear_param_store()
    pyro.set_rng_seed(seed)
    energy = ebm.energies.MLP(event_shape=(2,), hidden_sizes=(8,))

    def model(x):
        with pyro.plate("data", len(data), subsample=x):
            pyro.sample("x", ebm.Boltzmann(energy, event_shape=(2,)), obs=x)

    optim = ebm.ranks.Averaged(pyro.optim.Adam({"lr": 0.1}))
    svi = pyro.infer.SVI(model, ebm.no_guide, optim, loss=objective)
    pyro.set_rng_seed(1)
    for _ in range(3):
        svi.step(data[own])
    return nn.utils.parameters_to_vector(energy.parameters()).detach()


ESTIMATORS = {
    "ais": lambda plan: ebm.logz.ais(plan, num_chains=64),
    "smc": lambda plan: ebm.logz.smc(plan, num_particles=512, num_islands=32),
    "importance": lambda plan: ebm.logz.importance(plan, num_samples=1600),
    "bridge": lambda plan: ebm.logz.bridge(plan, num_chains=9, num_steps=50),
    "thermodynamic": lambda plan: ebm.logz.thermodynamic(plan, num_chains=15, num_steps=40),
    "stepping_stone": lambda plan: ebm.logz.stepping_stone(plan, num_chains=15, num_steps=40),
}


def normalise():
    """A law that can be drawn from, and one that replica exchange has to find."""
    energy = ebm.energies.Banana(scale=1.0, curvature=0.5)
    found = {}
    for kind, target, truth in [
        ("exact", ebm.Boltzmann(energy), float(energy.log_z())),
        (
            "found",
            ebm.Boltzmann(lambda x: log_gamma({"x": x}), event_shape=(2,)),
            float(SHAPE.lgamma().sum()),
        ),
    ]:
        pyro.set_rng_seed(2)
        made = ebm.logz.plan(target)
        for name, estimate in ESTIMATORS.items():
            used = made.path.num_gradients
            SAME.clear()
            each = [estimate(made) for _ in range(4)]
            same = list(SAME)
            together = each[0].num_gradients - used
            before = made.path.num_gradients
            with ebm.ranks.alone():
                alone = estimate(made).num_gradients - before
            found[kind, name] = {
                "estimates": [(z.value, z.std_error, z.lower, z.upper, z.ess) for z in each],
                "rungs": each[0].rungs,
                "same": same,
                "truth": truth,
                "num_gradients": (together, alone),
            }
    return found


def lose_a_rank():
    """The second rank ends without a word; the first one is to notice."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # by which torchrun would spare it the error
    began = time.monotonic()
    run = mcmc(MALA(potential_fn=_deadly), 10, 10)
    try:
        run.run()
    except RuntimeError as error:
        return {"error": str(error), "seconds": time.monotonic() - began}
    return {}


def _deadly(params):
    if ebm.ranks.rank() == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return log_gamma(params)


def main():
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    folder = Path(sys.argv[1])
    transition.BLOCK_STEPS = 12
    ebm.ranks.start(timeout=60)
    count = messages()
    found = {"ranks": (ebm.ranks.rank(), ebm.ranks.num_ranks())}
    ebm.ranks.wait()
    generator = torch.Generator().manual_seed(0)
    data = torch.randn(12, 2, generator=generator).exp()
    for name, work in {
        "say": say_to_each_other,
        "adapts": lambda: adapts_as_one(count),
        "train": lambda: train(data),
        "samples": lambda: samples(count),
        "stores": lambda: stores(folder),
        "checkpoints": lambda: checkpoints(folder),
        "divided": divided,
        "logz": normalise,
    }.items():
        began = time.process_time()
        found[name] = work()
        found.setdefault("seconds", {})[name] = time.process_time() - began
    path = folder / f"rank-{ebm.ranks.rank()}.pt"
    torch.save(found, path)
    ebm.ranks.wait()
    found["lost"] = lose_a_rank()
    torch.save(found, path)


if __name__ == "__main__":
    main()
