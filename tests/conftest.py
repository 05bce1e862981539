"""Set up before any test imports preflab."""

from __future__ import annotations

import os

import torch
from jaxtyping import install_import_hook

os.environ["HF_HUB_OFFLINE"] = "1"
torch.set_num_threads(1)
# Shapes and types of every call into the losses are checked. An int is a float, as PEP 484 and mypy have it.
install_import_hook("preflab.losses", "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))")
