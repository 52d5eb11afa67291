"""Runs side by side: each is what it is alone, and one that fails harms no other."""

import dataclasses
import json
import os

import jax
import numpy as np
import pytest

from pgjax import backends
from pgjax.lab import advance, checkpoints, parallel, records
from pgjax.lab import run as training
from pgjax.lab.sweep import chunk as chunks
from pgjax.lab.sweep import plan as plans


@pytest.fixture
def carried(monkeypatch, tmp_path):
    """A function that carries out a sweep: final state, curves and numbers of each run."""

    def carry_out(sweep, **limits):
        plan = plans.make(sweep, devices=jax.local_devices()[:1], **limits)
        found, original = {}, advance.calls
        for number, chunk in enumerate(plan.chunks()):
            last = []

            def calls(*args, last=last):
                for progress, metrics in original(*args):
                    last[:] = [progress.state]
                    yield progress, metrics

            with monkeypatch.context() as patch:
                patch.setattr(advance, "calls", calls)
                result = chunks.carry_out(
                    plan.programs[chunk.group],
                    plan.configs(chunk.runs),
                    tmp_path / f"chunk-{len(list(tmp_path.iterdir()))}-{number}",
                    indices=chunk.runs,
                )
            leaves = jax.device_get(jax.tree.leaves(_plain(last[0])))
            for place, (index, seed) in enumerate(chunk.runs):
                values = tuple(plan.configurations[index].values())
                found[(*values, seed)] = (
                    [leaf[place].tobytes() for leaf in leaves],
                    {name: curve[place] for name, curve in result.curves.items()},
                    {name: numbers[place] for name, numbers in result.final.items()},
                )
        return found

    return carry_out


def _plain(state):
    """A state without typed keys."""
    is_key = lambda leaf: jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    return jax.tree.map(lambda x: jax.random.key_data(x) if is_key(x) else x, state)


def assert_same(found, expected):
    """States to the last bit; means over episodes as far as XLA's order of summation allows."""
    assert found[0] == expected[0]
    assert set(found[1]) == set(expected[1])
    for name, curve in expected[1].items():
        np.testing.assert_allclose(found[1][name], curve, rtol=1e-6, err_msg=name)
    assert found[2] == expected[2]


def test_a_run_in_a_sweep_is_the_run_of_that_config_alone(changed, carried, tmp_path):
    axes = {"learning_rate": (0.03, 0.3), "discount": (0.9, 1.0)}
    fields = {"form": "gae", "baseline": "value", "max_grad_norm": 1.0, "entropy_cost": 0.1}
    found = carried(changed(axes, **fields))
    alone = changed({}, **fields).base
    alone = dataclasses.replace(alone, learning_rate=0.3, discount=0.9, directory=str(tmp_path))
    started = training.start(alone)
    assert training.follow(started) is None
    _, progress = training.load(started.directory.path)
    curves = records.curves(started.directory.metrics)
    evaluation = json.loads(started.directory.evaluation.read_text())
    leaves = jax.device_get(jax.tree.leaves(_plain(progress.state)))
    for seed in range(2):
        in_sweep = found[(0.3, 0.9, seed)]
        expected = (
            [leaf[seed].tobytes() for leaf in leaves],
            {name: curve[seed] for name, curve in curves.items() if name in in_sweep[1]},
            {
                "evaluation_return": evaluation["return"]["per_seed"][seed],
                "evaluation_episode_length": evaluation["episode_length"]["per_seed"][seed],
                "diverged": 0,
            },
        )
        assert_same(in_sweep, expected)
    assert found[(0.3, 0.9, 0)][0] != found[(0.3, 1.0, 0)][0] != found[(0.3, 1.0, 1)][0]


def test_it_does_not_matter_how_many_go_at_once_nor_beside_whom(changed, sweep, carried):
    expected = carried(sweep)
    assert len({tuple(state) for state, _, _ in expected.values()}) == 6
    for other in (
        carried(sweep, at_once=1),
        carried(sweep, at_once=4),
        carried(changed({"learning_rate": (0.03, 0.3, 0.1)})),
    ):
        for run, found in other.items():
            assert_same(found, expected[run])


def test_it_does_not_matter_in_which_blocks_runs_are_trained(sweep, carried, laid_out):
    expected = carried(sweep)
    laid_out(backends.current()._replace(live_rows=4 * sweep.base.num_episodes))
    assert parallel.block(sweep.base) == 4  # of six runs
    for run, found in carried(sweep).items():
        assert_same(found, expected[run])


@pytest.mark.parametrize(
    ("rate", "fields", "skips"),
    [
        (1e6, {}, False),
        # Steps this long throw values out of what float32 holds.
        (1e38, {"optimizer": "sgd", "form": "gae", "baseline": "value"}, True),
    ],
    ids=["parameters", "gradients"],
)
def test_what_diverges_is_flagged_and_harms_no_neighbour(changed, carried, rate, fields, skips):
    wild = carried(changed({"learning_rate": (0.03, rate, 0.1)}, **fields))
    tame = carried(changed({"learning_rate": (0.03, 0.05, 0.1)}, **fields))
    for run in ((0.03, 0), (0.03, 1), (0.1, 0), (0.1, 1)):
        assert_same(wild[run], tame[run])
        assert not wild[run][2]["diverged"]
    for seed in range(2):
        _, curves, final = wild[(rate, seed)]
        assert final["diverged"]
        assert (curves["skipped"][-1] > 0) == skips


