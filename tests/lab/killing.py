"""A stand-in for kill -9 at a chosen call, and what processes that are to be killed need."""

import os


class KilledError(Exception):
    """Stands for kill -9: nothing that follows is run."""


def kill_at(monkeypatch, module, name, call, before=False):
    """Stops everything after the call of that number to `module.name`, or just before it."""
    original, calls = getattr(module, name), []

    def killing(*args, **kwargs):
        calls.append(name)
        if before and len(calls) == call:
            raise KilledError
        result = original(*args, **kwargs)
        if len(calls) == call:
            raise KilledError
        return result

    monkeypatch.setattr(module, name, killing)


def compiling_itself():
    """The environment of a process that does not use what others have compiled."""
    return os.environ | {"JAX_ENABLE_COMPILATION_CACHE": "false"}
