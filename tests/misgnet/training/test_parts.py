"""Tests the parts of training: schedule, average, batches, cache, frozen parts, ImageNet encoders and devices."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

torch = pytest.importorskip("torch", reason="the network needs the [train] extra")

from safetensors.torch import save_file

from misgnet.devices import choose_device, choose_precision
from misgnet.network import build_misgnet
from misgnet.synthetic import write_split
from misgnet.training import Recipe, rate_factor
from misgnet.training.augmentation import Augmentation
from misgnet.training.average import AveragedNetwork
from misgnet.training.batches import BatchReader, SourceCache, epoch_batches
from misgnet.training.ranks import Ranks, check_batch
from misgnet.training.start import batch_norms, freeze, load_encoder, set_training, trainable
from misgnet_runtime.errors import InputError, UnavailableError, UsageError
from misgnet_runtime.raster.dataset import TileSet, load_source, read_tile
from support.golden import make_network


@pytest.fixture(scope="module")
def tiles(tmp_path_factory: pytest.TempPathFactory) -> TileSet:
    folder = tmp_path_factory.mktemp("tiles")
    write_split(folder, 5, seed=1, size=128)
    return TileSet.open(folder, 64)


def test_defaults_are_the_published_recipe() -> None:
    recipe = Recipe()
    assert (recipe.learning_rate, recipe.weight_decay, recipe.batch, recipe.epochs) == (4e-4, 1e-4, 32, 150)
    assert (recipe.warmup_epochs, recipe.decay_power, recipe.ema, recipe.clip_norm) == (1, 0.9, 0.9999, 1)
    loss = recipe.loss
    assert (loss.dice, loss.focal, loss.focal_alpha, loss.focal_gamma) == (1, 0.5, 0.2, 2)


@pytest.mark.parametrize(
    "wrong",
    [{"learning_rate": 0.0}, {"batch": 0}, {"epochs": 0}, {"minutes": -1.0}, {"ema": 1.0}, {"crop": 50}, {"crop": 0},
     {"clip_norm": -1.0}, {"validate_every": 0}, {"distill": -1.0}],
)  # fmt: skip
def test_recipe_refuses_invalid_values(wrong: dict) -> None:
    with pytest.raises(UsageError, match=f"--{next(iter(wrong)).replace('_', '-')} is"):
        Recipe(**wrong)


def test_rate_warms_up_over_an_epoch_and_decays_to_zero() -> None:
    recipe = Recipe(epochs=10)
    rates = [rate_factor(recipe, n / 100, n / 10) for n in range(101)]
    assert rates.index(max(rates)) == 10
    assert rates[5] == pytest.approx(0.5 * 0.95**0.9)
    assert rates[55] == pytest.approx(0.45**0.9)
    assert 0 < rates[0] <= 0.01 and rates[100] == 0
    assert rate_factor(replace(recipe, warmup_epochs=0), 0, 0) == 1


def test_average_converges_to_the_network() -> None:
    average, network = AveragedNetwork(make_network(1), 0.9999), make_network(2)
    network.final2[0].bn.num_batches_tracked += 5
    start = {key: value.clone() for key, value in average.network.state_dict().items()}
    average.update(network, 90)
    for key, value in average.network.state_dict().items():
        target = network.state_dict()[key]
        expected = 0.91 * start[key] + 0.09 * target if value.is_floating_point() else target
        assert torch.allclose(value, expected, atol=1e-6), key
    for step in range(300):
        average.update(network, step)
    key = "backbone.patch_embed1.proj.weight"
    far = (start[key] - network.state_dict()[key]).abs().max()
    assert (average.network.state_dict()[key] - network.state_dict()[key]).abs().max() < 1e-6 * far


def test_order_of_tiles_depends_on_seed_and_epoch() -> None:
    first, second = epoch_batches(3, 0, 11, 4), epoch_batches(3, 1, 11, 4)
    assert [len(batch) for batch in first] == [4, 4]
    assert len({index for batch in first for index in batch}) == 8
    assert first != second and first == epoch_batches(3, 0, 11, 4) and first != epoch_batches(4, 0, 11, 4)
    assert sorted(epoch_batches(0, 0, 3, 32)[0]) == [0, 1, 2]


def test_augmentation_depends_only_on_seed_epoch_and_tile(tiles: TileSet) -> None:
    """It does not depend on the batch, the number of threads, or the step at which a run was resumed."""
    recipe = Recipe(crop=32)

    def read(epoch: int, batches: list[list[int]], workers: int, seed: int = 0) -> torch.Tensor:
        with BatchReader(tiles, replace(recipe, seed=seed), SourceCache(1 << 20), workers) as reader:
            return torch.cat([before for before, _, _ in reader.epoch(epoch, batches, lambda _: 0.5)])

    whole = read(2, [[0, 5, 7, 9]], 1)
    assert whole.shape == (4, 3, 32, 32)
    assert torch.equal(whole, read(2, [[0, 5], [7], [9]], 3))
    assert torch.equal(whole[2:], read(2, [[7, 9]], 2))
    assert not torch.equal(whole, read(3, [[0, 5, 7, 9]], 1))
    assert not torch.equal(whole, read(2, [[0, 5, 7, 9]], 1, seed=1))


def test_crops_are_used_only_in_their_share_of_the_run(tiles: TileSet) -> None:
    recipe = Recipe(crop=32, crop_share=0.5)
    with BatchReader(tiles, recipe, SourceCache(1 << 20)) as reader:
        sizes = [x.shape[-1] for x, _, _ in reader.epoch(0, [[0]] * 4, lambda n: n / 3)]
    assert sizes == [32, 32, 64, 64]


def test_batches_without_augmentation_equal_the_tiles(tiles: TileSet) -> None:
    recipe = Recipe(augmentation=Augmentation(False, False, False, 0.0))
    with BatchReader(tiles, recipe, SourceCache(0)) as reader:
        ((before, after, label),) = reader.epoch(0, [[3, 8]], lambda _: 1.0)
    for n, index in enumerate((3, 8)):
        tile = read_tile(tiles[index])
        assert np.array_equal((before[n] * 255).round().permute(1, 2, 0).numpy(), tile.before)
        assert np.array_equal((after[n] * 255).round().permute(1, 2, 0).numpy(), tile.after)
        assert np.array_equal(label[n].numpy(), tile.label)


def test_cache_respects_its_limit_and_detects_changed_files(tmp_path: Path) -> None:
    write_split(tmp_path, 3, seed=1, size=64)
    tiles = TileSet.open(tmp_path, 64)
    reads: list[str] = []
    cache = SourceCache(2 * 64 * 64 * 7, load=lambda source: (reads.append(source.name), load_source(source))[1])
    for index in (0, 1, 0, 1, 2, 1, 0):
        cache.tile(tiles[index])
    assert reads == ["pair_00000", "pair_00001", "pair_00002", "pair_00000"]
    path = tiles[0].source.before
    Image.fromarray(np.full((64, 64, 3), 9, np.uint8)).save(path)
    os.utime(path, ns=(1, 1))
    assert (cache.tile(tiles[0]).before == 9).all()
    path.unlink()
    with pytest.raises(InputError, match=path.name):
        cache.tile(tiles[0])


def pvt_state() -> dict[str, torch.Tensor]:
    """Returns the state dict of a PVTv2-B1 with the original names, including stage 4 and the classifier."""
    draw = torch.Generator().manual_seed(7)
    state = {
        key: torch.rand(value.shape, generator=draw) for key, value in build_misgnet().backbone.state_dict().items()
    }
    extra = {
        "patch_embed4.proj.weight": (512, 320, 3, 3), "block4.1.mlp.fc2.weight": (512, 2048),
        "norm4.weight": (512,), "head.weight": (1000, 512), "head.bias": (1000,),
    }  # fmt: skip
    return state | {key: torch.zeros(shape) for key, shape in extra.items()}


def timm_name(name: str) -> str:
    """Returns timm's name for a key of the original file."""
    parts = name.split(".")
    head, stage = parts[0].rstrip("1234"), parts[0][-1]
    if head == "patch_embed":
        start = ["patch_embed"] if stage == "1" else ["stages", str(int(stage) - 1), "downsample"]
    elif head == "block":
        start = ["stages", str(int(stage) - 1), "blocks"]
    elif head == "norm":
        start = ["stages", str(int(stage) - 1), "norm"]
    else:
        start = [parts[0]]
    return ".".join(start + parts[1:]).replace("dwconv.dwconv", "dwconv")


