"""Alignment from outside: what a run folder holds after it, what it goes on with, what it refuses."""

from __future__ import annotations

import os
import shutil
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from safetensors.torch import load_file

from preflab.cli.main import main
from preflab.config.alignment import Alignment, Discriminators
from preflab.config.online import GRPO, PPO, RLOO, RolloutBatch
from preflab.config.online_preference import OnlineDPO, PairBatch
from preflab.config.row_model import RowModel
from preflab.config.training import Optimizer
from preflab.errors import ConfigError, Interrupted, StorageError
from preflab.runs import read_json, read_lines
from preflab.seeds import derive
from preflab.tables.alignment import choose
from preflab.tables.alignment.align import align, rows_of
from preflab.tables.alignment.choose import measure, row_logprobs, told_apart
from preflab.tables.alignment.rounds import Rows, discriminators_of
from preflab.tables.draw import draw_rows
from preflab.tables.fitted import Fitted, load_model
from preflab.tables.synthesizer import Synthesizer

RATE = Optimizer(learning_rate=3e-3, warmup_steps=1)
BATCH = RolloutBatch(size=256, mini=256, micro=256)
QUICK = Alignment(
    rounds=1,
    judged=100,
    discriminators=Discriminators(folds=2, trees=40, written=2.0),
    ppo=PPO(updates=4, batch=BATCH, epochs=1, kl_coefficient=1.0, optimizer=RATE, value_trunk="shared", evaluations=2),
    grpo=GRPO(updates=4, batch=BATCH, epochs=1, kl_coefficient=1.0, optimizer=RATE, evaluations=2),
    rloo=RLOO(updates=4, batch=BATCH, epochs=1, kl_coefficient=1.0, optimizer=RATE, evaluations=2),
    dpo=OnlineDPO(updates=2, batch=PairBatch(size=64, mini=64, micro=64), optimizer=RATE, evaluations=1),
)


def table(rows: int = 600) -> pd.DataFrame:
    """Three columns that depend on each other: a model that learned little gets that wrong."""
    draw = np.random.default_rng(0)
    kind = draw.integers(0, 3, rows)
    size = 10 * kind + draw.integers(0, 4, rows)
    return pd.DataFrame(
        {"kind": np.array(["a", "b", "c"])[kind], "size": size, "big": np.where(size > 12, "yes", "no")}
    )


@pytest.fixture(scope="module", autouse=True)
def few_trees() -> Iterator[None]:
    """Checkpoints are judged once, by forests of 20 trees: which of them is kept is not what is shown."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(choose, "TREES", 20)
        patch.setattr(choose, "REPEATS", 1)
        yield


@pytest.fixture(scope="module")
def weak(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fit that was stopped early."""
    folder = tmp_path_factory.mktemp("align")
    table().to_csv(folder / "data.csv", index=False)
    fit = ["--fit.layers", "1", "--fit.width", "16", "--fit.heads", "2", "--fit.epochs", "3"]
    main(["table", "fit", str(folder / "data.csv"), "--target", "kind", "--out", str(folder / "run"), *fit])
    return folder / "run"


@pytest.fixture
def run(weak: Path, tmp_path: Path) -> Path:
    """A copy of it, to work in."""
    return Path(shutil.copytree(weak, tmp_path / "run"))


@pytest.fixture(scope="module")
def aligned(weak: Path) -> Path:
    """It, aligned by PPO for two rounds, and by a chain; not to be changed."""
    folder = Path(shutil.copytree(weak, weak.parent / "aligned"))
    align(folder, replace(QUICK, rounds=2), method="ppo", seed=3)
    align(folder, QUICK, method="dpo+rloo", seed=3)
    return folder


def test_a_weak_model_is_told_from_the_table_less_after_it(run: Path) -> None:
    longer = replace(QUICK, judged=300, ppo=replace(QUICK.ppo, updates=24, evaluations=1))
    said = align(run, longer, method="ppo", seed=0)
    first, last = said["points"]
    assert first["told_apart_auc"] > 0.6
    assert last["told_apart_auc"] < first["told_apart_auc"] - 0.05
    assert 0 < last["kl_nats"] < 5
    assert said["chosen"] == {"round": 1, "step": 24}
    rewards = [line["reward"] for line in read_lines(run / "aligned" / "ppo" / "metrics.jsonl")]
    assert rewards[-1] > rewards[0]


