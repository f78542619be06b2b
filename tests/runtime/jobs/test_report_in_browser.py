"""Tests the page of a scene in a browser, by clicking and typing: divider, overlay, zoom, table, width and print."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

pytest.importorskip("rasterio", reason="scenes need the [geo] extra")
pytest.importorskip("shapely", reason="pages need the [geo] extra")

from misgnet_runtime.jobs.scene.options import SceneOptions
from misgnet_runtime.jobs.scene.predict import predict_scene_files
from misgnet_runtime.log import collector
from support.browser import chromium, outcome, run
from support.bundles import FLOAT, INTERFACE, FakeEngine, fake_detector, make_bundle
from support.scenes import scene, write_raster

H, W = 300, 400


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    chromium()
    root = tmp_path_factory.mktemp("page")
    long = "a_scene_with_a_name_that_is_as_long_as_those_of_satellite_products_20190502T101112_N0212_R022_T32TQM"
    paths = [write_raster(root / f"{long}_{i}.tif", pixels) for i, pixels in enumerate(scene(H, W))]
    bundle, target = make_bundle(root / "bundle", engines=[FLOAT]), root / "report.html"
    predict_scene_files(
        bundle, *paths, root / "change.tif", SceneOptions(report=target), log=collector()[0],
        opener=fake_detector(lambda: FakeEngine(INTERFACE)),
    )  # fmt: skip
    return target


HELPERS = """
const find = (id) => document.getElementById(id);
const viewer = find("viewer"), handle = find("handle"), mark = find("mark");
const both = { bubbles: true, cancelable: true };
const key = (on, name) => on.dispatchEvent(new KeyboardEvent("keydown", { key: name, ...both }));
const pointer = (on, kind, x, y, id = 1) => on.dispatchEvent(new PointerEvent(kind, {
  pointerId: id, clientX: x, clientY: y, button: 0, ...both }));