@pytest.mark.parametrize("names", ["original", "timm"])
@pytest.mark.parametrize("form", ["safetensors", "pickle", "wrapped"])
def test_encoder_starts_from_imagenet_files(names: str, form: str, tmp_path: Path) -> None:
    state = pvt_state()
    stored = state if names == "original" else {timm_name(key): value for key, value in state.items()}
    assert (names == "timm") == ("stages.1.blocks.0.mlp.dwconv.weight" in stored)
    path = tmp_path / "pvt"
    if form == "safetensors":
        save_file(stored, path)
    else:
        torch.save(stored if form == "pickle" else {"model": stored}, path)
    network = build_misgnet()
    load_encoder(network, path)
    for key, value in network.backbone.state_dict().items():
        assert torch.equal(value, state[key]), key


def test_unsuitable_encoder_files_are_refused_with_the_key(tmp_path: Path) -> None:
    path, state = tmp_path / "pvt.safetensors", pvt_state()
    cases = [
        ({"conv1.weight": torch.zeros(64, 3, 7, 7)}, "are not from a PVTv2.*conv1.weight"),
        ({k: v for k, v in state.items() if k != "norm2.bias"}, "lack 1 of .*norm2.bias"),
        (state | {"norm2.bias": torch.zeros(64)}, "norm2.bias.* has shape .64., PVTv2-B1 has .128."),
        (state | {"block1.2.norm1.weight": torch.zeros(64)}, "unexpected.*block1.2.norm1.weight"),
    ]
    for content, message in cases:
        save_file(content, path)
        with pytest.raises(InputError, match=message):
            load_encoder(build_misgnet(), path)


