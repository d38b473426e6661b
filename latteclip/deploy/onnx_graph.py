"""Image tower and classifier as one ONNX graph.

Letters: N images, C classes, D embedding width, H x W the model's input size.
"""

import json
import warnings
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from latteclip.clip.tuned import TunedModel
from latteclip.core.errors import UserError
from latteclip.core.files import write_json

GRAPH = "model.onnx"
INPUTS = ["pixel_values"]
OUTPUTS = ["scores", "probabilities", "image_features"]
PREPROCESSING = "preprocess.json"
LIMIT = 1.8e9  # bytes of weights above which they get a file of their own: a graph holds 2 GB


class ImageClassifier(torch.nn.Module):
    """What the graph computes."""

    def __init__(self, opened: TunedModel) -> None:
        super().__init__()
        self.model = opened.clip.model
        self.register_buffer("weights", opened.classifier.weights)
        self.register_buffer("bias", opened.classifier.bias)
        self.logit_scale = opened.logit_scale

    def forward(
        self, pixel_values: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """[N, 3, H, W] to scores [N, C], probabilities [N, C] and features [N, D]."""
        features = F.normalize(self.model.encode_image(pixel_values), dim=-1)  # type: ignore[operator]
        scores = features @ self.weights.T + self.bias  # type: ignore[operator]
        return scores, (self.logit_scale * scores).softmax(dim=-1), features


@torch.no_grad()
def write(opened: TunedModel, folder: Path) -> None:
    """Write the graph with class names in its metadata, and how images are preprocessed.

    Raises:
        UserError: the packages for it are not installed, or a layer has no ONNX form.
    """
    try:
        import onnxscript  # noqa: F401 - torch's exporter needs it, and says so late
    except ImportError as error:
        raise UserError(
            f"--format onnx needs packages that are not installed ({error}); "
            "pip install onnx onnxruntime onnxscript."
        ) from None
    tower: Any = opened.clip.model.visual
    preprocessing = tower.preprocess_cfg
    size = preprocessing["size"]
    height, width = (size, size) if isinstance(size, int) else size
    module = ImageClassifier(opened).eval()
    example = torch.zeros(2, 3, height, width)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's exporter warns about itself
            program = torch.onnx.export(
                module,
                (example,),
                input_names=INPUTS,
                output_names=OUTPUTS,
                dynamic_shapes={"pixel_values": {0: torch.export.Dim("images")}},
                dynamo=True,
                verbose=False,
            )
    except torch.onnx.errors.OnnxExporterError as error:
        first = str(error).strip().splitlines()[0]
        raise UserError(
            f"--format onnx: the image tower {type(tower).__name__} has no ONNX form ({first}); "
            "use --format open_clip."
        ) from error
    assert program is not None  # as it is with dynamo=True
    program.model.metadata_props["classnames"] = json.dumps(
        opened.words.as_written(opened.classnames)
    )
    n_bytes = sum(p.numel() * p.element_size() for p in module.parameters())
    program.save(folder / GRAPH, external_data=n_bytes > LIMIT)
    write_json(folder / PREPROCESSING, preprocessing)
