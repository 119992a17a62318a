"""What all tests share. Environment variables are set before anything imports torch."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # two cores: several processes with two threads each are far slower
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test may depend on a hub
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny random Llama and its byte-level tokenizer (bos <s>, eos </s>, pad <pad>)."""
    pytest.importorskip("torch", reason="no torch (the tests of Python 3.12 run without)", exc_type=ImportError)
    from orlhf_ext.small_models import make_tiny

    return make_tiny(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data sets beside the project, or a skip."""
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("../shared/data is absent, so there is no real data to test against")
    return folder
