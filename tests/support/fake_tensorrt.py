"""Provides fakes of ``tensorrt`` (10.3, 10.16 or 11.1) and ``tensorrt_rtx`` over a FakeDriver.

A model is JSON (see :func:`model`), a plan is JSON with the version that built it. The network computes the mean
absolute difference of two images over the channels, divided by 255.
"""

from __future__ import annotations

import itertools
import json
from enum import Enum, IntEnum
from functools import cached_property, partial
from math import prod
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from support.fake_cuda import FakeDriver

NUMPY = {"UINT8": np.uint8, "FLOAT": np.float32, "HALF": np.float16}
ITEM_MEMORY = 64  # bytes that an execution context needs for each item of its profile's largest batch
_NOISE = itertools.count()
LAYERS = ("CAST", "QUANTIZE", "DEQUANTIZE", "DEQUANTIZE", "CONVOLUTION")


def model(
    *, size: int = 4, out: str = "FLOAT", batch: int = -1, error: str = "", outputs: int = 1, capturable: bool = True
) -> bytes:
    image = [batch, size, size, 3]
    tensors = {"before": ("UINT8", image), "after": ("UINT8", image)}
    results = {"probability": (out, [batch, size, size])} if outputs else {}
    return json.dumps({"inputs": tensors, "outputs": results, "error": error, "capturable": capturable}).encode()


def parts(size: int) -> tuple[bytes, bytes]:
    """Returns the models of the encoder and the head; the encoder's features are red and green, and blue."""
    image = {"image": ("UINT8", [-1, size, size, 3])}
    features = {f"feature{n}": ("FLOAT", [-1, channels, size, size]) for n, channels in ((1, 2), (2, 1))}
    both = {f"{date}_{name}": tensor for date in ("before", "after") for name, tensor in features.items()}
    output = {"probability": ("FLOAT", [-1, size, size])}
    more = {"error": "", "capturable": True}
    return tuple(  # type: ignore[return-value]
        json.dumps({"inputs": inputs, "outputs": outputs, **more}).encode()
        for inputs, outputs in ((image, features), (both, output))
    )


def make_tensorrt(version: str, driver: FakeDriver, *, rtx: bool = False) -> Any:
    """Returns the module of a version; ``module.observed`` records its use."""
    major, minor = (int(part) for part in version.split(".")[:2])
    module: Any = ModuleType("tensorrt_rtx" if rtx else "tensorrt")
    module.__version__ = version
    module.driver = driver
    module.observed = SimpleNamespace(flags=None, config=None, canceled=False, contexts=[], builds=0, kernels=0)
    # Whether an engine states the batch of its only static profile in place of -1.
    module.states_batch = False
    module.Severity = Enum("Severity", "INTERNAL_ERROR ERROR WARNING INFO VERBOSE")
    # The values differ between versions, so that an integer stored from one version fails in another.
    members = {"EXPLICIT_BATCH": 0, "STRONGLY_TYPED": 1 + (minor >= 16)} if major < 11 else {}
    module.NetworkDefinitionCreationFlag = IntEnum("NetworkDefinitionCreationFlag", members)
    module.BuilderFlag = IntEnum("BuilderFlag", ["FP16", "INT8", "TF32"] if major < 11 else ["TF32"])
    module.TensorIOMode = Enum("TensorIOMode", "NONE INPUT OUTPUT")
    module.DataType = Enum("DataType", "FLOAT HALF UINT8 BF16")
    module.LayerType = Enum("LayerType", "CAST QUANTIZE DEQUANTIZE CONVOLUTION")
    module.ProfilingVerbosity = Enum("ProfilingVerbosity", "LAYER_NAMES_ONLY NONE DETAILED")
    module.LayerInformationFormat = Enum("LayerInformationFormat", "ONELINE JSON")
    module.MemoryPoolType = Enum("MemoryPoolType", "WORKSPACE TACTIC_DRAM")
    module.ExecutionContextAllocationStrategy = Enum("Strategy", "STATIC ON_PROFILE_CHANGE USER_MANAGED")
    if rtx:
        module.ComputeCapability = IntEnum("ComputeCapability", "CURRENT SM86 SM87 SM89")
        module.CudaGraphStrategy = Enum("CudaGraphStrategy", "DISABLED WHOLE_GRAPH_CAPTURE")
    for kind in (Builder, IBuilderConfig, OnnxParser, Runtime):
        setattr(module, kind.__name__, type(kind.__name__, (kind,), {"module": module}))
    module.ILogger = type("ILogger", (), {})
    module.IProgressMonitor = type("IProgressMonitor", (), {})
    return module


