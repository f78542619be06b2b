"""Tests ``misgnet-run --config``: which value an option gets, and what is refused."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

if sys.version_info < (3, 11):
    pytest.importorskip("tomli", reason="configuration files need tomli on Python 3.10")

from misgnet_runtime import log
from misgnet_runtime.bundle.signing import policy
from misgnet_runtime.cli import config
from misgnet_runtime.cli import main as cli
from misgnet_runtime.measure.bench import scene
from support.bundles import FLOAT, RTX, images, make_bundle, write_image
from support.commands import exit_code

SEEN = "misgnet_runtime.jobs.image.predict_files"


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in (config.VARIABLE, policy.VARIABLE):
        monkeypatch.delenv(name, raising=False)
    yield
    log.use("text")
    policy.use_key(None)


@pytest.fixture
def run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Returns a function that writes a file and runs a command; ``{file}`` in the words is the file."""

    def call(text: str, *words: object) -> tuple[int, str, str]:
        file = tmp_path / "settings" / "run.toml"
        file.parent.mkdir(exist_ok=True)
        file.write_text(text, encoding="utf-8")
        shown = [str(word).replace("{file}", str(file)) for word in words]
        return exit_code(cli.main, "misgnet-run", *shown), *capsys.readouterr()

    return call


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Returns the list of the options that ``predict`` gets for two images."""
    found: list[dict[str, Any]] = []

    def predict_files(*_: Any, **options: Any) -> Any:
        found.append(options)
        raise SystemExit(0)

    monkeypatch.setattr(SEEN, predict_files)
    return found


PREDICT = ("predict", "b", "x.png", "y.png", "-o", "m.png")


@pytest.mark.parametrize("place", [0, 1, 4, 6])
def test_values_of_the_file_are_defaults_wherever_the_option_stands(run: Any, seen: list[Any], place: int) -> None:
    words = [*PREDICT]
    words[place:place] = ["--config", "{file}"]
    run('threshold = 0.25\n[predict]\nengine = "cpu-float32"\nbatch = 2\nno-tuned = true\n', *words)
    assert (seen[0]["threshold"], seen[0]["engine"], seen[0]["batch"], seen[0]["tuned"]) == (
        0.25,
        "cpu-float32",
        2,
        False,
    )


def test_the_nearest_statement_of_a_value_holds(run: Any, seen: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    text = 'engine = "of-all"\noverlap = 8\n[predict]\nengine = "of-predict"\n'
    run(text, "--config", "{file}", *PREDICT, "--overlap", 16)
    run(text, "--config", "{file}", *PREDICT, "--engine", "of-line")
    assert [(one["engine"], one["overlap"]) for one in seen] == [("of-predict", 16), ("of-line", 8)]


def test_the_variable_names_the_file_and_the_option_replaces_it(
    run: Any, seen: list[Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    other = tmp_path / "other.toml"
    other.write_text("overlap = 4\nbatch = 3\n")
    monkeypatch.setenv(config.VARIABLE, str(other))
    run("overlap = 8\n", *PREDICT)
    run("overlap = 8\n", *PREDICT, "--config", "{file}")
    run("overlap = 8\n", "--config", "{file}", *PREDICT)
    monkeypatch.setenv(config.VARIABLE, "")
    run("overlap = 8\n", *PREDICT)
    assert [(one["overlap"], one["batch"]) for one in seen] == [(4, 3), (8, None), (8, None), (None, None)]


def test_no_file_of_the_working_directory_is_read(
    run: Any, seen: list[Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("misgnet.toml", "misgnet-run.toml", ".misgnet.toml", "run.toml", "pyproject.toml"):
        (tmp_path / name).write_text("overlap = 4\n")
    monkeypatch.chdir(tmp_path)
    run("", *PREDICT)
    assert seen[0]["overlap"] is None


@pytest.mark.parametrize("words", [("--config", "{file}", "verify", "/no"), ("verify", "/no", "--config", "{file}")])
def test_options_of_the_program_are_set_too(run: Any, words: tuple[str, ...]) -> None:
    code, _, error = run('log = "json"\n', *words)
    assert (code, json.loads(error)["exit_code"]) == (4, 4)
    code, _, error = run('[verify]\nlog = "json"\n', *words)
    assert json.loads(error)["exit_code"] == 4
    for place in (0, len(words)):
        line = [*words]
        line[place:place] = ["--log", "text"]
        assert run('log = "json"\n[verify]\nlog = "json"\n', *line)[2].startswith("error: ")


def test_paths_start_from_the_folder_of_the_file(run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[Any] = []

    def stop(*given: Any, **_: Any) -> None:
        found.append(given[4])
        raise SystemExit(0)

    monkeypatch.setattr("misgnet_runtime.jobs.scene.predict.predict_scene_files", stop)
    words = ("predict", "b", "x.tif", "y.tif", "-o", "c.tif", "--config", "{file}")
    run('[predict]\nvector = "../v.gpkg"\nreport = "/abs/r.html"\nscale = [0.5, 1]\nbands = "3,2"\n', *words)
    folder = tmp_path / "settings"
    assert (found[0].vector, found[0].report) == (folder / "../v.gpkg", Path("/abs/r.html"))
    assert (found[0].both.scale, found[0].both.bands) == ((0.5, 1.0), (3.0, 2.0))


def test_lists_set_options_that_may_be_repeated(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[Any] = []

    def stop(_: Any, options: Any, *more: Any, **others: Any) -> None:
        found.append(options)
        raise SystemExit(0)

    monkeypatch.setattr("misgnet_runtime.measure.bench.run.run_bench", stop)
    run('[bench]\nengine = ["a", "b"]\nbatch = [1, 4]\nstreams = 2\n', "bench", "b", "--config", "{file}")
    assert (found[0].engines, found[0].batches, found[0].streams) == (("a", "b"), (1, 4), (2,))


REFUSED = {
    "treads = 4": "there is no option 'treads'; did you mean threads?",
    "[predct]\nx = 1": "there is no table 'predct'; did you mean predict?",
    "[info]\nengine = 'x'": "[info]: there is no option 'engine'; there are ",
    "[zzz]\nx = 1": "there is no table 'zzz'; there are batch, bench, ",
    "threads = 'x'": "'threads' is 'x' (a string); expected a whole number (for predict; ",
    "[predict]\nthreads = 1.5": "'threads' is 1.5; expected a whole number (in [predict])",
    "[predict]\ncog = 'yes'": "'cog' is 'yes' (a string); expected true or false (in [predict])",
    "log = 'xml'": "'log' is 'xml' (a string); expected one of text, json",
    "vector = 'x.gpkg'": "; a value for one command only is written below [",
    "[predict]\nbands = 'red'": "--bands is 'red'; expected 1 to 16 numbers",
    "allow-older = true": "'allow-older' is for the command line only; leave it out",
    "[verify]\nallow_older = true": "[verify]: 'allow_older' is for the command line only",
    "version = true": "'version' is for the command line only",
    "threads = 99999999999999999999": "'threads' is a whole number of more than 64 bits",
    "[predict]\noutput = ''": "'output' is '' (a string); expected a string that is not empty",
    "[predict]\noutput = 'a\\u0000b'": "'output'",
    "x": "is not valid TOML",
    "a" + ".a" * 201 + " = 1": "line 1 has more than 200 dots",
    "a = " + "[" * 5000: "is not valid TOML",
    "#" * 70_000: "is larger than 65536 bytes",
}


@pytest.mark.parametrize("text", REFUSED, ids=range(len(REFUSED)))
def test_a_wrong_file_is_a_usage_error_that_names_it(run: Any, text: str) -> None:
    code, out, error = run(text.replace("'", '"'), "--config", "{file}", "info", "b")
    assert (code, out, error.count("\n")) == (2, "", 1), error
    assert "run.toml" in error and REFUSED[text] in error


def test_a_file_that_cannot_be_read_is_bad_input(run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for path in (tmp_path / "none.toml", tmp_path):
        code, _, error = run("", "--config", path, "info", "b")
        assert code == 4 and error.startswith(f"error: --config {path} ")
    monkeypatch.setenv(config.VARIABLE, str(tmp_path))
    code, _, error = run("", "info", "b")
    assert code == 4 and error == f"error: MISGNET_CONFIG {tmp_path} is not a regular file\n"


def test_a_required_key_is_added_but_does_not_replace_one(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = 'require-signature = "keys.pem"\n'
    run(text, "--config", "{file}", "verify", "b")
    assert policy.required() == policy.Trust(tmp_path / "settings" / "keys.pem")
    policy.use_key(None)
    monkeypatch.setenv(policy.VARIABLE, "other.pem")
    run(text, "--config", "{file}", "verify", "b")
    assert policy.required() == policy.Trust(Path("other.pem"))
    monkeypatch.setenv(policy.VARIABLE, "")
    code, _, error = run(text, "--config", "{file}", "verify", make_bundle(tmp_path / "bundle"))
    assert code == 2 and "is set, but empty" in error


def test_info_names_the_file_and_its_values(run: Any, tmp_path: Path) -> None:
    bundle, text = (
        make_bundle(tmp_path / "b", engines=[FLOAT, RTX]),
        'threads = 1\n[predict]\nengine = "x"\ncog = true\n',
    )
    code, out, _ = run(text, "info", bundle, "--config", "{file}")
    file = tmp_path / "settings" / "run.toml"
    assert code == 0
    assert f"\ndefaults from {file}:\n  all commands: threads = 1\n  predict: engine = 'x', cog = true\n" in out
    code, out, _ = run(text, "--log", "json", "--config", "{file}", "info", bundle)
    assert json.loads(out)["defaults"] == {
        "file": str(file), "options": {"": {"threads": 1}, "predict": {"engine": "x", "cog": True}},
    }  # fmt: skip
    assert json.loads(run("", "--log", "json", "info", bundle)[1])["defaults"] is None


def test_an_output_of_the_file_satisfies_the_command(run: Any, tmp_path: Path) -> None:
    before, after = (write_image(tmp_path / f"{i}.png", pixels) for i, pixels in enumerate(images(64, 64)))
    bundle = make_bundle(tmp_path / "b", engines=[FLOAT])
    assert run('[predict]\noutput = "m.png"\n', "--config", "{file}", "predict", bundle, before, after)[0] == 0
    assert (tmp_path / "settings" / "m.png").is_file()


def test_a_measured_scene_ignores_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(config.VARIABLE, "run.toml")
    assert not scene._environment()[config.VARIABLE]
