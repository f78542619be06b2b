"""Writes the verdicts as JUnit XML, as read by Jenkins and GitLab: each engine is a test case."""

from __future__ import annotations

import re
from typing import Literal
from xml.etree import ElementTree
from xml.etree.ElementTree import Element, SubElement

from misgnet_runtime.accuracy.parity import EngineParity, ParityReport

SUITE = "misgnet parity"
Outcome = Literal["passed", "skipped", "failure"]

_NOT_XML = re.compile("[^\t\n\r\x20-\x7e\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def junit_xml(report: ParityReport, *, accept_proxy: bool = False) -> bytes:
    """Returns UTF-8 XML with one test case per engine: failed by its verdict, skipped if nothing was verified.

    Skipped are engines that have no verdict and, unless ``accept_proxy``, engines that pass only by proxy.
    """
    outcomes = [_outcome(engine, accept_proxy) for engine in report.engines]
    counts = {
        "tests": str(len(outcomes)),
        "failures": str(outcomes.count("failure")),
        "errors": "0",
        "skipped": str(outcomes.count("skipped")),
    }
    suites = Element("testsuites", {"name": SUITE, **counts})
    suite = SubElement(suites, "testsuite", {"name": SUITE, **counts})
    _add_properties(suite, _suite_properties(report))
    for engine, outcome in zip(report.engines, outcomes, strict=True):
        _add_case(suite, engine, outcome)
    ElementTree.indent(suites)
    text: bytes = ElementTree.tostring(suites, encoding="utf-8", xml_declaration=True)
    return text + b"\n"


def _suite_properties(report: ParityReport) -> dict[str, object]:
    return {
        "reference": report.reference, "evaluation_sha256": report.evaluation_sha256, "tiles": report.tiles,
        "sources": report.sources, "threshold": report.threshold, "max_f1_drop": report.max_f1_drop,
        "min_f1_ratio": report.min_f1_ratio, "gate": report.gate,
        **{f"reference_{name}": value for name, value in report.reference_scores.items()},
    }  # fmt: skip


def _outcome(engine: EngineParity, accept_proxy: bool) -> Outcome:
    if engine.verdict is None:
        return "skipped"
    if not engine.verdict.passed:
        return "failure"
    return "skipped" if engine.status == "proxy" and not accept_proxy else "passed"


def _add_case(suite: Element, engine: EngineParity, outcome: Outcome) -> None:
    case = SubElement(suite, "testcase", {"classname": "misgnet.parity", "name": _clean(engine.engine)})
    _add_properties(case, _case_properties(engine))
    by_proxy = f"evaluated only by proxy, its graph in ONNX Runtime: {engine.reason}"
    if outcome == "skipped":
        message = engine.reason or engine.status
        if engine.verdict is not None:
            message = f"{by_proxy}; {engine.verdict.reason}; --accept-proxy counts this as passed"
        SubElement(case, "skipped", {"message": _clean(message)})
    elif outcome == "failure" and engine.verdict is not None:
        why = {"type": engine.verdict.rule, "message": _clean(engine.verdict.reason)}
        failure = SubElement(case, "failure", why)
        failure.text = _clean("\n".join(["Tiles that differ most:", *engine.worst_tiles]))
    if engine.status == "proxy":
        SubElement(case, "system-out").text = _clean(by_proxy)


def _case_properties(engine: EngineParity) -> dict[str, object]:
    found: dict[str, object] = {"status": engine.status, "device": engine.device}
    found |= {"engine_precision": engine.precision, **engine.scores}
    found |= {"f1_drop_points": engine.f1_drop_points, "f1_ratio": engine.f1_ratio, "agreement": engine.agreement}
    if engine.interval is not None:
        ends = engine.interval
        found |= {"f1_drop_low": ends.low, "f1_drop_high": ends.high, "f1_drop_sources": ends.sources}
    if engine.ratio_interval is not None:
        found |= {"f1_ratio_low": engine.ratio_interval.low, "f1_ratio_high": engine.ratio_interval.high}
    return found


def _add_properties(parent: Element, values: dict[str, object]) -> None:
    """Adds known values as properties; leaves out None and ""."""
    properties = SubElement(parent, "properties")
    for name, value in values.items():
        if value is not None and value != "":
            SubElement(properties, "property", {"name": name, "value": _clean(str(value))})


def _clean(text: str) -> str:
    """Removes the characters that XML 1.0 forbids or discourages."""
    return _NOT_XML.sub("", text)
