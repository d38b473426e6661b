# Shared by the rules: the code and environment of their commands, the checked configuration, and
# short names for functions of latteclip/cli/rule_functions.py.
import os
import sys

# The folder of the Snakefile in use: the code beside it comes before any installed one.
ROOT = Path(os.path.realpath(workflow.current_basedir)).parents[1]
IS_CLONE = (ROOT / "latteclip").is_dir()
if IS_CLONE:
    sys.path.insert(0, str(ROOT))

from latteclip.cli.rule_functions import (
    RuleFunctions,
    file_names,
    one_of,
    option_each,
    options,
)
from latteclip.config import job_resources, stage_code, stage_params
from latteclip.config.configuration import Configuration
from latteclip.config.stage_params import LEFT_OUT, MODEL_NOTE

functions = RuleFunctions(workflow, config)
configuration = functions.configuration

given = functions.given
given_if = functions.given_if
given_each = functions.given_each
given_json = functions.given_json
unstored = functions.unstored
sources = functions.sources
as_found = functions.as_found
methods_with = functions.methods_with
threads_of = functions.threads_of
gpus = functions.gpus
cores_per_gpu = functions.cores_per_gpu
memory = functions.memory
minutes = functions.minutes

# On any node the commands are those of the environment that runs Snakemake, with the code above.
os.environ.update(
    PATH=os.pathsep.join([os.path.dirname(sys.executable), *os.get_exec_path()]),
    LATTECLIP_ENVS=str(ROOT / "envs"),  # for latteclip.post-deploy.sh
)
if IS_CLONE:
    inherited = os.environ.get("PYTHONPATH")
    os.environ.update(PYTHONPATH=os.pathsep.join(filter(None, [str(ROOT), inherited])))
if workflow.remote_exec:  # a job of a cluster, whose nodes have no internet
    os.environ.update(HF_HUB_OFFLINE="1")
    # SLURM also signals the shell. It must outlive the command, which needs time to save its work.
    shell.prefix("set -euo pipefail; trap : TERM; ")

ANY_DATASET = "[^/]+"


wildcard_constraints:
    dataset=ANY_DATASET,
    method="[^/]+",
    seed=r"\d+",
    kind="images|groups",
    shard=r"\d+",
    shards=r"\d+",


# Pages, choices and audits of a table with its own name stand beside the main ones.
SUFFIX = configuration.suffix
# Priorities on few cores: first the jobs that most others wait for, then the longest ones.
FIRST, EARLY = 2, 1
