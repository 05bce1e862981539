"""Orders that every row keeps: which are found, and rows that keep them against exact distributions of tables whose
rows can all be listed."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from itertools import permutations, product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from preflab.cli.main import main
from preflab.config.row_model import RowModel
from preflab.config.table_study import CompareTable
from preflab.errors import ConfigError, StorageError
from preflab.runs import read_json, write_json
from preflab.studies.table_arms import Bench, draw
from preflab.tables.alignment.resample import resample_rows
from preflab.tables.column import Column, Numbers, Times
from preflab.tables.compact import Compact
from preflab.tables.conditions import codes_of, only
from preflab.tables.draw import AGAIN, draw_rows, impute_rows
from preflab.tables.encoding import Legal, legal_of
from preflab.tables.fitted import Fitted
from preflab.tables.judge.validity import Order
from preflab.tables.orders import Unkept, broken, find_orders, recorded, restored, told
from preflab.tables.synthesizer import Synthesizer, shortage
from ran import run
from row_ratios import Exact
from tables_by_hand import Row, chances, distance, gpt2, p_value, under

PAID, OWED, TASTE = 0, 1, 2
COLUMNS = (
    Column("paid", "integer", levels=("-9",), numbers=Numbers(10, 4, (0, 1, 2, 3))),
    Column("owed", "integer", levels=("",), missing=("",), numbers=Numbers(11, 3, (0, 1, 2))),
    Column("taste", "boolean", levels=("no", "yes")),
)
"""Paid is −9 or 10 to 13, owed is missing or 11 to 13."""
ROWS = list(product(*(codes_of(legal_of(column)) for column in COLUMNS)))
ORDERS = (Order("paid", "owed"),)
N, FEW = 1200, 400


def keeps(row: Row) -> bool:
    return row[PAID] < 0 or row[OWED] < 0 or 10 + row[PAID] <= 11 + row[OWED]


@cache
def writes(any_order: bool = False) -> tuple[Any, Compact]:
    encoding = Compact.of(COLUMNS, np.array(ROWS), any_order=any_order)
    return gpt2(encoding, spread=1.0), encoding


@cache
def rows_of(any_order: bool = False, given: tuple[tuple[int, int], ...] = ()) -> dict[Row, float]:
    return chances(*writes(any_order), dict(given))


def test_rows_are_the_models_given_that_orders_are_kept() -> None:
    drawn = draw_rows(*writes(), N, seed=0, orders=ORDERS)
    fails = sum(p for row, p in rows_of().items() if not keeps(row))
    assert 0.05 < fails < 0.5
    assert p_value(drawn.codes, under(rows_of(), keeps)) > 1e-3
    assert drawn.candidates == N + drawn.broken
    assert abs(drawn.broken / drawn.candidates - fails) < 4 * (fails / N) ** 0.5


def test_rows_that_break_nothing_stay_as_they_are_whatever_else_is_drawn() -> None:
    free = draw_rows(*writes(), 80, seed=7).codes
    kept = draw_rows(*writes(), 80, seed=7, orders=ORDERS).codes
    fine = np.array([keeps(tuple(row)) for row in free.tolist()])
    assert not fine.all()
    assert np.array_equal(free[fine], kept[fine])
    assert np.array_equal(draw_rows(*writes(), 50, seed=7, orders=ORDERS, batch_size=9).codes, kept[:50])


@pytest.mark.parametrize(
    ("legal", "meets", "weighed"),
    [
        ({PAID: only(2)}, lambda row: row[PAID] == 2, False),
        ({PAID: Legal(spans=((1, 2),))}, lambda row: row[PAID] in (1, 2), False),
        ({TASTE: only(-1)}, lambda row: row[TASTE] == -1, True),
        ({OWED: Legal(spans=((0, 1),))}, lambda row: row[OWED] in (0, 1), True),
    ],
)
def test_conditions_and_orders_hold_together(legal: dict[int, Legal], meets: Any, weighed: bool) -> None:
    drawn = draw_rows(*writes(), FEW, seed=4, legal=legal, orders=ORDERS)
    assert len(drawn.codes) == FEW
    assert (drawn.effective is not None) == weighed
    assert drawn.enough
    assert drawn.broken > 0
    assert p_value(drawn.codes, under(rows_of(), lambda row: meets(row) and keeps(row))) > 1e-3


def test_rows_under_conditions_and_orders_do_not_depend_on_the_batch() -> None:
    for legal in ({PAID: only(2)}, {TASTE: only(-1)}):
        one, other = (draw_rows(*writes(), 30, seed=5, legal=legal, orders=ORDERS, batch_size=size) for size in (7, 64))
        assert one.broken > 0
        assert np.array_equal(one.codes, other.codes)


def test_a_warning_of_too_few_candidates_says_how_many_broke_an_order() -> None:
    drawn = draw_rows(*writes(), FEW, seed=4, legal={OWED: only(0), PAID: Legal(spans=((0, 2),))}, orders=ORDERS)
    said = shortage(replace(drawn, enough=False, repeats=3))
    assert drawn.broken > 0
    assert said
    assert f" {drawn.candidates:,} candidates, {drawn.broken:,} of which break an order, have" in said


def test_a_few_rows_under_a_mask_that_is_exact_are_the_first_of_many() -> None:
    legal = {PAID: Legal(spans=((2, 3),))}
    few, many = (draw_rows(*writes(), n, seed=2, legal=legal, orders=ORDERS, batch_size=n).codes for n in (3, 90))
    assert np.array_equal(few, many[:3])


@pytest.mark.parametrize("n", [1, 30])
@pytest.mark.parametrize("any_order", [False, True])
def test_conditions_against_an_order_end_with_its_name(n: int, any_order: bool) -> None:
    """Given in the prompt where any order will do, and weighed where not."""
    legal = {PAID: only(3), OWED: only(0)}
    with pytest.raises(Unkept, match=r"under the conditions.*100% break paid ≤ owed; widen .*--orders ignore"):
        draw_rows(*writes(any_order), n, seed=0, legal=legal, orders=ORDERS)


def test_a_model_that_keeps_an_order_in_hardly_a_row_ends_before_long() -> None:
    columns = (
        Column("a", "integer", numbers=Numbers(10, 2, (0, 1))),
        Column("b", "integer", numbers=Numbers(1, 2, ())),
    )
    encoding = Compact.of(columns, np.array([[0, 0], [1, 1]]))
    orders = (Order("b", "a"), Order("a", "b"))
    with pytest.raises(Unkept, match=f"fewer than 1 in {AGAIN} keep .* 100% break a ≤ b; take rows as they come"):
        draw_rows(gpt2(encoding), encoding, 4, seed=0, orders=orders)
    assert len(draw_rows(gpt2(encoding), encoding, 4, seed=0, orders=orders[:1]).codes) == 4


SIDES = 12
SEVEN = tuple(Column(f"{end} {pair}", "integer", numbers=Numbers(0, SIDES, ())) for pair in range(7) for end in "ab")
ORDERS_OF_SEVEN = tuple(Order(f"a {pair}", f"b {pair}") for pair in range(7))


class Equals:
    """Discriminators that find all rows alike."""

    def ratio(self, codes: Any) -> Any:
        return np.zeros(len(codes))


@pytest.mark.parametrize("way", ["drawn again", "weighed", "resampled"])
def test_a_refusal_says_how_many_of_all_rows_break_the_worst_order(way: str) -> None:
    """Each order is kept in about half of the rows, all seven in about 1 of 120; none is broken in all."""
    encoding = Compact.of(SEVEN, np.array([[place] * len(SEVEN) for place in range(SIDES)]))
    model = gpt2(encoding)
    found = broken(SEVEN, draw_rows(model, encoding, 400, seed=0).codes, ORDERS_OF_SEVEN)
    assert 0 < (~found.any(1)).sum() < 4
    worst = found.mean(0).max()

    def refused() -> None:
        match way:
            case "drawn again":
                draw_rows(model, encoding, 400, seed=0, orders=ORDERS_OF_SEVEN)
            case "weighed":
                legal = {13: Legal(spans=((0, SIDES - 2),))}
                draw_rows(model, encoding, 400, seed=0, legal=legal, orders=ORDERS_OF_SEVEN)
            case _:
                resample_rows(model, encoding, Equals(), 400, seed=0, orders=ORDERS_OF_SEVEN)

    with pytest.raises(Unkept, match=r" \d+% break ") as error:
        refused()
    said = int(re.findall(r"(\d+)% break ", str(error.value))[0])
    assert abs(said / 100 - worst) < 0.15


def test_one_row_is_found_where_1_in_100_keeps_the_orders() -> None:
    """A few rows show no share: some at once are drawn again until 1,000 were."""
    encoding = Compact.of(SEVEN, np.array([[place] * len(SEVEN) for place in range(SIDES)]))
    for seed in range(4):
        drawn = draw_rows(gpt2(encoding), encoding, 1, seed=seed, orders=ORDERS_OF_SEVEN)
        assert not broken(SEVEN, drawn.codes, ORDERS_OF_SEVEN).any()
        assert drawn.candidates == 1 + drawn.broken > 1


def test_resampled_rows_keep_orders_too() -> None:
    model, encoding = writes()
    written = np.array([rows_of()[row] for row in ROWS])
    real = written * [3.0 if row[TASTE] == -1 else 1.0 for row in ROWS]
    judge = Exact(encoding, ROWS, real / real.sum(), written)
    drawn = resample_rows(model, encoding, judge, N, seed=1, clip_nats=20.0, orders=ORDERS)
    assert drawn.broken > 0
    assert p_value(drawn.codes, under(dict(zip(ROWS, real, strict=True)), keeps)) > 1e-3


ANYTHING = {place: legal_of(column) for place, column in enumerate(COLUMNS)}


def cells(row: Row, times: int, *unknown: int) -> tuple[Any, Any]:
    blank = np.zeros((times, 3), dtype=bool)
    blank[:, list(unknown)] = True
    return np.array([row] * times), blank


@pytest.mark.parametrize("candidates", [100, 3])
def test_missing_cells_are_drawn_given_the_others_and_the_orders(candidates: int) -> None:
    """By scores (100: there are fewer values), or as samples that are drawn again: the prompt gives all known cells."""
    codes, blank = cells((3, 1, -1), 400, OWED)
    model, encoding = writes(any_order=True)
    asked = impute_rows(
        model, encoding, codes, blank, seed=0, legal=ANYTHING, orders=ORDERS, candidates=candidates, batch_size=200
    )
    assert not asked.broken
    assert not asked.effective
    expected = under(rows_of(True, ((PAID, 3), (TASTE, -1))), keeps)
    assert len(expected) == 2
    assert distance(asked.codes, expected) < 0.08


def test_weighed_candidates_for_missing_cells_keep_orders() -> None:
    codes, blank = cells((3, 1, -1), 40, PAID, OWED)
    found = impute_rows(*writes(), codes, blank, seed=0, legal=ANYTHING, orders=ORDERS, candidates=15)
    assert len(found.effective) == 40
    assert not found.broken
    assert all(keeps(tuple(row)) for row in found.codes.tolist())
    assert distance(found.codes, under(rows_of(), lambda row: row[TASTE] == -1 and keeps(row))) < 0.25


@pytest.mark.parametrize("candidates", [100, 1])
@pytest.mark.parametrize("any_order", [False, True])
def test_known_cells_that_break_an_order_stay_and_the_others_are_drawn(candidates: int, any_order: bool) -> None:
    codes, blank = cells((3, 0, -1), 30, TASTE)
    model, encoding = writes(any_order)
    asked = [
        impute_rows(model, encoding, codes, blank, seed=0, legal=ANYTHING, orders=orders, candidates=candidates)
        for orders in (ORDERS, ())
    ]
    assert [one.broken for one in asked] == [30, 0]
    assert np.array_equal(asked[0].codes, asked[1].codes)


def test_an_order_that_known_cells_leave_no_way_to_keep_is_left_aside() -> None:
    """Of the three orders, a ≤ b can't be kept beside b ≤ c."""
    columns = tuple(Column(name, "integer", numbers=Numbers(0, 6, tuple(range(6)))) for name in "abc")
    encoding = Compact.of(columns, np.array([[place] * 3 for place in range(6)]))
    orders = (Order("a", "b"), Order("b", "c"))
    legal = {1: legal_of(columns[1])}
    blank = np.array([[False, True, False]])
    found = impute_rows(gpt2(encoding), encoding, np.array([[4, 0, 2]]), blank, seed=0, legal=legal, orders=orders)
    assert found.broken == 1
    assert found.codes[0, [0, 2]].tolist() == [4, 2]


