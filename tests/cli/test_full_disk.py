"""Commands on a disk that is full: a small file system in memory, seen by them alone."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from support.captioning import changed
from support.commands import SETTINGS, command
from support.tiny import write_index, write_pictures

MOUNT = 'mount -t tmpfs -o $0 tmpfs "$1" && cd "$1" && shift && exec "$@"'


def on_disk(folder, options, *arguments):
    """Run a command in `folder`, where it finds an empty disk with options of mount."""
    folder.mkdir()
    start = ["unshare", "--map-root-user", "--mount", "sh", "-c", MOUNT, options]
    try:
        subprocess.run([*start, str(folder), "true"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("this machine lets no process mount a file system of its own")
    done = subprocess.run(
        [*start, str(folder), *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert "Traceback" not in done.stderr
    return done


def test_captioning(tmp_path):
    files = write_pictures(tmp_path / "pictures", 40, size=(6, 5))
    index = write_index(tmp_path / "i.parquet", files, ["train"] * 40, [None] * 40, ["a"])
    captions = tmp_path / "captions.csv"
    noise = np.random.default_rng(0).bytes(900).hex()
    rows = [f"{Path(file).name},{noise[n:]}" for n, file in enumerate(files)]
    captions.write_text("\n".join(["image_id,caption", *rows]))
    own = changed(SETTINGS, engine="file", images_file=str(captions))
    disk = tmp_path / "disk"
    words = ["-m", "latteclip", *command(index, own, disk / "captions.parquet")]
    done = on_disk(disk, "size=4k", sys.executable, *words)
    assert done.returncode == 2
    assert re.search("^error: .* is full; free some space", done.stderr, re.MULTILINE)


def test_a_run_in_a_folder_that_cannot_be_written_to(tmp_path):
    words = ("-m", "latteclip", "workflow", "-n", "--config", "dataset=demo")
    done = on_disk(tmp_path / "disk", "ro", sys.executable, *words)
    assert done.returncode == 1
    assert f"{tmp_path / 'disk'}, which cannot be written to" in done.stdout + done.stderr
