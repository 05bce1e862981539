"""A browser reads a report that is full of hostile text: nothing of it runs, nothing is fetched, and tables sort."""

from __future__ import annotations

import csv
import hashlib
import re
import shutil
import subprocess
import threading
from base64 import b64encode
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from preflab.report import write_report
from preflab.report.cells import FORMULA
from study_folder import reward_model, usual_arms, write_study

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine: the page is not tried")

MARK = "document.documentElement.setAttribute('data-run','x');document.title='x';fetch('URL/run')"
HOSTILE = tuple(
    text.replace("MARK", MARK)
    for text in (
        "<script>MARK</script>",
        "</script><script>MARK</script>",
        "<script src=URL/a.js></script>",
        "<scr<script>ipt>MARK</scr</script>ipt>",
        "<ScRiPt\t>MARK</sCrIpT >",
        "</style><script>MARK</script><style>",
        "</style><style>@import 'URL/b.css'; body { background: url(URL/b.png) }",
        "</title><script>MARK</script>",
        "</textarea></pre></noscript><script>MARK</script>",
        "<img src=x onerror=MARK>",
        "<img src=URL/c.png>",
        '"><img src=x onerror="MARK">',
        "'><svg onload=MARK>",
        "' autofocus onfocus='MARK' tabindex=0 x='",
        '" style="background: url(URL/d.png)" x="',
        ";} * { background: url(URL/e.png) } .x {",
        "<svg><script>MARK</script></svg>",
        "<svg><animate onbegin=MARK attributeName=x dur=1s>",
        "<svg><use href='URL/f.svg#x'></use><image href='URL/f.png'/></svg>",
        "<svg><foreignObject><iframe srcdoc='<script>parent.MARK</script>'></foreignObject></svg>",
        "<math><mtext></p><style><!--</style><img title='--><img src=x onerror=MARK>'>",
        "<math href='javascript:MARK'>click</math>",
        "<iframe src='javascript:MARK'></iframe><iframe src=URL/g.html></iframe>",
        "<object data=URL/h.swf></object><embed src=URL/h.swf>",
        "<a href='javascript:MARK' autofocus>link</a>",
        "<details open ontoggle=MARK>",
        "<body onload=MARK onpageshow=MARK>",
        "<base href='URL/'><link rel=stylesheet href=URL/i.css><link rel=prefetch href=URL/i2>",
        "<meta http-equiv=refresh content='0;url=URL/j'>",
        "<meta http-equiv='Content-Security-Policy' content=\"script-src * 'unsafe-inline'\">",
        "<form action=URL/k><input autofocus onfocus=MARK><button id=q></form><script>q.click()</script>",
        "<video poster=URL/l.png><source src=URL/l.mp4 onerror=MARK></video>",
        "<template><script>MARK</script></template>",
        "javascript:MARK//",
        "{{ 7 * 7 }} {% include 'page.css' %} {{ ''.__class__ }} ${7*7} <%= 7*7 %> #{7*7}",
        "]]><script>MARK</script><![CDATA[",
        "--><script>MARK</script><!--",
        "<!--<script>",
        "\u202egpj.exe \u2066 \u200f \u2028 \x00 \x1b[31m \x7f \ufeff",
        "\uff1cscript\uff1eMARK\uff1c/script\uff1e",
        "+ADw-script+AD4-MARK+ADw-/script+AD4-",
        '=HYPERLINK("URL/m","click")',
        "+cmd|' /C calc'!A0",
        "-2+3+cmd",
        "@SUM(1+1)*cmd",
        "\t=1+1",
        "![x](URL/n.png) [y](javascript:MARK) <URL/n2> [z]: URL/n3",
        "```\n````\n<script>MARK</script>",
        "$\\frac{1}{0}$ & < > \" ' ` &lt;script&gt; &#60;script&#62;",
        "constructor", "__proto__", "x" * 3000,
    )
)  # fmt: skip

# Stands in the page's own script, behind all that it does: what a reader does, and what came of it.
READER = """
(() => {
  const table = document.querySelector("#results table");
  const column = () => [...table.tBodies[0].rows].map((row) => row.cells[2].dataset.key).join(" ");
  const button = table.tHead.rows[0].cells[2].querySelector("button");
  button.click();
  const down = column();
  button.click();
  const box = document.querySelector(".search input");
  box.value = "prompt-needle";
  box.dispatchEvent(new Event("input"));
  const shown = [...document.querySelectorAll(".sample")].filter((item) => !item.hidden).length;
  for (const link of document.querySelectorAll("a[href^='#']")) link.click();
  const proof = { down, up: column(), sort: table.tHead.rows[0].cells[2].getAttribute("aria-sort"), shown };
  document.documentElement.setAttribute("data-proof", JSON.stringify(proof));
})();
"""


@pytest.fixture
def listener() -> Iterator[tuple[str, list[str]]]:
    """A server to which hostile texts point, and what was asked of it."""
    asked: list[str] = []

    class Listener(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"document.documentElement.setAttribute('data-run','fetched')")

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Listener)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}", asked
    server.shutdown()
    server.server_close()


