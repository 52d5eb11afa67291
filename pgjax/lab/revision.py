"""Which code ran."""

import functools
import subprocess
from pathlib import Path

PACKAGE = Path(__file__).parent.parent


@functools.cache
def commit(*paths: Path) -> str:
    """The commit of the clone that pgjax is run from; `unknown` if it is not run from one.

    Args:
      paths: in that clone; if a file among them was changed since, the commit ends in `-dirty`.
        Without any, those of the package.
    """
    try:
        _git("ls-files", "--error-unmatch", __file__)  # not a clone that pgjax is installed within
        head = _git("rev-parse", "HEAD")
        changed = _git("status", "--porcelain", "--", *map(str, paths or (PACKAGE,)))
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return f"{head}-dirty" if changed else head


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(PACKAGE), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    return done.stdout.strip()
