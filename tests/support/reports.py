"""Makes parity reports and report pages from numbers alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest

from misgnet_export.evidence import TilePicture
from misgnet_export.report import (
    ReportData,
    render,
)
from misgnet_runtime.accuracy.limit import F1Limit
from misgnet_runtime.accuracy.metrics import Confusion
from misgnet_runtime.accuracy.parity import EngineParity, EvaluatedTile, ParityReport, compare
from misgnet_runtime.callables import Mask
from misgnet_runtime.inference.throughput import Timing

SIZE = 20
LIMIT = F1Limit(max_f1_drop=1.0)


REASON = "TensorRT & a device of 'sm_87' are missing"


MACHINE = {"processor": "A processor", "cores": 2, "memory_gib": 8.0, "features": ["avx2"]}


def label_of(changed: int) -> Mask:
    label = np.zeros((SIZE, SIZE), np.bool_)
    label.flat[:changed] = True
    return label


def evaluated(label: Mask, wrong: int, name: str, source: str) -> EvaluatedTile:
    """Returns a mask equal to the label except for its last ``wrong`` pixels, which become false alarms."""
    mask = label.copy()
    mask.flat[SIZE * SIZE - wrong :] = True
    return EvaluatedTile(name, source, mask.shape, np.packbits(mask), Confusion.of(mask, label))


def side(wrong: Sequence[int], changed: int = 100, sources: int = 4) -> list[EvaluatedTile]:
    label = label_of(changed)
    return [evaluated(label, n, f"tile_{i}", f"image_{i % sources}") for i, n in enumerate(wrong)]


def parity(wrong: Sequence[int], engine: str = "cpu", changed: int = 100, sources: int = 4) -> EngineParity:
    reference = side([0] * len(wrong), changed, sources)
    return compare(engine, "int8", reference, side(wrong, changed, sources), LIMIT, device="CPU")


def report_of(engines: list[EngineParity], changed: int = 100, sources: int = 4) -> ParityReport:
    total = Confusion.total([j.confusion for j in side([0] * 4, changed)])
    share = total.changed / total.pixels
    return ParityReport(
        reference="torch", evaluation_set="/data/private/LEVIR/test", evaluation_sha256="ab" * 32, tiles=4,
        sources=sources, pixels=total.pixels, changed_share=share, threshold=0.5, max_f1_drop=1.0,
        reference_scores=total.scores(), engines=engines,
    )  # fmt: skip


def not_run(engine: str = "tensorrt") -> EngineParity:
    return EngineParity(engine, "int8", "not run", REASON)


def picture(name: str = "tile_0") -> TilePicture:
    photo = np.full((SIZE, SIZE, 3), 90, np.uint8)
    label = label_of(100)
    return TilePicture(
        name=name, caption="worst: 3 differing pixels", before=photo, after=photo, label=label, reference=label,
        engine=~label,
    )  # fmt: skip


def data_of(report: ParityReport, **changes: object) -> ReportData:
    timings = [Timing("float", "float32", 1, 9, 5, 6, 7, 100.0), Timing("cpu", "int8", 1, 9, 3, 4, 5, 200.0)]
    data = ReportData(
        title="A bundle",
        created="2025-01-01",
        passed=report.passed,
        summary=[("Weights", "0123")],
        parity=report,
        timings=timings,
        machine=MACHINE,
        stages=[("export", 1.5, "412 nodes")],
        files=[("graphs/float.onnx", 4000), ("graphs/int8_cpu.onnx", 1000)],
        pictures={"cpu": [picture()]},
    )
    return replace(data, **changes)  # type: ignore[arg-type]


class Page(HTMLParser):
    """Parses a page as a browser does: tags with their attributes, and the text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())


def page_of(data: ReportData) -> str:
    """Renders the page; skips the test if the [export] extra is missing, which nothing else here needs."""
    pytest.importorskip("jinja2", reason="the page needs the [export] extra")
    return render(data)
