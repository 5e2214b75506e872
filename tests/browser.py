"""The system's Chromium: what a page is after its scripts have run."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def dom(html: str, folder: Path, width: int = 1400) -> str:
    """The page's elements after its scripts have run."""
    (folder / "page.html").write_text(html, encoding="utf-8")
    options = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder / 'profile'}"]
    address = (folder / "page.html").as_uri()
    command = [str(CHROMIUM), *options, f"--window-size={width},900", "--dump-dom", address]
    return subprocess.run(command, capture_output=True, check=True, timeout=120).stdout.decode()


def asked(html: str, folder: Path, expression: str, width: int = 1400) -> object:
    """The value of an expression in the page, whose policy for scripts is taken away."""
    html = re.sub('<meta http-equiv="Content-Security-Policy"[^>]*>', "", html)
    script = f"<script>document.body.innerHTML = '<pre>' + JSON.stringify({expression}) + '</pre>'</script></body>"
    found = re.search("<pre>(.*?)</pre>", dom(html.replace("</body>", script), folder, width))
    assert found
    return json.loads(found[1])
