"""Tests quantization-aware fine-tuning: the network computes like the INT8 graph, and its checkpoint stays plain."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the network needs the [train] extra")
onnx = pytest.importorskip("onnx", reason="the quantizer sites come from an exported graph: the [export] extra")

import onnxruntime
from typer.testing import CliRunner

from misgnet.checkpoint import load_checkpoint, load_network
from misgnet.cli import app
from misgnet.evaluation import evaluate, predict_probability
from misgnet.network import MISGNet, build_misgnet
from misgnet.synthetic import write_split
from misgnet.training import Counters, Recipe, Report, Start, StepReport, qat, resume, train
from misgnet.training.augmentation import Augmentation
from misgnet.training.average import AveragedNetwork
from misgnet.training.fake_quantization import FakeQuantConv2d, FakeQuantLinear, folding, weight_scale
from misgnet.training.recipe import rate_factor
from misgnet_calibration.algorithms.layer_norms import rescaled, scalable_norms
from misgnet_calibration.onnx_graph.graph import Graph
from misgnet_calibration.quantizer import recipes
from misgnet_calibration.quantizer.known_modules import MISGNET
from misgnet_calibration.quantizer.placement import WeightedSite
from misgnet_calibration.quantizer.quantize import QuantizedGraph, quantize
from misgnet_calibration.quantizer.recipes import Recipe as Int8Recipe
from misgnet_calibration.quantizer.scales import activation_parameters
from misgnet_calibration.quantizer.scales import weight_scale as written_scale
from misgnet_calibration.statistics.cache import ActivationStatistics
from misgnet_calibration.statistics.calibrators import DEFAULT
from misgnet_calibration.statistics.observers import Range
from misgnet_export.graph.export import export_graph
from misgnet_export.graph.simplify import simplify_graph
from misgnet_export.pipeline.agreement import predictions_of
from misgnet_export.pipeline.calibrate import observe
from misgnet_export.pipeline.quantization_record import placement_entries
from misgnet_runtime.bundle.manifest import Interface
from misgnet_runtime.bundle.quantization import Int8Numbers, NodePlacement, Steps
from misgnet_runtime.errors import InputError, UsageError
from misgnet_runtime.log import use
from misgnet_runtime.raster.dataset import TileSet, stack
from misgnet_runtime.storage.files import file_sha256
from support.bundles import edit, make_bundle
from support.paths import DEMO_WEIGHTS as WEIGHTS

TILE = 64
INTERFACE = Interface(TILE, 4)
CPU, TENSORRT, CPU_ARM = map(MISGNET.applied_to, (recipes.CPU, recipes.TENSORRT, recipes.CPU_ARM))
RECIPES = (CPU, TENSORRT, CPU_ARM)
SHORT = Recipe(batch=2, steps=4, learning_rate=1e-5, precision="fp32", seed=3)
DEVICE = torch.device("cpu")
STEPS = Steps(0.1, 0, True)


@dataclass(frozen=True)
class Written:
    """An INT8 graph with its entries in the manifest."""

    graph: QuantizedGraph
    ranges: dict[str, Range]  # of activations, by tensor
    entries: list[NodePlacement]

    @property
    def int8(self) -> list[NodePlacement]:
        return [entry for entry in self.entries if entry.precision == "int8"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiles")
    write_split(folder / "train", 6, seed=1, size=TILE)
    write_split(folder / "val", 4, seed=2, size=TILE)
    return folder


def sets(data: Path) -> tuple[TileSet, TileSet]:
    return TileSet.open(data / "train", TILE), TileSet.open(data / "val", TILE)


def exported(weights: Path) -> Any:
    return simplify_graph(export_graph(load_network(weights), INTERFACE))


def observed(model: Any, data: Path) -> ActivationStatistics:
    return observe(model, INTERFACE, sets(data)[0], list(RECIPES), lambda done, of: None)


def written(
    model: Any, statistics: ActivationStatistics, recipe: Int8Recipe, *, width: float = 1.0, original: Any = None
) -> Written:
    """Quantizes a graph as a build does; ``width`` scales the observed ranges, ``original`` is the unsmoothed graph."""
    ranges = {
        n: Range(r.low * width, r.high * width)
        for n, r in statistics.ranges(DEFAULT, symmetric=recipe.symmetric_activations).items()
    }
    scopes = MISGNET.float32_scopes
    graph = quantize(model, recipe, ranges, statistics.absolute_maxima, float32_scopes=scopes)
    entries = placement_entries(Graph(original or model), recipe, graph)[1]
    return Written(graph, ranges, entries)


@pytest.fixture(scope="module")
def model(data: Path) -> Any:
    """Returns the floating-point graph of the example weights."""
    return exported(WEIGHTS)


@pytest.fixture(scope="module")
def statistics(model: Any, data: Path) -> ActivationStatistics:
    return observed(model, data)


@pytest.fixture(scope="module")
def graphs(model: Any, statistics: ActivationStatistics) -> dict[str, Written]:
    return {recipe.name: written(model, statistics, recipe) for recipe in RECIPES}


def imitation(found: Written) -> MISGNet:
    entries = [entry for entry in found.entries if entry.int8 is not None or entry.divided_by]
    return qat.fake_quantized(load_network(WEIGHTS), entries).eval()


by_recipe = pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.name)


@pytest.mark.slow
@by_recipe
def test_manifest_holds_the_scales_of_the_graph(recipe: Int8Recipe, graphs: dict[str, Written]) -> None:
    found = graphs[recipe.name]
    graph = Graph(found.graph.model)
    sites = {site.node: site for site in found.graph.sites}
    assert [entry.node for entry in found.int8] == list(sites)
    assert not any(entry.int8 for entry in found.entries if entry.precision != "int8")
    for entry in found.int8:
        numbers, site, inputs = entry.int8, sites[entry.node], graph.by_name[entry.node].input
        assert numbers is not None
        for steps, tensor in ((numbers.activation, site.activation), (numbers.output, site.output)):
            assert (steps is None) == (tensor is None)
            if steps is not None and tensor is not None:
                scale, zero = activation_parameters(found.ranges[tensor], recipe)
                assert (steps.scale, steps.zero, steps.signed) == (scale, zero, zero.dtype == np.int8)
        dequantize = graph.producer[inputs[0]]
        assert float(graph.constant(dequantize.input[1])) == numbers.activation.scale
        quantized = graph.constant(graph.producer[inputs[1]].input[0])
        assert np.abs(quantized).max() == (1 << (numbers.weight_bits - 1)) - 1
        assert graph.constant(graph.producer[inputs[1]].input[1]).size == quantized.shape[numbers.weight_axis]
        assert numbers.quantized_bias == (site.bias is not None) and numbers.float16_scales == recipe.float16
    encoded = msgspec.json.encode(found.entries)
    assert msgspec.json.decode(encoded, type=list[NodePlacement]) == found.entries


@dataclass(frozen=True, kw_only=True)
class Operator:
    """Input and output of an INT8 operator of a graph for one tile, in floating point."""

    x: np.ndarray
    y: np.ndarray
    relu: bool  # whether a ReLU is applied to the output
    step: float | None  # of the output; None if it is not quantized
    sums: np.ndarray  # output before it is quantized
    bias_rounding: np.ndarray  # maximum rounding error of the quantized bias, by output channel
    float16: bool  # whether the graph rounds the output and its step to float16

    def at_edge(self) -> np.ndarray:
        """Returns a mask of outputs so close to the middle between two quantized values that both are correct.

        The bias of the network is not quantized, and the last digits of float32 sums depend on the processor. Both
        errors are at most a few hundredths of a step. Rounding to float16 changes an output, a sum before the bias and
        a step by up to 2^-11 each; inputs and weights that cancel add up to 0.015 steps.
        """
        assert self.step is not None
        position = self.sums / self.step
        rounding = np.maximum(0.015, 3 * 2.0**-11 * np.abs(position)) if self.float16 else 0.0
        return near_edge(position, 1e-3 + self.bias_rounding / self.step + rounding)


def near_edge(position: np.ndarray, distance: np.ndarray | float) -> np.ndarray:
    return np.abs(position % 1 - 0.5) <= distance


@pytest.mark.slow
@by_recipe
def test_each_layer_computes_like_its_operator(
    recipe: Int8Recipe, graphs: dict[str, Written], operators: dict[str, dict[str, Operator]]
) -> None:
    """For equal inputs, outputs have the same quantized value, or the next one if both are correct."""
    network, found = imitation(graphs[recipe.name]), operators[recipe.name]
    assert not [name for name, operator in found.items() if not agrees(network, name, operator, recipe)]
    assert all(operator.at_edge().mean() < 0.1 for operator in found.values() if operator.step)


@pytest.mark.slow
@by_recipe
@pytest.mark.parametrize("fault", ["steps 1 % wider", "finer steps", "a bit less in weights"])
def test_comparison_detects_a_layer_that_differs_from_its_operator(
    fault: str, recipe: Int8Recipe, graphs: dict[str, Written], operators: dict[str, dict[str, Operator]]
) -> None:
    """Shows that the test above is strict enough."""
    network, found = imitation(graphs[recipe.name]), operators[recipe.name]
    for name in found:
        layer = network.get_submodule(name)
        layer.numbers = with_fault(layer.numbers, fault)
    assert not [name for name, operator in found.items() if agrees(network, name, operator, recipe)]


def with_fault(numbers: Int8Numbers, fault: str) -> Int8Numbers:
    if fault == "a bit less in weights":
        return replaced(numbers, weight_bits=numbers.weight_bits - 1)
    factor = 1.01 if fault == "steps 1 % wider" else 1 / 8
    return replaced(numbers, activation=replaced(numbers.activation, scale=numbers.activation.scale * factor))


def agrees(network: MISGNet, name: str, operator: Operator, recipe: Int8Recipe) -> bool:
    mine = layer_output(network, name, operator)
    if operator.step is None:
        digits = 1e-3 if recipe.float16 else 1e-5
        return bool(np.abs(mine - operator.y).max() < digits * np.abs(operator.y).max())
    off = np.rint(mine / operator.step) - np.rint(operator.y / operator.step)
    return bool(np.abs(off).max() <= 1 and not off[~operator.at_edge()].any())


def layer_output(network: MISGNet, name: str, operator: Operator) -> np.ndarray:
    """Returns the output of a layer and of the batch norm after it, if there is one."""
    layer = network.get_submodule(name)
    norm = qat.batch_norm_behind(network).get(layer, torch.nn.Identity())
    with torch.inference_mode():
        y = norm(layer(torch.from_numpy(operator.x))).numpy()
    return np.maximum(y, 0) if operator.relu else y


@pytest.fixture(scope="module")
def operators(graphs: dict[str, Written], data: Path) -> dict[str, dict[str, Operator]]:
    """Returns the INT8 operators by recipe and module."""
    return {name: run_operators(found, data) for name, found in graphs.items()}


def run_operators(found: Written, data: Path) -> dict[str, Operator]:
    """Runs the graph without optimisation and returns its INT8 operators by module."""
    graph = Graph(found.graph.model)
    tensors = {site.node: tensors_of(graph, site) for site in found.graph.sites}
    values = outputs(found.graph.model, sorted({t for names in tensors.values() for t in names}), data)
    numbers = {entry.node: entry.int8 for entry in found.int8}
    result = {}
    for site in found.graph.sites:
        node, steps = graph.by_name[site.node], numbers[site.node]
        assert steps is not None
        x, quantized, y, sums = (values[name] for name in tensors[site.node])
        # PyTorch multiplies by the reciprocal of the step, which rounds ties differently: use the graph's value there
        x = np.where(near_edge(x / steps.activation.scale, 1e-3), quantized, x)
        scale = graph.constant(graph.producer[node.input[1]].input[1])
        rounding = steps.activation.scale * scale[:, None, None] / 2 if site.bias else np.zeros(1)
        relu, step = site.output not in (None, node.output[0]), steps.output and steps.output.scale
        result[site.node.rpartition("/")[0]] = Operator(
            x=x, y=y, relu=relu, step=step, sums=sums, bias_rounding=rounding, float16=found.graph.recipe.float16
        )
    return result


def tensors_of(graph: Graph, site: WeightedSite) -> tuple[str, str, str, str]:
    """Returns the names of an operator's input before and after quantization, its output, and that before quantization.

    The last two are equal if the output is not quantized.
    """
    node = graph.by_name[site.node]
    quantizer = graph.producer[graph.producer[node.input[0]].input[0]]
    if site.output:
        (behind,) = [n for n in graph.consumers[site.output] if n.op_type == "QuantizeLinear"]
        output, sums = graph.consumers[behind.output[0]][0].output[0], site.output
    else:
        output = sums = node.output[0] if node.op_type == "Conv" else graph.consumers[node.output[0]][0].output[0]
    return quantizer.input[0], node.input[0], output, sums


def outputs(written_model: Any, names: list[str], data: Path) -> dict[str, np.ndarray]:
    """Returns tensors of a graph for one tile as float32, computed without ONNX Runtime's optimisations."""
    model = onnx.ModelProto()
    model.CopyFrom(written_model)
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options)
    before, after = stack([next(iter(sets(data)[1].tiles()))])
    found = session.run(names, {"before": before, "after": after})
    return {name: value.astype(np.float32) for name, value in zip(names, found, strict=True)}


