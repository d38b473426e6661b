"""Images classified by the model of a run: the test split, and training images it left out."""

import pyarrow as pa

from latteclip.clip.encode import classify_files
from latteclip.clip.model import load_finetuned
from latteclip.core import devices, tables
from latteclip.core.holdout import Fold, unseen
from latteclip.evaluate.results import RunFiles, read_evaluated_images, write_run
from latteclip.labels.votes import Ints
from latteclip.train.settings import TrainingMetadata


def evaluate(
    images_path: str,
    model_path: str,
    history_path: str,
    fold: Fold,
    *,
    precision: str,
    dataset: str,
    method: str,
    seed: int,
    predictions_output: str,
    metrics_output: str,
    train_predictions_output: str,
    device: str,
    threads: int,
) -> None:
    """Classify the test split with a fine-tuned model, or all images without a test split.

    The training images that were not trained on are classified as well.
    """
    history = tables.read_metadata(history_path, TrainingMetadata)
    where = devices.pick(device, threads)
    model = load_finetuned(model_path, where, precision)

    def rank(images: pa.Table, k: int) -> Ints:
        if not len(images):
            return Ints((0, k), dtype=int)
        paths = tables.Strings(images["path"])
        return classify_files(model, paths, k, threads).numpy()

    images, _ = tables.read_unlabelled(images_path, training=True)
    ids = tables.Strings(images["image_id"])
    held_out = images.filter(pa.array(unseen(ids, fold, history.drawn)))
    evaluated, classnames = read_evaluated_images(images_path)
    run = RunFiles(
        method, seed, metrics_output, train_predictions_output, predictions_output
    )
    write_run(
        evaluated,
        classnames,
        rank(evaluated, tables.TOPK),
        (held_out["image_id"], rank(held_out, 1)[:, 0]),
        history.flags,
        dataset,
        run,
    )
