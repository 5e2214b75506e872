"""Where the repository and its example images are, for tests in any folder."""

from __future__ import annotations

from pathlib import Path

TESTS = Path(__file__).parent
ROOT = TESTS.parent
IMAGES = ROOT / "examples" / "images"
