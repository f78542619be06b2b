"""Tests that an engine evaluated only by proxy counts as passed in JUnit XML only with --accept-proxy."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import pytest

from misgnet_export.cli import main as cli
from misgnet_runtime.accuracy.parity import EngineParity, ParityReport, compare
from support.commands import exit_code
from support.reports import LIMIT, REASON, not_run, parity, report_of, side


def by_proxy(wrong: int, engine: str) -> EngineParity:
    found = side([0] * 4), side([wrong] * 4)
    return compare(engine, "int8", *found, LIMIT, device="CPU", status="proxy", reason=REASON)


ENGINES = [parity([0, 1, 0, 0]), by_proxy(0, "rtx"), by_proxy(30, "trt"), not_run("jetson")]


def run_parity(monkeypatch: pytest.MonkeyPatch, path: Path, report: ParityReport, *words: object) -> int:
    monkeypatch.setattr("misgnet_export.pipeline.reparity.reparity", lambda *_: report)
    return exit_code(cli.main, "misgnet-export", "parity", "b", "--eval", "e", "--junit", path, *words)


def outcomes(path: Path) -> dict[str, str]:
    """Returns the outcome of each test case; checks that the counts of both enclosing elements agree with them."""
    root = ElementTree.fromstring(path.read_bytes())
    found = {}
    for case in root.iter("testcase"):
        tags = [child.tag for child in case if child.tag in ("failure", "error", "skipped")]
        assert len(tags) < 2
        found[case.get("name", "")] = tags[0] if tags else "passed"
    values = list(found.values())
    counts = [len(values), values.count("failure"), values.count("error"), values.count("skipped")]
    for element in (root, root[0]):
        assert [int(element.get(n, "")) for n in ("tests", "failures", "errors", "skipped")] == counts
    return found


@pytest.mark.parametrize(
    ("words", "proxy"), [((), "skipped"), (("--accept-proxy",), "passed")], ids=["default", "accepted"]
)
def test_passing_proxy_is_skipped_unless_accepted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], proxy: str
) -> None:
    path = tmp_path / "junit.xml"
    assert run_parity(monkeypatch, path, report_of(ENGINES), *words) == 3  # the other proxy fails the gate
    assert outcomes(path) == {"cpu": "passed", "rtx": proxy, "trt": "failure", "jetson": "skipped"}


def test_skip_message_gives_reason_and_accept_option(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "junit.xml"
    assert run_parity(monkeypatch, path, report_of(ENGINES[:2])) == 0
    (skipped,) = ElementTree.fromstring(path.read_bytes()).iter("skipped")
    message = skipped.get("message", "")
    assert all(part in message for part in ("only by proxy", REASON, "within the allowed 1", "--accept-proxy"))


def test_existing_results_are_kept_unless_forced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "junit.xml"

    def prove(*_: object) -> ParityReport:
        path.write_text("another run's")
        return report_of(ENGINES[:1])

    monkeypatch.setattr("misgnet_export.pipeline.reparity.reparity", prove)
    command = ["misgnet-export", "parity", "b", "--eval", "e", "--junit", str(path)]
    assert exit_code(cli.main, *command) == 2
    assert path.read_text() == "another run's"
    assert "--force" in capsys.readouterr().err
    assert exit_code(cli.main, *command, "--force") == 0
    assert outcomes(path) == {"cpu": "passed"}
