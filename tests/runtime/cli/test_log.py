"""Tests ``--log json``: every line is one object with the documented fields, and nothing else is printed."""

from __future__ import annotations

import json
import logging
import re
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from misgnet_runtime import log
from misgnet_runtime.cli import main as cli
from support.bundles import FLOAT, RTX, expected, images, make_bundle, write_image
from support.commands import exit_code

SIZE = (70, 90)
Objects = list[dict[str, Any]]


@dataclass
class Outcome:
    code: int
    out: str
    error: str

    @property
    def objects(self) -> tuple[Objects, Objects]:
        """Returns the JSON objects of stdout and of stderr."""
        out, error = ([json.loads(line) for line in text.splitlines()] for text in (self.out, self.error))
        return out, error


@pytest.fixture(autouse=True)
def text_again() -> Iterator[None]:
    with warnings.catch_warnings():
        yield
    log.use_level(logging.INFO)
    log.use_timestamps(False)
    log.use("text")


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Any:
    def run(*words: object) -> Outcome:
        return Outcome(exit_code(cli.main, "misgnet-run", *words), *capsys.readouterr())

    return run


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path, Path]:
    """Returns a bundle and two images."""
    before, after = (write_image(tmp_path / f"{i}.png", pixels) for i, pixels in enumerate(images(*SIZE)))
    return make_bundle(tmp_path / "bundle", engines=[FLOAT, RTX]), before, after


def test_a_result_event_holds_numbers(pair: tuple[Path, ...], call: Any, tmp_path: Path) -> None:
    outcome = call("--log", "json", "predict", *pair, "-o", tmp_path / "m.png", "--engine", "cpu-float32")
    (found,), logged = outcome.objects
    assert (outcome.code, logged) == (0, [])
    time = datetime.fromisoformat(found.pop("time").replace("Z", "+00:00"))
    assert time.utcoffset() == timedelta(0)
    share = float((expected(*images(*SIZE)) > 0.5).mean())
    assert f"90 x 70 px, {100 * share:.2f} % changed" in found.pop("message")
    assert found == {
        "level": "info", "event": "result", "output": str(tmp_path / "m.png"), "height": 70, "width": 90,
        "changed_share": share, "engine": "cpu-float32", "reason": "as requested", "valid_share": 1.0,
    }  # fmt: skip


@pytest.mark.parametrize("words", [("--log", "json"), ("--log=json",)])
@pytest.mark.parametrize("place", [0, 1, 2, 4])
def test_log_option_is_accepted_before_and_after_the_command(call: Any, words: tuple[str, ...], place: int) -> None:
    command = ["verify", "/nowhere", "--engine", "x"]
    command[place:place] = words
    outcome = call(*command)
    out, (logged,) = outcome.objects
    assert (outcome.code, out) == (4, [])
    logged.pop("time")
    message = "/nowhere is not a bundle: there is no such folder"
    assert logged == {"level": "error", "event": "error", "message": message, "kind": "InputError", "exit_code": 4}


def test_arguments_after_two_dashes_are_not_options(call: Any) -> None:
    _, (logged,) = call("verify", "--log", "json", "--", "--log").objects
    assert logged["message"] == "--log is not a bundle: there is no such folder"
    assert call("verify", "x", "--log").code == 2


def test_the_next_command_logs_text_again(call: Any) -> None:
    assert call("info", "/nowhere", "--log", "json").error.startswith("{")
    assert call("info", "/nowhere").error.startswith("error: ")


def test_the_log_option_after_the_command_takes_precedence(call: Any) -> None:
    assert call("--log", "json", "info", "/nowhere", "--log", "text").error.startswith("error: ")
    assert call("--log", "text", "info", "/nowhere", "--log", "json").error.startswith("{")


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (["--bogus", "info", "x"], "--bogus"),
        (["predict"], "missing: BUNDLE"),
        (["info", "x", "--nonsense"], "--nonsense"),
        (["watsh"], "watsh"),
    ],
)
def test_an_invalid_call_is_a_json_object(call: Any, command: list[str], words: str) -> None:
    outcome = call(*command, "--log", "json")
    _, (logged,) = outcome.objects
    assert (outcome.code, logged["kind"], logged["exit_code"]) == (2, "UsageError", 2)
    assert words in logged["message"]
    assert call(*command).code == 2


