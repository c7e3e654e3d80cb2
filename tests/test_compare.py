import csv
import json
from html.parser import HTMLParser

import pytest
import torch
from matplotlib.figure import Figure

from pyro_ebm.compare import compare
from pyro_ebm.metrics import Estimate
from pyro_ebm.scorecard import Row, Scorecard
from pyro_ebm.zoo.base import Generative, Likelihood


class Normal(Generative):
    """The Gaussian with the moments of the data: everything about it is known."""

    def __init__(self, shift=0.0, kind="exact"):
        super().__init__((2,))
        self.shift, self.kind = shift, kind

    def fit(self, x, progress=True):
        self.law = torch.distributions.Normal(x.mean(0) + self.shift, x.std(0))
        self.history["loss"] = [1.0]
        return self

    def sample(self, num_samples):
        return self.law.sample((num_samples,))

    def log_prob(self, x):
        if self.kind == "none":
            return Likelihood("none")
        return Likelihood(self.kind, self.law.log_prob(x).sum(-1))

    def typicality(self, x):
        return self.law.log_prob(x).sum(-1)


class Broken(Normal):
    def fit(self, x, progress=True):
        raise RuntimeError("training diverged: the loss is nan at step 3")


class Mute(Normal):
    def sample(self, num_samples):
        raise ValueError("cannot draw")


@pytest.fixture(scope="module")
def card():
    generator = torch.Generator().manual_seed(5)
    train, test, far = (torch.randn(n, 2, generator=generator) for n in (600, 400, 300))
    models = {
        "right": Normal(),
        "shifted": Normal(shift=2.0),
        "bounded": Normal(kind="bound"),
        "silent": Normal(kind="none"),
        "broken": Broken(),
        "mute": Mute(),
    }
    return compare(models, train, test, ood={"far": 3 + far, "same": far}, progress=False)


def test_right_model_cannot_be_told_from_the_data(card):
    for row in (card["right"], card["(train data)"]):
        assert abs(row.mmd.value) < 5 * row.mmd.std_error
        assert abs(row.c2st.value - 0.5) < 5 * row.c2st.std_error
    expected = -1 - torch.log(torch.tensor(2 * torch.pi)).item()
    gap = card["right"].log_prob.value - expected
    assert abs(gap) < 5 * card["right"].log_prob.std_error
    assert abs(card["right"].auroc["same"].value - 0.5) < 5 * card["right"].auroc["same"].std_error


def test_wrong_model_is_found_out(card):
    row = card["shifted"]
    assert row.mmd.value > 5 * row.mmd.std_error
    assert row.c2st.value - 0.5 > 5 * row.c2st.std_error
    assert card["right"].log_prob.value > row.log_prob.value + 5 * row.log_prob.std_error
    area = card["right"].auroc["far"]
    assert area.value - 0.5 > 5 * area.std_error


def test_unlike_kinds_are_never_ranked_together(card):
    rankings = card.rankings()
    assert rankings["exact"][-1] == "shifted"
    assert rankings["bound"] == ["bounded"]
    assert "none" not in rankings
    for kind, names in rankings.items():
        assert {card[name].kind for name in names} == {kind}
    assert not any("rank" in column.lower() for column in card.table()[0])
    assert [row.model for row in card.rows[1:]] == [
        "right", "shifted", "bounded", "silent", "broken", "mute",
    ]  # in the order given, not by any score  # fmt: skip


def test_each_number_shows_its_kind(card):
    cells = {row["model"]: row["log p (nats)"] for row in card.table()}
    assert cells["right"].startswith("= ")
    assert cells["bounded"].startswith("≥ ")
    assert cells["silent"] == "–"


def test_failing_models_say_why_and_the_others_stand(card):
    assert card["broken"].errors == [
        "fit failed: RuntimeError: training diverged: the loss is nan at step 3"
    ]
    assert card["mute"].errors == ["samples failed: ValueError: cannot draw"]
    assert card["mute"].log_prob is not None
    assert card["mute"].auroc.keys() == {"far", "same"}
    assert card["right"].errors == []
    assert "broken: fit failed: RuntimeError: training diverged" in str(card)


