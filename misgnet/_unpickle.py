"""Reads files of torch.save without executing any code from them.

A pickle is a program: it names callables and calls them. Here every name resolves either to one of a few builders in
this module, which only record their arguments, or to an inert :class:`Record`. The pickle also creates no tensors: a
:class:`TensorRef` records the position of the data in the file, and :meth:`TorchArchive.tensor` reads it later.
"""

from __future__ import annotations

import io
import pickle
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any, ClassVar

import torch

from misgnet_runtime.errors import InputError
from misgnet_runtime.limits import CHECKPOINT_DIRECTORY_BYTES, PICKLE_BYTES, PICKLE_KEY, PICKLE_STEPS, WEIGHTS_BYTES
from misgnet_runtime.storage.zips import ZIP_ERRORS, LimitedZip

_DTYPES = {
    "DoubleStorage": torch.float64, "FloatStorage": torch.float32, "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16, "LongStorage": torch.int64, "IntStorage": torch.int32,
    "ShortStorage": torch.int16, "CharStorage": torch.int8, "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool, "UntypedStorage": torch.uint8,
}  # fmt: skip
_DTYPE_NAMES = {str(dtype).removeprefix("torch."): dtype for dtype in _DTYPES.values()}
_MAX_DIMENSIONS = 16
_MAX_ARGUMENTS = 64
_MAX_MEMO = 1 << 32


def shown(name: str) -> str:
    """Returns a name read from a file for use in a message: quoted, on one line, at most 120 characters of it."""
    return ascii(name if len(name) <= 120 else name[:120] + "...")


class Record:
    """Stands for an object of any class: keeps the pickled state and discards the constructor's arguments."""

    __slots__ = ("state",)

    def __init__(self, *_: Any) -> None:
        self.state: Any = None

    def attributes(self) -> dict[str, Any]:
        """Returns the pickled ``__dict__``, or an empty dict if the state is not a dict."""
        return self.state if isinstance(self.state, dict) else {}

    # The unpickler fills subclasses of list, dict and set through these methods; their content is not needed.
    def append(self, item: Any) -> None: ...
    def extend(self, items: Any) -> None: ...
    def add(self, item: Any) -> None: ...
    def __setitem__(self, key: Any, value: Any) -> None: ...


class _Mapping(dict[str, Any]):
    """A dict or OrderedDict that keeps only string keys; state dicts and modules have no other keys.

    A hostile file can choose numbers and tuples whose hashes collide. Hashing a deeply nested tuple crashes, and
    comparing long equal strings is slow.
    """

    __slots__ = ()

    def __init__(self) -> None:
        super().__init__()

    def __setitem__(self, key: Any, value: Any) -> None:
        if type(key) is str and len(key) <= PICKLE_KEY:
            super().__setitem__(key, value)


@dataclass(frozen=True)
class _Storage:
    key: str
    dtype: torch.dtype
    count: int


@dataclass(frozen=True)
class TensorRef:
    """Describes a tensor that has not been read yet: element offset, shape and strides within a storage."""

    storage: _Storage
    dtype: torch.dtype
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


class _Builder:
    """A callable that a pickle may call: it records its arguments."""

    __slots__ = ("_name",)

    def __init__(self, name: str) -> None:
        self._name = name

    def __call__(self, *args: Any) -> Any:
        if self._name in ("_rebuild_parameter", "_rebuild_parameter_with_state"):
            return args[0]
        if self._name == "Size":
            return _numbers(args[0]) if args else ()
        return _tensor_ref(*args, typed=self._name != "_rebuild_tensor_v3")


def _tensor_ref(storage: Any, offset: Any, shape: Any, stride: Any, *rest: Any, typed: bool) -> TensorRef:
    if not isinstance(storage, _Storage):
        raise pickle.UnpicklingError("a tensor without a storage")
    dtype = storage.dtype if typed else rest[3]
    ref = TensorRef(storage, dtype, _numbers((offset,))[0], _numbers(shape), _numbers(stride))
    if not isinstance(dtype, torch.dtype) or len(ref.shape) != len(ref.stride):
        raise pickle.UnpicklingError("a tensor with an invalid shape, stride or dtype")
    return ref


def _numbers(values: Any) -> tuple[int, ...]:
    if len(values) > _MAX_DIMENSIONS or not all(type(n) is int and 0 <= n < 1 << 62 for n in values):
        raise pickle.UnpicklingError("an invalid shape, stride or offset")
    return tuple(values)


