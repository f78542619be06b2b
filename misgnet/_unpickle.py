"""Reads what torch.save wrote without running anything of it.

A pickle is a program: it names callables and calls them. Here every name resolves to one of a few builders
of this module, which only record their arguments, or to an inert :class:`Record`. No tensor is made while
the pickle runs either: a :class:`TensorRef` remembers where the numbers lie, and whoever needs them asks.
"""

from __future__ import annotations

import io
import pickle
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch

from misgnet_runtime.errors import InputError

_DTYPES = {
    "DoubleStorage": torch.float64, "FloatStorage": torch.float32, "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16, "LongStorage": torch.int64, "IntStorage": torch.int32,
    "ShortStorage": torch.int16, "CharStorage": torch.int8, "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool, "UntypedStorage": torch.uint8,
}  # fmt: skip
_DTYPE_NAMES = {str(dtype).removeprefix("torch."): dtype for dtype in _DTYPES.values()}
_MAX_PICKLE_BYTES = 256 << 20


class Record:
    """An object of a class that is not loaded: its constructor's arguments and its state, inert."""

    origin = ""

    def __init__(self, *args: Any) -> None:
        self.args = args
        self.state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.args = getattr(self, "args", ())
        self.state = state

    def attributes(self) -> dict[str, Any]:
        """The pickled ``__dict__``, empty where the state is something else."""
        state = getattr(self, "state", None)
        return state if isinstance(state, dict) else {}

    # Subclasses of list, dict and set are filled through these; their content is not needed.
    def append(self, item: Any) -> None: ...
    def extend(self, items: Any) -> None: ...
    def add(self, item: Any) -> None: ...
    def __setitem__(self, key: Any, value: Any) -> None: ...


class _Mapping(dict[Any, Any]):
    """An OrderedDict whose pickled attributes are dropped."""

    def __setstate__(self, state: Any) -> None: ...


@dataclass(frozen=True)
class _Storage:
    key: str
    dtype: torch.dtype
    count: int


@dataclass(frozen=True)
class TensorRef:
    """A tensor that still lies in the file: element offset, shape and strides within a storage."""

    storage: _Storage
    dtype: torch.dtype
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    def __setstate__(self, state: Any) -> None:
        raise pickle.UnpicklingError("a tensor with a state of its own")


class _Builder:
    """A callable that a pickle may call; it cannot be altered by the pickle's BUILD instruction."""

    __slots__ = ("_name",)

    def __init__(self, name: str) -> None:
        self._name = name

    def __setstate__(self, state: Any) -> None:
        raise pickle.UnpicklingError(f"a state for the function {self._name}")

    def __call__(self, *args: Any) -> Any:
        if self._name in ("_rebuild_parameter", "_rebuild_parameter_with_state"):
            return args[0]
        if self._name == "Size":
            return tuple(args[0]) if args else ()
        return _tensor_ref(*args, typed=self._name != "_rebuild_tensor_v3")


def _tensor_ref(storage: Any, offset: Any, shape: Any, stride: Any, *rest: Any, typed: bool) -> TensorRef:
    if not isinstance(storage, _Storage):
        raise pickle.UnpicklingError("a tensor without a storage")
    dtype = storage.dtype if typed else rest[3]
    numbers = (offset, *shape, *stride)
    if not isinstance(dtype, torch.dtype) or not all(type(n) is int and n >= 0 for n in numbers):
        raise pickle.UnpicklingError("a tensor whose shape, stride or dtype makes no sense")
    return TensorRef(storage, dtype, offset, tuple(shape), tuple(stride))


class _InertUnpickler(pickle.Unpickler):
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
        return type("Record", (Record,), {"origin": f"{module}.{name}"})

    def persistent_load(self, pid: Any) -> _Storage:
        match pid:
            case ("storage", torch.dtype() as dtype, str() as key, _, int() as count):
                return _Storage(key, dtype, count)
        raise pickle.UnpicklingError("a reference outside the pickle that is no tensor storage")


class TorchArchive:
    """The zip form of torch.save (PyTorch 1.6 and later), opened without running anything of it.

    ``root`` is the pickled object, made of plain values, :class:`Record` and :class:`TensorRef`.
    Raises InputError where the file is truncated, foreign or damaged.
    """

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self._path = path
        try:
            self._zip = zipfile.ZipFile(file)
            names = [n for n in self._zip.namelist() if n.endswith("/data.pkl") or n == "data.pkl"]
        except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
            raise self._broken(f"its zip directory cannot be read ({error}); the file is truncated or damaged") from error
        if len(names) != 1:
            raise self._broken("it is a zip file without the one data.pkl of torch.save")
        self._prefix = names[0].removesuffix("data.pkl")
        self._storages: dict[str, torch.Tensor] = {}
        self._check_byte_order()
        self.root = self._unpickle(names[0])

    def tensor(self, ref: TensorRef) -> torch.Tensor:
        """The tensor that ``ref`` points to, copied out of the file."""
        flat = self._storage(ref.storage)
        flat = flat if flat.dtype == ref.dtype else flat.view(ref.dtype)
        last = ref.offset + sum((n - 1) * s for n, s in zip(ref.shape, ref.stride, strict=True))
        if 0 not in ref.shape and last >= flat.numel():
            raise self._broken(f"a tensor reaches element {last} of storage {ref.storage.key}, which has {flat.numel()}")
        return flat.as_strided(ref.shape, ref.stride, ref.offset).clone()

    def _storage(self, storage: _Storage) -> torch.Tensor:
        if storage.key not in self._storages:
            data = self._read(f"{self._prefix}data/{storage.key}")
            if len(data) != storage.count * storage.dtype.itemsize:
                raise self._broken(f"storage {storage.key} has {len(data)} bytes, {storage.count} x {storage.dtype} declared")
            buffer = bytearray(data)
            self._storages[storage.key] = torch.frombuffer(buffer, dtype=storage.dtype) if buffer else torch.empty(0, dtype=storage.dtype)
        return self._storages[storage.key]

    def _unpickle(self, name: str) -> Any:
        data = self._read(name)
        unpickler = _InertUnpickler(io.BytesIO(data))
        try:
            return unpickler.load()
        except Exception as error:  # a damaged or hostile pickle can make the unpickler raise anything
            reason = " ".join(str(error).split())[:200]
            raise self._broken(f"its pickle cannot be read ({type(error).__name__}: {reason})") from error

    def _check_byte_order(self) -> None:
        name = f"{self._prefix}byteorder"
        if name in self._zip.namelist() and self._read(name) != b"little":
            raise self._broken("it was saved on a big-endian machine; save it again on a little-endian one")

    def _read(self, name: str) -> bytes:
        try:
            info = self._zip.getinfo(name)
            if info.compress_type != zipfile.ZIP_STORED or (name.endswith(".pkl") and info.file_size > _MAX_PICKLE_BYTES):
                raise self._broken(f"its entry {name} is compressed or too large, which torch.save never does")
            return self._zip.read(info)
        except KeyError as error:
            raise self._broken(f"its entry {name} is missing") from error
        except (zipfile.BadZipFile, OSError, EOFError, RuntimeError, NotImplementedError) as error:
            raise self._broken(f"its entry {name} at byte {info.header_offset} cannot be read ({error})") from error

    def _broken(self, why: str) -> InputError:
        return InputError(f"checkpoint {self._path}: {why}")
