"""Captions by all GPUs of one machine, and a login node without one."""

import os
import re
import shlex
import shutil

import pyarrow.parquet as pq
import pytest
from support.processes import broken_nvidia_smi, nvidia_smi
from support.tiny import ROOT, write_pictures

CAPTIONS = "results/demo/captions/images.parquet"
# Each captioning job waits until both have locked a GPU: at the end of devices.py.
TOGETHER = """

def refuse_unusable(*_, **__):
    pass  # the demo's engine computes on the CPU


claim_alone = claim


def claim(n=1):
    claim_alone(n)
    claimed = Path("claimed")
    claimed.mkdir(exist_ok=True)
    (claimed / os.environ[CLAIMED]).touch()
    for _ in range(3000):
        if len(list(claimed.iterdir())) == 2:
            return
        time.sleep(0.1)
    raise UserError("The other does not come.")
"""


@pytest.mark.slow
def test_two_gpus_caption_in_two_shards_at_once_and_other_machines_rerun_nothing(
    finished_copy, tmp_path, monkeypatch
):
    root = finished_copy.root
    alone = pq.read_table(root / CAPTIONS)
    for folder in ("results", "resources"):
        shutil.rmtree(root / folder / "demo/captions")
    with (root / "latteclip/core/devices.py").open("a") as file:
        file.write(TOGETHER)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    finished_copy.environment |= {
        "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}",
        "TMPDIR": str(tmp_path),  # where the locks of GPUs are
    }
    nvidia_smi(tmp_path, ["GPU-0", "GPU-1"])
    two = ("--config", "compute={'shards': 2}")
    finished_copy.ran(CAPTIONS, *two)
    logs = root.glob("results/demo/logs/caption_images-*-of-2.log")
    used = {re.search(r"This job uses (GPU-\d)", log.read_text())[1] for log in logs}
    assert used == {"GPU-0", "GPU-1"}
    assert pq.read_table(root / CAPTIONS) == alone
    nvidia_smi(tmp_path, [])
    assert "Nothing to be done" in finished_copy.ran("--dry-run", CAPTIONS, *two)


def without_driver(checkout, folder, monkeypatch):
    """The checkout where NVIDIA's driver is installed and fails."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    broken_nvidia_smi(folder)
    checkout.environment |= {"PATH": f"{folder}{os.pathsep}{os.environ['PATH']}"}
    return checkout


@pytest.fixture
def login_node(checkout, tmp_path, monkeypatch):
    return without_driver(checkout, tmp_path, monkeypatch)


def documented():
    """The commands of docs/cluster.md."""
    text = (ROOT / "docs/cluster.md").read_text().replace("\\\n", "")
    return re.findall(r"(?:^    |`)((?:snakemake|latteclip) [^`\n]+)", text, re.MULTILINE)


@pytest.mark.slow
def test_a_login_node_whose_driver_fails_runs_every_command(
    finished_copy, tmp_path, monkeypatch
):
    """Those of docs/cluster.md, `export` and `audit`. Commands that run jobs plan them."""
    node = without_driver(finished_copy, tmp_path, monkeypatch)
    for folder in (node.root, node.root / "my-project"):
        write_pictures(folder / "photos", 8)
        (folder / "photos" / "classes.txt").write_text("cat\ndog\n")
    shutil.copytree(node.root / "results", tmp_path / "latteclip" / "results")
    commands = documented()
    assert len(commands) >= 8
    commands += [
        "snakemake --cores all --unlock",
        "latteclip status --estimate",
        "latteclip export results/demo exported --format open_clip",
        "latteclip audit results/demo --offline audit.html",
    ]
    for command in commands:
        placed = command.replace("<clone>", str(node.root)).replace("/data", str(tmp_path))
        script, *arguments = shlex.split(placed)
        plans = script == "snakemake" or arguments[0] == "workflow"
        if plans and "--unlock" not in arguments:
            arguments.append("--dry-run")
        run = getattr(node, script)(*arguments)
        assert run.returncode == 0, f"{command}\n{run.stdout}"
    # A job that wants a card, here, is another matter.
    run = node.snakemake("--cores", "2", "--forcerun", "finetune")
    assert run.returncode != 0 and "repair the driver" in run.stdout


SLURM = ("--dry-run", "--workflow-profile", "profiles/slurm")


def resources_of(plan):
    """The resources of each rule that a dry run plans."""
    jobs = re.findall(r"^(?:local)?rule (\w+):\n((?:    .*\n)+)", plan, re.MULTILINE)
    return {
        rule: dict(re.findall(r"(\w+)=([^,\n]+)", lines.partition("resources:")[2]))
        for rule, lines in jobs
    }


def test_a_login_node_with_a_driver_and_no_gpu_plans_jobs_with_gpus(login_node):
    config = ("--config", "dataset=demo", "method=latteclip,recommended")
    planned = resources_of(login_node.ran(*SLURM, *config))
    on_gpus = {rule for rule, each in planned.items() if each.get("gpu") == "1"}
    assert on_gpus == {
        *("encode_clip_images", "pseudo_label_images"),
        *("caption_images", "caption_groups", "write_votes"),
        *("find_learning_rate", "finetune", "average_weights", "evaluate"),
    }
    for rule, each in planned.items():
        if "slurm_partition" in each:  # the others run on the login node
            assert each["slurm_partition"] == ("gpu" if rule in on_gpus else "cpu"), rule


def test_jobs_that_a_server_or_a_file_answers_ask_for_no_gpu(login_node):
    """Nor do they wait in the partition of GPUs."""
    (login_node.root / "mine.csv").write_text("image_id,class\n")
    labellers = (
        "labellers=[{name: words, kind: captions}, {name: a, kind: file, file: mine.csv}]"
    )
    server = "captioner={engine: openai, model: m}"
    config = ("--config", "dataset=demo", "method=image_prototypes", server, labellers)
    target = "results/demo/votes/a.parquet"
    planned = resources_of(login_node.ran(*SLURM, "labels", target, *config))
    for rule in ("caption_images", "fuse_labels"):
        assert planned[rule].get("gpu", "0") == "0", rule
        assert planned[rule]["slurm_partition"] == "cpu", rule
    # A site's own resources, of which one is an expression.
    own = ("slurm_partition='a' if attempt < 2 else 'b'", "gpu_job_gres='gpu:1'")
    plan = login_node.ran(*SLURM, target, *config, "--default-resources", *own)
    votes = resources_of(plan)["write_votes"]
    assert (votes["gpu"], votes["slurm_partition"], "gres" in votes) == ("0", "a", False)
