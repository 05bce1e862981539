"""All discriminators of a round, stacked into one log density ratio."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from preflab.config.alignment import Discriminators
from preflab.errors import ConfigError, DataError, StorageError
from preflab.tables.column import Column
from preflab.tables.compact import Compact
from preflab.tables.discriminators.crossfit import CrossFitted, cross_fit
from preflab.tables.discriminators.level import Evidence, of_rows
from preflab.tables.discriminators.panel import Panel, fit_panel, stacked
from told_apart import COLUMNS, ENCODING, ROWS, Known, Table, additive, normalised

TREES = Discriminators(levels=("row",), trees=40)
BOTH = replace(TREES, levels=("row", "feature"), groups=("first=town,age", "second=debt"))
KNOWN = additive()
SAME = Known(KNOWN.real, KNOWN.real)


def exactly(known: np.ndarray) -> dict[tuple[int, ...], float]:
    return {tuple(row): float(logit) for row, logit in zip(ROWS.tolist(), known, strict=True)}


def looked_up(name: str, logits: np.ndarray, evidence: Evidence) -> CrossFitted:
    """A discriminator that knows what to say, calibrated like any other."""
    return cross_fit(name, "row", lambda part, seed: Table(name, "row", exactly(logits)), evidence, seed=0)


def slope_of(truth: np.ndarray, found: np.ndarray) -> float:
    """How much the truth rises where what was found rises by 1; rows weigh as often as they are seen."""
    weights = np.exp(np.logaddexp(KNOWN.real, KNOWN.written))
    return float(np.polyfit(found, truth, 1, w=np.sqrt(weights))[0])


def test_the_ratio_comes_near_the_known_one() -> None:
    for unseen in (0, 3_000):
        for settings in (TREES, BOTH):
            panel = fit_panel(ENCODING, KNOWN.evidence(5_000, 5_000, unseen=unseen), settings, seed=0)
            found = panel.opinion(ROWS).ratio
            assert slope_of(KNOWN.ratio, found) == pytest.approx(1, abs=0.1)
            assert np.corrcoef(found, KNOWN.ratio)[0, 1] > 0.95
            # E_q[p/q] = 1: what a ratio of densities is.
            assert np.exp(KNOWN.written) @ np.exp(found) == pytest.approx(1, abs=0.07)


def test_the_held_out_auc_is_what_the_best_discriminator_has() -> None:
    """P(ratio of a real row > that of a written row) + ½·P(equal), summed over all pairs of rows."""
    wins = (KNOWN.ratio[:, None] > KNOWN.ratio) + 0.5 * (KNOWN.ratio[:, None] == KNOWN.ratio)
    best = np.exp(KNOWN.real) @ wins @ np.exp(KNOWN.written)
    held = fit_panel(ENCODING, KNOWN.evidence(6_000, 12_000), BOTH, seed=0).held
    assert [one.name for one in held] == ["row", "feature: first", "feature: second", "all"]
    assert held[-1].auc == pytest.approx(best, abs=0.02)
    assert held[-1].auc_low < best < held[-1].auc_high + 0.01
    assert held[-1].log_loss < held[1].log_loss < held[2].log_loss + 0.1
    assert all(one.log_loss < np.log(2) for one in held)


def test_equal_distributions_are_not_told_apart() -> None:
    panel = fit_panel(ENCODING, SAME.evidence(3_000, 6_000, seed=1), BOTH, seed=0)
    for one in panel.held:
        assert one.auc_low - 0.01 < 0.5 < one.auc_high + 0.01
    assert np.abs(panel.opinion(ROWS).ratio).max() < 0.15


def test_what_two_discriminators_share_counts_once() -> None:
    evidence = KNOWN.evidence(4_000, 8_000, seed=2)
    once = looked_up("once", KNOWN.ratio, evidence)
    panel = stacked([once, looked_up("twice", 2 * KNOWN.ratio + 1, evidence)])
    assert sum(panel.stack.weights) * panel.stack.calibration.slope == pytest.approx(1, abs=0.05)
    np.testing.assert_allclose(panel.opinion(ROWS).ratio, KNOWN.ratio, atol=0.2)


def test_what_two_discriminators_know_of_independent_columns_adds_up() -> None:
    rng = np.random.default_rng(3)
    parts = rng.normal(0, 0.5, 3)[-1 - ROWS[:, 0]], rng.normal(0, 0.5, 5)[ROWS[:, 1] + 1]
    known = Known(normalised(parts[0] + parts[1]), normalised(np.zeros(60)))
    evidence = known.evidence(6_000, 12_000, seed=3)
    panel = stacked([looked_up("town", parts[0], evidence), looked_up("age", parts[1], evidence)])
    assert panel.held[-1].auc > max(one.auc for one in panel.held[:-1]) + 0.01
    np.testing.assert_allclose(panel.opinion(ROWS).ratio, known.ratio, atol=0.12)


def test_one_that_is_backwards_says_nothing_in_the_stack_and_is_reported() -> None:
    evidence = KNOWN.evidence(2_000, 4_000, seed=4)
    right, wrong = looked_up("right", KNOWN.ratio, evidence), looked_up("wrong", -KNOWN.ratio, evidence)
    panel = stacked([right, wrong])
    opinion = panel.opinion(ROWS)
    assert not opinion.logits["wrong"].any()
    assert panel.warnings == (
        f"wrong: rows that it did not learn from are not told apart (AUC {wrong.held.auc:.3f}, slope "
        f"{wrong.held.slope:.2f}), so it says nothing",
    )
    assert np.corrcoef(opinion.ratio, KNOWN.ratio)[0, 1] > 0.999
    for silent in (stacked([wrong]), stacked([wrong, looked_up("as wrong", -2 * KNOWN.ratio, evidence)])):
        assert not silent.opinion(ROWS).ratio.any()
        assert silent.held[-1].name == "all"
        assert silent.held[-1].log_loss == pytest.approx(np.log(2))


def test_a_single_discriminator_is_the_ratio() -> None:
    panel = fit_panel(ENCODING, KNOWN.evidence(900, 1800), TREES, seed=0)
    opinion = panel.opinion(ROWS)
    assert opinion.levels == {"row": "row"}
    np.testing.assert_array_equal(opinion.ratio, opinion.logits["row"][:, 0])
    assert panel.held[-1] == replace(panel.held[0], name="all")


def test_members_are_averaged() -> None:
    panel = fit_panel(ENCODING, KNOWN.evidence(900, 1800), TREES, seed=0)
    [judge] = panel.judges
    assert len(judge.members) == 3
    mean = sum(member.logits(ROWS) for member in judge.members) / 3
    slope, offset = panel.held[0].slope, panel.held[0].offset
    np.testing.assert_allclose(panel.opinion(ROWS).logits["row"], slope * mean + offset)


def test_held_out_noise_is_not_believed() -> None:
    """Labels at random of rows that are each another: trees learn them by heart, and are worth nothing."""
    wide = tuple(Column(f"c{place}", "category", levels=tuple("abcdefgh")) for place in range(6))
    rng = np.random.default_rng(5)
    rows = -1 - rng.integers(0, 8, (800, 6))
    fold = np.arange(400) % 4
    evidence = Evidence(rows[:400], fold, rows[400:], fold)
    settings = replace(TREES, trees=200, leaves=63)
    panel = fit_panel(Compact.of(wide, rows), evidence, settings, seed=0)
    inside = [member.logits(rows)[:, 0] for member in panel.judges[0].members]
    assert min(np.mean(one[:400, None] > one[400:]) for one in inside) > 0.85
    assert panel.held[0].auc_low < 0.5 < panel.held[0].auc_high
    assert np.abs(panel.opinion(rows).ratio).mean() < 0.1


def test_the_same_seed_makes_the_same_panel() -> None:
    evidence = KNOWN.evidence(600, 1200)
    one, again, other = (fit_panel(ENCODING, evidence, BOTH, seed=seed) for seed in (0, 0, 1))
    assert one.held == again.held
    np.testing.assert_array_equal(one.opinion(ROWS).ratio, again.opinion(ROWS).ratio)
    assert one.held != other.held


@pytest.mark.parametrize("unseen", [0, 50])
def test_a_stored_panel_has_the_same_opinions(tmp_path: Path, unseen: int) -> None:
    panel = fit_panel(ENCODING, KNOWN.evidence(600, 1200, unseen=unseen), BOTH, seed=0)
    panel.save(tmp_path / "round-1")
    back = Panel.load(tmp_path / "round-1", ENCODING)
    assert back.held == panel.held
    before, after = panel.opinion(ROWS), back.opinion(ROWS)
    assert list(before.logits) == list(after.logits) == ["row", "feature: first", "feature: second"]
    assert before.levels == after.levels
    np.testing.assert_array_equal(before.ratio, after.ratio)
    for name, logits in before.logits.items():
        np.testing.assert_array_equal(logits, after.logits[name])
    assert {path.suffix for path in (tmp_path / "round-1").iterdir()} == {".json", ".txt"}


def test_encoders_and_trees_go_together(tmp_path: Path) -> None:
    settings = replace(BOTH, levels=("token", "sentence", "row", "feature"), epochs=2, width=8, folds=2)
    panel = fit_panel(ENCODING, KNOWN.evidence(300, 300, folds=2), settings, seed=0)
    opinion = panel.opinion(ROWS)
    assert list(opinion.levels.values()) == ["token", "sentence", "row", "feature", "feature"]
    assert opinion.logits["token"].shape == (60, ENCODING.longest)
    assert opinion.logits["sentence"].shape == (60, 3)
    assert_same_of_whole_rows(panel)
    panel.save(tmp_path / "panel")
    back = Panel.load(tmp_path / "panel", ENCODING).opinion(ROWS)
    np.testing.assert_allclose(back.ratio, opinion.ratio, rtol=1e-6, atol=1e-9)
    for name, logits in opinion.logits.items():
        np.testing.assert_allclose(back.logits[name], logits, rtol=1e-6, atol=1e-9)


def assert_same_of_whole_rows(panel: Panel) -> None:
    """To the last bit: what is said of whole rows is what of all places counts, a batch of one row included."""
    for rows in (ROWS, ROWS[7:8]):
        each, whole = panel.opinion(rows), panel.opinion(rows, whole=True)
        np.testing.assert_array_equal(whole.ratio, each.ratio)
        np.testing.assert_array_equal(panel.ratio(rows), each.ratio)
        assert whole.levels == each.levels
        for name, logits in each.logits.items():
            assert whole.logits[name].shape == (len(rows), 1)
            np.testing.assert_array_equal(whole.logits[name][:, 0], of_rows(each.levels[name], logits))


def test_trees_say_the_same_of_whole_rows_as_after_their_last_token() -> None:
    settings = replace(BOTH, levels=("token", "row", "feature"), relations=("difference", "share"), folds=2)
    assert_same_of_whole_rows(fit_panel(ENCODING, KNOWN.evidence(600, 1200, folds=2), settings, seed=0))


def test_what_is_stored_belongs_to_its_table(tmp_path: Path) -> None:
    fit_panel(ENCODING, KNOWN.evidence(300, 600), TREES, seed=0).save(tmp_path / "panel")
    others = (*COLUMNS[:2], replace(COLUMNS[2], name="loan"))
    with pytest.raises(StorageError, match=r"panel\.json is damaged .*align again"):
        Panel.load(tmp_path / "panel", Compact.of(others, ROWS))
    (tmp_path / "panel" / "panel.json").write_text('{"judges": []}', encoding="utf-8")
    with pytest.raises(StorageError, match=r"panel\.json is damaged \('stack'\)"):
        Panel.load(tmp_path / "panel", ENCODING)


def test_a_discriminator_of_another_kind_can_not_be_stored(tmp_path: Path) -> None:
    panel = stacked([looked_up("own", KNOWN.ratio, KNOWN.evidence(300, 600))])
    with pytest.raises(TypeError, match="Table is no kind of discriminator that a panel can save"):
        panel.save(tmp_path / "panel")
    assert not (tmp_path / "panel").exists()


def test_bad_settings_and_rows_are_refused_before_anything_is_fitted() -> None:
    with pytest.raises(ConfigError, match='the model writes no column "dept"; did you mean "debt"'):
        fit_panel(ENCODING, KNOWN.evidence(300, 600), replace(BOTH, groups=("a=dept",)), seed=0)
    with pytest.raises(DataError, match="2 real rows do not fill the folds"):
        fit_panel(ENCODING, replace(KNOWN.evidence(2, 2, folds=2), real_fold=np.array([1, 1])), TREES, seed=0)
