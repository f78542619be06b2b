"""Runs a factory, which is the user's own code: imports it, calls it, and keeps what it changes out of this process."""

from __future__ import annotations

import hashlib
import importlib
import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

from misgnet_runtime.errors import InputError, MisgnetError

_SEED = 0  # of weights that the factory draws at random


def network_of(name: str) -> tuple[nn.Module, bytes]:
    """Imports and calls a factory.

    Args:
        name: ``FILE.py:factory`` or ``package.module:factory``.

    Returns:
        What the factory returned, and the SHA-256 of its source file (empty if it has none).

    Raises:
        InputError: The file or the factory is missing, either raises an exception, or the factory needs arguments or
            returns something else than a module.
    """
    module_name, _, attribute = name.rpartition(":")
    with own_code(name):
        module, source = _imported(module_name)
        factory = getattr(module, attribute, None)
        if not callable(factory):
            found = f"is {type(factory).__name__}" if hasattr(module, attribute) else "is missing"
            raise InputError(f"{name}: '{attribute}' {found}; it must be a function that returns the network")
        if needed := _needed(factory):
            raise InputError(
                f"{name}: '{attribute}' needs the arguments {', '.join(needed)}, but is called without; write a "
                "function without arguments that returns the network"
            )
        network = factory()
    if not isinstance(network, nn.Module):
        raise InputError(f"{name} returned {type(network).__name__}; it must return a torch.nn.Module")
    return network, hashlib.sha256(source).digest() if source else b""


@contextmanager
def own_code(name: str) -> Iterator[None]:
    """Runs the user's code: its output goes to stderr, an exception becomes an InputError, and settings are restored.

    These are the number of threads, the default type and device, the gradient mode, and the state of random numbers.
    No bytecode is written.
    """
    threads, kind, device = torch.get_num_threads(), torch.get_default_dtype(), torch.get_default_device()
    gradients, bytecode = torch.is_grad_enabled(), sys.dont_write_bytecode
    sys.dont_write_bytecode = True
    try:
        with redirect_stdout(sys.stderr), torch.random.fork_rng(devices=[]):
            torch.manual_seed(_SEED)
            yield
    except MisgnetError:
        raise
    except (Exception, SystemExit) as error:
        raise InputError(f"{name} failed: {first_line(error)}") from error
    finally:
        sys.dont_write_bytecode = bytecode
        torch.set_num_threads(threads)
        torch.set_default_dtype(kind)
        torch.set_default_device(device)
        torch.set_grad_enabled(gradients)


def first_line(error: BaseException) -> str:
    """Returns the type and the first line of an exception, or of the one that caused it, at most 300 characters."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else 'no message'}"[:300]


def _imported(module: str) -> tuple[ModuleType, bytes]:
    """Imports a module; returns it and the bytes of its source file."""
    if module.endswith(".py"):
        return _from_file(Path(module))
    with _importable(Path.cwd()):
        found = importlib.import_module(module)
    path = inspect.getsourcefile(found)
    return found, Path(path).read_bytes() if path else b""


def _from_file(path: Path) -> tuple[ModuleType, bytes]:
    """Runs a file as a module; modules beside it can be imported, also later by the network."""
    try:
        source = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from error
    module = ModuleType(path.stem if path.stem not in sys.modules else f"{path.stem}_factory")
    module.__file__ = str(path.resolve())
    sys.modules[module.__name__] = module  # dataclasses look their module up
    with _importable(path.resolve().parent):
        exec(compile(source, str(path), "exec"), module.__dict__)
    return module, source


@contextmanager
def _importable(folder: Path) -> Iterator[None]:
    """Makes the modules of a folder importable: before all others now, and after all others later."""
    entry = str(folder)
    sys.path.insert(0, entry)
    try:
        yield
    finally:
        sys.path.remove(entry)
        if entry not in sys.path:
            sys.path.append(entry)


def _needed(factory: Callable[..., Any]) -> list[str]:
    """Returns the parameters that a factory cannot be called without."""
    try:
        parameters = inspect.signature(factory).parameters.values()
    except (TypeError, ValueError):  # a callable without a signature; calling it shows what it needs
        return []
    optional = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return [one.name for one in parameters if one.default is one.empty and one.kind not in optional]
