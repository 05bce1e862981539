"""Who wins against whom, on the same prompts: by reward, by a judge, by people; and what length had to do with it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from preflab.report.chapter import Chapter, Column, Drawing, Finding, Findings, Part, Prose, Sheet, Value
from preflab.report.duels import Duel, between, beyond_kl, duels, farthest, same_ground
from preflab.report.figures import colour_of
from preflab.report.judgements import JudgedPair, read_judgements
from preflab.report.lengths import correlation
from preflab.report.statistics import Estimate, estimate
from preflab.report.study import Arm, Study
from preflab.report.svg import COLOURS, INK, STYLE, Picture, named, to_svg
from preflab.report.verdicts import MANY, seeds_in_words
from preflab.report.votes import VotedPair, read_votes
from preflab.report.wording import count, interval, number, share
from preflab.runs import digest

WON, LOST = COLOURS[0], COLOURS[1]
"""Blue above ½ and vermilion below it: told apart by every eye."""
FULL = 0.62
"""The opacity of a cell at 0 or 1: the number in it stays legible on either paper."""
WITH_INTERVALS = 7
"""Arms up to which a cell has room for its interval."""


def win_rates(study: Study) -> Chapter | None:
    """The chapter; None before two arms have been scored on the same prompts."""
    by_reward = duels(study)
    if not by_reward:
        return None
    by_judge = duels(study, "judge_reward")
    first = by_reward[0]
    where = f"{count(first.prompts)} {first.split} prompts, {seeds_in_words(first.seeds)}"
    parts: list[Part] = [
        Prose(
            f"Arms are compared response by response, on the same {where}: the response with more "
            f"{study.reward_name} wins, equal ones tie, and a tie counts as half a win. Of equal "
            "arms each wins 50 %. These shares describe, each with its own 95 % interval; which difference counts "
            "among all of its kind, the verdicts say."
        ),
        against_reference(study, by_reward),
        Drawing(matrix(study, by_reward, "win-rates", study.reward_name), drawn_sheet(by_reward, "win-rates-drawn")),
        duel_sheet(by_reward, "win-rates-by-pair"),
    ]
    if by_judge:
        drawn = matrix(study, by_judge, "win-rates-judge", "the held-out judge")
        parts.append(Drawing(drawn, drawn_sheet(by_judge, "win-rates-judge-drawn")))
        parts.append(duel_sheet(by_judge, "win-rates-judge-by-pair"))
    parts += by_others(study)
    parts += about_length(study, by_reward)
    return Chapter("win-rates", "Who wins against whom?", tuple(parts))


def against_reference(study: Study, found: Sequence[Duel]) -> Findings:
    """How often each arm beats the reference, and DPO's comparison with PPO."""
    shown = [one for one in found if one.second.name == study.reference_name]
    shown += [one for one in found if {one.first.name, one.second.name} == {"dpo", "ppo"}]
    heading = "How often does it win?"
    told = []
    for one in shown:
        luck = luck_of_the_draw(study, one)
        told.append(Finding(about(one), " ".join([answer(one), *luck]), one.sign != 0 and not luck))
    return Findings(heading, tuple(told))


def luck_of_the_draw(study: Study, one: Duel) -> tuple[str, ...]:
    """What to say of a win rate against the reference that is farther from 50 % than the arm's KL lets expect."""
    point = one.first.final
    if point is None or one.second.name != study.reference_name:
        return ()
    kl = estimate(point.kl_nats, f"arm {one.first.name}: KL").within(0.0)
    if not beyond_kl(one.win_rate, kl):
        return ()
    return (
        f"That is luck of the draw: at a KL of {kl.mean:.1g} nats no win rate can be expected farther than "
        f"{number(100 * farthest(kl.high), 1)} points from 50 % (√(KL/2), Pinsker's inequality).",
    )


def about(one: Duel) -> str:
    """Who plays."""
    return f"{one.first.title} against {one.second.title}"


