"""Fetch models of the Hugging Face hub into its cache, where later jobs load them offline.

HF_HOME, HF_ENDPOINT, HF_TOKEN and HF_HUB_OFFLINE in the environment apply, as to any program that
uses the hub. What the cache holds is noted in a small file, which is what Snakemake sees.
"""

import contextlib
import errno
import json
import logging
import shutil
from collections.abc import Collection, Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from latteclip.config.hub_names import HUB
from latteclip.core import hashing
from latteclip.core.errors import UserError, chain, full_disk
from latteclip.core.files import write_json
from latteclip.data import clip_config
from latteclip.data.transfer import message_line

log = logging.getLogger(__name__)
LIBRARIES = ("huggingface_hub", "open_clip_torch", "transformers")
WEIGHTS, INDEX = ".safetensors", "model.safetensors.index.json"
# What the engines read of a captioner, and nothing that runs when it is read: no pickle, no code.
CAPTIONER_FILES = [f"*{WEIGHTS}", "*.json", "*.txt", "*.model", "*.tiktoken", "*.jinja"]
# Other formats of the same weights, and Mistral's own copy of them.
NOT_READ = ["*/*", "consolidated*"]


@dataclass(frozen=True)
class HubClip:
    """A CLIP as it is given to `latteclip.clip.model.load`."""

    model: str  # an open_clip name or hf-hub:<repo>
    pretrained: str | None  # an open_clip tag; None with hf-hub:


@dataclass(frozen=True)
class HubCaptioner:
    """A captioner as it is given to its engine."""

    model: str  # a repo
    revision: str | None


def download_clip(settings: HubClip, output: str) -> None:
    """Fetch weights, tokenizer and configuration of a CLIP, and note what the cache holds.

    Raises:
        UserError: no such model, or the hub does not give it.
    """
    what = f"CLIP model {settings.model!r} with pretrained {settings.pretrained!r}"
    with _explained(what, "clip.model and clip.pretrained"):
        held = [_held(repo) for repo in _fetch_clip(settings)]
    _write_note(settings, held, output)


def _fetch_clip(settings: HubClip) -> list[str]:
    """What `open_clip.create_model` and `get_tokenizer` ask the hub for; the repos of it."""
    from latteclip.core.open_clip_import import open_clip

    if settings.model.startswith(HUB):
        config = clip_config.read(settings.model)
    else:
        config = open_clip.get_model_config(settings.model)
    tag = open_clip.get_pretrained_cfg(settings.model, settings.pretrained or "")
    if settings.model.startswith(HUB):
        weights = settings.model.removeprefix(HUB)
        clip_config.hub_weights(settings.model)
    elif config is None or not tag:
        raise UserError(
            f"open_clip knows no CLIP model {settings.model!r} with pretrained "
            f"{settings.pretrained!r}; set clip.model and clip.pretrained to a pair that it lists."
        )
    else:
        weights = tag["hf_hub"].rpartition("/")[0]  # <owner>/<name>/<file or nothing>
        open_clip.download_pretrained(tag)
    clip_config.tokenizer(settings.model, config)
    clip_config.text_tower(settings.model, config)  # whose weights are among those of the model
    text = config["text_cfg"]
    repos = dict.fromkeys([weights, text.get("hf_tokenizer_name"), text.get("hf_model_name")])
    return [repo for repo in repos if repo and not Path(repo).is_dir()]


def download_captioner(settings: HubCaptioner, output: str) -> None:
    """Fetch weights, processor and chat template of a captioner, and note what the cache holds.

    Raises:
        UserError: the hub does not give the model, it has no safetensors, or the disk no room.
    """
    from huggingface_hub import snapshot_download

    repo, revision = settings.model, settings.revision
    at = f" at revision {revision!r}" if revision else ""
    with _explained(f"Captioner model {repo!r}{at}", "captioner.model and captioner.revision"):
        _check_announced(repo, revision)
        snapshot_download(
            repo, revision=revision, allow_patterns=CAPTIONER_FILES, ignore_patterns=NOT_READ
        )
        held = _held(repo, revision)
        _check_weights(repo, held["files"])
    _write_note(settings, [held], output)


