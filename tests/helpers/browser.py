"""A headless Chromium, driven by its command line: what it makes of a page, as a DOM or as a PDF."""

from __future__ import annotations

import html
import json
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any, Literal

import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no chromium here (Debian: apt-get install chromium)")

Mode = Literal["light", "dark"]
POLICY = '<meta http-equiv="Content-Security-Policy"'


def _run(page: Path, *options: str, mode: Mode = "light") -> bytes:
    with tempfile.TemporaryDirectory() as profile:
        done = subprocess.run(
            [
                str(CHROMIUM), "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
                f"--user-data-dir={profile}", f"--blink-settings=preferredColorScheme={int(mode == 'light')}",
                *options, page.as_uri(),
            ],
            capture_output=True, timeout=180, check=True,
        )  # fmt: skip
    return done.stdout


def evaluate(folder: Path, page: str, code: str, *, library: str = "", mode: Mode = "light") -> Any:
    """What the asynchronous JavaScript `code` returns in the page, whose policy against scripts is taken out."""
    assert POLICY in page
    free = page.replace(POLICY, '<meta name="policy-taken-out"', 1)
    ask = (
        "(async () => { const loaded = new Promise(done => addEventListener('load', done));"
        "if (document.readyState !== 'complete') await loaded;"
        "const out = document.createElement('pre'); out.id = 'answer';"
        f"try {{ out.textContent = JSON.stringify(await (async () => {{ {code} }})()); }}"
        "catch (error) { out.textContent = JSON.stringify('' + error.stack); }"
        "document.body.replaceChildren(out); })()"
    )
    file = folder / "asked.html"
    file.write_text(
        free.replace("</body>", f"<script>{library}</script><script>{ask}</script></body>"), encoding="utf-8"
    )
    dom = _run(file, "--virtual-time-budget=60000", "--window-size=1000,1400", "--dump-dom", mode=mode).decode()
    start = dom.index('<pre id="answer">') + len('<pre id="answer">')
    return json.loads(html.unescape(dom[start : dom.index("</pre>", start)]))


def in_frame(page: str, width: int) -> str:
    """A page that shows `page` in a frame of that width: a headless window itself is never as narrow as a phone."""
    return (
        f'<!doctype html><html><head>{POLICY} content=""></head><body>'
        f'<iframe srcdoc="{html.escape(page)}" style="width:{width}px;height:900px;border:0"></iframe></body></html>'
    )


def to_pdf(folder: Path, page: str, *, mode: Mode = "light") -> Path:
    """The page on A4, as it would be printed."""
    file, pdf = folder / "printed.html", folder / "printed.pdf"
    file.write_text(page, encoding="utf-8")
    _run(file, "--no-pdf-header-footer", f"--print-to-pdf={pdf}", mode=mode)
    return pdf
