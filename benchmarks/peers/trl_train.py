"""A worker that trains with TRL, 1.16 or 1.9: `benchmarks/dpo_speed.py` starts it, or by hand

    yes go | OMP_NUM_THREADS=1 python trl_train.py FOLDER --method dpo --setting A      FOLDER: what data.py wrote

One turn is everything between two optimiser steps of `trainer.train()`: batch, forward, backward, clipping, AdamW, log.
What a setting claims is looked at in the warm-up step and printed: dtypes of weights and products, attention, how often
a block ran (checkpointing runs it again), and whether TRL's token ids are those of pairs.json.
"""

from __future__ import annotations

import os

os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "TRL_EXPERIMENTAL_SILENCE": "1"}

import argparse
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import torch
import transformers
import trl
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer, TrainerCallback
from trl import DPOConfig, DPOTrainer, KTOConfig, KTOTrainer, RewardConfig, RewardTrainer, SFTConfig, SFTTrainer
from trl.experimental.orpo import ORPOConfig, ORPOTrainer

from data import LONGEST, read
from gate import Gate
from watched import Watched


@dataclass(frozen=True)
class Setting:
    """What differs from TRL's defaults."""

    best: bool = False
    """No activation checkpointing, the reference's log-probabilities computed before training, GELU in one kernel."""
    autocast: bool = False
    """bf16 products; else fp32."""
    weights: str = "float32"
    frozen: int = 0
    """The embeddings, the head tied to them, and so many blocks."""


SETTINGS = {
    "A": Setting(),  # the defaults, in fp32
    "B3": Setting(best=True, autocast=True),  # best with fp32 weights
    "B3h": Setting(best=True, weights="bfloat16"),  # no fp32 copy of them is kept, so most steps of 1e-5 are lost
    "C": Setting(frozen=8),
    "CB": Setting(best=True, autocast=True, frozen=8),
}
TRAINERS: dict[str, tuple[Any, Any]] = {
    "dpo": (DPOTrainer, DPOConfig),
    "kto": (KTOTrainer, KTOConfig),
    "orpo": (ORPOTrainer, ORPOConfig),
    "sft": (SFTTrainer, SFTConfig),
    "reward": (RewardTrainer, RewardConfig),
}
WITH_REFERENCE = ("dpo", "kto")


def rows_of(method: str, pair: dict[str, Any]) -> list[dict[str, Any]]:
    """A pair as the trainer wants it: KTO two marked responses, SFT the chosen one."""
    prompt, chosen, rejected = pair["prompt"], pair["chosen"], pair["rejected"]
    if method == "kto":
        return [{"prompt": prompt, "completion": chosen, "label": True},
                {"prompt": prompt, "completion": rejected, "label": False}]  # fmt: skip
    if method == "sft":
        return [{"prompt": prompt, "completion": chosen}]
    return [{"prompt": prompt, "chosen": chosen, "rejected": rejected}]


def model_of(path: Path, method: str, setting: Setting) -> Any:
    dtype = getattr(torch, setting.weights)
    if method == "reward":
        model = AutoModelForSequenceClassification.from_pretrained(path, num_labels=1, dtype=dtype)
    else:
        model = AutoModelForCausalLM.from_pretrained(path, dtype=dtype)
    if setting.frozen:
        for name, parameter in model.named_parameters():
            block = int(name.split(".")[2]) if name.startswith("transformer.h.") else None
            trained = name.startswith("transformer.ln_f") if block is None else block >= setting.frozen
            parameter.requires_grad_(trained)
    return model


