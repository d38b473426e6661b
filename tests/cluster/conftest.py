"""A real SLURM in a temporary folder, of two nodes, one of which has GPUs; it needs no root."""

import contextlib
import getpass
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from support import warm
from support.checkout import hear_interrupts

DAEMONS = ("slurmctld", "slurmd", "sbatch")
GPUS = (
    "/dev/null",
    "/dev/zero",
)  # SLURM wants character devices, and looks at no more than that
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


def obstacle():
    """Why SLURM cannot be started here, or None."""
    lacking = [name for name in DAEMONS if shutil.which(name, path=_search_path()) is None]
    if lacking:
        return f"SLURM is not installed: no {', '.join(lacking)}"
    if not (_address() or "").startswith("127."):
        return f"{socket.gethostname()} does not stand for 127.0.0.1 here: others could reach SLURM"
    return None


def _search_path(*before):
    """PATH with the folder of daemons, which people's may lack, behind it."""
    return os.pathsep.join(map(str, [*before, *os.get_exec_path(), "/usr/sbin"]))


def _address():
    """What this machine's name stands for; its daemons listen there and nowhere else."""
    with contextlib.suppress(OSError):
        return socket.gethostbyname(socket.gethostname())
    return None


@dataclass
class Slurm:
    """The cluster; a context manager that starts and stops it."""

    folder: Path
    _started: list[subprocess.Popen] = field(default_factory=list)

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

    @property
    def environment(self):
        """What programs of SLURM need to find this cluster, and no other."""
        configuration = str(self.folder / "slurm.conf")
        return {"SLURM_CONF": configuration, "PATH": _search_path(self.folder / "bin")}

    def __call__(self, *command):
        return subprocess.run(
            list(map(str, command)),
            env={**os.environ, **self.environment},
            check=True,
            capture_output=True,
            text=True,
        ).stdout

    def jobs(self):
        """What `scontrol show job` says of each job, finished ones and tasks of arrays included."""
        listed = self("scontrol", "--oneliner", "show", "jobs").splitlines()
        return [dict(re.findall(r"(\S+?)=(\S*)", line)) for line in listed if "=" in line]

    def requeue(self, number):
        """Put a running job back into the queue; SLURM would let it wait for two minutes."""
        self("scontrol", "requeue", number)
        job = f"JobId={number}"
        wait(
            lambda: "JobState=PENDING" in self("scontrol", "show", job),
            "the job in the queue",
        )
        wait(self._is_idle, "idle nodes")
        time.sleep(
            2
        )  # what the node was told to forget it would refuse within the same second
        self("scontrol", "update", job, "StartTime=now")
        wait(
            lambda: "JobState=RUNNING" in self("scontrol", "show", job),
            "the job to run again",
        )

    def _start(self):
        for name in ("state", "bin"):
            (self.folder / name).mkdir(parents=True)
        # Snakemake's job step calls srun without SLURM_CONF.
        srun = self.folder / "bin" / "srun"
        configuration = shlex.quote(self.environment["SLURM_CONF"])
        srun.write_text(
            f'#!/bin/sh\nSLURM_CONF={configuration} exec {shutil.which("srun")} "$@"\n'
        )
        srun.chmod(0o755)
        key = self.folder / "slurm.key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o400)
        self.folder.chmod(0o755)
        host = socket.gethostname().split(".")[0]
        (self.folder / "slurm.conf").write_text(
            CONFIG.format(
                host=host,
                address=_address(),
                user=getpass.getuser(),
                folder=self.folder,
                controller_port=_free_port(),
                plain_port=_free_port(),
                gpus_port=_free_port(),
            )
        )
        lines = [f"NodeName=gpus Name=gpu File={device}" for device in GPUS]
        (self.folder / "gres.conf").write_text("\n".join(["AutoDetect=off", *lines]) + "\n")
        (self.folder / "cgroup.conf").write_text("CgroupPlugin=disabled\n")
        self._daemon("slurmctld", "-D", "-i")
        for node in ("plain", "gpus"):
            self._daemon("slurmd", "-D", "-N", node)
            output = (
                self.folder / f"slurmd{node}.out"
            )  # one after the other: they share a socket
            wait(
                lambda file=output: "slurmd started" in file.read_text(),
                f"slurmd of {node}",
            )
        wait(self._is_idle, f"idle nodes (see the logs in {self.folder})")

    def _daemon(self, name, *options):
        with (self.folder / f"{name}{options[-1]}.out").open("w") as output:
            self._started.append(
                subprocess.Popen(
                    [name, *options],
                    env={**os.environ, **self.environment},
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            )

    def _is_idle(self):
        with contextlib.suppress(subprocess.CalledProcessError):
            return set(self("sinfo", "-h", "-o", "%T").split()) == {"idle"}
        return False


class OnCluster:
    """A checkout whose workflow runs on a cluster."""

    def __init__(self, checkout, slurm, *, is_cold=False):
        """Where it is cold, signals of SLURM reach the stages, and not warm processes alone."""
        self.checkout, self.slurm = checkout, slurm
        self._python = sys.executable if is_cold else warm.interpreter()
        checkout.environment |= slurm.environment
        self._log = checkout.root / "snakemake.out"

    def start(self, *arguments):
        """Start snakemake; what it says goes to a file."""
        with self._log.open("w") as output:
            return self.checkout.start(
                *(self._python, "-m", "snakemake", *PROFILE, *arguments),
                stdout=output,
                preexec_fn=hear_interrupts,
            )

    def finish(self, process):
        """Wait for its good end; what it said."""
        process.wait(900)
        said = self._log.read_text()
        assert process.returncode == 0, said
        return said

    def jobs(self):
        """The jobs that it submitted, in their order."""
        here = str(self.checkout.root)
        return [job for job in self.slurm.jobs() if job["WorkDir"] == here]

    def wait(self, condition, what):
        return wait(condition, what)

    def jobs_of(self, rule):
        return [job for job in self.jobs() if job["Comment"].startswith(f"rule_{rule}_")]

    @staticmethod
    def requested(job):
        """What a job asked for: partition, cores, memory in MB, minutes, GPUs."""
        asked = dict(item.split("=", 1) for item in job["ReqTRES"].split(","))
        hours, minutes, _ = map(int, job["TimeLimit"].split(":"))
        gpus = re.search(r"gpu[:=](\d+)", job.get("TresPerJob", ""))
        return {
            "partition": job["Partition"],
            "cores": int(asked["cpu"]),
            "memory": int(asked["mem"].removesuffix("M")),
            "minutes": 60 * hours + minutes,
            "gpus": int(gpus[1]) if gpus else 0,
        }


def wait(condition, what):
    """The first true value of a condition."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        if value := condition():
            return value
        time.sleep(0.1)
    raise TimeoutError(f"{what} did not come within {PATIENCE} s")


def _free_port():
    with socket.socket() as probe:
        probe.bind((_address(), 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="session")
def cluster(tmp_path_factory):
    """A running SLURM."""
    if reason := obstacle():
        pytest.skip(reason)
    with Slurm(tmp_path_factory.mktemp("slurm") / "slurm") as running:
        yield running


@pytest.fixture(scope="session")
def on_cluster(cluster):
    """Runs the workflow of a checkout there."""
    return lambda checkout, **options: OnCluster(checkout, cluster, **options)
