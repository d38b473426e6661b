"""Counts the memory of tensors on the CPU, where PyTorch itself does not."""

import weakref

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveBytes(TorchDispatchMode):
    """Bytes of the tensors that exist among those made under it, and the most at once.

    A `memory.Meter` of the CPU.
    """

    def __init__(self, inputs=()):
        super().__init__()
        self.known = {tensor.untyped_storage()._cdata for tensor in inputs}
        self.bytes = self.most = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                self.add(tensor.untyped_storage())
        return result

    def add(self, storage):
        key, size = storage._cdata, storage.nbytes()
        if key not in self.known:
            self.known.add(key)
            self.bytes += size
            self.most = max(self.most, self.bytes)
            weakref.finalize(storage, self.remove, key, size)

    def remove(self, key, size):
        self.known.discard(key)
        self.bytes -= size

    def start(self):
        self.most = self.bytes

    def now(self):
        return self.bytes

    def peak(self):
        return self.most
