import open_clip
import pytest
import torch
import torch.nn.functional as F
from support.tiny import BACKBONES, CONTEXT, DEMO_CLIP, END, START, WIDTH, tiny_clip, write_backbone

from latteclip.clip import model as clips
from latteclip.clip.classifier import load_classifier
from latteclip.core.errors import UserError


def tokens_of_lengths(lengths):
    """Random texts that take this many tokens, START and END included."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.zeros(len(lengths), CONTEXT, dtype=torch.long)
    for row, length in zip(tokens, lengths, strict=True):
        row[:length] = torch.randint(1, START, (length,), generator=generator)
        row[0], row[length - 1] = START, END
    return tokens


def stock(clip, tokens):
    return F.normalize(clip.model.encode_text(tokens), dim=-1)


@pytest.mark.parametrize("pool_type", ["argmax", "eos"])
@pytest.mark.parametrize("projection", [{}, {"proj_type": "none", "width": WIDTH}])
def test_trimmed_texts_of_every_length_have_the_stock_features(pool_type, projection):
    clip = tiny_clip(pool_type=pool_type, **projection)
    order = torch.randperm(CONTEXT - 1, generator=torch.Generator().manual_seed(1))
    tokens = tokens_of_lengths([2 + int(i) for i in order])
    torch.testing.assert_close(
        clips.encode_texts(clip, tokens), stock(clip, tokens), rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("lengths", [[9], [3, 3], [16, 16, 16, 16, 2], [5] * 7])
def test_any_number_of_texts_keeps_its_order(lengths):
    clip = tiny_clip()
    tokens = tokens_of_lengths(lengths)
    torch.testing.assert_close(
        clips.encode_texts(clip, tokens), stock(clip, tokens), rtol=1e-5, atol=1e-6
    )


def test_short_texts_are_encoded_without_their_padding(monkeypatch):
    clip = tiny_clip()
    shapes = []
    forward = clip.model.token_embedding.forward
    monkeypatch.setattr(
        clip.model.token_embedding, "forward", lambda t: (shapes.append(t.shape), forward(t))[1]
    )
    clips.encode_texts(clip, tokens_of_lengths([16, 4, 9, 3, 8, 16]))
    assert [tuple(shape) for shape in shapes] == [(2, 4), (2, 9), (2, 16)]


@pytest.mark.parametrize(
    "other",
    [
        {"no_causal_mask": True},
        {"tower": open_clip.CustomTextCLIP, "no_causal_mask": True},
        {"tower": open_clip.CustomTextCLIP, "embed_cls": True},
        {"pool_type": "last"},
    ],
    ids=str,
)
def test_towers_that_see_the_padding_get_the_full_length(other):
    clip = tiny_clip(**other)
    tokens = tokens_of_lengths([7, 3, 16, 2, 11])
    torch.testing.assert_close(
        clips.encode_texts(clip, tokens), stock(clip, tokens), rtol=1e-5, atol=1e-6
    )


def test_features_are_of_length_one_float32_and_carry_gradient():
    clip = tiny_clip()
    texts = clips.encode_texts(clip, tokens_of_lengths([7, 3, 16, 2, 11]))
    images = clips.encode_images(clip, torch.randn(4, 3, 32, 32))
    for features in (texts, images):
        assert features.dtype == torch.float32
        assert features.requires_grad
        torch.testing.assert_close(features.norm(dim=1), torch.ones(len(features)))


def test_class_embeddings_are_the_features_of_the_filled_template():
    clip = tiny_clip()
    embeddings = clips.class_embeddings(clip, "a {} thing", ["red", "blue sky", "x"])
    for row, text in zip(embeddings, ["a red thing", "a blue sky thing", "a x thing"], strict=True):
        torch.testing.assert_close(row, stock(clip, clip.tokenizer([text]))[0])
    assert not embeddings.requires_grad


@pytest.fixture
def tuned(demo_clip):
    """The demo's CLIP, moved a little; restored afterwards."""
    before = {name: tensor.clone() for name, tensor in demo_clip.model.state_dict().items()}
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in demo_clip.model.parameters():
            parameter.add_(0.01 * torch.randn_like(parameter))
    yield demo_clip
    demo_clip.model.load_state_dict(before)


