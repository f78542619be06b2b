"""Trains each network, exports it, builds its bundles and compares them; keeps what a later run can use."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import msgspec
from msgspec import structs

from benchmarks.contest import kept
from benchmarks.contest.environments import REQUIREMENTS, pins, prepare
from benchmarks.contest.guest import ContenderFailed, foreign_environment
from benchmarks.contest.peers import step
from benchmarks.networks import rows, tiles
from benchmarks.networks.networks import FACTORIES, GUESTS, WAYS, Network, Way
from benchmarks.networks.report import Report, Row
from misgnet_export.pipeline.targets import PRODUCTS
from misgnet_runtime.bundle import read_bundle
from misgnet_runtime.formatting import plural
from misgnet_runtime.machine import describe_machine, fits_processor, usable_cores
from misgnet_runtime.raster.dataset import TileSet
from misgnet_runtime.storage.files import file_sha256
from misgnet_runtime.storage.schema import encode

ENVIRONMENT = "networks"
ROOT = Path(__file__).parents[2]
PACKAGES = ("", "export", "calibration", "runtime")  # folders of this checkout on the import path of a guest
RTX = "rtx-sm86,sm89"
USAGE = 2  # exit code
STEPS = 400  # at most, of a training
SOURCES = ("misgnet", "export", "calibration", "runtime")  # what a bundle depends on


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of the command."""

    data: Path
    cache: Path
    # Minutes of each training, for accuracy control and per step.
    minutes: float = 2.0
    control_minutes: float = 1.0
    limit: float = 30.0
    # Calibration tiles.
    calib_tiles: int = 32
    # Whether builds neither try several calibrators, nor repair, nor control.
    quick: bool = False


