"""The original files on their way into a recording: copied byte for byte, never touched."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

from edge.artefact import digest_of_bytes
from edge.errors import InputError
from edge.recording.format import is_safe_relative


class Originals:
    """The files under `source`, copied into `files` at the same relative paths, each once."""

    def __init__(self, source: Path, files: Path) -> None:
        self._source = source
        self._root = source.resolve()
        self._files = files
        self._digests: dict[str, str] = {}

    def copy(self, relative: str, where: str) -> tuple[str, str]:
        """Copy one file; return its normalised relative path and its SHA-256.

        `where` names the row that asked for it. Raises InputError as `original_file` does.
        """
        original_file(self._source, self._root, relative, where)
        name = PurePosixPath(relative).as_posix()
        if name not in self._digests:
            try:
                content = (self._source / name).read_bytes()
            except OSError as error:
                raise InputError(
                    where=where,
                    expected=f"a readable file '{name}' in {self._source}",
                    found=str(error),
                    do="Check the file's rights and the disk, and import again.",
                ) from None
            target = self._files / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)
            self._digests[name] = digest_of_bytes(content)
        return name, self._digests[name]


def original_file(source: Path, root: Path, relative: str, where: str) -> Path:
    """Return the path of a file named relative to `source`, whose resolved path is `root`.

    Raises InputError when the name leads out of the folder (by itself or through a link) or to no
    file. A link that leads out is refused too: a folder from elsewhere must not be able to pull
    other files of this machine into a recording.
    """
    path = source / relative
    try:
        inside = is_safe_relative(relative) and path.resolve().is_relative_to(root)
        is_file = path.is_file()
    except (OSError, ValueError, RuntimeError):  # a name no file can have, or a loop of links
        inside, is_file = True, False
    if not inside:
        raise InputError(
            where=where,
            expected=f"a file inside {source}, with forward slashes",
            found=f"'{relative}'",
            do="Put the file (not a link to it) into the folder and name it relative to that.",
        )
    if not is_file:
        raise InputError(
            where=where,
            expected=f"a file '{relative}' in {source}",
            found="none",
            do="Complete the folder, or take the row out of the metadata.",
        )
    return path
