"""TRL's own code on the inputs of `cases.py`, and the first steps of its trainers. Runs in TRL's environment.

    python trl_side.py FOLDER        reads what ours_side.py left in FOLDER, writes FOLDER/trl.json

Each objective is computed by the method of a real trainer, constructed on a tiny GPT-2. On the inputs of `cases.py`
its language model is replaced by one that answers with the log-probabilities at hand; everything after that is TRL's.
The first steps are whole: TRL tokenises, collates, runs the model and differentiates.
"""

from __future__ import annotations

import os

os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "TRL_EXPERIMENTAL_SILENCE": "1"}

import json
import sys
import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import torch
import transformers
from datasets import Dataset
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer
from trl import (
    DPOConfig,
    DPOTrainer,
    GRPOConfig,
    GRPOTrainer,
    KTOConfig,
    KTOTrainer,
    RewardConfig,
    RewardTrainer,
    RLOOConfig,
    RLOOTrainer,
    SFTConfig,
    SFTTrainer,
)
from trl.experimental.cpo import CPOConfig, CPOTrainer
from trl.experimental.orpo import ORPOConfig, ORPOTrainer

import cases
from cases import Case, Judged, Of, Pairs, Result, Sampled

TRAINERS = {
    "DPOTrainer": (DPOTrainer, DPOConfig),
    "KTOTrainer": (KTOTrainer, KTOConfig),
    "CPOTrainer": (CPOTrainer, CPOConfig),
    "ORPOTrainer": (ORPOTrainer, ORPOConfig),
    "RewardTrainer": (RewardTrainer, RewardConfig),
    "SFTTrainer": (SFTTrainer, SFTConfig),
    "GRPOTrainer": (GRPOTrainer, GRPOConfig),
    "RLOOTrainer": (RLOOTrainer, RLOOConfig),
}
PROMPTS = [{"prompt": prompt} for prompt in cases.LEVEL_PROMPTS]
RAGGED: list[dict[str, Any]] = [{"prompt": prompt} for prompt in cases.PROMPTS]
PAIRS: list[dict[str, Any]] = [
    {"prompt": prompt, "chosen": chosen, "rejected": rejected}
    for prompt, chosen, rejected in zip(cases.PROMPTS, cases.CHOSEN, cases.REJECTED, strict=True)
]
JUDGED = [
    {"prompt": row["prompt"], "completion": row["chosen" if good else "rejected"], "label": good}
    for row, good in zip(PAIRS, cases.DESIRABLE, strict=True)
]
DEMONSTRATIONS = [{"prompt": row["prompt"], "completion": row["chosen"]} for row in PAIRS]
ROWS: dict[str, list[dict[str, Any]]] = {
    "KTOTrainer": JUDGED,
    "SFTTrainer": DEMONSTRATIONS,
    "GRPOTrainer": PROMPTS,
    "RLOOTrainer": PROMPTS,
}
SHARED = {  # one step on the whole batch, in float32, that changes nothing
    "use_cpu": True, "bf16": False, "gradient_checkpointing": False, "max_steps": 1, "learning_rate": 0.0,
    "report_to": "none", "disable_tqdm": True, "save_strategy": "no", "logging_strategy": "no",
    "dataloader_pin_memory": False,
}  # fmt: skip