const zoom = () => Number(find("zoom").textContent.slice(5));
const divider = () => Number(handle.getAttribute("aria-valuenow"));
const middle = (box) => [(box.left + box.right) / 2, (box.top + box.bottom) / 2];
"""


def test_divider_moves_by_keys_and_pointer(page: Path) -> None:
    found = outcome(page, HELPERS + """
      const steps = [divider()];
      for (const name of ["ArrowRight", "ArrowRight", "ArrowLeft", "PageUp", "End", "ArrowRight", "Home"]) {
        key(handle, name); steps.push(divider());
      }
      const edge = viewer.getBoundingClientRect();
      pointer(handle, "pointerdown", edge.left, edge.top + 50);
      pointer(window, "pointermove", edge.left + 0.75 * edge.width, edge.top + 50);
      steps.push(divider());
      pointer(window, "pointerup", edge.left + 0.75 * edge.width, edge.top + 50);
      pointer(window, "pointermove", edge.left, edge.top + 50);
      steps.push(divider());
      const line = handle.getBoundingClientRect();
      const clip = getComputedStyle(document.querySelector(".side.before")).clipPath;
      return { steps, line: (middle(line)[0] - edge.left) / edge.width, clip, zoom: zoom(),
               role: handle.getAttribute("role"), label: handle.getAttribute("aria-label") };
    """)  # fmt: skip
    assert found["steps"] == [50, 52, 54, 52, 62, 100, 100, 0, 75, 75]
    assert found["line"] == pytest.approx(0.75, abs=0.01) and found["zoom"] == 1
    assert found["role"] == "slider" and "before" in found["label"] and found["clip"].startswith("inset(")


def test_overlay_is_switched_off_and_on(page: Path) -> None:
    found = outcome(
        page,
        HELPERS
        + """
      const shown = () => getComputedStyle(document.querySelector(".overlay")).display;
      const states = [shown()];
      find("overlay").click(); states.push(shown());
      find("overlay").click(); states.push(shown());
      return { states, loaded: [...document.images].every((image) => image.complete && image.naturalWidth > 0) };
    """,
    )
    assert found == {"states": ["block", "none", "block"], "loaded": True}


def test_zoom_by_buttons_and_keys_keeps_all_layers_together(page: Path) -> None:
    found = outcome(
        page,
        HELPERS
        + """
      const boxes = () => [...document.querySelectorAll(".layer")].map((layer) => {
        const box = layer.getBoundingClientRect(); return [box.left, box.top, box.width, box.height].map(Math.round);
      });
      const same = () => new Set(boxes().map(String)).size === 1, together = [same()], zooms = [zoom()];
      find("closer").click(); zooms.push(zoom()); together.push(same());
      key(viewer, "+"); zooms.push(zoom());
      const before = boxes()[0];
      key(viewer, "ArrowRight"); together.push(same());
      const moved = boxes()[0][0] - before[0];
      find("wider").click(); zooms.push(zoom());
      key(viewer, "-"); key(viewer, "-"); zooms.push(zoom());
      for (let i = 0; i < 30; i += 1) key(viewer, "+");
      const most = zoom();
      key(viewer, "0"); zooms.push(zoom());
      const all = boxes()[0], edge = viewer.getBoundingClientRect();
      return { zooms, together, moved, most, tab: viewer.tabIndex,
               inside: all[0] >= edge.left - 1 && all[0] + all[2] <= edge.right + 1 };
    """,
    )
    assert found["zooms"] == [1, 1.5, 2.3, 1.5, 1, 1] and found["together"] == [True] * 3
    assert found["moved"] < 0 and 2 < found["most"] < 100 and found["tab"] == 0 and found["inside"]


def test_picture_is_dragged_and_pinched(page: Path) -> None:
    found = outcome(
        page,
        HELPERS
        + """
      const left = () => document.querySelector(".layer").getBoundingClientRect().left;
      const [x, y] = middle(viewer.getBoundingClientRect());
      find("closer").click(); find("closer").click(); find("closer").click();
      const start = left();
      pointer(viewer, "pointerdown", x, y);
      pointer(window, "pointermove", x - 40, y);
      pointer(window, "pointerup", x - 40, y);
      const dragged = left() - start;
      find("whole").click();
      pointer(viewer, "pointerdown", x - 50, y, 1); pointer(viewer, "pointerdown", x + 50, y, 2);
      pointer(window, "pointermove", x + 150, y, 2);
      const pinched = zoom();
      pointer(window, "pointerup", x - 50, y, 1); pointer(window, "pointerup", x + 150, y, 2);
      return { dragged, pinched, divider: divider() };
    """,
    )
    assert found == {"dragged": -40, "pinched": 2, "divider": 50}


@pytest.mark.parametrize("how", ["button", "row"])
def test_a_click_centres_a_change(page: Path, how: str) -> None:
    found = outcome(
        page,
        HELPERS
        + f"""
      const rows = document.querySelectorAll("tbody tr"), at = {{ button: "button", row: "td:last-child" }}["{how}"];
      rows[1].querySelector(at).click();
      await pause();
      const box = mark.getBoundingClientRect(), edge = viewer.getBoundingClientRect();
      const status = find("status").textContent, hidden = mark.hidden;
      const off = middle(box).map((value, axis) => Math.abs(value - middle(edge)[axis]));
      const chosen = [...document.querySelectorAll("tr.chosen")].map((row) => row.dataset.number);
      key(viewer, "0");
      return {{ count: rows.length, hidden, off, zoom: status, chosen, after: mark.hidden,
                width: box.width / edge.width, height: box.height / edge.height }};
    """,
    )
    assert found["count"] == 2 and not found["hidden"] and found["after"] and found["chosen"] == ["2"]
    # Also a change in a corner of the scene.
    assert max(found["off"]) < 3 and 0.2 < max(found["width"], found["height"]) < 0.6
    assert re.fullmatch(r"Change 2 is in the centre, zoom \d+\.\d\.", found["zoom"])


@pytest.mark.parametrize("width", [320, 390, 1280, 2000])
def test_no_screen_is_too_narrow(page: Path, width: int) -> None:
    found = outcome(page, HELPERS + """
      const wide = [...document.querySelectorAll("body *")].filter((part) => !part.closest("#viewer, .scroll")
        && part.getBoundingClientRect().right > innerWidth + 1).map((part) => part.outerHTML.slice(0, 80));
      const small = [...document.querySelectorAll("button")].filter((button) =>
        button.getBoundingClientRect().height < 24 || button.getBoundingClientRect().width < 24).length;
      return { inner: innerWidth, page: document.documentElement.scrollWidth, wide, small,
               table: document.querySelector(".scroll").scrollWidth - document.querySelector(".scroll").clientWidth };
    """, width=width)  # fmt: skip
    assert found == {"inner": width, "page": width, "wide": [], "small": 0, "table": 0}


def test_the_print_is_static(page: Path, tmp_path: Path) -> None:
    target = tmp_path / "page.pdf"
    run(page, f"--print-to-pdf={target}")
    data = target.read_bytes()
    assert data.startswith(b"%PDF") and data.rstrip().endswith(b"%%EOF")
    assert len(re.findall(rb"/Subtype\s*/Image", data)) >= 6  # two dates, the change, and a pair for each of two areas


def test_without_scripts_both_dates_are_beside_each_other(page: Path) -> None:
    """The same styles make the print."""
    found = outcome(
        page,
        HELPERS
        + """
      document.documentElement.classList.remove("live");
      for (const layer of document.querySelectorAll(".layer")) layer.removeAttribute("style");
      const hidden = ["controls", "handle", "help", "status"].map((id) => getComputedStyle(find(id)).display);
      const [before, after] = ["before", "after"].map((side) => document.querySelector(`.side.${side} img`));
      const boxes = [before, after, document.querySelector(".overlay")].map((image) => image.getBoundingClientRect());
      return { hidden, beside: boxes[0].right <= boxes[1].left,
               over: Math.abs(boxes[1].left - boxes[2].left) < 1 && Math.abs(boxes[1].width - boxes[2].width) < 1 };
    """,
    )
    assert found == {"hidden": ["none"] * 4, "beside": True, "over": True}


def test_nothing_is_blocked_or_requested(page: Path) -> None:
    found = outcome(
        page,
        """
      const violations = [];
      document.addEventListener("securitypolicyviolation", (event) => violations.push(event.blockedURI));
      await pause();
      const loaded = performance.getEntriesByType("resource").map((one) => one.name);
      const requests = loaded.filter((name) => !name.startsWith("data:"));
      const image = document.createElement("img");
      image.src = "https://example.invalid/x.png";
      document.body.append(image);
      await pause(); await pause();
      return { before: violations.filter((uri) => !uri.includes("example")), requests, blocked: violations.length };
    """,
    )
    assert found["before"] == [] and found["requests"] == [] and found["blocked"] == 1
