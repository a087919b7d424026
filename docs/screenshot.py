"""Make docs/page.png: the page with the catalogue and the runs of your own store, in Chromium.

    python docs/screenshot.py [PATH]

PATH is the page's address to show, /papers/gaussian-ad by default.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

from playwright.sync_api import sync_playwright


def main() -> None:
    """Serve the page on a free port, with a database of its own, and take the picture."""
    path = sys.argv[1] if len(sys.argv) > 1 else "/papers/gaussian-ad"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        database = f"{folder}/site.sqlite"
        papers = [str(Path(sys.executable).with_name("papers")), "serve", "--port", str(port), "--database", database]
        server = subprocess.Popen(papers, env=os.environ | {"WORKINGPAPERS_EMBEDDINGS": "0"})
        try:
            wait(f"http://127.0.0.1:{port}/about")
            with sync_playwright() as playwright:
                browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox"])
                page = browser.new_page(viewport={"width": 1180, "height": 1400})
                page.goto(f"http://127.0.0.1:{port}{path}")
                page.screenshot(path=Path(__file__).with_name("page.png"))
                browser.close()
        finally:
            server.terminate()
            server.wait()


def wait(address: str, seconds: float = 60.0) -> None:
    """Wait until an address answers."""
    last = time.monotonic() + seconds
    while True:
        try:
            urllib.request.urlopen(address, timeout=5).close()
            return
        except OSError:
            if time.monotonic() > last:
                raise
            time.sleep(0.2)


if __name__ == "__main__":
    main()