@pytest.mark.slow
@pytest.mark.parametrize("recipe", (CPU, TENSORRT), ids=lambda recipe: recipe.name)
@pytest.mark.parametrize("fault", ["coarse weights", "clipped activations"])
def test_network_predicts_like_the_int8_graph(
    fault: str, recipe: Int8Recipe, model: Any, statistics: ActivationStatistics, data: Path
) -> None:
    """Compares whole predictions with ONNX Runtime, with scales so bad that they change the prediction.

    Good scales would not allow a comparison: a difference in the last float32 digit can change a quantized value,
    later layers amplify it, and ONNX Runtime's own results differ between optimisation levels by half of the error
    that INT8 causes.
    """
    bad = replace(recipe, weight_bits=3) if fault == "coarse weights" else recipe
    found = written(model, statistics, bad, width=1.0 if fault == "coarse weights" else 0.25)
    expected, plain, mine = predictions(found, data), torch_predictions(load_network(WEIGHTS), data), imitation(found)
    assert np.abs(torch_predictions(mine, data) - expected).mean() < 0.15 * np.abs(plain - expected).mean()


def predictions(found: Written, data: Path) -> np.ndarray:
    return np.stack(predictions_of(found.graph.model, INTERFACE, list(sets(data)[1].tiles())))


def torch_predictions(network: MISGNet, data: Path) -> np.ndarray:
    return predict_probability(network, *stack(list(sets(data)[1].tiles())))


