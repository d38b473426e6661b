import torch
from support import small_memory
from support.backbones import CPU
from support.tiny import DEMO_CLIP, write_pictures

from latteclip.clip import model as clips
from latteclip.clip.encode import encode_files


@torch.no_grad()
def test_features_of_files_do_not_depend_on_the_batch_size(demo_clip, tmp_path):
    paths = write_pictures(tmp_path, 5)
    wanted = torch.cat([encode_files(demo_clip, [path], 1, 1)[:] for path in paths])
    assert wanted.shape == (5, 128)
    torch.testing.assert_close(
        encode_files(demo_clip, paths, 2, 1)[:], wanted, rtol=1e-4, atol=1e-5
    )


@torch.no_grad()
def test_batches_that_do_not_fit_halve_for_all_files(tmp_path, monkeypatch, caplog):
    clip = clips.load(f"local-dir:{DEMO_CLIP}", None, CPU)
    paths = write_pictures(tmp_path, 7)
    wanted = encode_files(clip, paths, 5, 1)[:]
    small_memory.limit(monkeypatch, clip, 2)
    torch.testing.assert_close(encode_files(clip, paths, 5, 1)[:], wanted, rtol=1e-4, atol=1e-5)
    assert len([record for record in caplog.records if "memory" in record.message]) == 1
