"""What a benchmark measured, put into a page of the docs."""

from __future__ import annotations

import re
import sys
from pathlib import Path


def fill(page: Path, content: str, begin: str, end: str) -> None:
    """Replace what stands between two marks of a page; a page without them ends the run and stays as it is."""
    text = page.read_text(encoding="utf-8")
    between = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", re.DOTALL)
    if not between.search(text):
        sys.exit(f"{page} has no marks {begin} … {end}")
    page.write_text(between.sub(lambda _: f"{begin}\n\n{content}\n\n{end}", text), encoding="utf-8")
