"""The workflow on a real SLURM of two nodes in a temporary folder; it needs no root.

On the login node, NVIDIA's driver is installed and fails.
"""

import contextlib
import getpass
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import time

import pytest
from support import warm
from support.checkout import hear_interrupts
from support.processes import broken_nvidia_smi

DAEMONS = ("slurmctld", "slurmd", "sbatch")
GPUS = ("/dev/null", "/dev/zero")  # SLURM wants character devices, and opens none
# The profile, but at the pace of a test.
PROFILE = (
    *("--workflow-profile", "profiles/slurm"),
    *("--slurm-init-seconds-before-status-checks", "2"),
    *("--latency-wait", "10"),
)
PATIENCE = 600  # seconds until something that must come is missed
CONFIG = """
ClusterName=test
SlurmctldHost={host}({address})
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/slurm
CredType=cred/slurm
SlurmctldPort={controller_port}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
MailProg=/bin/true
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
KillWait=10
MessageTimeout=100
MinJobAge=3600
AccountingStorageType=accounting_storage/none
SlurmdParameters=config_overrides
ReturnToService=2
GresTypes=gpu
NodeName=plain NodeHostname={host} NodeAddr={address} Port={plain_port} CPUs=8 RealMemory=64000
NodeName=gpus NodeHostname={host} NodeAddr={address} Port={gpus_port} CPUs=8 RealMemory=64000 \
Gres=gpu:2
PartitionName=cpu Nodes=plain Default=YES
PartitionName=gpu Nodes=gpus
"""


def _search_path(*before):
    """PATH with the folder of daemons, which people's may lack, behind it."""
    return os.pathsep.join(map(str, [*before, *os.get_exec_path(), "/usr/sbin"]))


def _address():
    """What this machine's name stands for; its daemons listen there and nowhere else."""
    with contextlib.suppress(OSError):
        return socket.gethostbyname(socket.gethostname())
    return None