class _Bound:
    module: Any


class Builder(_Bound):
    def __init__(self, logger: Any) -> None:
        self.logger = logger

    def create_network(self, flags: int) -> Any:
        self.module.observed.flags = flags
        kinds = self.module.NetworkDefinitionCreationFlag
        always = int(self.module.__version__.split(".")[0]) >= 11
        return Network(self.module, always or bool(flags & 1 << kinds.STRONGLY_TYPED))

    def create_builder_config(self) -> Any:
        self.module.observed.config = self.module.IBuilderConfig(self.logger)
        return self.module.observed.config

    def create_optimization_profile(self) -> Any:
        return Profile()

    def build_serialized_network(self, network: Network, config: Any) -> bytes | None:
        if not network.strongly_typed:
            self.logger.log(self.module.Severity.ERROR, "the network is not strongly typed")
            return None
        if network.error.startswith("build:"):
            self.logger.log(self.module.Severity.ERROR, network.error)
            return None
        config.progress_monitor.phase_start("Building engine", None, 3)
        for step in range(3):
            if not config.progress_monitor.step_complete("Building engine", step):
                self.module.observed.canceled = True
                self.logger.log(self.module.Severity.ERROR, "Build canceled by user")
                return None
        config.progress_monitor.phase_finish("Building engine")
        if config.cache is not None:
            config.cache.timings += 1
        self.module.observed.builds += 1
        profiles = [profile.shapes for profile in config.profiles]
        plan = {"version": self.module.__version__, "profiles": profiles, **network.graph}
        plan["detailed"] = config.profiling_verbosity is not None
        plan["noise"] = next(_NOISE)  # two builds of one graph differ
        return json.dumps(plan).encode()


class Network:
    def __init__(self, module: Any, strongly_typed: bool) -> None:
        self.module = module
        self.strongly_typed = strongly_typed
        self.graph: dict[str, Any] = {"inputs": {}, "outputs": {}}
        self.error = ""

    @property
    def num_inputs(self) -> int:
        return len(self.graph["inputs"])

    @property
    def num_outputs(self) -> int:
        return len(self.graph["outputs"])

    num_layers = len(LAYERS)

    def get_input(self, index: int) -> Any:
        name, (_, shape) = list(self.graph["inputs"].items())[index]
        return SimpleNamespace(name=name, shape=shape)

    def get_layer(self, index: int) -> Any:
        return SimpleNamespace(type=self.module.LayerType[LAYERS[index]])


class OnnxParser(_Bound):
    def __init__(self, network: Network, logger: Any) -> None:
        self.network = network
        self.num_errors = 0

    def parse(self, data: bytes) -> bool:
        graph = json.loads(data)
        self.network.error = graph.pop("error")
        self.network.graph = graph
        self.num_errors = int(bool(self.network.error) and not self.network.error.startswith("build:"))
        return not self.num_errors

    def get_error(self, index: int) -> Any:
        message = self.network.error
        return SimpleNamespace(desc=lambda: message, node_name=lambda: "n7", node_operator=lambda: "Conv")


class Profile:
    def __init__(self) -> None:
        self.shapes: dict[str, list[tuple[int, ...]]] = {}

    def set_shape(self, name: str, low: Any, best: Any, high: Any) -> None:
        self.shapes[name] = [low, best, high]


