"""Snakemake's command line, whose --summary lists the jobs of the workflow as lines of JSON.

Snakemake's own --summary has no reasons, and its dry run lists no finished jobs.
"""

import json
import sys
from collections.abc import AsyncIterator
from typing import Any

from snakemake import cli
from snakemake.dag import DAG
from snakemake.io import is_flagged


async def summary(dag: Any, detailed: bool = False) -> AsyncIterator[str]:
    """Yield the fields of `status.Job` of each job that writes files."""
    for job in dag.jobs:
        if job.output:
            reason = dag.reason(job)
            values = {
                "rule": job.rule.name,
                "wildcards": dict(job.wildcards.items()),
                "outputs": list(map(str, job.output)),
                "exists": all(
                    [is_flagged(file, "temp") or await file.exists() for file in job.output]
                ),
                "reason": str(reason) if reason else "",
                "before": list(reason.params_changed.only_old),
                "now": list(reason.params_changed.only_new),
            }
            yield json.dumps(values)


if __name__ == "__main__":
    DAG.summary = summary
    cli.main(["--summary", *sys.argv[1:]])