def _counted(step: Callable[[Any], None]) -> Callable[[Any], None]:
    """Wraps an unpickler instruction so that it counts against ``PICKLE_STEPS``, which limits time and memory.

    Each instruction creates at most one object.
    """

    @wraps(step)
    def counted(self: _InertUnpickler) -> None:
        self.steps += 1
        if self.steps > PICKLE_STEPS:
            raise pickle.UnpicklingError(f"more than {PICKLE_STEPS} instructions")
        step(self)

    return counted


class _InertUnpickler(pickle._Unpickler):
    """The standard library's unpickler in Python, with unsafe instructions replaced.

    The unpickler in C cannot be used: it allocates as much memory as a memo index requests and sets attributes on any
    object.
    """

    steps = 0

    dispatch: ClassVar[dict[int, Callable[[Any], None]]] = dict(pickle._Unpickler.dispatch)
    stack: list[Any]  # this and the following attributes are set by the base class
    memo: dict[int, Any]
    append: Callable[[Any], None]
    pop_mark: Callable[[], list[Any]]
    readline: Callable[[], bytes]

    def find_class(self, module: str, name: str) -> Any:
        if module == "collections" and name == "OrderedDict":
            return _Mapping
        if module in ("torch", "torch.storage") and name in _DTYPES:
            return _DTYPES[name]
        if module == "torch" and name in _DTYPE_NAMES:
            return _DTYPE_NAMES[name]
        known = ("_rebuild_tensor", "_rebuild_tensor_v2", "_rebuild_tensor_v3",
                 "_rebuild_parameter", "_rebuild_parameter_with_state")  # fmt: skip
        if (module == "torch._utils" and name in known) or (module, name) == ("torch", "Size"):
            return _Builder(name)
        return Record

    def persistent_load(self, pid: Any) -> _Storage:
        match pid:
            case ("storage", torch.dtype() as dtype, str() as key, _, int() as count) if 0 <= count < 1 << 62:
                return _Storage(key, dtype, count)
        raise pickle.UnpicklingError("a persistent reference that is not a tensor storage")

    def _reduce(self) -> None:
        args = self.stack.pop()
        if not isinstance(args, tuple) or len(args) > _MAX_ARGUMENTS:
            raise pickle.UnpicklingError("a call with invalid arguments")
        self.stack[-1] = self.stack[-1](*args)

    def _new(self) -> None:
        self.stack.pop()
        kind = self.stack.pop()
        if kind is not Record and kind is not _Mapping:
            raise pickle.UnpicklingError("an object whose type is not a class")
        self.append(kind())

    def _new_with_keywords(self) -> None:
        self.stack.pop()
        self._new()

    def _build(self) -> None:
        state, target = self.stack.pop(), self.stack[-1]
        if isinstance(target, Record):
            target.state = state
        elif not isinstance(target, _Mapping):  # the attributes of an OrderedDict are dropped
            raise pickle.UnpicklingError(f"a state for a {type(target).__name__}")

    def _empty_dict(self) -> None:
        self.append(_Mapping())

    def _empty_set(self) -> None:
        self.append(Record())

    def _frozen_set(self) -> None:
        self.pop_mark()
        self.append(Record())

    def _put(self) -> None:
        """Reads a memo index written as text; larger indexes could have colliding hashes."""
        index = int(self.readline()[:-1])
        if not 0 <= index < _MAX_MEMO:
            raise pickle.UnpicklingError("an invalid memo index")
        self.memo[index] = self.stack[-1]

    def _refuse(self) -> None:
        raise pickle.UnpicklingError("an instruction that torch.save never writes")

    dispatch[pickle.REDUCE[0]] = _reduce
    dispatch[pickle.NEWOBJ[0]] = _new
    dispatch[pickle.NEWOBJ_EX[0]] = _new_with_keywords
    dispatch[pickle.BUILD[0]] = _build
    dispatch[pickle.EMPTY_DICT[0]] = _empty_dict
    dispatch[pickle.EMPTY_SET[0]] = _empty_set
    dispatch[pickle.FROZENSET[0]] = _frozen_set
    dispatch[pickle.PUT[0]] = _put
    for _opcode in (
        pickle.DICT, pickle.INST, pickle.OBJ, pickle.EXT1, pickle.EXT2, pickle.EXT4, pickle.PERSID,
        pickle.BYTEARRAY8, pickle.NEXT_BUFFER, pickle.READONLY_BUFFER,
    ):  # fmt: skip
        dispatch[_opcode[0]] = _refuse
    for _opcode_number, _step in list(dispatch.items()):
        dispatch[_opcode_number] = _counted(_step)


