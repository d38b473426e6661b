"""Pages of made results."""

import json
from dataclasses import asdict
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
from support.made_results import METHODS

from latteclip.core import tables
from latteclip.core.tables import UnknownMetadata
from latteclip.evaluate.results import Audit, AuditedRun
from latteclip.labels.guarantees import Interval
from latteclip.report import report_dataset

VOID = {"meta", "link", "img", "input", "br", "wbr"}


class Page(HTMLParser):
    """The elements of a page, its text by section, and its tables."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.open, self.sections = [], [], {}
        self.tables, self.section = {}, ""
        self.feed(text)
        assert self.open == []  # every element is closed

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.elements.append((tag, attributes))
        if tag not in VOID:
            self.open.append((tag, attributes))
        if tag == "section":
            self.section = attributes.get("id", "")
        if tag == "table":
            self.rows = self.tables.setdefault(attributes.get("id"), [])
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag):
        assert self.open.pop()[0] == tag

    def handle_data(self, data):
        self.sections[self.section] = self.sections.get(self.section, "") + data
        inside = {tag for tag, _ in self.open}
        if inside & {"td", "th"}:
            self.rows[-1][-1] += data


def write(results, *, captions=False, training=None, **files):
    """The page of some results with further files, and its text."""
    if captions:
        files["image_captions"] = results.write_captions()
    if "unknown" not in files:
        files["unknown"] = write_unknown(results)
    if "corrupt" not in files:
        files |= {name: str(results.folder / name) for name in ("corrupt", "duplicates")}
        Path(files["corrupt"]).write_text("image_id,path,split,reason\n")
        columns = {"image_id": [], "set": []}
        tables.write(files["duplicates"], columns, tables.DUPLICATES)
    files.setdefault("encoding", str(results.folder / "encoding.json"))
    Path(files["encoding"]).write_text('{"seconds_per_image": 0.5}')
    methods = {m: {"objective": m, "switches": {}} for m in METHODS}
    settings = report_dataset.ReportSettings(
        **{"dataset": "made", "main": "latteclip", "baseline": "zero_shot"},
        **{"suffix": "", "training": training},
        config={"title": "<u>Made</u>", "methods": methods, "seeds": [0]},
    )
    output = results.folder / "report.html"
    inputs = report_dataset.PageFiles(results.images, results.pseudo_labels, **files)
    report_dataset.report_dataset(inputs, [], results.runs, settings, str(output))
    text = output.read_text()
    return Page(text), text


def write_audit(folder, dataset, methods):
    """What a person's answers say of one run of each of some methods; the path."""
    runs = [
        AuditedRun(method, number, Interval(0.41 + 0.1 * number, 0.3, 0.62, 37), [])
        for number, method in enumerate(methods)
    ]
    path = folder / "audit.json"
    audit = Audit(dataset, "test", 53, 40, "It <i>helped</i>.", runs[::-1])
    path.write_text(json.dumps(asdict(audit)))
    return str(path)


def write_unknown(results, by_captioner=()):
    """Scores by which images are of no class, the last image's the highest; the path.

    Those of the captioner are of the first images.
    """
    path = results.folder / "unknown.parquet"
    scores = np.arange(len(results.image_ids)) / len(results.image_ids)
    columns = {
        "image_id": results.image_ids,
        "score": scores.astype(np.float32),
        "captioner_score": [*by_captioner, *[None] * (len(scores) - len(by_captioner))],
        "is_unknown": scores > 0.9,
    }
    metadata = UnknownMetadata(list(results.classnames))
    tables.write(path, columns, tables.UNKNOWN, metadata)
    return str(path)
