"""Iterative DPO: rounds of sampling pairs from the policy and training on them.

    for each round:
        sample a response to each of the round's prompts at each of K temperatures; pair best against worst
        train on the pairs as on a fixed data set, against the start or the previous round's policy

Xu et al. 2023, arXiv 2312.16682; Pang et al. 2024, arXiv 2404.19733. A round lives in `rounds/N/` of the run folder:
its pairs as JSONL, its own metrics and checkpoints, and its model once it is finished.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from preflab.config.load import to_yaml
from preflab.config.online_preference import IterativeDPO
from preflab.config.preference import WeightedSum
from preflab.data.encode import Encoder
from preflab.errors import ConfigError
from preflab.models.load import Policy, copy_of, load_policy, save_model
from preflab.progress import say
from preflab.rewards.protocol import Reward
from preflab.runs import JSON, RunFolder, read_json, read_lines, to_line, write_json, write_text
from preflab.seeds import derive
from preflab.training.checks import check_reference
from preflab.training.cost import Cost
from preflab.training.order import batch_at
from preflab.training.preference import train_preference, with_cost
from preflab.training.ranking import rank_responses
from preflab.training.rollout import PromptIds
from preflab.training.session import Evaluate, Spent


def train_iterative_dpo(
    policy: Policy,
    reference: Any,
    reward: Reward,
    prompts: Sequence[PromptIds],
    settings: IterativeDPO,
    run: RunFolder,
    *,
    max_new_tokens: int,
    seed: int,
    gold: bool = False,
    log_every: int = 10,
    evaluate: Evaluate | None = None,
    spent: Spent | None = None,
    title: str = "iterative DPO",
) -> Cost:
    """Train `policy` in place.

    Args:
        reference: a frozen model, for `settings.reference` = start.
        evaluate: called with steps counted over all rounds.
        spent: of a budget that may end the run within a round.

    Raises:
        ConfigError: settings don't fit together, there are fewer prompts than rounds, or the reference shares weights
            with the policy.
        DataError: no prompt of a round gave a pair.
        NumericError: a reward, loss or gradient is not finite.
        Interrupted: SIGTERM or Ctrl-C; the state is saved.
    """
    if problem := settings.ranking.misfit() or settings.loss.misfit():
        raise ConfigError(problem)
    size = len(prompts) // settings.rounds
    if size == 0:
        raise ConfigError(f"rounds = {settings.rounds}, but there are {len(prompts)} prompts; lower rounds")
    if settings.reference == "start":
        check_reference(policy.model, reference)
    encoder = Encoder(policy.tokenizer, prompt_tokens=2**20, response_tokens=max_new_tokens)
    training = WeightedSum(
        loss=settings.loss,
        epochs=settings.epochs,
        batch=settings.batch,
        optimizer=settings.optimizer,
        freeze_blocks=settings.freeze_blocks,
        trunk=settings.trunk,
        activation_checkpointing=settings.activation_checkpointing,
        evaluations=settings.evaluations,
    )
    cost, steps, lines = Cost(), 0, list[JSON]()
    for number in range(settings.rounds):
        if spent is not None and spent(cost) >= 1:
            break
        part = RunFolder(run.path / "rounds" / str(number))
        done = part.path / "round.json"
        if done.exists():
            finished = load_policy(part.model, device=policy.device)
            policy.model.load_state_dict(finished.model.state_dict())
        else:
            RunFolder.open(part.path, to_yaml(training), ours=True)
            # What a stopped start sampled would be sampled again: the round begins at the same weights.
            sampled = Cost()
            ranked = rank_responses(
                policy,
                encoder,
                reward,
                [prompts[i] for i in batch_at(number, examples=len(prompts), batch_size=size, seed=seed)],
                settings.ranking,
                missing_end_penalty=settings.missing_end_penalty,
                max_new_tokens=max_new_tokens,
                seed=derive(seed, "round", number),
                cost=sampled,
                gold=gold,
                title=f"{title}, round {number + 1} of {settings.rounds}: responses",
            )
            write_text(
                part.path / "pairs.jsonl",
                "".join(to_line({"prompt_id": pair.tree.origin} | pair.texts(encoder)) for pair in ranked),
            )
            before = steps
            trained = train_preference(
                policy,
                [pair.tree for pair in ranked],
                training,
                part,
                seed=derive(seed, "training", number),
                reference=reference if settings.reference == "start" else copy_of(policy.model),
                log_every=log_every,
                evaluate=None if evaluate is None else lambda step, before=before: evaluate(before + step),  # type: ignore[misc]
                spent=with_cost(spent, cost.plus(sampled)),
                title=f"{title}, round {number + 1} of {settings.rounds}",
            )
            save_model(policy, part.model)
            found = {"pairs": len(ranked), "prompts": size, "cost": trained.plus(sampled).values()}
            # No line: sampling took what the budget had left.
            last = max((line["step"] for line in read_lines(part.metrics)), default=0)
            write_json(done, found | {"steps": last})
        record = read_json(done)
        say(f"{title}: round {number + 1} made {record['pairs']} pairs of {record['prompts']} prompts")
        lines += [line | {"step": steps + line["step"], "round": number + 1} for line in read_lines(part.metrics)]
        write_text(run.metrics, "".join(to_line(line) for line in lines))
        steps += record["steps"]
        cost = cost.plus(Cost(**record["cost"]))
    return cost
