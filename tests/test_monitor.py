"""The monitor: records that are what they say, alarms on planted faults only, and a way back."""

import copy
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO
from pyro.optim import Adam, LambdaLR
from torch import nn

import pyro_ebm as ebm
from pyro_ebm.energies import MLP, Banana, Gaussian
from pyro_ebm.kernels import MALA, ULA
from pyro_ebm.objectives import (
    ContrastiveDivergence,
    DenoisingScoreMatching,
    MaximumLikelihood,
    Monitor,
    PersistentCD,
    TrainingDiverged,
)

pytestmark = pytest.mark.filterwarnings("ignore:Encountered NaN:UserWarning")  # Pyro's own


def points(num):
    """Skewed data of the plane."""
    return Banana(scale=1.5, curvature=0.5).sample(num)


def network(base_scale=6.0):
    return MLP((2,), hidden_sizes=(16, 16), base_scale=base_scale)


def svi_of(energy, objective, lr=5e-3, optim=None):
    def model(x):
        with pyro.plate("data", len(x)), pyro.poutine.scale(scale=1 / len(x)):
            pyro.sample("x", ebm.Boltzmann(energy), obs=x)

    return SVI(model, ebm.no_guide, optim or Adam({"lr": lr}), loss=objective)


def train(monitor, num_steps, batch_size=64):
    data = points(1000)
    for _ in range(num_steps):
        monitor.step(data[torch.randint(len(data), (batch_size,))])


def persistent(kernel=None, num_steps=3):
    return PersistentCD(kernel or MALA(step_size=0.2), num_chains=64, num_steps=num_steps)


# ------------------------------------------------------------------------------------- records


def test_monitored_updates_are_those_of_svi():
    x = points(64)
    first, second = network(), network()
    second.load_state_dict(first.state_dict())
    pyro.set_rng_seed(1)
    plain = svi_of(first, persistent())
    losses = [plain.step(x) for _ in range(5)]
    pyro.clear_param_store()
    pyro.set_rng_seed(1)
    monitor = Monitor(svi_of(second, persistent()))
    assert [monitor.step(x) for _ in range(5)] == losses
    assert monitor.history["contrastive loss"] == losses
    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b)


def test_records_are_what_their_names_say():
    x = points(50)
    energy, objective = network(), persistent()
    monitor = Monitor(svi_of(energy, objective))
    before = copy.deepcopy(energy)
    loss = monitor.step(x)
    now = {name: record[0] for name, record in monitor.history.items()}
    chains = objective.chains["x"]
    data, negative = before(x).mean().item(), before(chains).mean().item()
    gap = before(x).mean() - before(chains).mean()
    grads = torch.autograd.grad(gap, list(before.parameters())[:-1])
    assert now["data energy"] == pytest.approx(data)
    assert now["chain energy"] == pytest.approx(negative)
    assert now["energy gap"] == pytest.approx(data - negative) == pytest.approx(loss)
    assert now["gradient norm"] == pytest.approx(
        math.sqrt(sum(grad.square().sum().item() for grad in grads))
    )
    assert now["acceptance"] == objective.last_info["x"].accept_prob.mean().item()
    spread = x.var(0, correction=0).sum().sqrt()
    distance = (chains.mean(0) - x.mean(0)).norm() / spread
    assert now["chain distance"] == pytest.approx(distance.item())
    assert now["chain spread"] == pytest.approx(
        (chains.var(0, correction=0).sum().sqrt() / spread).item()
    )


def test_contrastive_divergence_has_its_gap_without_chains_that_stay():
    x = points(50)
    monitor = Monitor(svi_of(network(), ContrastiveDivergence(MALA(step_size=0.5), num_steps=3)))
    loss = monitor.step(x)
    now = {name: record[0] for name, record in monitor.history.items()}
    assert now["energy gap"] == pytest.approx(loss)
    assert now["data energy"] - now["chain energy"] == pytest.approx(loss)
    assert loss != 0


def test_loss_is_named_for_what_it_is():
    x = points(20)
    sampled = Monitor(svi_of(network(), persistent()))
    matched = Monitor(svi_of(network(), DenoisingScoreMatching(0.3)))
    summed = Monitor(svi_of(network(), MaximumLikelihood()))
    for monitor in (sampled, matched, summed):
        monitor.step(x)
        pyro.clear_param_store()
    assert next(iter(sampled.history)) == "contrastive loss"
    assert list(matched.history) == ["surrogate loss", "gradient norm"]
    assert list(summed.history) == ["negative log-likelihood", "gradient norm"]


@pytest.mark.parametrize(
    ("objective", "name"),
    [(persistent, "loss"), (MaximumLikelihood, "negative log-likelihood")],
)
def test_loss_of_an_energy_that_is_normalised_is_no_contrast(objective, name):
    """No site takes a surrogate: it learns by its own log p, whatever the objective."""
    x, energy = points(20), Gaussian(nn.Parameter(torch.zeros(2)), 1.0)
    monitor = Monitor(svi_of(energy, objective()))
    expected = -ebm.Boltzmann(energy).log_prob(x).mean().item()
    assert monitor.step(x) == pytest.approx(expected)
    assert list(monitor.history) == [name, "gradient norm"]