# Of a build without repairs and accuracy control, so that the table has the figures of INT8 graphs that lose F1.
QUICK_RATIO = "0.9"


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a run works, and what all of its networks share."""

    options: Options
    work: Path
    # Interpreter of the networks' environment.
    python: Path
    # Digest of the tiles.
    tiles: str
    # Digest of the sources of this project.
    sources: str

    def folder(self, network: Network) -> Path:
        folder = self.work / network.key
        folder.mkdir(exist_ok=True)
        return folder

    def tile_folder(self, network: Network, split: str) -> Path:
        return self.work / "tiles" / ("rgb" if network.bands == 3 else "bands") / split


def run(options: Options, work: Path, networks: Iterable[Network], ways: tuple[Way, ...] = WAYS) -> Report:
    """Makes a row for each network in each way. ``work``: folder of this run, which may be of an earlier one."""
    python = prepare(ENVIRONMENT, options.cache, 60 * options.limit)
    digest = _cut(options.data, work / "tiles")
    place = Place(options=options, work=work, python=python, tiles=digest, sources=_digest_of_sources())
    networks = list(networks)
    _train_all(place, networks)
    made = [_kept_row(place, network, way) for network in networks for way in ways]
    settings = {"side": tiles.SIDE, "calibration": options.calib_tiles, "minutes": options.minutes, **tiles.COUNTS}
    settings["quick"] = options.quick
    return Report(describe_machine(), settings, pins(REQUIREMENTS / f"{ENVIRONMENT}.txt"), made)


def _train_all(place: Place, networks: list[Network]) -> None:
    """Trains as many networks at once as there are cores; a training that fails does so again in its row."""

    def train(network: Network) -> None:
        with suppress(ContenderFailed):
            _weights(place, network)

    with ThreadPoolExecutor(usable_cores()) as pool:
        list(pool.map(train, networks))


def _kept_row(place: Place, network: Network, way: Way) -> Row:
    """Returns the row of an earlier run if nothing that it depends on has changed, else a new one."""
    path = place.folder(network) / f"{way}.json"
    numbers = [place.options.calib_tiles, place.options.control_minutes, place.options.quick]
    key = _key(place.tiles, place.sources, network, _guests("*.py"), numbers, way)
    if path.is_file() and (stored := json.loads(path.read_bytes()))["key"] == key:
        return msgspec.convert(stored["row"], Row)
    row = _row(place, network, way)
    path.write_text(json.dumps({"key": key, "row": json.loads(encode(row))}))
    return row


def _row(place: Place, network: Network, way: Way) -> Row:
    row = Row(
        key=network.key, title=network.title, way=way, package=network.package, version="", licence="",
        io=network.io_of(way), output=network.output, bands=network.bands, trained=network.trained,
    )  # fmt: skip
    try:
        row = structs.replace(row, **_package(place, network.package))
        trained = _weights(place, network)
        row = structs.replace(row, parameters=trained["parameters"])
        source, words = _source(place, network, way)
        row = structs.replace(row, exported=words)
        threshold = None if network.trained else _median(place, network)
        return _built(place, network, row, source, threshold)
    except ContenderFailed as error:
        return structs.replace(row, failed=_without_folder(place, str(error)))


def _built(place: Place, network: Network, row: Row, source: list[str], threshold: float | None) -> Row:
    """Builds the bundle, without plans if they cannot be compiled, and compares it."""
    bundle, log = place.folder(network) / row.way, place.folder(network) / f"{row.way}.txt"
    options = _build_options(place, network, threshold)
    start, reason = time.monotonic(), ""
    try:
        _build(place, [*source, *options, "--target", RTX], bundle, log)
    except ContenderFailed as error:
        reason = str(error)
        start = time.monotonic()
        _build(place, [*source, *options], bundle, log)
    seconds = time.monotonic() - start
    manifest = read_bundle(bundle).manifest
    with step(f"{network.title}, {row.way}: comparing"):
        asked = _request(place, network, "test") | {
            "bundle": bundle, "engines": list(rows.engines_here(manifest)), "threshold": manifest.threshold,
        }  # fmt: skip
        compared = _guest(place, network, "compare", asked)
    row = structs.replace(row, seconds=seconds, notes=[_without_folder(place, note) for note in _warnings(log)])
    return rows.completed(row, bundle, compared, _without_folder(place, reason))


def _without_folder(place: Place, text: str) -> str:
    """Returns a message without the folder of this run: results are published."""
    return text.replace(f"{place.work}/", "")


def _build_options(place: Place, network: Network, threshold: float | None) -> list[str]:
    words = ["--force", "--tile", str(tiles.SIDE), "--calib-tiles", str(place.options.calib_tiles)]
    for option, split in (("--calib", "train"), ("--val", "val"), ("--eval", "test")):
        words += [option, str(place.tile_folder(network, split))]
    minutes = 0 if place.options.quick else place.options.control_minutes
    words += ["--control-minutes", f"{minutes:g}", "--target", "auto"]
    if place.options.quick:
        words += ["--observer", "max", "--repair", "never", "--min-f1-ratio", QUICK_RATIO]
    if fits_processor(PRODUCTS["openvino-bf16"].needs):
        words += ["--target", "openvino-bf16"]
    return words if threshold is None else [*words, "--threshold", f"{threshold:.6f}"]


def _build(place: Place, words: list[str], bundle: Path, log: Path) -> None:
    """Runs ``misgnet-export build`` as a user would. Raises ContenderFailed with its message."""
    command = [str(place.python), str(GUESTS / "build.py"), "build", *words, "-o", str(bundle)]
    with step(f"building {bundle}"), log.open("w") as output:
        limit = 60 * place.options.limit
        try:
            done = subprocess.run(command, check=False, stdout=output, stderr=output, env=_environment(), timeout=limit)
        except subprocess.TimeoutExpired:
            raise ContenderFailed(f"the build took more than {place.options.limit:g} minutes") from None
    if done.returncode:
        lines = [line for line in log.read_text().splitlines() if line.strip()] or ["no message"]
        errors = [line for line in lines if line.startswith("error:")] or lines[-1:]
        raise ContenderFailed(f"exit code {done.returncode}: {errors[-1].removeprefix('error: ')}")


def _warnings(log: Path) -> list[str]:
    return [
        line.removeprefix("warning: ")
        for line in log.read_text().splitlines()
        if line.startswith("warning:") and "is left out of" not in line
    ]


def _source(place: Place, network: Network, way: Way) -> tuple[list[str], str]:
    """Returns the words of a build that name and describe the network, and how it was exported."""
    if way == "pytorch":
        words = [f"{FACTORIES}:{network.factory}", "--weights", str(_weights_path(place, network))]
        return [*words, *network.declaration(way)], ""
    how, path = network.onnx, place.folder(network) / f"{network.key}.onnx"
    asked = _request(place, network, "test") | {
        "onnx": path, "onnx_factory": network.factory_of(way), "onnx_io": network.io_of(way),
        "outputs": how.outputs, "exporter": how.exporter, "opset": how.opset, "dynamic": how.dynamic,
        "side": tiles.SIDE,
    }  # fmt: skip
    key = _key(file_sha256(_weights_path(place, network)), how, _guests("forward.py", "factories.py", "to_onnx.py"))
    made = _kept_reply(place, network, "to_onnx", asked, output=path, key=key)
    batch = f"batch of {made['batch']}" if made["batch"] else "any batch"
    return [str(path), *network.declaration(way)], f"ONNX: {how.exporter}, opset {made['opset']}, {batch}"


def _weights(place: Place, network: Network) -> dict[str, Any]:
    """Trains the network, or writes its random weights; returns the reply of the training."""
    asked = _request(place, network, "train") | {
        "minutes": place.options.minutes, "steps": STEPS if network.trained else 0
    }  # fmt: skip
    key = _key(
        place.tiles,
        place.options.minutes,
        network.trained,
        network.factory,
        _guests("forward.py", "factories.py", "train.py"),
    )
    return _kept_reply(place, network, "train", asked, output=_weights_path(place, network), key=key)


def _median(place: Place, network: Network) -> float:
    """Returns the median probability of a network with random weights, which is then its threshold."""
    found: float = _guest(place, network, "compare", _request(place, network, "val"))["median"]
    return found


def _package(place: Place, name: str) -> dict[str, str]:
    """Returns version and licence of an installed package."""
    code = (
        "import json, sys; from importlib.metadata import metadata; m = metadata(sys.argv[1]); "
        "print(json.dumps({'version': m['Version'], 'licence': m['License-Expression'] or m['License']}))"
    )
    done = subprocess.run(
        [str(place.python), "-c", code, name], check=True, capture_output=True, text=True, env=_environment()
    )
    found: dict[str, str] = json.loads(done.stdout)
    return found


def _request(place: Place, network: Network, split: str) -> dict[str, Any]:
    numbers = network.numbers()
    return {
        "factory": network.factory, "io": network.io, "output": network.output, "scale": numbers.scale,
        "mean": numbers.mean, "std": numbers.std, "weights": _weights_path(place, network),
        "tiles": place.tile_folder(network, split),
    }  # fmt: skip


def _weights_path(place: Place, network: Network) -> Path:
    return place.folder(network) / "weights.safetensors"


def _kept_reply(
    place: Place, network: Network, script: str, asked: dict[str, Any], *, output: Path, key: str
) -> dict[str, Any]:
    """Returns the reply of a script that writes ``output``, from an earlier run if nothing has changed."""
    stored = output.with_suffix(f"{output.suffix}.made")
    stored.mkdir(exist_ok=True)
    reply = kept.read(stored, key)
    if reply is None or not output.is_file():
        with step(f"{network.title}: {script}"):
            reply = _guest(place, network, script, asked)
        kept.write(stored, key, reply)
    return reply


def _guest(place: Place, network: Network, script: str, asked: dict[str, Any]) -> dict[str, Any]:
    """Runs a script of ``guests/`` in the networks' environment. Raises ContenderFailed with its last message."""
    request, log = place.folder(network) / f"{script}.json", place.folder(network) / f"{script}.txt"
    request.write_text(json.dumps(asked, default=str))
    command = [str(place.python), str(GUESTS / f"{script}.py"), str(request)]
    with log.open("w") as stderr:
        try:
            done = subprocess.run(
                command, check=False, stdout=subprocess.PIPE, stderr=stderr, text=True, env=_environment(),
                timeout=60 * place.options.limit,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            raise ContenderFailed(f"{script} took more than {place.options.limit:g} minutes") from None
    if done.returncode:
        lines = log.read_text().strip().splitlines() or ["no message"]
        raise ContenderFailed(f"{script} failed: {lines[-1]}")
    reply: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return reply


def _environment() -> dict[str, str]:
    """Returns the environment of a guest: its own packages, this checkout, and no GPU."""
    path = os.pathsep.join(str(ROOT / folder) for folder in PACKAGES)
    return {**foreign_environment(), "PYTHONPATH": path, "PYTHONSAFEPATH": "", "CUDA_VISIBLE_DEVICES": ""}


def _cut(data: Path, folder: Path) -> str:
    """Returns the digest of the tiles, which are cut unless an earlier run cut them from the same images."""
    sets = [TileSet.open(data / split, tiles.SIDE) for split in tiles.COUNTS]
    key = _key(*(found.digest() for found in sets), tiles.COUNTS, file_sha256(Path(tiles.__file__)))
    stamp = folder.with_suffix(".made")
    if not (stamp.is_file() and stamp.read_text() == key):
        stamp.unlink(missing_ok=True)
        with step(f"cutting {plural(sum(tiles.COUNTS.values()), 'tile')}"):
            tiles.cut(data, folder)
        stamp.write_text(key)
    return key


def _digest_of_sources() -> str:
    return _key(*(path.read_text() for folder in SOURCES for path in sorted((ROOT / folder).rglob("*.py"))))


def _guests(*patterns: str) -> list[str]:
    return [file_sha256(path) for pattern in patterns for path in sorted(GUESTS.glob(pattern))]


def _key(*parts: object) -> str:
    described = [repr(asdict(part)) if isinstance(part, Network) else repr(part) for part in parts]
    return hashlib.sha256("\n".join(described).encode()).hexdigest()