def test_the_folder_holds_what_the_documentation_says(aligned: Path) -> None:
    folder = aligned / "aligned" / "ppo"
    said = read_json(folder / "align.json")
    names = {path.name for path in folder.iterdir()}
    assert {"config.yaml", "environment.json", "metrics.jsonl", "align.json", "discriminators", "model"} <= names
    assert [(point["round"], point["step"]) for point in said["points"]] == [(0, 0), (1, 2), (1, 4), (2, 2), (2, 4)]
    assert [one["round"] for one in said["rounds"]] == [1, 2]
    assert said["cost"]["queries"] == said["points"][-1]["queries"] == 2 * 4 * 256
    lines = read_lines(folder / "metrics.jsonl")
    assert [line["step"] for line in lines] == list(range(1, 9))
    assert [line["round"] for line in lines] == [1] * 4 + [2] * 4
    best = min(said["points"], key=lambda point: max(0.5, point["told_apart_auc"]))
    assert said["chosen"] == {"round": best["round"], "step": best["step"]}
    assert not said["collapsed"]


def test_the_chosen_policy_is_the_one_that_was_measured(aligned: Path) -> None:
    fitted, said = Fitted.load(aligned), read_json(aligned / "aligned" / "ppo" / "align.json")
    chosen = next(point for point in said["points"] if {name: point[name] for name in said["chosen"]} == said["chosen"])
    validation = rows_of(fitted).validation
    assert -row_logprobs(fitted.model("ppo"), fitted.encoding, validation).mean() == pytest.approx(chosen["nats"])


def test_the_second_round_is_measured_from_the_first_ones_policy_and_from_the_reference(aligned: Path) -> None:
    folder = aligned / "aligned" / "ppo"
    lines = read_lines(folder / "metrics.jsonl")
    assert lines[4]["round"] == 2
    assert abs(lines[4]["kl_nats"]) < 1e-4  # to the policy that the round began with
    assert read_json(folder / "align.json")["points"][-1]["kl_nats"] > 1e-3


def test_each_rounds_negatives_are_of_the_policy_that_it_begins_with(aligned: Path) -> None:
    """Discriminators between the table and some model's rows are the same where they are fitted again to those rows."""
    fitted = Fitted.load(aligned)
    rows, folder = rows_of(fitted), aligned / "aligned" / "ppo"
    begins = {1: fitted.model("reference"), 2: load_model(folder / "rounds" / "round-1" / "last", fitted.encoding)}
    for number, policy in begins.items():
        of_round = folder / "discriminators" / f"round-{number}"
        again = folder.parent.parent / f"again-{number}"
        seed = derive(3, "discriminators", number)
        discriminators_of(policy, fitted.encoding, rows, QUICK.discriminators, again, seed=seed)
        assert read_json(again / "panel.json") == read_json(of_round / "panel.json")


def test_a_chain_goes_on_from_its_first_stage(aligned: Path) -> None:
    assert Fitted.load(aligned).policies() == ["reference", "dpo", "dpo+rloo", "ppo"]
    first = read_json(aligned / "aligned" / "dpo+rloo" / "align.json")["points"][0]
    of_dpo = read_json(aligned / "aligned" / "dpo" / "align.json")
    chosen = [
        point for point in of_dpo["points"] if (point["round"], point["step"]) == tuple(of_dpo["chosen"].values())
    ]
    assert first["told_apart_auc"] == chosen[0]["told_apart_auc"]
    assert first["kl_nats"] == pytest.approx(chosen[0]["kl_nats"], abs=1e-6)
    begins = read_lines(aligned / "aligned" / "dpo+rloo" / "metrics.jsonl")[0]
    assert abs(begins["kl_nats"]) < 1e-4  # paid to where it began: the policy that wrote its discriminators' rows


def test_what_is_there_is_not_made_again_and_other_settings_are_refused(aligned: Path) -> None:
    said = read_json(aligned / "aligned" / "dpo" / "align.json")
    assert align(aligned, QUICK, method="dpo", seed=3) == said
    with pytest.raises(StorageError, match="rounds"):
        align(aligned, replace(QUICK, rounds=2), method="dpo", seed=3)