class Slurm:
    """The cluster; a context manager that starts and stops it."""

    def __init__(self, folder):
        self.folder, self._started = folder, []
        path = _search_path(folder / "login", folder / "bin")
        # What programs of SLURM need to find this cluster, and no other.
        self.environment = {"SLURM_CONF": str(folder / "slurm.conf"), "PATH": path}

    def __enter__(self):
        try:
            self._start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        for process in reversed(self._started):
            process.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(20)
            process.kill()
            process.wait()

    def __call__(self, *command):
        words, environment = list(map(str, command)), {**os.environ, **self.environment}
        options = {"check": True, "capture_output": True, "text": True}
        return subprocess.run(words, env=environment, **options).stdout

    def jobs(self):
        """What `scontrol show job` says of each job, by its rule and in their order."""
        jobs = {}
        for line in self("scontrol", "--oneliner", "show", "jobs").splitlines():
            job = dict(re.findall(r"(\S+?)=(\S*)", line))
            if rule := re.fullmatch(r"rule_(.+)_wildcards_.+", job.get("Comment", "")):
                jobs.setdefault(rule[1], []).append(job)
        return jobs

    def requeue(self, number):
        """Put a running job back into the queue; SLURM would let it wait for two minutes."""
        self("scontrol", "requeue", number)
        job = f"JobId={number}"
        wait(lambda: self._is(job, "PENDING"), "the job in the queue")
        wait(self.is_idle, "idle nodes")
        time.sleep(2)  # within a second the node refuses a job that it is to forget
        self("scontrol", "update", job, "StartTime=now")
        wait(lambda: self._is(job, "RUNNING"), "the job to run again")

    def _is(self, job, state):
        return f"JobState={state}" in self("scontrol", "show", job)

    def _start(self):
        for name in ("state", "bin", "login"):
            (self.folder / name).mkdir(parents=True)
        broken_nvidia_smi(self.folder / "login")
        # Snakemake's job step calls srun without SLURM_CONF. The nodes have no driver.
        srun = self.folder / "bin" / "srun"
        configuration = shlex.quote(self.environment["SLURM_CONF"])
        path = f'PATH=$(echo "$PATH" | sed "s|{self.folder}/login:||")'
        srun.write_text(
            f'#!/bin/sh\n{path}\nSLURM_CONF={configuration} exec {shutil.which("srun")} "$@"\n'
        )
        srun.chmod(0o755)
        key = self.folder / "slurm.key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o400)
        self.folder.chmod(0o755)
        ports = {f"{name}_port": _free_port() for name in ("controller", "plain", "gpus")}
        machine = {"host": socket.gethostname().split(".")[0], "address": _address()}
        text = CONFIG.format(**machine, **ports, user=getpass.getuser(), folder=self.folder)
        (self.folder / "slurm.conf").write_text(text)
        lines = [f"NodeName=gpus Name=gpu File={device}" for device in GPUS]
        (self.folder / "gres.conf").write_text("\n".join(["AutoDetect=off", *lines]) + "\n")
        (self.folder / "cgroup.conf").write_text("CgroupPlugin=disabled\n")
        self._daemon("slurmctld", "-D", "-i")
        for node in ("plain", "gpus"):  # one after the other: they share a socket
            log = self._daemon("slurmd", "-D", "-N", node)
            wait(lambda log=log: "slurmd started" in log.read_text(), f"slurmd of {node}")
        wait(self.is_idle, f"idle nodes (see the logs in {self.folder})")

    def _daemon(self, name, *options):
        """Start a daemon, and return the file of what it prints."""
        log = self.folder / f"{name}{options[-1]}.out"
        environment = {**os.environ, **self.environment}
        with log.open("w") as output:
            streams = {"stdout": output, "stderr": subprocess.STDOUT}
            daemon = subprocess.Popen(
                [name, *options], env=environment, start_new_session=True, **streams
            )
        self._started.append(daemon)
        return log

    def is_idle(self):
        with contextlib.suppress(subprocess.CalledProcessError):
            return set(self("sinfo", "-h", "-o", "%T").split()) == {"idle"}
        return False


def wait(condition, what):
    """The first true value of a condition."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        if value := condition():
            return value
        time.sleep(0.3)
    raise TimeoutError(f"{what} did not come within {PATIENCE} s")


def _free_port():
    with socket.socket() as probe:
        probe.bind((_address(), 0))
        return probe.getsockname()[1]


pytestmark = [pytest.mark.slurm, pytest.mark.slow]
TRAINING = "results/demo/latteclip/seed0"
CONFIGURED = (
    "compute={'shards': 2, 'checkpoint_minutes': 0}",
    "method=latteclip",
    "seeds=1",
)
WRITTEN = INDEX, CAPTIONS, GROUPS = (
    "results/demo/images.parquet",
    "results/demo/captions/images.parquet",
    "results/demo/captions/groups.parquet",
)
# The training waits after its first step until SLURM stops it: at the end of finetune.py.
WAITING = """

import os
import time

CHECK_EVERY = 1  # steps
save_alone = Checkpoint.save
train_alone = _train


def _train(*arguments):
    Checkpoint.signals = arguments[-1]
    train_alone(*arguments)


def save(self, training):
    save_alone(self, training)
    while not self.signals.number and os.environ.get("SLURM_RESTART_COUNT", "0") == "0":
        time.sleep(0.1)


