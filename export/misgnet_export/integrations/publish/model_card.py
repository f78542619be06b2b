"""Writes a bundle's model card: Markdown with the metadata that the Hugging Face Hub reads.

The fields are those of https://huggingface.co/docs/hub/model-cards. Values in the metadata are JSON, which is YAML too.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from misgnet_export.integrations.publish.bundle_copy import COPY, title_of
from misgnet_runtime.accuracy.limit import limit_of
from misgnet_runtime.bundle import Bundle, Manifest
from misgnet_runtime.errors import InputError
from misgnet_runtime.formatting import format_percent, plural, printable

# Licences that the Hub knows; it shows any other one by its name.
_LICENCES = frozenset({
    "agpl-3.0", "apache-2.0", "bsd-2-clause", "bsd-3-clause", "cc-by-4.0", "cc-by-nc-4.0", "cc-by-nc-nd-4.0",
    "cc-by-nc-sa-4.0", "cc-by-nd-4.0", "cc-by-sa-4.0", "cc0-1.0", "gpl-3.0", "lgpl-3.0", "mit", "mpl-2.0", "unlicense",
})  # fmt: skip
_TASK = "image-segmentation"
_MARKUP = re.compile(r"[\\`*_\[\]<>#|~&$]")


class _Interval(msgspec.Struct):
    low: float
    high: float
    sources: int


class _Engine(msgspec.Struct):
    """What the card states about an engine; see ``EngineParity``."""

    engine: str
    precision: str = ""
    status: str = ""
    scores: dict[str, float | None] = msgspec.field(default_factory=dict)
    f1_drop_points: float | None = None
    interval: _Interval | None = None
    agreement: float | None = None


class _Measured(msgspec.Struct):
    """What the card states about the evaluation; see ``ParityReport``."""

    engines: list[_Engine] = msgspec.field(default_factory=list)
    reference: str = "the float model"
    reference_scores: dict[str, float | None] = msgspec.field(default_factory=dict)
    tiles: int | None = None
    sources: int | None = None
    evaluation_sha256: str = ""
    labelled: bool = True


def model_card(bundle: Bundle, picture: str) -> str:
    """Returns the text of the card; ``picture`` is the name of the picture beside it.

    Raises:
        InputError: The accuracy of the engines cannot be read.
    """
    try:
        measured = msgspec.convert(bundle.manifest.metrics, _Measured)
    except msgspec.ValidationError as error:
        raise InputError(f"bundle {bundle.name}: the manifest's metrics cannot be read: {error}") from error
    return "\n".join(["---", *_fields(bundle, measured), "---", "", *_text(bundle, measured, picture)]) + "\n"


def _fields(bundle: Bundle, measured: _Measured) -> Iterator[str]:
    """Yields the metadata as lines of YAML."""
    yield from (f"{name}: {_json(value)}" for name, value in _licence(bundle.manifest.licence).items())
    yield 'library_name: "misgnet-export"'
    yield f"pipeline_tag: {_json(_TASK)}"
    yield 'tags: ["change-detection", "remote-sensing", "onnx"]'
    if metrics := [metric for engine in measured.engines for metric in _metrics(engine)]:
        data = {"type": "evaluation", "name": _evaluated_on(measured), "args": {"sha256": measured.evaluation_sha256}}
        yield "model-index:"
        yield f"- name: {_json(title_of(bundle))}"
        yield "  results:"
        yield f"  - task: {_json({'type': _TASK, 'name': 'Change detection'})}"
        yield f"    dataset: {_json(data)}"
        yield "    metrics:"
        yield from (f"    - {_json(metric)}" for metric in metrics)


def _licence(text: str) -> dict[str, str]:
    if text == "not stated":
        return {"license": "unknown"}
    if text.lower() in _LICENCES:
        return {"license": text.lower()}
    return {"license": "other", "license_name": text}


def _metrics(engine: _Engine) -> Iterator[dict[str, Any]]:
    """Yields what was measured of an engine."""
    span = engine.interval and {"args": {"interval_95": [engine.interval.low, engine.interval.high]}}
    for kind, name, value, more in (
        ("f1", "F1 of the changed class", engine.scores.get("f1"), None),
        ("f1_drop_points", "F1 drop against the float model in points", engine.f1_drop_points, span),
        ("agreement", "Share of pixels equal to the float model's", engine.agreement, None),
    ):
        if value is not None:
            named = f"{name}, engine {engine.engine} ({engine.precision})"
            yield {"type": kind, "name": named, "value": value, **(more or {})}


def _evaluated_on(measured: _Measured) -> str:
    if measured.tiles is None or measured.sources is None:
        return "the evaluation set of the build"
    return f"{plural(measured.tiles, 'tile')} of {plural(measured.sources, 'image')}"


def _text(bundle: Bundle, measured: _Measured, picture: str) -> Iterator[str]:
    manifest = bundle.manifest
    yield f"# {_plain(title_of(bundle))}"
    yield ""
    yield "Finds what changed between two co-registered images of the same place. The folder holds a bundle of engines"
    yield "that were compared with the float model; `misgnet-run` of the package misgnet-export runs it."
    yield ""
    yield f"![Before, after, and the change that the float model finds]({picture})"
    for title, lines in (
        ("Use", _use(manifest)), ("Accuracy", _accuracy(manifest, measured)), ("Calibration", _calibration(manifest)),
        ("Intended use", _intended(manifest)), ("Limits", _limits(manifest, measured)), ("Origin", _origin(bundle)),
    ):  # fmt: skip
        yield from ("", f"## {title}", "", *lines)


def _use(manifest: Manifest) -> Iterator[str]:
    parameters = manifest.model.parameters if manifest.model else None
    yield "```sh"
    yield "pip install 'misgnet-export[geo]'"
    yield f"misgnet-run verify {COPY}"
    yield f"misgnet-run predict {COPY} before.tif after.tif -o change.tif"
    yield "```"
    yield ""
    yield from _table({
        "images": f"{manifest.interface.pixels}: {_plain(', '.join(manifest.preprocessing.bands))}",
        "resolution": "not stated" if manifest.resolution is None else f"{manifest.resolution:g} m per pixel",
        "tile": f"{manifest.tile} px, overlap {manifest.scene_overlap} px in larger images",
        "output": _plain(f"{manifest.outputs[0].name}, {manifest.outputs[0].dtype}; classes "
                         f"{', '.join(manifest.class_names)}"),
        "threshold": f"{manifest.threshold:g} ({_plain(manifest.threshold_from)})",
        "parameters": "not stated" if parameters is None else f"{parameters:,}",
    })  # fmt: skip


def _accuracy(manifest: Manifest, measured: _Measured) -> Iterator[str]:
    f1 = measured.reference_scores.get("f1")
    yield f"Measured on {_evaluated_on(measured)} that calibration did not see, with threshold {manifest.threshold:g}."
    yield f"Reference: {_plain(measured.reference)}" + ("." if f1 is None else f", F1 {f1:.4f}.")
    if not measured.labelled:
        yield "The images have no labels, so F1 was not measured, and the agreement decided."
    yield ""
    yield "| engine | precision | F1 | drop, points (95 % interval) | agreement | measured |"
    yield "|---|---|---|---|---|---|"
    how = {"run": "itself", "proxy": "by proxy: another engine ran its graph"}
    for engine in measured.engines:
        names = f"{_plain(engine.engine)} | {_plain(engine.precision)}"
        agreement = "n/a" if engine.agreement is None else format_percent(engine.agreement)
        scores = f"{_number(engine.scores.get('f1'), '.4f')} | {_drop(engine)} | {agreement}"
        yield f"| {names} | {scores} | {how.get(engine.status, 'not run')} |"
    yield ""
    yield f"Required of each engine: {_plain(limit_of(manifest).describe(manifest.gate))}."
    yield "The interval resamples the images (bootstrap)."


def _drop(engine: _Engine) -> str:
    if engine.f1_drop_points is None or engine.interval is None:
        return _number(engine.f1_drop_points, "+.3f")
    return f"{engine.f1_drop_points:+.3f} ({engine.interval.low:+.3f} to {engine.interval.high:+.3f})"


def _calibration(manifest: Manifest) -> Iterator[str]:
    if not manifest.quantization:
        yield "No engine is quantized."
        return
    found = manifest.calibration
    yield f"INT8 ranges come from {plural(found.tiles, 'tile')} (SHA-256 {found.tiles_sha256[:16]})."
    yield f"Selection: {_plain(found.selection)}. Settings were decided on {_plain(found.decided_on)}."
    yield ""
    yield "| graph | calibrator | INT8 share of the MACs |"
    yield "|---|---|---|"
    for entry in manifest.quantization:
        share = format_percent(entry.int8_share_of_multiply_adds)
        yield f"| {_plain(entry.graph)} | {_plain(entry.calibrator)} | {share} |"


def _intended(manifest: Manifest) -> Iterator[str]:
    bands = plural(manifest.interface.bands, "band")
    yield f"Maps of change from two co-registered images of the same place, each of {bands} in the order above, with"
    yield "about the resolution and the kind of scenes of the training data."


def _limits(manifest: Manifest, measured: _Measured) -> Iterator[str]:
    yield f"- The accuracy above is that on {_evaluated_on(measured)}. Other sensors, seasons, places and resolutions"
    yield "  were not measured: evaluate on your own labelled images (`misgnet-export parity`) before you rely on it."
    yield "- Images that are offset against each other give false changes at edges."
    yield "- The output is a network's probability, not a measured frequency."
    if any(engine.status != "run" for engine in measured.engines):
        yield "- Engines measured by proxy, or not run, were never run on their own processor; run `misgnet-run verify`"
        yield "  there."
    if manifest.resolution is None:
        yield "- The resolution of the training data is not stated."


def _origin(bundle: Bundle) -> Iterator[str]:
    manifest = bundle.manifest
    yield from _table({
        "licence of the weights": _plain(manifest.licence),
        "bundle": f"version {manifest.bundle_version}, built {_plain(manifest.created)}",
        "network": _plain(manifest.model.name) if manifest.model else "MISGNet",
        "SHA-256 of the source weights": f"`{_plain(manifest.source_weights_sha256)}`",
        "SHA-256 of the manifest": f"`{bundle.digest()}`",
    })  # fmt: skip


def _table(rows: Mapping[str, str]) -> Iterator[str]:
    yield "| | value |"
    yield "|---|---|"
    yield from (f"| {name} | {value} |" for name, value in rows.items())


def _number(value: float | None, form: str) -> str:
    return "n/a" if value is None else format(value, form)


def _plain(text: str) -> str:
    """Escapes text of the manifest for the middle of a line of Markdown."""
    return _MARKUP.sub(r"\\\g<0>", printable(text))


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=True, allow_nan=False)
