"""The tables of captions, names, class scores and votes, below the results of a dataset."""

IMAGES = "images"
GROUPS = "groups"
NAMES = "names"
SCORES = "scores"
# By what a captioner is asked for.
TABLES = {
    IMAGES: "captions/images.parquet",
    GROUPS: "captions/groups.parquet",
    NAMES: "names.parquet",
    SCORES: "class_scores.parquet",
}
VOTERS = "voters"  # folder of the tables that one voter alone has


def voter_table(name: str) -> str:
    """Return the table of a voter whose votes a job of its own writes."""
    return f"{VOTERS}/{name}.parquet"