@pytest.mark.parametrize("candidates", [1, 216])
def test_an_order_that_can_not_be_kept_takes_no_other_with_it(candidates: int) -> None:
    """No b is 6 or more; c and d can be in order all the same, drawn again (1) or all scored (216)."""
    columns = (scale("a", 7), *(scale(name, 6) for name in "bcd"))
    encoding = Compact.of(
        columns, np.array([[place + (place > 4)] + [place] * 3 for place in range(6)]), any_order=True
    )
    orders, blank = (Order("a", "b"), Order("c", "d")), np.array([[False, True, True, True]] * 30)
    found = impute_rows(
        gpt2(encoding), encoding, np.array([[6, 0, 0, 0]] * 30), blank,
        seed=0, legal={place: legal_of(columns[place]) for place in (1, 2, 3)}, orders=orders, candidates=candidates,
    )  # fmt: skip
    assert found.broken == 30
    assert (found.codes[:, 2] <= found.codes[:, 3]).all()


def scale(name: str, size: int = 2000, **kinds: Any) -> Column:
    return Column(name, "integer", numbers=Numbers(0, size, ()), **kinds)


def day(name: str, unit: Any = "day", low: int = 0) -> Column:
    return Column(name, "datetime", numbers=Times(low, 10**6, (), unit=unit, pattern="YYYY-MM-DD hh"))


