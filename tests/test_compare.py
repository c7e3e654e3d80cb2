import csv
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from pyro_ebm.compare import compare
from pyro_ebm.compare.memory import PeakMemory
from pyro_ebm.compare.passes import Passes
from pyro_ebm.compare.scorecard import Row, Scorecard
from pyro_ebm.energies import MLP
from pyro_ebm.kernels import MALA
from pyro_ebm.metrics import Estimate
from pyro_ebm.objectives import DenoisingScoreMatching, PersistentCD
from pyro_ebm.zoo import EBM, VAE, Autoregressive, Diffusion, Independent, Training
from pyro_ebm.zoo.base import Generative, Likelihood


class Normal(Generative):
    """The Gaussian with the moments of the data: everything about it is known."""

    def __init__(self, shift=0.0, kind="exact"):
        super().__init__((2,))
        self.shift, self.kind = shift, kind

    def fit(self, x, progress=True):
        self.law = torch.distributions.Normal(x.mean(0) + self.shift, x.std(0))
        self.history["loss"] = [1.0, 0.5]
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


@pytest.mark.parametrize(
    ("said", "message"),
    [
        (lambda x: x.sum(-1), "must return a Likelihood of a kind in .*, got 'Tensor'"),
        (lambda x: Likelihood("exakt", x.sum(-1)), "got 'exakt'"),
        (lambda x: Likelihood("exact", x), r"for each of 50 points, got shape \(50, 2\)"),
    ],
)
def test_a_likelihood_that_is_none_is_no_number(said, message):
    model = Normal()
    model.log_prob = said
    row = compare({"a": model}, torch.randn(50, 2), torch.randn(50, 2), progress=False)["a"]
    assert row.log_prob is None
    assert re.search(f"likelihood failed: ValueError: .*{message}", row.errors[0])


def test_a_long_error_is_cut():
    model = Normal()

    def fail(num_samples):
        raise ValueError("x" * 5000)

    model.sample = fail
    row = compare({"a": model}, torch.randn(50, 2), torch.randn(50, 2), progress=False)["a"]
    assert row.errors[0].startswith("samples failed: ValueError: xxx")
    assert len(row.errors[0]) < 1000


def test_failing_models_say_why_and_the_others_stand(card):
    assert card["broken"].errors == [
        "fit failed: RuntimeError: training diverged: the loss is nan at step 3"
    ]
    assert card["mute"].errors == ["samples failed: ValueError: cannot draw"]
    assert card["mute"].log_prob is not None
    assert card["mute"].auroc.keys() == {"far", "same"}
    assert card["right"].errors == []
    assert "broken: fit failed: RuntimeError: training diverged" in str(card)


def test_task_that_a_model_cannot_do_has_its_reason(card, tmp_path):
    notes = [
        "no inpainting: Normal has no density to inpaint by",
        "no denoising: Normal has no density to denoise by",
    ]
    assert [note.split(", ")[0] for note in card["right"].notes] == notes
    assert f"right: {notes[0]}" in str(card)
    assert notes[1] in card.save(tmp_path).read_text(encoding="utf-8")
    assert card["right"].inpainting is card["right"].denoising is None


def test_restoration_is_measured_against_its_least_error():
    """Independent normal coordinates: nothing to fill in, and a known shrinkage of noise."""
    spread = torch.tensor([0.5, 1.0, 3.0, 2.0])
    train, test = spread * torch.randn(2000, 4), spread * torch.randn(300, 4)
    row = compare({"a": lambda: Independent((4,))}, train, test, progress=False)["a"]
    expected = (3.0**2 + 2.0**2) / 2 * (1 + 1 / 60)
    assert abs(row.inpainting.value - expected) < 5 * row.inpainting.std_error
    noise = 0.25 * spread.square().mean()
    posterior = 1 / (spread**-2 + 1 / noise)
    expected = posterior.mean() * (1 + 1 / 60)
    assert abs(row.denoising.value - expected) < 5 * row.denoising.std_error


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