class Turns(TrainerCallback):
    """Passes the gate between optimiser steps."""

    def __init__(self, gate: Gate, facts: dict[str, Any]) -> None:
        self.gate, self.facts = gate, facts

    def on_step_begin(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        if state.global_step == 0:  # the reference's passes lie behind
            self.watched = Watched(given["model"])
        else:
            self._turn(state)

    def on_train_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        self._turn(state)

    def _turn(self, state: Any) -> None:
        line = next(line for line in reversed(state.log_history) if "grad_norm" in line)  # the last is a summary
        logged = {"loss": line["loss"], "gradient_norm": line["grad_norm"]}
        if state.global_step == 1:
            logged |= self.facts | self.watched.facts()
        self.gate.turn(logged)


def sequences(method: str, row: dict[str, Any]) -> list[list[int]]:
    """What a row of TRL's tokenised data set holds: prompt and response together."""
    match method:
        case "dpo":
            return [row["prompt_ids"] + row["chosen_ids"], row["prompt_ids"] + row["rejected_ids"]]
        case "kto":
            return [row["prompt_ids"] + row["completion_ids"]]
        case "orpo":
            return [row["chosen_input_ids"], row["rejected_input_ids"]]
        case "sft":
            return [row["input_ids"]]
        case _:
            return [row["chosen_ids"], row["rejected_ids"]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--method", choices=list(TRAINERS), default="dpo")
    parser.add_argument("--setting", choices=list(SETTINGS), default="A")
    parser.add_argument("--order", choices=["random", "bucketed"], default="random")
    parser.add_argument("--frozen", type=int, help="blocks, where the setting freezes some")
    parser.add_argument("--learning-rate", type=float, default=1e-5)
    given = parser.parse_args()
    gate, setting = Gate(), SETTINGS[given.setting]
    if setting.frozen and given.frozen is not None:
        setting = Setting(**vars(setting) | {"frozen": given.frozen})
    torch.set_num_threads(1)
    datasets.disable_progress_bars()
    transformers.logging.disable_progress_bar()

    batches = read(given.folder, given.order)
    rows = [row for batch in batches for pair in batch for row in rows_of(given.method, pair)]
    path = given.folder / ("model-gelu" if setting.best else "model")
    model, tokenizer = model_of(path, given.method, setting), AutoTokenizer.from_pretrained(path)
    trainer_class, config_class = TRAINERS[given.method]
    best: dict[str, Any] = {"gradient_checkpointing": False} if setting.best else {}
    if setting.best and given.method in WITH_REFERENCE:
        best["precompute_ref_log_probs"] = True
    with tempfile.TemporaryDirectory(prefix="trl-") as folder:
        config = config_class(
            output_dir=folder, use_cpu=True, bf16=setting.autocast, max_length=LONGEST, num_train_epochs=1,
            per_device_train_batch_size=len(rows) // len(batches), train_sampling_strategy="sequential",
            learning_rate=given.learning_rate, lr_scheduler_type="constant", warmup_steps=0, logging_steps=1,
            save_strategy="no", report_to="none", disable_tqdm=True, dataloader_pin_memory=False, **best,
        )  # fmt: skip
        began = time.process_time()
        trainer = trainer_class(
            model=model, args=config, train_dataset=Dataset.from_list(rows), processing_class=tokenizer
        )
        built = time.process_time() - began
        ids = [pair["ids"] for batch in batches for pair in batch]
        kept = 1 if given.method == "sft" else 2
        ours = [prompt + response for prompt, *responses in ids for response in responses[:kept]]
        tokenised = (one for row in trainer.train_dataset for one in sequences(given.method, row))
        theirs = [one[:LONGEST] for one in tokenised]  # which TRL cuts batch by batch
        facts = {
            "versions": {module.__name__: module.__version__ for module in (trl, torch, transformers)},
            "pairs_a_step": len(batches[0]),
            "optimizer": str(config.optim),
            "autocast": trainer.accelerator.mixed_precision,
            "checkpointing": bool(config.gradient_checkpointing),
            "same_tokens": ours == theirs,
        }
        if "precompute_ref_log_probs" in best:  # with the tokenisation, which is below a hundredth of it
            facts["reference_seconds_per_pair"] = built / sum(map(len, batches))
        trainer.add_callback(Turns(gate, facts))
        trainer.train()


if __name__ == "__main__":
    main()
