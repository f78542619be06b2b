"""Tests two training runs with the same folder: the second never replaces the first without --force."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="the network needs the [train] extra")

from misgnet import training
from misgnet.synthetic import write_split
from misgnet.training import Recipe, StepReport, resume, train
from misgnet_runtime.errors import LockTimeoutError, UsageError
from misgnet_runtime.raster.dataset import TileSet
from misgnet_runtime.storage import lock

SHORT = Recipe(batch=2, epochs=1, precision="fp32")
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def no_waiting() -> Iterator[None]:
    lock.use_lock_timeout(0.1)
    yield
    lock.use_lock_timeout(lock.DEFAULT_TIMEOUT)


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> tuple[TileSet, TileSet]:
    folder = tmp_path_factory.mktemp("tiles")
    write_split(folder / "train", 2, seed=1, size=64)
    write_split(folder / "val", 1, seed=2, size=64)
    return TileSet.open(folder / "train", 64), TileSet.open(folder / "val", 64)


def test_active_run_is_neither_replaced_nor_resumed(sets: tuple[TileSet, TileSet], tmp_path: Path) -> None:
    run, refused = tmp_path / "run", []

    def listen(event: object) -> None:
        if isinstance(event, StepReport):
            with pytest.raises(LockTimeoutError, match="another process is writing it"):
                train(*sets, run, SHORT, device=CPU, force=True)
            refused.append("train")
            with pytest.raises(LockTimeoutError, match="another process is writing it"):
                resume(*sets, run, device=CPU)
            refused.append("resume")

    assert train(*sets, run, SHORT, device=CPU, listen=listen).finished
    assert refused == ["train", "resume"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]
    assert resume(*sets, run, device=CPU).finished


def test_run_created_by_another_process_in_the_meantime_is_kept(
    sets: tuple[TileSet, TileSet], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other process creates the folder while this one reads the weights."""
    trainer, run = training.Trainer, tmp_path / "run"

    def create_folder_first(*args: object, **kwargs: object) -> object:
        run.mkdir()
        (run / "config.json").write_text("theirs")
        return trainer(*args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(training, "Trainer", create_folder_first)
    with pytest.raises(UsageError, match="--force"):
        train(*sets, run, SHORT, device=CPU)
    assert (run / "config.json").read_text() == "theirs"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]
