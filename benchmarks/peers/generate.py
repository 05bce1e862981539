"""A worker that samples with transformers' `generate`: `benchmarks/rollout_speed.py` starts it.

One turn is one `generate` call, or as many as it takes for all rows in batches of `work.batch`: temperature 1, no top-k
or top-p, no logits processor at all, so nothing is computed beside the tokens. Caches: "dynamic", transformers'
default, and "static", allocated once, without compilation.
"""

from __future__ import annotations

import os

os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}

import argparse
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM, GenerationConfig

from gate import Gate, resident_bytes
from work import END, PAD, Work, prompts_of, sizes

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
CACHES: dict[str, dict[str, Any]] = {
    "dynamic": {},
    "static": {"cache_implementation": "static", "disable_compile": True},
}


def responses_of(model: Any, work: Work, turn: int, cache: str) -> list[list[int]]:
    """The tokens of each response, up to the end token."""
    config = GenerationConfig(
        do_sample=True, top_k=0, top_p=1.0, temperature=1.0, max_new_tokens=work.new_tokens, pad_token_id=PAD,
        eos_token_id=END if work.ends else None, **CACHES[cache],
    )  # fmt: skip
    prompts = prompts_of(work, turn, model.config.vocab_size)
    rows = [prompt for prompt in prompts for _ in range(work.samples)]
    found: list[list[int]] = []
    for begin in range(0, len(rows), work.batch):
        token_ids = torch.tensor(rows[begin : begin + work.batch], device=model.device)
        made = model.generate(token_ids, attention_mask=torch.ones_like(token_ids), generation_config=config)
        found += made[:, work.prompt_tokens :].tolist()
    return [ids[: ids.index(END) + 1] if work.ends and END in ids else ids for ids in found]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--work", type=Work.of_json, required=True)
    parser.add_argument("--setting", required=True, help="dtype-cache")
    parser.add_argument("--device", default="cpu")
    given = parser.parse_args()
    gate = Gate()
    torch.set_num_threads(1)
    transformers.logging.disable_progress_bar()
    dtype, cache = given.setting.split("-")
    model = AutoModelForCausalLM.from_pretrained(given.folder / given.work.shape, dtype=DTYPES[dtype]).eval()
    model.to(given.device)
    facts: dict[str, Any] = {
        "versions": {module.__name__: module.__version__ for module in (torch, transformers)},
        "loaded_bytes": resident_bytes(),
        "attention": model.config._attn_implementation,
    }
    turn = 0
    while True:
        found = sizes(responses_of(model, given.work, turn, cache))
        if given.device == "cuda":
            torch.cuda.synchronize()
            facts["device_peak_bytes"] = torch.cuda.max_memory_allocated()
        gate.turn(facts | found)
        turn += 1


if __name__ == "__main__":
    main()
