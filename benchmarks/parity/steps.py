"""The first step of each of preflab's trainers on a tiny GPT-2 and a handful of texts: loss, gradient and token ids.

The variants that TRL's numbers are explained by stand at the end.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn

import cases
from preflab.config import pair_losses as settings_of
from preflab.config import preference
from preflab.config.commands import Base
from preflab.config.online import DAPO, GRPO, RLOO, DrGRPO, PolicyGradient, RolloutBatch
from preflab.config.training import SFT, Batch, Optimizer, Reward
from preflab.data.encode import Encoder, Tree
from preflab.data.pack import pack
from preflab.data.records import Demonstration, PreferencePair
from preflab.data.reviews import generate_reviews
from preflab.losses import aggregate, less_group_mean, masked_sum, mean_by, over_std, ppo_clip, sft, token_logprobs
from preflab.models.base import new_model, new_tokenizer
from preflab.models.load import Policy, load_policy, load_reward_model, new_reward_model, save_model
from preflab.models.scoring import logprobs_of, response_logprobs
from preflab.rewards.protocol import Answer
from preflab.runs import RunFolder, read_lines
from preflab.training import policy_gradient
from preflab.training.policy_gradient import train_policy_gradient
from preflab.training.preference import ScoredPairs, pair_losses, train_preference
from preflab.training.reward import train_reward
from preflab.training.rollout import PromptIds
from preflab.training.sft import train_sft
from preflab.training.unpaired import Judged, response_losses, train_unpaired

ROWS = len(cases.PROMPTS)
STILL = Optimizer(learning_rate=0.0, warmup_steps=0)
ONE_STEP: dict[str, Any] = {"batch": Batch(size=ROWS, micro=4), "evaluations": 1, "optimizer": STILL}
ONE_UPDATE: dict[str, Any] = {
    "updates": 1, "batch": RolloutBatch(size=cases.GROUP * ROWS, mini=cases.GROUP * ROWS, micro=7),
    "responses": cases.GROUP, "epochs": 1, "evaluations": 1, "optimizer": STILL, "missing_end_penalty": 0.0,
}  # fmt: skip
PAIR_STEPS: dict[str, preference.Preference] = {
    "DPO": preference.DPO(**ONE_STEP),
    "rDPO": preference.RobustDPO(**ONE_STEP),
    "IPO, per token": preference.IPO(**ONE_STEP, loss=settings_of.IPOLoss(average_tokens=True)),
    "AOT": preference.AOT(**ONE_STEP, loss=settings_of.AOTLoss(beta=0.05)),
    "LN-DPO": preference.LengthNormalisedDPO(**ONE_STEP),
    "NCA": preference.NCA(**ONE_STEP, loss=settings_of.NCALoss(beta=0.05)),
    "APO-down": preference.APODown(**ONE_STEP),
    "SimPO": preference.SimPO(**ONE_STEP),
    "CPO, α = 0": preference.CPO(**ONE_STEP, loss=settings_of.CPOLoss(sft_weight=0.0)),
    "CPO, α = 1": preference.CPO(**ONE_STEP),
    "ORPO": preference.ORPO(**ONE_STEP),
}
ONLINE_STEPS: dict[str, PolicyGradient] = {
    "Dr. GRPO": DrGRPO(**ONE_UPDATE),
    "Dr. GRPO, prompts of unequal lengths": DrGRPO(**ONE_UPDATE),
    "GRPO": GRPO(**ONE_UPDATE),
    "GRPO, ε = 10⁻⁴": GRPO(**ONE_UPDATE),
    "DAPO's loss, unscaled": DAPO(**ONE_UPDATE, dynamic_sampling=False, scale="none"),
    "RLOO": RLOO(**ONE_UPDATE, kl_coefficient=0.1),
}


@dataclass
class Taken:
    """What a step was."""

    value: list[float]
    gradient: dict[str, list[float]]
    """By parameter, before clipping."""
    rows: list[list[int]]
    """The token ids trained on, padding left out; in any order."""


@dataclass
class Recorder:
    """Pays for odd token ids, and keeps what it saw."""

    name: str = "odd tokens"
    answers: list[Answer] = field(default_factory=list)

    def __call__(self, answers: Sequence[Answer]) -> list[float]:
        self.answers += answers
        return [self.reward(answer) for answer in answers]

    def reward(self, answer: Answer) -> float:
        return sum(token % 2 for token in answer.response_ids) / len(answer.response_ids)


def write_models(folder: Path) -> None:
    """The models that both sides load."""
    tokenizer = new_tokenizer(generate_reviews(200, seed=0), vocabulary=300)
    settings = Base(vocabulary=300, layers=2, width=16, heads=2)
    for seed, name in enumerate(("policy", "reference")):
        policy = new_model(tokenizer, settings, positions=64, seed=seed)
        transformer = policy.model.transformer
        with torch.no_grad():  # the end token is likely, so that responses end at unequal lengths
            transformer.ln_f.bias += 80 * transformer.wte.weight[tokenizer.eos_token_id]
        save_model(policy, folder / name)
    save_model(new_reward_model(folder / "policy", seed=2), folder / "reward-model")


class Steps:
    """preflab's trainers on the models in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.reference = load_policy(folder / "reference").model.requires_grad_(False)
        encoder = Encoder(self.policy().tokenizer, prompt_tokens=48, response_tokens=48)
        texts = list(zip(cases.PROMPTS, cases.CHOSEN, cases.REJECTED, strict=True))
        self.pairs = encoder.pairs(
            [
                PreferencePair(origin=f"pairs:{i}", prompt=prompt, chosen=chosen, rejected=rejected)
                for i, (prompt, chosen, rejected) in enumerate(texts)
            ]
        )
        self.demonstrations = encoder.demonstrations(
            [
                Demonstration(origin=f"demonstrations:{i}", prompt=prompt, response=chosen)
                for i, (prompt, chosen, _) in enumerate(texts)
            ]
        )
        self.judged = [
            Judged(replace(tree, responses=(tree.responses[0 if good else 1],)), good)
            for tree, good in zip(self.pairs, cases.DESIRABLE, strict=True)
        ]
        self.level, self.ragged = (
            [PromptIds(f"prompts:{i}", text, encoder.prompt(text)) for i, text in enumerate(texts)]
            for texts in (cases.LEVEL_PROMPTS, cases.PROMPTS)
        )
        self.rollouts: dict[str, dict[str, Any]] = {}
        """What the online methods sampled, for TRL to train on."""

    def policy(self) -> Policy:
        return load_policy(self.folder / "policy")

    def all(self) -> dict[str, Taken]:
        """Every step of cases.py."""
        found = {name: self.of_pairs(settings) for name, settings in PAIR_STEPS.items()}
        found |= {name: self.online(name, settings) for name, settings in ONLINE_STEPS.items()}
        found |= {
            "SFT": self.sft(),
            "reward model": self.reward(self.pairs),
            "KTO": self.kto(),
            "reward model, read one token early": self.reward(
                [replace(tree, responses=tuple(response[:-1] for response in tree.responses)) for tree in self.pairs]
            ),
            "KTO, TRL's strangers": self.kto_by_rotation(),
            "Dr. GRPO, padding has positions": self.with_left_padding("Dr. GRPO, prompts of unequal lengths"),
            "CPO, α = 1 by tokens": self.cpo_by_tokens(),
            "ORPO, prompt and response by tokens": self.orpo_by_tokens(),
        }
        found["reward model, pad = end token"] = found["reward model"]  # ours reads no token's value
        assert found.keys() == {step.name for step in cases.STEPS}
        return found

    def of_pairs(self, settings: preference.Preference) -> Taken:
        def train(policy: Policy, run: RunFolder) -> None:
            reference = self.reference if _knows_reference(settings.loss) else None
            train_preference(policy, self.pairs, settings, run, seed=0, reference=reference)

        return self.trained(self.policy(), train, self.pairs)

    def sft(self) -> Taken:
        def train(policy: Policy, run: RunFolder) -> None:
            train_sft(policy, self.demonstrations, SFT(**ONE_STEP), run, seed=0)

        return self.trained(self.policy(), train, self.demonstrations)

    def reward(self, pairs: Sequence[Tree]) -> Taken:
        def train(model: Policy, run: RunFolder) -> None:
            train_reward(model, pairs, Reward(**ONE_STEP), run, seed=0)

        return self.trained(load_reward_model(self.folder / "reward-model"), train, self.pairs)

    def kto(self) -> Taken:
        def train(policy: Policy, run: RunFolder) -> None:
            train_unpaired(policy, self.judged, preference.KTO(**ONE_STEP), run, seed=0, reference=self.reference)

        return self.trained(self.policy(), train, [one.tree for one in self.judged])

    def online(self, name: str, settings: PolicyGradient) -> Taken:
        recorder, prompts = Recorder(), self.ragged if "unequal" in name else self.level

        def train(policy: Policy, run: RunFolder) -> None:
            with patch.object(policy_gradient, "over_std", partial(over_std, epsilon=1e-4 if "ε" in name else 1e-6)):
                train_policy_gradient(
                    policy, self.reference, recorder, prompts, settings, run, max_new_tokens=cases.LONGEST,
                    seed=0, starts_at_reference=False,
                )  # fmt: skip

        taken = self.trained(self.policy(), train, [])
        answers = recorder.answers
        self.rollouts[name] = {
            "prompts": [answer.prompt_ids for answer in answers],
            "responses": [answer.response_ids for answer in answers],
            "rewards": [recorder.reward(answer) for answer in answers],
        }
        return replace(taken, rows=[[*answer.prompt_ids, *answer.response_ids] for answer in answers])

    def trained(self, policy: Policy, train: Callable[[Policy, RunFolder], None], trees: Sequence[Tree]) -> Taken:
        """Run a trainer for one step."""
        gradient = _watched(policy.model)
        run = RunFolder.open(self.folder / "runs" / str(len(list((self.folder / "runs").glob("*")))), "parity: 1\n")
        train(policy, run)
        (line,) = read_lines(run.metrics)
        loss = line["loss"] if "loss" in line else line["policy_loss"] + line.get("kl_loss", 0.0)
        return Taken([loss], gradient, _rows(trees))

    # --- variants: the pieces that TRL puts together otherwise --------------------------------------------------------

    def kto_by_rotation(self) -> Taken:
        trees = [one.tree for one in self.judged]
        strangers = [replace(tree, responses=trees[i - 1].responses) for i, tree in enumerate(trees)]
        policy = self.policy()
        drift = logprobs_of(policy.model, strangers) - logprobs_of(self.reference, strangers)
        logratio = _logprobs(policy, trees)[0] - logprobs_of(self.reference, trees)
        good = torch.tensor(cases.DESIRABLE)
        losses = response_losses(settings_of.KTOLoss(), logratio, good, anchor=float(drift.mean().clamp(min=0.0)))
        return _taken(policy, losses.mean(), trees)

    def cpo_by_tokens(self) -> Taken:
        policy = self.policy()
        loss = pair_losses(settings_of.CPOLoss(sft_weight=0.0), self.scored(policy)).mean()
        return _taken(policy, loss + _cross_entropy(policy, self.demonstrations), self.pairs)

    def orpo_by_tokens(self) -> Taken:
        policy = self.policy()
        pairs = self.scored(policy)
        odds = pair_losses(settings_of.ORPOLoss(), pairs) - pair_losses(settings_of.SFTLoss(), pairs)
        whole = [
            Tree(tree.origin, tree.prompt[:1], ((*tree.prompt[1:], *tree.responses[0]),))
            for tree in self.demonstrations
        ]
        return _taken(policy, odds.mean() + _cross_entropy(policy, whole), self.pairs)

    def with_left_padding(self, name: str) -> Taken:
        """Dr. GRPO on the responses of another step, the model run as TRL runs it."""
        rollout, policy = self.rollouts[name], self.policy()
        rows = list(zip(rollout["prompts"], rollout["responses"], strict=True))
        advantages = less_group_mean(torch.tensor(rollout["rewards"]), group=cases.GROUP)
        batch = pack([Tree("", prompt, (response,)) for prompt, response in rows])
        width = max(len(prompt) for prompt, _ in rows)
        padding = [width - len(prompt) for prompt, _ in rows]
        ids = torch.tensor([[0] * left + list(prompt) for left, (prompt, _) in zip(padding, rows, strict=True)])
        seen = torch.tensor([[0] * left + [1] * (width - left) for left in padding])
        logits = policy.model(
            input_ids=torch.cat([ids, batch.response_ids], 1), attention_mask=torch.cat([seen, batch.mask.long()], 1)
        ).logits
        logprobs = token_logprobs(logits[:, width - 1 : -1], batch.response_ids)
        losses = ppo_clip(logprobs, logprobs, advantages.unsqueeze(1).expand_as(logprobs), clip=0.2)
        loss = aggregate(
            losses, batch.mask, "seq-mean-token-sum-norm", responses=len(rows), tokens=1, longest=cases.LONGEST
        )
        return _taken(policy, loss, [])

    def scored(self, policy: Policy) -> ScoredPairs:
        logprob, tokens = _logprobs(policy, self.pairs)
        return ScoredPairs(logprob=logprob.view(-1, 2), tokens=tokens.view(-1, 2))