class Cache:
    def __init__(self, data: dict[str, Any]) -> None:
        self.device = data["device"]
        self.timings = data["timings"]

    def serialize(self) -> bytes:
        return json.dumps({"device": self.device, "timings": self.timings}).encode()


class IBuilderConfig(_Bound):
    progress_monitor: Any = None
    profiling_verbosity: Any = None
    builder_optimization_level = 3
    num_compute_capabilities = 0
    avg_timing_iterations = 1

    def __init__(self, logger: Any) -> None:
        self.enabled = {self.module.BuilderFlag.TF32}
        self.logger = logger
        self.profiles: list[Profile] = []
        self.cache: Cache | None = None
        self.pools: dict[str, int] = {}

    def add_optimization_profile(self, profile: Profile) -> int:
        self.profiles.append(profile)
        return len(self.profiles) - 1

    def clear_flag(self, flag: Any) -> None:
        assert isinstance(flag, self.module.BuilderFlag), "the values of the flags differ between versions"
        self.enabled.discard(flag)

    def set_compute_capability(self, capability: Any, index: int) -> bool:
        return index < self.num_compute_capabilities

    def set_memory_pool_limit(self, pool: Any, size: int) -> None:
        if pool.name == "TACTIC_DRAM" and size & size - 1:  # like TensorRT: logs an error and keeps the old limit
            self.logger.log(self.module.Severity.ERROR, "setMemoryPoolLimit: not a power of 2")
            return
        self.pools[pool.name] = size

    def create_timing_cache(self, data: bytes) -> Cache:
        fresh = {"device": self.module.driver.device().compute_capability, "timings": 0}
        try:
            return Cache(json.loads(data) if data else fresh)
        except ValueError:  # like TensorRT: returns an empty cache and logs a warning
            self.logger.log(self.module.Severity.WARNING, "Failed to deserialize timing cache.")
            return Cache(fresh)

    def set_timing_cache(self, cache: Cache, ignore_mismatch: bool) -> bool:
        if cache.device != self.module.driver.device().compute_capability and not ignore_mismatch:
            return False
        self.cache = cache
        return True

    def get_timing_cache(self) -> Cache | None:
        return self.cache


class Runtime(_Bound):
    def __init__(self, logger: Any) -> None:
        self.logger = logger

    def deserialize_cuda_engine(self, data: bytes) -> Any:
        plan = json.loads(data)
        if plan["version"] != self.module.__version__:
            message = f"expecting library version {plan['version']}, got {self.module.__version__}"
            self.logger.log(self.module.Severity.ERROR, message)
            return None
        return CudaEngine(self.module, plan, self.logger)


