"""Tests the evidence report: its contents, its caveats, and that foreign texts never become markup."""

import base64
import io
from dataclasses import replace
from xml.etree import ElementTree

import numpy as np
import pytest
from msgspec import structs
from PIL import Image
from rich.console import Console
from rich.table import Table

from misgnet_export.report import (
    figures,
    junit_xml,
    parity_table,
    pick_tiles,
    pictures,
    stage_table,
    throughput_table,
)
from misgnet_export.report.curves import of_overlaps
from misgnet_runtime.accuracy.gate import Interval
from misgnet_runtime.accuracy.parity import EngineParity, ParityReport, TileParity, compare
from misgnet_runtime.bundle import MeasuredOverlap
from misgnet_runtime.inference.throughput import Timing
from support.reports import (
    LIMIT,
    MACHINE,
    REASON,
    Page,
    data_of,
    label_of,
    not_run,
    page_of,
    parity,
    picture,
    report_of,
    side,
)

HOSTILE = "<script>alert(1)</script>"


def shown(report: ParityReport, **changes: object) -> Page:
    return Page(page_of(data_of(report, **changes)))


def text_of(table: Table, width: int = 80) -> str:
    console = Console(width=width, file=io.StringIO(), color_system=None)
    console.print(table)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


# Pictures


def test_difference_image_has_one_colour_for_each_of_the_six_cases() -> None:
    #                 -    +   wrong alike  alarm  miss  fixed
    label = np.array([[0, 1, 0, 1, 0, 1, 0, 1]], np.bool_)
    reference = np.array([[0, 1, 1, 0, 0, 1, 1, 0]], np.bool_)
    engine = np.array([[0, 1, 1, 0, 1, 0, 0, 1]], np.bool_)
    expected = [0, 1, 2, 2, 3, 4, 5, 5]
    assert pictures.difference_codes(label, reference, engine).tolist() == [expected]
    image = pictures.difference_image(label, reference, engine)
    assert image.dtype == np.uint8
    assert [tuple(p) for p in image[0].tolist()] == [pictures.LEGEND[code][1] for code in expected]


def test_legend_names_each_colour_once() -> None:
    assert len({colour for _, colour in pictures.LEGEND}) == len({name for name, _ in pictures.LEGEND}) == 6


@pytest.mark.parametrize("array", [label_of(130), np.arange(1200, dtype=np.uint8).reshape(20, 20, 3)])
def test_png_address_is_lossless(array: np.ndarray) -> None:
    head, body = pictures.png_data_uri(array).split(",")
    assert head == "data:image/png;base64"
    assert (np.asarray(Image.open(io.BytesIO(base64.b64decode(body)))) == array).all()


def test_jpeg_address_contains_a_jpeg() -> None:
    head, body = pictures.jpeg_data_uri(np.zeros((8, 12, 3), np.uint8)).split(",")
    image = Image.open(io.BytesIO(base64.b64decode(body)))
    assert (head, image.format, image.size) == ("data:image/jpeg;base64", "JPEG", (12, 8))


def test_picture_of_unequal_sizes_is_rejected() -> None:
    with pytest.raises(ValueError, match="tile_0"):
        replace(picture(), engine=np.zeros((3, 3), np.bool_))


def test_worst_tiles_come_before_typical_ones() -> None:
    found = parity([0, 50, 10, 0, 20, 30, 40])
    picked = pick_tiles(found, 2, 3)
    assert [name for name, _ in picked] == ["tile_1", "tile_6", "tile_4", "tile_2", "tile_0"]
    assert [kind for _, kind in picked] == ["worst"] * 2 + ["typical"] * 3


def test_tiles_are_picked_once_and_need_differences_or_change() -> None:
    found = parity([5, 0, 0])
    names = [name for name, _ in pick_tiles(found, 6, 6)]
    assert names == ["tile_0", "tile_1", "tile_2"]
    assert pick_tiles(parity([5, 0, 0], changed=0), 6, 6) == [("tile_0", "worst")]
    assert pick_tiles(not_run(), 6, 6) == []