def test_an_unknown_log_format_is_refused(call: Any) -> None:
    outcome = call("info", "x", "--log", "xml")
    assert outcome.code == 2 and "xml" in outcome.error


def test_verify_and_info_print_json_objects(pair: tuple[Path, ...], call: Any) -> None:
    out, logged = call("verify", pair[0], "--log", "json").objects
    assert [o["event"] for o in out] == ["result"] * 3 and logged == []
    assert out[0]["message"] == "5 files match their digests"
    ((found,), _) = call("info", pair[0], "--log", "json").objects
    assert found["manifest"]["tile"] == 64
    here = {engine.pop("name"): engine for engine in found["engines"]}
    assert here["cpu-float32"] == {
        "precision": "float32", "split": False, "made_for": "any processor", "f1": 0.9, "f1_ratio": None,
        "f1_drop_points": 0.1, "runs": True, "device": "CPU", "notes": [], "tuned": None, "reason": None,
        "detail": None,
    }  # fmt: skip
    gpu = here["rtx-sm86"]
    assert (gpu["runs"], gpu["device"]) == (False, None) and len(gpu["reason"]) < len(gpu["detail"])
    selected = {"engine": "cpu-float32", "reason": "fastest that runs here"}
    assert found["auto"] == {"latency": selected, "throughput": selected}
    assert found["message"] == f"bundle {pair[0]}: auto selects cpu-float32: fastest that runs here"


def interrupted(*_: object, **__: object) -> None:
    raise KeyboardInterrupt("a part is kept")


