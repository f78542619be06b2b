"""Prepares the targets that read files of a bundle, its signatures and keys, and saved settings of a device."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
from pathlib import Path
from typing import Any

from readers import Prepared, Reader, written

from support.bundles import INT8, SPLIT_FLOAT, make_bundle


def manifest(folder: Path) -> Prepared:
    from rich.console import Console

    from misgnet_runtime.cli.info import bundle_figures, print_info

    root = make_bundle(folder / "bundle", engines=[SPLIT_FLOAT, INT8])

    def read(data: bytes) -> None:
        (root / "manifest.json").write_bytes(data)
        print_info(root, Console(file=io.StringIO()))
        bundle_figures(root)

    return read, [(root / "manifest.json").read_bytes()]


def _signed(folder: Path, name: str) -> tuple[Reader, list[bytes], Path]:
    """Makes a signed bundle and a reader that replaces its file ``name``; a replaced manifest is signed again."""
    from misgnet_runtime.bundle.reader import read_bundle
    from misgnet_runtime.bundle.signing.policy import Trust
    from support.signatures import make_key, prepare, sign_folder, write_public

    key = make_key()
    trust = Trust(write_public(folder / "key.pub", key))
    root = sign_folder(prepare(make_bundle(folder / "bundle"), expires="2099-01-01T00:00:00+00:00"), key)

    def read(data: bytes) -> None:
        shutil.rmtree(folder / "state/accepted", ignore_errors=True)
        (root / name).write_bytes(data)
        if name == "manifest.json":
            sign_folder(root, key)
        read_bundle(root, trust)

    return read, [(root / name).read_bytes()], root


def signature(folder: Path) -> Prepared:
    read, seeds, _ = _signed(folder, "model.sig")
    return read, seeds


def signed_manifest(folder: Path) -> Prepared:
    read, seeds, _ = _signed(folder, "manifest.json")
    return read, seeds


def statement(folder: Path) -> Prepared:
    """Damages the statement and signs it, because the holder of a key can sign anything."""
    from misgnet_runtime.bundle.signing.envelope import decode_envelope
    from support.signatures import make_key, sign_folder

    read, seeds, root = _signed(folder, "model.sig")

    def read_statement(data: bytes) -> None:
        def replace(statement: dict[str, Any]) -> None:
            statement.clear()
            statement.update(json.loads(data))

        sign_folder(root, make_key(), change=replace)
        read((root / "model.sig").read_bytes())

    def tolerant(data: bytes) -> None:
        try:
            json.loads(data)
        except (ValueError, RecursionError):
            return
        read_statement(data)

    return tolerant, [decode_envelope(seeds[0]).payload]


def accepted(folder: Path) -> Prepared:
    """Damages the record of accepted bundle versions."""
    read, seeds, _ = _signed(folder, "model.sig")
    read(seeds[0])
    (path,) = (folder / "state/accepted").iterdir()
    from misgnet_runtime.bundle.signing.rollback import open_state

    with open_state() as state:
        record = path.read_bytes()

    def read_state(data: bytes) -> None:
        path.write_bytes(data)
        state._read(f"accepted/{path.name}")

    return read_state, [record]


def key(folder: Path) -> Prepared:
    from misgnet_runtime.bundle.signing.keys import read_anchors
    from support.signatures import certify, make_key, write_certificates, write_public

    key = make_key()
    seeds = [
        write_public(folder / "two.pub", key, make_key(2)).read_bytes(),
        write_certificates(folder / "a.crt", certify("a", key, ("a", key), authority=True)).read_bytes(),
    ]
    return written(folder / "key.pem", read_anchors), seeds


def golden(folder: Path) -> Prepared:
    from misgnet_runtime.bundle.golden import read_golden

    root = make_bundle(folder / "bundle")
    path = folder / "tiles.npz"
    good = (root / "golden/tiles.npz").read_bytes()
    return written(path, read_golden), [good]


def tuning(folder: Path) -> Prepared:
    from misgnet_runtime.bundle.reader import read_bundle
    from misgnet_runtime.inference.tuned import FORMAT, ONE_PAIR, Measurement, Scope, Tuning, keep, kept, libraries_of

    bundle = read_bundle(make_bundle(folder / "bundle"))
    path = keep(
        Tuning(
            format=FORMAT, created="2026-01-01", place=Scope.of(bundle), gpu="", libraries=libraries_of(bundle),
            latency="cpu", throughput="cpu", settings={"cpu": ONE_PAIR},
            measurements=[Measurement("cpu", ONE_PAIR, 1.0, 1.0, 0.1, [1.0])],
        )
    )  # fmt: skip

    def read(data: bytes) -> None:
        """Reads the data without and with its digest; data without the right digest is not parsed."""
        for contents in (data, hashlib.sha256(data).hexdigest().encode() + b"\n" + data):
            path.write_bytes(contents)
            found = kept(bundle)
            if found is not None:
                found.settings[found.throughput].describe()

    return read, [path.read_bytes().partition(b"\n")[2]]
