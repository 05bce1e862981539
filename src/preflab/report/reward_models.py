"""The reward models of a study on held-out pairs: as sure as they are right, and is length all they read?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from preflab.report.fields import Fields
from preflab.report.statistics import Estimate
from preflab.report.wording import interval, listing, number

SIDES = ("shorter", "longer")


@dataclass(frozen=True)
class Bucket:
    """Held-out pairs that are alike in one quantity."""

    name: str
    pairs: int
    confidence: float
    accuracy: Estimate


@dataclass(frozen=True)
class RewardModel:
    """One reward model's calibration, as `preflab.evaluation.calibration` measured it."""

    title: str
    label: str
    pairs: int
    accuracy: Estimate
    confidence: float
    error: float
    error_by_chance: float
    by_margin: tuple[Bucket, ...]
    by_length: tuple[Bucket, ...]
    shorter: Bucket | None
    longer: Bucket | None
    longer_wins: Estimate
    length_correlation: Estimate | None

    @property
    def misjudges(self) -> str:
        """Which way its mean confidence lies outside the interval of its accuracy; "" where it doesn't."""
        if self.confidence > self.accuracy.high:
            return "over-confident"
        return "under-confident" if self.confidence < self.accuracy.low else ""

    @property
    def sides(self) -> tuple[Bucket, Bucket] | None:
        """Pairs by which response was chosen, the longer or the shorter, the better judged first; None where their
        intervals overlap."""
        if self.shorter is None or self.longer is None or not apart(self.shorter.accuracy, self.longer.accuracy):
            return None
        more = self.longer.accuracy.mean > self.shorter.accuracy.mean
        return (self.longer, self.shorter) if more else (self.shorter, self.longer)

    @property
    def miscalibrated(self) -> bool:
        """Whether its calibration error is larger than chance leaves to 95 % of calibrated models."""
        return self.error > self.error_by_chance

    @property
    def found(self) -> bool:
        """Whether there is something to warn of."""
        return bool(self.misjudges or self.miscalibrated or self.sides)

    @property
    def finding(self) -> str:
        """Whether it believes itself too much, and whether it follows length: only where intervals say so."""
        otherwise = "not as sure as it is right" if self.miscalibrated else "about as sure as it is right"
        sure = self.misjudges or otherwise
        text = (
            f"{sure[0].upper()}{sure[1:]}: {self.confidence:.0%} sure on average, right in {self.accuracy.mean:.0%} "
            "of the pairs"
        )
        if self.miscalibrated and not self.misjudges:
            error, chance = number(self.error, 3), number(self.error_by_chance, 3)
            text += f", but groups of equally sure pairs are off by {error}, by chance up to {chance}"
        text += "."
        if self.sides:
            better, worse = self.sides
            text += (
                f" It follows length: right in {better.accuracy.mean:.0%} of the pairs whose chosen response is the "
                f"{better.name} one, in {worse.accuracy.mean:.0%} where that is the {worse.name} one."
            )
        return text.replace("%", " %")

    @property
    def sentences(self) -> tuple[str, ...]:
        """The finding with its figures, as a terminal has them."""
        chance = f"95 % of calibrated models stay below {number(self.error_by_chance, 3)} on {self.pairs:,} pairs"
        lines = [self.finding, f"Calibration error {number(self.error, 3)}; {chance}."]
        if said := [
            f"{interval(side.accuracy)} where it is the {side.name} one" for side in (self.shorter, self.longer) if side
        ]:
            lines.append(f"By the chosen response's length, accuracy {listing(said)}.")
        return tuple(lines)


def apart(a: Estimate, b: Estimate) -> bool:
    """Whether two intervals have no value in common."""
    return a.low > b.high or b.low > a.high


def read_reward_models(entries: Sequence[Fields]) -> tuple[RewardModel, ...]:
    """Read study.json's `reward_models`; the title tells the seed where there are several."""
    labels = [entry.text("label") for entry in entries]
    models = []
    for label, entry in zip(labels, entries, strict=True):
        found = entry.inner("calibration")
        shorter, longer = (read_bucket(found.inner(name)) if found.value.get(name) else None for name in SIDES)
        correlated = found.value.get("length_correlation") is not None
        models.append(
            RewardModel(
                title=label[:1].upper()
                + label[1:]
                + (f", seed {entry.whole('seed')}" if labels.count(label) > 1 else ""),
                label=label,
                pairs=found.whole("pairs"),
                accuracy=found.estimate("accuracy"),
                confidence=found.number("confidence"),
                error=found.number("error"),
                error_by_chance=found.number("error_by_chance"),
                by_margin=tuple(read_bucket(item) for item in found.items("by_margin")),
                by_length=tuple(read_bucket(item) for item in found.items("by_length")),
                shorter=shorter,
                longer=longer,
                longer_wins=found.estimate("longer_wins"),
                length_correlation=found.estimate("length_correlation") if correlated else None,
            )
        )
    return tuple(models)


def read_bucket(content: Fields) -> Bucket:
    """Read one bucket."""
    return Bucket(
        content.text("name"), content.whole("pairs"), content.number("confidence"), content.estimate("accuracy")
    )
