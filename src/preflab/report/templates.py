"""The templates that make pages and Markdown, and the gate that all text passes.

Whatever a template prints passes through one gate: unseen characters are made visible, then HTML or Markdown is
escaped. Only the pictures, which this package draws, are inserted as they are.
"""

from __future__ import annotations

import hashlib
import re
from base64 import b64encode
from importlib.resources import files

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from preflab.report import cells, wording

MARKDOWN = re.compile(r"[\\`*_<>|#~&]|\[(?![\d−])|\](?=[(:\[])|!(?=\[)")


def environment(for_markdown: bool) -> Environment:
    """The templates with their filters."""

    def gate(value: object) -> object:
        if not isinstance(value, str) or isinstance(value, Markup):
            return value
        return markdown_text(value) if for_markdown else wording.visible(value)

    templates = Environment(
        loader=PackageLoader("preflab", "report"),
        autoescape=not for_markdown,
        finalize=gate,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    for name in ("number", "share", "count", "said"):
        templates.filters[name] = getattr(wording, name)
    templates.filters["fence"] = fence
    templates.filters["made"] = Markup  # what a macro made, whose parts have passed the gate
    templates.filters["lines"] = cells.lines
    templates.filters["kind"] = lambda part: type(part).__name__
    templates.globals["css"] = Markup(source("page.css"))
    templates.globals["script"] = Markup(script := source("page.js"))
    templates.globals["script_hash"] = f"sha256-{b64encode(hashlib.sha256(script.encode()).digest()).decode()}"
    return templates


def source(name: str) -> str:
    """A file of this package."""
    return files("preflab.report").joinpath(name).read_text("utf-8")


def tidy(markdown: str) -> str:
    """Markdown without runs of empty lines."""
    return re.sub(r"\n{3,}", "\n\n", markdown).strip() + "\n"


def markdown_text(text: str) -> str:
    """Foreign text on one line of Markdown, its marks and tags made literal.

    >>> print(markdown_text("a *b* | [x](javascript:1) <script>"))
    a \\*b\\* \\| \\[x\\](javascript:1) &lt;script\\>
    """
    line = " ".join(wording.visible(text).split())
    return MARKDOWN.sub(lambda m: {"<": "&lt;", "&": "&amp;"}.get(m[0], "\\" + m[0]), line)


def fence(text: str) -> Markup:
    """Foreign text as a Markdown code block, whose fence is longer than any inside."""
    shown = wording.visible(text)
    longest = max((len(run) for run in re.findall(r"`+", shown)), default=0)
    ticks = "`" * max(3, longest + 1)
    return Markup(f"{ticks}text\n{shown}\n{ticks}")