def test_any_elbo_and_several_sites_are_recorded():
    def model(x):
        loc = pyro.param("loc", torch.zeros(2))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(loc, 1.0).to_event(1), obs=x)

    monitor = Monitor(SVI(model, ebm.no_guide, Adam({"lr": 0.1}), loss=Trace_ELBO()))
    x = points(20)
    monitor.step(x)
    assert list(monitor.history) == ["loss", "gradient norm"]
    assert monitor.history["gradient norm"][0] == pytest.approx(x.sum(0).norm().item())
    first, second = network(), network()

    def both(x):
        with pyro.plate("data", len(x)):
            pyro.sample("a", ebm.Boltzmann(first), obs=x)
            pyro.sample("b", ebm.Boltzmann(second), obs=2 * x)

    monitor = Monitor(SVI(both, ebm.no_guide, Adam({"lr": 1e-3}), loss=persistent()))
    monitor.step(x)
    assert {"energy gap of a", "energy gap of b"} < set(monitor.history)


def test_constrained_site_is_measured_where_its_chains_move():
    class Rate(ebm.energies.Energy):
        def __init__(self):
            super().__init__((), support=dist.constraints.positive)
            self.rate = nn.Parameter(torch.tensor(1.0))

        def forward(self, x):
            return self.rate * x

    objective = persistent()
    monitor = Monitor(svi_of(Rate(), objective))
    x = torch.rand(50) + 0.5
    monitor.step(x)
    chains, z = objective.chains["x"], x.log()
    spread = z.std(correction=0).item()
    assert monitor.history["chain spread"][0] == pytest.approx(
        chains.std(correction=0).item() / spread
    )
    gap = x.mean() - chains.exp().mean()
    assert monitor.history["energy gap"][0] == pytest.approx(gap.item())


# -------------------------------------------------------------------------------------- alarms


@pytest.mark.parametrize(
    ("base_scale", "lr"), [(6.0, 5e-3), (1.5, 1e-2), (100.0, 5e-3)], ids=["toy", "held", "wide"]
)
def test_healthy_training_raises_no_alarm(base_scale, lr):
    monitor = Monitor(svi_of(network(base_scale), persistent(), lr))
    train(monitor, 400)
    gaps, spreads = (torch.tensor(monitor.history[k]) for k in ("energy gap", "chain spread"))
    assert gaps.abs().max() < 0.25 * 20 * math.sqrt(2)  # with room: a quarter of the limit
    assert spreads.max() < 5
    assert monitor.num_steps == len(monitor.history["energy gap"]) == 400


@pytest.mark.parametrize("kernel", [MALA(step_size=0.2), ULA(step_size=0.2)], ids=["MALA", "ULA"])
def test_huge_learning_rate_is_seen_by_the_gap(kernel):
    monitor = Monitor(svi_of(network(), persistent(kernel), lr=1.0), keep_every=10)
    with pytest.raises(
        TrainingDiverged, match=r"the energy gap of site 'x', data less chains, is"
    ):
        train(monitor, 400)


def test_contrastive_divergence_with_a_huge_learning_rate_is_seen():
    objective = ContrastiveDivergence(ULA(step_size=0.2), num_steps=5)
    monitor = Monitor(svi_of(network(), objective, lr=1.0))
    with pytest.raises(TrainingDiverged, match=r"the (energy gap|loss|gradient norm)"):
        train(monitor, 400)


def test_chains_that_left_are_seen():
    """A slope without a base: nothing holds the chains, and their energy falls without bound."""

    class Slope(ebm.energies.Energy):
        def __init__(self):
            super().__init__((2,))
            self.weights = nn.Parameter(torch.tensor([0.3, -0.1]))

        def forward(self, x):
            return x @ self.weights

    monitor = Monitor(svi_of(Slope(), persistent(ULA(step_size=1.0)), lr=1e-8), max_gap=1e9)
    with pytest.raises(TrainingDiverged, match="have left the data: their mean is") as caught:
        train(monitor, 400)
    history = caught.value.history
    far = torch.tensor(history["chain distance"]).hypot(torch.tensor(history["chain spread"]))
    assert bool((far[-25:] > 10).all())
    assert far[-26] <= 10


def test_chains_that_stand_still_are_seen():
    kernel = MALA(step_size=1e6)
    monitor = Monitor(svi_of(network(), persistent(kernel)), patience=3)
    with pytest.raises(
        TrainingDiverged, match=r"stand still: .* below 0.01 for 30 steps, at step 29"
    ):
        train(monitor, 100)


class Fault(Gaussian):
    """A learnable Gaussian whose energy or gradient breaks when told to."""

    def __init__(self, fault):
        super().__init__(nn.Parameter(torch.zeros(2)), nn.Parameter(torch.ones(2)))
        self.has_log_z = False
        self.fault, self.broken = fault, False

    def forward(self, x):
        value = super().forward(x)
        if self.broken and self.fault == "loss":
            return value + math.nan
        if self.broken and self.fault == "gradient norm":
            return value + 0 * (self.loc.sum() * 0).sqrt()
        return value


