"""Tests what all formats of ``misgnet-export publish`` have in common."""

from __future__ import annotations

from pathlib import Path

import pytest

from misgnet_export.cli.main import main
from misgnet_export.integrations.publish import huggingface
from misgnet_export.integrations.publish.bundle_copy import COPY, identifier_of, title_of
from misgnet_runtime.bundle import MANIFEST, read_bundle
from support.bundles import INT8, RTX, edit, make_bundle
from support.commands import exit_code
from support.signatures import make_key, prepare, sign_folder, write_public

FORMATS = ("deepness", "stac-mlm", "huggingface")


def publish(bundle: Path, form: str, output: Path, *more: object) -> int:
    if form == "deepness":
        pytest.importorskip("onnx", reason="the graph for Deepness needs the [export] extra")
    return exit_code(main, "misgnet-export", "publish", bundle, "--as", form, "-o", output, *more)


@pytest.mark.parametrize("form", FORMATS)
def test_output_is_replaced_only_with_force(tmp_path: Path, form: str, capsys: pytest.CaptureFixture[str]) -> None:
    bundle, out = make_bundle(tmp_path / "bundle"), tmp_path / "out"
    out.mkdir()
    (out / "old").touch()
    assert publish(bundle, form, out) == 2 and "exists" in capsys.readouterr().err
    assert [path.name for path in out.iterdir()] == ["old"]
    assert publish(bundle, form, out, "--force") == 0 and not (out / "old").exists()
    assert f"published: {out}" in capsys.readouterr().out


@pytest.mark.parametrize("form", FORMATS)
def test_bundle_without_float_graph_is_published(tmp_path: Path, form: str) -> None:
    bundle = make_bundle(tmp_path / "bundle", engines=[INT8])
    (bundle / "graphs/float.onnx").unlink()
    edit(bundle, lambda m: m.update(files=[f for f in m["files"] if f["role"] != "float graph"]))
    assert publish(bundle, form, tmp_path / "out") == 0


@pytest.mark.parametrize("form", FORMATS)
def test_changed_bundle_is_refused(tmp_path: Path, form: str) -> None:
    bundle = make_bundle(tmp_path / "bundle")
    (bundle / "graphs/int8.onnx").write_bytes(b"another graph")
    assert publish(bundle, form, tmp_path / "out") == 4
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


def test_failure_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(huggingface, "_draw", full)
    assert publish(make_bundle(tmp_path / "bundle"), "huggingface", tmp_path / "out") != 0
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


def test_output_within_or_around_the_bundle_is_refused(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "folder/bundle")
    assert publish(bundle, "stac-mlm", bundle, "--force") == 2
    assert publish(bundle, "stac-mlm", bundle.parent, "--force") == 2
    assert read_bundle(bundle)


@pytest.mark.parametrize("form", ["stac-mlm", "huggingface"])
def test_bundle_is_copied_whole(tmp_path: Path, form: str) -> None:
    bundle = make_bundle(tmp_path / "bundle")
    assert publish(bundle, form, tmp_path / "out") == 0
    assert read_bundle(tmp_path / "out" / COPY).digest() == read_bundle(bundle).digest()
    assert (tmp_path / "out" / COPY / MANIFEST).read_bytes() == (bundle / MANIFEST).read_bytes()


@pytest.mark.parametrize("form", ["stac-mlm", "huggingface"])
def test_signature_is_required_and_kept(tmp_path: Path, form: str) -> None:
    bundle, key, out = make_bundle(tmp_path / "bundle"), make_key(), tmp_path / "out"
    required = ["--require-signature", write_public(tmp_path / "key.pem", key)]
    assert publish(bundle, form, out, *required) == 4 and not out.exists()
    sign_folder(prepare(bundle), key)
    assert publish(bundle, form, out, *required) == 0
    assert (
        exit_code(main, "misgnet-export", "publish", out / COPY, "--as", form, "-o", tmp_path / "again", *required) == 0
    )


def test_only_deepness_takes_an_engine(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundle = make_bundle(tmp_path / "bundle")
    assert publish(bundle, "stac-mlm", tmp_path / "out", "--engine", "cpu") == 2
    assert "--as stac-mlm publishes all engines" in capsys.readouterr().err


def test_engines_that_deepness_cannot_run_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundle = make_bundle(tmp_path / "bundle", engines=[INT8, RTX])
    assert publish(bundle, "deepness", tmp_path / "out", "--engine", "rtx-sm86") == 2
    assert "'rtx'" in (found := capsys.readouterr().err) and "engines that it runs: cpu" in found
    assert publish(bundle, "deepness", tmp_path / "out", "--engine", "gpu") == 2
    only = make_bundle(tmp_path / "only", engines=[RTX])
    assert publish(only, "deepness", tmp_path / "out") == 2 and "--target cpu" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("levir", "levir"),
        ("Roofs, Bern 2026", "Roofs-Bern-2026"),
        ("2026", "bundle-2026"),
        ("a", "bundle-a"),
        ("…", "bundle-unnamed"),
    ],
)
def test_identifier_is_made_of_the_name(tmp_path: Path, name: str, expected: str) -> None:
    assert identifier_of(read_bundle(make_bundle(tmp_path / name))) == expected


def test_product_of_a_release_is_the_title(tmp_path: Path) -> None:
    bundle = read_bundle(prepare(make_bundle(tmp_path / "bundle"), product="Roofs of Bern"))
    assert (title_of(bundle), identifier_of(bundle)) == ("Roofs of Bern", "Roofs-of-Bern")
