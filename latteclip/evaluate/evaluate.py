"""Images classified by the model of a run: the test split, and training images it left out."""

from latteclip.clip.model import load_finetuned
from latteclip.core import devices, tables
from latteclip.core.holdout import Fold
from latteclip.evaluate.classify import classify_evaluated, classify_left_out
from latteclip.evaluate.results import RunFiles
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

    The training images of the fold, which were not trained on, are classified as well.
    """
    history = tables.read_metadata(history_path, TrainingMetadata)
    where = devices.pick(device, threads)
    model = load_finetuned(model_path, where, precision)
    run = RunFiles(
        method, seed, metrics_output, train_predictions_output, predictions_output
    )
    classify_evaluated(
        images_path,
        model,
        classify_left_out(images_path, model, fold, threads),
        history.flags,
        dataset,
        run,
        threads,
    )
