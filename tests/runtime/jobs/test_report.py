"""Tests what the page of a scene says: warnings first, what was run, the largest changes; and that texts stay texts."""

from __future__ import annotations

import base64
import hashlib
import html
import io
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest

rasterio = pytest.importorskip("rasterio", reason="scenes need the [geo] extra")
pytest.importorskip("shapely", reason="pages need the [geo] extra")

from misgnet_runtime.bundle.reader import read_bundle
from misgnet_runtime.jobs.scene.options import SceneOptions
from misgnet_runtime.jobs.scene.predict import predict_opened, predict_scene_files
from misgnet_runtime.jobs.scene.report.content import format_area, shown_date
from misgnet_runtime.jobs.scene.report.page import Page, Picture, Row, render
from misgnet_runtime.jobs.scene.report.pictures import MOST_BYTES
from misgnet_runtime.log import collector
from misgnet_runtime.raster.declared import Declared
from misgnet_runtime.raster.metadata import parse_time
from support.bundles import FLOAT, INTERFACE, FakeEngine, edit, fake_detector, make_bundle
from support.scenes import PLACE, scene, write_raster

BEFORE, AFTER = scene(300, 210)
FAKE = fake_detector(lambda: FakeEngine(INTERFACE))
HOSTILE = "</title></script><script>alert(1)</script>\"'&lt;\u202e"
Make = Callable[..., str]


class Parsed(HTMLParser):
    """Collects the tags with their attributes, and the visible text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._hidden = False
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._hidden = tag in ("script", "style")

    def handle_endtag(self, tag: str) -> None:
        self._hidden = False

    def handle_data(self, data: str) -> None:
        if not self._hidden:
            self.text += f"{data} "

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Returns a function that predicts a pair and returns its page."""
    bundle = make_bundle(tmp_path / "a bundle", engines=[FLOAT])

    def made(
        before: np.ndarray = BEFORE, after: np.ndarray = AFTER, *, place: Any = PLACE, threshold: float = 0.5,
        names: tuple[str, str] = ("before", "after"), **options: Any,
    ) -> str:  # fmt: skip
        edit(bundle, lambda manifest: manifest.update(threshold=threshold))
        folder = tmp_path / "secret folder"
        paths = [
            write_raster(folder / f"{name}.tif", pixels, **place)
            for name, pixels in zip(names, (before, after), strict=True)
        ]
        target = tmp_path / "report.html"
        asked = SceneOptions(force=True, report=target, **options)
        predict_scene_files(bundle, *paths, tmp_path / "change.tif", asked, log=collector()[0], opener=FAKE)
        return target.read_text("utf-8")

    return made