def answer(one: Duel) -> str:
    """The win rate, and what it is at equal length; no judgement, which is the verdicts'."""
    fair = one.equal_length
    at_equal_length = f"{percent(fair)} at equal length" if fair else "at equal length it can't be said"
    return f"It wins {percent(one.win_rate)}, ties {share(one.ties.mean, 0)}; {at_equal_length}."


def percent(rate: Estimate) -> str:
    """A share with its interval, in percent.

    >>> percent(Estimate(0.62, 0.55, 0.688))
    '62 % [55, 69]'
    """
    return f"{number(100 * rate.mean, 0)} % [{number(100 * rate.low, 0)}, {number(100 * rate.high, 0)}]"


def matrix(study: Study, found: Sequence[Duel], name: str, scorer: str) -> Picture:
    """Win rates of rows against columns, as a heat map with its numbers."""
    playing = {arm.name for one in found for arm in (one.first, one.second)}
    arms = [arm for arm in study.arms if arm.name in playing]
    roomy = len(arms) <= WITH_INTERVALS
    side, tall = (0.95, 0.72) if roomy else (0.56, 0.42)
    labels = 0.075 * max(len(named(arm.title)) for arm in arms)
    with mpl.rc_context(STYLE | {"font.size": 10}):
        figure = Figure(
            figsize=(side * len(arms) + labels + 0.4, tall * len(arms) + (0.55 if roomy else labels)),
            layout="constrained",
        )
        figure.patch.set_alpha(0)
        axes = figure.subplots()
        axes.patch.set_alpha(0)
        for row, mine in enumerate(arms):
            for column, other in enumerate(arms):
                rate = between(found, mine, other)
                if rate:
                    cell(axes, row, column, rate, roomy)
        axes.set_xlim(-0.5, len(arms) - 0.5)
        axes.set_ylim(len(arms) - 0.5, -0.5)
        titles = [named(arm.title) for arm in arms]
        axes.set_yticks(range(len(arms)), titles)
        axes.set_xticks(range(len(arms)), [wrapped(title) for title in titles] if roomy else titles)
        axes.xaxis.tick_top()
        axes.tick_params(length=0)
        if not roomy:
            for text in axes.get_xticklabels():
                text.set(rotation=55, ha="left", rotation_mode="anchor")
        for texts in (axes.get_xticklabels(), axes.get_yticklabels()):
            for text, arm in zip(texts, arms, strict=True):
                text.set(color=colour_of(study, arm), fontweight="bold")
        for spine in axes.spines.values():
            spine.set_visible(False)
    return Picture(
        name,
        f"Win rates by {scorer}",
        "A number says in how many of 100 prompts the arm of its row beats the arm of its column, a tie counted as "
        "half. Blue wins, orange loses, the deeper the clearer; bold: the 95 % interval"
        + (", below it," if roomy else "")
        + " leaves 50 out.",
        to_svg(figure, name, f"Win rates of every arm against every other, by {scorer}"),
    )


def cell(axes: Axes, row: int, column: int, rate: Estimate, roomy: bool) -> None:
    """One win rate: its colour and its numbers."""
    clear = rate.low > 0.5 or rate.high < 0.5
    colour = WON if rate.mean > 0.5 else LOST
    strength = FULL * min(1.0, 2 * abs(rate.mean - 0.5))
    axes.add_patch(Rectangle((column - 0.48, row - 0.47), 0.96, 0.94, facecolor=colour, alpha=strength, linewidth=0))
    middle: dict[str, Any] = {"ha": "center", "va": "center", "color": INK}
    weight = "bold" if clear else "normal"
    axes.text(column, row - (0.12 if roomy else 0), f"{100 * rate.mean:.0f}", fontsize=12, fontweight=weight, **middle)
    if roomy:
        ends = f"{100 * rate.low:.0f}–{100 * rate.high:.0f}"
        axes.text(column, row + 0.22, ends, fontsize=8.5, alpha=0.8, **middle)


def wrapped(title: str) -> str:
    """A title on two lines where it has two words or more."""
    words = title.split()
    best = min(range(len(words)), key=lambda i: abs(len(" ".join(words[:i])) - len(" ".join(words[i:]))))
    return f"{' '.join(words[:best])}\n{' '.join(words[best:])}".strip()


