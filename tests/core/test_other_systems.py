"""What this machine can try of macOS and Windows: their modules, start methods, names and lines."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path, PureWindowsPath

import numpy as np
import pytest
import torch
from support.tiny import DEMO_CLIP, ROOT, write_pictures

from latteclip.clip import model as clips
from latteclip.clip.classifier import Classifier, FeatureMemmap
from latteclip.config.sections.split import SplitSection
from latteclip.core import devices
from latteclip.core.errors import UserError
from latteclip.core.files import is_running, replacing, write_text
from latteclip.core.folder_names import lines_of
from latteclip.core.hashing import write_sums
from latteclip.core.user_tables import by_image_id, read_table, rows_of
from latteclip.data.images import shard_member
from latteclip.data.splits import read_split
from latteclip.deploy.export_labels import unique_filenames
from latteclip.train.training_images import ImageCache

# A Python without what Windows lacks. Libraries that have their own way there keep it here.
WINDOWS = """
import multiprocessing, os, sys
sys.modules |= dict.fromkeys(["fcntl", "pwd", "grp", "termios", "vllm"])
for name in ("fork", "getuid", "sched_getaffinity", "posix_fallocate"):
    delattr(os, name)
multiprocessing.get_all_start_methods = lambda: ["spawn"]
multiprocessing.set_start_method("spawn")
"""
# Engines of vLLM and the command line of Snakemake have no promise there.
UNPROMISED = ("latteclip.captions.engines.vllm", "latteclip.deploy.templates")


def on_windows(code, *arguments):
    """Run code in a process of its own, and return what it prints."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT)])}
    command = [sys.executable, "-c", WINDOWS + code, *map(str, arguments)]
    run = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert run.returncode == 0, run.stderr
    return run.stdout


def test_everything_but_vllm_imports_without_modules_of_unix():
    files = sorted((ROOT / "latteclip").rglob("*.py"))
    parts = [file.relative_to(ROOT).with_suffix("").parts for file in files]
    names = [".".join(part).removesuffix(".__init__") for part in parts]
    wanted = [
        name for name in names if not name.startswith((*UNPROMISED, "latteclip.__main__"))
    ]
    assert len(wanted) > 100
    code = "import importlib\nfor name in sys.argv[1:]: importlib.import_module(name)"
    on_windows(code, *wanted)


# Commands one after the other, between which there is a "then".
COMMANDS = """
from latteclip.cli.main import main
if __name__ == "__main__":
    words = sys.argv[1:]
    place = words.index("then")
    sys.exit(main(words[:place]) or main(words[place + 1 :]))
"""


def test_predict_and_export_run_there(tmp_path):
    clip = clips.load(f"local-dir:{DEMO_CLIP}", None, torch.device("cpu"))
    head = Classifier.of(torch.randn(3, clip.config["embed_dim"]))
    clips.save(clip, head, ["a", "b", "c"], "a {}.", tmp_path / "model")
    write_pictures(tmp_path / "pictures", 5)
    model = tmp_path / "model"
    printed = on_windows(
        COMMANDS,
        *("predict", model, tmp_path / "pictures", "--device", "cpu", "then"),
        *("export", model, tmp_path / "out", "--format", "open_clip"),
    )
    table = printed.splitlines()[:6]
    assert [line.count(",") for line in table] == [table[0].count(",")] * 6
    assert (tmp_path / "out" / "README.md").is_file()


WORKERS = """
from latteclip.data.workers import start_context
from latteclip.data.loader import can_fork
print(start_context([]).get_start_method(), can_fork())
"""


def test_no_module_calls_what_windows_lacks():
    """Libraries call these on this machine, so they cannot be taken away from all."""
    lacking = re.compile(
        r"\bos\.(uname|sysconf|fork|killpg|setsid)\b|^import (fcntl|pwd)", re.M
    )
    for path in (ROOT / "latteclip").rglob("*.py"):
        assert not lacking.search(path.read_text("utf-8")), path


def test_processes_are_spawned_where_nothing_can_fork():
    assert on_windows(WORKERS).split() == ["spawn", "False"]


IN_PROCESSES = """
from pathlib import Path
from latteclip.core.hashing import digest
from latteclip.data.workers import Workers
if __name__ == "__main__":
    with Workers(digest, 2, chunk=2, ahead=1, threads_key="threads.index_images") as pool:
        print(list(pool.in_order(sys.argv[1:])) == [digest(word) for word in sys.argv[1:]])
"""


def test_spawned_processes_work_in_order():
    assert on_windows(IN_PROCESSES, *"abcdefg").split() == ["True"]


def test_features_need_no_system_that_allocates_files(monkeypatch):
    monkeypatch.delattr(os, "posix_fallocate", raising=False)
    table = FeatureMemmap(3, 2)
    table[slice(1, 2)] = torch.tensor([[4.0, 5.0]])
    assert table[slice(0, 3)].tolist() == [[0, 0], [4, 5], [0, 0]]


@pytest.mark.skipif(not hasattr(os, "pread"), reason="no training is promised on Windows")
def test_training_images_are_cached_where_no_file_lies_in_memory(monkeypatch):
    monkeypatch.delattr(os, "memfd_create", raising=False)
    cache = ImageCache(np.array([12, 12]), 24, None)
    image = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    cache.put(1, image)
    assert cache.get(0) is None
    np.testing.assert_array_equal(cache.get(1), image)