def test_frozen_parts_are_not_trained() -> None:
    network = build_misgnet()
    everything = set(trainable(network))
    assert not any(".gcn3." in name and ".r2e" in name and name.count("gcn3") == 2 for name in everything)
    freeze(network, ("encoder",))
    rest = set(trainable(network))
    assert rest and all(not name.startswith("backbone.") for name in rest)
    assert all(name.startswith("backbone.") for name in everything - rest)
    freeze(network, ("norms",))
    assert all(".bn" not in name for name in trainable(network))
    set_training(network, ("encoder", "norms"))
    assert network.training and not any(norm.training for norm in batch_norms(network))
    set_training(network, ())
    assert all(norm.training for norm in batch_norms(network))


def test_batches_are_divided_equally_among_processes() -> None:
    parts = [Ranks(n, 3).part(range(9)) for n in range(3)]
    assert sorted(index for part in parts for index in part) == list(range(9))
    assert {len(part) for part in parts} == {3}
    with pytest.raises(UsageError, match="8 pairs cannot be divided equally among 3"):
        check_batch(8, Ranks(0, 3))


def test_automatic_precision_depends_on_the_hardware(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    for flags, expected in (({"avx2"}, "fp32"), ({"avx512_bf16"}, "bf16"), ({"amx_bf16"}, "bf16"), ({"bf16"}, "bf16")):
        assert choose_precision("auto", cpu, flags=lambda flags=flags: flags) == expected
        assert choose_precision("fp16", cpu) == "fp16"
    for has, expected in ((True, "bf16"), (False, "fp16")):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation, has=has: has)
        assert choose_precision("auto", torch.device("cuda")) == expected


@pytest.mark.skipif(torch.cuda.is_available(), reason="requires a machine without CUDA")
def test_error_names_the_missing_device() -> None:
    with pytest.raises(UnavailableError, match="--device cuda is not available"):
        choose_device("cuda")
    with pytest.raises(UnavailableError, match="--device tpu"):
        choose_device("tpu")
    assert choose_device("auto").type == "cpu"
