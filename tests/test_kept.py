"""What moved since results were kept: a true change is named, noise is not."""

import json

import pytest

from benchmarks import kept

QUIET = [100.0, 101.0, 99.0, 100.5, 99.5]
NOISY = [100.0, 130.0, 70.0, 115.0, 85.0]


def rows(rounds, size=64):
    return [kept.row({"size": size}, {"steps_per_second": rounds})]


def times(rounds, factor):
    return [factor * each for each in rounds]


@pytest.fixture
def results(tmp_path, monkeypatch):
    monkeypatch.setattr(kept, "kind", lambda: "cpu-2-toy")
    return tmp_path


def test_a_true_change_is_named_with_its_case():
    (move,) = kept.moved(rows(QUIET), rows(times(QUIET, 0.8)))
    assert (move.case, move.name, move.before, move.after) == (
        "size 64",
        "steps_per_second",
        100,
        80,
    )


@pytest.mark.parametrize("factor", [1.04, 0.96])
def test_less_than_five_percent_is_no_change(factor):
    assert not kept.moved(rows([100.0] * 5), rows([100.0 * factor] * 5))


def test_what_the_spread_of_both_explains_is_no_change():
    # Quartiles 85 and 115, of both together a range of 60 or more.
    assert not kept.moved(rows(NOISY), rows(times(NOISY, 1.5)))
    assert kept.moved(rows(NOISY), rows(times(NOISY, 2.0)))


def test_noise_on_either_side_counts():
    assert not kept.moved(rows(QUIET), rows(times(NOISY, 1.2)))
    assert not kept.moved(rows(NOISY), rows(times(QUIET, 1.2)))


def test_only_cases_and_figures_that_both_have_are_compared():
    assert not kept.moved(rows(QUIET), rows(times(QUIET, 2), size=128))
    other = [kept.row({"size": 64}, {"bytes": [1.0]})]
    assert not kept.moved(rows(QUIET), other)


def test_one_round_has_no_spread_and_moves_beyond_five_percent():
    assert not kept.moved(rows([100]), rows([105]))
    assert kept.moved(rows([100]), rows([106]))
    assert kept.moved(rows([0]), rows([1]))


def cases(name, factors):
    return [
        kept.row({"size": size}, {name: times(QUIET, factor)})
        for size, factor in enumerate(factors)
    ]


def test_a_machine_that_is_slower_throughout_is_no_change():
    before, drifted = cases("seconds", [1] * 6), [1.3] * 6
    assert not kept.moved(before, cases("seconds", drifted))
    (slow,) = kept.moved(before, cases("seconds", [*drifted[:5], 1.6]))
    assert slow.case == "size 5"
    # Nor is what stayed while all else drifted.
    assert not kept.moved(before, cases("seconds", [*drifted[:5], 1]))


def test_a_change_to_most_cases_is_told(results):
    kept.keep("toy", cases("seconds", [1] * 6), results=results)
    lines = kept.compare("toy", cases("seconds", [1, 1, 1.3, 1.3, 1.3, 1.3]), results=results)
    assert any(line.startswith("all seconds: +30% in the median") for line in lines)
    lines = kept.compare("toy", cases("seconds", [1] * 6), results=results)
    assert not any(line.startswith("all ") for line in lines)


def test_ratios_do_not_drift():
    assert len(kept.moved(cases("ratio", [1] * 6), cases("ratio", [1.3] * 6))) == 6


def test_few_figures_do_not_tell_a_drift():
    assert len(kept.moved(cases("seconds", [1] * 4), cases("seconds", [1.3] * 4))) == 4


def test_notes_are_kept_and_never_compared(results, capsys):
    kept.keep("toy", rows(QUIET), notes={"equal": "the network"}, results=results)
    kept.keep("toy", rows(QUIET), notes={"equal": "the networks"}, results=results)
    assert "0 of 1 figures moved" in capsys.readouterr().out
    content = json.loads((results / "cpu-2-toy" / "toy.json").read_text())
    assert content["notes"] == {"equal": "the networks"}


def test_what_is_no_longer_measured_is_named(results):
    kept.keep("toy", rows(QUIET) + rows(QUIET, size=128), results=results)
    lines = kept.compare("toy", rows(QUIET), results=results)
    assert "not measured this time: size 128" in lines
    assert any(line.startswith(f"kept of {kept.code()['commit']}, ") for line in lines)


