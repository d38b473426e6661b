"""Fixtures of all tests. The process that starts workers imports this file, and no torch."""

import os
import shutil
import tempfile

import pytest
from filelock import FileLock
from hypothesis import HealthCheck, settings
from support import warm

os.environ.setdefault("HF_HUB_OFFLINE", "1")
# Tiny tensors: more threads only wait for each other. Also of processes that tests start.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Of tests with random cases: seconds in all for `make test`, minutes for `make fuzz`.
mild = {"deadline": None, "database": None, "suppress_health_check": [HealthCheck.too_slow]}
settings.register_profile("test", max_examples=50, **mild)
settings.register_profile("fuzz", max_examples=500, **mild)
settings.load_profile("fuzz" if "FUZZ_SECONDS" in os.environ else "test")


# Files that take longest begin, so that none is left for the end side by side.
FIRST = (
    "tests/cluster/test_slurm.py",
    "tests/workflow/test_workflow.py",
    "tests/project/test_benchmarks.py",
    "tests/project/test_notebook.py",
    "tests/captions/engines/test_vllm.py",
    "tests/project/test_browser.py",
    "tests/project/test_tutorial.py",
    "tests/data/test_datasets.py",
    "tests/workflow/test_walk.py",
    "tests/workflow/test_labellers.py",
    "tests/workflow/test_discover.py",
    "tests/workflow/test_cores.py",
    "tests/workflow/test_projects.py",
    "tests/captions/engines/test_vllm_server.py",
    "tests/deploy/test_export.py",
    "tests/project/test_recipes.py",
    "tests/labels/test_label_model.py",
    "tests/train/test_finetune.py",
)


def pytest_configure(config):
    """One folder of warm processes for all workers of pytest-xdist, which inherit what is set.

    Tests mean the same with and without a GPU: only `pytest -m gpu` sees it. There, tests and the
    processes that they start share it, for one that claims it would make the others wait.
    """
    if not hasattr(config, "workerinput"):
        on_gpu = config.option.markexpr == "gpu"
        os.environ |= (
            {"LATTECLIP_GPUS": "shared"} if on_gpu else {"CUDA_VISIBLE_DEVICES": ""}
        )
        os.environ |= {warm.FOLDER: tempfile.mkdtemp(), warm.OWNER: str(os.getpid())}


def pytest_unconfigure(config):
    if not hasattr(config, "workerinput"):
        shutil.rmtree(os.environ[warm.FOLDER])


def pytest_collection_modifyitems(items):
    order = {file: number for number, file in enumerate(FIRST)}
    items.sort(key=lambda item: order.get(item.nodeid.partition("::")[0], len(order)))


@pytest.fixture(scope="session")
def demo_clip():
    import torch
    from support.tiny import DEMO_CLIP

    from latteclip.clip import model as clips

    return clips.load(f"local-dir:{DEMO_CLIP}", None, torch.device("cpu"))


@pytest.fixture(scope="session")
def backbones(tmp_path_factory):
    """Names by which the kinds are loaded; each is written when it is first asked for."""
    from support.tiny import write_backbone

    class Names(dict):
        def __missing__(self, kind):
            self[kind] = write_backbone(kind, tmp_path_factory.mktemp("backbones") / kind)
            return self[kind]

    return Names()


@pytest.fixture
def checkout(tmp_path):
    from support.checkout import Checkout

    return Checkout(tmp_path / "checkout")


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """A checkout in which the shrunken demo has run from its textures to its table.

    Its default methods are one that trains nothing, one without captions and one with them.
    One worker of pytest-xdist runs it. The others take copies.
    """
    from support.checkout import CONFIG, DEMO, Checkout, edit, shrink

    def few_methods(content):
        content["method"] = ["zero_shot", "flyp", "latteclip"]

    base = tmp_path_factory.getbasetemp()
    root = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "finished"
    with FileLock(f"{root}.lock"):
        if not root.exists():
            original = Checkout(root.with_name("unfinished"))
            edit(original, DEMO, shrink)
            edit(original, CONFIG, few_methods)
            (original.root / "run.txt").write_text(original.ran("--config", "seeds=1"))
            original.root.rename(root)
    return Checkout(root).copy(tmp_path_factory.mktemp("finished") / "checkout")


@pytest.fixture
def finished_copy(finished, tmp_path):
    """The same for a test that changes results."""
    return finished.copy(tmp_path / "copy")
