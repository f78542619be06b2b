"""Tests how ``misgnet-run compile`` chooses among plans by their speed on the device, and what follows from it."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pytest
from msgspec.structs import replace

from misgnet_runtime import log
from misgnet_runtime.bundle.reader import Bundle, read_bundle
from misgnet_runtime.cli import main as cli
from misgnet_runtime.cli.info import bundle_figures
from misgnet_runtime.engines.options import ExecutionOptions
from misgnet_runtime.engines.tensorrt import compatibility
from misgnet_runtime.engines.tensorrt import open as opening
from misgnet_runtime.engines.tensorrt.plan_cache import PlanStore
from misgnet_runtime.errors import GateFailed, UnavailableError, UsageError
from misgnet_runtime.inference import choice as choice_module
from misgnet_runtime.inference import comparison, tuned
from misgnet_runtime.inference.choice import Choice, kept_choice
from misgnet_runtime.inference.selection import automatic, open_detector
from misgnet_runtime.inference.throughput import Task
from misgnet_runtime.inference.tuned import Scope, Setting, Tuned, Tuning, keep
from misgnet_runtime.jobs.compile import run as run_module
from misgnet_runtime.jobs.compile.options import CompileOptions
from misgnet_runtime.jobs.compile.run import compile_bundle
from misgnet_runtime.storage.private import PrivateFolder
from support import fake_tensorrt
from support.bundles import FLOAT, INT8, TILE, images, make_bundle, write_image
from support.commands import exit_code
from support.device_bundles import DEVICE_FP16, DEVICE_INT8, device_bundle, variants_bundle
from support.fake_cuda import FakeDriver
from support.fake_measure import fake_measure
from support.fake_tensorrt import make_tensorrt

VERSIONS = ("10.3.0", "10.16.1", "11.1.0")
AGX, NANO = "NVIDIA Jetson AGX Orin Developer Kit", "NVIDIA Jetson Orin Nano Developer Kit"
FP16, INT8_PLAN = DEVICE_FP16.name, DEVICE_INT8.name
Speeds = dict[str, tuple[float, float]]  # by engine: pairs/s of one pair, and of many pairs
FASTER_INT8: Speeds = {FP16: (100.0, 200.0), INT8_PLAN: (125.0, 250.0)}
FASTER_FP16: Speeds = {FP16: (125.0, 250.0), INT8_PLAN: (100.0, 200.0)}


@pytest.fixture(autouse=True)
def device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeDriver:
    """Pretends that this machine is a Jetson AGX Orin with TensorRT 10.3 and an empty cache."""
    log.use("text")
    monkeypatch.setenv("MISGNET_CACHE", str(tmp_path / "cache"))
    driver = FakeDriver("sm87", memory=1 << 30)
    for module in (run_module, opening, tuned, choice_module):
        monkeypatch.setattr(module, "open_driver", lambda: driver)
    install("10.3.0", driver, monkeypatch)
    use_board(AGX, monkeypatch)
    return driver


def install(version: str, driver: FakeDriver, monkeypatch: pytest.MonkeyPatch) -> Any:
    module = make_tensorrt(version, driver)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return module


def use_board(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compatibility, "describe_machine", lambda: {"model": model})


def clock(monkeypatch: pytest.MonkeyPatch, speeds: Speeds) -> list[list[Task]]:
    """Makes the engines as fast as ``speeds`` says; returns the tasks of each measurement."""
    return fake_measure(monkeypatch, lambda task: speeds[task.name][task.streams > 1])


def selected(bundle: Path, optimise_for: Literal["latency", "throughput"] | None) -> tuple[str, str]:
    """Returns the engine that "auto" opens, and the reason."""
    with open_detector(read_bundle(bundle), "auto", ExecutionOptions(streams=1), optimise_for=optimise_for) as opened:
        return opened.entry.name, opened.reason


def compiled(bundle: Path, **options: Any) -> Choice:
    return compile_bundle(bundle, CompileOptions(**options)).choice


def chosen(choice: Choice) -> tuple[str, str]:
    return choice.latency.engine, choice.throughput.engine


# Choosing


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(
    ("speeds", "engine", "one", "many"),
    [
        (FASTER_INT8, INT8_PLAN, "INT8 is faster than FP16 here (8.00 against 10.00 ms)",
         "INT8 is faster than FP16 here (4.00 against 5.00 ms)"),
        (FASTER_FP16, FP16, "FP16 is faster than INT8 here (8.00 against 10.00 ms)",
         "FP16 is faster than INT8 here (4.00 against 5.00 ms)"),
        (dict.fromkeys((FP16, INT8_PLAN), (100.0, 200.0)), FP16,
         "neither FP16 nor INT8 is faster here beyond the spread (10.00 against 10.00 ms); FP16 is more accurate",
         "neither FP16 nor INT8 is faster here beyond the spread (5.00 against 5.00 ms); FP16 is more accurate"),
    ],
)  # fmt: skip
def test_the_faster_variant_is_chosen_recorded_and_used(
    tmp_path: Path, device: FakeDriver, monkeypatch: pytest.MonkeyPatch, version: str, speeds: Speeds, engine: str,
    one: str, many: str,
) -> None:  # fmt: skip
    install(version, device, monkeypatch)
    calls = clock(monkeypatch, speeds)
    bundle = variants_bundle(tmp_path / "bundle")
    activations, choice = compile_bundle(bundle, CompileOptions())
    assert {each.slot.engine for each in activations} == {FP16, INT8_PLAN}
    assert [[(task.name, task.streams, task.batch) for task in tasks] for tasks in calls] == [
        [(FP16, 1, 1), (INT8_PLAN, 1, 1)], [(FP16, 2, 4), (INT8_PLAN, 2, 4)],
    ]  # fmt: skip
    assert list(choice.lines()) == [
        f"chosen for one pair: {engine}: {one}",
        f"chosen for many pairs: {engine}: {many}",
    ]
    assert kept_choice(read_bundle(bundle)) == choice
    assert choice.scope.device == f"Fake GPU, {AGX}"
    for variant in choice.variants:
        single, throughput = speeds[variant.engine]
        assert (variant.ms_per_pair, variant.pairs_per_second) == (1000 / single, throughput)
        assert variant.library == f"tensorrt {version}" and variant.gate == "no gate was run"
        assert [len(each.rounds) for each in variant.measurements] == [comparison.ROUNDS] * 2
    for optimise_for in ("latency", "throughput", None):
        assert selected(bundle, optimise_for) == (engine, "chosen by misgnet-run compile")  # type: ignore[arg-type]
    assert device.empty
    for name in (FP16, INT8_PLAN):
        with open_detector(read_bundle(bundle), name, ExecutionOptions(streams=1)) as opened:
            assert opened.entry.name == name, "the other variant can still be requested"


def test_latency_and_throughput_may_have_different_engines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock(monkeypatch, {FP16: (120.0, 200.0), INT8_PLAN: (100.0, 250.0)})
    bundle = variants_bundle(tmp_path / "bundle")
    assert chosen(compiled(bundle)) == (FP16, INT8_PLAN)
    assert selected(bundle, "latency")[0] == FP16 and selected(bundle, "throughput")[0] == INT8_PLAN


def test_int8_must_be_faster_by_more_than_the_spread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    uneven = [100.0, 140.0, 90.0, 150.0, 80.0, 160.0, 110.0]
    fake_measure(monkeypatch, lambda task: 100.0 if task.name == FP16 else uneven)
    choice = compiled(variants_bundle(tmp_path / "bundle"))
    assert chosen(choice) == (FP16, FP16) and choice.latency.why.startswith("neither FP16 nor INT8 is faster here")


def test_a_third_engine_must_beat_the_best_of_the_default_precision(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """INT8 beats one FP16 engine, but not the other one beyond the spread."""
    bundle = variants_bundle(tmp_path / "bundle", more=[replace(DEVICE_FP16, name="b")])
    uneven = [129.0, 131.0, 120.0, 140.0, 129.0, 131.0, 130.0]
    fake_measure(monkeypatch, lambda task: {FP16: 100.0, "b": 130.0}.get(task.name, uneven))
    choice = compiled(bundle)
    assert choice.latency.engine == "b"
    assert choice.latency.why.startswith(
        "neither FP16 nor INT8 is faster here beyond the spread (7.69 against 7.69 ms)"
    )
    fake_measure(monkeypatch, lambda task: {FP16: 100.0, "b": 130.0}.get(task.name, 160.0))
    assert compiled(bundle).latency.why == "INT8 is faster than FP16 here (6.25 against 7.69 ms)"


def test_minutes_are_the_measuring_time_per_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[float] = []

    def measure(tasks: list[Task], seconds: float, *, rounds: int) -> None:
        asked.append(seconds * len(tasks))
        raise UnavailableError("enough")

    monkeypatch.setattr(comparison, "measure", measure)
    compiled(variants_bundle(tmp_path / "bundle"), minutes=2.0)
    assert asked == [120.0, 120.0]
    for minutes in (0.0, float("nan"), 1e9):
        with pytest.raises(UsageError, match="--minutes is"):
            compiled(tmp_path / "bundle", minutes=minutes)


# Each child process starts with this: fakes of CUDA and TensorRT, and a device that is slow in one precision.
START = """
import sys, time
from support.fake_cuda import FakeDriver
from support.fake_tensorrt import make_tensorrt
import misgnet_runtime.engines.cuda as cuda
import misgnet_runtime.engines.tensorrt.open as opening

