"""Operations that build a bundle, sign it, compile its plans on a device, and record that it was accepted."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from looking import State

from support.bundles import make_bundle


def sign(root: Path) -> None:
    from support.signatures import make_key, prepare, sign_folder, write_private

    sign_folder(prepare(make_bundle(root / "out/bundle")), make_key())
    write_private(root / "key.pem", make_key())


def run_sign(root: Path) -> None:
    from misgnet_export.integrations.signing import SignRequest, sign_bundle

    sign_bundle(SignRequest(bundle=root / "out/bundle", key=root / "key.pem", version=2, force=True))


def read_sign(root: Path) -> State:
    """Returns the version of the bundle with a valid signature; signatures themselves differ every time."""
    from misgnet_runtime.bundle.signing.envelope import decode_envelope, signed_digests
    from misgnet_runtime.bundle.signing.files import check_digests, check_names

    path = root / "out/bundle"
    digests = signed_digests(decode_envelope((path / "model.sig").read_bytes()))
    check_names(path, digests)
    check_digests(path, digests)
    return {"version": json.loads((path / "manifest.json").read_bytes())["bundle_version"]}


def build(root: Path) -> None:
    make_bundle(root / "out/bundle", flip=True)


def run_build(root: Path) -> None:
    """Runs ``build`` with fast fake stages, which write a tiny bundle."""
    from types import SimpleNamespace

    from misgnet_export.pipeline import build as module
    from misgnet_export.pipeline.request import BuildRequest
    from misgnet_export.pipeline.result import Draft
    from support.builds import FakeSource, interface_of, request_of

    def stages(_request: object, _source: object, folder: Path, _log: object) -> Draft:
        make_bundle(folder)
        evidence: Any = SimpleNamespace(parity=SimpleNamespace(passed=True))
        sets: Any = None
        return Draft(
            source=FakeSource(),
            interface=interface_of(request_of()),
            sets=sets,
            graphs=[],
            engines=[],
            evidence=evidence,
        )

    def manifest(folder: Path, *_: object) -> None:
        content = (folder / "manifest.json").read_bytes()
        (folder / "manifest.json").write_bytes(content)

    given = root / "in"
    request = BuildRequest(
        source=str(given), calib=given, val=given, evaluation=given, output=root / "out/bundle", force=True
    )
    nothing: Any = lambda *_: FakeSource()  # noqa: E731
    with _replaced(module, _run_stages=stages, write_bundle=manifest, check_request=nothing, open_source=nothing):
        from rich.console import Console

        module.build(request, Console(file=open(os.devnull, "w")))  # noqa: PTH123, SIM115


@contextmanager
def _replaced(module: Any, **values: object) -> Iterator[None]:
    before = {name: getattr(module, name) for name in values}
    for name, value in values.items():
        setattr(module, name, value)
    yield
    for name, value in before.items():
        setattr(module, name, value)


def read_bundle(root: Path) -> State:
    from misgnet_runtime.bundle.reader import read_bundle

    return {"bundle": read_bundle(root / "out/bundle").digest()}


def accept(root: Path) -> None:
    """Prepares a device that has accepted version 1 and gets version 2."""
    from misgnet_runtime.bundle.reader import read_bundle
    from support.signatures import make_key, prepare, sign_folder, write_public

    bundle = make_bundle(root / "bundle")
    os.environ["MISGNET_STATE"] = str(root / "out")
    trust = _trust(root, write_public(root / "key.pub", make_key()))
    for version in (1, 2):
        sign_folder(prepare(bundle, version=version), make_key())
        if version == 1:
            read_bundle(bundle, trust)


def _trust(root: Path, key: Path) -> Any:
    from misgnet_runtime.bundle.signing.policy import Trust

    return Trust(root / key.name)


def run_accept(root: Path) -> None:
    from misgnet_runtime.bundle.reader import read_bundle

    os.environ["MISGNET_STATE"] = str(root / "out")
    read_bundle(root / "bundle", _trust(root, Path("key.pub")))


def read_accepted(root: Path) -> State:
    (path,) = [path for path in (root / "out/accepted").iterdir() if not path.name.startswith(".")]
    return {"accepted": json.loads(path.read_bytes())["version"]}


def compile_plans(root: Path) -> None:
    """Prepares a device with a compiled plan, which then compiles one with another optimisation level."""
    from support.device_bundles import device_bundle

    device_bundle(root / "bundle", tiles=2)
    _compile(root, 2)


def run_compile(root: Path) -> None:
    _compile(root, 4)


def _compile(root: Path, level: int) -> None:
    """Compiles with fakes of TensorRT and CUDA; the files are written as with the real ones."""
    from misgnet_runtime.jobs.compile.options import CompileOptions
    from misgnet_runtime.jobs.compile.run import compile_bundle
    from support.fake_cuda import FakeDriver
    from support.fake_tensorrt import make_tensorrt

    os.environ["MISGNET_CACHE"] = str(root / "out")
    driver = FakeDriver("sm87", memory=1 << 30)
    sys.modules["tensorrt"] = make_tensorrt("10.3.0", driver)
    options = CompileOptions(optimization_level=level)
    compile_bundle(root / "bundle", options, driver)


def read_compiled(root: Path) -> State:
    """Returns the optimisation level of the active plan, and checks its bytes."""
    from misgnet_runtime.bundle.reader import read_bundle
    from misgnet_runtime.engines.tensorrt.open import slot_of
    from misgnet_runtime.engines.tensorrt.plan_cache import PlanStore
    from support.device_bundles import DEVICE
    from support.fake_cuda import FakeDriver

    os.environ["MISGNET_CACHE"] = str(root / "out")
    store = PlanStore()
    active = store.active(slot_of(read_bundle(root / "bundle").digest(), DEVICE, FakeDriver("sm87").device()))
    assert active is not None
    (record,) = active.plans.values()
    assert store.plan(record)
    return {"level": record.key.optimization_level}
