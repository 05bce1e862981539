"""A worker that trains with TRL's GRPOTrainer (1.16) or PPOTrainer (1.9): `benchmarks/rollout_speed.py` starts it.

One turn is everything from one optimiser step's end (PPO: one update's) to the next: sampling, reward, passes without
gradients, forward, backward, optimiser, figures. The settings are TRL's own switches; the rest is as TRL has it.
"""

from __future__ import annotations

import os

os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "TRL_EXPERIMENTAL_SILENCE": "1"}

import argparse
import tempfile
import types
from pathlib import Path
from typing import Any

import datasets
import torch
import transformers
import trl
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer, TrainerCallback

from gate import Gate, resident_bytes
from work import LEARNING_RATE, Work, odd_share, prompts_of, sizes, text_of

SETTINGS: dict[str, dict[str, Any]] = {
    "fp32": {"bf16": False, "gradient_checkpointing": False},
    "fp32-checkpointing": {"bf16": False, "gradient_checkpointing": True},
    "bf16": {"bf16": True, "gradient_checkpointing": False},
    "bf16-checkpointing": {"bf16": True, "gradient_checkpointing": True},
    "fp32-static": {"bf16": False, "gradient_checkpointing": False, "cache_implementation": "static"},
    "fp32-own-gelu": {"bf16": False, "gradient_checkpointing": False},
}
"""bf16: autocast, on fp32 weights. static is GRPO's alone: PPOTrainer has no such switch."""


def activation(setting: str) -> dict[str, str]:
    """GPT-2's own GELU takes eight kernels; one kernel computes the same, as the model's config asks for here, and as
    preflab runs every GPT-2."""
    return {"activation_function": "gelu_new"} if setting.endswith("own-gelu") else {}


class Turns(TrainerCallback):
    """Passes the gate after each step (PPO: each update)."""

    def __init__(self, gate: Gate, facts: dict[str, Any], device: str) -> None:
        self.gate, self.facts, self.device = gate, facts, device

    def on_step_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        if self.device == "cuda":
            torch.cuda.synchronize()
            self.facts["device_peak_bytes"] = torch.cuda.max_memory_allocated()
        self.gate.turn(self.facts)


class OddShare(torch.nn.Module):
    """The reward as PPOTrainer wants it, a body and a score head: the share of odd ids among a response's tokens."""

    base_model_prefix = "body"

    def __init__(self, prompt_tokens: int, facts: dict[str, Any]) -> None:
        super().__init__()
        self.prompt_tokens, self.facts, self.body = prompt_tokens, facts, self._states
        self.nothing = torch.nn.Parameter(torch.zeros(1))

    def _states(self, input_ids: torch.Tensor, **given: Any) -> Any:
        responses = input_ids[:, self.prompt_tokens :]
        self.facts.update(sizes(responses.tolist()))
        states = torch.zeros(input_ids.shape, device=input_ids.device)
        so_far = torch.arange(1, responses.shape[1] + 1, device=input_ids.device)
        states[:, self.prompt_tokens :] = (responses % 2).float().cumsum(1) / so_far
        return types.SimpleNamespace(hidden_states=[states.unsqueeze(-1)])

    def score(self, states: torch.Tensor) -> torch.Tensor:
        return states


def grpo(path: Path, work: Work, options: dict[str, Any], loading: dict[str, Any], turns: Turns, updates: int) -> Any:
    tokenizer = AutoTokenizer.from_pretrained(path)
    every = Work(**vars(work) | {"prompts": work.prompts * updates})
    rows = [{"prompt": text_of(prompt)} for prompt in prompts_of(every, 0, len(tokenizer))]

    def reward(completion_ids: list[list[int]], **given: Any) -> list[float]:
        turns.facts.update(sizes(completion_ids))
        return [odd_share(ids) for ids in completion_ids]

    config = trl.GRPOConfig(
        per_device_train_batch_size=work.responses, num_generations=work.samples, beta=work.beta,
        max_completion_length=work.new_tokens, num_iterations=work.epochs, max_steps=updates, logging_steps=1,
        **options,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_pretrained(path, **loading)
    return trl.GRPOTrainer(
        model=model, reward_funcs=reward, args=config, train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer, callbacks=[turns],
    )  # fmt: skip


def ppo(path: Path, work: Work, options: dict[str, Any], loading: dict[str, Any], turns: Turns, updates: int) -> Any:
    from trl.experimental.ppo import PPOConfig, PPOTrainer  # which TRL 1.16 has no more

    tokenizer = AutoTokenizer.from_pretrained(path)
    every = Work(**vars(work) | {"prompts": work.prompts * updates})
    rows = [{"input_ids": list(prompt)} for prompt in prompts_of(every, 0, len(tokenizer))]
    config = PPOConfig(
        per_device_train_batch_size=work.responses, gradient_accumulation_steps=1, num_mini_batches=1,
        total_episodes=work.responses * updates, response_length=work.new_tokens, temperature=1.0,
        local_rollout_forward_batch_size=work.responses, num_sample_generations=0, num_ppo_epochs=work.epochs,
        kl_coef=work.beta, **options,
    )  # fmt: skip
    policy, reference = (AutoModelForCausalLM.from_pretrained(path, **loading) for _ in range(2))
    value = AutoModelForSequenceClassification.from_pretrained(path, num_labels=1, **loading)
    data = Dataset.from_list(rows)
    return PPOTrainer(
        args=config, processing_class=tokenizer, model=policy, ref_model=reference, value_model=value,
        reward_model=OddShare(work.prompt_tokens, turns.facts), train_dataset=data,
        eval_dataset=data.select(range(1)), callbacks=[turns],
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--work", type=Work.of_json, required=True)
    parser.add_argument("--setting", choices=list(SETTINGS), required=True)
    parser.add_argument("--updates", type=int, default=2, help="more than there are turns")
    parser.add_argument("--device", default="cpu")
    given = parser.parse_args()
    gate, work = Gate(), given.work
    torch.set_num_threads(1)
    datasets.disable_progress_bars()
    transformers.logging.disable_progress_bar()
    with tempfile.TemporaryDirectory(prefix="trl-") as folder:
        options = SETTINGS[given.setting] | {
            "output_dir": folder, "use_cpu": given.device == "cpu", "learning_rate": LEARNING_RATE,
            "lr_scheduler_type": "constant", "warmup_steps": 0, "save_strategy": "no", "report_to": "none",
            "disable_tqdm": True, "dataloader_pin_memory": False,
        }  # fmt: skip
        facts: dict[str, Any] = {
            "versions": {module.__name__: module.__version__ for module in (trl, torch, transformers)},
        }
        loading = {"dtype": torch.float32} | activation(given.setting)
        turns = Turns(gate, facts, given.device)
        make = grpo if work.method == "grpo" else ppo
        trainer = make(given.folder / work.shape, work, options, loading, turns, given.updates)
        facts |= {
            "loaded_bytes": resident_bytes(),
            "optimizer": str(trainer.args.optim),
            "autocast": trainer.accelerator.mixed_precision,
            "checkpointing": bool(trainer.args.gradient_checkpointing),
        }
        trainer.train()


if __name__ == "__main__":
    main()
