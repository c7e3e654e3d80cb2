import matplotlib
import pytest
import torch
from matplotlib.figure import Figure

from pyro_ebm import plotting

IMAGES = torch.rand(50, 1, 8, 8)
POINTS = torch.randn(50, 2)

FIGURES = {
    "grids": lambda: plotting.sample_grids({"data": IMAGES, "few": IMAGES[:3]}),
    "colour": lambda: plotting.sample_grids({"data": torch.rand(50, 3, 4, 6)}),
    "dots": lambda: plotting.sample_grids({"data": POINTS}),
    "histograms": lambda: plotting.histograms(
        {"ebm": {"data": POINTS[:, 0], "noise": POINTS[:, 1] - 9}, "vae": {"data": torch.ones(9)}}
    ),
    "training": lambda: plotting.training_curves(
        {"ebm": {"loss": [3.0, 2.0, 1.0] * 99, "acceptance": [0.5] * 297}, "vae": {"loss": [1.0]}}
    ),
    "one training": lambda: plotting.training(
        {
            "contrastive loss": [0.1, -0.2, float("nan")],
            "data energy": [3.0, 2.0, 1.0],
            "chain energy": [2.9, 2.2, 1.0],
            "energy gap of x": [0.1, -0.2, 0.0],
        }
    ),
    "traces": lambda: plotting.traces({"lp (nats)": torch.randn(9, 30), "x": torch.randn(9, 30)}),
    "landscape": lambda: plotting.landscape(
        {"bowl": lambda x: x.square().sum(-1), "steep": lambda x: x.norm(dim=-1)}, POINTS
    ),
}


@pytest.mark.parametrize("name", FIGURES)
def test_every_figure_draws_without_a_display(name, tmp_path):
    figure = FIGURES[name]()
    figure.savefig(tmp_path / "figure.png")
    assert isinstance(figure, Figure)
    assert (tmp_path / "figure.png").stat().st_size > 1000


@pytest.mark.parametrize("name", sorted(FIGURES.keys() - {"grids", "colour"}))
def test_every_axis_is_labelled(name):
    for ax in FIGURES[name]().get_axes():
        if ax.axison:
            assert ax.get_ylabel()


def test_a_loss_that_is_no_progress_says_so():
    figure = FIGURES["one training"]()
    labels = [" ".join(ax.get_ylabel().split()) for ax in figure.get_axes() if ax.axison]
    assert labels == ["contrastive loss (no progress)", "energy (nats)", "energy gap of x"]
    legend = figure.get_axes()[1].get_legend().get_texts()
    assert [text.get_text() for text in legend] == ["data energy", "chain energy"]


def test_no_label_of_training_is_longer_than_its_axis():
    """Nor does a legend lie on what it names, where the curves are flat."""
    names = [name for _, names in plotting.RECORDS for name in names]
    figure = plotting.training_curves({"ebm": {name: [1.0, 2.0, 3.0] for name in names}})
    figure.draw_without_rendering()
    for ax in filter(lambda ax: ax.axison, figure.get_axes()):
        assert ax.yaxis.label.get_window_extent().height < 1.15 * ax.bbox.height
        for legend in filter(None, [ax.get_legend()]):
            below = ax.transData.inverted().transform(legend.get_window_extent())[0, 1]
            assert below > 2.9


def test_no_figure_enters_the_global_state():
    from matplotlib import pyplot

    before = pyplot.get_fignums()
    FIGURES["traces"]()
    assert pyplot.get_fignums() == before
    assert matplotlib.get_backend().lower() == "agg"


def test_grid_lays_images_out_row_by_row():
    images = torch.arange(6.0).reshape(6, 1, 1, 1).expand(6, 1, 2, 2)
    picture = plotting.sample_grids({"numbers": images}, rows=2, columns=3).get_axes()[0].images[0]
    sheet = picture.get_array()
    assert sheet.shape == (5, 8)  # a pixel between
    assert sheet[0, 0] < sheet[0, 3] < sheet[0, 6] < sheet[3, 0] <= sheet[0, 2] == 1


def test_what_cannot_be_drawn_is_refused():
    with pytest.raises(ValueError, match=r"images .* or points"):
        plotting.sample_grids({"data": torch.rand(9, 5)})
    with pytest.raises(ValueError, match=r"draws\['x'\] must have shape \(chain, draw\)"):
        plotting.traces({"x": torch.rand(9, 5, 2)})
    with pytest.raises(ValueError, match="history is empty"):
        plotting.training({})