@torch.no_grad()
def test_stock_open_clip_loads_what_was_saved(tuned, tmp_path):
    clips.save(tuned, torch.eye(3, 128), ["a", "b", "c"], "{}.", tmp_path / "model")
    name = f"local-dir:{tmp_path / 'model'}"
    model, _, preprocess = open_clip.create_model_and_transforms(name)
    tokens = open_clip.get_tokenizer(name)(["a photo of a woven texture.", "x"])
    images = torch.randn(5, 3, 64, 64)
    model.eval()
    assert torch.equal(model.encode_image(images), tuned.model.encode_image(images))
    assert torch.equal(model.encode_text(tokens), tuned.model.encode_text(tokens))
    assert torch.equal(model.logit_scale, tuned.model.logit_scale)
    assert repr(preprocess) == repr(tuned.preprocess)


def test_saved_classifier_comes_back_with_its_class_names(demo_clip, tmp_path):
    classifier = torch.randn(3, 128)
    clips.save(demo_clip, classifier, ["a", "b/c", "d é"], "{}.", tmp_path / "model")
    loaded, described = load_classifier(tmp_path / "model" / clips.CLASSIFIER)
    assert torch.equal(loaded, classifier)
    assert described["classnames"] == ["a", "b/c", "d é"]


def test_saving_twice_gives_the_same_bytes(demo_clip, tmp_path):
    classifier = torch.randn(3, 128)
    written = []
    for number in range(6):  # an order that chance decides would be the same six times once in 32
        folder = tmp_path / str(number)
        clips.save(demo_clip, classifier, ["a", "b", "c"], "{}.", folder)
        written.append({path.name: path.read_bytes() for path in folder.iterdir()})
    assert all(files == written[0] for files in written)


def test_loaded_model_is_float32_and_in_evaluation_mode(demo_clip):
    assert {parameter.dtype for parameter in demo_clip.model.parameters()} == {torch.float32}
    assert not demo_clip.model.training


@pytest.mark.parametrize(
    ("model", "pretrained"),
    [("no-such-model", "openai"), ("ViT-B-32", "no_such_tag"), ("local-dir:nowhere", None)],
)
def test_a_model_that_is_not_there_is_one_sentence_that_names_it(model, pretrained):
    with pytest.raises(UserError, match=model):
        clips.load(model, pretrained, torch.device("cpu"))


def test_a_folder_without_weights_is_refused(tmp_path):
    for file in DEMO_CLIP.iterdir():
        if file.suffix == ".json":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    with pytest.raises(UserError, match="cannot be loaded"):
        clips.load(f"local-dir:{tmp_path}", None, torch.device("cpu"))


def test_a_configuration_that_open_clip_does_not_know_is_refused(tmp_path):
    for file in DEMO_CLIP.iterdir():
        text = file.read_bytes().replace(b'"patch_size"', b'"patchsize"')
        (tmp_path / file.name).write_bytes(text)
    with pytest.raises(UserError, match=r"cannot be loaded .*patchsize"):
        clips.load(f"local-dir:{tmp_path}", None, torch.device("cpu"))


def test_truncated_weights_are_refused(tmp_path):
    for file in DEMO_CLIP.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes()[:100_000])
    with pytest.raises(UserError, match="cannot be loaded"):
        clips.load(f"local-dir:{tmp_path}", None, torch.device("cpu"))


def test_a_name_of_open_clip_takes_a_weights_file_and_may_have_a_slash(tmp_path, monkeypatch):
    write_backbone("custom_text", tmp_path / "folder")
    config = BACKBONES["custom_text"][0]
    text = {**config["text_cfg"], "hf_tokenizer_name": str(tmp_path / "folder")}
    known = open_clip.factory._MODEL_CONFIGS
    monkeypatch.setitem(known, "ViT-tiny-8", {**config, "text_cfg": text})
    weights = str(tmp_path / "folder" / "open_clip_model.safetensors")
    clip = clips.load("ViT-tiny/8", weights, torch.device("cpu"))
    clips.save(clip, torch.eye(2), ["a", "b"], "{}", tmp_path / "model")
    name = f"local-dir:{tmp_path / 'model'}"
    tokens = open_clip.get_tokenizer(name)(["a red thing"])
    assert torch.equal(tokens, clip.tokenizer(["a red thing"]))
    model = open_clip.create_model(name).eval()
    assert torch.equal(model.encode_text(tokens), clip.model.encode_text(tokens))
