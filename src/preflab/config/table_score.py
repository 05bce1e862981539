"""What `preflab table score` is told."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Positional

from preflab.config.training import Positive, Seed


@dataclass(frozen=True, kw_only=True)
class TableScore:
    """Judge synthetic rows against real rows that nothing was trained on, next to a second real sample and to
    independent marginals: fidelity, detectability, utility, diversity, privacy, validity."""

    train: Positional[Path]
    """The real rows that the generator learnt from: CSV or Parquet with a header."""
    synthetic: Positional[Path]
    """The rows to judge, with the same columns in any order; best as many as there are training rows."""
    holdout: Path
    """Real rows of the same table that the generator never saw: a random part of it."""
    target: str | None = None
    """The column that models learn from synthetic rows and are tested on with the holdout; none: no utility."""
    out: Path | None = None
    """The folder for score.json and the report; none: a folder beside the synthetic file, its name with -score. An
    older score there is replaced, anything else refused."""
    redraws: Positive = 2
    """How often the rows and folds of the detectability test are drawn; its AUC is the mean."""
    seed: Seed = 0
    """Determines every draw: the same files and seed give the same figures."""
    jobs: Positive = 1
    """Processor cores that trees may be grown on; changes no figure."""
