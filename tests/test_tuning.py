"""``misgnet-run tune``: what is tried, when it is taken, where it is kept, and that what is no use breaks nothing."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from msgspec.structs import replace

from bundles import FLOAT, INT8, INTERFACE, RTX, SPLIT_FLOAT, FakeEngine, images, make_bundle, write_image
from commands import exit_code
from misgnet_runtime import log, open_bundle
from misgnet_runtime.bundle.manifest import EngineEntry
from misgnet_runtime.bundle.reader import Bundle, read_bundle
from misgnet_runtime.cli import main as cli
from misgnet_runtime.cli.app import out_console
from misgnet_runtime.engines import EngineSettings, ExecutionOptions
from misgnet_runtime.errors import MisgnetError, StorageError, UsageError
from misgnet_runtime.inference import tuned_store as store
from misgnet_runtime.inference.selection import open_detector
from misgnet_runtime.inference.split_detector import choose_split
from misgnet_runtime.inference.throughput import Task, Timing
from misgnet_runtime.inference.tuned_settings import FORMAT, Found, Goal, Setting, Trial, Tuning
from misgnet_runtime.inference.tuned_store import keep, kept, path_of, place_of, prepare
from misgnet_runtime.jobs.journal import Raw, open_journal
from misgnet_runtime.measure.tuning import candidates, search
from misgnet_runtime.measure.tuning import run as run_module
from misgnet_runtime.measure.tuning.answers import AnswerCheck
from misgnet_runtime.measure.tuning.candidates import changes, default_setting
from misgnet_runtime.measure.tuning.run import TuneReport, tune_bundle
from misgnet_runtime.measure.tuning.search import Budget, Compare, Comparison, find_setting, gain_and_spread
from misgnet_runtime.storage.private import PrivateFolder, cache_folder

OPENVINO = EngineEntry("openvino", "openvino", FLOAT.file, FLOAT.file, "float32", "any")
ONE, MANY = Setting(2, 1, 1), Setting(2, 2, 1)
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(autouse=True)
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Four cores, whatever this machine has, and a cache of its own; words are for a person."""
    log.use("text")
    monkeypatch.setenv("MISGNET_CACHE", str(tmp_path / "cache"))
    for name in ("engines", "measure.tuning.candidates", "inference.tuned_store"):
        monkeypatch.setattr(f"misgnet_runtime.{name}.usable_cores", lambda: 4)


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return read_bundle(make_bundle(tmp_path / "bundle", engines=[FLOAT, INT8, RTX]))


def tuned(bundle: Bundle, latency: Setting = ONE, throughput: Setting = MANY, entry: EngineEntry = FLOAT) -> Tuning:
    place = place_of(bundle, entry)
    return Tuning(FORMAT, "2026-01-01T00:00:00+00:00", place, Found(latency, 0.25), Found(throughput), [])


# What is tried


def words(entry: EngineEntry, goal: Goal, start: Setting | None = None, largest: int = 16) -> list[str]:
    start = start or default_setting(entry, goal, largest)
    found = [change(start) for change in changes(entry, goal, largest)]
    return [setting.words() for setting in found if setting != start]


def test_defaults_are_what_is_used_without_tuning(bundle: Bundle) -> None:
    assert default_setting(FLOAT, "latency", 16) == Setting(4, 1, 1)
    assert default_setting(FLOAT, "throughput", 16) == Setting(4, 4, 1)
    assert default_setting(RTX, "throughput", 16) == Setting(None, 2, 4)
    assert default_setting(RTX, "throughput", 2) == Setting(None, 2, 2)
    with open_detector(bundle, "cpu") as (detector, _, _):
        assert detector.engine.streams == 4


def test_one_pair_at_a_time() -> None:
    one = "in 1 stream, batch 1"
    assert words(FLOAT, "latency") == [
        f"2 threads {one}", f"3 threads {one}", f"4 threads {one}, no spinning", f"4 threads {one}, no arena",
    ]  # fmt: skip
    assert words(RTX, "latency") == []


def test_many_at_once() -> None:
    four = "4 threads in 4 streams"
    assert words(FLOAT, "throughput") == [
        *(f"4 threads in {n} stream{'s' * (n > 1)}, batch 1" for n in (1, 2, 3)),
        f"{four}, batch 1, no arena", f"{four}, batch 2", f"{four}, batch 4",
    ]  # fmt: skip
    assert "3 threads in 2 streams, batch 1" in words(FLOAT, "throughput", Setting(4, 2, 1))
    assert "4 threads in 2 streams, batch 1, no spinning" in words(FLOAT, "throughput", Setting(4, 2, 1))
    assert words(RTX, "throughput", largest=8) == [
        "1 stream, batch 4", "3 streams, batch 4", "4 streams, batch 4", "2 streams, batch 1", "2 streams, batch 2",
        "2 streams, batch 8",
    ]  # fmt: skip


