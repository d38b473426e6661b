import contextlib
import json
import logging
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from support.downloads import ARCHIVE, settings
from support.web import jpeg, tar

from latteclip.cli import main
from latteclip.core.errors import UserError
from latteclip.data import download_dataset


def test_a_dataset_is_unpacked_and_its_terms_are_printed(host, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    url = host.serve("/images.tar.gz", ARCHIVE)
    output = tmp_path / "demo" / "data"
    download_dataset.download_dataset("demo", settings(url, into="deep"), str(output))
    assert sorted(p.name for p in (output / "deep" / "images").iterdir()) == ["a.jpg", "b.jpg"]
    assert "licence: A licence" in caplog.text and "cite: A paper" in caplog.text


def test_a_shard_is_not_unpacked_and_takes_its_room_once(host, tmp_path):
    url = host.serve("/images.tar.gz", ARCHIVE)
    output = tmp_path / "demo" / "data"
    for _ in range(2):
        download_dataset.download_dataset(
            "demo", settings(url, into="train", unpack=False), str(output)
        )
    (shard,) = (path for path in output.rglob("*") if path.is_file())
    assert shard.relative_to(output).as_posix() == "train/images.tar.gz"
    assert shard.samefile(tmp_path / "demo" / "downloads" / "images.tar.gz")


def test_unpacking_again_fetches_nothing(host, tmp_path):
    url = host.serve("/images.tar.gz", ARCHIVE)
    output = tmp_path / "demo" / "data"
    download_dataset.download_dataset("demo", settings(url), str(output))
    (output / "images" / "a.jpg").write_bytes(b"")
    download_dataset.download_dataset("demo", settings(url), str(output))
    assert (output / "images" / "a.jpg").read_bytes() == jpeg()
    assert len(host.requests) == 1


def test_an_unsafe_archive_leaves_no_data(host, tmp_path):
    evil = tar({"images/a.jpg": jpeg(), "../evil": b""})
    url = host.serve("/images.tar.gz", evil)
    with pytest.raises(UserError, match="leads out"):
        download_dataset.download_dataset(
            "demo", settings(url, content=evil), str(tmp_path / "demo" / "data")
        )
    assert [path.name for path in (tmp_path / "demo").iterdir()] == ["downloads"]
    assert not (tmp_path / "demo" / "downloads" / ".busy").exists()


KILLED = """
import os, signal, sys
from latteclip.data import archives
from latteclip.cli import main
write = archives._write
def dying(entry, place, *rest):
    if entry.name.endswith("b.jpg"):
        os.kill(os.getpid(), signal.SIGKILL)
    write(entry, place, *rest)
archives._write = dying
sys.exit(main.main(sys.argv[1:]))
"""


def test_an_unpack_killed_half_way_is_redone(host, tmp_path):
    url = host.serve("/images.tar.gz", ARCHIVE)
    output = tmp_path / "demo" / "data"
    values = {"downloads": settings(url).downloads}
    arguments = ["download-dataset", "--dataset", "demo"]
    arguments += ["--settings", json.dumps(values), "--output", str(output)]
    done = subprocess.run([sys.executable, "-c", KILLED, *arguments], check=False)
    assert done.returncode == -signal.SIGKILL
    left = [path for path in output.parent.iterdir() if path.name.endswith(".tmp")]
    assert len(left) == 1 and (left[0] / "images" / "a.jpg").is_file()
    assert not output.exists()
    assert main.main(arguments) == 0
    assert sorted(p.name for p in (output / "images").iterdir()) == ["a.jpg", "b.jpg"]
    assert sorted(p.name for p in output.parent.iterdir()) == ["data", "downloads"]
    assert len(host.requests) == 1


# --- one run at a time ---------------------------------------------------------------------------

# Holds a downloads folder, on a machine of a name, until it is told to end.
HOLD = """
import logging, socket, sys
folder, machine, lease = sys.argv[1:]
socket.gethostname = lambda: machine
from pathlib import Path
from latteclip.data import download_dataset
from latteclip.core import signals
logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
download_dataset.LEASE, download_dataset.POLL = float(lease), 0.05
with signals.ending_in_order(""), download_dataset._alone(Path(folder)):
    print("holds", flush=True)
    sys.stdin.readline()
"""


LONG, SHORT = 600, 1.5  # seconds: longer than any test, and what a test can wait for


class Holder:
    """A process of HOLD."""

    def __init__(self, folder, machine="here", lease=LONG):
        self.process = subprocess.Popen(
            [sys.executable, "-c", HOLD, folder, machine, str(lease)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def says(self):
        """Its next line."""
        return self.process.stdout.readline().strip()

    def send(self, number):
        self.process.send_signal(number)

    def end(self):
        """Let it end, if it has not; its exit status."""
        with contextlib.suppress(BrokenPipeError):
            self.process.communicate("\n", timeout=60)
        return self.process.returncode


@pytest.fixture
def holder(folder):
    """Starts holders of the downloads folder."""
    started = []

    def start(**options):
        started.append(Holder(folder, **options))
        return started[-1]

    yield start
    for one in started:
        if one.process.poll() is None:
            one.process.kill()
        one.process.communicate()


def assert_free(folder):
    assert list(folder.iterdir()) == []


def test_two_runs_at_once_fetch_once(host, tmp_path):
    url = host.serve("/images.tar.gz", ARCHIVE)
    values = {"downloads": settings(url).downloads}
    output = tmp_path / "demo" / "data"
    arguments = ["download-dataset", "--dataset", "demo", "--settings", json.dumps(values)]
    program = [Path(sys.executable).with_name("latteclip"), *arguments, "--output", output]
    runs = [subprocess.Popen(program) for _ in range(2)]
    assert [run.wait() for run in runs] == [0, 0]
    assert len(host.requests) == 1
    assert sorted(p.name for p in (output / "images").iterdir()) == ["a.jpg", "b.jpg"]
    assert sorted(p.name for p in (tmp_path / "demo" / "downloads").iterdir()) == [
        ".images.tar.gz.json",
        ".part",
        "images.tar.gz",
    ]


def test_a_run_that_was_killed_holds_up_nobody_on_its_machine(folder, holder):
    killed = holder()
    assert killed.says() == "holds"
    killed.send(signal.SIGKILL)
    assert killed.end() == -signal.SIGKILL
    assert (folder / ".busy").is_file()
    heir = holder()
    assert heir.says() == "holds"
    assert heir.end() == 0
    assert_free(folder)


def test_a_run_that_was_killed_elsewhere_is_given_up_after_a_while(folder, holder):
    killed = holder(machine="there", lease=SHORT)
    assert killed.says() == "holds"
    killed.send(signal.SIGKILL)
    killed.end()
    heir = holder(lease=SHORT)
    assert heir.says().startswith(f"process {killed.process.pid} on there is busy")
    assert heir.says() == "holds"
    assert heir.end() == 0
    assert_free(folder)