driver = FakeDriver("sm87")
sys.modules["tensorrt"] = make_tensorrt("10.3.0", driver)
real = opening.open_plan_of

def open_plan_of(entry, *arguments, **named):
    engine = real(entry, *arguments, **named, driver=driver)
    infer = engine.infer
    engine.infer = lambda arrays: (time.sleep(0.02 * (entry.precision == "{slow}")), infer(arrays))[1]
    return engine

opening.open_plan_of = open_plan_of
"""


@pytest.mark.parametrize(
    ("slow", "engine"), [("float16", INT8_PLAN), pytest.param("int8+float16", FP16, marks=pytest.mark.slow)]
)
def test_plans_are_timed_in_processes_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, slow: str, engine: str
) -> None:
    monkeypatch.setattr(opening, "device_name", lambda device: device.name)  # as the child processes see it
    monkeypatch.setattr(choice_module, "device_name", lambda device: device.name)
    (tmp_path / "site").mkdir()
    (tmp_path / "site/sitecustomize.py").write_text(START.format(slow=slow))
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    monkeypatch.setattr(comparison, "ROUNDS", 2)
    monkeypatch.setattr(comparison, "_WARM_UP_SECONDS", 0.1)
    choice = compiled(variants_bundle(tmp_path / "bundle"), minutes=0.001)
    assert chosen(choice) == (engine, engine) and " is faster than " in choice.throughput.why
    figures = {variant.engine: variant for variant in choice.variants}
    slowest = figures[FP16 if engine == INT8_PLAN else INT8_PLAN]
    assert slowest.ms_per_pair and slowest.ms_per_pair > 20


# Variants that fail


def fail_gate(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    real = run_module.prove

    def prove(bundle: Any, entry: Any, *more: Any) -> Any:
        if entry.name in names:
            raise GateFailed(f"engine {entry.name} fails the gate on this device: F1 drop +3.000 points")
        return real(bundle, entry, *more)

    monkeypatch.setattr(run_module, "prove", prove)


def test_a_variant_that_fails_is_reported_and_the_other_is_chosen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls = clock(monkeypatch, FASTER_INT8)
    fail_gate(monkeypatch, INT8_PLAN)
    bundle = variants_bundle(tmp_path / "bundle")
    assert exit_code(cli.main, "misgnet-run", "compile", bundle) == 0
    out, err = capsys.readouterr()
    assert f"chosen: {FP16}: the only engine that passed here, as {INT8_PLAN} failed\n" in out
    assert f"warning: {INT8_PLAN} is not used: engine {INT8_PLAN} fails the gate on this device: F1 drop +3" in err
    assert calls == [], "there is nothing to compare with"
    assert selected(bundle, "throughput") == (FP16, "chosen by misgnet-run compile")
    with pytest.raises(UnavailableError, match="must be compiled on the device"):
        open_detector(read_bundle(bundle), INT8_PLAN).__enter__()
    assert exit_code(cli.main, "misgnet-run", "info", bundle) == 0
    shown = capsys.readouterr().out
    assert f"  {INT8_PLAN} (INT8) is not used: engine {INT8_PLAN} fails the gate on this device" in shown
    assert f"auto selects {FP16}: chosen by misgnet-run compile\n" in shown


def test_a_variant_that_cannot_be_built_does_not_stop_the_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock(monkeypatch, FASTER_INT8)
    for error in ("build: out of memory", "no such operator"):
        bad = fake_tensorrt.model(size=TILE, error=error)
        choice = compiled(variants_bundle(tmp_path / error[:5], int8=bad))
        assert chosen(choice) == (FP16, FP16) and error in choice.variants[-1].refused


def test_exit_code_3_if_no_variant_passes_or_a_requested_one_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock(monkeypatch, FASTER_INT8)
    bundle = variants_bundle(tmp_path / "bundle")
    command = ("misgnet-run", "compile", bundle)
    with monkeypatch.context() as patch:
        fail_gate(patch, INT8_PLAN, FP16)
        assert exit_code(cli.main, *command) == 3
        with pytest.raises(GateFailed, match=rf"{INT8_PLAN} fails .*; engine {FP16} fails .*; no plan that failed is"):
            compiled(bundle)
    fail_gate(monkeypatch, INT8_PLAN)
    assert exit_code(cli.main, *command, "--engine", INT8_PLAN, "--engine", FP16) == 3
    assert exit_code(cli.main, *command, "--choose", "int8") == 3
    assert selected(bundle, "latency") == (FP16, "chosen by misgnet-run compile"), "the other one passed"
    capsys.readouterr()


# --choose and --engine


@pytest.mark.parametrize(("choose", "engine"), [("fp16", FP16), ("int8", INT8_PLAN)])
def test_one_precision_can_be_requested(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, choose: Literal["fp16", "int8"], engine: str
) -> None:
    calls = clock(monkeypatch, FASTER_INT8)
    bundle = variants_bundle(tmp_path / "bundle")
    compiled(bundle)
    calls.clear()
    activations, choice = compile_bundle(bundle, CompileOptions(choose=choose))
    assert [each.slot.engine for each in activations] == [engine] and not calls
    assert list(choice.lines()) == [f"chosen: {engine}: as requested by --choose {choose}"]
    assert selected(bundle, "throughput")[0] == engine


def test_a_precision_that_is_not_there_is_a_usage_error(tmp_path: Path) -> None:
    bundle = device_bundle(tmp_path / "bundle", DEVICE_INT8)
    message = r"--choose is fp16, but the bundle has nothing to compile here but jetson-orin-int8 \(INT8\); choose"
    with pytest.raises(UsageError, match=message):
        compiled(bundle, choose="fp16")
    with pytest.raises(UsageError, match=r"--choose is fp16, but --engine requests jetson-orin-int8 \(INT8\)"):
        compiled(bundle, choose="fp16", engines=(INT8_PLAN,))
    assert exit_code(cli.main, "misgnet-run", "compile", bundle, "--choose", "best") == 2


def test_an_engine_that_is_compiled_again_is_compared_with_those_compiled_earlier(
    tmp_path: Path, device: FakeDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = clock(monkeypatch, FASTER_FP16)
    bundle = variants_bundle(tmp_path / "bundle")
    compiled(bundle)
    clock(monkeypatch, FASTER_INT8)
    assert chosen(compiled(bundle, engines=(INT8_PLAN,), again=True)) == (INT8_PLAN, INT8_PLAN)
    install("10.16.1", device, monkeypatch)
    calls = clock(monkeypatch, FASTER_FP16)
    choice = compiled(bundle, engines=(INT8_PLAN,))
    assert chosen(choice) == (INT8_PLAN, INT8_PLAN) and not calls, "the plan of the older TensorRT does not run"
    assert choice.latency.why == "the only engine that was compiled here"


def test_a_second_run_compiles_nothing_and_measures_again(
    tmp_path: Path, device: FakeDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = install("10.3.0", device, monkeypatch)
    clock(monkeypatch, FASTER_FP16)
    bundle = variants_bundle(tmp_path / "bundle")
    compiled(bundle)
    clock(monkeypatch, FASTER_INT8)  # as after sudo jetson_clocks
    assert chosen(compiled(bundle)) == (INT8_PLAN, INT8_PLAN) and module.observed.builds == 2


# Measuring that fails


@pytest.mark.parametrize("error", [UnavailableError("out of memory"), OSError(12, "Cannot allocate memory")])
def test_if_measuring_fails_the_plans_are_usable_and_fp16_is_chosen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: Exception
) -> None:
    def measure(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(comparison, "measure", measure)
    bundle = variants_bundle(tmp_path / "bundle")
    choice = compiled(bundle)
    assert chosen(choice) == (FP16, FP16) and choice.latency.why.startswith("the engines could not be compared here")
    err = capsys.readouterr().err
    assert "warning: for many pairs, no engine was compared with another; FP16 is chosen" in err
    assert re.search(r"for one pair, jetson-orin-.*memory", err)
    assert selected(bundle, "throughput")[0] == FP16
    assert {variant.ms_per_pair for variant in choice.variants} == {None}


def test_one_workload_is_enough_to_choose_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two streams of four pairs may exhaust the memory of a small board."""
    fake_measure(monkeypatch, lambda task: None if task.streams > 1 else FASTER_INT8[task.name][0])
    choice = compiled(variants_bundle(tmp_path / "bundle"))
    assert chosen(choice) == (INT8_PLAN, FP16)
    assert {(each.ms_per_pair, each.pairs_per_second) for each in choice.variants} == {(8.0, None), (10.0, None)}


