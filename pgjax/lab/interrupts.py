"""Ctrl-C and SIGTERM, noted and left for the loop to act on."""

import contextlib
import signal
import threading
from collections.abc import Iterator


@contextlib.contextmanager
def noted() -> Iterator[list[int]]:
    """Yields a list that a first Ctrl-C or SIGTERM is added to; a second one acts as usual."""
    signals: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield signals
        return
    previous = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def restore() -> None:
        for number, handler in previous.items():
            signal.signal(number, handler)

    def note(number: int, frame: object) -> None:
        signals.append(number)
        restore()

    for number in previous:
        signal.signal(number, note)
    try:
        yield signals
    finally:
        restore()
