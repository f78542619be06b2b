"""Progress bars for commands."""

from __future__ import annotations

from rich.progress import Progress


class Bars(Progress):
    """Progress bars that print nothing where there is no terminal; Rich would end them with an empty line there."""

    def start(self) -> None:
        """Shows the bars if their console is a terminal."""
        if self.console.is_terminal:
            super().start()

    def stop(self) -> None:
        """Removes the bars if they were shown."""
        if self.live.is_started:
            super().stop()