def test_passes_of_training_are_counted():
    """What each update costs, from runs of two lengths: the first also checks its input."""

    def passes(make):
        counts = []
        for num_steps in (3, 8):
            model = make(Training(num_steps, batch_size=16))
            with Passes(model) as passes:
                model.fit(torch.randn(99, 2), progress=False)
            counts.append(passes.count)
        return (counts[1] - counts[0]) / 5

    def ebm_by(objective):
        return lambda plan: EBM(MLP((2,), (8,)), objective(), plan, None, 2, 2)

    assert passes(lambda plan: VAE((2,), 1, (8, 8), plan)) == 16
    assert passes(lambda plan: Autoregressive((2,), (8,), 3, plan)) == 16
    assert passes(lambda plan: Diffusion((2,), "noise", (8,), 4, training=plan)) == 16
    # 10 chains at their start and after each of 2 steps; beside 16 data, to learn and to read
    assert passes(ebm_by(lambda: PersistentCD(MALA(step_size=0.1), 10, 2))) == 30 + 2 * 26
    assert passes(ebm_by(lambda: DenoisingScoreMatching(0.1))) == 16
    models = {"a": Normal(), "b": VAE((2,), 1, (8,), Training(3, batch_size=16))}
    card = compare(models, torch.randn(99, 2), torch.randn(50, 2), progress=False)
    assert card["a"].train_passes is None
    assert card["b"].train_passes == 3 * 16


class Greedy(Normal):
    """It holds so many MB for a while, and half of them to draw."""

    def __init__(self, size):
        super().__init__()
        self.size = size

    def fit(self, x, progress=True):
        torch.ones(int(self.size * 1e6), dtype=torch.uint8).max()
        return super().fit(x)

    def sample(self, num_samples):
        torch.ones(int(self.size * 5e5), dtype=torch.uint8).max()
        return super().sample(num_samples)


def test_peak_of_memory_is_what_was_held_whatever_came_before(tmp_path):
    x = torch.randn(50, 2)
    models = {"large": Greedy(80), "small": Greedy(20), "again": Greedy(80)}
    card = compare(models, x, x, progress=False)
    if any("no peak of memory" in note for note in card["large"].notes):
        pytest.skip("this system does not set a peak back")
    for name in ("large", "small", "again"):
        held = models[name].size  # the system counts by pages, a few of them late
        assert -0.5 < card[name].train_memory - held < 5
        assert -0.5 < card[name].sample_memory - held / 2 < 5
    cells = card.table()[1]
    assert cells["train (MB)"] == f"{card['large'].train_memory:.3g}"
    assert cells["train (MB)"] in card.save(tmp_path).read_text(encoding="utf-8")
    with (tmp_path / "scorecard.csv").open(encoding="utf-8") as file:
        assert float([*csv.DictReader(file)][1]["train_memory"]) == card["large"].train_memory
    content = json.loads((tmp_path / "scorecard.json").read_text(encoding="utf-8"))
    assert content["rows"][1]["sample_memory"] == card["large"].sample_memory


def test_peak_that_cannot_be_told_has_its_reason(monkeypatch):
    def refused(name):
        raise OSError("no such library")

    monkeypatch.setattr("ctypes.CDLL", refused)
    row = compare({"a": Normal()}, torch.randn(50, 2), torch.randn(50, 2), progress=False)["a"]
    assert row.train_memory is row.sample_memory is None
    (note,) = (note for note in row.notes if "memory" in note)
    assert note.startswith("no peak of memory: the peak of the process cannot be set back (")
    assert not row.errors


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_peak_of_memory_on_a_device_is_what_torch_allocated():
    network = torch.nn.Linear(8, 8, device="cuda")
    with PeakMemory(network) as memory:
        torch.ones(8_000_000, device="cuda").sum()
    assert 32 <= memory.peak < 40


class Jittered(Normal):
    """It comes out otherwise at each seed, by what is made and by what is trained."""

    def __init__(self, fails=False):
        super().__init__(torch.randn(()).item())
        self.fails = fails and self.shift > 0.5

    def fit(self, x, progress=True):
        if self.fails:
            raise RuntimeError("diverged")
        super().fit(x + torch.rand(()))
        return self


def timeless(card):
    """Leaves out what depends on the machine."""
    signs = ("s / ", "(s)", "(MB)")
    return [{k: v for k, v in row.items() if not any(s in k for s in signs)} for row in card]


