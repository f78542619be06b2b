"""Split engines: each date goes through the encoder alone, and the head compares any two dates' features."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from types import TracebackType

import msgspec
import numpy as np
from numpy.typing import NDArray

from misgnet_runtime.bundle.manifest import EngineEntry, Interface, TensorEntry, head_inputs
from misgnet_runtime.bundle.reader import Bundle
from misgnet_runtime.engines import DEFAULT_EXECUTION, Engine, ExecutionOptions, open_engine_file
from misgnet_runtime.errors import InputError, UsageError
from misgnet_runtime.inference.detector import Probability, as_input, misfit, to_probability
from misgnet_runtime.inference.selection import open_chosen
from misgnet_runtime.inference.tuned import Goal

Features = Sequence[NDArray[np.float32]]


class SplitDetector:
    """Encoder and head of one engine. Owns both; use it in a ``with`` block. Threads may share it, as its engines.

    ``features``: what the encoder answers for one date; ``batch``: tiles at once, if that was asked for or tuned.
    Raises InputError, and closes both engines, where they are not what ``interface`` and ``features`` say.
    """

    def __init__(
        self,
        encoder: Engine,
        head: Engine,
        interface: Interface,
        features: list[TensorEntry],
        batch: int | None = None,
    ) -> None:
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

    def encode(self, images: NDArray[np.uint8]) -> list[NDArray[np.float32]]:
        """uint8 RGB tiles (B, T, T, 3) of one date -> its features (B, ...), in the order of ``features``."""
        (entry,) = self.interface.encoder_inputs()
        found = self.encoder.infer({entry.name: as_input(images, self.interface)})
        return [found[feature.name] for feature in self.features]

    def compare(self, before: Features, after: Features) -> Probability:
        """The features of both dates, as :meth:`encode` answers -> probability of change, float32 (B, T, T).

        Raises InputError where an array does not fit, ValueError where there are more or fewer than ``features``.
        """
        names = [entry.name for entry in head_inputs(self.features)]
        (output,) = self.head.infer(dict(zip(names, (*before, *after), strict=True))).values()
        return to_probability(output, self.interface)

    def probability(self, before: NDArray[np.uint8], after: NDArray[np.uint8]) -> Probability:
        """As :meth:`ChangeDetector.probability`, each date by itself."""
        return self.compare(self.encode(before), self.encode(after))

    def __enter__(self) -> SplitDetector:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._owned.close()


def open_split(bundle: Bundle, entry: EngineEntry, execution: ExecutionOptions = DEFAULT_EXECUTION) -> SplitDetector:
    """Open both parts of ``entry``, an engine of ``bundle``, each run as the whole engine is: by default in one stream.

    Raises UsageError where the engine is not split, UnavailableError and InputError where a part does not open.
    """
    if entry.split is None:
        split = ", ".join(other.name for other in bundle.manifest.engines if other.split)
        advice = f"take one of {split}" if split else "build it by misgnet-export build --split"
        raise UsageError(f"engine {entry.name} of bundle {bundle.name} is not split; {advice}")
    interface = bundle.manifest.interface

    def open_part(file: str) -> Engine:
        part = msgspec.structs.replace(entry, file=file)
        return open_engine_file(part, bundle.files, interface.max_batch, execution)

    with ExitStack() as opened:
        encoder = opened.enter_context(open_part(entry.split.encoder))
        head = open_part(entry.split.head)
        opened.pop_all()
    return SplitDetector(encoder, head, interface, bundle.manifest.features, execution.batch)


@contextmanager
def choose_split(
    bundle: Bundle,
    engine: str = "auto",
    execution: ExecutionOptions = DEFAULT_EXECUTION,
    *,
    goal: Goal | None = None,
) -> Iterator[tuple[SplitDetector, EngineEntry, str]]:
    """Both parts of the engine called ``engine``, its entry, and why it was taken; see :func:`selection.open_detector`.

    "auto" takes the fastest split engine that runs here; what was tuned of a whole engine holds for its parts. Raises
    UsageError where what is asked for is not split.
    """
    if engine == "auto" and not any(entry.split for entry in bundle.manifest.engines):
        raise UsageError(f"no engine of bundle {bundle.name} is split; build it by misgnet-export build --split")

    def open_one(entry: EngineEntry, resolved: ExecutionOptions) -> SplitDetector:
        return open_split(bundle, entry, resolved)

    opened, _, entry, reason = open_chosen(
        bundle, open_one, engine, execution, goal=goal, usable=lambda entry: entry.split is not None
    )
    with opened as detector:
        yield detector, entry, reason


def _check(part: str, engine: Engine, inputs: list[TensorEntry], outputs: list[TensorEntry], max_batch: int) -> None:
    if found := misfit(engine, inputs, outputs, max_batch):
        raise InputError(f"the {part} does not fit its interface: {found}; build the bundle again")
