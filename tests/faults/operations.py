"""What writes: inputs and an old state, the work, and what a user sees of its results."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bundles import INT8, SPLIT_FLOAT, images, make_bundle, write_image

State = Mapping[str, object]


@dataclass(frozen=True)
class Operation:
    """``prepare``: makes inputs and old results below a folder; ``run``: the work, the same each time it is begun anew.

    ``look``: of each result what it is, whole; a result that is not there is not named. Each must be the old one or the
    new one, whatever happened. ``modules``: imported once, before the runs.
    """

    prepare: Callable[[Path], object]
    run: Callable[[Path], object]
    look: Callable[[Path], State]
    modules: tuple[str, ...] = ()


def _files(*names: str) -> Callable[[Path], State]:
    """What files hold: of rasters and GeoPackages all that is read of them, since their bytes may be ordered otherwise
    (a GeoPackage also states when it was written), and of others the bytes."""

    def look(root: Path) -> State:
        found = {path.relative_to(root).as_posix(): path for name in names for path in sorted(root.glob(name))}
        shown = {name: path for name, path in found.items() if not any(p.startswith(".") for p in Path(name).parts)}
        return {name: _content(path) for name, path in shown.items() if path.is_file()}

    return look


def _content(path: Path) -> object:
    if path.suffix == ".tif" and path.stat().st_size > 100:
        return _raster(path)
    if path.suffix == ".gpkg" and path.stat().st_size > 100:
        import pyogrio

        _, _, shapes, fields = pyogrio.raw.read(path)
        return len(shapes), hashlib.sha256(b"".join(shapes)).hexdigest(), [list(map(str, field)) for field in fields]
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _raster(path: Path) -> object:
    import rasterio

    with rasterio.open(path) as dataset:
        colours = dataset.colormap(1) if dataset.colorinterp[0].name == "palette" else None
        pixels = hashlib.sha256(dataset.read().tobytes()).hexdigest()
        return pixels, sorted(dataset.tags().items()), str(dataset.profile), colours


def _pair(root: Path, name: str = "", size: int = 100) -> None:
    for date, pixels in zip(("before", "after"), images(size, 64, seed=len(name)), strict=True):
        write_image(root / "in" / date / f"{name}.png", pixels)


def _image(root: Path) -> None:
    make_bundle(root / "bundle")
    _pair(root, "a")
    write_image(root / "out/mask.png", images(8, 8)[0])


def _run_image(root: Path) -> None:
    from misgnet_runtime.predict import predict_files

    predict_files(
        root / "bundle",
        root / "in/before/a.png",
        root / "in/after/a.png",
        root / "out/mask.png",
        engine="cpu",
        force=True,
    )


def _folders(root: Path) -> None:
    make_bundle(root / "bundle")
    for name in ("a", "bb", "ccc"):
        _pair(root, name)


def _run_folders(root: Path) -> None:
    from misgnet_runtime.folders import predict_folders

    predict_folders(root / "bundle", root / "in/before", root / "in/after", root / "out", engine="cpu", batch=1)


_PRODUCTS = {"probability": "p.tif", "vector": "v.gpkg", "quicklook": "q.png"}


def _rasters(root: Path, *names: str, height: int = 150) -> None:
    from scenes import scene, write_raster

    for seed, name in enumerate(names):
        before, after = scene(height, 90, seed // 2)
        write_raster(root / "in" / f"{name}.tif", after if seed % 2 else before)


def _scene(root: Path) -> None:
    make_bundle(root / "bundle")
    _rasters(root, "before", "after")
    (root / "out").mkdir()
    for name in ("change.tif", *_PRODUCTS.values()):
        (root / "out" / name).write_bytes(b"old")


def _run_scene(root: Path) -> None:
    from misgnet_runtime.scenes.options import SceneOptions
    from misgnet_runtime.scenes.predict import predict_scene_files

    options = SceneOptions(
        engine="cpu",
        batch=1,
        force=True,
        **{name: root / "out" / file for name, file in _PRODUCTS.items()},  # type: ignore[arg-type]
    )
    paths = root / "in/before.tif", root / "in/after.tif", root / "out/change.tif"
    predict_scene_files(root / "bundle", *paths, options, tell=lambda _: None)


def _series(root: Path) -> None:
    make_bundle(root / "bundle", engines=[SPLIT_FLOAT, INT8])
    _rasters(root, "one", "two", "three")


def _run_series(root: Path) -> None:
    from misgnet_runtime.scenes.options import SceneOptions, SeriesOptions
    from misgnet_runtime.scenes.series import Listener, run_series

    options = SeriesOptions(SceneOptions(engine="cpu-float32", batch=1))
    dates = [root / f"in/{name}.tif" for name in ("two", "three")]
    listener = Listener(lambda _: None, lambda *_: None)
    run_series(root / "bundle", root / "in/one.tif", dates, root / "out", options, listener)


def _batch(root: Path) -> None:
    make_bundle(root / "bundle")
    _rasters(root, "a1", "a2", "b1", "b2", height=80)
    rows = [
        "id,before,after,probability",
        "a,in/a1.tif,in/a2.tif,yes",
        "b,in/b1.tif,in/b2.tif,no",
        "c,in/a1.tif,in/none.tif,no",
    ]
    (root / "scenes.csv").write_text("\n".join([*rows, ""]))


def _run_batch(root: Path) -> None:
    """In this process: a worker of its own would have a life of its own. Scene c fails, as it should."""
    from batches import InProcess, Told
    from misgnet_runtime.batch import run as batch_run
    from misgnet_runtime.errors import StorageError

    batch_run.ProcessPool = InProcess  # type: ignore[assignment, misc]
    options = batch_run.BatchOptions({"engine": "cpu", "batch": "1"})
    report = batch_run.run_batch(root / "bundle", root / "scenes.csv", root / "out", options, Told().listener())
    if set(report.failed) != {"c"}:
        raise StorageError(str(report.failed))


def _look_batch(root: Path) -> State:
    table = root / "out/results.csv"
    rows = list(csv.DictReader(table.read_text().splitlines())) if table.exists() else []
    # A table of an interrupted run says truly what waits or failed, so only what it says is done must be there.
    done = {row["id"]: row["changed_share"] for row in rows if row["status"] == "done"}
    assert all((root / "out" / f"{name}.tif").exists() for name in done), "a scene that is done has no map"
    return {**_files("out/*.tif")(root), **{f"row {name}": share for name, share in done.items()}}


def _watch(root: Path) -> None:
    make_bundle(root / "bundle")
    _rasters(root, "a_before", "a_after", height=80)


def _run_watch(root: Path) -> None:
    from misgnet_runtime.errors import StorageError
    from misgnet_runtime.log import current
    from misgnet_runtime.watch.options import WatchOptions
    from misgnet_runtime.watch.service import watch_folder

    report = watch_folder(root / "bundle", root / "in", root / "out", WatchOptions(once=True, settle=0.0), current())
    if report.failed:
        raise StorageError("the pair failed")


def _sign(root: Path) -> None:
    from signatures import make_key, prepare, sign_folder, write_private

    sign_folder(prepare(make_bundle(root / "out/bundle")), make_key())
    write_private(root / "key.pem", make_key())


def _run_sign(root: Path) -> None:
    from misgnet_export.signing import SignRequest, sign_bundle

    sign_bundle(SignRequest(root / "out/bundle", root / "key.pem", version=2, force=True))


def _look_sign(root: Path) -> State:
    """Signatures are never the same twice: the version that one is rightly for."""
    from misgnet_runtime.trust.envelope import decode_envelope, signed_digests
    from misgnet_runtime.trust.files import check_digests, check_names

    path = root / "out/bundle"
    digests = signed_digests(decode_envelope((path / "model.sig").read_bytes()))
    check_names(path, digests)
    check_digests(path, digests)
    return {"version": json.loads((path / "manifest.json").read_bytes())["bundle_version"]}


def _build(root: Path) -> None:
    make_bundle(root / "out/bundle", flip=True)


def _run_build(root: Path) -> None:
    """``build`` with stages that take no time: the files are a tiny bundle's, written where those of a build are."""
    from types import SimpleNamespace

    from misgnet_export import build as module

    def stages(_request: object, folder: Path, _log: object) -> Any:
        make_bundle(folder)
        return SimpleNamespace(evidence=SimpleNamespace(parity=SimpleNamespace(passed=True)))

    def manifest(folder: Path, *_: object) -> None:
        content = (folder / "manifest.json").read_bytes()
        (folder / "manifest.json").write_bytes(content)

    request: Any = SimpleNamespace(output=root / "out/bundle", force=True)
    with _replaced(module, _run_stages=stages, write_bundle=manifest, check_request=lambda _: None):
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


