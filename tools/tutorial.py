"""Run the commands of docs/tutorial.md, and write what they print and its pictures.

    python tools/tutorial.py [folder]     # some ten minutes on two cores; needs chromium

The commands run one after another in a copy of the repository. A command is a line of a block
```console that begins with "$ ". Its output replaces the lines after it, up to the next command.
"""

import html
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

import pandas as pd
from PIL import Image

from latteclip.config.layers import ROOT

PAGE = ROOT / "docs" / "tutorial.md"
BLOCK = re.compile(r"(```console\n)(.*?)(```)", re.DOTALL)
COPIED = (
    "Snakefile",
    "Makefile",
    "workflow",
    "config",
    "profiles",
    "latteclip",
    "envs",
)
DEMO = "make demo"
# Lines of an output that is longer are left out in its middle.
FIRST, LAST = 8, 8
# What no reader sees: bars of progress, colours, and where Snakemake found its profile.
UNSEEN = re.compile(r"\x1b\[[\d;]*m|^.*\r(?!\n)", re.MULTILINE)
UNNEEDED = re.compile(
    r"^(Using workflow specific profile|Assuming unrestricted| *\d+%\|)"
)
STYLE = """
body { margin: 0; padding: 12px; font: 15px system-ui, sans-serif; color: #1b2b29 }
main { display: flex; gap: 28px; align-items: center }
section { display: grid; gap: 8px }
figure { margin: 0; text-align: center; line-height: 1.25 }
img { display: block; width: 112px; height: 112px; object-fit: cover; border-radius: 4px }
pre { margin: 0; font: 13px monospace }
b { color: #00695c }
.arrow { font-size: 44px; color: #00796b }
"""


def copy_repository(folder: Path) -> None:
    """Copy what a run needs, as a clone has it."""
    for name in COPIED:
        source = ROOT / name
        if source.is_dir():
            hidden = shutil.ignore_patterns("__pycache__")
            shutil.copytree(source, folder / name, ignore=hidden)
        else:
            shutil.copy(source, folder)


def run(command: str, folder: Path) -> str:
    """Return what a command prints, in a folder, or raise CalledProcessError."""
    if command == DEMO:
        # Everything is installed already.
        dry = ["make", "--dry-run", "--old-file=install", "demo", "KIND=cpu"]
        command = subprocess.check_output(dry, cwd=folder, text=True)
    environment = {
        **os.environ,
        "PYTHONPATH": str(folder),
        "CUDA_VISIBLE_DEVICES": "",
        "HF_HUB_OFFLINE": "1",
    }
    finished = subprocess.run(
        ["bash", "-o", "pipefail", "-ec", command],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if finished.returncode:
        raise SystemExit(f"{command}\n{finished.stdout}")
    return finished.stdout


def shown(output: str, folder: Path) -> list[str]:
    """Return the lines of an output that the page has, without its middle if it is long."""
    text = UNSEEN.sub("", output).replace(f"{folder}/", "")
    lines = [line.rstrip() for line in text.splitlines()]
    lines = [line for line in lines if line and not UNNEEDED.match(line)]
    if len(lines) > FIRST + LAST + 1:
        lines[FIRST:-LAST] = ["..."]
    return lines


def commands(text: str) -> list[str]:
    """Return the commands of a page in their order."""
    blocks = (found[2] for found in BLOCK.finditer(text))
    return [
        line[2:]
        for block in blocks
        for line in block.splitlines()
        if line[:2] == "$ "
    ]


def render(text: str, folder: Path) -> str:
    """Return a page with the outputs of its commands, which run in a folder in their order."""

    def replace(found: re.Match[str]) -> str:
        lines: list[str] = []
        for command in commands(found[0]):
            lines += [f"$ {command}", *shown(run(command, folder), folder)]
        return found[1] + "\n".join(lines) + "\n" + found[3]

    return BLOCK.sub(replace, text)


def photograph(address: str, path: Path, width: int, height: int) -> None:
    """Write a picture of a page, as chromium shows it, as WebP."""
    with tempfile.TemporaryDirectory() as folder:
        taken = Path(folder, "page.png")
        command = [
            "chromium",
            "--headless",
            "--no-sandbox",
            "--hide-scrollbars",
            "--disable-gpu",
        ]
        command += [f"--window-size={width},{height}", f"--screenshot={taken}"]
        subprocess.run([*command, address], check=True, capture_output=True)
        with Image.open(taken) as picture:
            picture.convert("RGB").save(path, quality=80, method=6)


def grid(files: Iterable[Path], captions: Iterable[str], columns: int) -> str:
    """Return the markup of pictures with their captions."""
    figures = "".join(
        f'<figure><img src="{file.as_uri()}">{caption}</figure>'
        for file, caption in zip(files, captions, strict=True)
    )
    return f'<section style="grid-template-columns: repeat({columns}, 112px)">{figures}</section>'


def photograph_markup(markup: str, path: Path, width: int, height: int) -> None:
    """Write a picture of some markup, as WebP."""
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder, "page.html")
        page.write_text(
            f"<meta charset=utf-8><style>{STYLE}</style><main>{markup}</main>",
            "utf-8",
        )
        photograph(page.as_uri(), path, width, height)


