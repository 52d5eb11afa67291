"""Records: appended whole, read back, cut where a run goes on."""

import json

import numpy as np
import pytest

from pgjax.lab import records


def write(path, rows):
    with records.Records(path) as file:
        file.append(rows)


def rows(num_updates, seeds=(0, 1)):
    return [
        {"update": update, "seed": seed, "return": 10.0 * update + seed}
        for update in range(1, num_updates + 1)
        for seed in seeds
    ]


def test_what_is_appended_reads_back(tmp_path):
    path = tmp_path / "metrics.jsonl"
    write(path, rows(1))
    write(path, rows(2)[2:])
    assert records.read(path) == rows(2)


def test_records_are_on_disk_before_the_file_is_closed(tmp_path):
    path = tmp_path / "metrics.jsonl"
    with records.Records(path) as file:
        file.append(rows(1))
        assert len(path.read_text().splitlines()) == 2


def test_float32_is_written_by_its_shortest_digits_and_exactly(tmp_path):
    path = tmp_path / "metrics.jsonl"
    value = np.float32(0.02)
    write(path, [{"x": value, "y": np.bool_(True), "z": np.int64(2**40)}])
    assert path.read_text() == '{"x": 0.02, "y": true, "z": 1099511627776}\n'
    assert np.float32(records.read(path)[0]["x"]) == value


def test_what_is_not_finite_is_null_and_reads_as_nan(tmp_path):
    path = tmp_path / "metrics.jsonl"
    write(path, [{"x": np.float32("nan"), "y": float("inf")}])
    assert json.loads(path.read_text()) == {"x": None, "y": None}
    assert np.isnan(records.read(path)[0]["x"])


def test_a_torn_last_line_is_left_out(tmp_path):
    path = tmp_path / "metrics.jsonl"
    write(path, rows(2))
    path.write_bytes(path.read_bytes()[:-5])
    assert records.read(path) == rows(2)[:-1]


def test_a_broken_line_is_named(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"update": 1}\nnonsense\n')
    with pytest.raises(ValueError, match="metrics.jsonl:2"):
        records.read(path)


def test_curves_lead_with_seeds(tmp_path):
    path = tmp_path / "metrics.jsonl"
    write(path, rows(3))
    curves = records.curves(path)
    np.testing.assert_array_equal(curves["return"], [[10, 20, 30], [11, 21, 31]])


def test_curves_leave_out_an_update_that_not_all_seeds_have(tmp_path):
    path = tmp_path / "metrics.jsonl"
    write(path, rows(3)[:-1])
    assert records.curves(path)["return"].shape == (2, 2)


def test_curves_need_records(tmp_path):
    with pytest.raises(ValueError, match="no records"):
        records.curves(tmp_path / "metrics.jsonl")
    (tmp_path / "metrics.jsonl").touch()
    with pytest.raises(ValueError, match="no records"):
        records.curves(tmp_path / "metrics.jsonl")


@pytest.mark.parametrize("torn", [0, 7])
def test_truncate_keeps_what_is_not_done_again(tmp_path, torn):
    path = tmp_path / "metrics.jsonl"
    write(path, rows(4))
    path.write_bytes(path.read_bytes()[: -torn or None])
    records.truncate(path, 2)
    assert records.read(path) == rows(2)
    write(path, rows(4)[4:])
    assert records.read(path) == rows(4)


def test_truncate_drops_a_torn_line_alone(tmp_path):
    path = tmp_path / "metrics.jsonl"
    write(path, rows(2))
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"update": 2, "se')
    records.truncate(path, 2)
    assert path.read_bytes() == whole
