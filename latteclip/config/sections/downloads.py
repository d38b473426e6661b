"""The downloads of a dataset, and its terms of use."""

from typing import Annotated, Literal

from pydantic import Field

from latteclip.config.sections.base import Line, Section, optional_key

# A path inside.
Below = Annotated[str, Field(pattern=r"^[^/\\.][^/\\]*(/[^/\\.][^/\\]*)*$")]
FileName = Annotated[str, Field(pattern="^[A-Za-z0-9][A-Za-z0-9._+-]*$")]
CHECKSUM = "md5:[0-9a-f]{32}|sha256:[0-9a-f]{64}|git_blob:[0-9a-f]{40}"


class HubOrDriveFile(Section):
    """A file of the Hugging Face hub or of Google Drive."""

    hf: Line | None = optional_key("a Hugging Face repo")
    file: Line | None = optional_key(
        "a path in it, or a glob that matches one of its files", default=""
    )
    revision: Line | None = optional_key("a commit of it")
    type: Literal["model", "dataset"] | None = optional_key("kind of repo")
    drive: Line | None = optional_key("the id of a file on Google Drive")
    checksum: Annotated[str, Field(pattern=f"^(hub|{CHECKSUM})$")] | None = optional_key(
        "of this source if its bytes differ; hub: the checksum of Hugging Face"
    )


class DownloadSection(Section):
    """A file to download."""

    sources: list[Line | HubOrDriveFile] = optional_key(
        "URLs, paths on this machine, {hf: repo, file: name} or {drive: id}, tried in order",
        default=[],
    )
    checksum: Annotated[str, Field(pattern=f"^({CHECKSUM})$")] | None = optional_key(
        "md5:, sha256: or git_blob: and lower-case hexadecimal digits"
    )
    into: Below | None = optional_key(
        "folder inside the dataset's folder for the file or its content"
    )
    nested: list[Below] = optional_key(
        "archives inside the archive, unpacked where they are", default=[]
    )
    unpack: bool = optional_key(
        "off: the file is a shard of images, read as it is", default=True
    )


class DownloadsSection(Section):
    """The downloads of a dataset."""

    downloads: dict[FileName, DownloadSection] = optional_key(
        "files to download, by name", default={}
    )


class TermsSection(Section):
    """The name of a dataset, and its terms of use."""

    title: str = optional_key("its full name", default="")
    licence: str = optional_key("terms of use of its images", default="not stated")
    citation: str = optional_key("the paper to cite", default="not stated")
