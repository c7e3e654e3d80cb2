"""The command: data and models by name, one clear error each, and a page that sorts."""

import math
import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest
import torch

import pyro_ebm as ebm
from pyro_ebm import datasets, zoo
from pyro_ebm.compare import bench, compare, load, make
from pyro_ebm.compare.__main__ import main, run
from pyro_ebm.compare.data import DATASETS
from pyro_ebm.compare.models import MODELS
from pyro_ebm.compare.report import page
from pyro_ebm.compare.scorecard import Row, Scorecard
from pyro_ebm.zoo.base import Generative, Likelihood
from pyro_ebm.zoo.training import Training

COSTS = ("train (s)", "s / 1,000", "train (MB)", "sample (MB)")


@pytest.fixture(autouse=True)
def float32():
    torch.set_default_dtype(torch.float32)


def short(monkeypatch):
    """Leaves every model a few steps of training, and of restoring."""
    monkeypatch.setattr(bench, "NUM_DRAWS", 2)
    made = Training.__post_init__

    def shortened(self):
        object.__setattr__(self, "num_steps", min(self.num_steps, 5))
        made(self)

    monkeypatch.setattr(Training, "__post_init__", shortened)


def small(tmp_path, x, name="mine"):
    path = tmp_path / f"{name}.npy"
    np.save(path, x)
    return str(path)


@pytest.mark.parametrize("name", DATASETS)
def test_named_data_are_split_and_of_their_kind(name):
    data = load(name, quick=True)
    assert data.train.shape[1:] == data.test.shape[1:]
    assert len(data.train) > len(data.test) > 30
    assert (data.law is not None) == (data.kind == "plane")
    again = load(name, quick=True)
    assert torch.equal(data.train, again.train)
    assert torch.equal(data.test, again.test)


def test_file_is_told_what_kind_it_is(tmp_path):
    numbers = np.random.default_rng(0)
    for shape, kind, event in [
        ((60, 2), "plane", (2,)),
        ((60, 5), "table", (5,)),
        ((60, 4, 3), "images", (1, 4, 3)),
        ((60, 3, 4, 3), "images", (3, 4, 3)),
    ]:
        data = load(small(tmp_path, numbers.normal(size=shape)))
        assert (data.kind, data.train.shape[1:]) == (kind, event)
        assert (len(data.train), len(data.test)) == (48, 12)
    assert load(small(tmp_path, numbers.random((60, 2, 2)) < 0.5)).kind == "binary"


def test_columns_of_a_table_are_brought_to_unit_scale_by_what_is_trained_on(tmp_path):
    x = 100 + np.random.default_rng(0).normal(size=(60, 3)) * [1, 10, 100]
    data = load(small(tmp_path, x))
    assert data.train.mean(0).abs().max() < 1e-5
    assert (data.train.std(0) - 1).abs().max() < 1e-5
    assert data.test.mean(0).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (np.ones((1, 3)), "25 points or more"),
        (np.zeros(60), r"got \(60,\)"),
        (np.full((60, 2), np.nan), "60 of 60 rows are not"),
        (np.stack([np.arange(60.0), np.full(60, 3.0)], 1), r"1 columns .* constant.*\[1\]"),
        (np.array(["a"] * 60), "must hold real numbers"),
        (np.array([None] * 60), "holds no array of numbers"),
    ],
)
def test_bad_file_is_one_clear_error(x, message, tmp_path, capsys):
    path = small(tmp_path, x)
    with pytest.raises(ValueError, match=message):
        load(path)
    assert main(["--data", path, "--out", str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith("error: ")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "moons"], "no data named 'moons'; there are digits"),
        (["--data", "moons.npy"], "no file 'moons.npy'"),
        (["--models", "ebm,vea"], "no model 'vea'; there are ebm, rbm"),
        (["--data", "wine", "--models", "rbm"], "rbm: does not serve data of this kind"),
    ],
)
def test_unknown_name_is_one_clear_error(arguments, message, capsys):
    assert main(arguments) == 2
    told = capsys.readouterr()
    assert message in told.err
    assert told.out == ""