@pytest.mark.parametrize(("active", "tried"), [(1, True), (0, False), (None, False)])
def test_second_threads_of_cores_are_tried_where_there_are_any(
    monkeypatch: pytest.MonkeyPatch, active: int | None, tried: bool
) -> None:
    monkeypatch.setattr(candidates, "read_int", lambda path: active)
    found = words(OPENVINO, "latency")
    assert "4 threads in 1 stream, batch 1, pinning" in found
    assert ("4 threads in 1 stream, batch 1, hyper-threading" in found) is tried
    assert not any("spinning" in word or "arena" in word for word in found)


# When it is taken


def judged(gains: dict[str, float]) -> tuple[Compare, list[tuple[str, str, bool]]]:
    """A comparison that takes what has a gain, and what it was asked for."""
    asked: list[tuple[str, str, bool]] = []

    def compare(setting: Setting, against: Setting, always: bool) -> Trial:
        asked.append((setting.words(), against.words(), always))
        gain = gains.get(setting.words(), -0.1)
        return Trial("latency", setting, against, 1.0, 1.0, gain, 0.01, taken=gain > 0)

    return compare, asked


def test_each_change_is_tried_on_the_best_so_far_which_then_meets_the_default() -> None:
    default, arena, three = Setting(4, 1, 1), "no arena", "3 threads in 1 stream, batch 1"
    compare, asked = judged({three: 0.2, f"{three}, {arena}": 0.3})
    found, trials = find_setting(default, changes(FLOAT, "latency", 4), compare)
    best = f"{three}, {arena}"
    assert asked == [
        ("2 threads in 1 stream, batch 1", default.words(), False), (three, default.words(), False),
        (f"{three}, no spinning", three, False), (best, three, False), (best, default.words(), True),
    ]  # fmt: skip
    assert (found.setting.words(), found.gain) == (best, 0.3) and len(trials) == 5
    assert found.words() == f"{best}, 1.30 times as fast"


def test_the_default_stays_where_nothing_is_better_or_where_it_was_luck() -> None:
    default = Setting(4, 1, 1)
    found, trials = find_setting(default, changes(FLOAT, "latency", 4), judged({})[0])
    assert found == Found(default) and not any(trial.taken for trial in trials)
    assert found.words() == "4 threads in 1 stream, batch 1, as without tuning"

    def lucky_once(setting: Setting, against: Setting, _: bool, seen: list[Setting] = []) -> Trial:  # noqa: B006
        seen.append(setting)
        return Trial("latency", setting, against, taken=seen.count(setting) == 1 and len(seen) == 1)

    found, trials = find_setting(default, changes(FLOAT, "latency", 4), lucky_once)
    assert found == Found(default) and trials[0].taken and trials[-1].against == default


def test_gain_and_spread_are_of_rounds_side_by_side() -> None:
    """A machine that halves its speed in between changes neither."""
    ours, theirs = [11.0, 5.5, 11.0, 5.5, 11.0, 5.5, 11.0], [10.0, 5.0, 10.0, 5.0, 10.0, 5.0, 10.0]
    assert gain_and_spread(ours, theirs) == (pytest.approx(0.1), pytest.approx(0))
    assert gain_and_spread([9.0, 10.0, 11.0, 12.0, 13.0], [10.0] * 5) == (pytest.approx(0.1), pytest.approx(0.2))


def timings(tasks: Sequence[Task], speed: Callable[[Task], list[float]]) -> list[Timing]:
    return [Timing(t.name, t.precision, t.batch, 9, 1.0, 1.0, 1.0, 9.0, rounds=speed(t)) for t in tasks]


def comparison(bundle: Bundle, seconds: float = 60, problem: str | None = None) -> Comparison:
    budget = Budget(search.time.monotonic() + seconds, 1)
    return Comparison(bundle, FLOAT, "latency", budget, lambda setting: problem)


