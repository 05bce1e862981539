"""Studies of a table that are asked for more: what is used again, what is added, what is refused; also after a kill."""

from __future__ import annotations

import os
import shutil
import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from preflab.config.alignment import METHODS, Alignment
from preflab.config.table_study import CompareTable
from preflab.errors import StorageError
from preflab.report.table_study import write_table_study
from preflab.runs import JSON, read_json
from preflab.studies.table import compare_table
from test_table_study import settings, small_judges, write  # noqa: F401  (a fixture)

SECONDS = ("cpu_seconds", "rows_per_cpu_second")
ALL = ("resampled", "dpo", "ppo", "dpo+ppo")


def apart(config: CompareTable, *, killed_at: str | None = None) -> None:
    """Run the study in a process of its own, whose lock goes with it; it is killed before it writes the file named."""
    folder, _, name = (killed_at or "").rpartition("/")

    def watch(event: str, args: tuple[object, ...]) -> None:
        if event == "open" and str(args[0]).rpartition("/.")[0].endswith(f"/{folder}") and f"/.{name}." in str(args[0]):
            os.kill(os.getpid(), signal.SIGKILL)

    child = os.fork()
    if child == 0:
        if killed_at:
            sys.addaudithook(watch)
        try:
            compare_table(config)
            os._exit(0)
        finally:
            os._exit(1)
    _, status = os.waitpid(child, 0)
    assert status == (signal.SIGKILL if killed_at else 0)


def written(study: Path) -> dict[str, bytes]:
    """What each file of the seeds holds, the seconds that it took included."""
    files = [path for path in (study / "seeds").rglob("*") if path.is_file()]
    return {str(path.relative_to(study)): path.read_bytes() for path in files}