def test_a_run_that_was_cut_off_between_rounds_ends_as_one_that_was_not(aligned: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(aligned, tmp_path / "other"))
    folder, whole = other / "aligned" / "ppo", aligned / "aligned" / "ppo"
    (folder / "align.json").unlink()
    shutil.rmtree(folder / "rounds" / "round-2")  # as if it had been killed while it wrote a point of the second round
    (folder / "discriminators" / "round-2" / "told.json").unlink()
    text = (folder / "points.jsonl").read_text().splitlines(keepends=True)
    (folder / "points.jsonl").write_text("".join(text[:3]) + text[3][:40])
    align(other, replace(QUICK, rounds=2), method="ppo", seed=3)
    _assert_same(folder, whole, rounds=2)


@pytest.mark.parametrize("method", ["ppo", "grpo", "rloo", "dpo"])
def test_a_run_that_was_stopped_within_a_round_ends_as_one_that_was_not(
    weak: Path, tmp_path: Path, method: str
) -> None:
    short = {name: replace(getattr(QUICK, name), updates=3, evaluations=1) for name in ("ppo", "grpo", "rloo", "dpo")}
    settings = replace(QUICK, discriminators=replace(QUICK.discriminators, trees=10), **short)
    whole, stopped = (Path(shutil.copytree(weak, tmp_path / name)) for name in ("whole", "stopped"))
    align(whole, settings, method=method, seed=3)
    folder = stopped / "aligned" / method
    with pytest.raises(Interrupted), _sigterm_after_a_line(folder / "rounds" / "round-1" / "metrics.jsonl"):
        align(stopped, settings, method=method, seed=3)
    assert len(read_lines(folder / "rounds" / "round-1" / "metrics.jsonl")) < 3
    assert Fitted.load(stopped).latest == "reference"
    align(stopped, settings, method=method, seed=3)
    _assert_same(folder, whole / "aligned" / method, rounds=1)


@contextmanager
def _sigterm_after_a_line(path: Path) -> Iterator[None]:
    """Ask this process to stop as soon as the file has a line."""
    before = signal.signal(signal.SIGTERM, lambda number, frame: None)  # where training is over before it
    done = threading.Event()

    def watch() -> None:
        while not done.wait(0.001):
            if path.exists() and path.stat().st_size:
                os.kill(os.getpid(), signal.SIGTERM)
                return

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        signal.signal(signal.SIGTERM, before)


def _assert_same(one: Path, other: Path, *, rounds: int) -> None:
    """All that doesn't measure time."""
    for name in ("model", *(f"rounds/round-{number}/last" for number in range(1, rounds + 1))):
        first, second = (load_file(folder / name / "model.safetensors") for folder in (one, other))
        assert first.keys() == second.keys()
        assert all(bool((first[key] == second[key]).all()) for key in first), name
    timeless = [
        [{name: value for name, value in point.items() if "seconds" not in name} for point in read_json(path)["points"]]
        for path in (one / "align.json", other / "align.json")
    ]
    assert timeless[0] == timeless[1]
    assert read_json(one / "align.json")["chosen"] == read_json(other / "align.json")["chosen"]


@pytest.mark.parametrize("method", ["ppo", "dpo"])
def test_a_reward_that_pays_all_rows_alike_leaves_the_policy_as_it_is(method: str) -> None:
    """The model writes the values of training and validation rows; of nearly distinct ones those that training rows
    hold are then missing among the validation rows, which look more like written ones: an AUC far below 1/2."""
    draw = np.random.default_rng(0)
    distinct = pd.DataFrame(
        {"kind": draw.integers(0, 3, 400), "amount": draw.permutation(10**6)[:400], "x": draw.integers(0, 5, 400)}
    )
    synthesizer = Synthesizer(settings=RowModel(layers=1, width=16, heads=2, epochs=3)).fit(distinct)
    synthesizer.align(method, QUICK)
    said = synthesizer.fitted.said(method)
    row = said["rounds"][0]["discriminators"][0]
    assert row["auc"] < 0.45
    assert row["slope"] < 0
    assert not said["rounds"][0]["trained"]
    assert said["chosen"] == {"round": 0, "step": 0}
    assert any("there was nothing to learn" in warning for warning in said["warnings"])
    states = (synthesizer.fitted.model(policy).state_dict() for policy in ("reference", method))
    assert all(bool((one == other).all()) for one, other in zip(*(state.values() for state in states), strict=True))


