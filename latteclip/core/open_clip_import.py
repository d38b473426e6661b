"""open_clip, imported without what most models do without: import it from here.

Its own `import` runs all of torchvision, timm and transformers, and through them torch._dynamo:
two to three times the work of importing torch itself, in every stage that loads a CLIP.

- Packages of torchvision and timm are put off (`PUT_OFF`): they run when something asks for a name
  of theirs, as with `importlib.util.LazyLoader`, but importing a module inside them does not count.
- transformers, which open_clip does without where it is not installed, is asked for with the first
  model whose text tower comes from it (`with_transformers`), and is otherwise taken for absent
  while open_clip is imported. What else needs it in open_clip, generating captions with a CoCa, is
  then not to be had in this process, unless open_clip was imported before.
"""

import contextlib
import importlib
import sys
from collections.abc import Iterator, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

PUT_OFF = frozenset(
    (
        "timm",
        "torchvision.datasets",
        "torchvision.io",
        "torchvision.models",
        "torchvision.ops",
    )
)


class _PutOff(ModuleType):
    """A module that runs when it is first asked for a name that it does not have yet."""

    def __getattr__(self, name: str) -> Any:
        self.__class__ = ModuleType  # type: ignore[assignment]  # first: it asks itself for names
        spec = self.__spec__
        assert spec is not None
        assert isinstance(spec.loader, _LateLoader)
        spec.loader.own.exec_module(self)
        return getattr(self, name)


class _LateLoader(Loader):
    """Makes a module as its `own` loader does, and leaves the running to `_PutOff`."""

    def __init__(self, own: Loader) -> None:
        self.own = own

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.own.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        module.__class__ = _PutOff


class _Finder(MetaPathFinder):
    """Finds the packages of `PUT_OFF` where they would be found without it."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        spec = PathFinder.find_spec(name, path, target) if name in PUT_OFF else None
        if spec is not None and spec.loader is not None:
            spec.loader = _LateLoader(spec.loader)
        return spec


@contextlib.contextmanager
def _little() -> Iterator[None]:
    """Imports inside find the packages of `PUT_OFF` late, and no transformers."""
    finder = _Finder()
    sys.meta_path.insert(0, finder)
    without = "transformers" not in sys.modules
    if without:
        sys.modules["transformers"] = None  # type: ignore[assignment]  # "not to be imported"
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
        if without:
            del sys.modules["transformers"]


if "open_clip" in sys.modules:
    import open_clip
else:
    with _little():
        import open_clip


def with_transformers() -> None:
    """Let open_clip build text towers of transformers; nothing to do where it can already."""
    from open_clip import hf_model

    if hf_model.transformers is None:
        importlib.reload(hf_model)  # classes made before see what the module sees now


@contextlib.contextmanager
def plain_tokenizers() -> Iterator[None]:
    """Inside, open_clip reads tokenizers of transformers as its plain class, which a file suffices.

    `AutoTokenizer`, which finds out the class, imports every model to do so, torch._dynamo too.
    """
    import transformers

    names = vars(transformers)
    before = names.get("AutoTokenizer")
    names["AutoTokenizer"] = transformers.PreTrainedTokenizerFast
    try:
        yield
    finally:
        del names["AutoTokenizer"]
        if before is not None:
            names["AutoTokenizer"] = before


__all__ = ["open_clip", "plain_tokenizers", "with_transformers"]