def test_an_interruption_reports_the_saved_progress(
    pair: tuple[Path, ...], call: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("misgnet_runtime.jobs.image.predict_files", interrupted)
    command = ("predict", *pair, "-o", tmp_path / "m.png")
    outcome = call(*command)
    assert (outcome.code, outcome.out, outcome.error) == (130, "", "interrupted; a part is kept\n")
    outcome = call(*command, "--log", "json")
    _, (logged,) = outcome.objects
    assert (outcome.code, logged["kind"], logged["message"]) == (130, "interrupted", "interrupted; a part is kept")


def test_a_bug_is_one_object(
    pair: tuple[Path, ...], call: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("misgnet_runtime.jobs.image.predict_files", lambda *_, **__: 1 / 0)
    outcome = call("predict", *pair, "-o", tmp_path / "m.png", "--log", "json")
    _, (logged,) = outcome.objects
    assert (outcome.code, logged["kind"], logged["exit_code"]) == (1, "ZeroDivisionError", 1)
    assert "test_log.py" in logged["traceback"]
    monkeypatch.setattr(sys, "argv", ["misgnet-run", "predict", *map(str, pair), "-o", str(tmp_path / "m.png")])
    with pytest.raises(ZeroDivisionError):
        cli.main()


# --- levels and times


def test_quiet_drops_notes_and_progress_but_no_results_and_warnings(capsys: pytest.CaptureFixture[str]) -> None:
    for form, sizes in (("text", (1, 2)), ("json", (1, 2))):
        log.use(form)  # type: ignore[arg-type]
        log.use_level(logging.WARNING)
        logged = log.current()
        logged.debug("debug")
        logged.info("note")
        with logged.progress("tiles") as progress:
            progress(1, 2)
        logged.warning("warning")
        logged.error("error")
        logged.result(["result"])
        out, error = capsys.readouterr()
        assert (len(out.splitlines()), len(error.splitlines())) == sizes, (out, error)


@pytest.mark.parametrize("words", [("-v", "verify", "{}"), ("verify", "{}", "-v"), ("verify", "--verbose", "{}")])
def test_verbose_says_what_is_done_and_how_long_it_takes(
    pair: tuple[Path, ...], call: Any, words: tuple[str, ...]
) -> None:
    outcome = call(*(word.format(pair[0]) for word in words), "--engine", "cpu-float32", "--log", "json")
    out, logged = outcome.objects
    assert len(out) == 2 and {(one["level"], one["event"]) for one in logged} == {("debug", "debug")}
    read, opened, took = logged
    assert read["message"].startswith(f"read bundle {pair[0]} in ") and took["message"].startswith("verify took ")
    assert opened["engine"] == "cpu-float32" and opened["seconds"] >= 0


def test_quiet_commands_print_only_their_result(pair: tuple[Path, ...], call: Any, tmp_path: Path) -> None:
    outcome = call("predict", *pair, "-o", tmp_path / "m.png", "-q")
    assert (outcome.code, len(outcome.out.splitlines()), outcome.error) == (0, 1, "")
    assert call("predict", *pair, "-o", tmp_path / "n.png").error != ""  # an engine cannot run here


def test_the_last_of_quiet_and_verbose_holds(pair: tuple[Path, ...], call: Any) -> None:
    words = ("verify", pair[0], "--engine", "cpu-float32")
    assert call("-q", *words, "-v").error != "" and call("-v", *words, "-q").error == ""
    assert call(*words).error == ""  # the next command has the default again


def test_timestamps_start_each_line_of_text(pair: tuple[Path, ...], call: Any) -> None:
    outcome = call("verify", pair[0], "--engine", "cpu-float32", "-v", "--timestamps")
    lines = [*outcome.out.splitlines(), *outcome.error.splitlines()]
    assert len(lines) == 5
    for line in lines:
        time = datetime.fromisoformat(line.split(" ")[0].replace("Z", "+00:00"))
        assert time.utcoffset() == timedelta(0)
    log.use("text")
    log.use_timestamps(True)
    log.current().result(["one", "two"])
    *both, digests, _ = call("verify", pair[0], "--engine", "cpu-float32").out.splitlines()
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\dT[\d:.]{12}Z (one|two)", line) for line in both)
    assert digests == "5 files match their digests"  # the next command has the default again


def test_progress_comes_once_a_second(capsys: pytest.CaptureFixture[str]) -> None:
    now = 100.0
    log.use("json")
    with log.current().progress("tiles", clock=lambda: now) as progress:
        for step in range(10):
            progress(step, 9)
            now += 0.25
    logged = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert [(t["event"], t["steps"], t["total"]) for t in logged] == [("progress", "tiles", 9)] * 3
    assert [t["done"] for t in logged] == [0, 4, 8]


def test_warnings_have_their_level(capsys: pytest.CaptureFixture[str]) -> None:
    log.use("json")
    log.current().warning("look", pair="a")
    log.current().info("look", pair="a")
    warnings.warn("from a library", stacklevel=1)
    logged = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert [(t["level"], t["event"], t["message"]) for t in logged] == [
        ("warning", "warning", "look"), ("info", "note", "look"), ("warning", "warning", "from a library"),
    ]  # fmt: skip
    assert logged[0]["pair"] == "a"


def test_values_that_are_not_numbers_are_null(capsys: pytest.CaptureFixture[str]) -> None:
    log.use("json")
    log.current().result(["one", "two"], share=float("nan"), where=Path("x"), both=(1, 2))
    (found,) = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert (found["message"], found["share"], found["where"], found["both"]) == ("one; two", None, "x", [1, 2])


def test_a_log_remembers_its_own_warnings() -> None:
    outer, records = log.collector()
    first = outer.remembering(["earlier"])
    first.info("a note")
    first.bind(pair="a").warning("of %s", "a pair")
    second = outer.remembering(first.warnings or ())
    second.warning("later")
    first.error("failed")
    assert second.warnings == ["earlier", "of a pair", "later"]
    assert first.warnings == ["earlier", "of a pair", "failed"] and outer.warnings is None
    assert [record.getMessage() for record in records] == ["a note", "of a pair", "later", "failed"]