@pytest.mark.slow
def test_smoothed_graph_is_imitated_without_changing_the_output(
    model: Any, statistics: ActivationStatistics, data: Path
) -> None:
    graph = Graph(model)
    norms = scalable_norms(graph, {entry.node for entry in written(model, statistics, CPU).int8})
    random = np.random.default_rng(0)
    channels = {norm.node: graph.shape(graph.by_name[norm.node].input[1])[0] for norm in norms}
    factors = {name: np.exp(random.normal(0, 0.7, count)).astype(np.float32) for name, count in channels.items()}
    smoothed = rescaled(model, norms, factors)
    found = written(smoothed, observed(smoothed, data), replace(CPU, weight_bits=3), original=model)
    divided = {entry.node: entry.divided_by for entry in found.entries if entry.divided_by}
    assert divided.keys() == factors.keys()
    assert all(divided[name] == pytest.approx(by, rel=1e-5) for name, by in factors.items())
    plain, expected = torch_predictions(load_network(WEIGHTS), data), predictions(found, data)
    assert np.abs(torch_predictions(imitation(found), data) - expected).mean() < 0.15 * np.abs(plain - expected).mean()
    moved = qat.fake_quantized(load_network(WEIGHTS), [entry for entry in found.entries if entry.divided_by])
    assert np.abs(torch_predictions(moved, data) - plain).max() < 1e-3
    with pytest.raises(InputError, match=r"'backbone\.norm1'"):
        entry = NodePlacement("backbone.norm1/Layer_1", "LayerNormalization", "float32", "", 0, None, [2.0] * 64)
        qat.fake_quantized(build_misgnet(), [entry])


