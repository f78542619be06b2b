"""Stores the newest version that this device accepted, by signing key and product.

Each is a small JSON file in a folder that only this user can write. This user and root can remove the folder, and the
accepted versions with it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec

from misgnet_runtime.bundle.signing.release import Version, moment
from misgnet_runtime.errors import InputError
from misgnet_runtime.limits import ACCEPTED_BYTES
from misgnet_runtime.storage.private import PrivateFolder, user_folder
from misgnet_runtime.storage.schema import JSON_ERRORS, Struct, encode

_FORMAT = 1


class _Accepted(Struct, frozen=True):
    format: int
    key: str
    product: str
    version: int
    signed: str


def state_folder() -> Path:
    """Returns $MISGNET_STATE, else the system's folder: on Linux $XDG_STATE_HOME/misgnet or ~/.local/state/misgnet.

    Raises:
        InputError: None of them is set. A folder that depends on the working directory would lose the versions.
    """
    found = user_folder("MISGNET_STATE", "state")
    if found is None:
        raise InputError(
            "no folder is configured for accepted versions: HOME is not set to an absolute path; set MISGNET_STATE, "
            "XDG_STATE_HOME or HOME"
        )
    return found


@dataclass(frozen=True)
class State:
    """Accepted versions in a folder that only this user can change. Records are written atomically."""

    folder: PrivateFolder

    def newest(self, product: str, keys: Iterable[str]) -> Version | None:
        """Returns the newest accepted version of ``product`` that any of ``keys`` signed, or None.

        Raises:
            InputError: A record is damaged.
        """
        return max(filter(None, (self._read(_record(key, product)) for key in keys)), default=None)

    def accept(self, product: str, key: str, version: Version) -> None:
        """Stores ``version`` if it is newer than the stored one. The state must be locked. Raises StorageError."""
        name = _record(key, product)
        known = self._read(name)
        if known is None or known < version:
            record = _Accepted(_FORMAT, key, product, version.number, version.signed.isoformat())
            self.folder.write(name, encode(record))

    def _read(self, name: str) -> Version | None:
        try:
            data = self.folder.read(name, ACCEPTED_BYTES)
            if data is None:
                return None
            record = msgspec.json.decode(data, type=_Accepted)
            if record.format != _FORMAT:
                raise ValueError(f"it has format {record.format}; this version reads format {_FORMAT}")
            return Version(record.version, moment(record.signed))
        except (InputError, OSError, *JSON_ERRORS) as error:
            raise InputError(
                f"the newest accepted version in {self.folder.path / name} cannot be read: {error}; delete this file "
                "to accept any version"
            ) from error


def _record(key: str, product: str) -> str:
    return f"accepted/{hashlib.sha256(f'{key} {product}'.encode()).hexdigest()[:32]}.json"


def prepare_state() -> State:
    """Creates the state folder with mode 0700 if it is missing. Raises as :func:`open_state`, but does not wait."""
    folder = PrivateFolder(state_folder(), "MISGNET_STATE", may_be_link=True)  # as systemd makes them
    folder.make()
    return State(folder)


@contextmanager
def open_state() -> Iterator[State]:
    """Yields the state, locked for this process.

    Raises:
        StorageError: The folder cannot be created.
        InputError: Another user could write in the folder, or no folder is named.
        LockTimeoutError: Another process holds the lock for too long.
    """
    state = prepare_state()
    with state.folder.locked("compares and replaces the accepted versions"):
        yield state
