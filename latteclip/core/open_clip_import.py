"""open_clip without its slow imports, which take two thirds of its start: import it from here.

PUT_OFF run when a name of theirs is first used. transformers is hidden until a text tower needs it.
"""

import importlib
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from types import ModuleType
from typing import Any

PUT_OFF = {"timm", *(f"torchvision.{name}" for name in ("datasets", "io", "models", "ops"))}


class _LateLoader(SourceFileLoader):
    def exec_module(self, module: ModuleType) -> None:
        module.__class__ = _PutOff


class _PutOff(ModuleType):
    """A module that runs when it is first asked for a name that it does not have yet."""

    def __getattr__(self, name: str) -> Any:
        self.__class__ = ModuleType  # type: ignore[assignment]  # first: it asks itself for names
        SourceFileLoader.exec_module(self.__spec__.loader, self)  # type: ignore[union-attr, arg-type]
        return getattr(self, name)


class _Finder(MetaPathFinder):
    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        spec = PathFinder.find_spec(name, path, target) if name in PUT_OFF else None
        if spec is not None and isinstance(spec.loader, SourceFileLoader):
            spec.loader = _LateLoader(name, spec.loader.path)
        return spec


if {"open_clip", "transformers"} & set(sys.modules):
    import open_clip
else:
    sys.meta_path.insert(0, finder := _Finder())
    sys.modules["transformers"] = None  # type: ignore[assignment]  # "not to be imported"
    try:
        import open_clip
    finally:
        sys.meta_path.remove(finder)
        del sys.modules["transformers"]


def with_transformers() -> None:
    """Let open_clip build text towers of transformers."""
    from open_clip import hf_model

    if hf_model.transformers is None:
        importlib.reload(hf_model)  # classes made before see what the module sees now


__all__ = ["open_clip", "with_transformers"]
