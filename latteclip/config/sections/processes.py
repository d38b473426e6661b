"""The section `processes`."""

from latteclip.config.sections.base import Positive, Section, key


class ProcessesSection(Section):
    """Processes of a job, each on its own GPU."""

    finetune: Positive = key(1, "processes of finetune, which divide each batch")