def drawn_sheet(found: Sequence[Duel], name: str) -> Sheet:
    """What the heat map shows, each two arms once."""
    columns = (Column("Arm", "arm"), Column("Against", "arm"), Column("Win rate", "percent", 0))
    rows = tuple((one.first, one.second, one.win_rate) for one in found)
    return Sheet(name, columns, rows, "The win rate of the first arm; that of the second is what is left to 100 %.")


def duel_sheet(found: Sequence[Duel], name: str) -> Sheet:
    """Every two arms, in full."""
    columns = (
        Column("Arm", "arm"),
        Column("Against", "arm"),
        Column("Win rate", "percent", 0),
        Column("Wins", "percent", 0),
        Column("Ties", "percent", 0),
        Column("Losses", "percent", 0),
        Column("Win rate at equal length", "percent", 0),
    )
    rows: tuple[tuple[Value, ...], ...] = tuple(
        (one.first, one.second, one.win_rate, one.wins, one.ties, one.losses, one.equal_length) for one in found
    )
    reading = "Wins, ties and losses are shares of the same prompts; the win rate is wins and half of the ties."
    if len(found) > 1:
        reading += f" {len(found)} comparisons at 95 % each: where nothing differs, one in twenty shows a difference."
    return Sheet(name, columns, rows, reading)


def by_others(study: Study) -> list[Part]:
    """What a judge of pairs and human raters preferred, where there are any; not of responses that are gone."""
    arms = {arm.name: arm for arm in study.arms}
    judged, voted = read_judgements(study.folder), read_votes(study.folder)
    parts: list[Part] = []
    if current := [one for one in judged if is_of(one, arms)]:
        parts.append(judged_sheet(current, arms))
    if counted := [one for one in voted if is_of(one, arms)]:
        parts.append(voted_sheet(counted, arms))
    said: list[tuple[str, Sequence[JudgedPair | VotedPair], str]] = [
        ("The judge of pairs", judged, "start the study with --pair-judge again"),
        ("The votes", voted, "move the sheet away and draw another"),
    ]
    for whose, found, remedy in said:
        if gone := [f"{one.first_arm} against {one.second_arm}" for one in found if not is_of(one, arms)]:
            others = "left out, as the arms' responses are others by now"
            parts.append(Prose(f"{whose} on {'; '.join(gone)}: {others}. To have this, {remedy}."))
    return parts


def is_of(pair: JudgedPair | VotedPair, arms: dict[str, Arm]) -> bool:
    """Whether the responses that were judged are those of the arms: an arm may have been deleted and run again."""
    said: list[dict[tuple[int, str], str]] = [
        {
            (run.seed, one.prompt_id): one.response
            for run in (arms[name].runs if name in arms else ())
            for one in (run.test.samples[0] if run.test else ())
        }
        for name in (pair.first_arm, pair.second_arm)
    ]
    return digest([[one.get(place) for one in said] for place in pair.places]) == pair.responses


def judged_sheet(judged: Sequence[JudgedPair], arms: dict[str, Arm]) -> Sheet:
    """The judge that reads two responses at once."""
    columns = (
        Column("Arm", "arm"),
        Column("Against", "arm"),
        Column("Judge", "text"),
        Column("Preferred", "percent", 0),
        Column("For what stands first", "percent", 1),
        Column("Prompts", "count"),
    )
    rows: tuple[tuple[Value, ...], ...] = tuple(
        (
            arms.get(one.first_arm, one.first_arm),
            arms.get(one.second_arm, one.second_arm),
            one.judge,
            one.preference,
            one.position_bias,
            one.prompts,
        )
        for one in judged
    )
    return Sheet(
        "judged-pairs",
        columns,
        rows,
        "A judge read both responses in both orders: how far it preferred the first arm's, the mean of the orders; and "
        "what standing first was worth to a response, 0 for a judge without that bias.",
    )