@by_recipe
def test_weight_scales_equal_those_of_the_quantizer(recipe: Int8Recipe) -> None:
    random = np.random.default_rng(1)
    weight = random.normal(0, 10.0 ** random.integers(-8, 2, (40, 1)), (40, 30)).astype(np.float32)
    weight[3] = 0
    bias = random.normal(0, 100, 40).astype(np.float32)
    numbers = Int8Numbers(
        STEPS, recipe.weight_bits, 0, quantized_bias=recipe.quantize_bias, float16_scales=recipe.float16
    )
    expected = written_scale(weight, 0, recipe, bias if recipe.quantize_bias else None, STEPS.scale)
    found = weight_scale(torch.from_numpy(weight), numbers, torch.from_numpy(bias)).numpy()
    np.testing.assert_array_equal(found, expected)


def test_weight_is_quantized_as_folded_with_its_batch_norm() -> None:
    torch.manual_seed(0)
    conv, norm = torch.nn.Conv2d(6, 5, 3), torch.nn.BatchNorm2d(5).eval()
    for value, low, high in ((norm.weight, -2, 2), (norm.bias, -1, 1), (norm.running_mean, -1, 1)):
        torch.nn.init.uniform_(value, low, high)
    torch.nn.init.uniform_(norm.running_var, 0.1, 9)
    torch.nn.init.zeros_(norm.weight[2:3])  # a pruned channel, whose factor is 0
    layer = FakeQuantConv2d(conv, Int8Numbers(STEPS, 4, 0), norm)
    gain, bias = folding(norm, conv.bias)
    folded = conv.weight * gain.view(-1, 1, 1, 1)
    steps = layer.quantized_weight() * gain.view(-1, 1, 1, 1) / (folded.abs().amax((1, 2, 3), True) / 7 + 1e-12)
    assert torch.allclose(steps, steps.round(), atol=1e-4) and steps.abs().max().round() == 7
    x = torch.randn(2, 6, 8, 8)
    assert torch.allclose(norm(conv(x)), torch.conv2d(x, folded, bias), atol=1e-5)
    layer(x).square().sum().backward()
    assert all(torch.isfinite(value.grad).all() for value in (conv.weight, conv.bias))
    with pytest.raises(AssertionError, match="frozen batch norms"):
        layer.folded[0].train()
        layer(x)


