"""Runs a real Triton server from the package nvidia-pytriton, which contains the server and its Python backend only.

The backend that a repository names is therefore implemented in Python, in ``data/triton_onnxruntime.py``. The server,
its parsing of ``config.pbtxt``, warm-up, queue and network are Triton's; only the calls of ONNX Runtime are not.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import util
from pathlib import Path

import pytest

from support.paths import DATA

STAND_IN = DATA / "triton_onnxruntime.py"


def find_server() -> Path:
    """Returns the package's folder ``tritonserver``; skips the test if it is not installed."""
    found = util.find_spec("pytriton")
    if found is None or not found.submodule_search_locations:
        pytest.skip("nvidia-pytriton, which contains a Triton server, is not installed")
    return Path(found.submodule_search_locations[0]) / "tritonserver"


@contextmanager
def running_server(repository: Path, folder: Path, *words: str) -> Iterator[tuple[int, int]]:
    """Starts a server and yields its HTTP and gRPC ports when it is ready; stops it at the end of the block."""
    server = find_server()
    http, grpc = _free_port(), _free_port()
    command = [
        str(server / "bin/tritonserver"), f"--model-repository={repository}",
        f"--backend-directory={_backends(server, folder / 'backends')}", "--disable-auto-complete-config",
        f"--http-port={http}", f"--grpc-port={grpc}", "--allow-metrics=false", "--exit-on-error=true", *words,
    ]  # fmt: skip
    libraries = server.parents[1] / "nvidia_pytriton.libs"
    environment = {**os.environ, "LD_LIBRARY_PATH": str(libraries)}
    with (folder / "server.log").open("wb") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)
        try:
            _wait(process, f"http://127.0.0.1:{http}/v2/health/ready", folder / "server.log")
            yield http, grpc
        finally:
            process.terminate()
            process.wait(30)


def _backends(server: Path, folder: Path) -> Path:
    shutil.copytree(server / "backends/python", folder / "python")
    stub = server / "python_backend_stubs" / f"{sys.version_info.major}.{sys.version_info.minor}"
    shutil.copy(stub / "triton_python_backend_stub", folder / "python")
    (folder / "python/triton_python_backend_stub").chmod(0o755)
    (folder / "onnxruntime").mkdir()
    shutil.copy(STAND_IN, folder / "onnxruntime/model.py")
    (folder / "onnxruntime/path.txt").write_text("\n".join(path for path in sys.path if path))
    return folder


def _wait(process: subprocess.Popen[bytes], url: str, log: Path, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        assert process.poll() is None, log.read_text()
        try:
            with urllib.request.urlopen(url, timeout=5) as response:
                if response.status == 200:
                    return
        except OSError:
            time.sleep(0.1)
    raise AssertionError(log.read_text())


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])
