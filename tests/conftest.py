"""Set up before any test imports preflab."""

from __future__ import annotations

import os

# Also of the processes that tests start: the other cores have tests of their own.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import hypothesis
import pytest
import torch
from jaxtyping import install_import_hook

os.environ["HF_HUB_OFFLINE"] = "1"
torch.set_num_threads(1)
# A slow machine is no failure.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")
# Shapes and types of every call into the losses are checked. An int is a float, as PEP 484 and mypy have it.
install_import_hook("preflab.losses", "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test reads or fills the user's cache, or another test's."""
    monkeypatch.setenv("PREFLAB_CACHE", str(tmp_path_factory.mktemp("cache")))
