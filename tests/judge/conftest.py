"""A judge's model: tiny, and with positions for two stories."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def long_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As `tiny_model`, with 2048 positions."""
    pytest.importorskip("torch", reason="no torch (the tests of Python 3.12 run without)", exc_type=ImportError)
    from orlhf_ext.models.small_models import make_tiny

    return make_tiny(tmp_path_factory.mktemp("models") / "tiny-2048", positions=2048)
