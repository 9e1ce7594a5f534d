"""The tools that speak to the kernel, as processes: what they print, or that they were refused."""

import subprocess
from collections.abc import Sequence
from typing import Final

COMMAND_TIMEOUT_S: Final = 10


class KernelRefused(Exception):
    """The kernel (or a tool that speaks to it) did not do what it was told; nothing changed."""


def run(argv: Sequence[str], *, stdin: str | None = None) -> str:
    """A tool's output; raises KernelRefused with what it said."""
    try:
        done = subprocess.run(
            argv, input=stdin, capture_output=True, text=True, timeout=COMMAND_TIMEOUT_S, check=False
        )
    except FileNotFoundError as error:
        raise KernelRefused(f"{argv[0]} is not installed") from error
    except subprocess.TimeoutExpired as error:
        raise KernelRefused(f"{' '.join(argv)}: no answer in {COMMAND_TIMEOUT_S} s") from error
    if done.returncode != 0:
        raise KernelRefused(f"{' '.join(argv)}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout
