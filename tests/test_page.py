"""The page of a scorecard as its reader meets it: in a browser, on a phone, in the dark."""

import html
import json
import re
import shutil
import struct
import subprocess
import zlib

import pytest

from pyro_ebm.compare.report import STYLE, page
from pyro_ebm.compare.scorecard import COUNTS, ESTIMATES, Row, Scorecard
from pyro_ebm.metrics import Estimate

NAMES = ("chromium", "chromium-browser", "google-chrome")
BROWSER = next((path for path in map(shutil.which, NAMES) if path), None)
WIDTHS = (390, 1280)


def png(width, height=2):
    """A grey image of so many pixels."""

    def chunk(kind, data):
        check = zlib.crc32(kind + data)
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", check)

    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    lines = zlib.compress(height * (b"\0" + width * b"\x80"))
    chunks = chunk(b"IHDR", head) + chunk(b"IDAT", lines) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


TABLES = {
    "Likelihood": [
        {"model": "(train data)", "log p (nats)": "–"},
        {"model": "a model of a long name", "log p (nats)": "= -2.5 ± 0.1"},
        {"model": "bounded", "log p (nats)": "≥ -1.0 ± 0.1"},
        {"model": "b", "log p (nats)": "= -1.5 ± 0.1"},
    ],
    "Costs": [
        {"model": model, **{f"column {i}": cell for i in range(12)}}
        for model, cell in [
            ("(train data)", "–"),
            ("a model of a long name", "10,000"),
            ("bounded", "9"),
            ("b", "2.5e+06"),
        ]
    ],
}


def written(**kwargs):
    content = {
        "tables": TABLES,
        "remarks": {"failed": ["a: " + "x" * 300], "missing": ["a, b: no half"]},
        "protocol": {"data": "two moons", "a/very/long" * 9: "y" * 300},
        "caveats": ["log p: the mean", "no colon"],
        "figures": {"samples": png(3000), "typicality": "no ink"},
    }
    return page(**{**content, **kwargs})


PROBE = """
onload = () => {
  const told = [...document.querySelectorAll("iframe")].map(frame => {
    const inside = frame.contentDocument, view = inside.documentElement;
    const orders = [["Likelihood", 1], ["Costs", 3]].map(([name, at]) => {
      const table = inside.querySelector(`[aria-label="${name}"] table`), found = [];
      for (const click of [1, 2]) {
        table.tHead.rows[0].cells[at].querySelector("button").click();
        found.push([...inside.querySelectorAll("tbody")].map(
          body => [...body.rows].map(row => row.cells[0].textContent)));
      }
      return found;
    });
    return {overflow: view.scrollWidth - view.clientWidth, width: view.clientWidth, orders,
      figure: inside.images[0].getBoundingClientRect().width};
  });
  document.body.textContent = "told:" + JSON.stringify(told) + ":told";
};
"""
"""Reads what each frame shows, and what a click sorts its tables into."""


@pytest.mark.skipif(not BROWSER, reason="needs Chromium")
def test_page_sorts_and_fits_in_a_browser(tmp_path):
    """At the width of a phone and of a desk, without an error and without the network."""
    frames = "".join(
        f'<iframe style="border: 0; height: 900px; width: {width}px" '
        f'srcdoc="{html.escape(written())}"></iframe>'
        for width in WIDTHS
    )
    (tmp_path / "page.html").write_text(f"<body>{frames}<script>{PROBE}</script>", "utf-8")
    flags = [
        "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-sync",
        "--disable-background-networking", "--disable-component-update", "--disable-quic",
        "--enable-logging=stderr", "--hide-scrollbars", f"--user-data-dir={tmp_path / 'profile'}",
        "--host-resolver-rules=MAP * ~NOTFOUND", "--dump-dom",
    ]  # fmt: skip
    done = subprocess.run(
        [BROWSER, *flags, (tmp_path / "page.html").as_uri()],
        capture_output=True,
        encoding="utf-8",
        check=True,
        timeout=100,
    )
    assert "CONSOLE" not in done.stderr
    told = json.loads(re.search("told:(.*):told", done.stdout)[1])
    phone, desk = told
    assert [frame["width"] for frame in told] == list(WIDTHS)
    assert phone["overflow"] == desk["overflow"] == 0
    assert phone["figure"] > 2000  # at a size to be read, in a box that scrolls
    assert desk["figure"] < 1280
    train, long, bounded, b = (row["model"] for row in TABLES["Costs"])
    for frame in told:
        by_log_p, by_costs = frame["orders"]
        assert by_log_p == [
            [[long, b, bounded, train]] * 2,  # kinds stay apart, gaps come last
            [[b, long, bounded, train]] * 2,
        ]
        assert by_costs == [[[bounded, long, b, train]] * 2, [[b, long, bounded, train]] * 2]


def luminance(colour):
    full = colour if len(colour) == 6 else "".join(2 * digit for digit in colour)
    parts = [int(full[i : i + 2], 16) / 255 for i in (0, 2, 4)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return sum(w * c for w, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def test_text_stands_out_in_light_and_dark():
    """By the contrast that WCAG 2.2 asks of text, 4.5 (AA), and of the main text 7 (AAA)."""
    schemes = re.findall(r":root \{(.*?)\}", STYLE, re.S)
    assert len(schemes) == 2
    for scheme in schemes:
        colours = dict(re.findall(r"--(\w+): #([0-9a-f]+)", scheme))
        paper = luminance(colours["paper"])
        for name, least in (("ink", 7), ("soft", 4.5)):
            low, high = sorted([luminance(colours[name]), paper])
            assert (high + 0.05) / (low + 0.05) > least


def test_every_box_that_scrolls_can_be_reached_by_keys_and_has_a_name():
    boxes = re.findall(r'<div class="wide"([^>]*)>', written())
    assert len(boxes) == 3
    for box in boxes:
        assert 'tabindex="0"' in box
        assert 'aria-label="' in box


def test_figure_keeps_its_place_while_it_loads_and_says_what_it_shows():
    (image,) = re.findall(r"<img [^>]*>", written())
    assert 'width="2100"' in image
    assert "beside held-out data" in image
    assert "The figure typicality could not be drawn: no ink" in written()


def test_every_column_stands_in_one_table_and_every_reason_once(tmp_path):
    full = dict.fromkeys(ESTIMATES, Estimate(0.25, 0.03)) | dict.fromkeys(COUNTS, 7)
    row = Row("a", "exact", **full, auroc={"far": Estimate(0.9, 0.01)}, notes=["no half"])
    card = Scorecard([row, Row("b", notes=["no half"])])
    text = card.save(tmp_path).read_text(encoding="utf-8")
    heads = re.findall(r"<button>(.*?)</button>", text)
    assert sorted(set(heads)) == sorted(card.table()[0])
    assert heads.count("model") == 4
    assert len(heads) == len(card.table()[0]) + 3
    assert text.count("no half") == 1
    assert "a, b: no half" in text
    parts = str(card).split("\n\n")
    assert [part.splitlines()[0].split()[0] for part in parts] == ["model"] * 4
    assert max(map(len, str(card).splitlines())) < 120


def test_a_count_is_written_as_one():
    cells = [Row("a", train_passes=n).cells()["train passes"] for n in (7, 6156789.0, 0.0123)]
    assert cells == ["7", "6,160,000", "0.0123"]


def test_page_without_a_model_says_so():
    assert "No model was measured" in page({}, {}, {}, [], {})