def test_keeping_says_what_moved_and_then_keeps_it(results, capsys):
    kept.keep("toy", rows(QUIET), results=results)
    assert "nothing is kept of cpu-2-toy" in capsys.readouterr().out
    kept.keep("toy", rows(times(QUIET, 0.5)), results=results)
    out = capsys.readouterr().out
    assert "moved: size 64, steps_per_second: 100 -> 50 (-50%)" in out
    assert "1 of 1 figures moved" in out
    kept.keep("toy", rows(times(QUIET, 0.5)), results=results)
    assert "0 of 1 figures moved" in capsys.readouterr().out


def test_what_is_kept_has_command_machine_and_every_round(results):
    kept.keep("toy", rows(QUIET), settings={"updates": 3}, results=results)
    content = json.loads((results / "cpu-2-toy" / "toy.json").read_text())
    assert content["command"] == "python -m benchmarks.toy"
    assert content["settings"] == {"updates": 3}
    assert content["code"] == kept.code() and set(content["code"]) == {"commit", "date"}
    assert content["machine"]["kind"] == "cpu-2-toy" and content["machine"]["processor"]
    (row,) = content["rows"]
    assert row["case"] == {"size": 64}
    assert row["measured"]["steps_per_second"] == {
        "median": 100,
        "low": 99.5,
        "high": 100.5,
        "rounds": QUIET,
    }


def test_another_kind_of_machine_is_not_compared(results, monkeypatch, capsys):
    kept.keep("toy", rows(QUIET), results=results)
    monkeypatch.setattr(kept, "kind", lambda: "gpu-1-toy")
    kept.keep("toy", rows(times(QUIET, 9)), results=results)
    out = capsys.readouterr().out
    assert "nothing is kept of gpu-1-toy" in out and "moved:" not in out
    assert sorted(path.name for path in results.iterdir()) == ["cpu-2-toy", "gpu-1-toy"]


def test_other_settings_are_not_compared(results, capsys):
    kept.keep("toy", rows(QUIET), settings={"updates": 3}, results=results)
    kept.keep("toy", rows(times(QUIET, 9)), settings={"updates": 4}, results=results)
    out = capsys.readouterr().out
    assert "other settings" in out and "moved:" not in out


@pytest.mark.parametrize("rounds", [[], [float("nan")], [1.0, float("inf")]])
def test_rounds_must_be_finite(rounds):
    with pytest.raises(ValueError, match="steps_per_second must have finite rounds"):
        rows(rounds)


def test_two_rows_of_one_case_are_refused_and_nothing_is_written(results):
    with pytest.raises(ValueError, match="two rows are of the case 'size 64'"):
        kept.keep("toy", rows(QUIET) + rows(NOISY), results=results)
    assert not list(results.iterdir())


def test_smoke_and_compare_keep_nothing(results, monkeypatch, capsys):
    monkeypatch.setattr(kept, "RESULTS", results)
    measure = lambda smoke: rows(times(QUIET, 1 if smoke else 2))
    kept.run("toy", measure, ["--smoke"])
    assert not list(results.iterdir())
    kept.keep("toy", rows(QUIET), results=results)
    before = (results / "cpu-2-toy" / "toy.json").read_text()
    capsys.readouterr()
    kept.run("toy", measure, ["--compare"])
    assert "100 -> 200 (+100%)" in capsys.readouterr().out
    assert (results / "cpu-2-toy" / "toy.json").read_text() == before


def test_kind_is_one_word_for_a_directory():
    assert kept.kind().startswith("cpu-")
    assert set(kept.kind()) <= set("abcdefghijklmnopqrstuvwxyz0123456789_-")


def test_kind_tells_processors_of_one_name_apart(monkeypatch, tmp_path):
    kinds = set()
    for number in (17, 1):
        cpuinfo = tmp_path / str(number)
        told = f"processor : 0\ncpu family\t: 25\nmodel\t\t: {number}\nmodel name\t: AMD EPYC\n\n"
        cpuinfo.write_text(told * 2)
        monkeypatch.setattr(kept, "CPUINFO", cpuinfo)
        kinds.add(kept.kind())
    assert {kind.partition("-amd-")[2] for kind in kinds} == {
        "epyc-family-25-model-1",
        "epyc-family-25-model-17",
    }


@pytest.mark.parametrize("told", ["", "CPU implementer : 0x41\n", None])
def test_kind_is_there_where_the_processor_has_no_name(monkeypatch, tmp_path, told):
    if told is not None:
        (tmp_path / "cpuinfo").write_text(told)
    monkeypatch.setattr(kept, "CPUINFO", tmp_path / "cpuinfo")
    assert kept.kind().startswith("cpu-") and "family" not in kept.kind()


def test_everything_that_is_kept_can_be_read():
    files = sorted(kept.RESULTS.glob("*/*.json"))
    assert files
    for file in files:
        content = kept.read(file)
        assert content["command"] == f"python -m benchmarks.{file.stem}"