def test_folding_is_exact_in_float32_on_every_processor() -> None:
    """The graph's folded weights are; one digit of difference can change the quantized value of a weight at a tie."""
    torch.manual_seed(0)
    norm = torch.nn.BatchNorm2d(1000).eval()
    for value in (norm.weight, norm.running_var):
        torch.nn.init.uniform_(value, 0.1, 3)
    variance = norm.running_var.numpy() + np.float32(norm.eps)
    expected = norm.weight.detach().numpy() / np.sqrt(variance)  # NumPy rounds correctly
    np.testing.assert_array_equal(folding(norm, None)[0].detach().numpy(), expected)


def test_gradient_ignores_rounding_and_is_zero_for_clipped_values() -> None:
    linear = torch.nn.Linear(3, 1, bias=False)
    torch.nn.init.constant_(linear.weight, 0.5)
    x = torch.tensor([[0.33, 12.69, 20.0]], requires_grad=True)  # the last value exceeds 127 steps
    FakeQuantLinear(linear, Int8Numbers(STEPS, 8, 0))(x).backward()
    assert x.grad.tolist() == [[0.5, 0.5, 0.0]]
    assert linear.weight.grad.tolist() == [pytest.approx([0.3, 12.7, 12.7])]


@pytest.mark.slow
def test_fake_quantization_ignores_autocast(graphs: dict[str, Written]) -> None:
    network = imitation(graphs["cpu"])
    for name in ("backbone.block1.0.attn.q", "decode1.conv3", "decode1.conv_l"):
        layer = network.get_submodule(name)
        x = torch.randn(1, 64, 64) if isinstance(layer, FakeQuantLinear) else torch.randn(1, layer.in_channels, 8, 8)
        plain = layer(x)
        with torch.autocast("cpu", torch.bfloat16):
            found = layer(x)
        assert found.dtype == torch.float32 and torch.equal(found, plain)


@pytest.mark.slow
def test_state_dict_keeps_the_published_keys_and_a_copy_keeps_the_quantizers(graphs: dict[str, Written]) -> None:
    network = imitation(graphs["cpu"])
    assert network.state_dict().keys() == build_misgnet().state_dict().keys()
    average = AveragedNetwork(network, 0.9).network
    layer = average.get_submodule("decode1.conv3")
    assert layer.folded[0] is average.decode1.bn3 and layer.folded[0] is not network.decode1.bn3
    images = torch.randn(2, 3, TILE, TILE), torch.randn(2, 3, TILE, TILE)
    with torch.inference_mode():
        assert torch.equal(average(*images), network(*images))
        assert not torch.equal(network(*images), load_network(WEIGHTS)(*images))