def _knows_reference(loss: settings_of.PairLoss) -> bool:
    return not isinstance(loss, settings_of.SimPOLoss | settings_of.CPOLoss | settings_of.ORPOLoss)


def _logprobs(policy: Policy, trees: Sequence[Tree]) -> tuple[Tensor, Tensor]:
    """log π(y|x) and length of each response."""
    batch = pack(trees)
    return masked_sum(response_logprobs(policy.model, batch), batch.mask), batch.mask.sum(1)


def _cross_entropy(policy: Policy, trees: Sequence[Tree]) -> Tensor:
    """Of all response tokens alike."""
    batch = pack(trees)
    return mean_by(sft(response_logprobs(policy.model, batch), batch.mask), int(batch.mask.sum()))


def _taken(policy: Policy, loss: Tensor, trees: Sequence[Tree]) -> Taken:
    gradient = _watched(policy.model)
    loss.backward()
    return Taken([float(loss.detach())], gradient, _rows(trees))


def _watched(model: nn.Module) -> dict[str, list[float]]:
    """Filled with each parameter's gradient as it accumulates."""
    seen: dict[str, list[float]] = {}

    def keep(name: str, parameter: Tensor) -> None:
        assert parameter.grad is not None
        seen[name] = parameter.grad.flatten().tolist()

    for name, parameter in model.named_parameters():
        parameter.register_post_accumulate_grad_hook(partial(keep, name))
    return seen


def _rows(trees: Sequence[Tree]) -> list[list[int]]:
    return [[*tree.prompt, *response] for tree in trees for response in tree.responses]