def _check_announced(repo: str, revision: str | None) -> None:
    """Before anything is fetched, see that the repo has weights and the disk room for them."""
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import DryRunError

    try:
        files = snapshot_download(
            repo,
            revision=revision,
            allow_patterns=CAPTIONER_FILES,
            ignore_patterns=NOT_READ,
            dry_run=True,
        )
    except DryRunError:  # the hub does not answer, but the cache may
        return
    _check_weights(repo, [file.filename for file in files])
    size = sum(file.file_size or 0 for file in files if file.will_download)
    cache = Path(constants.HF_HUB_CACHE)
    cache.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(cache).free
    log.info("%s: %.2f GB are to be fetched.", repo, size / 1e9)
    if size > free:
        raise UserError(
            f"Captioner model {repo!r} takes {size} bytes more and {cache} has room for {free} "
            "only; free some space, or set HF_HOME to a larger disk, and rerun."
        )


def _check_weights(repo: str, names: Collection[str]) -> None:
    if not any(name.endswith(WEIGHTS) for name in names):
        raise UserError(
            f"Captioner model {repo!r} has no safetensors, and weights of other formats are not "
            "loaded; set captioner.model to a repo that has them."
        )


def _held(repo: str, revision: str | None = None) -> dict[str, Any]:
    """What the cache has of a repo: the commit, and each file with its bytes.

    Raises:
        FileNotFoundError: no such repo or revision, or a part of its weights is not there.
        UserError: a file is not the one that the hub has.
    """
    from huggingface_hub import snapshot_download

    folder = Path(  # whichever files there are
        snapshot_download(repo, revision=revision, ignore_patterns="*", local_files_only=True)
    )
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    for path in paths:
        hashing.verify_blob(path)
    files = {path.relative_to(folder).as_posix(): path.stat().st_size for path in paths}
    if (folder / INDEX).is_file():
        wanted = set(json.loads((folder / INDEX).read_bytes())["weight_map"].values())
        if missing := sorted(wanted - set(files)):
            raise FileNotFoundError(f"{len(missing)} files such as {missing[0]} are missing")
    return {"repo": repo, "commit": folder.name, "files": files}


def _write_note(
    settings: HubClip | HubCaptioner, repos: Sequence[dict[str, Any]], output: str
) -> None:
    """Write what the cache holds, and nothing that differs when the same is fetched again.

    A note that comes out the same reruns nothing. Day, versions and folder go to the log.
    """
    from huggingface_hub import constants

    for held in repos:
        size = sum(held["files"].values()) / 1e9
        log.info("%s, commit %s: %.2f GB in the cache.", held["repo"], held["commit"], size)
    libraries = ", ".join(f"{name} {version(name)}" for name in LIBRARIES)
    today = datetime.now(UTC).date()
    log.info("The cache is %s; noted on %s with %s.", constants.HF_HUB_CACHE, today, libraries)
    write_json(output, {**asdict(settings), "repos": repos})


@contextlib.contextmanager
def _explained(what: str, keys: str) -> Iterator[None]:
    """Whatever goes wrong with the hub or its cache, as one sentence."""
    from huggingface_hub import constants
    from huggingface_hub.utils.logging import get_logger

    get_logger().handlers.clear()  # they print warnings that the log prints as well
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # open_clip, transformers, the hub's client and httpx all have own
        reason = message_line(error).rstrip(".")
        if constants.HF_HUB_OFFLINE:
            raise UserError(
                f"{what} is not in the cache {constants.HF_HUB_CACHE} ({reason}), and "
                "HF_HUB_OFFLINE is set; fetch it where there is internet and that variable is not "
                "set, or let HF_HOME be the cache that has it."
            ) from error
        raise UserError(f"{what} cannot be fetched ({reason}); {_remedy(error, keys)}.") from error


def _remedy(error: Exception, keys: str) -> str:
    """What to do about an error or those below it; libraries wrap the hub's own in theirs."""
    from huggingface_hub import errors

    causes = list(chain(error))
    numbers = {getattr(one, "errno", None) for one in causes}
    absent = (
        errors.RepositoryNotFoundError,
        errors.RevisionNotFoundError,
        errors.RemoteEntryNotFoundError,
    )
    if any(isinstance(one, errors.GatedRepoError) for one in causes):
        return "accept its terms on its page of the hub, and set HF_TOKEN to a token of yours"
    if any(isinstance(one, absent) for one in causes):
        return f"check {keys}, and HF_TOKEN for a private model"
    if full_disk(error):
        return "free some space, or set HF_HOME to a larger disk, and rerun"
    if errno.ENOLCK in numbers:
        return "the file system of the cache has no file locks: set HF_HOME to one that has them"
    return (
        "check the network (https_proxy for a proxy, HF_ENDPOINT for a mirror) and rerun: files "
        "that are there are not fetched again"
    )