class Side:
    """TRL's trainers on the models in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.seen = json.loads((folder / "ours.json").read_text())["rollouts"]
        self.made: dict[str, Any] = {}

    def trainer(self, told: Mapping[str, Any]) -> Any:
        """A new trainer, told what a case says."""
        told = dict(told)
        name = told.pop("trainer")
        kind, config = TRAINERS[name]
        told.pop("float32", None)  # how exact TRL is; compare.py reads it
        rows = RAGGED if told.pop("ragged", False) else ROWS.get(name, PAIRS)
        settings = SHARED | {"per_device_train_batch_size": len(rows), "output_dir": tempfile.mkdtemp()} | told
        tokenizer = AutoTokenizer.from_pretrained(self.folder / "policy")
        if settings.pop("pad_is_eos", False):
            tokenizer.pad_token = tokenizer.eos_token
        arguments: dict[str, Any] = {"train_dataset": Dataset.from_list(rows), "processing_class": tokenizer}
        if name == "RewardTrainer":
            model = AutoModelForSequenceClassification.from_pretrained(self.folder / "reward-model", dtype="float32")
            model.config.pad_token_id = tokenizer.pad_token_id
        else:
            model = AutoModelForCausalLM.from_pretrained(self.folder / "policy", dtype="float32")
        if name in ("DPOTrainer", "KTOTrainer"):
            arguments["ref_model"] = self.reference()
        if name in ("GRPOTrainer", "RLOOTrainer"):
            settings |= {"num_generations": cases.GROUP, "max_completion_length": cases.LONGEST}
            settings["per_device_train_batch_size"] = cases.GROUP * len(PROMPTS)
            arguments["reward_funcs"] = lambda completions, **_: [0.0] * len(completions)
        trainer = kind(model=model, args=config(**settings), **arguments)
        if name in ("GRPOTrainer", "RLOOTrainer") and trainer.beta != 0:
            trainer.ref_model.load_state_dict(self.reference().state_dict())  # it takes a copy of the policy
        return trainer

    def reference(self) -> Any:
        return AutoModelForCausalLM.from_pretrained(self.folder / "reference", dtype="float32").requires_grad_(False)

    # --- the inputs of cases.py ---------------------------------------------------------------------------------------

    def of_pairs(self, case: Case, points: Pairs) -> Result:
        told = dict(case.trl or {})
        dtype = torch.float32 if "float32" in told else torch.float64
        trainer = self.once(case, told)
        logprob = torch.tensor(points.logprob, dtype=dtype, requires_grad=True)
        tokens = torch.tensor(points.tokens)
        match trainer:
            case DPOTrainer():
                reference = torch.tensor(points.reference, dtype=dtype)
                trainer.precompute_ref_logps = True
                mask = _completions(tokens.T.flatten())
                inputs = {
                    "input_ids": torch.ones_like(mask), "attention_mask": torch.ones_like(mask),
                    "completion_mask": mask, "ref_chosen_logps": reference[:, 0],
                    "ref_rejected_logps": reference[:, 1],
                }  # fmt: skip
                loss = trainer._compute_loss(Given(_in_first_token(logprob.T.flatten(), mask)), inputs, False)
            case CPOTrainer():
                given = logprob / tokens if trainer.loss_type == "simpo" else logprob
                loss = trainer.cpo_loss(*given.unbind(1))[0].mean()
            case ORPOTrainer():
                loss = -trainer.odds_ratio_loss(*(logprob / tokens).unbind(1))[0].mean()
            case _:
                raise ValueError(case.name)
        return _result(loss, logprob)

    def of_judged(self, case: Case, points: Judged) -> Result:
        trainer = self.once(case, case.trl or {})
        trainer.precompute_ref_logps = True
        logprob = torch.tensor(points.logprob, dtype=torch.float64, requires_grad=True)
        mask = _completions(torch.ones(len(logprob), dtype=torch.long))
        stranger = torch.tensor(points.stranger, dtype=torch.float64)
        inputs = {
            "input_ids": torch.ones_like(mask), "attention_mask": torch.ones_like(mask), "completion_mask": mask,
            "KL_input_ids": torch.ones_like(mask), "KL_attention_mask": torch.ones_like(mask),
            "KL_completion_mask": mask, "label": torch.tensor(points.desirable),
            "ref_logps": torch.tensor(points.reference, dtype=torch.float64),
            "ref_KL_logps": torch.tensor(points.stranger_reference, dtype=torch.float64),
        }  # fmt: skip
        model = Given(_in_first_token(stranger, mask), _in_first_token(logprob, mask))  # asked in this order
        return _result(trainer._compute_loss(model, inputs, False), logprob)

    def of_scores(self, case: Case, points: Sequence[tuple[float, float]]) -> Result:
        scores = torch.tensor(points, dtype=torch.float64, requires_grad=True)
        trainer = self.once(case, case.trl or {})
        inputs: dict[str, Any] = {"attention_mask": torch.ones(2 * len(points), 1)}
        if "margin" in case.settings:
            inputs["margin"] = torch.full((len(points),), case.settings["margin"], dtype=torch.float64)
        logits = scores.T.reshape(-1, 1)
        return _result(trainer.compute_loss(lambda **_: SimpleNamespace(logits=logits), inputs), scores)

    def of_sampled(self, case: Case, points: Sampled) -> Result:
        trainer = self.once(case, case.trl or {})
        mask = _padded([[1.0] * len(row) for row in points.logprobs]).long()
        logprobs = _padded(points.logprobs).requires_grad_()
        trainer._get_per_token_logps_and_entropies = lambda *_, **__: (logprobs, torch.zeros_like(logprobs), None)
        trainer.current_gradient_accumulation_steps = 1
        old = _padded(points.old)
        inputs = {
            "prompt_ids": torch.ones(len(mask), 1).long(), "prompt_mask": torch.ones(len(mask), 1).long(),
            "completion_ids": torch.ones_like(mask), "completion_mask": mask,
            "advantages": torch.tensor(points.advantages, dtype=torch.float64),
            "old_per_token_logps": old, "old_logps": (old * mask).sum(1),
            "ref_per_token_logps": _padded(points.reference), "num_items_in_batch": mask.sum(),
        }  # fmt: skip
        return _result(trainer._compute_loss(trainer.model, inputs), logprobs, mask.bool())

    def of_groups(self, case: Case, points: Sequence[float]) -> Result:
        """The advantages that a trainer gives to sampled responses, from the rewards of cases.py."""
        trainer = self.once(case, case.trl or {})
        prompts = [PROMPTS[i // cases.GROUP] for i in range(len(points))]
        trainer._calculate_rewards = lambda *_, **__: torch.tensor(points, dtype=torch.float64).unsqueeze(1)
        _answer_with(trainer, lambda ids: [5, 6, trainer._tokenizer.eos_token_id])
        found = trainer._generate_and_score_completions(prompts)["advantages"]
        return Result(found.tolist())

    def once(self, case: Case, told: Mapping[str, Any]) -> Any:
        """One trainer a case, for all its points."""
        if case.name not in self.made:
            self.made[case.name] = self.trainer(told)
        return self.made[case.name]

    # --- first steps --------------------------------------------------------------------------------------------------

    def first_step(self, told: Mapping[str, Any], rollout: Mapping[str, Any] | None) -> dict[str, Any]:
        """Loss, gradient by parameter and token ids of `trainer.train()`'s first step."""
        trainer = self.trainer(told)
        if rollout is not None:
            _replay(trainer, rollout)
        found: dict[str, Any] = {"gradient": {}, "rows": []}
        compute_loss = trainer.compute_loss

        def watched(model: Any, inputs: Any, *arguments: Any, **more: Any) -> Any:
            loss = compute_loss(model, inputs, *arguments, **more)
            found["value"] = [float(loss[0] if isinstance(loss, tuple) else loss)]
            return loss

        def read(_: Any, arguments: Any, named: dict[str, Any]) -> None:
            ids = named["input_ids"] if "input_ids" in named else arguments[0]
            both = zip(ids, named["attention_mask"].bool(), strict=True)
            found["rows"] += [row[keep].tolist() for row, keep in both]

        trainer.compute_loss = watched
        trainer.model.register_forward_pre_hook(read, with_kwargs=True)
        for name, parameter in trainer.model.named_parameters():
            parameter.register_post_accumulate_grad_hook(
                lambda p, name=name: found["gradient"].__setitem__(name, p.grad.flatten().tolist())
            )
        trainer.train()
        return found