Checkpoint.save = save
"""


class ClusterRun:
    """A checkout whose workflow runs on a cluster."""

    def __init__(self, checkout, slurm):
        self.checkout, self.root, self.slurm = checkout, checkout.root, slurm
        checkout.environment |= slurm.environment
        self._log = self.root / "snakemake.out"

    def start(self, python, *arguments):
        """Start snakemake in a Python; what it prints goes to a file."""
        with self._log.open("w") as output:
            self.process = self.checkout.start(
                *(python, "-m", "snakemake", *PROFILE, *arguments, "--config", *CONFIGURED),
                stdout=output,
                preexec_fn=hear_interrupts,
            )

    def finish(self):
        assert self.process.wait(PATIENCE) == 0, self._log.read_text()

    def stop(self):
        """End what a test that failed left."""
        self.process.kill()
        self.slurm("scancel", "--me")
        wait(self.slurm.is_idle, "idle nodes")


def asked(job):
    """What a job asked for: its partition, cores, memory in MB, minutes, and whether for a GPU."""
    wanted = dict(item.split("=", 1) for item in job["ReqTRES"].split(","))
    hours, minutes, _ = map(int, job["TimeLimit"].split(":"))
    return {
        "partition": job["Partition"],
        "cores": int(wanted["cpu"]),
        "memory": int(wanted["mem"].removesuffix("M")),
        "minutes": 60 * hours + minutes,
        "gpu": bool(re.search(r"gpu[:=]\d", job.get("TresPerJob", ""))),
    }


@pytest.fixture(scope="module")
def run(finished, tmp_path_factory):
    """The shrunken demo with an index and captions in two shards that the cluster wrote."""
    lacking = [name for name in DAEMONS if shutil.which(name, path=_search_path()) is None]
    if lacking:
        pytest.skip(f"SLURM is not installed: no {', '.join(lacking)}")
    if not (_address() or "").startswith("127."):
        pytest.skip(
            "this machine's name does not stand for 127.0.0.1: others could reach SLURM"
        )
    checkout = finished.copy(tmp_path_factory.mktemp("cluster") / "checkout")
    for name in WRITTEN:
        (checkout.root / name).unlink()
    folder = tmp_path_factory.mktemp("slurm") / "slurm"
    with pytest.MonkeyPatch.context() as patch, Slurm(folder) as slurm:
        patch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        run = ClusterRun(checkout, slurm)
        run.start(warm.interpreter(), CAPTIONS, GROUPS)
        run.finish()
        yield run
        run.stop()


def test_each_stage_asks_for_what_it_needs(run):
    jobs = run.slurm.jobs()
    found = {rule: asked(first) for rule, [first, *_] in jobs.items()}
    on_gpus = {"encode_clip_images", "pseudo_label_images"}
    on_gpus |= {"caption_images_shard", "caption_groups_shard"}
    assert found.keys() == {"index_images", "gather_captions", *on_gpus}
    for rule, each in found.items():
        assert each["gpu"] == (rule in on_gpus), rule
        assert each["partition"] == ("gpu" if each["gpu"] else "cpu"), rule
        assert each["memory"] >= 4_000, rule
        assert each["minutes"] >= 10, rule
    assert found["index_images"]["cores"] == 1  # as configured, whatever the login node has
    states = [job["JobState"] for job in jobs["caption_images_shard"]]
    assert states == ["COMPLETED"] * 2


def test_a_requeued_training_continues_to_what_one_machine_trains(run, finished):
    for name in WRITTEN:
        assert (run.root / name).read_bytes() == (finished.root / name).read_bytes()
    folder, model = run.root / TRAINING, "model/open_clip_model.safetensors"
    shutil.rmtree(folder)
    with (run.root / "latteclip/train/finetune.py").open("a") as file:
        file.write(WAITING)
    # Signals of SLURM reach Snakemake and its jobs, which are no children of warm processes.
    run.start(warm.interpreter("stages"), f"{TRAINING}/history.parquet")
    wait(lambda: [*folder.glob("checkpoint/*.pt")], "a checkpoint")
    [training] = run.slurm.jobs()["finetune"]
    assert asked(training)["gpu"]
    run.slurm.requeue(training["JobId"])
    run.finish()
    log = (folder / "logs" / "finetune.log").read_text()
    assert "Resuming after step" in log
    assert (folder / model).read_bytes() == (finished.root / TRAINING / model).read_bytes()
    assert not (folder / "checkpoint").exists()