@pytest.mark.parametrize(
    ("source", "missing"),
    [
        ("two_moons", {"rbm"}),
        ("wine", {"rbm"}),
        ("digits", {"rbm"}),
        ("digits-binary", {"ebm", "gan", "flow", "diffusion", "mixture"}),
    ],
)
def test_every_family_has_settings_or_does_not_serve(source, missing):
    data = load(source, quick=True)
    made = {name: make(name, data.kind, data.train, quick=True) for name in MODELS}
    assert {name for name, model in made.items() if model is None} == missing
    for model in filter(None, made.values()):
        assert model.event_shape == data.train.shape[1:]


def test_all_families_stand_in_one_table_and_a_rerun_gives_the_same(monkeypatch):
    short(monkeypatch)

    def table(names):
        card = run("two_modes", names, quick=True, progress=False)
        rows = [{k: v for k, v in row.items() if k not in COSTS} for row in card.table()]
        return card, {row["model"]: row for row in rows}

    card, first = table([*MODELS])
    torch.rand(3)
    some = ["(train data)", "flow", "vae", "ebm"]
    again = table(some[1:])[1]
    assert again == {name: first[name] for name in some}
    served = [name for name in MODELS if name != "rbm"]
    assert [*first] == ["(train data)", *served, "rbm"]
    assert card["rbm"].errors == ["does not serve data of this kind"]
    assert {row.model: row.errors for row in card.rows if row.errors} == {
        "rbm": ["does not serve data of this kind"]
    }
    kinds = {row.model: row.kind for row in card.rows}
    assert kinds["flow"] == kinds["autoregressive"] == kinds["mixture"] == "exact"
    assert kinds["vae"] == kinds["diffusion"] == "bound"
    assert kinds["ebm"] == "estimate"
    for row in card.rows[1:]:
        assert (row.kl is None) == (row.kind in (None, "none"))
    cells = {name: row["KL (nats)"] for name, row in first.items()}
    assert cells["vae"].startswith("≤ ")
    assert cells["mixture"].startswith("= 0.0")
    assert cells["ebm"].startswith("≈ ")
    for ranked in card.rankings().values():
        assert len({kinds[name] for name in ranked}) == 1


def test_seeds_of_the_command_give_a_spread_and_the_same_table_again(monkeypatch, tmp_path):
    short(monkeypatch)
    names = ["flow", "vae", "independent"]

    def table(num_seeds):
        card = run("two_modes", names, quick=True, num_seeds=num_seeds, progress=False)
        return card, [{k: v for k, v in row.items() if k not in COSTS} for row in card.table()]

    card, first = table(2)
    assert table(2)[1] == first
    one = table(1)[0]
    for name in names:
        assert one[name].log_prob.value != card[name].log_prob.value or name == "independent"
    assert card["flow"].spread["log_prob"] > 0
    arguments = ["--data", "two_modes", "--models", "flow", "--quick", "--seeds", "2", "--out"]
    assert main([*arguments, str(tmp_path)]) == 0
    assert "flow" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_a_run_that_was_killed_fits_only_what_is_left(monkeypatch, tmp_path):
    """And gives the table of one that was not, with the persistent chains of its models."""
    short(monkeypatch)
    names, fits, fit = ["ebm", "flow", "vae", "mixture"], [], zoo.VAE.fit

    class Killed(BaseException):
        pass

    def table(**kwargs):
        card = run("two_modes", names, quick=True, progress=False, **kwargs)
        return card, [{k: v for k, v in row.items() if k not in COSTS} for row in card.table()]

    def dying(self, *args, **kwargs):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(zoo.VAE, "fit", dying)
        with pytest.raises(Killed):
            table(keep=tmp_path)
    with monkeypatch.context() as patch:
        for cls in (zoo.EBM, zoo.Flow):
            patch.setattr(cls, "fit", lambda self, *_, **__: fits.append("again"))
        patch.setattr(zoo.VAE, "fit", lambda *a, **k: fits.append("VAE") or fit(*a, **k))
        card, found = table(keep=tmp_path)
    assert fits == ["VAE"]
    assert card.protocol["fitted by an earlier call"] == "ebm (seed 0), flow (seed 0)"
    assert card["ebm"].train_seconds > 0
    assert found == table()[1]
    assert found == table(keep=tmp_path)[1]
    with monkeypatch.context() as patch:
        patch.setattr(zoo.VAE, "fit", dying)
        with pytest.raises(Killed):
            table(keep=tmp_path, seed=1)  # which was not fitted


