"""What a run is: one flat, frozen record; every field is a flag and a key of a YAML file."""

import ast
import dataclasses
import inspect
import types
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

import tyro
import yaml

ENV_PARAMS = "env_params."
"""Prefix of the environment's parameters where they are named beside a config's fields."""

OPTIMIZERS = ("adam", "adamw", "rmsprop", "sgd")
"""Optimisers a run can ascend with, each by its name in optax."""

LARGEST = 2**31 - 1
"""The largest count: JAX counts in 32 bits."""

SCHEDULES = ("constant", "linear", "cosine")
"""How learning rates change over a run; the last two decay to zero."""


@dataclasses.dataclass(frozen=True)
class Config:
    """A run is a function of this record."""

    modules: tuple[str, ...] = ()
    """Python modules to import first, for what they register; on every host of a job."""
    env: str = "CartPole-v1"
    """Environment (`pgjax list envs`)."""
    env_params: dict[str, int | float | bool] = dataclasses.field(default_factory=dict)
    """Its parameters to override, names and values in turn: gravity 9.0 length 1.0."""
    horizon: int | None = None
    """Maximum number of steps of an episode; None takes the environment's own time limit."""

    policy: str = "mlp"
    """Policy (`pgjax list policies`)."""
    distribution: str = "auto"
    """Action distribution (`pgjax list distributions`); auto follows the action space."""
    hidden: tuple[int, ...] = (64, 64)
    """Widths of the hidden layers, of the policy and of the value function."""
    activation: str = "tanh"
    """Nonlinearity of the hidden layers: tanh, relu, silu or gelu."""
    initial_log_std: float = 0.0
    """Initial log standard deviation of a continuous policy."""

    form: str = "reward_to_go"
    """What an action is credited with (`pgjax list forms`)."""
    baseline: str = "leave_one_out"
    """What is subtracted from that credit (`pgjax list baselines`)."""
    state_weighting: str = "discounted"
    """Weight of step t: discounted by gamma^t, or uniform (biased unless gamma = 1)."""
    discount: float = 1.0
    """Discount gamma of future rewards, in [0, 1]."""
    lambda_: Annotated[float, tyro.conf.arg(name="lambda")] = 0.95
    """Decay lambda of the form gae, in [0, 1]."""
    n: int = 5
    """Steps of the form n_step before it bootstraps."""
    constant: float = 0.0
    """Number that the baseline constant subtracts."""
    entropy_cost: float = 0.0
    """Weight of the entropy bonus."""

    num_episodes: int = 512
    """Episodes per update."""
    num_updates: int = 13
    """Number of updates."""
    optimizer: str = "adam"
    """Optimiser: adam, adamw, rmsprop or sgd."""
    learning_rate: float = 1.5e-2
    """Step size of the policy."""
    value_learning_rate: float = 1e-2
    """Step size of the value function, which has its own optimiser."""
    schedule: str = "constant"
    """Schedule of both learning rates: constant, or a linear or cosine decay to zero."""
    max_grad_norm: float | None = None
    """Global norm to clip gradients to, separately for policy and values; None never clips."""
    chunk_size: int | None = None
    """Samples whose gradient is computed at once, to bound memory; None chooses by device."""

    precision: str = "float32"
    """Precision of matrix products: float32; on a GPU also tensorfloat32, on a TPU bfloat16."""

    seed: int = 0
    """First seed; the run uses seed, seed + 1, ..."""
    seeds: int = 1
    """Number of seeds, trained side by side in one compiled program."""
    evaluation_episodes: int = 100
    """Fresh episodes per seed that evaluate the final policy."""
    updates_per_call: int = 1
    """Updates per compiled call; records are written after each call."""
    checkpoint_every: int = 10
    """Updates between checkpoints, rounded up to whole calls; the last update always has one."""
    keep_checkpoints: int = 3
    """Number of newest checkpoints to keep; `pgjax audit` looks at all of them."""
    loggers: tuple[str, ...] = ()
    """Where metrics also go: tensorboard, wandb, trackio; each is an extra to install."""
    name: str | None = None
    """Name of the run's directory; None makes one from the choices and the time."""
    directory: str = "runs"
    """Directory that holds the directories of runs."""


def load(path: str | Path) -> Config:
    """Reads a config from a YAML file; what the file leaves out takes its default.

    Raises:
      ValueError: a file that cannot be read, not a mapping, an unknown key or a value of the wrong
        type.
    """
    content = read(path)
    try:
        return parse(content)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def read(path: str | Path) -> dict[str, Any]:
    """What a YAML file holds, which must be one mapping or nothing.

    Raises:
      ValueError: there is no such file, it cannot be read, is not YAML, or not a mapping.
    """
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ValueError(f"config {path} does not exist") from error
    except OSError as error:
        raise ValueError(f"config {path} cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not a YAML file: {error}") from error
    if content is not None and not isinstance(content, dict):
        raise ValueError(f"{path} must hold one mapping of names to values")
    return content or {}


