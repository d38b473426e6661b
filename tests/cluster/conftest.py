import pytest
from support.checkout import DEMO, edit, shrink
from support.slurm import OnCluster, Slurm, obstacle

PSEUDO_LABELS = "results/demo/pseudo_labels.parquet"


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    """A running SLURM."""
    if reason := obstacle():
        pytest.skip(reason)
    with Slurm(tmp_path_factory.mktemp("slurm") / "slurm") as cluster:
        yield cluster


@pytest.fixture
def on_cluster(slurm):
    """Makes the workflow of a checkout run on the cluster."""
    yield lambda checkout, **options: OnCluster(checkout, slurm, **options)
    slurm.cancel_all()


@pytest.fixture
def indexed(checkout):
    """A checkout of the shrunken demo with pseudo-labels, made by this machine."""
    edit(checkout, DEMO, shrink)
    run = checkout.snakemake(PSEUDO_LABELS)
    assert run.returncode == 0, run.stdout
    return checkout