def test_numbers_over_seeds_are_means_with_their_standard_deviations():
    train, test = torch.randn(300, 2), torch.randn(200, 2)
    models, far = {"a": Jittered, "b": lambda: Normal(1.0)}, {"far": 2 + torch.randn(50, 2)}

    def measured(seed, num_seeds=1):
        return compare(
            models, train, test, ood=far, seed=seed, num_seeds=num_seeds, progress=False
        )

    card = measured(4, num_seeds=3)
    alone = [measured(seed) for seed in (4, 5, 6)]
    for name in ("a", "b", "(train data)"):
        for field in ("log_prob", "mmd", "c2st", "recall", "copying", "energy_distance"):
            told = [getattr(one[name], field) for one in alone]
            if told[0] is None:
                assert getattr(card[name], field) is None
                continue
            values = torch.tensor([each.value for each in told])
            errors = torch.tensor([each.std_error for each in told])
            mean, error = getattr(card[name], field)
            assert abs(mean - values.mean()) < 1e-12
            assert abs(error - errors.square().mean().sqrt()) < 1e-12
            assert abs(card[name].spread[field] - values.std()) < 1e-12
    areas = torch.tensor([one["a"].auroc["far"].value for one in alone])
    assert abs(card["a"].spread["auroc far"] - areas.std()) < 1e-12
    assert card["a"].spread["log_prob"] > 0.1
    assert card["b"].spread["log_prob"] == 0  # its training has no chance in it
    assert card.protocol["seed"] == "4, 5, 6"
    assert "standard deviation over them" in card.caveats[0]
    assert "3 seeds" in card.caveats[0]


def test_spread_stands_in_table_page_and_files(tmp_path):
    x = torch.randn(100, 2)
    card = compare({"a": Jittered}, x, torch.randn(60, 2), num_seeds=2, progress=False)
    row = card["a"]
    cell = card.table()[1]["log p (nats)"]
    assert cell == f"= {Estimate(row.log_prob.value, row.spread['log_prob'])}"
    assert cell in card.save(tmp_path).read_text(encoding="utf-8")
    with (tmp_path / "scorecard.csv").open(encoding="utf-8") as file:
        written = list(csv.DictReader(file))[1]
    assert float(written["log_prob spread"]) == row.spread["log_prob"]
    assert float(written["log_prob std_error"]) == row.log_prob.std_error
    content = json.loads((tmp_path / "scorecard.json").read_text(encoding="utf-8"))
    assert content["rows"][1]["spread"]["mmd"] == row.spread["mmd"]
    assert content["rows"][1]["num_seeds"] == 2


def test_rerun_over_seeds_gives_the_same_table():
    x, test = torch.randn(100, 2), torch.randn(60, 2)
    first, second = (
        compare({"a": Jittered}, x, test, seed=1, num_seeds=2, progress=False).table()
        for _ in range(2)
    )
    assert timeless(first) == timeless(second)


def test_seed_that_fails_is_named_and_the_others_count():
    x, test = torch.randn(100, 2), torch.randn(60, 2)
    models = {"a": lambda: Jittered(fails=True)}
    alone = [compare(models, x, test, seed=s, progress=False)["a"] for s in range(8)]
    told = [row.log_prob.value for row in alone if row.log_prob is not None]
    assert 0 < len(told) < 8
    row = compare(models, x, test, num_seeds=8, progress=False)["a"]
    assert abs(row.log_prob.value - sum(told) / len(told)) < 1e-12
    failed = [s for s, one in enumerate(alone) if one.errors]
    assert row.errors == [f"seed {s}: fit failed: RuntimeError: diverged" for s in failed]


def test_function_that_makes_no_model_has_a_row():
    def broken():
        raise ValueError("no such width")

    x = torch.randn(50, 2)
    card = compare({"a": broken, "b": Normal}, x, x, progress=False)
    assert card["a"].errors == ["making failed: ValueError: no such width"]
    assert card["b"].log_prob is not None


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
        ({"models": [Normal()]}, "models must be a dict .*, got list"),
        ({"train": np.ones((50, 2))}, "train must be a torch tensor, got ndarray"),
        ({"train": torch.ones(50), "test": torch.ones(50)}, r"train must have a column"),
        ({"test": torch.ones(50, 2).long()}, "test must be floating-point .* got torch.int64"),
        ({"test": torch.randn(50, 3)}, r"test must have shape \(n, 2\)"),
        ({"ood": {"far": torch.randn(50, 3)}}, r"far must have shape"),
        ({"train": torch.full((50, 2), torch.nan)}, "train must be finite"),
        ({"num_samples": 3}, "num_samples must be at least 5, got 3"),
        ({"composition": True}, "composition=True needs the law"),
        ({"num_seeds": 0}, "num_seeds must be at least 1, got 0"),
        ({"num_seeds": 2}, r"num_seeds=2 .* 'a' is a Normal .* lambda"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    good = {"models": {"a": Normal()}, "train": torch.randn(50, 2), "test": torch.randn(50, 2)}
    with pytest.raises(ValueError, match=message):
        compare(**{**good, **arguments})


def test_default_figures_draw(card):
    assert set(card.figures) == {"samples", "typicality", "training"}
    assert all(isinstance(draw(), Figure) for draw in card.figures.values())
