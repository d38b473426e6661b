"""Upload an exported folder to the hub of Hugging Face, into a repository of its own."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from huggingface_hub import HfApi, constants
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, HTTPError
from huggingface_hub.utils import validate_repo_id

from latteclip.core.errors import MIB, UserError
from latteclip.core.terminal import one_line


@dataclass(frozen=True)
class Upload:
    """A new repository of the hub. The token is that of `hf auth login` or HF_TOKEN."""

    repo: str  # <user>/<name>
    kind: Literal["model", "dataset"]
    private: bool = True
    dry_run: bool = False  # say what would be uploaded, without a request

    @classmethod
    def asked(
        cls,
        repo: str | None,
        kind: Literal["model", "dataset"],
        *,
        public: bool,
        dry_run: bool,
    ) -> "Upload | None":
        """Return what options ask for, None for no upload, or raise UserError."""
        if repo is not None:
            refuse_invalid(repo)
            return cls(repo, kind, private=not public, dry_run=dry_run)
        if public or dry_run:
            raise UserError("--public and --dry-run are for --push-to-hub REPO; give it.")
        return None

    def refuse_existing(self) -> None:
        """Raise UserError where there is such a repository, or the hub does not answer."""
        if self.dry_run:
            return
        if constants.HF_HUB_OFFLINE:
            raise UserError(
                "--push-to-hub needs the hub, and HF_HUB_OFFLINE is set; unset it."
            )
        with self._explained():
            if HfApi().repo_exists(self.repo, repo_type=self.kind):
                raise UserError(
                    f"The {self.kind} repository {self.repo} exists on the hub and is left as it "
                    "is; name another, or delete it there."
                )

    def push(self, folder: str | Path) -> str:
        """Create the repository, upload a folder, and return a sentence on it."""
        files = [path for path in Path(folder).rglob("*") if path.is_file()]
        size = sum(path.stat().st_size for path in files) / MIB
        who = "private" if self.private else "public"
        what = f"{len(files)} files, {size:,.1f} MiB, to the {who} {self.kind} {self.repo}"
        if self.dry_run:
            return f"Dry run: would upload {what}."
        with self._explained():
            api = HfApi()
            address = api.create_repo(self.repo, repo_type=self.kind, private=self.private)
            api.upload_folder(
                repo_id=self.repo,
                folder_path=folder,
                repo_type=self.kind,
                commit_message="Export by latteclip",
            )
        return f"Uploaded {what}: {address}"

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        """Raise UserError for what the hub refuses, or where it does not answer."""
        try:
            yield
        except HfHubHTTPError as error:
            status = error.response.status_code if error.response is not None else 0
            remedy = (
                "log in by hf auth login with a token that may write, or correct the name"
            )
            if status not in (401, 403):
                remedy = "try again later"
            raise UserError(
                f"The hub refuses {self.repo} ({status or one_line(error)}); {remedy}."
            ) from None
        except (OSError, HTTPError) as error:  # no connection
            raise UserError(
                f"{constants.ENDPOINT} does not answer ({one_line(error)}); the files are written, "
                "and hf upload uploads them later."
            ) from None


def refuse_invalid(repo: str) -> None:
    """Raise UserError for a name that no repository of the hub can have."""
    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise UserError(f"--push-to-hub {one_line(repo)}: {one_line(error)}") from None
    if "/" not in repo:
        raise UserError(f"--push-to-hub {repo} names no user; give <user>/{repo}.")
