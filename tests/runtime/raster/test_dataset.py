"""Tests of tile pairs, images, labels and metrics; the metrics are compared with those of scikit-learn."""

from __future__ import annotations

import itertools
import struct
import zlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from sklearn import metrics as reference

from misgnet_runtime.accuracy.metrics import Confusion
from misgnet_runtime.errors import InputError
from misgnet_runtime.raster.dataset import TileSet, find_pairs, find_sources, read_tile, stack
from misgnet_runtime.raster.images import image_size, read_image, read_label, write_mask
from misgnet_runtime.raster.leakage import check_disjoint
from misgnet_runtime.raster.tiling import cover, cut

RANDOM = np.random.default_rng(0)


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def save(path: Path, pixels: np.ndarray | Image.Image, **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    image.save(path, **options)
    return path


def write_pair(
    root: Path, name: str = "a", height: int = 64, width: int = 64, suffix: str = ".png", *, seed: int = 0
) -> None:
    save(root / "A" / (name + suffix), picture(height, width, seed))
    save(root / "B" / (name + suffix), picture(height, width, seed + 1))
    mask = picture(height, width, seed + 2)[..., 0] > 127
    save(root / "label" / f"{name}.png", mask.astype(np.uint8) * np.uint8(255))


# --- covering


@settings(max_examples=60, deadline=None)
@given(height=st.integers(1, 60), width=st.integers(1, 60), tile=st.integers(4, 40))
def test_each_pixel_is_owned_once(height: int, width: int, tile: int) -> None:
    count = np.zeros((height, width), int)
    image = np.arange(height * width).reshape(height, width)
    for cell in cover(height, width, tile):
        count[cell.owned_in_image()] += 1
        window = cut(image, cell)
        assert window.shape == (tile, tile)
        assert (window[cell.owned_in_tile()] == image[cell.owned_in_image()]).all()
    assert (count == 1).all()


@settings(max_examples=60, deadline=None)
@given(height=st.integers(1, 100), width=st.integers(1, 100), tile=st.integers(4, 64))
def test_windows_are_within_an_image_that_is_large_enough(height: int, width: int, tile: int) -> None:
    for cell in cover(height, width, tile):
        assert cell.rows.start >= 0
        assert cell.columns.start >= 0
        assert cell.rows.stop <= max(height, tile)
        assert cell.columns.stop <= max(width, tile)


def test_small_image_is_reflected() -> None:
    (cell,) = cover(1, 3, 7)
    assert cut(np.array([[1, 2, 3]]), cell).tolist() == [[1, 2, 3, 3, 2, 1, 1]] * 7


@pytest.mark.parametrize("sizes", [(0, 5, 5), (5, 0, 5), (5, 5, 0)])
def test_empty_images_and_tiles_are_refused(sizes: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="cannot cover"):
        cover(*sizes)


# --- folders


@pytest.mark.parametrize("suffix", [".png", ".tif", ".tiff", ".jpg", ".jpeg", ".PNG"])
@pytest.mark.parametrize(("height", "width"), [(64, 64), (128, 64), (100, 150), (20, 30)])
def test_tiles_reassemble_to_the_images(tmp_path: Path, suffix: str, height: int, width: int) -> None:
    write_pair(tmp_path, "a", height, width, suffix)
    found = TileSet.open(tmp_path, 64)
    source = found.sources[0]
    for part, whole in (
        ("before", read_image(source.before)),
        ("after", read_image(source.after)),
        ("label", read_label(source.label)),
    ):
        joined = np.zeros_like(whole)
        for tile in found.tiles():
            joined[tile.ref.cell.owned_in_image()] = getattr(tile, part)[tile.owned]
        assert (joined == whole).all()


def test_tiles_are_in_order_and_named_by_position(tmp_path: Path) -> None:
    for name in ("b", "a"):
        write_pair(tmp_path, name, 64, 100)
    (tmp_path / "A" / "notes.txt").write_text("not an image")
    (tmp_path / "A" / ".hidden.png").write_text("not an image")
    found = TileSet.open(tmp_path, 64)
    assert [ref.name for ref in found] == ["a@0,0", "a@0,36", "b@0,0", "b@0,36"]
    assert [ref.name for ref in found.subset([3, 0])] == ["a@0,0", "b@0,36"]
    batches = list(found.batches(3))
    assert [len(batch) for batch in batches] == [3, 1]
    assert stack(batches[0])[1].shape == (3, 64, 64, 3)


def test_digest_depends_on_every_file_and_on_the_tiles(tmp_path: Path) -> None:
    write_pair(tmp_path)
    write_pair(tmp_path, "b", seed=5)
    digests = [TileSet.open(tmp_path, 64).digest(), TileSet.open(tmp_path, 32).digest()]
    digests.append(TileSet.open(tmp_path, 64).subset([0]).digest())
    assert TileSet.open(tmp_path, 64).digest() == digests[0]
    for part in ("A", "B", "label"):
        save(tmp_path / part / "a.png", np.zeros((64, 64, 3) if part != "label" else (64, 64), np.uint8))
        digests.append(TileSet.open(tmp_path, 64).digest())
    assert len(set(digests)) == len(digests)


def test_sets_that_share_a_pair_are_refused(tmp_path: Path) -> None:
    write_pair(tmp_path / "one", "a", seed=1)
    write_pair(tmp_path / "one", "b", seed=2)
    write_pair(tmp_path / "two", "c", seed=3)
    one, two = TileSet.open(tmp_path / "one", 64), TileSet.open(tmp_path / "two", 64)
    check_disjoint(one, two, ("calibration", "test"))
    write_pair(tmp_path / "three", "renamed", seed=2)
    with pytest.raises(InputError, match="also in the calibration set") as caught:
        check_disjoint(one, TileSet.open(tmp_path / "three", 64), ("calibration", "test"))
    assert "renamed.png" in str(caught.value)
    assert "b.png" in str(caught.value)


def remove(part: str) -> Callable[[Path], str]:
    def change(root: Path) -> str:
        (root / part / "a.png").unlink()
        return f"{'B' if part == 'A' else 'A'}/a.png"

    return change


def empty(part: str) -> Callable[[Path], str]:
    def change(root: Path) -> str:
        for path in (root / part).iterdir():
            path.unlink()
        return f"{part} contains no images"

    return change


def missing(part: str) -> Callable[[Path], str]:
    def change(root: Path) -> str:
        (root / part).rename(root / "gone")
        return f"{part} does not exist"

    return change


def resize(part: str) -> Callable[[Path], str]:
    def change(root: Path) -> str:
        save(root / part / "a.png", np.zeros((64, 65), np.uint8))
        return f"{part if part != 'A' else 'B'}/a.png is"

    return change


def double(root: Path) -> str:
    save(root / "B" / "a.jpg", picture(64, 64))
    return "B/a.jpg"


def folder_as_image(root: Path) -> str:
    (root / "B" / "a.png").unlink()
    (root / "B" / "a.png").mkdir()
    return "B/a.png cannot be read"


def text_as_image(root: Path) -> str:
    (root / "B" / "a.png").write_text("text")
    return "B/a.png cannot be read"


BAD_FOLDERS = {
    **{
        f"{change.__name__} {part}": change(part)
        for change in (remove, empty, missing, resize)
        for part in ("A", "B", "label")
    },
    "duplicate": double,
    "folder": folder_as_image,
    "text": text_as_image,
}


@pytest.mark.parametrize("case", BAD_FOLDERS)
def test_bad_directories_and_files_are_named(tmp_path: Path, case: str) -> None:
    write_pair(tmp_path)
    write_pair(tmp_path, "b")
    expected = BAD_FOLDERS[case](tmp_path)
    with pytest.raises(InputError) as caught:
        TileSet.open(tmp_path, 64)
    assert expected in str(caught.value)
    assert caught.value.exit_code == 4


# --- images


def with_alpha(alpha: int) -> Image.Image:
    image = Image.fromarray(picture(32, 32)).convert("RGBA")
    image.putpixel((3, 4), (1, 2, 3, alpha))
    return image


def png_16_bit(path: Path) -> Path:
    """A 16-bit RGB PNG, which Pillow cannot write."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = b"".join(b"\0" + bytes(6 * 32) for _ in range(32))
    header = struct.pack(">IIBBBBB", 32, 32, 16, 2, 0, 0, 0)
    parts = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + parts)
    return path


BAD_IMAGES: dict[str, Callable[[Path], Path]] = {
    "transparent": lambda folder: save(folder / "x.png", with_alpha(0)),
    "half transparent": lambda folder: save(folder / "x.png", with_alpha(254)),
    "transparent colour": lambda folder: save(folder / "x.png", Image.new("RGB", (9, 9)), transparency=(0, 0, 0)),
    "transparent palette": lambda folder: save(folder / "x.png", Image.new("P", (9, 9)), transparency=0),
    "grey": lambda folder: save(folder / "x.png", np.zeros((9, 9), np.uint8)),
    "grey JPEG": lambda folder: save(folder / "x.jpg", np.zeros((9, 9), np.uint8)),
    "grey 16 bit": lambda folder: save(folder / "x.tif", np.zeros((9, 9), np.uint16)),
    "float": lambda folder: save(folder / "x.tif", np.zeros((9, 9), np.float32)),
    "CMYK": lambda folder: save(folder / "x.jpg", Image.new("CMYK", (9, 9))),
    "RGB 16 bit": lambda folder: png_16_bit(folder / "x.png"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_IMAGES)
def test_images_that_are_not_8_bit_rgb_are_refused(tmp_path: Path, case: str) -> None:
    path = BAD_IMAGES[case](tmp_path)
    with pytest.raises(InputError, match="8-bit RGB") as caught:
        read_image(path)
    assert str(path) in str(caught.value)


def test_missing_folders_of_a_set_are_explained(tmp_path: Path) -> None:
    write_pair(tmp_path / "train")
    with pytest.raises(InputError, match=r"has no A/, but its train have one; pass one of these, such as .*train$"):
        find_sources(tmp_path)
    (tmp_path / "train/label").rename(tmp_path / "masks")
    with pytest.raises(InputError, match=r"label does not exist; scores need a label of each pair"):
        find_sources(tmp_path / "train")
    with pytest.raises(InputError, match=r"A does not exist; each date needs its own directory"):
        find_sources(tmp_path / "nowhere")


def test_folders_without_common_names_show_the_names(tmp_path: Path) -> None:
    for folder, names in (("A", "abc"), ("B", "axyzw")):
        for name in names:
            save(tmp_path / folder / f"{name}.png", np.zeros((9, 9, 3), np.uint8))
    found = r"A/b\.png has no partner in .*B \(2 of 3 files have none\); .*B has a\.png, w\.png, x\.png, \.\.\.$"
    with pytest.raises(InputError, match=found):
        find_pairs(tmp_path / "A", tmp_path / "B")


def test_opaque_alpha_and_palette_become_rgb(tmp_path: Path) -> None:
    opaque = with_alpha(255)
    assert (read_image(save(tmp_path / "a.png", opaque)) == np.asarray(opaque)[..., :3]).all()
    palette = Image.fromarray(picture(9, 9)).quantize(16)
    assert (read_image(save(tmp_path / "p.png", palette)) == np.asarray(palette.convert("RGB"))).all()


@pytest.mark.parametrize("suffix", [".png", ".tif", ".jpg"])
@pytest.mark.parametrize("share", [0.2, 0.5, 0.95])
def test_truncated_images_are_refused(tmp_path: Path, suffix: str, share: float) -> None:
    path = save(tmp_path / f"x{suffix}", picture(64, 64))
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(InputError) as caught:
        read_image(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(("suffix", "zeros"), [(".jpg", 0.5), (".png", 0.02), (".png", 0.5)])
def test_unfinished_copies_with_preallocated_size_are_refused(tmp_path: Path, suffix: str, zeros: float) -> None:
    """They end in zeros, which would decode to grey in a JPEG, and to black at the end of a PNG."""
    pixels = picture(64, 64) if suffix == ".jpg" else np.repeat(picture(64, 1), 64, axis=1)
    content = bytearray(save(tmp_path / f"x{suffix}", pixels).read_bytes())
    count = int(zeros * len(content))
    content[-count:] = bytes(count)
    path = tmp_path / f"y{suffix}"
    path.write_bytes(content)
    with pytest.raises(InputError, match="truncated") as caught:
        read_image(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("read", [read_image, read_label])
def test_a_tiff_without_offsets_of_strips_is_refused(tmp_path: Path, read: Callable[[Path], object]) -> None:
    """A killed writer leaves such files; Pillow would read the file's first bytes as pixels."""
    path = save(tmp_path / "x.tif", picture(64, 64))
    content = bytearray(path.read_bytes())
    (directory,) = struct.unpack_from("<L", content, 4)
    for entry in range(directory + 2, len(content) - 11, 12):
        if struct.unpack_from("<H", content, entry) == (273,):
            content[entry + 8 : entry + 12] = bytes(4)
            break
    path.write_bytes(content)
    with pytest.raises(InputError, match="1 unreadable block of 1: the file is truncated or unfinished"):
        read(path)


@pytest.mark.parametrize("options", [{}, {"compression": "tiff_lzw"}, {"compression": "tiff_deflate"}])
@pytest.mark.parametrize("suffix", [".png", ".tif", ".jpg"])
@pytest.mark.filterwarnings("ignore::UserWarning")
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(changes=st.lists(st.tuples(st.floats(0, 0.999), st.integers(0, 255)), min_size=1, max_size=6))
def test_damaged_images_are_read_or_raise_input_error(
    tmp_path: Path, suffix: str, options: dict[str, str], changes: list[tuple[float, int]]
) -> None:
    if options and suffix != ".tif":
        return
    path = save(tmp_path / f"x{suffix}", picture(16, 16), **options)
    content = bytearray(path.read_bytes())
    for position, value in changes:
        content[int(position**3 * len(content))] = value  # most of them in the header
    path.write_bytes(content)
    for read in (image_size, read_image, read_label):
        with suppress(InputError):
            read(path)


# --- labels

MASK = RANDOM.random((9, 12)) < 0.4
GREY = MASK.astype(np.uint8)


def palette_label(colours: list[int]) -> Image.Image:
    image = Image.fromarray(GREY)
    image.putpalette(colours)
    return image


LABELS = {
    "0 and 255": Image.fromarray(GREY * np.uint8(255)),
    "0 and 1": Image.fromarray(GREY),
    "one bit": Image.fromarray(MASK),
    "grey in RGB": Image.fromarray(GREY * np.uint8(255)).convert("RGB"),
    "grey in RGBA": Image.fromarray(GREY * np.uint8(255)).convert("RGBA"),
    "grey with alpha": Image.fromarray(GREY * np.uint8(255)).convert("LA"),
    "black and white palette": palette_label([0, 0, 0, 255, 255, 255]),
    "black and red palette": palette_label([0, 0, 0, 128, 0, 0]),
    "palette with white first": Image.fromarray(1 - GREY),
}
LABELS["palette with white first"].putpalette([255, 255, 255, 0, 0, 0])


@pytest.mark.parametrize("case", LABELS)
def test_labels_are_read_in_all_encodings(tmp_path: Path, case: str) -> None:
    found = read_label(save(tmp_path / "label.png", LABELS[case]))
    assert found.dtype == np.bool_
    assert (found == MASK).all()


@pytest.mark.parametrize("value", [0, 1, 255])
def test_labels_with_a_single_value_are_read(tmp_path: Path, value: int) -> None:
    found = read_label(save(tmp_path / "label.png", np.full((4, 4), value, np.uint8)))
    assert (found == bool(value)).all()


@pytest.mark.parametrize(
    ("pixels", "message"),
    [
        (np.array([[0, 7, 255]], np.uint8), "the values 0, 7, 255;"),
        (np.array([[0, 1, 255]], np.uint8), "the values 0, 1, 255;"),
        (np.arange(256, dtype=np.uint8)[None], "the values 0, 1, 2, 3, 4, 5, ...;"),
        (np.array([[0, 65535]], np.uint16), "65535"),
        (picture(4, 4), "is a colour image"),
    ],
)
def test_labels_with_invalid_values_are_refused(tmp_path: Path, pixels: np.ndarray, message: str) -> None:
    path = save(tmp_path / "label.png", pixels)
    with pytest.raises(InputError) as caught:
        read_label(path)
    assert message in str(caught.value)
    assert str(path) in str(caught.value)


def test_an_invalid_label_is_reported_when_its_tile_is_read(tmp_path: Path) -> None:
    write_pair(tmp_path)
    save(tmp_path / "label" / "a.png", np.full((64, 64), 9, np.uint8))
    found = TileSet.open(tmp_path, 64)
    with pytest.raises(InputError, match=r"label/a\.png"):
        read_tile(found[0])


def test_a_written_mask_is_a_valid_label(tmp_path: Path) -> None:
    write_mask(tmp_path / "mask.png", MASK)
    assert (read_label(tmp_path / "mask.png") == MASK).all()


# --- metrics


@pytest.mark.parametrize(("seed", "share"), list(itertools.product(range(3), (0.02, 0.5, 0.9))))
def test_metrics_agree_with_scikit_learn(seed: int, share: float) -> None:
    random = np.random.default_rng(seed)
    label = random.random((50, 60)) < share
    predicted = label ^ (random.random(label.shape) < 0.2)
    found = Confusion.of(predicted, label)
    truth, guess = label.ravel(), predicted.ravel()
    tn, fp, fn, tp = reference.confusion_matrix(truth, guess).ravel().tolist()
    assert found == Confusion(tp, fp, fn, tn)
    assert found.false_alarms == pytest.approx(fp / (fp + tn))
    assert found.scores() == pytest.approx({
        "precision": reference.precision_score(truth, guess),
        "recall": reference.recall_score(truth, guess),
        "f1": reference.f1_score(truth, guess),
        "iou": reference.jaccard_score(truth, guess),
        "accuracy": reference.accuracy_score(truth, guess),
        "kappa": reference.cohen_kappa_score(truth, guess),
    })  # fmt: skip


def test_confusions_add_up() -> None:
    label, predicted = RANDOM.random((2, 40, 10)) < 0.5
    parts = [Confusion.of(predicted[i : i + 7], label[i : i + 7]) for i in range(0, 40, 7)]
    assert Confusion.total(parts) == Confusion.of(predicted, label)
    assert Confusion.total([]) == Confusion()


@pytest.mark.parametrize(
    ("confusion", "none"),
    [
        (Confusion(), {"precision", "recall", "f1", "iou", "accuracy", "kappa"}),
        (Confusion(tn=9), {"precision", "recall", "f1", "iou", "kappa"}),
        (Confusion(fp=2, tn=9), {"recall", "f1", "iou"}),
        (Confusion(fn=2, tn=9), {"precision"}),
        (Confusion(tp=9), {"kappa"}),
        (Confusion(fp=1, fn=1), set()),
    ],
)
def test_metric_without_a_denominator_is_none(confusion: Confusion, none: set[str]) -> None:
    assert {name for name, value in confusion.scores().items() if value is None} == none


@pytest.mark.parametrize("directory_first", [True, False])
def test_a_directory_cannot_be_paired_with_a_file(directory_first: bool, tmp_path: Path) -> None:
    (tmp_path / "dates").mkdir()
    (tmp_path / "date.png").touch()
    pair = (tmp_path / "dates", tmp_path / "date.png")[:: 1 if directory_first else -1]
    kinds = ("directory", "file")[:: 1 if directory_first else -1]
    message = f"BEFORE is a {kinds[0]} but AFTER is a {kinds[1]}; pass two files or two directories"
    with pytest.raises(InputError, match=message):
        find_pairs(*pair)