def voted_sheet(voted: Sequence[VotedPair], arms: dict[str, Arm]) -> Sheet:
    """People who did not know which arm had written what."""
    columns = (
        Column("Arm", "arm"),
        Column("Against", "arm"),
        Column("Win rate", "percent", 0),
        Column("Wins", "count"),
        Column("Ties", "count"),
        Column("Losses", "count"),
        Column("Raters", "count"),
        Column("Agreement", "percent", 0),
        Column("First one wins", "percent", 0),
    )
    rows: tuple[tuple[Value, ...], ...] = tuple(
        (
            arms.get(one.first_arm, one.first_arm),
            arms.get(one.second_arm, one.second_arm),
            one.win_rate,
            one.wins,
            one.ties,
            one.losses,
            one.raters,
            one.agreement,
            one.first_position_rate,
        )
        for one in voted
    )
    return Sheet(
        "human-votes",
        columns,
        rows,
        "Blind votes: raters saw two responses in random order. Agreement is how often two raters of the same "
        "responses voted alike; the last column is 50 % where the order did not matter.",
    )


def about_length(study: Study, found: Sequence[Duel]) -> list[Part]:
    """Whether reward goes with length, arm by arm, and how the win rates at equal length were made."""
    rows = tuple(row for arm in study.arms if (row := length_row(study, arm)))
    parts: list[Part] = []
    if rows:
        columns = (
            Column("Arm", "arm"),
            Column("Length (tokens)", "number", 1),
            Column("Length and reward, over prompts"),
            Column("The same, against the reference"),
        )
        reading = (
            "Pearson's correlation of a response's length and its reward, −1 to 1: over the arm's own prompts, and of "
            "the differences from the reference's response to the same prompt, where what makes a prompt easy "
            "cancels. Empty where one of the two doesn't vary."
        )
        parts += [
            Findings("Does length pay?", length_findings(rows)),
            Sheet("length-and-reward", columns, rows, reading),
        ]
    undecided = sum(one.equal_length is None for one in found)
    text = (
        "Win rate at equal length: σ(θ) of the logistic fit P(win) = σ(θ + φ·tanh(Δ/s)), Δ the difference of lengths "
        "in tokens and s its root mean square, fitted to each two arms: a simple form of the length-controlled win "
        "rate of Dubois et al. (arXiv 2404.04475), without their term for how hard a prompt is. It asks who would win "
        "if lengths were equal and says nothing of why they are not."
    )
    if undecided:
        text += f" Of {undecided} pairs it can't be asked: no equal lengths between them, or one arm wins always."
    return [*parts, Prose(text, quiet=True)]


def length_row(study: Study, arm: Arm) -> tuple[Arm, float, Estimate | None, Estimate | None] | None:
    """An arm's length and what it has to do with reward."""
    point = arm.final
    if point is None or point.reward.shape[1] < 2:
        return None
    over = correlation(point.response_tokens, point.reward, f"length and reward of {arm.name}")
    reference = study.reference
    within = None
    if reference and reference.name != arm.name and (ground := same_ground(study, arm, reference)):
        mine, theirs = ground
        longer, better = mine.response_tokens - theirs.response_tokens, mine.reward - theirs.reward
        within = correlation(longer, better, f"length and reward of {arm.name} against the reference")
    return arm, float(point.response_tokens.mean()), over, within


def length_findings(
    rows: Sequence[tuple[Arm, float, Estimate | None, Estimate | None]],
) -> tuple[Finding, ...]:
    """A sentence for each arm whose reward goes with length, and one for all others."""
    known = [
        (arm, within or over, "than the reference's" if within else "than its others") for arm, _, over, within in rows
    ]
    told = [(arm, r, than) for arm, r, than in known if r and r.sign]
    found = [
        Finding(
            arm.title,
            f"{'Longer' if r.sign > 0 else 'Shorter'} responses {than} get more reward: correlation {interval(r)}.",
            True,
        )
        for arm, r, than in told
    ]
    rest = len(known) - len(told)
    if rest:
        whom = f"{rest} arms" if rest < MANY and told else "All other arms" if told else "All arms"
        found.append(Finding(whom, "No correlation of length and reward found.", False))
    return tuple(found)