def entry(node: str, operator: str, axis: int = 0) -> NodePlacement:
    return NodePlacement(node, operator, "int8", "a rule", 1, Int8Numbers(STEPS, 8, axis))


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (entry("decode9.conv3/Conv_1", "Conv"), "'decode9.conv3/Conv_1'.*there is no 'decode9.conv3'"),
        (entry("decode1/Conv_4", "Conv"), "'decode1/Conv_4'.*'decode1' is a Decode"),
        (entry("decode1.conv3/MatMul_4", "MatMul", 1), "'decode1.conv3/MatMul_4'.*Conv2d"),
        (entry("decode1.conv3/Conv_4", "Conv", 1), "'decode1.conv3/Conv_4'"),
        (entry("MGLNet0.mutualnet0.r2e.gcn.gcn1/MatMul_4", "MatMul", 1), "gcn1/MatMul_4.*GraphConv"),
    ],
)
def test_error_names_an_operator_that_matches_no_layer(broken: NodePlacement, message: str) -> None:
    good = entry("decode1.conv_l/Conv_1", "Conv")
    with pytest.raises(InputError, match=message):
        qat.fake_quantized(build_misgnet(), [good, broken])
    with pytest.raises(InputError, match=r"conv_l/Conv_2'.*second"):
        qat.fake_quantized(build_misgnet(), [good, replaced(good, node="decode1.conv_l/Conv_2")])


def replaced(value: Any, **changes: Any) -> Any:
    return msgspec.structs.replace(value, **changes)


def test_number_of_steps_is_checked_and_limits_the_warm_up() -> None:
    with pytest.raises(UsageError, match="--steps is 0"):
        Recipe(steps=0)
    with pytest.raises(UsageError, match="use one of the two"):
        Recipe(steps=3, minutes=1.0)
    recipe = Recipe(steps=100, warmup_epochs=5.0, decay_power=0.0)
    assert rate_factor(recipe, 0.1, 0.5) == 1.0 and rate_factor(recipe, 0.05, 0.25) == pytest.approx(0.5)