class CudaEngine:
    def __init__(self, module: Any, plan: dict[str, Any], logger: Any) -> None:
        self.module = module
        self.logger = logger
        self.plan = plan
        self.tensors = {**plan["inputs"], **plan["outputs"]}
        self.num_io_tensors = len(self.tensors)

    def get_tensor_name(self, index: int) -> str:
        return list(self.tensors)[index]

    def get_tensor_mode(self, name: str) -> Any:
        return self.module.TensorIOMode["INPUT" if name in self.plan["inputs"] else "OUTPUT"]

    def get_tensor_dtype(self, name: str) -> Any:
        return self.module.DataType[self.tensors[name][0]]

    def get_tensor_shape(self, name: str) -> list[int]:
        shape = list(self.tensors[name][1])
        batches = {shape[0] for profile in self.profiles for shapes in profile.values() for shape in shapes}
        if self.module.states_batch and len(batches) == 1:
            shape[0] = batches.pop()
        return shape

    @cached_property
    def profiles(self) -> list[dict[str, list[Any]]]:
        return list(self.plan["profiles"])

    @property
    def num_optimization_profiles(self) -> int:
        return len(self.profiles)

    def get_tensor_profile_shape(self, name: str, profile: int) -> list[list[int]]:
        assert 0 <= profile < len(self.profiles)
        return list(self.profiles[profile][name])

    def get_device_memory_size_for_profile_v2(self, profile: int) -> int:
        assert 0 <= profile < len(self.profiles)
        return ITEM_MEMORY * max(int(high[0]) for _, _, high in self.profiles[profile].values())

    @property
    def device_memory_size_v2(self) -> int:
        return max(map(self.get_device_memory_size_for_profile_v2, range(len(self.profiles))))

    def create_engine_inspector(self) -> Any:
        return SimpleNamespace(get_engine_information=self._layers)

    def _layers(self, form: Any) -> str:
        """Returns one kernel, in the form of the version; its names only if the plan has no details."""
        assert form.name == "JSON"
        if not self.plan["detailed"]:
            return json.dumps({"Layers": ["mean"]})
        form11 = int(self.module.__version__.split(".")[0]) >= 11
        datatype = {"Datatype": "Half", "Format": "Row major linear"} if form11 else {"Format/Datatype": "Half"}
        tensor = {"Name": "x", "Dimensions": [1, 4], **datatype}
        kernel = {"Name": "mean", "LayerType": "Reduce", "Inputs": [tensor], "Outputs": [{**tensor, "Name": "y"}]}
        return json.dumps({"Layers": [kernel]})

    def create_runtime_config(self) -> Any:
        return RuntimeConfig(self.module)

    def create_execution_context(self, how: Any) -> Any:
        assert self.module.driver.is_current()
        strategy = how.strategy if isinstance(how, RuntimeConfig) else how
        assert strategy.name == "USER_MANAGED"
        graphs = getattr(how, "cuda_graph_strategy", None)
        self.module.observed.contexts.append(graphs.name if graphs else "plain")
        return ExecutionContext(self, getattr(how, "cache", None))


class RuntimeConfig:
    """The runtime configuration of TensorRT for RTX."""

    strategy: Any = None
    cuda_graph_strategy: Any = None
    cache: RuntimeCache | None = None

    def __init__(self, module: Any) -> None:
        self.module = module

    def set_execution_context_allocation_strategy(self, strategy: Any) -> None:
        self.strategy = strategy

    def create_runtime_cache(self) -> RuntimeCache:
        return RuntimeCache(self.module)

    def set_runtime_cache(self, cache: RuntimeCache) -> bool:
        self.cache = cache
        return True


class RuntimeCache:
    """The kernels that TensorRT for RTX compiled. Like it, refuses those of another version or device."""

    def __init__(self, module: Any) -> None:
        self.module = module
        self.kernels: set[str] = set()

    @property
    def _environment(self) -> list[str]:
        assert self.module.driver.is_current()
        return [self.module.__version__, self.module.driver.device().name]

    def deserialize(self, data: bytes) -> bool:
        try:
            found = json.loads(data)
        except ValueError:
            return False
        if found["environment"] != self._environment:
            return False
        self.kernels = set(found["kernels"])
        return True

    def serialize(self) -> memoryview:
        found = {"environment": self._environment, "kernels": sorted(self.kernels)}
        return memoryview(json.dumps(found).encode())