def parse(content: Mapping[str, Any]) -> Config:
    """Builds a config from names and plain values; `lambda` may be called as its flag is.

    Raises:
      ValueError: an unknown name or a value of the wrong type.
    """
    from pgjax import checks

    hints = typing.get_type_hints(Config)
    content = {"lambda_" if key == "lambda" else key: value for key, value in content.items()}
    for key in content:
        checks.choice("key", key, hints)
    return Config(**{key: _typed(key, value, hints[key]) for key, value in content.items()})


def documentation(record: type) -> dict[str, str]:
    """What is written below each field of a dataclass, as tyro reads it for its help."""
    (definition,) = ast.parse(inspect.getsource(record)).body
    assert isinstance(definition, ast.ClassDef)
    pairs = zip(definition.body, definition.body[1:], strict=False)
    return {
        ast.unparse(field.target): " ".join(str(ast.literal_eval(said.value)).split())
        for field, said in pairs
        if isinstance(field, ast.AnnAssign) and isinstance(said, ast.Expr)
    }


def accepts(field: str, kind: type) -> bool:
    """Whether values of a field may be of a type."""
    hint = typing.get_type_hints(Config)[field]
    return kind in (typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,))


def dump(config: Config) -> str:
    """The config as YAML, every field named; `load` reads it back equal."""
    names = ("modules", "hidden", "loggers")
    content = dataclasses.asdict(config) | {name: list(getattr(config, name)) for name in names}
    return yaml.safe_dump(content, sort_keys=False)


def validate(config: Config) -> None:
    """Refuses what no run can be, unless the core's own constructors refuse it.

    Raises:
      ValueError: names the argument, its value and what is allowed.
    """
    # Parsing the command line must not wait for JAX; checking what was parsed may.
    from pgjax import checks

    for argument in _COUNTS:
        count(argument, getattr(config, argument))
    for width in config.hidden:
        count("hidden", width)
    for argument in ("horizon", "chunk_size"):
        if getattr(config, argument) is not None:
            count(argument, getattr(config, argument))
    checks.at_least("seed", config.seed, 0)
    if config.seed + config.seeds > 2**32:
        raise ValueError(
            f"seed={config.seed!r} is too large: the last of {config.seeds} seeds must be below "
            f"2**32"
        )
    for argument in ("learning_rate", "value_learning_rate"):
        checks.within(argument, getattr(config, argument), 0, float("inf"))
    checks.within("initial_log_std", config.initial_log_std, -float("inf"), float("inf"))
    if config.max_grad_norm is not None and not 0 < config.max_grad_norm < float("inf"):
        raise ValueError(f"max_grad_norm={config.max_grad_norm!r} must be positive and finite")
    checks.choice("optimizer", config.optimizer, OPTIMIZERS)
    checks.choice("schedule", config.schedule, SCHEDULES)
    if config.name in ("", ".", "..") or set(config.name or "") & set("/\0"):
        raise ValueError(f"name={config.name!r} must be the plain name of a directory")
    if "\0" in config.directory:
        raise ValueError(f"directory={config.directory!r} must be a path")


def count(argument: str, value: int, least: int = 1) -> None:
    """Raises `ValueError` unless `value` is a whole number from `least` to `LARGEST`."""
    from pgjax import checks

    if value > LARGEST:
        raise ValueError(f"{argument}={value!r} must be at most {LARGEST}")
    checks.at_least(argument, value, least)


_COUNTS = (
    "num_episodes",
    "num_updates",
    "seeds",
    "evaluation_episodes",
    "updates_per_call",
    "checkpoint_every",
    "keep_checkpoints",
    "n",
)


def _typed(argument: str, value: Any, hint: Any) -> Any:
    """`value` as the type its field declares."""
    options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    for option in options:
        read = _READERS[option]
        try:
            return read(value)
        except (TypeError, ValueError, OverflowError):
            continue
    expected = hint.__name__ if isinstance(hint, type) else str(hint)
    raise ValueError(f"{argument}={value!r} must be of type {expected.replace('NoneType', 'None')}")


def _plain(kind: type) -> Callable[[Any], Any]:
    def read(value: Any) -> Any:
        if type(value) is not kind:
            raise TypeError
        return value

    return read


def _float(value: Any) -> float:
    # YAML 1.1 reads 1e-2 as a string and 1 as an integer; both were meant as numbers.
    if isinstance(value, bool):
        raise TypeError
    return float(value)


def _tuple(kind: type) -> Callable[[Any], tuple[Any, ...]]:
    return lambda value: tuple(_plain(kind)(item) for item in _plain(list)(value))


def _numbers(value: Any) -> dict[str, Any]:
    def number(item: Any) -> Any:
        return item if isinstance(item, bool | int) else _float(item)

    return {_plain(str)(key): number(item) for key, item in _plain(dict)(value).items()}


_READERS: dict[Any, Callable[[Any], Any]] = {
    types.NoneType: _plain(types.NoneType),
    str: _plain(str),
    int: _plain(int),
    float: _float,
    tuple[int, ...]: _tuple(int),
    tuple[str, ...]: _tuple(str),
    dict[str, int | float | bool]: _numbers,
}