@pytest.fixture
def one(changed, tmp_path):
    """A chunk of two runs in a program of three, as a function of where it may be stopped."""
    plan = plans.make(
        changed({"learning_rate": (0.03, 0.1)}, num_updates=12),
        devices=jax.local_devices()[:1],
        at_once=3,
    )
    assert plan.programs[0].width == 2
    program = plan.programs[0]._replace(width=3)
    runs = [(0, 0), (1, 1)]

    def carry_out(where, calls=99):
        seen = []
        return chunks.carry_out(
            program,
            plan.configs(runs),
            tmp_path / where,
            indices=runs,
            observe=lambda update, found: seen.append(update),
            stopped=lambda: len(seen) >= calls,
        )

    return carry_out


def contents(result):
    """What must not depend on stops and damage."""
    curves = {name: curve.tobytes() for name, curve in result.curves.items()}
    return result.runs, curves, {name: x.tolist() for name, x in result.final.items()}


def test_a_chunk_that_is_narrower_than_its_program_can_be_stopped_at_any_call(one, tmp_path):
    whole = one("whole")
    assert whole.curves["return"].shape == (2, 12) and whole.runs == [(0, 0), (1, 1)]
    assert sorted(x.name for x in (tmp_path / "whole").iterdir()) == [
        "metrics.jsonl",
        "result.json",
    ]
    assert one("stopped", calls=0) is None
    for _ in range(2):
        # Besides the call that is waited for, the next one is under way.
        assert one("stopped", calls=1) is None
        assert chunks.read(tmp_path / "stopped") is None
    assert checkpoints.updates(tmp_path / "stopped" / "checkpoints") == [8, 4]
    assert contents(one("stopped")) == contents(whole)


def test_records_of_a_chunk_are_on_disk_before_its_checkpoint(one, tmp_path, monkeypatch):
    synced, save = [], checkpoints.save
    monkeypatch.setattr(records.os, "fsync", lambda file: synced.append(os.fstat(file).st_size))

    def saving(*args, **kwargs):
        assert synced == [(tmp_path / "stopped" / "metrics.jsonl").stat().st_size]
        return save(*args, **kwargs)

    monkeypatch.setattr(checkpoints, "save", saving)
    assert one("stopped", calls=1) is None
    assert synced


def _lines(edit):
    """Damage to the lines of the records."""

    def damage(where):
        file = where / "metrics.jsonl"
        file.write_text("".join(edit(file.read_text().splitlines(keepends=True))))

    return damage


def _flip(where):
    """Damage to the arrays of the newest checkpoint."""
    newest = where / "checkpoints" / str(checkpoints.updates(where / "checkpoints")[0])
    file = max((x for x in newest.rglob("*") if x.is_file()), key=lambda x: x.stat().st_size)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


DAMAGE = {
    "cut": _lines(lambda lines: lines[:1]),
    "torn": _lines(lambda lines: [*lines[:-1], lines[-1][:20]]),
    "holed": _lines(lambda lines: [lines[0], *lines[2:]]),
    "no record": _lines(lambda lines: ["[]\n", *lines[1:]]),
    "no update": _lines(lambda lines: ["{}\n", *lines[1:]]),
    "no metric": _lines(lambda lines: [*lines[:-1], '{"update": 6}\n']),
    "gone": lambda where: (where / "metrics.jsonl").unlink(),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_chunk_that_was_damaged_on_its_way_is_made_again(one, tmp_path, damage):
    whole = one("whole")
    assert one("damaged", calls=2) is None
    DAMAGE[damage](tmp_path / "damaged")
    assert contents(one("damaged")) == contents(whole)


def test_a_chunk_whose_checkpoint_was_flipped_is_made_again(one, tmp_path):
    whole = one("whole")
    assert one("damaged", calls=2) is None
    _flip(tmp_path / "damaged")
    with pytest.warns(UserWarning, match="passed over the damaged checkpoint"):
        assert contents(one("damaged")) == contents(whole)


@pytest.mark.parametrize(
    "damage",
    [
        *DAMAGE.values(),
        _lines(lambda lines: [lines[0].replace("0.", "1.", 1), *lines[1:]]),
        lambda where: (where / "result.json").write_text("torn"),
        lambda where: (where / "result.json").write_text("[]"),
        lambda where: (where / "result.json").write_text("{}"),
    ],
)
def test_results_that_were_damaged_are_refused(one, tmp_path, damage):
    one("whole")
    damage(tmp_path / "whole")
    with pytest.raises(ValueError, match="whole does not hold the results of a chunk"):
        chunks.read(tmp_path / "whole")


def test_what_was_carried_out_elsewhere_is_written_as_it_was(one, tmp_path):
    whole = one("whole")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "begun").touch()
    chunks.write(tmp_path / "elsewhere", whole)
    again = chunks.read(tmp_path / "elsewhere")
    assert contents(again) == contents(whole)
    assert again.seconds == pytest.approx(whole.seconds) and again.device == whole.device
    assert not list(tmp_path.glob(".*"))


def test_a_chunk_has_a_name_of_its_own(one, sweep):
    configs = [dataclasses.replace(sweep.base, seeds=1, seed=seed) for seed in (0, 1)]
    name = chunks.name(configs, [(0, 0), (0, 1)])
    assert name == chunks.name(list(configs), [(0, 0), (0, 1)])
    # The same configuration may be drawn twice.
    assert name != chunks.name(configs, [(1, 0), (1, 1)])
    assert name != chunks.name(configs[::-1], [(0, 0), (0, 1)])
