"""Commands that pages, messages and README print, run as they stand in the folder of the results.

They are of the shrunken demo, so the names of a user's dataset and photographs are replaced.
"""

import html
import re
import signal

import pytest
from support import warm
from support.checkout import hear_interrupts
from support.textures import write_textures
from support.tiny import ROOT

from latteclip.core import tables
from latteclip.labels.answers import CHECK, CLASS, TEACH, Answer, teaching_schema

pytestmark = pytest.mark.slow
RESULTS = "results/demo"
PROGRAMS = "latteclip ", "snakemake "
SERVED = "latteclip teach", "latteclip audit"  # commands that serve a page until Ctrl-C
PLACES = {
    "results/mine": RESULTS,
    "dataset=mine image_dir=photos": "dataset=demo seeds=1",
    "dataset=mine image_dir=path/to/photos": "dataset=demo seeds=1",
    "new-photos": "photos",
    "0.05": "0.1",  # so few images have 30 answers that check
}


@pytest.fixture(scope="module")
def folder(finished, tmp_path_factory):
    """The demo in which a person answered about all training images, and a run followed."""
    copy = finished.copy(tmp_path_factory.mktemp("printed") / "latteclip")
    write_textures(copy.root / "photos", 4, gap=0.5, seed=0)
    index = copy.root / RESULTS / "images.parquet"
    table, classnames = tables.read_unlabelled(index, training=True)
    answers = {}
    for number, image_id in enumerate(table["image_id"].to_pylist()):
        phase = CHECK if number % 2 else TEACH
        name = classnames[number % len(classnames)]
        answers[image_id] = Answer(image_id, CLASS, name, phase)
    schema = teaching_schema("demo", classnames, table)
    schema.write(copy.root / RESULTS / "answers.json", answers, "")
    run = copy.snakemake("--config", "seeds=1")
    assert run.returncode == 0, run.stdout
    (copy.root / "last_run.txt").write_text(run.stdout)
    return copy


def run(folder, command):
    """Run a command in a shell, and end one that serves a page as a person does."""
    options = {"start_new_session": True, "preexec_fn": hear_interrupts}
    options["env"] = warm.first(folder.variables())
    is_served = command.startswith(SERVED)
    started = folder.start("bash", "-c", f"exec {command}", **options)
    with started as process:
        if is_served:
            begun = ""
            for line in iter(process.stdout.readline, ""):
                begun += line
                if "Ctrl-C" in line:
                    process.send_signal(signal.SIGINT)
                    break
            return process, begun + process.communicate()[0]
        return process, process.communicate()[0]


def commands_in(text):
    """The commands in a message: at the ends of lines, and before a comma or a full stop."""
    pattern = rf"(?:^|: |Run |\s{{2}})((?:{'|'.join(PROGRAMS)})[^\n]+?)(?=,? then |\.?$)"
    return re.findall(pattern, text, re.MULTILINE)


def check(folder, commands):
    """A command of the workflow repeats the options of the last run: nothing is to be done."""
    assert commands
    for command in dict.fromkeys(commands):
        is_run = command.startswith("snakemake")
        process, output = run(folder, f"{command} --dry-run" if is_run else command)
        assert process.returncode == 0, f"{command}\n{output}"
        assert not is_run or "Nothing to be done" in output, output


def test_commands_of_the_page(folder):
    text = (folder.root / RESULTS / "report.html").read_text("utf-8")
    blocks = re.findall(r'<pre class="command"[^>]*><code>([^<]+)', text)
    check(folder, [html.unescape(block) for block in blocks if block.startswith(PROGRAMS)])


def test_commands_at_the_end_of_a_run(folder):
    output = (folder.root / "last_run.txt").read_text()
    ended = output[output.rindex("The page is") :]
    found = commands_in(ended)
    assert any("predict" in command for command in found)
    check(folder, found)


@pytest.mark.parametrize("heading", ["Twenty minutes of a person", "What you get"])
def test_commands_of_the_readme(folder, heading):
    text = (ROOT / "README.md").read_text("utf-8")
    section = text.partition(f"## {heading}")[2].partition("\n## ")[0]
    lines = re.findall(r"^    (.+)$", section, re.MULTILINE)
    found = [line.partition("  #")[0].strip() for line in lines]
    for place, name in PLACES.items():
        found = [command.replace(place, name) for command in found]
    check(folder, found)
