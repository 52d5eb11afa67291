"""A stand-in for kill -9 that can be placed to the call."""


class KilledError(Exception):
    """Stands for kill -9: nothing that follows is run."""


def kill_at(monkeypatch, module, name, call, before=False):
    """Stops everything after the call of that number to `module.name`, or before it."""
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
