"""evaluation.json of a run folder: points are added as training reaches them, and replaced when it passes again."""

from __future__ import annotations

from typing import Literal

from preflab.runs import JSON, RunFolder, read_json, read_lines, to_line, write_json, write_text


def read_points(run: RunFolder) -> list[dict[str, JSON]]:
    """The points so far, [] before the first."""
    return list(read_json(run.evaluation)["points"]) if run.evaluation.exists() else []


def add_point(run: RunFolder, point: dict[str, JSON], samples: list[dict[str, JSON]]) -> None:
    """Add a point and its samples; one of the same step and split is replaced."""

    def other(entry: dict[str, JSON]) -> bool:
        return (entry["step"], entry["split"]) != (point["step"], point["split"])

    points = sorted([*filter(other, read_points(run)), point], key=lambda p: (p["split"] == "test", p["step"]))
    write_text(run.samples, "".join(to_line(line) for line in [*filter(other, read_lines(run.samples)), *samples]))
    write_json(run.evaluation, {"points": points, "chosen_step": None, "cost": None})


def best_step(run: RunFolder, *, by: Literal["reward", "proxy", "last"] = "reward") -> int:
    """The step that speaks for the run: with the highest mean validation reward, or proxy reward, the earlier one of
    equals; or the last one."""
    points = [point for point in read_points(run) if point["split"] == "validation"]
    if by == "last":
        return max(int(point["step"]) for point in points)
    rows = {"reward": "reward", "proxy": "proxy_reward"}[by]
    return int(max(points, key=lambda p: (_mean(p["rows"][rows]), -p["step"]))["step"])


def finish(run: RunFolder, *, chosen_step: int, cost: dict[str, float]) -> None:
    """Record the chosen checkpoint and the cost."""
    write_json(run.evaluation, {"points": read_points(run), "chosen_step": chosen_step, "cost": cost})


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)