def judged(study: Path, seed: int = 0) -> dict[str, JSON]:
    """All that was judged, without what a clock said."""
    found = {path.stem: read_json(path) for path in study.glob(f"seeds/seed-{seed}/judged/*.json")}
    return {arm: {name: one[name] for name in one if name not in SECONDS} for arm, one in found.items()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With a table, and the study of all arms made at once."""
    folder = tmp_path_factory.mktemp("studies")
    write(folder)
    compare_table(asked(folder, arms=("ppo", "resampled", "dpo", "dpo+ppo"), out=folder / "at-once"))
    return folder


def asked(folder: Path, **changes: Any) -> CompareTable:
    """A study; settings of methods that are no arm are refused, so they are left as they are."""
    config = settings(folder, **{"redraws": 1, "arms": ("reference", "dpo"), "out": folder / "grown"} | changes)
    idle = {method for method in METHODS if not any(method in arm.split("+") for arm in config.arms)}
    return replace(config, align=replace(config.align, **{name: getattr(Alignment(), name) for name in idle}))


@pytest.fixture(scope="module")
def grown(folder: Path) -> Path:
    """One arm, then all, with settings of PPO that nothing was made with; killed while it learns and is judged."""
    study = folder / "grown"
    apart(asked(folder))
    kept = written(study)
    apart(asked(folder, arms=ALL), killed_at="ppo/align.json")
    assert read_json(study / "study.json")["complete"] is False
    write_table_study(study)  # of what there is
    apart(asked(folder, arms=ALL), killed_at="judged/resampled.json")
    compare_table(asked(folder, arms=ALL))
    assert kept.items() <= written(study).items()
    return study


def test_a_study_that_grew_is_the_study_made_at_once(folder: Path, grown: Path) -> None:
    whole = judged(folder / "at-once")
    assert set(whole) == {"reference", *ALL, "real"}
    assert judged(grown) == whole
    said = read_json(grown / "study.json")
    assert said["complete"] is True
    assert [arm["name"] for arm in said["arms"]] == ["reference", *ALL]


def test_the_same_command_again_changes_nothing(folder: Path, grown: Path) -> None:
    before = written(grown)
    compare_table(asked(folder, arms=ALL, jobs=2))
    assert written(grown) == before


REFUSED: list[tuple[Callable[[CompareTable], CompareTable], str]] = [
    (
        lambda it: replace(it, arms=("resampled", "dpo", "dpo+ppo")),
        r"holds the arm ppo, which is not asked for; name it too, or delete \S+/ppo.json and \S+/aligned/ppo$",
    ),
    (lambda it: replace(it, arms=ALL[1:]), r"holds the arm resampled, .*, or delete \S+resampled.json$"),
    # What dpo+ppo begins with is there all the same.
    (lambda it: replace(it, arms=("resampled", "ppo", "dpo+ppo")), r"holds the arm dpo, .*, or delete \S+dpo.json$"),
    (lambda it: replace(it, redraws=2), "redraws is 1 there, 2 now, which all arms depend on; choose another --out"),
    (lambda it: replace(it, seed=1), "seed is 0 there, 1 now"),
    (lambda it: replace(it, seeds=2, holdout=0.3), "holdout is 0.2 there, 0.3 now"),
    (lambda it: replace(it, fit=replace(it.fit, width=32)), "fit.width is 16 there, 32 now, which all arms depend on"),
    (lambda it: replace(it, align=replace(it.align, clip_nats=4.0)), "align.clip_nats is 5 there, 4 now, which all"),
    (
        lambda it: replace(it, align=replace(it.align, ppo=replace(it.align.ppo, updates=2))),
        r"holds dpo\+ppo, seed 0, made with other settings: align.ppo.updates is 1 there, 2 now; delete "
        r"\S+/seeds/\*/judged/dpo\+ppo.json and \S+/seeds/\*/table/aligned/dpo\+ppo to run it again, or choose another",
    ),
    (
        lambda it: replace(it, align=replace(it.align, dense=False, ppo=replace(it.align.ppo, discount=1.0))),
        r"align\.\S+ is \S+ there, \S+ now; delete ",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("change", "says"), REFUSED, ids=[says[:40] for _, says in REFUSED])
def test_what_a_finished_study_can_not_become(
    change: Callable[[CompareTable], CompareTable], says: str, folder: Path, grown: Path
) -> None:
    before, recorded = written(grown), (grown / "study.yaml").read_bytes()
    with pytest.raises(StorageError, match=says):
        compare_table(change(asked(folder, arms=ALL)))
    assert written(grown) == before
    assert (grown / "study.yaml").read_bytes() == recorded


def test_a_study_of_texts_is_no_study_of_a_table(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "study.yaml").write_text("task: reviews\narms: [dpo]\n")
    with pytest.raises(StorageError, match=r"study\.yaml can't be read as a study \(.*task"):
        compare_table(asked(folder, out=tmp_path))


def test_a_policy_made_anew_stands_beside_nothing_that_was_made_of_the_old_one(folder: Path, grown: Path) -> None:
    """Deleted in part, an arm would be judged by what it was before."""
    base = asked(folder, arms=ALL)
    changed = replace(base, align=replace(base.align, dpo=replace(base.align.dpo, updates=2)))
    place, kept = grown / "seeds" / "seed-0", folder / "kept"
    policies = place / "table" / "aligned"
    (policies / "dpo").rename(kept)
    with pytest.raises(StorageError, match=r"judged/dpo\.json judges a policy that is gone from \S+dpo; delete it too"):
        compare_table(changed)
    shutil.move(place / "judged" / "dpo.json", folder / "dpo.json")
    with pytest.raises(StorageError, match=r"dpo\+ppo goes on from a policy that is gone from \S+dpo; delete it too"):
        compare_table(changed)
    shutil.move(folder / "dpo.json", place / "judged" / "dpo.json")
    kept.rename(policies / "dpo")
    compare_table(base)


def test_a_study_grows_by_seeds(folder: Path) -> None:
    config = asked(folder, arms=("reference",), out=folder / "seeds")
    out = compare_table(config)
    shutil.copytree(out / "seeds" / "seed-0", out / "seeds" / "seed-0.bak")
    before = written(out)
    compare_table(replace(config, seeds=2))
    assert before.items() <= written(out).items()
    said = read_json(out / "study.json")
    assert (said["seeds"], said["complete"]) == ([0, 1], True)
    assert set(judged(out, 0)) == set(judged(out, 1)) == {"reference", "real"}
    assert judged(out, 0) != judged(out, 1)
    assert not any("one seed" in warning for warning in said["warnings"])
    with pytest.raises(StorageError, match=r"holds seed 1; ask for --seeds 2, or delete \S+/seeds/seed-1$"):
        compare_table(config)
