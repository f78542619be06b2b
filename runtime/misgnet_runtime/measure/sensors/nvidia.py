"""Power of NVIDIA GPUs as the driver's own tool tells it. A Jetson's is not among them: see the INA3221."""

from __future__ import annotations

import subprocess

from misgnet_runtime.errors import UnavailableError

_COMMAND = ("nvidia-smi", "--query-gpu=index,name,power.draw", "--format=csv,noheader,nounits")
_PATIENCE = 10  # seconds; a driver that must wake up first takes one or two


class NvidiaSmi:
    """Boards, each with its memory and fan; none of them is the whole machine."""

    source = "nvidia-smi"
    total = None

    def read(self) -> dict[str, float]:
        """Watts by board as the driver averages them; none where it does not answer."""
        try:
            answer = subprocess.run(_COMMAND, capture_output=True, text=True, timeout=_PATIENCE, check=False)
        except (OSError, subprocess.TimeoutExpired):
            return {}
        rows = (line.split(", ") for line in answer.stdout.splitlines())
        return {f"GPU {row[0]} ({row[1]})": float(row[2]) for row in rows if len(row) == 3 and _is_number(row[2])}


def find_nvidia_smi() -> NvidiaSmi:
    """Raises UnavailableError where the tool is not there, or tells no GPU's power."""
    meter = NvidiaSmi()
    if not meter.read():
        raise UnavailableError("no nvidia-smi that tells a GPU's power")
    return meter


def _is_number(text: str) -> bool:
    """A board without a sensor says [N/A] or [Not Supported]."""
    return text.replace(".", "", 1).isdecimal()