def test_equal_tiles_are_ordered_by_name() -> None:
    tiles = [
        TileParity(name=name, source="s", reference=(1, 0, 0, 9), engine=(1, 2, 0, 7), differing=2, pixels=10)
        for name in "cab"
    ]
    found = EngineParity("e", "int8", "run", "", tiles=tiles)
    assert pick_tiles(found, 1, 1) == [("a", "worst"), ("b", "typical")]


# HTML


def test_page_shows_every_engine_and_its_verdict() -> None:
    page = shown(report_of([parity([0, 1, 0, 0]), parity([30] * 4, "rtx-sm86"), not_run()]))
    for name in ("cpu", "rtx-sm86", "tensorrt"):
        assert name in page.text
    assert "Failed: 2 of 3 engines evaluated, 1 outside the limit: rtx-sm86" in page.text
    assert "0.9988" in page.text  # F1 of cpu: 2 * 400 / (2 * 400 + 1)
    assert "+0.125" in page.text
    assert "0.99875" in page.text  # its F1 ratio
    assert "2.00 x" in page.text  # relative to float at the same batch
    assert "0.25 x" in page.text  # the INT8 file relative to the float file


def test_page_states_the_limit() -> None:
    found = report_of([parity([0, 1, 0, 0])])
    assert "Required: F1 at most 1 points below the float model's, on the same 4 tiles" in shown(found).text
    upper = structs.replace(found, gate="upper")
    assert "the float model's, at the worse end of its 95 % interval, on the same 4 tiles" in shown(upper).text
    ratio = structs.replace(found, max_f1_drop=None, min_f1_ratio=0.999)
    text = shown(ratio).text
    assert "Required: F1 at least 0.999 of the float model's, on the same 4 tiles" in text
    assert "here this allows a drop of +0.100 points" in text and "compares the measured ratio" in text


def test_page_loads_nothing() -> None:
    html = page_of(data_of(report_of([parity([0, 1, 0, 0])])))
    assert "http://" not in html
    assert "https://" not in html
    page = Page(html)
    assert not {tag for tag, _ in page.tags} & {"script", "link", "iframe", "object", "base"}
    sources = [attrs["src"] or "" for _, attrs in page.tags if "src" in attrs]
    assert len(sources) == 6
    assert {source.split(",")[0] for source in sources} == {"data:image/png;base64", "data:image/jpeg;base64"}
    assert "url(" not in html
    assert "@import" not in html


def test_every_image_has_an_alternative_text() -> None:
    page = shown(report_of([parity([0, 1, 0, 0])]))
    alts = [attrs["alt"] or "" for tag, attrs in page.tags if tag == "img"]
    what = ["before", "after", "label", "float mask", "engine mask", "difference"]
    assert alts == [f"{name}, tile tile_0" for name in what]


def test_names_with_markup_are_escaped() -> None:
    report = report_of([parity([0, 1, 0, 0], HOSTILE), EngineParity(HOSTILE, HOSTILE, "not run", HOSTILE)])
    page = shown(
        report, title=HOSTILE, summary=[(HOSTILE, HOSTILE)], files=[(HOSTILE, 1)],
        stages=[(HOSTILE, 1.0, HOSTILE)], pictures={HOSTILE: [picture('"><script>')]},
        machine={**MACHINE, "processor": HOSTILE},
    )  # fmt: skip
    assert "script" not in {tag for tag, _ in page.tags}
    assert page.text.count(HOSTILE) >= 10


def test_engine_that_was_not_run_shows_its_reason() -> None:
    page = shown(report_of([parity([0, 1, 0, 0]), not_run()]))
    assert f"tensorrt was not run: {REASON}" in page.text
    assert "no verdict" in page.text
    assert "Passed: 1 of 2 engines evaluated, all within the limit" in page.text


def test_proxy_is_named_in_headline_and_caveats() -> None:
    reference, found = side([0] * 4), side([0, 1, 0, 0])
    proxy = compare("rtx", "int8", reference, found, LIMIT, device="CPU", status="proxy", reason="no GPU here")
    page = shown(report_of([proxy]))
    assert "1 of 1 engine evaluated (1 of them by proxy)" in page.text
    assert "rtx was evaluated by proxy only: no GPU here" in page.text