def _look_bundle(root: Path) -> State:
    from misgnet_runtime.bundle import read_bundle

    return {"bundle": read_bundle(root / "out/bundle").digest()}


def _accept(root: Path) -> None:
    """A device that has accepted version 1 is given version 2."""
    from misgnet_runtime.bundle import read_bundle
    from signatures import make_key, prepare, sign_folder, write_public

    bundle = make_bundle(root / "bundle")
    os.environ["MISGNET_STATE"] = str(root / "out")
    trust = _trust(root, write_public(root / "key.pub", make_key()))
    for version in (1, 2):
        sign_folder(prepare(bundle, version=version), make_key())
        if version == 1:
            read_bundle(bundle, trust)


def _trust(root: Path, key: Path) -> Any:
    from misgnet_runtime.trust.policy import Trust

    return Trust(root / key.name)


def _run_accept(root: Path) -> None:
    from misgnet_runtime.bundle import read_bundle

    os.environ["MISGNET_STATE"] = str(root / "out")
    read_bundle(root / "bundle", _trust(root, Path("key.pub")))


def _look_accepted(root: Path) -> State:
    (path,) = [path for path in (root / "out/accepted").iterdir() if not path.name.startswith(".")]
    return {"accepted": json.loads(path.read_bytes())["version"]}


warnings.filterwarnings("ignore", message="Measured")  # of pyogrio
_ENGINE = ("onnxruntime", "misgnet_runtime.choice")
_SCENE = (*_ENGINE, "rasterio", "pyogrio", "shapely", "misgnet_runtime.scenes.series", "misgnet_runtime.scenes.vectors")
_TRUST = ("cryptography.x509.verification", "misgnet_runtime.trust.signed")
OPERATIONS = {
    "build": Operation(_build, _run_build, _look_bundle, ("misgnet_export.build",)),
    "image": Operation(_image, _run_image, _files("out/*"), (*_ENGINE, "misgnet_runtime.predict")),
    "folders": Operation(_folders, _run_folders, _files("out/*.png"), (*_ENGINE, "misgnet_runtime.folders")),
    "scene": Operation(_scene, _run_scene, _files("out/*"), _SCENE),
    "series": Operation(_series, _run_series, _files("out/*.tif"), _SCENE),
    "batch": Operation(_batch, _run_batch, _look_batch, (*_SCENE, "misgnet_runtime.batch.run")),
    "watch": Operation(_watch, _run_watch, _files("out/*.tif"), (*_SCENE, "misgnet_runtime.watch.service")),
    "sign": Operation(_sign, _run_sign, _look_sign, (*_TRUST, "model_signing.signing", "misgnet_export.signing")),
    "accept": Operation(_accept, _run_accept, _look_accepted, _TRUST),
}
