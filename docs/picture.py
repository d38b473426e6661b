"""Take a picture of a page for the documents.

    python docs/picture.py results/textures/report.html docs/report_unlabelled.webp \
        --start "#sure-title"

Playwright (`pip install playwright`) drives a chromium that is installed.
"""

import argparse
import io
import shutil
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, sync_playwright

ABOVE = 20  # pixels between the picture's upper edge and what it starts with


def main() -> None:
    """Write a WebP of a part of a page."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("page", type=Path)
    parser.add_argument("picture", type=Path)
    parser.add_argument("--start", default="main", help="CSS selector of what is uppermost")
    parser.add_argument("--width", type=int, default=1280)
    parser.add_argument("--height", type=int, default=700)
    parser.add_argument("--scheme", choices=["light", "dark"], default="light")
    args = parser.parse_args()
    with sync_playwright() as driver:
        browser = driver.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox"]
        )
        size = {"width": args.width, "height": args.height}
        page = browser.new_page(viewport=size, color_scheme=args.scheme)
        page.goto(args.page.resolve().as_uri())
        _show(page, args.start)
        shot = page.screenshot()
        browser.close()
    Image.open(io.BytesIO(shot)).convert("RGB").save(
        args.picture, "WEBP", quality=72, method=6
    )


def _show(page: Page, start: str) -> None:
    """Scroll to an element without what floats above, and wait for its pictures."""
    page.add_style_tag(content="nav { position: static !important }")
    top = page.locator(start).first.evaluate(
        "one => one.getBoundingClientRect().top + scrollY"
    )
    page.evaluate("Promise.all([...document.images].map(i => i.decode()))")
    page.evaluate(f"scrollTo(0, {top - ABOVE})")


if __name__ == "__main__":
    main()