def names(columns: Sequence[Column], codes: Any) -> list[str]:
    return [str(order) for order in find_orders(columns, np.asarray(codes))]


def test_an_order_needs_50_rows_that_would_break_it_were_they_shuffled() -> None:
    """Counted pair by pair."""
    for n, found in ((90, []), (120, ["a ≤ b"])):
        codes = np.array([[i, i + (i % 5 == 0)] for i in range(n)])
        shuffled = np.mean([a > b for a, b in product(codes[:, 0], codes[:, 1])])
        assert (n * shuffled >= 50) == bool(found)
        assert names((scale("a"), scale("b")), codes) == found


def test_one_row_that_breaks_it_is_enough_and_a_copy_is_no_order() -> None:
    codes = np.array([[i, i + 3] for i in range(500)])
    assert names((scale("a"), scale("b")), codes) == ["a ≤ b"]
    codes[499] = [9, 8]
    assert names((scale("a"), scale("b")), codes) == []
    same = np.array([[i, i + (i < 5)] for i in range(500)])
    assert names((scale("a"), scale("b")), same) == []


def test_codes_and_missing_cells_are_no_numbers() -> None:
    columns = (scale("a", levels=("", "-9")), scale("b", levels=("", "5000")))
    codes = np.array([[i, i + 3] for i in range(400)] + [[1900, -1], [1900, -2], [-2, 0]] * 50)
    assert names(columns, codes) == ["a ≤ b"]
    assert not broken(columns, codes, ORDERS_AB).any()
    assert names(columns, codes[400:]) == []
    assert broken(columns, np.array([[5, 4], [4, 4], [5, -2], [-1, 0]]), ORDERS_AB)[:, 0].tolist() == [
        True, False, False, False,
    ]  # fmt: skip


