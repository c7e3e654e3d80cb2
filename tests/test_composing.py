"""The product of two models against closed forms, and the task on the scorecard."""

import csv
import json

import pytest
import torch
from torch.distributions import MultivariateNormal

import pyro_ebm as ebm
from pyro_ebm.compare import bench, compare, composing, composition, draw_product
from pyro_ebm.compare.composing import parts_of
from pyro_ebm.datasets import two_modes, two_moons
from pyro_ebm.metrics import Estimate, energy_distance
from pyro_ebm.zoo import EBM, RBM, VAE, GaussianMixture, Independent, Training


@pytest.fixture(autouse=True)
def float32():
    torch.set_default_dtype(torch.float32)


def mixture(weights, locs, covariances):
    """A mixture of Gaussians as if it had been fitted."""
    model = GaussianMixture((2,), len(weights))
    for parameter, value in zip(model.parameters(), (weights, locs, covariances), strict=True):
        parameter.data = torch.tensor(value)
    model.history["loss"] = [0.0]
    return model


FIRST = mixture(
    [0.7, 0.3],
    [[-1.5, 0.0], [2.0, 1.0]],
    [[[1.0, 0.6], [0.6, 0.8]], [[0.3, 0.0], [0.0, 0.5]]],
)
SECOND = mixture([1.0], [[1.5, 0.5]], [[[3.0, -0.8], [-0.8, 1.0]]])


FAR = mixture(
    [0.9, 0.1],
    [[-4.0, 0.0], [4.0, 1.0]],
    [[[0.5, 0.2], [0.2, 0.4]], [[0.3, 0.0], [0.0, 0.5]]],
)
UNEVEN = mixture(
    [0.15, 0.85],
    [[-3.5, 0.5], [3.5, 0.5]],
    [[[0.8, 0.2], [0.2, 0.5]], [[1.0, -0.4], [-0.4, 1.0]]],
)


def product_of(first, second):
    """The product of two mixtures, a mixture of all pairs: weights, means, covariances."""
    (m, a), (n, b) = ((x.locs, x.covariances) for x in (first, second))
    m, a, p, q = m.unsqueeze(1), a.unsqueeze(1), a.inverse().unsqueeze(1), b.inverse()
    overlaps = MultivariateNormal(m, a + b).log_prob(n).exp()
    weights = (first.weights.unsqueeze(-1) * second.weights * overlaps).flatten()
    covariances = (p + q).inverse()
    pull = p @ m.unsqueeze(-1) + q @ n.unsqueeze(-1)
    locs = (covariances @ pull).squeeze(-1)
    return weights / weights.sum(), locs.flatten(0, 1), covariances.flatten(0, 1)


def features(x):
    """Means, second moments, and the share of what lies beyond the middle of both modes."""
    a, b = x.double().unbind(-1)
    return torch.stack([a, b, a**2, a * b, b**2, (a > 1.0).double()]).mean(1)


def apart(first, second, num_runs=12):
    """By how many standard errors the farthest of the features is off, over runs."""
    weights, locs, covariances = (part.detach() for part in product_of(first, second))
    law = torch.distributions.MixtureSameFamily(
        torch.distributions.Categorical(weights), MultivariateNormal(locs, covariances)
    )
    expected = features(law.sample((2_000_000,)))
    drawn = [draw_product(first, second, 200, 15, 15) for _ in range(num_runs)]
    runs = torch.stack([features(x) for x in drawn])
    return ((runs.mean(0) - expected).abs() / (runs.std(0) / num_runs**0.5)).max()


@pytest.mark.parametrize(("first", "second"), [(FAR, UNEVEN), (UNEVEN, FAR)])
def test_product_of_two_mixtures_has_their_weights(first, second):
    """Of modes that no chain crosses between, so that the starts have to have them."""
    assert apart(first, second) < 5


def test_product_of_an_energy_and_a_density_that_nobody_normalised():
    """An energy of 7 nats more than its density has the same product."""
    narrow = ebm.energies.Gaussian(torch.tensor([0.5, 1.0]), torch.tensor([2.0, 0.5]))
    first = EBM(narrow + (lambda x: 7.0 + 0.0 * x[..., 0]))
    first.history["loss"] = [0.0]
    first.sample = lambda n: narrow.sample(n)
    second = Independent((2,))
    second.loc.data, second.scale.data = torch.tensor([-1.0, 0.0]), torch.tensor([0.7, 2.0])
    second.history["loss"] = [0.0]
    x = draw_product(first, second, 1500, 15, 15).double()
    precision = second.scale.double() ** -2
    variance = 1 / (narrow.precision.double() + precision)
    mean = variance * (narrow.precision.double() * narrow.loc + precision * second.loc)
    error = (variance / len(x)).sqrt() * 1.3  # starts are drawn twice now and then
    assert ((x.mean(0) - mean).abs() < 5 * error).all()
    assert ((x.var(0) - variance).abs() < 5 * variance * (2 / len(x)) ** 0.5 * 1.3).all()


