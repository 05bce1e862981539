"""`preflab sheet`: a blind sheet of two arms' responses, for people to vote on."""

from __future__ import annotations

import csv
import io
import random
from collections.abc import Sequence
from dataclasses import dataclass

from preflab.config.commands import VoteSheet
from preflab.errors import ConfigError, DataError, nearest
from preflab.report.study import Arm, Study, read_study
from preflab.report.votes import COLUMNS, FOLDER, KEY, sheet_name, sheets_in
from preflab.runs import digest, write_json, write_text
from preflab.seeds import derive
from preflab.tables.files import harmless


@dataclass(frozen=True)
class Duel:
    """One prompt, and what the two arms answered."""

    seed: int
    prompt_id: str
    prompt: str
    responses: tuple[str, str]


def run(config: VoteSheet) -> None:
    """Draw prompts, shuffle who stands first, write the sheet and its key."""
    study = read_study(config.folder)
    first, second = (_arm(study, name) for name in config.arms)
    name = sheet_name(first.name, second.name)
    folder = config.folder / FOLDER
    path = folder / f"{name}.csv"
    keys = (key.name.removesuffix(KEY) for key in folder.glob(f"*{KEY}"))
    if there := sheets_in(config.folder, {name, *keys}).get(name):
        raise ConfigError(f"{there[0]} exists and may hold votes; move it away for another sheet of these arms")
    drawn = draw(duels(first, second), config.n, seed=config.seed)
    shown = [duel for duel in drawn if duel.responses[0] != duel.responses[1]]
    alike = [duel for duel in drawn if duel.responses[0] == duel.responses[1]]
    if not shown:
        raise DataError(f"{first.name} and {second.name} answer all {len(drawn)} prompts alike; nothing to vote on")
    rng = random.Random(derive(config.seed, "sheet", "order"))
    swapped = [rng.random() < 0.5 for _ in shown]
    write_json(
        folder / f"{name}{KEY}",
        {
            "first_arm": first.name,
            "second_arm": second.name,
            "seed": config.seed,
            "rows": [
                _place(duel) | {"row": row, "first": second.name if swap else first.name}
                for row, (duel, swap) in enumerate(zip(shown, swapped, strict=True), 1)
            ],
            "alike": [_place(duel) for duel in alike],
            "responses": digest([duel.responses for duel in (*shown, *alike)]),
        },
    )
    write_text(path, sheet(shown, swapped))
    print(f"{len(shown)} rows: {path}")
    if alike:
        print(f"{len(alike)} more prompts were answered alike by both: they are on no row, and count as ties")
    print(
        f"Write 1, 2 or tie under `vote`; {name}{KEY} says which is which, so don't look. Several people fill copies "
        f"called {name}.NAME.csv beside it. Then: preflab report {config.folder}"
    )


def duels(first: Arm, second: Arm) -> list[Duel]:
    """Every test prompt that both arms answered with the same seed."""
    found = []
    for one in first.runs:
        for other in second.runs:
            if one.seed == other.seed and one.test and other.test:
                answers = {sample.prompt_id: sample for sample in other.test.samples[0]}
                found += [
                    Duel(one.seed, mine.prompt_id, mine.prompt, (mine.response, answers[mine.prompt_id].response))
                    for mine in one.test.samples[0]
                    if mine.prompt_id in answers
                ]
    if not found:
        raise DataError(f"{first.name} and {second.name} share no test prompt yet; let the study finish these arms")
    return found


def draw(all_duels: Sequence[Duel], n: int, *, seed: int) -> list[Duel]:
    """`n` prompts at random, or all there are, each once: with the responses of one of its seeds at random."""
    rng = random.Random(derive(seed, "sheet", "prompts"))
    by_prompt: dict[str, list[Duel]] = {}
    for duel in all_duels:
        by_prompt.setdefault(duel.prompt_id, []).append(duel)
    prompts = rng.sample(list(by_prompt), min(n, len(by_prompt)))
    return [rng.choice(by_prompt[prompt]) for prompt in prompts]


def sheet(shown: Sequence[Duel], swapped: Sequence[bool]) -> str:
    """The sheet as CSV that a spreadsheet reads as UTF-8 and runs nothing of."""
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(COLUMNS)
    for row, (duel, swap) in enumerate(zip(shown, swapped, strict=True), 1):
        one, other = reversed(duel.responses) if swap else duel.responses
        writer.writerow([str(row), *map(harmless, (duel.prompt, one, other)), ""])
    return "\ufeff" + text.getvalue()


def _place(duel: Duel) -> dict[str, object]:
    return {"seed": duel.seed, "prompt_id": duel.prompt_id}


def _arm(study: Study, name: str) -> Arm:
    found = {arm.name: arm for arm in study.arms}
    if name not in found:
        raise ConfigError(f'{study.folder} has no arm "{name}"; {nearest(name, found)}')
    return found[name]
