import torch
from support.tiny import write_pictures

from latteclip.clip.features import encode_files


@torch.no_grad()
def test_features_of_files_do_not_depend_on_the_batch_size(demo_clip, tmp_path):
    paths = write_pictures(tmp_path, 5)
    wanted = torch.cat([encode_files(demo_clip, [path], 1, 1) for path in paths])
    assert wanted.shape == (5, 128)
    torch.testing.assert_close(encode_files(demo_clip, paths, 2, 1), wanted, rtol=1e-4, atol=1e-5)