def named(classname: str, probability: float) -> str:
    """Return the markup of a class and how probable it is."""
    return f"<b>{html.escape(classname)}</b><br>{probability:.0%}"


def draw_before_and_after(folder: Path, path: Path) -> None:
    """Draw pictures of the folder, and the same with the labels that the workflow gave them."""
    labels = pd.read_csv(folder / "mine-labels.csv")
    # Evenly over the table, which is in the order of the names.
    rows = labels.iloc[:: len(labels) // 12][:12]
    files = [folder / "photos" / name for name in rows["image_id"]]
    classes = (folder / "photos" / "classes.txt").read_text("utf-8").split()
    after = map(named, rows["label"], rows["probability"])
    before = grid(files, [""] * len(files), 4)
    listed = (
        "classes.txt:\n"
        + "\n".join(f"  {name}" for name in classes[:5])
        + "\n  ..."
    )
    left = f"<div>{before}<pre>{listed}</pre></div>"
    markup = f'{left}<div class="arrow">&#10140;</div>{grid(files, after, 4)}'
    photograph_markup(markup, path, 1090, 500)


def draw_predictions(folder: Path, path: Path) -> None:
    """Draw new pictures with the classes that the demo's model predicts."""
    table = pd.read_csv(folder / "predictions.csv").iloc[:9]
    files = [folder / name for name in table["path"]]
    captions = map(named, table["classname"], table["probability"])
    photograph_markup(grid(files, captions, 9), path, 1110, 190)


def draw(folder: Path, pages: Sequence[tuple[str, str, int, int]]) -> None:
    """Draw all pictures of the tutorial from the results in a folder."""
    docs = PAGE.parent
    exported = "latteclip labels export results/mine --format csv --output mine-labels.csv"
    run(f"test -e mine-labels.csv || {exported}", folder)
    run(
        "rm -f teach.html; latteclip teach results/mine --offline teach.html",
        folder,
    )
    draw_before_and_after(folder, docs / "before-after.webp")
    draw_predictions(folder, docs / "tutorial-predictions.webp")
    for source, name, width, height in pages:
        photograph((folder / source).as_uri(), docs / name, width, height)


PAGES = [
    ("results/demo/report.html", "tutorial-page.webp", 1280, 900),
    ("teach.html", "tutorial-teach.webp", 1000, 620),
]

if __name__ == "__main__":
    # A folder that is named stays, with all results.
    with tempfile.TemporaryDirectory() as place:
        copy = Path(*sys.argv[1:] or [place]).resolve()
        copy_repository(copy)
        PAGE.write_text(render(PAGE.read_text("utf-8"), copy), "utf-8")
        draw(copy, PAGES)
