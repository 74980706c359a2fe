"""A real Chromium, and what reads scripts without running them."""

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from playwright.sync_api import Browser, sync_playwright

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
QUIET = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
]
NODE = shutil.which("node")
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")


@contextmanager
def chromium() -> Iterator[Browser]:
    """A browser with a profile of its own, which Playwright makes and removes."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        try:
            yield browser
        finally:
            browser.close()


def check_script(source: str, folder: Path) -> None:
    """Fail if `source` is no JavaScript. It is not run. Skips where there is no Node."""
    if NODE is None:
        pytest.skip("no Node here")
    path = folder / "script.mjs"
    path.write_text(source, encoding="utf-8")
    found = subprocess.run([NODE, "--check", path], capture_output=True, text=True, timeout=60)
    assert found.returncode == 0, found.stderr
