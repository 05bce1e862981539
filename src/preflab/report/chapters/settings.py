"""What was run."""

from __future__ import annotations

from preflab.report.chapter import Chapter, Column, Listing, Part, Prose, Sheet, Value
from preflab.report.study import Arm, Study
from preflab.report.wording import count


def settings(study: Study) -> Chapter | None:
    """What each arm is, its settings beside those of the others, and what repeats the study."""
    columns = (Column("Arm", "arm"), Column("What it is", "text"), Column("Seeds", "text"))
    rows = tuple((arm, arm.description, ", ".join(str(run.seed) for run in arm.runs)) for arm in study.arms)
    parts: list[Part] = [Sheet("arms", columns, rows, "An oracle trains on the reward that all are judged by.")]
    if any(arm.settings for arm in study.arms):
        parts.append(beside(study))
    sizes = ", ".join(f"{count(n)} {name}" for name, n in study.prompts.items())
    parts.append(Prose(f"Prompts: {sizes}.", quiet=True))
    if study.config_text:
        parts.append(Listing("The resolved configuration, a valid --config", study.config_text))
    if study.environment:
        machine = "".join(f"{key}: {value}\n" for key, value in study.environment.items())
        parts.append(Listing("Versions and machine", machine))
    return Chapter("settings", "Settings", tuple(parts))


def beside(study: Study) -> Sheet:
    """A row for each setting, a column for each arm that has any."""
    arms = [arm for arm in study.arms if arm.settings]
    keys = dict.fromkeys(key for arm in arms for key in arm.settings)
    columns = (Column("Setting", "text"), *(Column(arm.title, "text") for arm in arms))
    rows = tuple((key, *(value(arm, key) for arm in arms)) for key in keys)
    return Sheet("settings", columns, rows, "A dash: the arm has no such setting.")


def value(arm: Arm, key: str) -> Value:
    """A setting in words."""
    if key not in arm.settings:
        return None
    found = arm.settings[key]
    return "none" if found is None else str(found)
