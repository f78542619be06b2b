"""Tests the public names of ``misgnet_runtime`` and the lifetime of a session."""

from __future__ import annotations

import gc
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import misgnet_runtime
from misgnet_runtime import BundleSession, InputError, MisgnetError, UnavailableError, UsageError, errors, open_bundle
from misgnet_runtime.inference.detector import ChangeDetector
from support.bundles import FLOAT, RTX, images, make_bundle


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bundle(tmp_path_factory.mktemp("bundle") / "bundle")


def engine_of(session: BundleSession) -> Any:
    detector: ChangeDetector = session._opened.detector
    return detector.engine


def test_every_public_name_can_be_imported() -> None:
    for name in misgnet_runtime.__all__:
        assert getattr(misgnet_runtime, name) is not None
    assert sorted(misgnet_runtime.__all__) == misgnet_runtime.__all__
    assert misgnet_runtime.__version__ == version("misgnet-export")


def test_every_error_is_public() -> None:
    kinds = {name for name, kind in vars(errors).items() if isinstance(kind, type) and issubclass(kind, MisgnetError)}
    assert kinds <= set(misgnet_runtime.__all__)


def test_session_without_with_block_is_closed_by_close(bundle: Path) -> None:
    session = open_bundle(bundle)
    mask = session.predict(*images(40, 30)).mask
    session.close()
    session.close()
    with open_bundle(bundle) as again:
        np.testing.assert_array_equal(again.predict(*images(40, 30)).mask, mask)


def test_closed_session_refuses_to_predict(bundle: Path) -> None:
    with open_bundle(bundle, FLOAT.name) as session:
        engine = engine_of(session)
    assert engine._closed
    for use in (lambda: session.predict(*images(8, 8)), session.__enter__):
        with pytest.raises(UsageError, match=f"session of engine {FLOAT.name} is closed; open the bundle again"):
            use()
    session.close()


def test_session_may_be_closed_inside_its_with_block(bundle: Path) -> None:
    with open_bundle(bundle) as session:
        session.close()


def test_open_bundle_raises_at_once(bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nowhere"):
        open_bundle(tmp_path / "nowhere")
    with pytest.raises(UsageError, match="has no engine 'gpu'"):
        open_bundle(bundle, "gpu")
    with pytest.raises(InputError, match="is missing or not a regular file"):
        open_bundle(bundle, require_signature=tmp_path / "key.pem")
    with pytest.raises(UnavailableError):
        open_bundle(make_bundle(tmp_path / "other", engines=[RTX]))


def test_session_that_is_collected_releases_its_engine(bundle: Path) -> None:
    session = open_bundle(bundle)
    engine = engine_of(session)
    with pytest.warns(ResourceWarning, match=f"unclosed <BundleSession of engine {session.engine.name}>"):
        del session
        gc.collect()
    assert engine._closed


def test_engine_is_released_if_a_with_block_fails(bundle: Path) -> None:
    with pytest.raises(InputError, match="uint8"), open_bundle(bundle) as session:
        engine = engine_of(session)
        session.predict(np.zeros((4, 4, 3), np.float32), np.zeros((4, 4, 3), np.float32))  # type: ignore[arg-type]
    assert engine._closed
