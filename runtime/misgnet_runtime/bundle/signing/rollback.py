"""What this device remembers: the newest version that it accepted, by signing key and product.

One small JSON file each, in a folder that only this user can write. Whoever can write there, or remove it, can make the
device forget: that is this user, and root.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec

from misgnet_runtime.bundle.signing.release import Version, moment
from misgnet_runtime.errors import InputError, StorageError
from misgnet_runtime.limits import ACCEPTED_BYTES
from misgnet_runtime.storage.atomic import write_file
from misgnet_runtime.storage.lock import acquire
from misgnet_runtime.storage.private import user_folder
from misgnet_runtime.storage.private_state import unsafe_ancestor
from misgnet_runtime.storage.schema import JSON_ERRORS, Struct, encode

_FORMAT = 1
_MAX_BYTES = ACCEPTED_BYTES


class _Accepted(Struct, frozen=True):
    format: int
    key: str
    product: str
    version: int
    signed: str


def state_folder() -> Path:
    """Return $MISGNET_STATE, else misgnet in $XDG_STATE_HOME, else in ~/.local/state.

    Raises InputError without any of them: a folder that depends on where a command runs would remember nothing.
    """
    found = user_folder("MISGNET_STATE", "XDG_STATE_HOME", ".local/state")
    if found is None:
        raise InputError(
            "there is no folder to remember accepted versions in: HOME is not set to an absolute path; set "
            "MISGNET_STATE, XDG_STATE_HOME or HOME"
        )
    return found


@dataclass(frozen=True)
class State:
    """A state folder that only this user can change; records are whole whenever they are read."""

    folder: Path

    def newest(self, product: str, keys: Iterable[str]) -> Version | None:
        """The newest version of ``product`` that was accepted by any of ``keys``; InputError for a damaged record."""
        return max(filter(None, (self._read(self._path(key, product)) for key in keys)), default=None)

    def accept(self, product: str, key: str, version: Version) -> None:
        """Remember ``version``, if it is newer than what is remembered; while locked. Raises StorageError."""
        path = self._path(key, product)
        known = self._read(path)
        if known is None or known < version:
            record = _Accepted(_FORMAT, key, product, version.number, version.signed.isoformat())
            write_file(path, encode(record))

    def _path(self, key: str, product: str) -> Path:
        return self.folder / "accepted" / f"{hashlib.sha256(f'{key} {product}'.encode()).hexdigest()[:32]}.json"

    def _read(self, path: Path) -> Version | None:
        try:
            with path.open("rb") as file:
                record = msgspec.json.decode(file.read(_MAX_BYTES), type=_Accepted)
            if record.format != _FORMAT:
                raise ValueError(f"it has format {record.format}, this version reads {_FORMAT}")
            return Version(record.version, moment(record.signed))
        except FileNotFoundError:
            return None
        except (OSError, *JSON_ERRORS) as error:
            raise InputError(
                f"the newest accepted version in {path} cannot be read: {error}; remove the file to accept any version"
            ) from error


def prepare_state() -> State:
    """Make the state folder, with mode 0700, where it is missing. Raises as :func:`open_state`, but does not wait."""
    with _opened() as (state, _):
        return state


@contextmanager
def open_state() -> Iterator[State]:
    """The state, held for this process alone.

    Raises StorageError where it cannot be made, InputError where another user could write there or no folder is named,
    LockTimeoutError where another process does not let go of it.
    """
    with _opened() as (state, handle):
        acquire(handle, state.folder, "another process compares and replaces the accepted versions")
        yield state


@contextmanager
def _opened() -> Iterator[tuple[State, int]]:
    folder = Path(os.path.realpath(state_folder()))
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise StorageError(f"{_told(folder)} cannot be opened: {error.strerror}; name another one") from error
    try:
        _check_private(folder, os.fstat(handle))
        yield State(folder), handle
    finally:
        os.close(handle)


def _check_private(folder: Path, status: os.stat_result) -> None:
    if status.st_uid != os.geteuid():
        raise InputError(f"{_told(folder)} belongs to another user; name one of your own")
    if status.st_mode & 0o077:
        raise InputError(f"{_told(folder)} is open to other users; close it: chmod 700 {folder}")
    if parent := unsafe_ancestor(folder):
        raise InputError(f"{_told(folder)} can be replaced by other users, who may write in {parent}; name another one")


def _told(folder: Path) -> str:
    return f"folder {folder} ($MISGNET_STATE), where accepted versions are remembered,"