def test_a_folder_takes_the_place_of_an_empty_one_where_it_may_not_exist(
    tmp_path, monkeypatch
):
    rename = os.replace

    def as_on_windows(source, target):
        if Path(target).is_dir():
            raise PermissionError(13, "Access is denied", str(target))
        rename(source, target)

    monkeypatch.setattr(os, "replace", as_on_windows)
    (tmp_path / "model").mkdir()
    with replacing(tmp_path / "model") as temporary:
        temporary.mkdir()
        (temporary / "new").touch()
    assert (tmp_path / "model" / "new").exists()


def test_a_process_is_known_by_its_number():
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    assert is_running(os.getpid())
    assert not is_running(gone.pid)


def test_text_and_sums_have_the_same_bytes_on_every_system(tmp_path, monkeypatch):
    plain = Path.write_text

    def as_on_windows(self, text, encoding=None, errors=None, newline=None):
        plain(self, text, encoding, errors, newline or "\r\n")

    monkeypatch.setattr(Path, "write_text", as_on_windows)
    write_text(tmp_path / "x.txt", "ä\nb\n")
    assert (tmp_path / "x.txt").read_bytes() == "ä\nb\n".encode()
    write_sums(tmp_path)
    assert (tmp_path / "SHA256SUMS").read_bytes().endswith(b"  x.txt\n")


def test_lines_of_windows_are_lines(tmp_path):
    path = tmp_path / "classes.txt"
    path.write_bytes(b"\xef\xbb\xbfred fox\r\n\r\nblue whale\r\n")
    assert lines_of(path) == ["red fox", "blue whale"]


TABLES = {
    "utf-8": "image_id,caption\ncat/1.jpg,a cat\ndog/2.jpg,a dog\n",
    "windows": "\ufeffimage_id;caption\r\nC:\\photos\\cat\\1.jpg;a cat\r\ndog\\2.jpg;a dog\r\n",
}


@pytest.mark.parametrize("name", TABLES)
def test_tables_of_windows_name_the_same_images(tmp_path, name):
    path = tmp_path / "captions.csv"
    path.write_bytes(TABLES[name].encode())
    table = read_table(str(path), "captioner.images_file")
    rows = rows_of(table, str(path), "captioner.images_file", ["image_id", "caption"])
    found = by_image_id(dict(rows), ["cat/1.jpg", "dog/2.jpg"], str(path), "key")
    assert found == {"cat/1.jpg": "a cat", "dog/2.jpg": "a dog"}


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_a_split_of_windows_is_the_same(tmp_path, end):
    names = [Path(path).name for path in write_pictures(tmp_path / "pictures", 3)]
    parts = ["train", "test", "train"]
    rows = [f"{name},{split},a b" for name, split in zip(names, parts, strict=True)]
    text = end.join(["path,split,classname", *rows, ""])
    (tmp_path / "split.csv").write_bytes(b"\xef\xbb\xbf" + text.encode())
    settings = SplitSection(kind="csv", file="split.csv", images="pictures")
    _, split = read_split(tmp_path, settings)
    assert split.names == ["a b"]
    assert [item.image_id for item in split.items] == names
    assert [item.split for item in split.items] == parts


def test_a_drive_is_no_shard_and_a_shard_may_lie_on_a_drive():
    assert shard_member(r"C:\photos\a.jpg") is None
    member = shard_member(r"C:\photos\a.tar#512+99")
    assert (member.shard, member.first, member.second) == (r"C:\photos\a.tar", 512, 99)
    assert PureWindowsPath(member.shard).drive == "C:"


def test_names_differ_without_their_case():
    new_name = unique_filenames()
    names = [new_name(name) for name in ("Cat.jpg", "cat.jpg", "CAT.JPG")]
    assert len({name.casefold() for name in names}) == 3


# --- Apple's GPU ---------------------------------------------------------------------------------


@pytest.fixture
def apple(monkeypatch):
    """A machine on which torch sees Apple's GPU."""
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")


def test_apples_gpu_is_taken_by_name_and_by_itself(apple, monkeypatch):
    assert devices.pick("mps", 1).type == devices.pick("auto", 1).type == "mps"
    assert devices.pick("cpu", 1).type == "cpu"
    monkeypatch.setenv(devices.AUTO, "cpu")
    assert devices.pick("auto", 1).type == "cpu"


def test_apples_gpu_computes_in_float32(apple):
    mps = torch.device("mps")
    for precision in devices.PRECISIONS:
        devices.check_precision(mps, precision)
        assert type(devices.autocast(mps, precision)).__name__ == "nullcontext"


def test_a_machine_without_it_is_one_sentence(monkeypatch):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(UserError, match="--device mps"):
        devices.pick("mps", 1)
    monkeypatch.setenv(devices.AUTO, json.dumps("gpu"))
    with pytest.raises(UserError, match="gpu"):
        devices.pick("auto", 1)


def test_its_full_memory_is_that_of_any_gpu():
    with pytest.raises(torch.OutOfMemoryError), devices.memory_errors():
        raise RuntimeError("MPS backend out of memory (MPS allocated: 9 GB)")
    with pytest.raises(RuntimeError, match="other"), devices.memory_errors():
        raise RuntimeError("other")