def browse(page: str, folder: Path) -> str:
    """The document as a browser leaves it; every host but this one resolves to nowhere."""
    assert CHROMIUM
    command = [
        CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder / 'profile'}",
        "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1", "--disable-background-networking",
        "--disable-component-update", "--no-first-run", "--virtual-time-budget=3000", "--dump-dom", page,
    ]  # fmt: skip
    return subprocess.run(command, capture_output=True, text=True, timeout=110, check=True).stdout


def hostile_study(folder: Path, texts: tuple[str, ...]) -> Path:
    """A study whose every text is one of `texts`, and each of them in prompts and responses."""
    everything = "\n".join(texts)
    arms = [replace(arm, label=f"{i} {everything[i * 300 :]}") for i, arm in enumerate(usual_arms())]
    arms[2] = replace(arms[2], metrics=[{"step": 1, "loss": 0.5, "<script>": 1.0}, {"step": 2, "loss": 0.4}])
    count = iter(range(10**9))
    return write_study(
        folder, arms, prompts=len(texts), prompt_texts=(*texts[:-1], f"prompt-needle {texts[-1]}"),
        response=lambda rng: texts[next(count) % len(texts)], title=everything, task_summary=everything,
        warnings=list(texts), counts=[{"name": text, "count": 1} for text in texts],
        stages=[{"name": text, "seconds": 1.0} for text in texts],
        facts=[{"name": t, "value": 1.0, "low": None, "high": None, "note": t} for t in texts],
        reward={"name": everything, "unit": everything, "explanation": everything},
        proxy={"name": everything, "explanation": everything}, reward_models=[reward_model(everything)],
    )  # fmt: skip


@needs_browser
def test_hostile_text_neither_runs_nor_fetches_and_the_page_works(
    tmp_path: Path, listener: tuple[str, list[str]]
) -> None:
    url, asked = listener
    assert len(HOSTILE) >= 30
    texts = tuple(text.replace("URL", url) for text in HOSTILE)
    folder = hostile_study(tmp_path / "study", texts)
    (folder / "study.yaml").write_text("\n".join(texts))
    report = write_report(folder)
    page = played(report.path, READER)
    document = browse(page.as_uri(), tmp_path)
    proof = re.search(r'data-proof="([^"]*)"', document)
    assert proof, "the page's own script did not run"
    found = proof[1].replace("&quot;", '"')
    values = {way: [float(x) for x in re.search(rf'"{way}":"([^"]*)"', found)[1].split()] for way in ("down", "up")}  # type: ignore[index]
    assert len(values["up"]) == 5
    assert values["up"] == sorted(values["up"]) == values["down"][::-1]
    assert '"sort":"ascending"' in found
    assert re.search(r'"shown":[01]\b', found)
    assert "data-run" not in document.partition(">")[2].partition(">")[0]
    assert asked == []
    browse((folder / "figures/frontier.svg").as_uri(), tmp_path)
    assert asked == []


def played(path: Path, script: str) -> Path:
    """The page with a reader in its script, under the hash of both: else nothing may run that a test brings along."""
    html = path.read_text()
    (own,) = re.findall(r"<script>(.*?)</script>", html, flags=re.DOTALL)
    assert html.count(own) == 1
    hashes = [b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in (own, own + script)]
    assert html.count(hashes[0]) == 1
    copy = path.with_name("played.html")
    copy.write_text(html.replace(own, own + script).replace(hashes[0], hashes[1]))
    return copy


@needs_browser
def test_the_listener_and_the_mark_do_catch_what_runs(tmp_path: Path, listener: tuple[str, list[str]]) -> None:
    """The same texts in a page that escapes nothing: they run and fetch, so silence above means something."""
    url, asked = listener
    page = tmp_path / "open.html"
    page.write_text("<body>" + HOSTILE[0].replace("URL", url) + HOSTILE[10].replace("URL", url))
    document = browse(page.as_uri(), tmp_path)
    assert 'data-run="x"' in document
    assert "/c.png" in asked
    assert "/run" in asked


@needs_browser
def test_another_script_is_refused(tmp_path: Path, listener: tuple[str, list[str]]) -> None:
    """Were a text ever written as it is, the policy stops it."""
    url, asked = listener
    report = write_report(write_study(tmp_path / "study", usual_arms()[:2], prompts=6))
    html = report.path.read_text()
    texts = "".join(text.replace("URL", url) for text in (HOSTILE[0], HOSTILE[2], HOSTILE[9], HOSTILE[10]))
    report.path.write_text(html.replace("<header>", f"<header>{texts}"))
    document = browse(report.path.as_uri(), tmp_path)
    assert 'data-run="' not in document.partition("<head>")[0]
    assert "<button" in document  # the page's own script has run
    assert asked == []


def test_no_file_of_numbers_holds_a_formula(tmp_path: Path) -> None:
    folder = hostile_study(tmp_path, HOSTILE)
    write_report(folder)
    files = [*(folder / "tables").glob("*.csv"), *(folder / "figures").glob("*.csv")]
    assert len(files) > 10
    for file in files:
        for row in csv.reader(file.open(newline="")):
            for field in row:
                assert is_number(field) or not field.lstrip().startswith(FORMULA), (file, field[:50])


def is_number(field: str) -> bool:
    try:
        return bool(np.isfinite(float(field)))
    except ValueError:
        return False