@pytest.mark.parametrize(
    ("rounds", "problem", "taken"),
    [
        ([11.0] * 7, None, True), ([11.0, 13.0, 10.0, 12.0, 9.0, 14.0, 11.0], None, False),
        ([9.0] * 7, "never asked", False), ([11.0] * 7, "answers differ", False),
    ],
)  # fmt: skip
def test_a_setting_is_taken_where_it_is_faster_by_more_than_the_spread_and_answers_stay(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, rounds: list[float], problem: str | None, taken: bool
) -> None:
    def measure(tasks: Sequence[Task], seconds: float, rounds_: int = 0, **_: object) -> list[Timing]:
        assert [(task.threads, task.settings.arena) for task in tasks] == [(1, False), (2, True)]
        return timings(tasks, lambda task: rounds if task.threads == 1 else [10.0] * 7)

    monkeypatch.setattr(search, "measure", measure)
    trial = comparison(bundle, problem=problem)(Setting(1, 1, 1, EngineSettings(arena=False)), ONE, False)
    assert trial.taken is taken
    assert trial.remark == (problem if problem == "answers differ" else "")
    assert (trial.pairs_per_second, trial.against_pairs_per_second) == (np.median(rounds), 10.0)


def test_what_cannot_be_measured_is_noted(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch too large for the memory ends its own process, and not the tuning."""

    def measure(*_: object, **__: object) -> list[Timing]:
        raise MisgnetError("the benchmark of cpu at batch 16 ended early: no message")

    monkeypatch.setattr(search, "measure", measure)
    trial = comparison(bundle)(MANY, ONE, False)
    assert not trial.taken and trial.remark.startswith("not measured: the benchmark of cpu at batch 16 ended early")
    trial = comparison(bundle, seconds=0.9)(MANY, ONE, False)
    assert not trial.taken and trial.verdict() == "not measured: no time was left"
    assert "ended early" in comparison(bundle, seconds=0.9)(MANY, ONE, True).remark


def test_time_is_shared_out_to_the_comparisons_that_are_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search.time, "monotonic", lambda: 100.0)
    budget = Budget(160.0, 3)
    assert budget.share() == 10.0
    budget.overhead = 26.0
    assert budget.share() == 2.0
    assert budget.share() == 17.0 and not budget.is_over()
    budget.overhead = 59.5
    assert budget.share() == 0.5 and budget.is_over()


# Answers


def test_answers_are_checked_in_whole_batches_and_by_parts(tmp_path: Path) -> None:
    bundle = read_bundle(make_bundle(tmp_path / "split", engines=[SPLIT_FLOAT]))
    check = AnswerCheck(bundle, SPLIT_FLOAT, Setting(1, 1, 1))
    assert check.problem(Setting(2, 2, 4, EngineSettings(spinning=False, arena=False))) is None
    assert "a batch of 5 does not fit" in str(check.problem(Setting(1, 1, 5)))


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda found: 1 - found, "agree with the golden tiles in only"),
        (lambda found: found * np.nan, "agree with the golden tiles in only 0.00 %"),
        (lambda found: np.where(np.arange(found.size).reshape(found.shape) % 100 == 0, 1 - found, found),
         "agree with those of the default in only 99.0"),
    ],
)  # fmt: skip
def test_other_answers_are_a_problem(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, change: Callable[[Any], Any], problem: str
) -> None:
    class Other(FakeEngine):
        def _infer(self, lane: Any, arrays: Any, batch: int) -> Any:
            (found,) = super()._infer(lane, arrays, batch).values()
            return {"probability": (change(found) if batch > 1 else found).astype(np.float32)}

    monkeypatch.setattr("misgnet_runtime.inference.tuned_use.open_engine_file", lambda *_, **__: Other(INTERFACE))
    assert problem in str(AnswerCheck(bundle, FLOAT, ONE).problem(Setting(2, 1, 3)))


# What is kept


def test_the_cache_is_where_the_user_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    monkeypatch.setenv("HOME", "/home/one")
    assert cache_folder() == Path(os.environ["MISGNET_CACHE"])
    monkeypatch.delenv("MISGNET_CACHE")
    assert cache_folder() == Path("/x/misgnet")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path("/home/one/.cache/misgnet")


def test_what_was_kept_is_found_again_for_that_engine_alone(bundle: Bundle, tmp_path: Path) -> None:
    assert kept(bundle, FLOAT) is None
    path = keep(tuned(bundle))
    assert path.parent == tmp_path / "cache" / "tuning" and not list(bundle.path.glob("**/*tuning*"))
    assert kept(bundle, FLOAT) == tuned(bundle)
    assert kept(bundle, INT8) is None
    assert kept(read_bundle(make_bundle(tmp_path / "other")), FLOAT) is None


def test_another_machine_has_a_file_of_its_own(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    keep(tuned(bundle))
    monkeypatch.setattr(store, "usable_cores", lambda: 2)
    assert kept(bundle, FLOAT) is None
    monkeypatch.setattr(store, "usable_cores", lambda: 4)
    monkeypatch.setattr(store, "describe_machine", lambda: {"processor": "another"})
    assert kept(bundle, FLOAT) is None


def damage(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], object]:
    def damaged(path: Path) -> None:
        values = json.loads(path.read_bytes().split(b"\n", 1)[1])
        change(values)
        PrivateFolder(path.parent).write_sealed(path.name, json.dumps(values).encode())

    return damaged


def pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda path: path.write_bytes(b""), "is not used: "),
        (lambda path: path.write_bytes(b"\xff{"), "is not used: "),
        (lambda path: path.write_bytes(b"[" * 100_000), "is not used: "),
        (lambda path: path.write_bytes(b" " * (1 << 21)), "larger than 1048641 bytes"),
        (lambda path: path.write_bytes(path.read_bytes()[:-20]), "its digest is not that of what it holds"),
        (lambda path: path.parent.chmod(0o750), "is open to others (mode 0750)"),
        (pipe, "it is no file"),
        (damage(lambda v: v.update(format=0)), "it has format 0, this version reads 1"),
        (damage(lambda v: v["place"].update(library="onnxruntime 1.0")), "measured with onnxruntime 1.0, here is onnx"),
        (damage(lambda v: v["place"].update(engine="cpu")), "of another bundle, engine or machine"),
        (damage(lambda v: v["throughput"]["setting"].update(batch=5)), "settings that this machine cannot run"),
        (damage(lambda v: v["throughput"]["setting"].update(streams=5)), "settings that this machine cannot run"),
        (damage(lambda v: v["latency"]["setting"].update(threads=5)), "settings that this machine cannot run"),
        (damage(lambda v: v["latency"]["setting"].update(threads=0)), "is not used: "),
        (damage(lambda v: v.pop("throughput")), "is not used: "),
    ],
)
def test_what_is_no_use_is_told_and_passed_over(
    bundle: Bundle, capsys: pytest.CaptureFixture[str], change: Callable[[Path], object], problem: str
) -> None:
    change(keep(tuned(bundle)))
    with open_detector(bundle, FLOAT.name, goal="throughput") as (detector, _, reason):
        assert (reason, detector.engine.streams, detector.batch) == ("as asked", 4, None)
    told = capsys.readouterr().err
    assert told.startswith("warning: the tuning of cpu-float32 in ") and told.count("\n") == 1
    assert problem in told and f"run misgnet-run tune {bundle.path}" in told


def test_a_cache_that_cannot_be_written_is_told_before_anything_is_measured(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(StorageError, match=r"nothing can be kept in .*: .*; name another folder in MISGNET_CACHE"):
        tune_bundle(bundle.path)
    (tmp_path / "cache").unlink()
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(StorageError, match="no right to write there"):
        prepare()


# What is used


def test_what_is_asked_for_comes_before_what_was_tuned(bundle: Bundle) -> None:
    keep(tuned(bundle, throughput=Setting(3, 2, 4, EngineSettings(arena=False))))
    many = "3 threads in 2 streams, batch 4, no arena"
    for (*asked, goal), streams, batch, said in (
        ((None, None, None, "throughput"), 2, 4, f"as asked; tuned here: {many}"),
        ((3, None, None, "throughput"), 3, 4, "as asked; tuned here with what was asked for: 3 threads in 3 streams, "),
        ((None, None, 1, "throughput"), 2, 1, "as asked; tuned here with what was asked for: 3 threads in 2 streams, "),
        ((1, None, None, "latency"), 1, 1, "as asked; tuned here: 2 threads in 1 stream, batch 1"),
        ((1, None, None, None), 1, None, "as asked"),
    ):  # fmt: skip
        execution = ExecutionOptions(**dict(zip(("streams", "threads", "batch"), asked, strict=True)))  # type: ignore[arg-type]
        with open_detector(bundle, FLOAT.name, execution, goal=goal) as (detector, _, reason):  # type: ignore[arg-type]
            assert (detector.engine.streams, detector.batch) == (streams, batch) and reason.startswith(said)


def test_the_parts_of_a_split_engine_are_used_as_the_whole(tmp_path: Path) -> None:
    bundle = read_bundle(make_bundle(tmp_path / "split", engines=[SPLIT_FLOAT]))
    keep(tuned(bundle, throughput=Setting(4, 3, 2), entry=SPLIT_FLOAT))
    with choose_split(bundle, goal="throughput") as (parts, _, reason):
        assert (parts.encoder.streams, parts.head.streams, parts.batch) == (3, 3, 2)
        assert reason.endswith("; tuned here: 4 threads in 3 streams, batch 2")
    with choose_split(bundle) as (parts, _, _):
        assert (parts.encoder.streams, parts.batch) == (4, None)


def test_an_open_bundle_says_what_was_tuned(bundle: Bundle) -> None:
    keep(tuned(bundle, throughput=Setting(2, 2, 4)))
    for streams, on, said in ((1, True, "1 stream, batch 1"), (2, True, "2 streams, batch 4"), (1, False, "as asked")):
        with open_bundle(bundle.path, FLOAT.name, streams, tuned=on) as session:
            assert session.reason.endswith(said)


def test_a_run_that_was_begun_before_a_tuning_says_how_to_go_on(tmp_path: Path) -> None:
    raw, then = Raw("probability.raw", 2, 4, "a map"), {"--batch": "1", "--streams": "2", "--overlap": "8"}
    output = tmp_path / "change.tif"
    with open_journal(output, raw, then, restart=False) as journal:
        journal.add([np.zeros((1, 4), np.uint8)], ())
    for now, advice in (
        ({"--batch": "4"}, "tune chooses --batch where they are not given: give --batch 1 to resume, or start over"),
        ({"--batch": "4", "--streams": "1"}, "--batch and --streams where .* give --batch 1 --streams 2 to resume"),
        ({"--batch": "4", "--overlap": "16"}, "started with --batch 1, and now it is 4; rerun the same command"),
    ):
        with pytest.raises(UsageError, match=advice), open_journal(output, raw, {**then, **now}, restart=False):
            pass


# The command


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is run: sessions without an arena are half as fast again, batch 2 as well but with doubt."""

    def speed(task: Task) -> list[float]:
        doubt = [0.5, 1.0, 1.5, 2.0, 0.7, 1.2, 2.1] if task.batch == 2 else [1.0] * 7
        return [10 * factor * (1.0 if task.settings.arena else 1.5) for factor in doubt]

    monkeypatch.setattr(search, "measure", lambda tasks, seconds, **_: timings(tasks, speed))


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Run]:
    """A command in this process: exit code, output, errors."""
    monkeypatch.setattr(out_console, "_width", 80)

    def call(*arguments: object) -> tuple[int, str, str]:
        return exit_code(cli.main, "misgnet-run", *arguments), *capsys.readouterr()

    with warnings.catch_warnings():
        yield call
    log.use("text")


