"""What every arm answers at its end to the same prompts, with the same luck: generations.jsonl, for reading."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import torch

from preflab.data.encode import Encoder
from preflab.data.records import Prompt
from preflab.data.sources import read_prompts
from preflab.errors import DataError, StorageError
from preflab.evaluation.policy import Judge
from preflab.models.load import Policy
from preflab.rewards.protocol import score
from preflab.rollouts.response import Response
from preflab.rollouts.sampler import sample
from preflab.runs import JSON, RunFolder, read_lines, to_line, write_text
from preflab.seeds import derive
from preflab.studies.best_of_n import kl_bound_nats
from preflab.studies.task import Turn
from preflab.training.rollout import PromptIds, answers, prompt_ids

FILE = "generations.jsonl"


def read_texts(path: Path) -> list[str]:
    """The prompts of a file: JSONL with a `prompt` column where its name says so, else text, one a line.

    Raises:
        DataError: there are none, or the file isn't there, or is no UTF-8.
        StorageError: it may not be read.
    """
    if path.name.endswith((".jsonl", ".jsonl.gz")):
        return [row.text for row in read_prompts(path).rows]
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except FileNotFoundError:
        raise DataError(f"{path} isn't there; --prompts names a file of prompts, one a line") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: byte {error.start + 1} is not UTF-8; save the file as UTF-8") from None
    except OSError as error:
        raise StorageError(f"can't read {path}: {error.strerror or error}") from None
    texts = [line.strip() for line in lines if line.strip()]
    if not texts:
        raise DataError(f"{path}: 0 prompts; write one a line")
    return texts


def questions(texts: Sequence[str], turn: Turn) -> tuple[Prompt, ...]:
    """Texts as prompts of the task, each once.

    A prompt's luck hangs on its text alone: other prompts beside it change nothing.

    >>> questions(["Why?", "Why?"], Turn("Q: ", " A:"))
    (Prompt(text='Q: Why? A:', origin='asked:Q: Why? A:', fields={}),)
    """
    return tuple(Prompt(text, f"asked:{text}") for text in dict.fromkeys(turn.around(text) for text in texts))


def cut(asked: Sequence[Prompt], encoder: Encoder) -> list[JSON]:
    """How many of the prompts a fresh encoder cuts, as study.json counts it; nothing where it cuts none."""
    prompt_ids(encoder, asked)
    return [{"name": f"prompts that every arm answers: {what}", "count": n} for what, n in encoder.counts.items()]


Place = tuple[str, int, bool]
"""A prompt's text, which of its samples, and whether it is the greedy one."""


def places(prompts: Iterable[Prompt | PromptIds], *, samples: int, best_of_n: bool) -> list[Place]:
    """What an arm writes, line by line: best-of-n has no greedy response, as its n would all be the same."""
    return [
        (prompt.text, number, greedy)
        for prompt in prompts
        for greedy in ((False,) if best_of_n else (True, False))
        for number in range(1 if greedy else samples)
    ]


def written(run: RunFolder) -> list[Place]:
    """What an arm has written."""
    return [(line["prompt"], line["sample"], line["greedy"]) for line in read_lines(run.path / FILE)]


@torch.no_grad()
def write_generations(
    run: RunFolder,
    judge: Judge,
    prompts: Sequence[PromptIds],
    *,
    samples: int,
    load: Callable[[], Policy],
    best_of: int | None = None,
) -> None:
    """Let a policy answer, `samples` times at temperature 1 and once greedily, and write generations.jsonl: whole or
    not at all, and not again where it is there.

    The luck is that of the judge's seed, so that all arms of one seed share it. The first of best-of-n's draws is the
    one sample of an arm that draws once.

    Args:
        load: the policy that answers; of best-of-n, the one that it samples.
        best_of: n, of an arm that answers with the one of n responses which the proxy likes best.
    """
    wanted = places(prompts, samples=samples, best_of_n=best_of is not None)
    if written(run) == wanted:
        return
    policy = load()
    found = {False: _sampled(policy, judge, prompts, samples, best_of)}
    if best_of is None:
        found[True] = _draw(policy, judge, prompts, 1, greedy=True)
    place = {prompt.text: number for number, prompt in enumerate(prompts)}
    chosen = [found[greedy][place[text] * (1 if greedy else samples) + number] for text, number, greedy in wanted]
    repeated = [prompts[place[text]] for text, _, _ in wanted]
    said = answers(judge.encoder, repeated, chosen)
    rewards = score(judge.reward, said) if judge.reward else [None] * len(said)
    kls = [kl_bound_nats(best_of)] * len(said) if best_of else judge.sequence_kl(policy, chosen)
    lines = (
        {
            "prompt": text,
            "sample": number,
            "greedy": greedy,
            "response": answer.response,
            "reward": reward,
            "kl_nats": kl,
            "ended": answer.ended,
        }
        for (text, number, greedy), answer, reward, kl in zip(wanted, said, rewards, kls, strict=True)
    )
    write_text(run.path / FILE, "".join(to_line(line) for line in lines))


def _draw(
    policy: Policy, judge: Judge, prompts: Sequence[PromptIds], samples: int, *, greedy: bool = False
) -> list[Response]:
    return sample(
        policy.model,
        [prompt.ids for prompt in prompts],
        keys=[prompt.key for prompt in prompts],
        end_id=judge.encoder.end_id,
        max_new_tokens=judge.max_new_tokens,
        samples=samples,
        greedy=greedy,
        seed=derive(judge.seed, "generations"),
    )


def _sampled(
    policy: Policy, judge: Judge, prompts: Sequence[PromptIds], samples: int, best_of: int | None
) -> list[Response]:
    """`samples` responses a prompt."""
    if best_of is None:
        return _draw(policy, judge, prompts, samples)
    assert judge.proxy is not None
    drawn = _draw(policy, judge, prompts, samples * best_of)
    repeated = [prompt for prompt in prompts for _ in range(samples * best_of)]
    liked = score(judge.proxy, answers(judge.encoder, repeated, drawn))
    groups = (range(begin, begin + best_of) for begin in range(0, len(drawn), best_of))
    return [drawn[max(group, key=lambda i: (liked[i], -i))] for group in groups]
