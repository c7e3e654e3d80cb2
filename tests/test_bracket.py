"""Held-out likelihoods of energies without a log Z of their own, against those that are known."""

import csv
import re

import pytest
import torch
from torch.distributions import constraints

from pyro_ebm.compare import compare
from pyro_ebm.compare.bracket import DOUBT, bracketed
from pyro_ebm.compare.scorecard import Row
from pyro_ebm.compare.spread import over_seeds
from pyro_ebm.energies import Energy, GaussianMixture
from pyro_ebm.metrics import Estimate
from pyro_ebm.zoo import RBM, Training
from pyro_ebm.zoo.base import Generative, Likelihood

KNOWN = GaussianMixture(
    torch.tensor([0.3, 0.7]),
    torch.tensor([[-1.0, 0.5, 0.0, 0.3], [1.5, 0.0, 1.0, -0.5]]),
    torch.tensor([[0.8, 0.5, 0.3, 1.0], [0.4, 1.2, 0.6, 0.7]]),
)
"""Skewed, normalised, of four coordinates: too many for a grid."""


def unnormalised(energy=KNOWN, nats=3.0):
    """The same law, as an energy that does not know its log Z."""
    return energy + (lambda x: nats + 0.0 * x[..., 0])


class OfEnergy(Generative):
    """A model that is an energy, and knows no more of its likelihood."""

    def __init__(self, energy):
        super().__init__(energy.event_shape)
        self.energy = energy

    def fit(self, x, progress=True):
        self.history["loss"] = [0.0]
        return self

    def sample(self, num_samples):
        return KNOWN.sample(num_samples)

    def log_prob(self, x):
        return Likelihood("none")

    def typicality(self, x):
        return -self.energy(x)

    def as_energy(self):
        return self.energy


def test_estimate_is_that_of_the_law_and_its_bracket_holds_it():
    x = KNOWN.sample(400)
    exact = -KNOWN(x).mean().item()
    found = bracketed(unnormalised(), x)
    of_points = KNOWN(x).std().item() / 20
    of_log_z = (found.log_prob.std_error**2 - of_points**2) ** 0.5
    assert found.kind == "estimate"
    assert abs(found.log_prob.value - exact) < 5 * of_log_z
    low, high = found.bracket  # at two standard errors
    assert low - 3 * of_log_z < exact < high + 3 * of_log_z
    assert low < found.log_prob.value < high < low + 1
    assert found.notes == ()


def test_wide_rbm_has_the_likelihood_of_its_sum():
    """Of 17 hidden units, one more than the model sums over."""
    torch.manual_seed(2)
    model = RBM((20,), 17, Training(3, batch_size=8), num_chains=8, num_sweeps=2)
    model.energy.weights.data = 0.5 * torch.randn(20, 17)
    model.history["loss"] = [0.0]
    x = (torch.rand(30, 20) < 0.3).to(model.energy.weights)
    assert model.log_prob(x).kind == "none"
    found = bracketed(model.as_energy(), x)
    expected = (-model.energy(x) - model.energy.log_z()).mean().item()
    assert (found.kind, found.bracket) == ("exact", None)
    assert found.log_prob.value == pytest.approx(expected, abs=1e-4)


class Heavy(Energy):
    """Of tails so heavy that it has no log Z."""

    def forward(self, x):
        return x.square().sum(-1).log1p()


class Counts(Energy):
    """Over all natural numbers: no path from independent sites goes there."""

    def __init__(self):
        super().__init__((2,), constraints.independent(constraints.nonnegative_integer, 1))

    def forward(self, x):
        return 0.5 * x.sum(-1)


def test_energy_that_no_estimator_serves_says_why():
    found = bracketed(Counts(), torch.ones(5, 2))
    assert (found.kind, found.log_prob) == ("none", None)
    assert found.notes[0].startswith("no likelihood: support IndependentConstraint")


def test_energy_without_a_normaliser_is_in_doubt():
    found = bracketed(Heavy((4,)), torch.randn(50, 4))
    assert re.search(f"{DOUBT}: .* may not be normalisable|no likelihood: ", found.notes[0])


def test_doubt_stands_beside_the_bracket():
    row = Row("a", "estimate", Estimate(-2.0, 0.1), (-3.0, -1.5), notes=["no half"])
    assert row.cells()["bracket (nats)"] == "-3.0 to -1.5"
    row.notes.append(f"{DOUBT}: it has not closed")
    assert row.cells()["bracket (nats)"] == "-3.0 to -1.5, in doubt"


def test_card_shows_the_estimate_apart_with_its_bracket(tmp_path):
    train, test = KNOWN.sample(60), KNOWN.sample(40)
    silent = OfEnergy(unnormalised())
    silent.as_energy = lambda: None
    models = {"energy": OfEnergy(unnormalised()), "silent": silent}
    card = compare(models, train, test, progress=False)
    row, cells = card["energy"], card.table()[1]
    assert row.kind == "estimate"
    assert card.rankings() == {"estimate": ["energy"]}
    assert cells["log p (nats)"].startswith("≈ ")
    low, high = row.bracket
    assert cells["bracket (nats)"] == f"{low:.2f} to {high:.2f}"
    assert card.table()[2]["bracket (nats)"] == "–"
    assert card["silent"].notes[0] == "no likelihood: no density that can be evaluated"
    assert any(caveat.startswith("bracket:") for caveat in card.caveats)
    assert cells["bracket (nats)"] in card.save(tmp_path).read_text(encoding="utf-8")
    with (tmp_path / "scorecard.csv").open(encoding="utf-8") as file:
        told = [*csv.DictReader(file)][1]
    assert (float(told["log_prob lower"]), float(told["log_prob upper"])) == (low, high)


def test_brackets_of_several_seeds_are_averaged_as_their_means_are():
    rows = {
        seed: Row("a", "estimate", Estimate(middle, 0.1), (middle - 1.0, middle + 2.0))
        for seed, middle in enumerate((-4.0, -2.0))
    }
    row = over_seeds(rows)
    assert row.log_prob.value == -3.0
    assert row.bracket == (-4.0, -1.0)