def test_an_interruption_while_measuring_leaves_the_plans_and_the_earlier_choice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def measure(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(comparison, "measure", measure)
    bundle = variants_bundle(tmp_path / "bundle")
    with pytest.raises(KeyboardInterrupt):
        compiled(bundle)
    assert selected(bundle, "latency") == (INT8_PLAN, "fastest that runs here"), "both plans are active"
    clock(monkeypatch, FASTER_FP16)
    compiled(bundle)
    monkeypatch.setattr(comparison, "measure", measure)
    with pytest.raises(KeyboardInterrupt):
        compiled(bundle)
    assert selected(bundle, "latency") == (FP16, "chosen by misgnet-run compile")
    assert not capsys.readouterr().err.count("warning")


# Choices that are not used


def test_a_choice_of_another_board_is_not_used_and_its_plans_are_compiled_anew(
    tmp_path: Path, device: FakeDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that was moved to a smaller board of the same compute capability."""
    module = install("10.3.0", device, monkeypatch)
    clock(monkeypatch, FASTER_INT8)
    bundle = variants_bundle(tmp_path / "bundle")
    compiled(bundle)
    use_board(NANO, monkeypatch)
    assert kept_choice(read_bundle(bundle)) is None
    moved = (
        rf"its plan was compiled on Fake GPU, {AGX}, and this device is Fake GPU, {NANO} \(sm87\); run: "
        rf"misgnet-run compile {bundle} --engine {FP16}$"
    )
    with pytest.raises(UnavailableError, match=moved):
        open_detector(read_bundle(bundle), FP16).__enter__()
    clock(monkeypatch, FASTER_FP16)
    compiled(bundle)
    assert module.observed.builds == 4 and len(list((tmp_path / "cache/plans").glob("*.timing"))) == 2
    for board, engine in ((NANO, FP16), (AGX, INT8_PLAN)):
        use_board(board, monkeypatch)
        assert selected(bundle, "latency") == (engine, "chosen by misgnet-run compile")


def change_plan(bundle: Path, monkeypatch: pytest.MonkeyPatch, device: FakeDriver) -> None:
    """Activates another plan of the chosen engine, as a run does that is killed before it measures."""
    with monkeypatch.context() as patch:
        patch.setattr(PlanStore, "keep_choice", lambda *_: None)
        compiled(bundle, again=True)


def update_tensorrt(bundle: Path, monkeypatch: pytest.MonkeyPatch, device: FakeDriver) -> None:
    install("10.16.1", device, monkeypatch)


def damaged(change: Callable[[dict[str, Any]], object]) -> Callable[..., None]:
    def damage(bundle: Path, monkeypatch: pytest.MonkeyPatch, device: FakeDriver) -> None:
        folder = PrivateFolder.of("plans")
        (path,) = folder.path.glob("choice-*")
        values = json.loads(folder.read_sealed(path.name, 1 << 20) or b"")
        change(values)
        folder.write_sealed(path.name, json.dumps(values).encode())

    return damage


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (change_plan, f"the plan of {INT8_PLAN} is no longer the one that was measured"),
        (update_tensorrt, r"it was measured with tensorrt 10\.3\.0, this machine has tensorrt 10\.16\.1"),
        (damaged(lambda values: values.update(format=1)), "has format 1; this version reads format"),
        (damaged(lambda values: values["latency"].update(engine="x")), "it names x, which the bundle or the record"),
        (damaged(lambda values: values.pop("variants")), "cannot be read: "),
    ],
)
def test_an_unusable_choice_is_reported_once_and_ignored(
    tmp_path: Path, device: FakeDriver, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    change: Callable[..., None], problem: str,
) -> None:  # fmt: skip
    clock(monkeypatch, FASTER_INT8)
    bundle = variants_bundle(tmp_path / "bundle")
    compiled(bundle)
    change(bundle, monkeypatch, device)
    capsys.readouterr()
    assert bundle_figures(bundle)["choice"] is None
    (warned,) = capsys.readouterr().err.splitlines()
    assert warned.startswith(f"warning: the choice of an engine of bundle {bundle} is not used: ")
    assert re.search(problem, warned) and warned.endswith(f"; run: misgnet-run compile {bundle}")
    compiled(bundle)
    assert chosen(kept_choice(read_bundle(bundle)) or pytest.fail("no choice")) == (INT8_PLAN, INT8_PLAN)


def test_a_bundle_without_plans_never_asks_for_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock(monkeypatch, FASTER_INT8)
    compiled(variants_bundle(tmp_path / "bundle"))
    monkeypatch.setattr(choice_module, "open_driver", lambda: pytest.fail("the GPU was queried"))
    assert kept_choice(read_bundle(make_bundle(tmp_path / "cpu", engines=[FLOAT, INT8]))) is None


def a_tuning(bundle: Bundle, engine: str) -> Tuning:
    return Tuning(
        format=tuned.FORMAT, created="2026-01-01T00:00:00+00:00", place=Scope.of(bundle), gpu=tuned.gpu_of(bundle),
        libraries=tuned.libraries_of(bundle), latency=engine, throughput=engine, settings={engine: Setting(1, 1)},
        measurements=[],
    )  # fmt: skip


def test_a_tuning_takes_precedence_and_compile_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock(monkeypatch, FASTER_INT8)
    bundle = variants_bundle(tmp_path / "bundle")
    opened = read_bundle(bundle)
    keep(a_tuning(opened, FP16))
    choice = compiled(bundle)
    warned = capsys.readouterr().err
    assert f"warning: --engine auto still takes {FP16}, measured fastest by misgnet-run tune on 2026-01-01" in warned
    assert selected(bundle, "latency") == (FP16, "measured fastest here; tuned here: 1 stream, batch 1")
    order = automatic(opened, Tuned.of(opened, "latency"), choice)
    assert [(each.entry.name, each.reason) for each in order[:2]] == [
        (FP16, "measured fastest here"), (INT8_PLAN, "chosen by misgnet-run compile"),
    ]  # fmt: skip
    keep(a_tuning(opened, INT8_PLAN))
    compiled(bundle)
    assert "still takes" not in capsys.readouterr().err


# The commands


def test_the_commands_show_the_choice_and_its_figures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock(monkeypatch, FASTER_FP16)
    bundle = variants_bundle(tmp_path / "bundle")
    assert exit_code(cli.main, "misgnet-run", "compile", bundle, "--minutes", "0.1") == 0
    out, err = capsys.readouterr()
    assert f"chosen for one pair: {FP16}: FP16 is faster than INT8 here (8.00 against 10.00 ms)\n" in out
    assert f"measuring for 6 s, 1 of 1: {FP16}, 1 stream, batch 1; {INT8_PLAN}, 1 stream, batch 1" in err
    assert exit_code(cli.main, "misgnet-run", "info", bundle) == 0
    out = capsys.readouterr().out
    assert f"measured by misgnet-run compile on Fake GPU, {AGX}, " in out
    assert (
        f"  {FP16}: 100.000 % of the golden tiles' pixels agree; no gate was run; tensorrt 10.3.0; 1 kernel, 0.0 MB "
        "moved for a batch of 4; 8.00 ms for one pair; 250.0 pairs/s for many pairs\n" in out
    )
    assert f"  chosen for many pairs: {FP16}: FP16 is faster than INT8 here (4.00 against 5.00 ms)\n" in out
    assert f"auto selects {FP16}: chosen by misgnet-run compile\n" in out
    pair = [write_image(tmp_path / f"{i}.png", pixels) for i, pixels in enumerate(images(TILE, TILE))]
    assert exit_code(cli.main, "misgnet-run", "predict", bundle, *pair, "-o", tmp_path / "mask.png") == 0
    assert f"engine {FP16} (chosen by misgnet-run compile)" in capsys.readouterr().out


def test_json_events_hold_the_choice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock(monkeypatch, FASTER_FP16)
    bundle = variants_bundle(tmp_path / "bundle")
    assert exit_code(cli.main, "misgnet-run", "--log", "json", "compile", bundle) == 0
    *plans, result = map(json.loads, capsys.readouterr().out.splitlines())
    assert [plan["engine"] for plan in plans] == [INT8_PLAN, FP16]
    assert result["choice"]["throughput"]["engine"] == FP16
    assert [variant["ms_per_pair"] for variant in result["choice"]["variants"]] == [10.0, 8.0]
    assert exit_code(cli.main, "misgnet-run", "--log", "json", "info", bundle) == 0
    (shown,) = map(json.loads, capsys.readouterr().out.splitlines())
    assert shown["choice"] == result["choice"] and shown["auto"]["latency"]["engine"] == FP16
    log.use("text")
