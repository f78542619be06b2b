"""Tests the build's report in headless Chromium: nothing is cut off on a phone, and no heading is alone in print."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from msgspec import structs

pytest.importorskip("jinja2", reason="the report needs the [export] extra")

from misgnet_export.report import render
from support.browser import outcome
from support.reports import data_of, not_run, parity, report_of

WHY = "does not run here: TensorRT for RTX finds no GPU: the CUDA driver library is missing; install the NVIDIA driver"
SCRIPT = """
const box = document.querySelector("table.engines").parentElement;
const shown = [...document.querySelectorAll("table.engines :is(tbody th, td[data-name])")].map((one) => {
  const { left, right, height } = one.getBoundingClientRect();
  return { name: one.dataset.name ?? "Engine", left, right, height };
});
const printed = [...document.styleSheets].flatMap((sheet) => [...sheet.cssRules])
  .filter((rule) => rule.media?.mediaText === "print").flatMap((rule) => [...rule.cssRules])
  .filter((rule) => rule.style?.breakAfter === "avoid");
const kept = (one) => printed.some((rule) => one.matches(rule.selectorText));
const alone = [...document.querySelectorAll("h2, h3")].filter((one) => !kept(one)).length;
return { cut: box.scrollWidth - box.clientWidth, page: document.documentElement.scrollWidth, shown, alone };
"""


@pytest.fixture
def page(tmp_path: Path) -> Path:
    """Writes a report of seven engines, three of them evaluated by proxy and one not run."""
    names = ["cpu-float32", "cpu", "openvino-int8-bf16"]
    proxies = ["rtx-sm86,sm89-int8", "rtx-sm86,sm89-fp16", "jetson-orin-int8"]
    engines = [parity([0, 1, 0, 2], name) for name in (*names, *proxies)]
    engines = [structs.replace(e, status="proxy", reason=WHY) if e.engine in proxies else e for e in engines]
    data = replace(data_of(report_of([*engines, not_run()])), summary=[("Threshold", "0.5, given")])
    path = tmp_path / "report.html"
    path.write_text(render(data), encoding="utf-8")
    return path


@pytest.mark.parametrize("width", [390, 1280])
def test_table_of_engines_fits_the_page(page: Path, width: int) -> None:
    found: dict[str, Any] = outcome(page, SCRIPT, width=width)
    assert found["cut"] <= 0 and found["page"] <= width
    for name in ("Engine", "Verdict", "F1"):
        cells = [one for one in found["shown"] if one["name"] == name]
        assert len(cells) == 7 - (name == "F1")  # the engine that was not run has none
        assert all(one["left"] >= 0 and one["right"] <= width and one["height"] > 10 for one in cells)


def test_each_heading_stays_with_what_follows_in_print(page: Path) -> None:
    assert outcome(page, SCRIPT)["alone"] == 0


def test_threshold_is_stated_once(page: Path) -> None:
    assert page.read_text(encoding="utf-8").count("Threshold") == 1