def test_the_command_says_what_it_tried_and_later_runs_use_it(
    run: Run, quick: None, bundle: Bundle, tmp_path: Path
) -> None:
    report = tmp_path / "tune.json"
    code, out, err = run("tune", bundle.path, "--json", report)
    assert code == 0 and "…" not in out
    taken = "4 threads in 1 stream, batch 1, no arena"
    assert f"cpu-float32, for one pair: {taken}, 1.50 times as fast" in out
    assert "cpu, for many: 4 threads in 4 streams, batch 1, no arena, 1.50 times as fast" in out
    assert "rtx-sm86: not tuned: " in out and "Medians of 7 rounds" in out
    assert f"cpu-float32, latency: {taken}: taken, +50.0 %, spread 0.0" in err
    assert "batch 2, no arena: not taken, +20.0 %, spread 90.0" in err
    found = msgspec.json.decode(report.read_bytes(), type=TuneReport)
    assert [tuning.place.engine for tuning in found.tunings] == ["cpu", "cpu-float32"]
    assert all(Path(file).is_file() for file in found.files)
    assert f"tuned here for one pair: {taken}, 1.50 times as fast; for many: " in run("info", bundle.path)[1]

    before, after = (write_image(tmp_path / f"{i}.png", pixels) for i, pixels in enumerate(images(70, 50)))
    predict = ("predict", bundle.path, before, after, "-o", tmp_path / "mask.png", "--engine", "cpu", "--force")
    assert f"engine cpu (as asked; tuned here: {taken})" in run(*predict)[1]
    assert "engine cpu (as asked)" in run(*predict, "--no-tuned")[1]


