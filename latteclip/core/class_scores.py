import torch


def read(path: str, image_ids: object, classnames: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
    raise NotImplementedError
