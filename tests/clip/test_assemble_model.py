import shutil

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from support.tiny import DEMO_CLIP, ENCODER_WIDTH, network_of, write_encoder, write_pictures

from latteclip.clip.classifier import Classifier, save_classifier
from latteclip.clip.image_encoders import PretrainedClip, assemble_model
from latteclip.config.keys import ClipSection
from latteclip.deploy import predict

NAME = f"local-dir:{DEMO_CLIP}"
DESCRIBED = {
    "classnames": ["a", "b é"],
    "model": NAME,
    "pretrained": None,
    "class_templates": {"templates": ["a {}."]},
}


@torch.no_grad()
def test_image_models_beside_clip_stand_in_the_folder_and_predict(tmp_path, demo_clip):
    name = write_encoder(tmp_path / "encoder")
    draw = torch.Generator().manual_seed(0)
    classifier = Classifier.of(torch.randn(2, 128 + ENCODER_WIDTH, generator=draw))
    save_classifier(tmp_path / "c.safetensors", classifier, DESCRIBED)
    settings = PretrainedClip(
        clip=ClipSection(model=NAME, pretrained=None), encoders=[name]
    )
    assemble_model(str(tmp_path / "c.safetensors"), settings, str(tmp_path / "model"))
    shutil.rmtree(tmp_path / "encoder")
    files = write_pictures(tmp_path / "pictures", 5)
    broken = tmp_path / "pictures" / "6.png"
    broken.write_bytes(b"no image")
    found = predict.Predictor(tmp_path / "model", device="cpu", threads=1)
    predictions = found([*files[:3], broken, *files[3:]])
    network = network_of(tmp_path / "model" / "image_encoders" / "0")
    [encoder] = found.image_encoders
    assert [one.path for one in predictions] == files
    for file, prediction in zip(files, predictions, strict=True):
        image = Image.open(file).convert("RGB")
        parts = [
            demo_clip.model.encode_image(demo_clip.preprocess(image)[None]),
            network(encoder.preprocess(image)[None]),
        ]
        features = torch.cat([F.normalize(part, dim=1) for part in parts], dim=1)
        best = classifier.scores(features)[0].max()
        assert prediction.score == pytest.approx(best.item(), 1e-3)
