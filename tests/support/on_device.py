"""Tensors of the CPU that behave as those of a GPU where it counts: to read one is to wait."""

import contextlib

import torch

T = torch.Tensor
# What makes a number, a CPU tensor or a shape out of values.
WAITING = {
    *(T.item, T.tolist, T.cpu, T.numpy, T.__bool__, T.__int__, T.__float__, T.__index__),
    *(T.nonzero, T.unique, T.bincount, T.masked_select, T.__array__, T.__contains__),
    *(torch.nonzero, torch.unique, torch.bincount, torch.masked_select, torch.equal),
    *(torch.allclose, torch.tensor),
}


class OnDevice(torch.Tensor):
    """What is computed from one is one as well."""

    watched = False  # whether waiting is an error

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        if cls.watched and function in WAITING:
            raise AssertionError(f"{function.__name__} waits for the device")
        return super().__torch_function__(function, types, args, kwargs)


@contextlib.contextmanager
def no_waiting():
    """Inside, to wait for the device is an error."""
    OnDevice.watched = True
    try:
        yield
    finally:
        OnDevice.watched = False


def send(tensor, device):
    """`devices.send` to such a device."""
    return tensor.as_subclass(OnDevice)


def moved(model):
    """The model with parameters that are on such a device."""
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                module._parameters[name] = torch.nn.Parameter(parameter.data.as_subclass(OnDevice))
    return model
