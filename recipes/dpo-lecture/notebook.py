"""Make `dpo-lecture.ipynb` of `dpo_lecture.py` and run it; needs nbclient and ipykernel, which preflab does without.

python recipes/dpo-lecture/notebook.py
"""

from __future__ import annotations

import re
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbformat import v4

HERE = Path(__file__).parent


def cells(script: str) -> list[tuple[str, str]]:
    """(text, code) of each cell: a module's docstring or the rest of a line `# %% …`, and what stands below it.

    >>> cells('\"\"\"Title.\"\"\"\\n\\nimport os\\n\\n# %% What it says.\\nprint(1)\\n')
    [('Title.', 'import os'), ('What it says.', 'print(1)')]
    """
    parts = re.split(r"^# %% ", re.sub(r'^"""(.*?)"""$', r"# %% \1", script, count=1, flags=re.M), flags=re.M)[1:]
    return [(text, code.strip()) for text, _, code in (part.partition("\n") for part in parts)]


def main() -> None:
    """Write the notebook as it runs in the current folder."""
    made = []
    for number, (text, code) in enumerate(cells((HERE / "dpo_lecture.py").read_text(encoding="utf-8"))):
        made.append(v4.new_markdown_cell(text, id=f"text-{number}"))
        made.append(v4.new_code_cell(code, id=f"code-{number}"))
    notebook = v4.new_notebook(cells=made)
    NotebookClient(notebook, timeout=600, record_timing=False).execute()
    notebook.metadata.clear()  # of this machine's kernel
    for cell in notebook.cells[1::2]:
        cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]  # warnings name its paths
    nbformat.write(notebook, HERE / "dpo-lecture.ipynb")


if __name__ == "__main__":
    main()