@pytest.mark.parametrize("law", [two_modes, two_moons])
def test_parts_and_product_are_those_of_the_law(law):
    """Against means over draws of the law itself, each weighed by what makes it a part."""
    generator = torch.Generator().manual_seed(1)
    found = parts_of(law, 20_000, 20_000, generator)
    x = law(100_000, generator)
    right, up = x.sigmoid().double().unbind(-1)
    both = right * up * law.log_prob(x).double().exp()
    for draws, weights in (
        (found.first, right),
        (found.second, up),
        (found.product, both),
        (found.again, both),
    ):
        w, f = weights / weights.sum(), torch.cat([x, x.square(), x[:, :1] * x[:, 1:]], 1).double()
        g = torch.cat([draws, draws.square(), draws[:, :1] * draws[:, 1:]], 1).double()
        expected = w @ f
        variance = g.var(0) / len(g) + w.square() @ (f - expected).square()
        assert ((g.mean(0) - expected).abs() < 5 * variance.sqrt()).all()


def test_families_are_told_apart_and_gaps_have_reasons(tmp_path, monkeypatch):
    monkeypatch.setattr(bench, "NUM_DRAWS", 2)  # restoring is not the matter here
    monkeypatch.setattr(composing, "NUM_STEPS", 20)
    models = {
        "mixture": lambda: GaussianMixture((2,), 4),
        "independent": lambda: Independent((2,)),
        "vae": lambda: VAE((2,), 1, (8,), Training(3)),
        "made": GaussianMixture((2,), 2),
    }

    def measured(names):
        draws, some = torch.Generator().manual_seed(2), {name: models[name] for name in names}
        train, test = two_modes(600, draws), two_modes(80, draws)
        return compare(some, train, test, law=two_modes, composition=True, progress=False)

    card = measured(models)
    right, wrong = card["mixture"].composition, card["independent"].composition
    assert abs(right.value) < 5 * right.std_error + 0.02  # of 600 points, not of the law
    assert wrong.value > right.value + 5 * (right.std_error**2 + wrong.std_error**2) ** 0.5
    floor = card["(train data)"].composition
    assert abs(floor.value) < 5 * floor.std_error
    assert card["vae"].notes[-1] == "no composition: VAE has no density to multiply"
    assert "no composition: it takes two more models" in card["made"].notes[-1]
    assert not any(row.errors for row in card.rows)
    cell = card.table()[1]["composition"]
    assert cell == str(Estimate(*right))
    page = card.save(tmp_path).read_text(encoding="utf-8")
    assert cell in page
    assert "product of the two true densities" in page
    with (tmp_path / "scorecard.csv").open(encoding="utf-8") as file:
        assert float([*csv.DictReader(file)][1]["composition"]) == right.value
    content = json.loads((tmp_path / "scorecard.json").read_text(encoding="utf-8"))
    assert content["rows"][1]["composition"] == list(right)
    assert measured(["mixture"])["mixture"].composition == right


def test_starts_that_are_worth_little_are_told():
    narrow = mixture([1.0], [[4.0, 4.0]], [[[0.01, 0.0], [0.0, 0.01]]])
    with pytest.warns(UserWarning, match=r"the 80 draws of the first model are worth 1\.\d of"):
        draw_product(FIRST, narrow, 20, 2, 2)


def test_what_cannot_be_multiplied_is_refused():
    with pytest.raises(RuntimeError, match="not fitted"):
        draw_product(FIRST, Independent((2,)), 10)
    vae = VAE((2,), 1, (8,), Training(3))
    vae.history["loss"] = [0.0]
    with pytest.raises(NotImplementedError, match="VAE has no density to multiply"):
        composition(FIRST, vae, torch.zeros(10, 2))
    assert Independent((2,), binary=True).as_energy() is None
    assert RBM((4,), 2).as_energy() is not None


def test_composition_is_the_distance_of_what_is_drawn(monkeypatch):
    monkeypatch.setattr(composing, "NUM_STEPS", 10)
    exact = torch.randn(100, 2)
    torch.manual_seed(3)
    found = composition(FIRST, SECOND, exact)
    torch.manual_seed(3)
    assert found == energy_distance(draw_product(FIRST, SECOND, 100, 10, 10), exact)
