"""Computes the shortest time in which named GPUs could run the kernels of a plan: the roofline model.

Williams, Waterman and Patterson, "Roofline: an insightful visual performance model", CACM 52 (4), 2009. Applied to each
kernel: it needs at least the time to move its bytes and at least the time for its operations, whichever is longer.
Launches, caches and clocks below the maximum are not part of the model; at batch 1 a GPU is often several times slower.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from misgnet_runtime.engines.tensorrt.layers import Kernel
from misgnet_runtime.storage.schema import Fraction, Struct


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """The data sheet of a GPU; peaks are those of its tensor cores without sparsity, FP16 with FP16 accumulation."""

    name: str
    compute_capability: str
    bandwidth: float  # of its memory, GB/s
    float16: float  # TFLOP/s
    int8: float  # TOP/s
    source: str

    def peak(self, precision: str) -> float:
        """Returns operations per second. FP32 runs outside the tensor cores, at most at a quarter of the FP16 peak."""
        return 1e12 * {"int8": self.int8, "float16": self.float16}.get(precision, self.float16 / 4)


class Roofline(Struct, frozen=True):
    """The shortest time of one inference on a GPU, by its data sheet."""

    # Name of the GPU.
    gpu: str
    # Sum over the kernels of the longer of bytes / bandwidth and operations / peak.
    milliseconds: float
    # Time of the operations alone at their peaks, as a share of ``milliseconds``: what the memory leaves of the peak.
    arithmetic_share: Fraction


# Only figures that were found in a source. Where a source states a peak with sparsity, half of it is listed; where it
# states one of INT8 and FP16, the other follows from their ratio of 2 to 1, which all these GPUs have.
GPUS = (
    Gpu(name="GeForce RTX 3060", compute_capability="sm86", bandwidth=360, float16=50.95, int8=101.9,
        source="https://hmc-tech.com/gpu/nvidia-geforce-rtx-3060-vs-nvidia-geforce-gt-120-mac (INT4 sparse 407.6), "
        "https://topcpu.net/pt/gpu-c/geforce-rtx-3060-vs-geforce-rtx-4060-ad106"),
    Gpu(name="RTX A4000", compute_capability="sm86", bandwidth=448, float16=76.7, int8=153.4,
        source="NVIDIA RTX A4000 data sheet (tensor performance 153.4 with sparsity), "
        "https://www.ecer.com/corp/details-uuuedqa-p1bsb03-pci-express-3-0-x16-nvidia-rtx-a4000-16g-graphics-card-for-professional-video-editing.html"),
    Gpu(name="RTX A6000", compute_capability="sm86", bandwidth=768, float16=154.8, int8=309.7,
        source="https://llmperf.net/categories/gpu/Nvidia-A6000-GPUs, after Microway's comparison of Ampere GPUs"),
    Gpu(name="GeForce RTX 4060", compute_capability="sm89", bandwidth=272, float16=60.46, int8=120.91,
        source="https://hmc-tech.com/gpu/nvidia-geforce-rtx-4060-vs-nvidia-geforce-rtx-4060, "
        "https://fpsbench.com/compare/gpu/nvidia-geforce-rtx-4060-vs-nvidia-t600"),
    Gpu(name="L4", compute_capability="sm89", bandwidth=300, float16=125.34, int8=250.68,
        source="https://hmc-tech.com/gpu/nvidia-l4-vs-nvidia-t4, https://pcpartdb.com/gpus/view/nvidia-l4"),
    Gpu(name="GeForce RTX 4090", compute_capability="sm89", bandwidth=1008, float16=330.3, int8=660.6,
        source="https://waredb.com/processor/nvidia-geforce-rtx-4090, "
        "https://www.sipoch.com/en/question/300630019157052/answer/300330018665596"),
    Gpu(name="RTX PRO 4000 Blackwell SFF", compute_capability="sm120", bandwidth=432, float16=95.84, int8=191.67,
        source="https://hmc-tech.com/gpu/nvidia-rtx-pro-4000-blackwell-sff"),
    Gpu(name="GeForce RTX 5090", compute_capability="sm120", bandwidth=1792, float16=419.2, int8=838.4,
        source="https://www.spheron.network/blog/nvidia-rtx-5090-specs/ (FP16 838.4 with sparsity), "
        "https://analysis.castromedia.org/analysis/compute/entities/rtx-5090.html"),
    Gpu(name="Jetson Orin Nano 8GB", compute_capability="sm87", bandwidth=68, float16=10, int8=20,
        source="NVIDIA Jetson Orin Nano Series Data Sheet DS-11105-001 v1.1"),
    Gpu(name="Jetson Orin NX 16GB", compute_capability="sm87", bandwidth=102.4, float16=15, int8=30,
        source="NVIDIA Jetson Orin NX Series Data Sheet DS-10712-001 v1.7 "
        "(MAXN: 100 with sparsity, 40 of them the DLA's)"),
    Gpu(name="Jetson AGX Orin 32GB", compute_capability="sm87", bandwidth=204.8, float16=27, int8=54,
        source="NVIDIA Jetson AGX Orin Series Data Sheet DS-10662-001 v1.8 (GPU: 108 with sparsity)"),
    Gpu(name="Jetson AGX Orin 64GB", compute_capability="sm87", bandwidth=204.8, float16=42.5, int8=85,
        source="NVIDIA Jetson AGX Orin Series Data Sheet DS-10662-001 v1.8 (GPU: 170 with sparsity)"),
    Gpu(name="Jetson AGX Thor T5000", compute_capability="sm110", bandwidth=273, float16=258.5, int8=517,
        source="NVIDIA's Jetson Thor page (2070 FP4 with sparsity, 273 GB/s), https://huggingface.co/hardware/jetson-t5000"),
)  # fmt: skip


def rooflines(kernels: Sequence[Kernel], compute_capabilities: Collection[str]) -> list[Roofline]:
    """Returns the rooflines of all listed GPUs of some compute capabilities; none if the kernels' sizes are unknown."""
    return [
        found
        for gpu in GPUS
        if gpu.compute_capability in compute_capabilities and (found := roofline(kernels, gpu)) is not None
    ]


def roofline(kernels: Sequence[Kernel], gpu: Gpu) -> Roofline | None:
    """Returns the shortest time of the kernels on a GPU, one after the other; None if a size is unknown."""
    total = arithmetic = 0.0
    for kernel in kernels:
        if kernel.moved is None or kernel.macs is None:
            return None
        operations = 2 * kernel.macs / gpu.peak(kernel.precision)
        total += max(kernel.moved / (1e9 * gpu.bandwidth), operations)
        arithmetic += operations
    return Roofline(gpu.name, 1e3 * total, arithmetic / total) if total else None