ORDERS_AB = (Order("a", "b"),)


@pytest.mark.parametrize(("low", "found"), [(2**53 - 2000, ["a ≤ b"]), (2**53, []), (-(2**53) - 1, [])])
def test_numbers_that_floats_can_not_tell_apart_are_in_no_order(low: int, found: list[str]) -> None:
    """Nanoseconds since 1970, say."""
    columns = tuple(Column(name, "integer", numbers=Numbers(low, 1000, ())) for name in "ab")
    assert names(columns, [[i, i + 1] for i in range(500)]) == found


def test_dates_are_compared_with_dates_whatever_their_units_and_with_no_number() -> None:
    """`sent` is in hours, and its scale begins ten days after that of `ordered`."""
    columns = (scale("pieces"), day("ordered"), day("sent", "hour", low=240))
    codes = np.array([[i, i + 5, 24 * (i - 5) + 1] for i in range(5, 400)])
    assert names(columns, codes) == ["ordered ≤ sent"]
    assert broken(columns, np.array([[0, 10, 0], [0, 11, 0]]), (Order("ordered", "sent"),))[:, 0].tolist() == [
        False, True,
    ]  # fmt: skip


def test_small_tables_keep_no_order_by_accident() -> None:
    """Of twelve columns that hang together each is above the next in 1 row of 300, and above no other: in few rows none
    shows it, so nothing is found; in many each does, and what is true of all rows is found."""
    rng = np.random.default_rng(0)
    columns = tuple(scale(str(place)) for place in range(12))

    def drawn(rows: int) -> Any:
        return rng.integers(100, 1500, rows)[:, None] + rng.integers(0, 30, (rows, 12)) + 27 * np.arange(12)

    accidents = 0
    for rows in (20, 60, 90):
        for _ in range(10):
            codes = drawn(rows)
            accidents += sum((codes[:, low] <= codes[:, low + 1]).all() for low in range(11))
            assert names(columns, codes) == []
    assert accidents > 200
    assert set(names(columns, drawn(4000))) == {
        f"{low} ≤ {high}" for low, high in product(range(12), repeat=2) if low + 1 < high
    }


