"""Collects log events in memory."""

from __future__ import annotations

import logging

from misgnet_runtime.log import collector


class Collected:
    """A log and its events."""

    def __init__(self) -> None:
        self.log, self.records = collector()

    @property
    def messages(self) -> list[str]:
        """Returns the messages of all events except results, in order."""
        return [record.getMessage() for record in self.records if record.event != "result"]  # type: ignore[attr-defined]

    @property
    def warnings(self) -> list[str]:
        return [record.getMessage() for record in self.records if record.levelno >= logging.WARNING]

    @property
    def results(self) -> list[dict[str, object]]:
        return [record.fields for record in self.records if record.event == "result"]  # type: ignore[attr-defined]

    def fields_of(self, message: str) -> dict[str, object]:
        """Returns the fields of the last event whose message contains ``message``."""
        found = [record.fields for record in self.records if message in record.getMessage()]  # type: ignore[attr-defined]
        return dict(found[-1])