def test_report_without_evaluated_engines_does_not_pass() -> None:
    page = shown(report_of([not_run()]), passed=True)
    assert "Nothing proven: 0 of 1 engine evaluated" in page.text
    assert ("div", {"class": "verdict fail"}) in page.tags


def test_page_names_the_rule_for_labels_without_change() -> None:
    page = shown(report_of([parity([1, 0, 0, 0], changed=0)], changed=0))
    assert "n/a" in page.text
    assert "points of false alarms and" in page.text
    assert "no label contains a change, so this does not show whether changes are still found" in page.text


def test_page_and_table_say_that_f1_was_not_measured_without_labels() -> None:
    engine = parity([1, 0, 0, 0], changed=0)
    report = structs.replace(report_of([engine], changed=0), labelled=False, reference_scores={})
    page = shown(report)
    assert "F1 was not measured, because the evaluation set has no labels: the agreement decided" in page.text
    assert "without labels" in page.text and "no label contains a change, so" not in page.text
    assert "F1 not measured: no labels" in text_of(parity_table(report))


def test_signs_of_a_wrong_declaration_are_caveats() -> None:
    page = shown(report_of([parity([0] * 4)]), warnings=["F1 is better with the dates swapped"])
    assert "F1 is better with the dates swapped" in page.text


@pytest.mark.parametrize(("sources", "rough"), [(4, True), (10, False)])
def test_interval_of_few_images_is_called_rough(sources: int, rough: bool) -> None:
    page = shown(report_of([parity([0, 1] * 10, sources=sources)], sources=sources))
    assert ("the intervals are rough" in page.text) == rough
    assert (f"from {sources} source images: rough" in page.text) == rough


def test_one_image_has_no_interval() -> None:
    page = shown(report_of([parity([0, 1], sources=1)], sources=1))
    assert "no interval for cpu: at least two source images are needed" in page.text


def test_interval_above_the_limit_is_a_caveat_of_a_passing_engine() -> None:
    engine = structs.replace(parity([0, 1, 0, 0]), interval=Interval(0.1, 1.8, 20))
    assert "reaches +1.800 points, above the limit of 1" in shown(report_of([engine])).text
    report = structs.replace(report_of([engine]), max_f1_drop=None, min_f1_ratio=0.99)
    assert "the interval of cpu reaches" not in shown(report).text
    engine = structs.replace(engine, ratio_interval=Interval(0.98, 1.0, 20))
    report = structs.replace(report, engines=[engine])
    assert "reaches an F1 ratio of 0.98000, below the required 0.99" in shown(report).text


def test_left_out_engine_stays_in_page_and_table() -> None:
    kept = [parity([0, 0, 0, 0], "cpu-float32"), parity([0, 0, 0, 0])]
    report = structs.replace(report_of(kept), left_out=[parity([30] * 4)])
    page = shown(report)
    assert "Passed: 2 of 2 engines evaluated, all within the limit; left out of the bundle: cpu (int8)" in page.text
    reason = "F1 drop +13.043 points, more than the allowed 1"
    assert f"cpu (int8) is not in the bundle: {reason}" in page.text
    assert f"left out {reason}" in page.text and "FAIL" not in page.text
    assert page.text.count("cpu (int8)") == 4  # headline, caveat, gate, scores
    assert "Left out: --target auto chose these engines" in page.text
    text = text_of(parity_table(report))
    assert "left out" in text and f"cpu (int8): left out: {reason}" in " ".join(text.split()) and "FAIL" not in text
    assert "Left out:" not in shown(report_of(kept)).text


def test_slower_engine_is_a_caveat() -> None:
    timings = [Timing("float", "float32", 4, 9, 1, 1, 1, 100.0), Timing("cpu", "int8", 4, 9, 1, 1, 1, 80.0)]
    page = shown(report_of([parity([0, 1, 0, 0])]), timings=timings)
    assert "slower than the float engine on this machine: cpu at batch 4 (0.80 times" in page.text