def test_orders_are_told_without_those_that_follow() -> None:
    chain = [Order(low, high) for low, high in product("abcd", repeat=2) if low < high]
    assert told(chain) == "a ≤ b, b ≤ c, c ≤ d"
    assert told([Order("total", str(number)) for number in range(9)]).endswith("total ≤ 5 and 3 more")


def test_a_record_is_read_back_and_a_damaged_one_refused() -> None:
    columns = (*COLUMNS, day("sent"))
    assert restored(recorded(ORDERS), columns) == ORDERS
    assert restored([], columns) == ()
    for damaged in (
        None, "paid", {"paid": "owed"}, [["paid"]], [["paid", "paid"]], [["paid", "taste"]], [["paid", "gone"]],
        [["paid", "sent"]], [["paid", 3]], [["paid", "owed", "taste"]],
    ):  # fmt: skip
        with pytest.raises(ValueError, match="is no order of two columns"):
            restored(damaged, columns)


TINY = RowModel(layers=1, width=16, heads=2, epochs=3)


def bills() -> pd.DataFrame:
    draw = np.random.default_rng(0)
    owed = draw.integers(10, 60, 400)
    return pd.DataFrame(
        {"paid": (owed * draw.random(400)).astype(int), "owed": owed, "noise": draw.integers(0, 60, 400)}
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("orders") / "table"
    bills().to_csv(path.parent / "bills.csv", index=False)
    words = ["table", "fit", path.parent / "bills.csv", "--out", path, "--fit.layers", 1]
    main([str(word) for word in [*words, "--fit.width", 16, "--fit.heads", 2, "--fit.epochs", 3]])
    return path


def test_a_fit_records_orders_and_a_sample_keeps_them(
    folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert read_json(folder / "fit.json")["orders"] == [["paid", "owed"]]
    code, said, _ = run(capfd, "table", "sample", folder, "-n", 300, "--out", tmp_path / "kept.csv")
    assert code == 0
    kept, about = pd.read_csv(tmp_path / "kept.csv"), read_json(tmp_path / "kept.csv.json")
    assert (kept.paid <= kept.owed).all()
    assert about["broken"] > 0
    assert about["candidates"] == 300 + about["broken"]
    assert f"are kept: {about['broken']} of {about['candidates']} rows drawn broke one" in said
    code, said, _ = run(capfd, "table", "sample", folder, "-n", 300, "--out", tmp_path / "c.csv", "--orders", "ignore")
    free = pd.read_csv(tmp_path / "c.csv")
    assert code == 0
    assert "orders:" not in said
    assert not (free.paid <= free.owed).all()
    assert free[free.paid <= free.owed].equals(kept[free.paid <= free.owed])


def test_a_condition_that_leaves_no_row_is_one_sentence_and_leaves_nothing(
    folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    where = ["--where", "paid>=45", "--where", "owed<=20"]
    code, _, err = run(capfd, "table", "sample", folder, "-n", 20, "--out", tmp_path / "none.csv", *where)
    assert code == 2
    assert "100% break paid ≤ owed" in err
    assert not list(tmp_path.iterdir())


def test_a_fit_says_its_orders(capfd: pytest.CaptureFixture[str]) -> None:
    made = Synthesizer(settings=TINY).fit(bills())
    assert (
        "orders that every row keeps: paid ≤ owed; a sampled row that breaks one is drawn again"
        in capfd.readouterr().err
    )
    holes = bills().astype(float).iloc[:40]
    holes.loc[:29, "paid"] = np.nan
    holes.loc[30:, "noise"] = np.nan
    holes.loc[30:34, "paid"] = 59
    holes.loc[30:34, "owed"] = 12
    filled = made.impute(holes)
    assert (filled.paid <= filled.owed)[:30].all()
    assert (filled.paid[30:35] == 59).all()
    assert "5 rows break an order: their known cells leave no way" in capfd.readouterr().err
    with pytest.raises(ConfigError, match="orders = no: give one of keep, ignore"):
        made.sample(3, orders="no")  # type: ignore[arg-type]


def test_a_known_number_that_no_training_row_holds_binds_as_it_stands(capfd: pytest.CaptureFixture[str]) -> None:
    """The model takes 180 for 200, 70 for 100 and −1 for 0; what it writes must not be above 180, 70 and −1."""
    draw = np.random.default_rng(0)
    owed = draw.choice([0, 100, 200, 300], 400)
    table = pd.DataFrame({"paid": (owed * draw.random(400)).astype(int), "owed": owed})
    made = Synthesizer(settings=TINY).fit(table)
    known = np.repeat([180, 70, -1], 40)
    filled = made.impute(pd.DataFrame({"paid": np.full(120, np.nan), "owed": known}))
    assert (filled.owed == known).all()
    assert (filled.paid <= filled.owed)[:80].all()
    assert (filled.paid[80:] >= 0).all()
    assert "; 40 rows break an order: their known cells leave no way" in capfd.readouterr().err


def test_saved_orders_are_loaded_none_are_none_and_damaged_ones_refused(folder: Path, tmp_path: Path) -> None:
    Synthesizer.load(folder).save(tmp_path / "copy")
    copy = tmp_path / "copy"
    assert Fitted.load(copy).orders == ORDERS
    report = read_json(copy / "fit.json")
    write_json(copy / "fit.json", {name: value for name, value in report.items() if name != "orders"})
    assert Fitted.load(copy).orders == ()
    assert len(Synthesizer.load(copy).sample(5)) == 5
    write_json(copy / "fit.json", report | {"orders": [["paid", "gone"]]})
    with pytest.raises(StorageError, match=r"fit.json is damaged \(orders: .*gone.*\); fit again"):
        Fitted.load(copy)


@pytest.mark.parametrize("arm", ["reference", "resampled"])
def test_a_study_judges_rows_as_users_get_them_and_a_weak_models_as_they_come(
    folder: Path, arm: str, capfd: pytest.CaptureFixture[str]
) -> None:
    config = CompareTable(data=folder.parent / "bills.csv", out=folder.parent, arms=("resampled", "dpo"))
    bench = Bench(folder.parent, config, 0)
    vars(bench)["panel"] = Equals()
    fitted = bench.synthesizer.fitted
    drawn = [draw(bench, arm, 0)]
    assert "judged as they come" not in capfd.readouterr().err
    fitted.orders = tuple(Order(*pair) for pair in permutations(("paid", "owed", "noise"), 2))
    drawn.append(draw(bench, arm, 0))
    rows = [one.text.astype(int) for one in drawn]
    assert [one.orders for one in drawn] == ["keep", "ignore"]
    assert f"{arm}, seed 0: of the rows that the model writes fewer than 1 in 100 keep" in capfd.readouterr().err
    assert [bool((some.paid <= some.owed).all()) for some in rows] == [True, False]
    assert [len(some) for some in rows] == [320, 320]