def test_scenes_are_run_as_tuned_for_many(
    run: Run, bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("rasterio", reason="scenes need the [geo] extra")
    from misgnet_runtime.jobs.scene import predict as predict_module
    from scenes import scene, write_raster

    real, used = predict_module.infer, list[tuple[int, int]]()

    def infer(task: Any, *more: Any) -> Any:
        used.append((task.batch, task.streams))
        return real(task, *more)

    monkeypatch.setattr(predict_module, "infer", infer)
    keep(tuned(bundle, throughput=Setting(2, 2, 3)))
    pair = [write_raster(tmp_path / f"{date}.tif", pixels) for date, pixels in zip("ab", scene(100, 90), strict=True)]
    predict = ("predict", bundle.path, *pair, "--engine", FLOAT.name, "--force", "-o", tmp_path / "change.tif")
    assert "(as asked; tuned here: 2 threads in 2 streams, batch 3)" in run(*predict)[1]
    asked = run(*predict, "--batch", 1, "--streams", 1)[1]
    assert "tuned here with what was asked for: 2 threads in 1 stream, batch 1)" in asked
    assert "(as asked)" in run(*predict, "--no-tuned")[1]
    assert used == [(3, 2), (1, 1), (1, 4)]


@pytest.mark.parametrize("load", [0.2, 1.5])
def test_company_on_the_machine_is_told(
    run: Run, quick: None, bundle: Bundle, monkeypatch: pytest.MonkeyPatch, load: float
) -> None:
    monkeypatch.setattr(run_module.os, "getloadavg", lambda: (load, 0.0, 0.0))
    err = run("tune", bundle.path, "--engine", "cpu")[2]
    assert ("warning: 1.5 threads ran here in the last minute" in err) is (load > 1)


def test_folders_are_run_as_tuned_for_many(run: Run, quick: None, bundle: Bundle, tmp_path: Path) -> None:
    keep(tuned(bundle, throughput=Setting(2, 2, 3)))
    for date, pixels in zip("ab", images(70, 50), strict=True):
        write_image(tmp_path / date / "x.png", pixels)
    predict = ("predict", bundle.path, tmp_path / "a", tmp_path / "b", "--engine", FLOAT.name, "-o")
    assert "(as asked; tuned here: 2 threads in 2 streams, batch 3)" in run(*predict, tmp_path / "masks")[1]
    found = run(*predict, tmp_path / "others", "--batch", 1)[1]
    assert "tuned here with what was asked for: 2 threads in 2 streams, batch 1)" in found
    assert "(as asked)" in run(*predict, tmp_path / "more", "--no-tuned")[1]


def test_a_program_gets_one_result(run: Run, quick: None, bundle: Bundle) -> None:
    code, out, err = run("--log", "json", "tune", bundle.path, "--engine", "cpu")
    (result,) = map(json.loads, out.splitlines())
    assert code == 0 and result["tunings"][0]["latency"]["gain"] == pytest.approx(0.5)
    assert {json.loads(line)["event"] for line in err.splitlines()} - {"warning"} == {"note"}


def test_too_little_time_keeps_nothing(run: Run, quick: None, bundle: Bundle) -> None:
    before = keep(tuned(bundle)).read_bytes()
    code, _, err = run("tune", bundle.path, "--engine", FLOAT.name, "--minutes", "0.0001")
    assert code == 2 and "nothing of cpu-float32 could be measured" in err and "give more --minutes" in err
    assert path_of(place_of(bundle, FLOAT)).read_bytes() == before
    for minutes in ("0", "-1", "nan", "inf"):
        assert run("tune", bundle.path, "--minutes", minutes)[0] == 2


def test_an_interruption_says_what_is_kept(
    run: Run, quick: None, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = search.measure

    def measure(tasks: Sequence[Task], seconds: float, **more: Any) -> list[Timing]:
        if tasks[0].name == FLOAT.name:
            raise KeyboardInterrupt
        return real(tasks, seconds, **more)

    monkeypatch.setattr(search, "measure", measure)
    code, _, err = run("tune", bundle.path)
    assert code == 130 and err.endswith("interrupted; what was tuned to its end is kept: cpu\n")
    assert kept(bundle, INT8) and kept(bundle, FLOAT) is None
    assert run("tune", bundle.path, "--engine", FLOAT.name)[2].endswith("interrupted; nothing was left behind\n")


def test_real_processes_are_measured(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, "ROUNDS", 2)
    trial = comparison(bundle, 1.1)(replace(ONE, engine=EngineSettings(arena=False)), ONE, False)
    assert trial.remark == "" and trial.gain is not None and trial.pairs_per_second
