"""Merges what a network shows with what the user declares: pure functions that neither read nor run the network.

What contradicts is refused. What can neither be found out nor was declared is asked for, all of it in one message.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from misgnet_export.sources.declaration import Declaration, Found
from misgnet_export.sources.options import ModelIo, ModelOptions, ModelOutput, OutputKind, Preset
from misgnet_runtime.bundle import IMAGENET_MEAN, IMAGENET_STD, Normalization
from misgnet_runtime.errors import UsageError
from misgnet_runtime.formatting import plural, printable
from misgnet_runtime.pixels import LARGEST, MOST_BANDS, Samples

_INPUTS: dict[ModelIo, int] = {"pair": 2, "stacked": 1, "time": 1}
_KINDS: dict[int | None, str] = {
    None: "logits2 (or logit1, probability1, probability2, classes:N)",
    1: "logit1 (or probability1; the output has 1 channel)",
    2: "logits2 (or probability2, classes:2; the output has 2 channels)",
}
_PRESETS: dict[Preset, tuple[float, float]] = {"half": (0.5, 0.5), "unit": (0.0, 1.0), "none": (0.0, 1.0)}
_OUTPUT_WORDS: dict[OutputKind, str] = {
    "logits2": "logits of two classes", "logit1": "one logit of change", "probability1": "the probability of change",
    "probability2": "probabilities of two classes", "classes": "logits of {0} classes, of which {1} count as changed",
}  # fmt: skip
_SHOWN_NAMES = 8  # in a message
_SHOWN_LETTERS = 60  # of each
_UNKNOWN_OUTPUT = ModelOutput("logits2", 2)  # stands in a declaration that is not returned


@dataclass
class _Asked:
    """The options that must be added, each with the other accepted values."""

    options: list[str] = field(default_factory=list)

    def add(self, text: str) -> None:
        self.options.append(text)

    def refuse(self, name: str, found: Sequence[str]) -> None:
        """Raises UsageError if anything is asked for; its notes are what was ``found``."""
        if self.options:
            count = plural(len(self.options), "thing")
            error = UsageError(f"{name}: {count} cannot be found out; add {' '.join(self.options)}")
            for words in found:
                error.add_note(words)
            raise error


def resolve(found: Found, options: ModelOptions, name: str) -> tuple[Declaration, tuple[str, ...]]:
    """Returns what the network is, and what was found and declared, in words.

    Args:
        found: What the network shows.
        options: What the user declares about it.
        name: The network's name in messages.

    Raises:
        UsageError: A declaration contradicts the network or another one, or something is neither found nor declared.
            In the latter case, the exception's notes are what was found.
    """
    asked = _Asked()
    inputs = _inputs(found, options, asked)
    io = _io(found, options, inputs, asked)
    if io is not None and inputs and len(inputs) != _INPUTS[io]:
        raise UsageError(_wrong_count(options, inputs, io))
    bands = _bands(found, options, io, asked)
    output_name = _output_name(found, options, asked)
    output = _output(found, options, asked)
    changed = _changed(options, output, asked)
    samples: Samples = "uint16" if found.dtype == "uint16" else options.samples
    if found.dtype == "uint8" != samples:
        raise UsageError("--samples is uint16, but the network reads uint8; leave --samples out")
    normalization = _normalization(found, options, bands, samples, asked)
    multiple = _multiple(found, options)
    check_resolution(options)
    words = _found_words(found, inputs, io, bands, output_name)
    asked.refuse(name, words)
    assert io is not None and bands is not None and normalization is not None, "asked for"
    declaration = Declaration(
        io=io, layout=found.layout or "NCHW", dtype=found.dtype or "float32",
        inputs=inputs or (("before", "after") if io == "pair" else ("images",)),
        output_name=output_name, output=output, changed=changed, bands=bands, samples=samples,
        normalization=normalization, multiple=multiple,
    )  # fmt: skip
    return declaration, (*words, _declared_words(options, declaration))


def check_resolution(options: ModelOptions) -> None:
    """Raises UsageError for a resolution that is not a length."""
    if options.resolution is not None and not 0 < options.resolution < math.inf:
        raise UsageError(f"--resolution is {options.resolution:g}; expected metres per pixel, more than 0")


def _inputs(found: Found, options: ModelOptions, asked: _Asked) -> tuple[str, ...]:
    """Returns the names of the inputs; none if the network does not show them or they must be asked for."""
    named, shown = options.model_inputs, found.inputs
    if named is not None:
        if unknown := [one for one in named if shown and one not in shown]:
            raise UsageError(
                f"--model-inputs has {_quoted(unknown)}, but the inputs of the network are {_quoted(shown)}"
            )
        if len(named) > 2 or len(set(named)) < len(named):
            raise UsageError(f"--model-inputs has {_quoted(named)}; expected one name, or two different ones")
        return named
    if len(shown) <= 2:
        return shown
    count = _INPUTS[options.model_io or found.io or "pair"]
    names = ",".join(map(_shown, shown[:count]))
    asked.add(f"--model-inputs {names} (BEFORE first; the inputs are {_listed(shown)})")
    return ()


def _io(found: Found, options: ModelOptions, inputs: tuple[str, ...], asked: _Asked) -> ModelIo | None:
    said, shown = options.model_io, found.io
    if shown is None and len(inputs) == 2:
        shown = "pair"
    if said is not None and shown is not None and said != shown:
        what = f"{plural(len(inputs), 'input')} of the form of {shown}"
        raise UsageError(f"--model-io is {said}, but the network has {what}; leave --model-io out")
    if said is None and shown is None:
        asked.add("--model-io stacked (or time)" if len(inputs) == 1 else "--model-io pair (or stacked, time)")
    return said or shown


def _wrong_count(options: ModelOptions, inputs: tuple[str, ...], io: ModelIo) -> str:
    wanted, of = plural(_INPUTS[io], "input"), "--model-inputs names" if options.model_inputs else "the network has"
    asked = f"--model-io is {io}" if options.model_io else f"the network has the form of {io}"
    return f"{asked}, which has {wanted}, but {of} {len(inputs)}: {_quoted(inputs)}"


def _bands(found: Found, options: ModelOptions, io: ModelIo | None, asked: _Asked) -> int | None:
    said, shown = options.bands, found.bands
    if shown is not None and not 1 <= shown <= MOST_BANDS:
        raise UsageError(f"the network reads {plural(shown, 'band')} of each date; 1 to {MOST_BANDS} are supported")
    if said is not None and shown is not None and said != shown:
        channels = f"{2 * shown} channels, {shown} of each date" if io == "stacked" else plural(shown, "channel")
        raise UsageError(f"--bands is {said}, but the network's input has {channels}; leave --bands out")
    if said is None and shown is None:
        asked.add("--bands 3 (or another number of bands of each date)")
    return said or shown


def _output_name(found: Found, options: ModelOptions, asked: _Asked) -> str:
    said, shown = options.model_output_name, found.outputs
    if said is not None and shown and said not in shown:
        raise UsageError(
            f"--model-output-name is '{_shown(said)}', but the outputs of the network are {_quoted(shown)}"
        )
    if said is None and len(shown) > 1:
        asked.add(f"--model-output-name {_shown(shown[0])} (or another; the outputs are {_listed(shown)})")
    return said or next(iter(shown), "output")


def _output(found: Found, options: ModelOptions, asked: _Asked) -> ModelOutput:
    said, channels = options.model_output, found.channels
    if said is not None:
        if channels not in (None, said.channels):
            raise UsageError(
                f"--model-output is {said}, which has {plural(said.channels, 'channel')}, but the output of the "
                f"network has {channels}"
            )
        return said
    asked.add(f"--model-output {_KINDS.get(channels) or f'classes:{channels} (the output has {channels} channels)'}")
    return _UNKNOWN_OUTPUT if channels is None or channels <= 2 else ModelOutput("classes", channels)


def _changed(options: ModelOptions, output: ModelOutput, asked: _Asked) -> tuple[int, ...]:
    changed, count = options.changed, output.channels
    if output.kind != "classes":
        if changed is not None and options.model_output is not None:
            raise UsageError(f"--changed is for --model-output classes:N, but --model-output is {output}")
        return ()
    if changed is None:
        asked.add(f"--changed 1 (the classes from 0 to {count - 1} that count as changed, separated by commas)")
        return ()
    if beyond := [one for one in changed if one >= count]:
        raise UsageError(f"--changed has {beyond[0]}, but {output} has the classes 0 to {count - 1}")
    if len(changed) == count:
        raise UsageError(f"--changed has all {count} classes of {output}; leave those out that mean no change")
    return changed


def _normalization(
    found: Found, options: ModelOptions, bands: int | None, samples: Samples, asked: _Asked
) -> Normalization | None:
    preset, mean, std = options.normalization, options.mean, options.std
    own = [flag for flag, given in (("--mean", mean), ("--std", std)) if given is not None]
    if preset is not None and own:
        raise UsageError(f"--normalization {preset} and {' and '.join(own)} were both given; leave one out")
    if found.dtype in ("uint8", "uint16"):
        if own or options.scale is not None or preset not in (None, "none"):
            raise UsageError(
                f"the network reads raw {found.dtype} pixels, so it normalises them itself; leave --normalization, "
                "--mean, --std and --scale out"
            )
        preset = "none"
    if preset == "none" and options.scale is not None:
        raise UsageError("--normalization none keeps pixels as they are, but --scale was given; leave one out")
    scale = _scale(options, preset, samples)
    if preset is None and not own:
        asked.add("--normalization imagenet (or half, unit, none, or --mean and --std)")
        return None
    if preset is None and len(own) == 1:
        other = "--std 0.229,0.224,0.225" if own == ["--mean"] else "--mean 0.485,0.456,0.406"
        asked.add(f"{other} (one number, or one per band; {own[0]} was given)")
    if bands is None:
        return None
    if preset is not None:
        return _preset(preset, bands, scale)
    mean, std = _per_band("--mean", mean or (0.0,), bands), _per_band("--std", std or (1.0,), bands)
    if bad := [one for one in std if one <= 0]:
        raise UsageError(f"--std has {bad[0]:g}; expected numbers greater than 0")
    return Normalization(1 / scale, mean, std)


def _scale(options: ModelOptions, preset: Preset | None, samples: Samples) -> float:
    """Returns the number that pixels are divided by first."""
    if preset == "none":
        return 1.0
    if options.scale is None:
        return float(LARGEST[samples])
    if not 1e-30 < options.scale < 1e30:
        raise UsageError(f"--scale is {options.scale:g}; expected a finite number greater than 0")
    return options.scale


def _preset(preset: Preset, bands: int, scale: float) -> Normalization:
    if preset != "imagenet":
        mean, std = _PRESETS[preset]
        return Normalization(1 / scale, (mean,) * bands, (std,) * bands)
    if bands != len(IMAGENET_MEAN):
        raise UsageError(
            f"--normalization imagenet is for 3 bands, but the network reads {bands}; give --mean and --std"
        )
    return Normalization(1 / scale, IMAGENET_MEAN, IMAGENET_STD)


def _per_band(flag: str, numbers: tuple[float, ...], bands: int) -> tuple[float, ...]:
    if len(numbers) not in (1, bands):
        raise UsageError(f"{flag} has {len(numbers)} numbers, but each date has {plural(bands, 'band')}")
    return numbers * bands if len(numbers) == 1 else numbers


def _multiple(found: Found, options: ModelOptions) -> int:
    multiple = options.multiple or 1
    if found.tile is not None and found.tile % multiple:
        raise UsageError(f"--multiple is {multiple}, but the network accepts only tiles of {found.tile} px")
    return multiple


def _found_words(
    found: Found, inputs: Sequence[str], io: ModelIo | None, bands: int | None, output_name: str
) -> tuple[str, ...]:
    layout, count = found.layout or "NCHW", _INPUTS[io] if io else len(inputs)
    names = f" {_quoted(inputs)}" if inputs else ""
    parts = [f"{found.dtype or 'float32'}{f' {_shape(found, io, bands)}' if io else ''}", layout]
    parts += [f"{plural(bands, 'band')} of each date"] if bands else []
    parts += [io] if io else []
    channels = "" if found.channels is None else f": {plural(found.channels, 'channel')}"
    outputs = [f"output '{_shown(output_name)}'{channels}"] if found.outputs else []
    return (f"input{'s' * (count != 1)}{names}: {', '.join(parts)}", *outputs)


def _shape(found: Found, io: ModelIo, bands: int | None) -> str:
    """Returns the shape of an input, with letters for sizes that are not fixed: (B, 6, H, W)."""
    twice = 2 if io == "stacked" else 1
    channels = str(twice * bands) if bands else "2C" if twice == 2 else "C"
    height, width = (str(found.tile),) * 2 if found.tile else ("H", "W")
    image = [height, width, channels] if found.layout == "NHWC" else [channels, height, width]
    return f"({', '.join([str(found.batch or 'B'), *(['2'] if io == 'time' else []), *image])})"


def _declared_words(options: ModelOptions, what: Declaration) -> str:
    output = _OUTPUT_WORDS[what.output.kind].format(what.output.channels, ", ".join(map(str, what.changed)))
    parts = [output, _normalization_words(options, what)]
    if what.multiple > 1:
        parts.append(f"tiles of a multiple of {what.multiple} px")
    if options.resolution is not None:
        parts.append(f"{options.resolution:g} m per pixel")
    return f"declared: {', '.join(parts)}"


def _normalization_words(options: ModelOptions, what: Declaration) -> str:
    how = what.normalization
    if options.normalization == "none" or what.dtype in LARGEST:
        return f"{what.samples} pixels as they are"
    pixel = f"pixel / {1 / how.scale:g}"
    if options.normalization == "unit":
        return pixel
    if options.normalization == "imagenet":
        return f"ImageNet normalization of {pixel}"
    return f"{pixel} with mean {_numbers(how.mean)} and standard deviation {_numbers(how.std)}"


def _numbers(numbers: tuple[float, ...]) -> str:
    return ", ".join(f"{one:g}" for one in (numbers[:1] if len(set(numbers)) == 1 else numbers))


def _listed(names: Sequence[str]) -> str:
    """Returns names of a network for a message: at most eight, shortened, without control characters."""
    more = f", ... ({len(names)} in all)" if len(names) > _SHOWN_NAMES else ""
    return ", ".join(_shown(name) for name in names[:_SHOWN_NAMES]) + more


def _quoted(names: Sequence[str]) -> str:
    return " and ".join(f"'{_shown(name)}'" for name in names) if len(names) <= 2 else _listed(names)


def _shown(name: str) -> str:
    return printable(name if len(name) <= _SHOWN_LETTERS else f"{name[:_SHOWN_LETTERS]}...")
