"""From errors to what a command line says: one line for a mistake of the user's."""

import contextlib
import gc
from collections.abc import Iterator


class RefusalError(ValueError):
    """What the user asked for cannot be; the message is the one line to say so."""


@contextlib.contextmanager
def refusing() -> Iterator[None]:
    """Turns what is wrong with the user's choices into one line; errors of ours stay errors."""
    try:
        yield
    except (ValueError, OSError) as error:
        raise RefusalError(" ".join(str(error).split())) from error


@contextlib.contextmanager
def without_collection() -> Iterator[None]:
    """Keeps the garbage collector out of imports and tracing, where it takes a fifth of the time.

    They make many objects that stay and little garbage; what they made is not looked at again.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