class ExecutionContext:
    """Accepts only shapes of its active profile, and fails in a capture unless its shape ran before.

    ``state`` counts changes of shapes and addresses.
    """

    def __init__(self, engine: CudaEngine, cache: RuntimeCache | None) -> None:
        self.engine = engine
        self.driver: FakeDriver = engine.module.driver
        self.cache = cache
        self.profile = 0  # TensorRT selects it by default
        self.selected = 0  # once the stream has come to it
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}
        self.memory = 0
        self.state = 0
        self.settled = False

    def set_optimization_profile_async(self, profile: int, stream: int) -> bool:
        assert self.driver.is_current() and not self.driver.capturing(stream)
        if not 0 <= profile < len(self.engine.profiles):
            self.engine.logger.log(self.engine.module.Severity.ERROR, f"no optimization profile {profile}")
            return False
        if profile != self.profile:
            self.profile, self.shapes, self.memory, self.settled = profile, {}, 0, False
            self.state += 1
        self.driver.enqueue(stream, lambda: setattr(self, "selected", profile))
        return True

    def set_device_memory(self, memory: int, size: int) -> None:
        needed = self.engine.get_device_memory_size_for_profile_v2(self.profile)
        assert self.driver.memory[memory].nbytes == size >= needed
        self.memory = memory

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self.driver.calls.append(("set_input_shape", name, shape))
        low, _, high = self.engine.profiles[self.profile][name]
        fits = all(a <= size <= b for a, size, b in zip(low, shape, high, strict=True))
        if fits and self.shapes.get(name) != shape:
            self.shapes[name] = shape
            self.state += 1
            self.settled = False
        return fits

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.driver.calls.append(("set_tensor_address", name, address))
        self.addresses[name] = address
        self.state += 1
        return address in self.driver.memory

    def execute_async_v3(self, stream: int) -> bool:
        self.driver.calls.append(("execute", stream))
        assert self.driver.is_current()
        engine = self.engine
        if set(self.shapes) != set(engine.plan["inputs"]) or set(self.addresses) != set(engine.tensors):
            return False
        capturing = self.driver.capturing(stream)
        if capturing and not (engine.plan["capturable"] and self.settled):
            message = "operation not permitted when stream is capturing"
            engine.logger.log(engine.module.Severity.ERROR, message)
            return False
        self.settled = True
        self._compile()
        state = self.state if capturing else None
        self.driver.enqueue(stream, partial(self._compute, dict(self.shapes), dict(self.addresses), state))
        return True

    def _compile(self) -> None:
        """Compiles the kernels for the shapes, unless they are in the cache; only TensorRT for RTX does that."""
        if self.cache is not None and str(self.shapes) not in self.cache.kernels:
            self.cache.kernels.add(str(self.shapes))
            self.engine.module.observed.kernels += 1

    def _compute(self, shapes: dict[str, tuple[int, ...]], addresses: dict[str, int], state: int | None) -> None:
        assert state in (None, self.state), "a context was changed after a graph of it was captured"
        assert self.selected == self.profile, "the stream has not come to the choice of the profile"
        needed = self.engine.get_device_memory_size_for_profile_v2(self.profile)
        self.driver.memory[self.memory][:needed] = 0xEE
        arrays = {name: self._read(name, shapes[name], addresses[name]) for name in self.engine.plan["inputs"]}
        for name, result in _network(arrays).items():
            data = result.astype(NUMPY[self.engine.tensors[name][0]]).reshape(-1).view(np.uint8)
            self.driver.memory[addresses[name]][: data.nbytes] = data

    def _read(self, name: str, shape: tuple[int, ...], address: int) -> NDArray[np.float32]:
        dtype = np.dtype(NUMPY[self.engine.tensors[name][0]])
        data = self.driver.memory[address][: prod(shape) * dtype.itemsize]
        return data.view(dtype).reshape(shape).astype(np.float32)


def _network(arrays: dict[str, NDArray[np.float32]]) -> dict[str, NDArray[np.float32]]:
    """Returns the output of the whole network, its encoder, or its head, depending on the inputs."""
    if "image" in arrays:
        planes = np.moveaxis(arrays["image"], 3, 1)
        return {"feature1": planes[:, :2], "feature2": planes[:, 2:]}
    if "before" in arrays:
        return {"probability": np.abs(arrays["before"] - arrays["after"]).mean(-1) / 255}
    dates = [[arrays[f"{date}_feature{n}"] for n in (1, 2)] for date in ("before", "after")]
    before, after = (np.concatenate(features, 1) for features in dates)
    return {"probability": np.abs(before - after).mean(1) / 255}
