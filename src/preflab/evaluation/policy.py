"""Evaluate a policy on prompts: one sampled response a prompt at temperature 1, and what it's worth.

Every policy is judged by the same code on the same prompts with the same luck; the reference too, so that its KL of 0
and win rate of ½ come out of the measurement.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from preflab.data.encode import Encoder, Tree
from preflab.data.pack import pack
from preflab.losses import kl_full, masked_sum
from preflab.models.load import Policy
from preflab.models.scoring import Grammar, of_distributions, read, response_logprobs, trees_at_once
from preflab.rewards.protocol import Reward, assess, score
from preflab.rollouts.mask import TokenMask, grammar_of
from preflab.rollouts.response import Response
from preflab.rollouts.sampler import sample
from preflab.runs import JSON
from preflab.training.rollout import PromptIds, answers


@dataclass(frozen=True)
class Judge:
    """What all policies of a comparison are judged by."""

    reference: Any
    """The model that KL is measured from."""
    encoder: Encoder
    reward: Reward | None
    """The gold reward, or the held-out judge."""
    proxy: Reward | None
    """The reward that training saw."""
    held_out: Sequence[Tree]
    """Texts for the perplexity, one response each."""
    max_new_tokens: int
    seed: int
    batch_size: int = 64
    mask: TokenMask[Any] | None = None
    """Which tokens may follow, in sampling, KL and the likelihood of held-out texts; None: every one."""
    second: Reward | None = None
    """A held-out judge beside the gold reward: `judge_reward` of rows and samples."""

    @torch.no_grad()
    def point(
        self,
        policy: Policy,
        prompts: Sequence[PromptIds],
        *,
        step: int,
        split: str,
        baseline: list[float] | None,
    ) -> tuple[dict[str, JSON], list[dict[str, JSON]]]:
        """One point of evaluation.json and its lines of samples.jsonl.

        Args:
            baseline: the reference's rewards on the same prompts, for the win rate; None compares with itself.
        """
        responses = sample(
            policy.model,
            [prompt.ids for prompt in prompts],
            keys=[prompt.key for prompt in prompts],
            end_id=self.encoder.end_id,
            max_new_tokens=self.max_new_tokens,
            seed=self.seed,
            mask=self.mask,
        )
        kls = self.sequence_kl(policy, responses)
        return self.measured(policy, prompts, responses, kls, step=step, split=split, baseline=baseline)

    @torch.no_grad()
    def measured(
        self,
        policy: Policy,
        prompts: Sequence[PromptIds],
        responses: Sequence[Response],
        kls: list[float],
        *,
        step: int,
        split: str,
        baseline: list[float] | None,
    ) -> tuple[dict[str, JSON], list[dict[str, JSON]]]:
        """As `point`, of responses and KLs (in nats) that are there already, one a prompt."""
        judged = answers(self.encoder, prompts, responses)
        scores = assess(self.reward, judged) if self.reward else None
        rewards = scores.totals if scores else None
        parts = [score.parts for score in scores.values] if scores else []
        proxies = score(self.proxy, judged) if self.proxy else None
        rows: dict[str, JSON] = {
            "prompt": [prompt.key for prompt in prompts],
            "reward": rewards,
            "proxy_reward": proxies,
            "kl_nats": kls,
            "response_tokens": [len(response.tokens) for response in responses],
            "ended": [int(response.ended) for response in responses],
            "win": _wins(rewards, baseline if baseline is not None else rewards),
        }
        seconds = score(self.second, judged) if self.second else None
        if seconds is not None:
            rows["judge_reward"] = seconds
        if parts and parts[0]:
            rows["reward_parts"] = {name: [part[name] for part in parts] for name in parts[0]}
        point = {"step": step, "split": split, "rows": rows, "held_out": self.likelihood(policy)}
        samples = [
            {
                "step": step,
                "split": split,
                "prompt_id": prompt.key,
                "prompt": prompt.text,
                "response": answer.response,
                "reward": rewards[i] if rewards else None,
                "proxy_reward": proxies[i] if proxies else None,
                "kl_nats": kls[i],
            }
            | ({"reward_parts": dict(parts[i])} if parts and parts[i] else {})
            | ({"judge_reward": seconds[i]} if seconds else {})
            for i, (prompt, answer) in enumerate(zip(prompts, judged, strict=True))
        ]
        return point, samples

    @cached_property
    def grammar(self) -> Grammar | None:
        """What the mask says, as scoring asks it."""
        return None if self.mask is None else grammar_of(self.mask)

    def sequence_kl(self, policy: Policy, responses: Sequence[Response]) -> list[float]:
        """Σ_t KL(π(·|x, y_<t) ‖ π_ref(·|x, y_<t)) over the whole vocabulary, in nats at temperature 1, a response."""
        values: list[float] = []
        trees = [response.tree for response in responses]
        size = trees_at_once(policy.model, trees, self.batch_size)
        for begin in range(0, len(trees), size):
            batch = pack(trees[begin : begin + size]).to(policy.device)
            reads = [read(model, batch, grammar=self.grammar) for model in (policy.model, self.reference)]
            (per_token,) = of_distributions(reads, lambda *logits: [kl_full(*logits)])
            values += masked_sum(per_token, batch.mask).tolist()
        return values

    def likelihood(self, policy: Policy) -> dict[str, list[float]]:
        """−log π(y|x) in nats and the number of tokens of each held-out text."""
        nats: list[float] = []
        tokens: list[float] = []
        size = trees_at_once(policy.model, self.held_out, self.batch_size)
        for begin in range(0, len(self.held_out), size):
            batch = pack(self.held_out[begin : begin + size]).to(policy.device)
            nats += (-masked_sum(response_logprobs(policy.model, batch, grammar=self.grammar), batch.mask)).tolist()
            tokens += batch.mask.sum(1).tolist()
        return {"nll_nats": nats, "tokens": tokens}


def _wins(rewards: list[float] | None, baseline: list[float] | None) -> list[float] | None:
    """1 for a win against the baseline on the same prompt, ½ for a tie, 0 for a loss."""
    if rewards is None or baseline is None:
        return None
    return [
        1.0 if mine > other else 0.5 if mine == other else 0.0 for mine, other in zip(rewards, baseline, strict=True)
    ]