class TorchArchive:
    """A file in the zip format of torch.save (PyTorch 1.6 and later), opened without executing any code from it.

    ``root`` is the pickled object, built from plain values, :class:`Record` and :class:`TensorRef`.
    Raises InputError if the file is truncated, damaged or not a file of torch.save.
    """

    def __init__(self, path: Path, file: io.BytesIO) -> None:
        self._path = path
        # Bytes that may still be read. Entries do not share bytes, so this limits the memory.
        self._unread = min(file.seek(0, io.SEEK_END), WEIGHTS_BYTES)
        try:
            self._zip = LimitedZip(file, CHECKPOINT_DIRECTORY_BYTES)
        except ZIP_ERRORS as error:
            why = f"its zip directory cannot be read ({error}); the file is truncated or damaged"
            raise self._broken(why) from error
        self._storages: dict[str, torch.Tensor] = {}
        self._prefix = self._find_pickle()
        self._check_byte_order()
        self.root = self._unpickle(f"{self._prefix}data.pkl")

    def tensor(self, ref: TensorRef) -> torch.Tensor:
        """Returns the tensor described by ``ref``: a view of its storage, which other tensors may share."""
        flat = self._storage(ref.storage)
        if flat.nbytes % ref.dtype.itemsize:
            name = shown(ref.storage.key)
            raise self._broken(f"storage {name} of {flat.nbytes} bytes cannot hold {ref.dtype}")
        flat = flat.view(ref.dtype)
        last = ref.offset + sum((n - 1) * s for n, s in zip(ref.shape, ref.stride, strict=True))
        if 0 in ref.shape or last >= flat.numel():
            name = shown(ref.storage.key)
            raise self._broken(f"a tensor reaches element {last} of storage {name}, which has {flat.numel()}")
        return flat.as_strided(ref.shape, ref.stride, ref.offset)

    def _storage(self, storage: _Storage) -> torch.Tensor:
        if storage.key not in self._storages:
            data = self._read(f"{self._prefix}data/{storage.key}")
            if len(data) != storage.count * storage.dtype.itemsize:
                declared = f"{storage.count} x {storage.dtype} declared"
                raise self._broken(f"storage {shown(storage.key)} has {len(data)} bytes, {declared}")
            flat = torch.frombuffer(data or bytearray(8), dtype=torch.uint8)[: len(data)]
            self._storages[storage.key] = flat.view(storage.dtype)
        return self._storages[storage.key]

    def _unpickle(self, name: str) -> Any:
        data = self._read(name)
        unpickler = _InertUnpickler(io.BytesIO(data))
        try:
            return unpickler.load()
        except Exception as error:  # a damaged or hostile pickle can make the unpickler raise any exception
            reason = " ".join(str(error).split())[:200]
            raise self._broken(f"its pickle cannot be read ({type(error).__name__}: {reason})") from error

    def _find_pickle(self) -> str:
        """Returns the prefix that all entry names have in common."""
        names = [
            e.filename for e in self._zip.entries() if e.filename.endswith("/data.pkl") or e.filename == "data.pkl"
        ]
        if len(names) != 1:
            raise self._broken("it is a zip file, but not one of torch.save: it does not have exactly one data.pkl")
        return names[0].removesuffix("data.pkl")

    def _check_byte_order(self) -> None:
        name = f"{self._prefix}byteorder"
        if any(entry.filename == name for entry in self._zip.entries()) and self._read(name) != b"little":
            raise self._broken("it was saved on a big-endian machine; save it again on a little-endian one")

    def _read(self, name: str) -> bytearray:
        try:
            entry = self._zip.entry(name)
        except KeyError as error:
            raise self._broken(f"its entry {shown(name)} is missing") from error
        self._unread -= entry.file_size
        too_large = name.endswith(".pkl") and entry.file_size > PICKLE_BYTES
        if entry.compress_type != zipfile.ZIP_STORED or too_large:
            raise self._broken(f"its entry {shown(name)} is compressed or too large")
        if self._unread < 0:
            raise self._broken(
                f"its entries up to {shown(name)} declare more bytes than the file has, or more than {WEIGHTS_BYTES}"
            )
        try:
            return self._zip.read(entry, entry.file_size)
        except ZIP_ERRORS as error:
            where = f"its entry {shown(name)} at byte {entry.header_offset}"
            raise self._broken(f"{where} cannot be read ({error})") from error

    def _broken(self, why: str) -> InputError:
        return InputError(f"checkpoint {self._path}: {why}")