@pytest.fixture(scope="module")
def bundle(graphs: dict[str, Written], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns a bundle whose manifest has the quantizer sites of two graphs; training does not read the graphs."""
    root = make_bundle(tmp_path_factory.mktemp("bundle") / "bundle")
    return with_graphs(root, {name: graphs[name].entries for name in ("cpu", "tensorrt")})


def with_graphs(bundle: Path, entries: dict[str, list[NodePlacement]]) -> Path:
    def change(manifest: dict[str, Any]) -> None:
        (first,) = manifest["quantization"]
        manifest["quantization"] = [
            {**first, "recipe": name, "placement": json.loads(msgspec.json.encode(found))}
            for name, found in entries.items()
        ]

    return edit(bundle, change)


@pytest.mark.slow
def test_bundle_returns_the_sites_of_the_requested_graph(
    bundle: Path, graphs: dict[str, Written], tmp_path: Path
) -> None:
    assert list(qat.quantizer_sites(bundle)) == graphs["cpu"].int8
    assert list(qat.quantizer_sites(bundle, "tensorrt")) == graphs["tensorrt"].int8
    with pytest.raises(UsageError, match=r"no INT8 graph 'cpu-arm'.*cpu, tensorrt"):
        qat.quantizer_sites(bundle, "cpu-arm")
    only = with_graphs(make_bundle(tmp_path / "only"), {"tensorrt": graphs["tensorrt"].entries})
    assert list(qat.quantizer_sites(only)) == graphs["tensorrt"].int8
    beside = with_graphs(make_bundle(tmp_path / "beside"), {"tensorrt": graphs["tensorrt"].entries, "float16": []})
    edit(beside, lambda m: m["quantization"][1].update(quantized_nodes=0))
    assert list(qat.quantizer_sites(beside)) == graphs["tensorrt"].int8, "a graph without INT8 is not a candidate"
    old = with_graphs(make_bundle(tmp_path / "old"), {"cpu": [replaced(e, int8=None) for e in graphs["cpu"].int8]})
    with pytest.raises(InputError, match=r"'backbone.block1.0.attn.q/.*build it again"):
        qat.quantizer_sites(old)


@pytest.mark.slow
def test_int8_operators_without_weights_are_refused(graphs: dict[str, Written], tmp_path: Path) -> None:
    softmax = NodePlacement("decode1/Mul_9", "Mul", "int8", "without weights", 0, operands=[STEPS, STEPS])
    mine = with_graphs(make_bundle(tmp_path / "all"), {"cpu": [*graphs["cpu"].int8, softmax]})
    with pytest.raises(InputError, match=r"1 INT8 operator without weights.* 'decode1/Mul_9'.*--placement rules"):
        qat.quantizer_sites(mine)


@pytest.mark.slow
def test_weights_other_than_those_of_the_bundle_cause_a_warning(bundle: Path, tmp_path: Path) -> None:
    text = qat.different_weights_warning(bundle, WEIGHTS)
    assert text is not None and str(WEIGHTS) in text and "activation ranges" in text
    missing = tmp_path / "missing.safetensors"
    assert qat.different_weights_warning(bundle, missing) is None, "the code that reads the file reports it"
    assert qat.different_weights_warning(built_from(WEIGHTS, tmp_path), WEIGHTS) is None


def built_from(weights: Path, folder: Path) -> Path:
    digest = file_sha256(weights)
    return edit(make_bundle(folder / "same"), lambda manifest: manifest.update(source_weights_sha256=digest))


def entries(run: Path, kind: str) -> list[dict[str, Any]]:
    lines = (run / "log.jsonl").read_text().splitlines()
    return [found for line in lines if (found := json.loads(line))["kind"] == kind]


def start(bundle: Path) -> Start:
    return Start(init=WEIGHTS, qat=bundle)


@dataclass(frozen=True)
class Run:
    folder: Path
    outcome: Counters


@pytest.fixture(scope="module")
def whole(data: Path, bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("whole") / "run"
    return Run(folder, train(*sets(data), folder, SHORT, start(bundle), device=DEVICE))


@pytest.mark.slow
def test_run_ends_after_its_steps_and_evaluates_the_quantized_network(
    whole: Run, data: Path, graphs: dict[str, Written]
) -> None:
    assert (whole.outcome.step, whole.outcome.finished) == (4, True)
    validations = entries(whole.folder, "validation")
    assert [found["step"] for found in validations] == [0, 3, 4]
    val = sets(data)[1]
    assert evaluate(imitation(graphs["cpu"]), val).f1 == pytest.approx(validations[0]["f1"], abs=5e-3)
    best = qat.fake_quantized(load_network(whole.folder / "best.safetensors"), graphs["cpu"].int8)
    assert evaluate(best, val).f1 == pytest.approx(whole.outcome.best_f1, abs=5e-3)
    assert whole.outcome.best_f1 >= validations[0]["f1"]


@pytest.mark.slow
def test_checkpoints_have_plain_keys_and_unchanged_norms(whole: Run) -> None:
    before, after = load_checkpoint(WEIGHTS), load_checkpoint(whole.folder / "last.safetensors")
    assert before.keys() == after.keys()
    changed = {key for key in before if not torch.equal(before[key], after[key])}
    assert {"decode1.conv3.weight", "backbone.block1.0.attn.q.weight"} < changed
    assert not any(".bn" in key for key in changed)


@pytest.mark.slow
def test_resume_after_stop_equals_an_uninterrupted_run(whole: Run, bundle: Path, data: Path, tmp_path: Path) -> None:
    reports: list[Report] = []
    stopped = lambda: sum(isinstance(report, StepReport) for report in reports) == 2  # noqa: E731
    train(*sets(data), tmp_path / "run", SHORT, start(bundle), device=DEVICE, listen=reports.append, stopped=stopped)
    assert resume(*sets(data), tmp_path / "run", {"qat": bundle, "steps": 4}, device=DEVICE).finished
    for kind, value in (("step", "loss"), ("validation", "f1")):
        mine, theirs = entries(tmp_path / "run", kind), entries(whole.folder, kind)
        assert [found[value] for found in mine] == [found[value] for found in theirs]
    mine, theirs = (load_checkpoint(run / "last.safetensors") for run in (tmp_path / "run", whole.folder))
    assert all(torch.equal(mine[key], theirs[key]) for key in theirs)


@pytest.mark.slow
def test_resume_refuses_another_bundle(bundle: Path, graphs: dict[str, Written], data: Path, tmp_path: Path) -> None:
    mine = with_graphs(make_bundle(tmp_path / "bundle"), {"cpu": graphs["cpu"].entries})
    train(*sets(data), tmp_path / "run", SHORT, start(mine), device=DEVICE, stopped=lambda: True)
    with pytest.raises(UsageError, match="--qat "):
        resume(*sets(data), tmp_path / "run", {"qat": bundle}, device=DEVICE)
    with_graphs(mine, {"cpu": graphs["cpu-arm"].entries})
    with pytest.raises(InputError, match=r"bundle has changed since the run .* was started"):
        resume(*sets(data), tmp_path / "run", device=DEVICE)


@pytest.mark.slow
def test_rebuilt_graph_has_the_same_quantizer_sites(whole: Run, graphs: dict[str, Written], data: Path) -> None:
    model = exported(whole.folder / "last.safetensors")
    statistics = observed(model, data)
    for recipe in (CPU, TENSORRT):
        again = written(model, statistics, recipe)
        assert pairs(again) == pairs(graphs[recipe.name]) and again.graph.sites == graphs[recipe.name].graph.sites
        assert not np.array_equal(quantized_weights(again), quantized_weights(graphs[recipe.name]))


def pairs(found: Written) -> set[tuple[str, ...]]:
    """Returns all Q and DQ nodes with their inputs and outputs."""
    nodes = found.graph.model.graph.node
    return {(n.name, *n.input, *n.output) for n in nodes if n.op_type in ("QuantizeLinear", "DequantizeLinear")}


def quantized_weights(found: Written) -> np.ndarray:
    graph = Graph(found.graph.model)
    dequantizers = [graph.producer[graph.by_name[p.node].input[1]] for p in found.graph.sites]
    return np.concatenate([graph.constant(node.input[0]).ravel() for node in dequantizers])


@pytest.mark.slow
def test_a_few_steps_lower_the_loss(model: Any, statistics: ActivationStatistics, data: Path, tmp_path: Path) -> None:
    """Uses 3-bit weights, whose first predictions are bad; every step uses the same tiles without augmentation."""
    coarse = written(model, statistics, replace(CPU, weight_bits=3)).entries
    mine = with_graphs(make_bundle(tmp_path / "bundle"), {"cpu": coarse})
    recipe = replace(
        SHORT, batch=3, steps=6, learning_rate=1e-4, decay_power=0.0, warmup_epochs=0.0,
        augmentation=Augmentation(flip=False, turn=False, swap=False, colour=0.0), validate_every=100,
    )  # fmt: skip
    tiles = sets(data)[0].subset([0, 2, 4])
    train(tiles, tiles.subset([0]), tmp_path / "run", recipe, start(mine), device=DEVICE)
    losses = [found["loss"] for found in entries(tmp_path / "run", "step")]
    assert np.mean(losses[-3:]) < 0.8 * losses[0]


def invoke(*arguments: object) -> Any:
    use("text")  # as the process of the command does
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.mark.slow
def test_qat_option_requires_weights_and_uses_a_small_learning_rate(bundle: Path, data: Path, tmp_path: Path) -> None:
    common = ["train", data, "-o", tmp_path / "run", "--tile", TILE, "--precision", "fp32", "--batch", 2]
    refused = invoke(*common, "--qat", bundle)
    assert isinstance(refused.exception, UsageError) and "--init" in str(refused.exception)
    lonely = invoke(*common, "--init", WEIGHTS, "--qat-graph", "cpu")
    assert isinstance(lonely.exception, UsageError) and "--qat" in str(lonely.exception)
    done = invoke(*common, "--init", WEIGHTS, "--qat", bundle, "--qat-graph", "tensorrt", "--steps", 1)
    assert done.exit_code == 0 and "learning rate 1e-05" in done.output, done.output
    assert done.output.count("was built from another file") == 1
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert (config["recipe"]["learning_rate"], config["recipe"]["steps"]) == (1e-5, 1)
    assert config["start"]["qat"] == str(bundle) and config["start"]["qat_graph"] == "tensorrt"
    again = invoke(*common, "--resume", "--init", WEIGHTS, "--qat", bundle, "--qat-graph", "tensorrt", "--steps", 1)
    assert again.exit_code == 0 and "another file" not in again.output, again.output
