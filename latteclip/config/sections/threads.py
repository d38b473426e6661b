"""The section `threads`."""

from latteclip.config.sections.base import Positive, Section, key


class ThreadsSection(Section):
    """CPU threads of each job, at most the cores of the machine."""

    index_images: Positive = key(8, "threads of index_images")
    pseudo_label_images: Positive = key(8, "threads of pseudo_label_images")
    caption: Positive = key(
        8, "threads of caption_images, caption_groups and score_classes"
    )
    finetune: Positive = key(8, "threads of finetune")
    evaluate: Positive = key(8, "threads of evaluate")