def test_table_is_aligned(card):
    lines = str(card).splitlines()[: 1 + len(card.rows)]
    column = lines[0].index("kind")
    assert {line[column - 1] for line in lines} == {" "}
    assert all(line[column] != " " for line in lines)


def test_same_seed_gives_the_same_numbers_whatever_else_is_compared():
    generator = torch.Generator().manual_seed(7)
    train, test = (torch.randn(n, 2, generator=generator) for n in (300, 200))
    state = torch.get_rng_state()
    alone = compare({"a": Normal()}, train, test, progress=False)["a"]
    assert torch.equal(torch.get_rng_state(), state)
    beside = compare({"b": Normal(3.0), "a": Normal()}, train, test, progress=False)["a"]
    assert (alone.mmd, alone.c2st, alone.log_prob) == (beside.mmd, beside.c2st, beside.log_prob)


def test_fitted_model_is_not_fitted_again():
    x = torch.randn(50, 2)
    model = Normal().fit(x)
    law = model.law
    row = compare({"a": model}, x, x, progress=False)["a"]
    assert model.law is law
    assert row.train_seconds is None


class _Page(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.open, self.images, self.cells, self.links = [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        if tag not in ("meta", "img"):
            self.open.append(tag)
        attrs = dict(attrs)
        if tag == "img":
            self.images.append(attrs["src"])
        self.links += [v for k, v in attrs.items() if k in ("src", "href")]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] in ("td", "th"):
            self.cells.append(data)


def test_saved_files_parse_and_a_failing_figure_loses_nothing(card, tmp_path):
    def broken():
        raise OSError("no ink")

    figures = {"broken": broken, "a/b c": card.figures["samples"], **card.figures}
    saved = Scorecard(card.rows, card.protocol, card.caveats, figures)
    report = saved.save(tmp_path / "deep" / "report")
    names = {path.name for path in report.parent.iterdir()}
    assert {"scorecard.csv", "scorecard.json", "report.html", "samples.png", "a_b_c.png"} <= names
    assert "broken.png" not in names

    with (report.parent / "scorecard.csv").open(encoding="utf-8") as file:
        rows = {row["model"]: row for row in csv.DictReader(file)}
    assert float(rows["right"]["mmd"]) == card["right"].mmd.value
    assert rows["silent"]["log_prob"] == ""
    content = json.loads((report.parent / "scorecard.json").read_text(encoding="utf-8"))
    assert content["rows"][1]["model"] == "right"
    assert content["protocol"]["seed"] == 0

    text = report.read_text(encoding="utf-8")
    page = _Page(text)
    assert not page.open
    assert "no ink" in text
    assert "prefers-color-scheme: dark" in text
    assert len(page.images) == 1 + len(card.figures)
    assert all(link.startswith("data:image/png;base64,") for link in page.links)
    assert {"right", "shifted", "broken"} <= set(page.cells)


def test_text_of_errors_is_escaped(tmp_path):
    card = Scorecard([Row("<b>", errors=["<script>alert(1)</script>"])])
    text = card.save(tmp_path).read_text(encoding="utf-8")
    assert "<script>alert" not in text
    assert "<b>" not in text


def test_infinite_numbers_survive_saving(tmp_path):
    card = Scorecard([Row("a", "exact", Estimate(-float("inf"), float("nan")))])
    card.save(tmp_path)
    row = json.loads((tmp_path / "scorecard.json").read_text())["rows"][0]
    assert row["log_prob"] == ["-inf", "nan"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"models": {}}, "models is empty"),
        ({"test": torch.randn(50, 3)}, r"test must have shape \(n, 2\)"),
        ({"ood": {"far": torch.randn(50, 3)}}, r"far must have shape"),
        ({"train": torch.full((50, 2), torch.nan)}, "train must be finite"),
        ({"num_samples": 3}, "num_samples must be at least 5, got 3"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    good = {"models": {"a": Normal()}, "train": torch.randn(50, 2), "test": torch.randn(50, 2)}
    with pytest.raises(ValueError, match=message):
        compare(**{**good, **arguments})


def test_default_figures_draw(card):
    assert set(card.figures) == {"samples", "typicality", "training"}
    assert all(isinstance(draw(), Figure) for draw in card.figures.values())