def test_page_does_not_reveal_folders_of_this_machine() -> None:
    html = page_of(data_of(report_of([parity([0, 1, 0, 0])])))
    assert "/data/private" not in html
    assert "LEVIR/test" in html


def test_page_without_timings_files_and_pictures_is_rendered() -> None:
    page = shown(report_of([parity([0, 0, 0, 0])]), timings=[], files=[], pictures={}, stages=[])
    assert "Not measured in this build." in page.text


# Figures


def test_figures_are_formatted() -> None:
    assert figures.number(None) == figures.signed(None) == figures.percent(None) == "n/a"
    assert figures.signed(0.0) == figures.signed(-0.0001) == "0.000"
    assert (figures.signed(1.25), figures.signed(-1.25)) == ("+1.250", "\N{MINUS SIGN}1.250")
    assert [figures.size(n) for n in (12, 2048, 3 << 20)] == ["12 B", "2.0 KiB", "3.00 MiB"]


@pytest.mark.parametrize(("share", "text"), [(1.0, "100.000"), (0.9999999, "99.999"), (0.58, "58.000"), (0.0, "0.000")])
def test_only_full_agreement_reads_100(share: float, text: str) -> None:
    assert figures.percent(share) == f"{text}\N{NO-BREAK SPACE}%"


def test_files_are_compared_with_their_own_float_file() -> None:
    files = [
        ("graphs/float.onnx", 100), ("graphs/int8_cpu.onnx", 25), ("graphs/int8_tensorrt.onnx", 30),
        ("engines/int8.plan", 7), ("m/net.onnx", 50), ("m/net-int8.onnx", 10), ("m/net-int8.json", 10),
        ("graphs/float16_tensorrt-fp16.onnx", 60),
    ]  # fmt: skip
    assert figures.size_ratios(files) == [None, 0.25, 0.3, None, None, 0.2, None, 0.6]


def test_speeds_are_compared_at_the_same_batch() -> None:
    timings = [Timing(n, p, b, 9, 1, 1, 1, s) for n, p, b, s in (
        ("f", "float32", 1, 10.0), ("i", "int8", 1, 25.0), ("i", "int8+float16", 4, 30.0))]  # fmt: skip
    assert figures.speed_ratios(timings) == [1.0, 2.5, None]


# JUnit


def test_junit_counts_failures_and_skips() -> None:
    xml = junit_xml(report_of([parity([0, 1, 0, 0]), parity([30] * 4, "rtx"), not_run()]))
    suite = ElementTree.fromstring(xml).find("testsuite")
    assert suite is not None
    assert suite.get("name") == "misgnet parity"
    assert [suite.get(n) for n in ("tests", "failures", "errors", "skipped")] == ["3", "1", "0", "1"]
    passed, failed, skipped = suite.findall("testcase")
    assert (passed.get("name"), [child.tag for child in passed]) == ("cpu", ["properties"])
    failure, skip = failed.find("failure"), skipped.find("skipped")
    assert failure is not None
    assert skip is not None
    assert "more than the allowed 1" in (failure.get("message") or "")
    assert skip.get("message") == REASON


def test_junit_contains_the_scores() -> None:
    case = ElementTree.fromstring(junit_xml(report_of([parity([0, 1, 0, 0])]))).find("testsuite/testcase")
    assert case is not None
    found = {p.get("name"): p.get("value") or "" for p in case.iter("property")}
    assert found["status"] == "run"
    assert found["engine_precision"] == "int8"
    assert float(found["f1"]) == pytest.approx(800 / 801)
    assert float(found["f1_drop_points"]) == pytest.approx(100 / 801)
    assert float(found["f1_ratio"]) == pytest.approx(800 / 801)
    assert found["f1_drop_sources"] == "4"
    assert 0.99 < float(found["f1_ratio_low"]) < 800 / 801 < float(found["f1_ratio_high"]) <= 1


