import re
import sys

import pytest

from latteclip.cli import status
from latteclip.core import run_options
from latteclip.core.errors import UserError


def files_of(root):
    return {
        path: path.stat().st_mtime_ns
        for path in root.rglob("*")
        if path.is_file() and ".snakemake" not in path.parts and path.suffix != ".pyc"
    }


def test_stages_are_done_stale_or_missing_and_the_reason_follows(
    finished_copy, monkeypatch
):
    with (finished_copy.root / "latteclip" / "data" / "splits.py").open("a") as file:
        file.write("\nEDITED = True\n")
    before = files_of(finished_copy.root)
    monkeypatch.chdir(finished_copy.root)
    options = {"seeds": 2, "method": "zero_shot,flyp", "prompts": {"image": "What? 😀"}}
    run_options.note_options({"demo": "demo"}, options)
    run = finished_copy.latteclip("status")
    assert run.returncode == 0, run.stdout
    assert files_of(finished_copy.root) == before
    lines = [re.split(r"\s{2,}", line.strip()) for line in run.stdout.splitlines() if line]
    assert re.match(r"demo: \d+ of 12 jobs done", lines[0][0])
    assert ["stale", "index_images", "settings, images or code changed"] in lines
    assert ["stale", "finetune", "flyp, seed 0", "an earlier stage will run"] in lines
    assert ["missing", "finetune", "flyp, seed 1", "not run yet"] in lines


def test_commands_that_need_no_model_import_no_torch(finished_copy):
    for name in ("torch", "torchvision", "transformers", "open_clip"):
        (finished_copy.root / f"{name}.py").write_text("raise AssertionError(__name__)\n")
    program = [sys.executable, "-m", "latteclip"]
    for words in (["status"], ["datasets"]):
        run = finished_copy.run(*program, *words)
        assert run.returncode == 0, run.stdout
    # Of these results nobody asked a person, and no stage proposed classes.
    for words in (["classes"], ["rename-class", "old", "new"]):
        run = finished_copy.run(*program, words[0], "results/demo", *words[1:])
        assert run.returncode == 2 and "error: " in run.stdout, run.stdout


@pytest.fixture
def squeue(tmp_path, monkeypatch):
    """A squeue that runs the Python that it is given; its folder is alone on PATH."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))

    def install(code):
        program = folder / "squeue"
        program.write_text(f"#!{sys.executable}\nimport sys\n{code}\n")
        program.chmod(0o755)

    return install


def test_a_second_run_is_refused_and_names_the_jobs_of_the_folder(
    squeue, tmp_path, monkeypatch, caplog
):
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    (tmp_path / "link").symlink_to(here)
    rows = (
        ("3", here, "rule_finetune_wildcards_demo_flyp_0"),
        ("4_2", here, "rule_caption_images_shard_wildcards_demo_2_4"),
        ("5", tmp_path, "rule_finetune_wildcards_demo_flyp_0"),
        ("6", here, "(null)"),  # somebody's own job, submitted in the same folder
        ("7", tmp_path / "link", "rule_all"),
    )
    lines = ["\t".join(map(str, row)) for row in rows]
    squeue(f"print(*{lines!r}, sep='\\n')")
    with pytest.raises(UserError, match=r"scancel 3 4_2 7$"):
        status.refuse_second_run(is_cluster=False)
    squeue("")
    status.refuse_second_run(is_cluster=True)
    squeue("sys.exit('slurm_load_jobs error: Unable to contact slurm controller')")
    status.refuse_second_run(is_cluster=False)
    assert not caplog.text  # its programs may be there without a cluster
    status.refuse_second_run(is_cluster=True)
    assert "unable to contact" in caplog.text.lower()


def test_a_squeue_without_a_cluster_is_no_word_of_a_local_run(squeue, tmp_path, caplog):
    squeue("print('This machine has no cluster.')")
    status.refuse_second_run(is_cluster=False)
    (tmp_path / "bin" / "squeue").write_text("no program")
    status.refuse_second_run(is_cluster=False)
    assert not caplog.text
    status.refuse_second_run(is_cluster=True)
    assert "does not start" in caplog.text
