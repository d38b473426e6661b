"""How often the page's claim about new images holds, and how wide it is.

    python benchmarks/claim.py results/NAME ... [--counts 20 50 100 200] [--drawings 100]

Results are finished runs of the target `labels` on datasets with labels and a test split, whose
images stand for those of next week. Labels simulate a person. Half of the answers teach, as the
page of `latteclip teach` asks for them, and half are about images drawn at random, in each drawing
others. All of them teach the labels.

The claim is the share of images that `image_prototypes` classifies correctly where it was learned
without their fold, with its interval of 95 %. Images that taught are a stratum of their own. The
claim holds if the interval contains the accuracy on the test images by the classifier of the same
drawing. The last column counts drawings in which this accuracy is lower by more than LOSS points
than with the number of answers before.
"""

import argparse
from pathlib import Path

import answers
import numpy as np
import torch

from latteclip.audit.score import MANY, share
from latteclip.labels.fusion import LabelModel

LOSS = 3  # points


def claim(
    case: answers.Case, model: LabelModel, taught: torch.Tensor, checks: torch.Tensor
) -> tuple[float, float, float, float]:
    """Return value, low and high of the claim, and the accuracy on the test images."""
    rows = torch.cat([checks, taught])
    fusion = model.answered(case.labelled(rows)).fused()
    hits = (fusion.predicted[rows] == case.labels[rows]).double().numpy()
    strata = np.repeat([0, 1], [len(checks), len(taught)])
    sizes = MANY * np.array([len(case.labels) - len(taught), len(taught)])
    value, low, high = share(hits, strata, sizes)
    right = fusion.head.logits(case.new).argmax(dim=1) == case.new_labels
    return value, low, high, right.double().mean().item()


def main() -> None:
    """Print a line for each set and number of answers."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("results", type=Path, nargs="+")
    parser.add_argument("--counts", type=int, nargs="+", default=[20, 50, 100, 200])
    parser.add_argument("--drawings", type=int, default=100)
    args = parser.parse_args()
    print(
        "set | answers | drawings | claim | true | width | interval holds the truth in | worse"
    )
    for folder in args.results:
        case = answers.finished(folder)
        model = LabelModel(case.images, case.votes, case.others)
        before = np.zeros(args.drawings)
        for n in args.counts:
            taught = answers.asked(case, n, 0)[: n // 2]
            rows = []
            for seed in range(args.drawings):
                is_open = torch.ones(len(case.labels), dtype=torch.bool)
                is_open[taught] = False
                rest = is_open.nonzero()[:, 0]
                order = torch.randperm(
                    len(rest), generator=torch.Generator().manual_seed(seed)
                )
                checks = rest[order[: n - n // 2]]
                rows.append(claim(case, model, taught, checks))
            value, low, high, true = np.array(rows).T
            holds = (low <= true) & (true <= high)
            cells = [value.mean(), true.mean(), (high - low).mean(), holds.mean()]
            shown = " | ".join(f"{100 * cell:.1f}" for cell in cells)
            worse = int((100 * (before - true) > LOSS).sum())
            before = true
            print(f"{folder.name} | {n} | {len(rows)} | {shown} | {worse}", flush=True)


if __name__ == "__main__":
    main()