def test_rewards_nearer_than_the_gap_of_pairs_are_no_fault(run: Path) -> None:
    said = align(run, replace(QUICK, clip_nats=0.004), method="dpo", seed=0)
    assert not said["rounds"][0]["trained"]
    assert (run / "aligned" / "dpo" / "model").is_dir()


def test_few_distinct_rows_are_no_collapse_and_a_policy_that_writes_one_is(run: Path) -> None:
    """A table of three values has no more distinct rows, however many are drawn."""
    letters = pd.DataFrame({"letter": np.array(list("abc"))[np.random.default_rng(0).integers(0, 3, 200)]})
    synthesizer = Synthesizer(settings=RowModel(layers=1, width=16, heads=2, epochs=1)).fit(letters)
    brief = replace(QUICK, grpo=replace(QUICK.grpo, updates=1, evaluations=1))
    assert not synthesizer.align("grpo", brief).fitted.said("grpo")["collapsed"]
    greedy = replace(QUICK.rloo, updates=12, evaluations=1, kl_coefficient=0.0, optimizer=Optimizer(learning_rate=0.05))
    said = align(run, replace(QUICK, rloo=greedy), method="rloo", seed=0)
    assert said["points"][-1]["distinct_share"] < 0.5 * said["points"][0]["distinct_share"]
    assert said["collapsed"]
    assert said["chosen"] == {"round": 0, "step": 0}


@pytest.mark.parametrize("suffix", [".tsv", ".parquet"])
def test_other_files_align_as_well(tmp_path: Path, suffix: str) -> None:
    path, frame = tmp_path / f"data{suffix}", table(300)
    frame.to_parquet(path) if suffix == ".parquet" else frame.to_csv(path, index=False, sep="\t")
    fit = ["--fit.layers", "1", "--fit.width", "16", "--fit.heads", "2", "--fit.epochs", "1"]
    main(["table", "fit", str(path), "--target", "kind", "--out", str(tmp_path / "run"), *fit])
    rows = rows_of(Fitted.load(tmp_path / "run"))
    assert len(rows.train) + len(rows.validation) == 240
    said = align(
        tmp_path / "run", replace(QUICK, grpo=replace(QUICK.grpo, updates=1, evaluations=1)), method="grpo", seed=0
    )
    assert len(said["points"]) == 2


def test_validation_rows_are_those_of_the_fit_and_no_others_are_learned_from(weak: Path) -> None:
    fitted = Fitted.load(weak)
    rows = rows_of(fitted)
    assert (len(rows.train), len(rows.validation)) == (fitted.report["rows"], fitted.report["validation_rows"])


def test_wrong_names_and_missing_rows_end_with_a_sentence(run: Path) -> None:
    with pytest.raises(ConfigError, match='no method "pppo" for tables; did you mean "ppo"'):
        align(run, QUICK, method="pppo", seed=0)
    with pytest.raises(ConfigError, match="no policy"):
        Fitted.load(run).model("nothing")
    (run / "train.csv").unlink()
    with pytest.raises(ConfigError, match=r"no train\.csv"):
        align(run, QUICK, method="ppo", seed=0)


def test_too_few_rows_end_with_a_sentence_and_make_no_folder(weak: Path) -> None:
    rows = rows_of(Fitted.load(weak))
    with pytest.raises(ConfigError, match=r"432 training and 4 validation rows are too few .* needs 5 of each"):
        align(weak, QUICK, method="ppo", seed=0, rows=Rows(rows.train, rows.validation[:4]))
    assert not (weak / "aligned").exists()