def test_junit_drops_characters_that_xml_forbids_and_escapes_the_rest() -> None:
    engine = EngineParity('a\x00b\x1b[31m\ud800<&">\ufffe', "int8", "not run", "line\x08 one")
    case = ElementTree.fromstring(junit_xml(report_of([engine]))).find("testsuite/testcase")
    assert case is not None
    assert case.get("name") == 'ab[31m<&">'
    skip = case.find("skipped")
    assert skip is not None
    assert skip.get("message") == "line one"


# Terminal


@pytest.mark.parametrize("width", [80, 100])
def test_tables_fit_the_terminal_and_show_all_numbers(width: int) -> None:
    report = report_of([parity([0, 1, 0, 0]), parity([30] * 4, "rtx-sm86-sm89-sm120-int8"), not_run()])
    text = text_of(parity_table(report), width)
    assert max(len(line) for line in text.splitlines()) <= width
    for part in ("cpu", "0.9988", "0.99875", "+0.125", "pass", "FAIL", "not run", REASON):
        assert part in text
    data = data_of(report)
    assert "2.00 x" in text_of(throughput_table(data.timings), width)
    assert "412 nodes" in text_of(stage_table(data.stages), width)


def test_tables_ignore_markup() -> None:
    unknown = EngineParity("[/]", "int8", "not run", "[bold]why")
    report = report_of([parity([0, 1, 0, 0], "[red]x[/red]"), unknown])
    text = text_of(parity_table(report))
    assert "[red]x[/red]" in text
    assert "[/]: not run: [bold]why" in text
    assert "[b]" in text_of(stage_table([("[b]", 0.1, "[/b]")]))


def test_table_names_the_rule_for_labels_without_change() -> None:
    text = text_of(parity_table(report_of([parity([1, 0, 0, 0], changed=0)], changed=0)))
    assert "n/a" in text
    assert "no label holds a change" in text


# Overlap of tiles


def overlaps(*f1: float | None) -> list[MeasuredOverlap]:
    seams = (0.97, 0.985, 0.99, 0.992)
    sides = (0, 16, 32, 64)
    return [MeasuredOverlap(o, 1 + o / 64, f, s) for o, f, s in zip(sides, f1, seams, strict=True)]


def test_page_shows_each_overlap_and_marks_the_chosen_one() -> None:
    measured = overlaps(0.7, 0.74, 0.75, 0.75)
    page = Page(page_of(data_of(report_of([parity([0, 0])]), overlaps=measured, overlap=32)))
    assert "Overlap of tiles" in page.text and "32 1.50 times 0.7500 99.00 % chosen" in page.text.replace("\xa0", " ")
    assert page.texts.count("chosen") == 1
    circles = [attributes for tag, attributes in page.tags if tag == "circle" and "cx" in attributes]
    assert sum(circle.get("class") == "chosen" for circle in circles) == 2, "in both curves"


def test_page_without_measured_overlaps_has_no_such_section() -> None:
    assert "Overlap of tiles" not in page_of(data_of(report_of([parity([0, 0])])))


def test_curves_rise_with_the_values_and_lie_within_the_plot() -> None:
    f1, seams = of_overlaps(overlaps(0.7, 0.74, 0.75, 0.75), 32)
    assert [point.y for point in f1.points] == sorted((point.y for point in f1.points), reverse=True)
    assert [point.x for point in f1.points] == [point.x for point in seams.points]
    ticks = [[text.replace("\xa0", " ") for _, text in curve.ticks] for curve in (f1, seams)]
    assert ticks == [["0.7000", "0.7500"], ["97.00 %", "99.20 %"]]
    for curve in (f1, seams):
        assert all(curve.left < point.x < curve.right and 14 < point.y < curve.bottom for point in curve.points)


def test_undefined_f1_and_equal_values_are_drawn() -> None:
    (seams,) = of_overlaps([MeasuredOverlap(o, 1.0, None, 1.0) for o in (0, 8)], 0)
    assert seams.title == "Seam agreement by overlap in px" and len({point.y for point in seams.points}) == 1
    assert len(seams.ticks) == 1
