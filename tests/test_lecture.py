"""The lecture's script and its gotchas do what its page says, on a tiny model; its tables are those of its figures."""

from __future__ import annotations

import importlib.util
import json
import math
import runpy
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from preflab.config.commands import Base, Compare, Lengths, Prompts
from preflab.config.load import to_yaml
from preflab.data.records import PreferencePair
from preflab.data.reviews import generate_reviews
from preflab.data.sources import write_pairs
from preflab.runs import write_text
from tiny import save_tiny

LECTURE = Path(__file__).parent.parent / "recipes/dpo-lecture"
PAIRS = 24


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `preflab compare` leaves, with models that learnt nothing and pairs of reviews."""
    folder = tmp_path_factory.mktemp("lecture") / "runs/lecture"
    texts = generate_reviews(2 * PAIRS, seed=0)
    for seed, name in enumerate(("base", "reference")):
        save_tiny(folder / "stages" / name / "model", seed=seed)
    pairs = [
        PreferencePair("The film", f" {chosen}", f" {rejected}", "x:1")
        for chosen, rejected in zip(texts[::2], texts[1::2], strict=True)
    ]
    (folder / "stages/seed-0/pairs").mkdir(parents=True)
    write_pairs(folder / "stages/seed-0/pairs/train.jsonl", pairs)
    config = Compare(
        arms=("reference",),
        lengths=Lengths(prompt_tokens=16, response_tokens=40),
        prompts=Prompts(train=8, validation=4, test=4),
        base=Base(texts=40),
    )
    write_text(folder / "study.yaml", to_yaml(config))
    return folder


@pytest.fixture(scope="module")
def gotchas() -> Any:
    return loaded("gotchas")


def loaded(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"lecture_{name}", LECTURE / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def bench(study: Path, gotchas: Any) -> Any:
    return gotchas.Bench.of(study)


def curve(bench: Any, gotchas: Any, **how: Any) -> list[dict[str, float]]:
    return gotchas.train(bench, gotchas.Way(**how), 0)[1]  # type: ignore[no-any-return]


def test_the_script_is_short_and_its_loss_begins_at_ln_2_and_falls(
    study: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert len((LECTURE / "dpo_lecture.py").read_text(encoding="utf-8").splitlines()) <= 40
    monkeypatch.chdir(study.parent.parent)
    monkeypatch.setenv("MPLBACKEND", "agg")
    curves = runpy.run_path(str(LECTURE / "dpo_lecture.py"))["curves"]
    assert curves[0][0] == pytest.approx(math.log(2), abs=1e-5)
    assert all(len(figures) == 5 for figures in curves)


def test_the_notebook_is_the_script() -> None:
    cells = json.loads((LECTURE / "dpo-lecture.ipynb").read_text(encoding="utf-8"))["cells"]
    text = "\n".join("".join(cell["source"]) for cell in cells)
    script = (LECTURE / "dpo_lecture.py").read_text(encoding="utf-8").replace('"""', "").replace("# %% ", "")
    assert [line for line in text.splitlines() if line] == [line for line in script.splitlines() if line]
    assert any("image/png" in output.get("data", {}) for cell in cells for output in cell.get("outputs", []))


def test_every_right_way_begins_at_ln_2(bench: Any, gotchas: Any) -> None:
    for way in (gotchas.RIGHT, gotchas.MEANS, replace(gotchas.RIGHT, beta=10.0)):
        assert gotchas.train(bench, way, 0)[1][0]["loss"] == pytest.approx(math.log(2), abs=1e-5)


def test_another_reference_does_not_begin_there(bench: Any, gotchas: Any) -> None:
    assert abs(curve(bench, gotchas, reference="base", beta=1.0)[0]["loss"] - math.log(2)) > 1e-3


def test_prompt_tokens_cancel_in_sums_and_not_in_means(bench: Any, gotchas: Any) -> None:
    for way, alike in ((gotchas.RIGHT, True), (replace(gotchas.MEANS, beta=10.0), False)):
        _, right = gotchas.train(bench, way, 0)
        _, wrong = gotchas.train(bench, replace(way, prompt_in_mask=True), 0)
        gap = max(abs(one["margin"] - other["margin"]) for one, other in zip(right, wrong, strict=True))
        assert (gap < 1e-4) is alike, gap


def test_a_reference_that_is_the_policy_leaves_the_loss_at_ln_2(bench: Any, gotchas: Any) -> None:
    """Without its gradient the policy moves all the same; with it only rounding and weight decay do."""
    start = bench.model("sft").model.state_dict()
    for reference, moves in (("policy", True), ("policy with gradient", False)):
        policy, steps = gotchas.train(bench, gotchas.Way(reference=reference), 0)
        assert all(step["loss"] == pytest.approx(math.log(2), abs=1e-6) for step in steps)
        shift = max(float((value - start[name]).abs().max()) for name, value in policy.model.state_dict().items())
        assert (shift > 1e-4) is moves, shift


def test_the_page_shows_the_figures_that_were_measured(gotchas: Any) -> None:
    found = json.loads((LECTURE / "gotchas.json").read_text(encoding="utf-8"))
    page = (LECTURE / "README.md").read_text(encoding="utf-8")
    assert set(found["gotchas"]) == {gotcha.__name__ for gotcha in gotchas.GOTCHAS}
    for one in found["gotchas"].values():
        assert gotchas.table(one) in page
    assert gotchas.with_tables(page, found) == page


def test_a_way_is_trained_once_and_its_figures_stand_beside_the_right_ones(
    bench: Any, gotchas: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gotchas, "LAST", 1)
    found = gotchas.prompt_in_mask(bench)
    assert list(found) == ["right", "prompt tokens counted"]
    gap = found["prompt tokens counted"]["kl_nats"]["mean"] - found["right"]["kl_nats"]["mean"]
    assert found["prompt tokens counted"]["kl_nats_less_right"]["mean"] == pytest.approx(gap, abs=2e-4)
    assert len(bench.done) == 2