def test_settings_without_effect_are_refused(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["table", "align", str(run), "--method", "ppo", "--rloo.updates", "3"])
    assert "rloo has no effect with method = ppo" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--clip-nats", "2", "--reward", "weighted"], "clip_nats has no effect"),
        (["--no-dense"], "ppo.discount = 0 pays a token what it changes itself, which takes"),
        (["--discriminators.levels", "row"], "ppo.discount = 0 pays a token what it changes itself, which takes"),
        (
            ["--no-dense", "--discriminators.levels", "row", "--ppo.discount", "1"],
            "dense has no effect where no discriminator is of the token level",
        ),
        (
            ["--method", "grpo", "--discriminators.levels", "row", "--discriminators.epochs", "3"],
            "epochs has no effect with kind = trees and levels = row",
        ),
        (["--discriminators.kind", "neural", "--discriminators.trees", "9"], "trees has no effect"),
        (["--discriminators.groups", "a=size"], "groups has no effect"),
        (["--method", "grpo", "--discriminators.levels", "row", "row"], "levels: row stands twice; name each once"),
        (
            ["--method", "grpo", "--discriminators.levels", "feature", "--discriminators.groups", "a=size,bigg"],
            'the model writes no column "bigg"; did you mean "big"',
        ),
    ],
)
def test_what_would_do_nothing_or_cannot_be_is_refused_before_a_folder_is_made(
    weak: Path, flags: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(["table", "align", str(weak), *flags])
    assert said in " ".join(capsys.readouterr().err.split())
    assert not (weak / "aligned").exists()


def test_rows_are_sampled_from_what_was_aligned_last(
    aligned: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "rows.csv"
    main(["table", "sample", str(aligned), "-n", "5", "--out", str(out)])
    assert "5 rows by dpo+rloo" in capsys.readouterr().out
    assert read_json(tmp_path / "rows.csv.json")["policy"] == "dpo+rloo"
    by_hand = tmp_path / "other.csv"
    main(["table", "sample", str(aligned), "-n", "5", "--out", str(by_hand), "--policy", "dpo+rloo"])
    assert by_hand.read_text() == out.read_text()


def test_an_alignment_that_was_cut_off_writes_no_rows(aligned: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(aligned, tmp_path / "run"))
    (folder / "aligned" / "dpo+rloo" / "align.json").unlink()
    assert Fitted.load(folder).latest == "dpo"
    with pytest.raises(ConfigError, match=r"dpo\+rloo is not finished; run its `preflab table align` command again"):
        Synthesizer.load(folder).sample(5, policy="dpo+rloo")


def test_the_library_aligns_what_it_has_just_fitted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny = RowModel(layers=1, width=16, heads=2, epochs=3)
    synthesizer = Synthesizer(settings=tiny).fit(table(300), target="kind")
    before = synthesizer.sample(50, seed=1)
    few = replace(
        QUICK,
        discriminators=replace(QUICK.discriminators, trees=5),
        ppo=replace(QUICK.ppo, updates=1, evaluations=1),
        rloo=replace(QUICK.rloo, updates=1, evaluations=1),
    )
    synthesizer.align("ppo", few).align("dpo+rloo", few)
    assert synthesizer.fitted.policies() == ["reference", "dpo", "dpo+rloo", "ppo"]
    assert synthesizer.fitted.latest == "dpo+rloo"
    pd.testing.assert_frame_equal(synthesizer.sample(50, seed=1, policy="reference"), before)
    after = synthesizer.sample(50, seed=1, policy="ppo")
    synthesizer.save(tmp_path / "saved")
    loaded = Synthesizer.load(tmp_path / "saved")
    assert loaded.fitted.latest == "dpo+rloo"
    pd.testing.assert_frame_equal(loaded.sample(50, seed=1, policy="ppo"), after)
    pd.testing.assert_frame_equal(loaded.sample(50, seed=1), synthesizer.sample(50, seed=1))
    warned = " ".join(capsys.readouterr().err.split())
    for policy in synthesizer.fitted.policies()[1:]:
        for warning in synthesizer.fitted.said(policy)["warnings"]:
            assert f"{policy}: {warning}" in warned
    with pytest.raises(ConfigError, match=r"no train\.csv"):
        loaded.align("ppo", few)


def test_figures_of_a_checkpoint_are_what_they_are_called(weak: Path) -> None:
    fitted = Fitted.load(weak)
    rows, model = rows_of(fitted), fitted.model("reference")
    found = measure(model, model, fitted.encoding, rows.validation, count=300, seed=0)
    assert found.kl_nats == 0
    assert found.nats == pytest.approx(fitted.report["validation_nats"], abs=0.5)  # which counts all digits
    drawn = draw_rows(model, fitted.encoding, 2000, seed=1).codes
    assert -row_logprobs(model, fitted.encoding, drawn[:1000]).mean() > 0
    assert told_apart(drawn[:300], drawn[300:1500], seed=0) == pytest.approx(0.5, abs=0.06)
    assert told_apart(rows.train[:300], np.zeros_like(drawn[:600]), seed=0) > 0.9