def test_page_loads_nothing_and_allows_only_its_own_script_and_style(make: Make) -> None:
    text = make()
    page = Parsed(text)
    for tag, attributes in page.tags:
        for name in ("src", "href", "srcset", "action", "data"):
            assert (attributes.get(name) or "data:image/").startswith("data:image/"), (tag, name)
        assert not [name for name in attributes if name.startswith("on") or name == "style"]
    assert page.all("html") == [{"lang": "en"}]
    (policy,) = (one["content"] for one in page.all("meta") if one.get("http-equiv") == "Content-Security-Policy")
    rules = dict(rule.split(" ", 1) for rule in str(policy).split("; "))
    for tag in ("style", "script"):
        (part,) = re.findall(f"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(part.encode()).digest()).decode()
        assert rules.pop(f"{tag}-src") == f"'sha256-{digest}'"
    assert rules == {"default-src": "'none'", "img-src": "data:", "base-uri": "'none'", "form-action": "'none'"}


def test_every_picture_has_a_text_and_its_size(make: Make) -> None:
    images = Parsed(make()).all("img")
    assert len(images) == 3 + 2 * 2
    for image in images:
        assert image["alt"] and int(str(image["width"])) > 0 < int(str(image["height"]))
        kind, data = str(image["src"]).split(";base64,")
        with PIL.Image.open(io.BytesIO(base64.b64decode(data))) as picture:
            assert kind == f"data:image/{str(picture.format).lower()}"


def test_warnings_come_first(make: Make) -> None:
    clean = Parsed(make()).text
    assert "No warnings." in clean
    after = AFTER.copy()
    after[:, :, 100:150] = 0
    found = Parsed(make(after, after, place={**PLACE, "nodata": 0})).text
    first = found.index("1 warning")
    assert "BEFORE and AFTER are" not in clean
    assert first < found.index("same file") < found.index("Valid pixels") < found.index("Largest changes")
    assert "No changed areas were found." in found and "no data in at least one date" in found


def test_unreadable_blocks_are_a_warning_without_folders(make: Make, tmp_path: Path) -> None:
    make()
    options = {"compress": "none", **PLACE}
    path = write_raster(tmp_path / "secret folder" / "after.tif", AFTER, **options)
    path.write_bytes(path.read_bytes()[: -9 * 32 * 32 * 3])
    target = tmp_path / "report.html"
    predict_scene_files(
        tmp_path / "a bundle", tmp_path / "secret folder" / "before.tif", path, tmp_path / "change.tif",
        SceneOptions(force=True, report=target, max_unreadable=50), log=collector()[0], opener=FAKE,
    )  # fmt: skip
    text = Parsed(target.read_text("utf-8")).text
    assert "the after raster after.tif has 9 unreadable blocks" in text
    assert "before 0.00 %, after 6.54 %" in text and "--max-unreadable 50" in text


def test_page_says_what_was_run_without_folders(make: Make, tmp_path: Path) -> None:
    text = make(overlap=8, min_area=3, both=Declared(bands=(3, 2, 1)), threshold=0.25)
    said = Parsed(text).text
    with rasterio.open(tmp_path / "change.tif") as dataset:
        tags = dataset.tags()
    for name in ("SOFTWARE", "BUNDLE_SHA256", "ENGINE", "BEFORE_SHA256", "AFTER_SCALING", "WEIGHTS_SHA256"):
        assert html.unescape(tags[f"MISGNET_{name}"]) in said, name
    assert (
        "a bundle" in said
        and "0.25" in said
        and "--overlap 8 --min-area 3 --bands 3,2,1"
        in said.replace("--min-area 3 --overlap 8", "--overlap 8 --min-area 3")
    )
    assert "100.00 %" in said and "EPSG:32633" in said and "300" in said
    assert "secret folder" not in text and str(tmp_path) not in text


def test_page_says_by_what_a_date_was_moved(make: Make, tmp_path: Path) -> None:
    assert "Registration" not in Parsed(make()).text
    folder, target = tmp_path / "secret folder", tmp_path / "report.html"
    predict_opened(
        read_bundle(tmp_path / "a bundle"), FAKE, folder / "before.tif", folder / "after.tif", tmp_path / "change.tif",
        options=SceneOptions(force=True, report=target), log=collector()[0],
        tags={"MISGNET_COREGISTERED": "-12.3 rows; 40 of 41 windows agree"},
    )  # fmt: skip
    text = Parsed(target.read_text("utf-8")).text
    place = text.index("Registration: after was moved back by")
    assert place < text.index("-12.3 rows; 40 of 41 windows agree") < text.index("Before and after")


def test_table_lists_the_largest_changes_with_coordinates(make: Make) -> None:
    page = Parsed(make())
    rows = [one for one in page.all("tr") if "data-box" in one]
    assert [row["data-number"] for row in rows] == ["1", "2"]
    left, top, width, height = map(float, str(rows[0]["data-box"]).split(","))
    assert (left, top) == pytest.approx((35 / 210, 60 / 300), abs=1e-6)
    assert (width, height) == pytest.approx((70 / 210, 90 / 300), abs=1e-6)
    assert "1,575 m²" in page.text and "2 changed areas" in page.text and "2,362 m² together" in page.text
    assert "EPSG:32633: x, y" in page.text and "400019.0, 4999939.5" in page.text
    longitude, latitude = re.findall(r"(13\.\d{6}), (45\.\d{6})", page.text)[0]
    assert 13.7 < float(longitude) < 13.8 and 45.1 < float(latitude) < 45.2


@pytest.mark.parametrize(
    ("place", "expected", "absent"),
    [
        ({"crs": None, "transform": None}, ["Column, row", "6,300 pixels", "none"], ["Longitude", "m²"]),
        ({"crs": "EPSG:4326", "transform": rasterio.Affine(1e-5, 0, 14, 0, -1e-5, 60)}, ["EPSG:4326: x, y", "14.00"],
         ["Longitude"]),
        ({"crs": 'LOCAL_CS["a field",UNIT["metre",1]]'}, ["a field: x, y", "1,575 m²"], ["Longitude"]),
    ],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
def test_coordinates_are_those_that_are_known(
    make: Make, place: dict[str, Any], expected: list[str], absent: list[str]
) -> None:
    text = Parsed(make(place={**PLACE, **place})).text
    assert [word for word in expected if word not in text] == []
    assert [word for word in absent if word in text] == []


def test_at_most_50_areas_are_listed_and_the_page_stays_below_its_limit(make: Make) -> None:
    """Noise compresses worst, and all of its areas are small."""
    random = np.random.default_rng(0)
    before, after = random.integers(0, 256, (2, 3, 2100, 1400)).astype(np.uint8)
    text = make(before, after, threshold=0.6)
    page = Parsed(text)
    assert len(text.encode()) < MOST_BYTES
    assert len([one for one in page.all("tr") if "data-box" in one]) == 50
    assert "The 50 largest are listed." in page.text
    assert "a pixel stands for 2 x 2 pixels" in page.text
    (viewer,) = (one for one in page.all("div") if one.get("id") == "viewer")
    assert (viewer["data-width"], viewer["data-height"]) == ("700", "1050")


def test_pictures_show_the_part_that_has_data(make: Make) -> None:
    after = AFTER.copy()
    after[:, :, :20] = 0
    after[:, 200:] = 0
    page = Parsed(make(after=after, place={**PLACE, "nodata": 0}))
    (viewer,) = (one for one in page.all("div") if one.get("id") == "viewer")
    assert (viewer["data-width"], viewer["data-height"]) == ("190", "200")
    assert "rows 0 to 200 and columns 20 to 210, with all of its pixels" in page.text
    (row,) = (one for one in page.all("tr") if "data-box" in one)
    assert [float(share) for share in str(row["data-box"]).split(",")] == pytest.approx(
        [15 / 190, 60 / 200, 70 / 190, 90 / 200], abs=1e-6
    )


def test_names_are_never_markup(make: Make) -> None:
    hostile = HOSTILE.replace("/", ":")
    text = make(names=(f"b{hostile}", f"a{hostile}"))
    assert "alert(1)" in text and "<script>alert" not in text and "\u202e" not in text
    assert text.count("<script") == 1 and "a<:title><:script><script>alert(1)" in Parsed(text).text


def test_every_text_of_a_page_is_escaped() -> None:
    picture = Picture(b"x", "png")
    page = Page(
        title=HOSTILE, subtitle=HOSTILE, warnings=[HOSTILE], summary=[(HOSTILE, HOSTILE)], rows=[(HOSTILE, HOSTILE)],
        size=(1, 1), before=picture, after=picture, overlay=picture, captions=(HOSTILE, HOSTILE), has_nodata=False,
        resolution=HOSTILE, areas=HOSTILE, columns=[HOSTILE],
        changes=[Row(box=(0, 0, 1, 1), cells=(HOSTILE,), pictures=(picture, picture))], software=HOSTILE,
    )  # fmt: skip
    text = render(page).decode()
    harmless = text.replace(html.escape(HOSTILE.replace("\u202e", "\\u202e")), "")
    assert "alert" not in harmless and "\u202e" not in text
    assert text.count("alert(1)") == 18


@pytest.mark.parametrize(
    ("time", "shown"),
    [("2021:05:02 10:11:12", "2021-05-02 10:11 UTC"), ("2021-05-02T00:00:00", "2021-05-02"), (None, "")],
)
def test_dates_are_shown_without_seconds(time: str | None, shown: str) -> None:
    assert shown_date(parse_time(time)) == shown


@pytest.mark.parametrize(
    ("area", "shown"),
    [(0.25, "0.25 m²"), (9.5, "9.5 m²"), (1575, "1,575 m²"), (99_999, "99,999 m²"), (123_456, "12.3 ha"),
     (12_345_678, "12.3 km²")],
)  # fmt: skip
def test_areas_have_a_readable_unit(area: float, shown: str) -> None:
    assert format_area(area) == shown