class Given(nn.Module):
    """Stands where TRL calls its language model: answers each call with log-probabilities at hand."""

    def __init__(self, *answers: Tensor) -> None:
        super().__init__()
        self.answers = list(answers)

    def forward(self, **_: Any) -> Any:
        log_probs = self.answers.pop(0)
        zeros = torch.zeros_like(log_probs)
        return SimpleNamespace(log_probs=log_probs, entropy=zeros, mean_logits=zeros, is_top1=zeros.bool())


def _completions(tokens: Tensor) -> Tensor:
    """A prompt of one token, and completions of so many."""
    positions = torch.arange(int(tokens.max()) + 1)
    return ((positions >= 1) & (positions <= tokens.unsqueeze(1))).long()


def _in_first_token(logprob: Tensor, mask: Tensor) -> Tensor:
    """Per token, as TRL wants them, with the same sum."""
    return torch.cat([logprob.unsqueeze(1), logprob.new_zeros(len(mask), mask.shape[1] - 2)], dim=1)


def _padded(rows: Sequence[Sequence[float]]) -> Tensor:
    longest = max(map(len, rows))
    return torch.tensor([[*row, *[0.0] * (longest - len(row))] for row in rows], dtype=torch.float64)


def _result(loss: Tensor, leaf: Tensor, mask: Tensor | None = None) -> Result:
    (gradient,) = torch.autograd.grad(loss, leaf)
    return Result([float(loss)], (gradient if mask is None else gradient[mask]).flatten().tolist())


def _answer_with(trainer: Any, response_to: Callable[[tuple[int, ...]], list[int]]) -> None:
    """Let the trainer find these responses where it would sample."""
    two = isinstance(trainer, GRPOTrainer)  # which returns log-probabilities too, None without vLLM

    def generate(prompt_ids: list[list[int]], *_: Any, **__: Any) -> Any:
        responses = [response_to(tuple(ids)) for ids in prompt_ids]
        return (responses, None) if two else responses

    trainer._generate_single_turn = generate


def _replay(trainer: Any, rollout: Mapping[str, Any]) -> None:
    """The responses that preflab sampled, and their rewards."""
    waiting: dict[tuple[int, ...], list[tuple[list[int], float]]] = {}
    for prompt, response, reward in zip(rollout["prompts"], rollout["responses"], rollout["rewards"], strict=True):
        waiting.setdefault(tuple(prompt), []).append((response, reward))
    given: list[float] = []

    def next_to(prompt: tuple[int, ...]) -> list[int]:
        response, reward = waiting[prompt].pop(0)
        given.append(reward)
        return response

    _answer_with(trainer, next_to)
    trainer._calculate_rewards = lambda *_, **__: torch.tensor(given).unsqueeze(1)


def main(folder: Path) -> None:
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    datasets.disable_progress_bars()
    torch.set_num_threads(1)
    side = Side(folder)
    families: dict[str, Of] = {
        "pairs": side.of_pairs, "judged": side.of_judged, "scores": side.of_scores, "sampled": side.of_sampled,
        "groups": side.of_groups,
    }  # fmt: skip
    found = cases.everywhere(families, lambda case: case.trl is not None)
    steps = {
        step.name: side.first_step(step.trl, side.seen.get(step.name)) for step in cases.STEPS if step.trl is not None
    }
    written = {
        "versions": {name: version(name) for name in ("trl", "transformers", "torch")},
        "results": {name: asdict(result) for name, result in found.items()},
        "steps": steps,
    }
    (folder / "trl.json").write_text(json.dumps(written))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