@pytest.mark.parametrize("fault", ["loss", "gradient norm"])
def test_what_is_not_finite_is_never_learned(fault):
    energy = Fault(fault)
    monitor = Monitor(svi_of(energy, persistent()))
    train(monitor, 3)
    energy.broken = True
    with pytest.raises(TrainingDiverged, match=f"the {fault} is nan, at step 3. Parameters"):
        train(monitor, 1)
    assert bool(energy.loc.isfinite().all())
    assert not any(p.grad.any() for p in energy.parameters() if p.grad is not None)


# --------------------------------------------------------------------------------- the way back


def scheduled():
    settings = {"optimizer": torch.optim.Adam, "optim_args": {"lr": 0.01}}
    return LambdaLR(settings | {"lr_lambda": lambda t: 1 / (1 + t)})


def state_of(svi, energy, objective):
    optimizers = svi.optim.get_state()
    moments = [
        value
        for name in sorted(optimizers)
        for state in optimizers[name]["optimizer"]["state"].values()
        for value in state.values()
    ]
    rates = [
        group["lr"]
        for name in sorted(optimizers)
        for group in optimizers[name]["optimizer"]["param_groups"]
    ]
    tensors = [*energy.state_dict().values(), *moments, *objective.chains.values()]
    return [t.clone() for t in tensors], [*rates, objective.kernel.step_size]


def test_all_goes_back_and_goes_on_bit_for_bit():
    """Against a run that never broke: the same state, and the same updates after it."""
    x = points(64)
    energy = Fault("loss")
    objective = persistent()
    monitor = Monitor(svi_of(energy, objective, optim=scheduled()), keep_every=5)

    def step():
        monitor.step(x)
        objective.kernel.step_size *= 0.99
        monitor.svi.optim.step()

    states = []
    for _ in range(17):
        states.append(state_of(monitor.svi, energy, objective))
        step()
    energy.broken = True
    with pytest.raises(TrainingDiverged) as caught:
        step()
    energy.broken = False
    assert (caught.value.step, caught.value.good_step) == (17, 10)
    assert len(caught.value.history["energy gap"]) == 18
    assert monitor.num_steps == len(monitor.history["energy gap"]) == 10
    step()  # the optimizer takes its state up again at its next step
    for tensor, other in zip(
        state_of(monitor.svi, energy, objective)[0], states[11][0], strict=True
    ):
        assert torch.equal(tensor, other)
    assert state_of(monitor.svi, energy, objective)[1] == states[11][1]
    for _ in range(5):
        step()
    for tensor, other in zip(
        state_of(monitor.svi, energy, objective)[0], states[16][0], strict=True
    ):
        assert torch.equal(tensor, other)


def test_before_the_first_checkpoint_the_way_back_is_to_the_beginning():
    energy = Fault("loss")
    before = copy.deepcopy(energy.state_dict())
    objective = persistent()
    monitor = Monitor(svi_of(energy, objective))
    train(monitor, 7)
    assert not torch.equal(energy.loc, before["loc"])
    energy.broken = True
    with pytest.raises(TrainingDiverged, match="after 0 steps"):
        train(monitor, 1)
    energy.broken = False
    for name, value in energy.state_dict().items():
        assert torch.equal(value, before[name])
    assert objective.chains == {}
    train(monitor, 3)
    assert monitor.num_steps == 3


def test_training_goes_on_with_another_optimizer():
    monitor = Monitor(svi_of(network(), persistent(), lr=1.0))
    with pytest.raises(TrainingDiverged):
        train(monitor, 400)
    monitor.svi.optim = Adam({"lr": 5e-3})
    train(monitor, 150)
    assert abs(monitor.history["energy gap"][-1]) < 5


def test_a_step_under_suspicion_is_not_kept():
    """The chains leave slowly: what is kept is from before the first step beyond the limit."""
    monitor = Monitor(svi_of(network(), persistent(), lr=1.0), keep_every=2, patience=40)
    with pytest.raises(TrainingDiverged) as caught:
        train(monitor, 400)
    first_sign = caught.value.step - 39
    assert caught.value.good_step <= first_sign - 2


def test_bad_settings_are_refused():
    svi = svi_of(network(), persistent())
    with pytest.raises(ValueError, match="patience must be positive, got 0"):
        Monitor(svi, patience=0)


def test_a_gap_may_be_a_multiple_of_its_usual_size_or_of_a_floor():
    """Where the usual gap is large the limit follows it, and steps that show the sign do not."""
    monitor = Monitor(svi_of(network(), persistent()), max_gap=20.0)
    p = ebm.Boltzmann(network())
    floor = 20.0 * math.sqrt(2)
    assert monitor._limit([3.0, -3.0, 3.0, 100.0], p, "gap") == (60.0, 3.0)
    assert monitor._limit([0.1, 0.1, 0.1, 100.0], p, "gap") == (floor, 0.1)
    assert monitor._limit([0.1, 5.0], p, "gap") == (floor, 0.0)
    monitor._signs["gap"] = 2
    assert monitor._limit([3.0, 500.0, 500.0, 100.0], p, "gap") == (60.0, 3.0)
