"""Runs split engines: the encoder computes each date's features, and the head compares the features of two dates."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from types import TracebackType

import msgspec
import numpy as np
from numpy.typing import NDArray

from misgnet_runtime.bundle.checked import CheckedFiles
from misgnet_runtime.bundle.manifest import EngineEntry, Interface, TensorEntry, head_inputs
from misgnet_runtime.bundle.reader import Bundle
from misgnet_runtime.callables import Image
from misgnet_runtime.engines import DEFAULT_EXECUTION, Engine, ExecutionOptions, open_engine_file
from misgnet_runtime.errors import InputError, UsageError
from misgnet_runtime.inference.detector import Probability, as_input, misfit, to_probability
from misgnet_runtime.inference.selection import EngineOpener, open_chosen
from misgnet_runtime.inference.tuned import OptimiseFor

Features = Sequence[NDArray[np.float32]]


class SplitDetector:
    """Encoder and head of one engine. Owns both: use it in a ``with`` block.

    Threads may share it, as they may share its engines.
    """

    def __init__(
        self,
        encoder: Engine,
        head: Engine,
        interface: Interface,
        features: list[TensorEntry],
        batch: int | None = None,
    ) -> None:
        """Takes ownership of both open engines.

        Args:
            encoder: Closed here if it does not match.
            head: Closed here if it does not match.
            interface: Inputs and outputs of the whole engine.
            features: Outputs of the encoder for one date.
            batch: Tiles per call, as requested or tuned; None: the caller chooses.

        Raises:
            InputError: An engine does not match ``interface`` and ``features``.
        """
        with ExitStack() as owned:
            owned.enter_context(encoder)
            owned.enter_context(head)
            _check("encoder", encoder, interface.encoder_inputs(), features, interface.max_batch)
            _check("head", head, head_inputs(features), interface.outputs(), interface.max_batch)
            self._owned = owned.pop_all()
        self.encoder = encoder
        self.head = head
        self.interface = interface
        self.features = features
        self.batch = batch

    def encode(self, images: Image) -> list[NDArray[np.float32]]:
        """Returns the features (B, ...), in the order of ``features``, of raw tiles (B, T, T, C) of one date."""
        (entry,) = self.interface.encoder_inputs()
        found = self.encoder.infer({entry.name: as_input(images, self.interface)})
        return [found[feature.name] for feature in self.features]

    def compare(self, before: Features, after: Features) -> Probability:
        """Returns the probability of change, float32 (B, T, T), from the features of both dates.

        Raises:
            InputError: An array does not match its spec.
            ValueError: The number of arrays differs from ``features``.
        """
        names = [entry.name for entry in head_inputs(self.features)]
        (output,) = self.head.infer(dict(zip(names, (*before, *after), strict=True))).values()
        return to_probability(output, self.interface)

    def probability(self, before: Image, after: Image) -> Probability:
        """Same as :meth:`ChangeDetector.probability`; each date is encoded separately."""
        return self.compare(self.encode(before), self.encode(after))

    def __enter__(self) -> SplitDetector:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._owned.close()


def open_split(
    bundle: Bundle,
    entry: EngineEntry,
    execution: ExecutionOptions = DEFAULT_EXECUTION,
    *,
    open_file: Callable[[EngineEntry, CheckedFiles, int, ExecutionOptions], Engine] = open_engine_file,
) -> SplitDetector:
    """Opens both parts of ``entry``, an engine of ``bundle``, with the same options (default: one stream).

    ``open_file`` opens each part.

    Raises:
        UsageError: The engine is not split.
        UnavailableError: A part does not run here.
        InputError: A part cannot be opened.
    """
    if entry.split is None:
        split = ", ".join(other.name for other in bundle.manifest.engines if other.split)
        advice = f"choose one of {split}" if split else "build it with misgnet-export build --split"
        raise UsageError(f"engine {entry.name} of bundle {bundle.name} is not split; {advice}")
    interface = bundle.manifest.interface

    def open_part(file: str) -> Engine:
        part = msgspec.structs.replace(entry, file=file)
        return open_file(part, bundle.files, interface.max_batch, execution)

    with ExitStack() as opened:
        encoder = opened.enter_context(open_part(entry.split.encoder))
        head = open_part(entry.split.head)
        opened.pop_all()
    return SplitDetector(encoder, head, interface, bundle.manifest.features, execution.batch)


SplitOpener = EngineOpener[tuple[SplitDetector, EngineEntry, str]]


@contextmanager
def choose_split(
    bundle: Bundle,
    engine: str = "auto",
    execution: ExecutionOptions = DEFAULT_EXECUTION,
    *,
    optimise_for: OptimiseFor | None = None,
) -> Iterator[tuple[SplitDetector, EngineEntry, str]]:
    """Opens both parts of an engine; arguments as for :func:`selection.open_detector`.

    "auto" selects the fastest split engine that runs here. Settings tuned for a whole engine apply to its parts.
    Yields the parts, the engine's entry, and why it was selected. Raises UsageError if the engine is not split.
    """
    if engine == "auto" and not any(entry.split for entry in bundle.manifest.engines):
        raise UsageError(f"no engine of bundle {bundle.name} is split; build it with misgnet-export build --split")

    def open_one(entry: EngineEntry, resolved: ExecutionOptions) -> SplitDetector:
        return open_split(bundle, entry, resolved)

    opened, _, entry, reason = open_chosen(
        bundle, open_one, engine, execution, optimise_for=optimise_for, usable=lambda entry: entry.split is not None
    )
    with opened as detector:
        yield detector, entry, reason


def _check(part: str, engine: Engine, inputs: list[TensorEntry], outputs: list[TensorEntry], max_batch: int) -> None:
    if found := misfit(engine, inputs, outputs, max_batch):
        raise InputError(f"the {part} does not match its interface: {found}; build the bundle again")