def test_columns_suit_the_data(monkeypatch):
    short(monkeypatch)
    planar = run("two_modes", ["independent"], quick=True, progress=False).table()[0]
    assert {"KL (nats)", "weight error", "modes", "SW"} <= planar.keys()
    binary = run("digits-binary", ["independent", "rbm"], quick=True, progress=False)
    assert {"MMD²", "AUROC shuffled", "copying"} <= binary.table()[0].keys()
    assert not {"KL (nats)", "weight error", "modes", "SW"} & binary.table()[0].keys()
    assert "wasserstein" in binary.to_csv()
    assert abs(binary["independent"].log_prob.value + 25.2791) < 1e-3


def test_model_that_cannot_be_made_has_a_row_and_the_others_stand(tmp_path):
    x = np.random.default_rng(0).normal(size=(60, 2)) @ np.array([[1, 0, 1], [0, 1, 1]])
    card = run(small(tmp_path, x), ["ebm", "independent"], quick=True, progress=False)
    assert "singular covariance" in card["ebm"].errors[0]
    assert card["independent"].log_prob is not None


def test_known_law_tells_a_right_model_from_a_wrong_one():
    class Law(Generative):
        def __init__(self, weights):
            super().__init__((2,))
            self.history["loss"] = [0.0]
            self.law = datasets._Blobs(datasets.two_modes.centers, 0.5, weights)

        def fit(self, x, progress=True):
            return self

        def sample(self, num_samples):
            return self.law(num_samples)

        def log_prob(self, x):
            return Likelihood("exact", self.law.log_prob(x))

    law = datasets.two_modes
    models = {"right": Law([0.8, 0.2]), "wrong": Law([0.5, 0.5])}
    card = compare(models, law(800), law(400), law=law, progress=False)
    assert abs(card["right"].kl.value) < 1e-6
    exact = 0.8 * math.log(1.6) + 0.2 * math.log(0.4)
    assert abs(card["wrong"].kl.value - exact) < 1e-3
    error = card["wrong"].mode_error
    assert abs(error.value - 0.3) < 5 * error.std_error
    with pytest.raises(ValueError, match=r"law is for points \(n, 2\)"):
        compare(models, torch.randn(50, 3), torch.randn(50, 3), law=law)


def test_page_keeps_unlike_kinds_apart_when_sorted():
    cells = ["= -1.5 ± 0.1", "≥ -1.2 ± 0.1", "–", "≈ 1,234.5 ± 3", "-inf ± nan", "0.2 ± 0.1"]
    text = page({"": [{"model": "a", "x": cell} for cell in cells]}, {}, {}, [], {})
    rows = [line for line in text.splitlines() if line.startswith("<tr data-row")]
    groups = [row.split('<td data-group="')[1].split('"')[0] for row in rows]
    values = [row.split('data-value="')[2].split('"')[0] for row in rows]
    assert len({*groups[:2], groups[3]}) == 3
    assert int(groups[2]) > max(map(int, groups[:2] + groups[3:]))
    assert values == ["-1.5", "-1.2", "–", "1234.5", "-Infinity", "0.2"]
    assert "http" not in text


def test_columns_without_a_number_are_left_out():
    card = Scorecard([Row("a", num_parameters=3), Row("b")])
    assert list(card.table()[0]) == ["model", "log p (nats)", "kind", "parameters"]


def test_command_runs_without_a_word_on_stderr(tmp_path):
    arguments = ["--data", "two_modes", "--models", "independent", "--quick", "--out", tmp_path]
    done = subprocess.run(
        [
            sys.executable,
            "-W",
            "error::RuntimeWarning",
            "-m",
            "pyro_ebm.compare",
            *map(str, arguments),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "independent" in done.stdout
    assert "Warning" not in done.stderr
    assert (tmp_path / "report.html").exists()


def test_model_of_your_own_joins_in_fifteen_lines():
    page = (pathlib.Path(__file__).parent.parent / "docs" / "comparing.md").read_text()
    blocks = re.findall(r"^```python\n(.*?)^```", page, re.S | re.M)
    (block,) = [block for block in blocks if "(Generative)" in block]
    assert len([line for line in block.splitlines() if line.strip()]) <= 15
    law, told = datasets.two_moons, []
    names = {"ebm": ebm, "train": law(300), "test": law(100), "print": told.append}
    exec(block, names)
    (card,) = told
    assert card["laplace"].kind == "exact"
    assert card["laplace"].kl.value > 0.1
    assert not card["laplace"].errors
