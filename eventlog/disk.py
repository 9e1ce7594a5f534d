"""What is on the disk when a call returns, also after a power failure."""

import os
from pathlib import Path


def sync(path: Path) -> None:
    """Bring a file's content to the disk, or a directory's names. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_whole(path: Path, data: bytes) -> None:
    """Put a small file there so that at any moment the old or the new one is there, whole. Raises OSError."""
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
    sync(path.parent)
