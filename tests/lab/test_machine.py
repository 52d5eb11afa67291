"""Devices and memory: text from users, words for users."""

import os
import subprocess
import sys
import types

import jax
import pytest

from pgjax import backends
from pgjax.lab import machine

(FLAG,) = backends.CPU_FLAGS


@pytest.fixture(autouse=True)
def flags_of_others_stay(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", os.environ.get("XLA_FLAGS", ""))


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("1", 1),
        ("500M", 5e8),
        ("8G", 8e9),
        ("8gb", 8e9),
        (" 1.5 T ", 1.5e12),
        ("2k", 2e3),
        ("1e3", 1e3),
        ("7B", 7),
    ],
)
def test_bytes_are_read(text, size):
    assert machine.parse_bytes(text) == size


@pytest.mark.parametrize("text", ["", "0", "-5G", "0.5", "many", "8X", "8GiB", "nan", "inf", "G"])
def test_what_is_no_number_of_bytes_is_refused(text):
    with pytest.raises(ValueError, match="memory_limit=.*as in 500M or 8G"):
        machine.parse_bytes(text)


@pytest.mark.parametrize(
    ("size", "words"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1 kB"),
        (28_200, "28.2 kB"),
        (999_400, "999 kB"),
        (999_900, "1 MB"),
        (8e9, "8 GB"),
        (1.5e12, "1.5 TB"),
    ],
)
def test_bytes_in_words(size, words):
    assert machine.format_bytes(size) == words


def test_memory_is_what_is_free_and_allowed(monkeypatch):
    monkeypatch.setattr(machine, "_free", lambda: 1000.0)
    monkeypatch.setattr(machine, "_allowed", lambda: 500.0)
    assert machine.memory() == 400
    monkeypatch.setattr(machine, "_allowed", lambda: float("inf"))
    assert machine.memory() == 800


V1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
V2 = ("memory.max", "memory.current", "inactive_file")


@pytest.mark.parametrize(
    ("member", "groups", "left"),
    [
        ("0::/", {"": (V2, 1000, 300)}, 750),
        ("0::/", {"": (V2, "max", 300)}, float("inf")),
        # A batch job: its own group is in one that is limited.
        (
            "0::/slurm/job_7/step_0",
            {"slurm/job_7": (V2, 800, 300), "slurm/job_7/step_0": (V2, "max", 100)},
            550,
        ),
        ("0::/a/b", {"a": (V2, 1000, 100), "a/b": (V2, 700, 100), "a/c": (V2, 1, 0)}, 650),
        (
            "4:memory:/slurm/job_7\n1:cpu:/other\n0::/",
            {"memory": (V1, 2**63 - 4096, 0), "memory/slurm/job_7": (V1, 500, 200)},
            350,
        ),
        # A container that sees its own group as the root.
        ("5:cpu,memory:/docker/1", {"memory": (V1, 600, 100)}, 550),
        ("0::/", {}, float("inf")),
        ("0::/../outside", {"": (V2, 500, 100)}, 450),
    ],
)
def test_allowed_is_what_the_control_groups_leave(tmp_path, member, groups, left):
    (tmp_path / "proc" / "self").mkdir(parents=True)
    (tmp_path / "proc" / "self" / "cgroup").write_text(f"{member}\n")
    for path, ((limit, used, cached), most, now) in groups.items():
        folder = tmp_path / "sys" / "fs" / "cgroup" / path
        folder.mkdir(parents=True, exist_ok=True)
        (folder / limit).write_text(f"{most}\n")
        (folder / used).write_text(f"{now}\n")
        (folder / "memory.stat").write_text(f"anon 7\n{cached} 50\n")
    assert machine._allowed(tmp_path) == left


def test_without_control_groups_all_is_allowed(tmp_path):
    assert machine._allowed(tmp_path) == float("inf")


def test_this_machine_has_memory_and_devices():
    assert machine.memory() > 10**6
    assert machine.devices() == jax.local_devices() != []
    assert machine.describe() == f"{len(jax.local_devices())} x cpu (cpu)"


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("", FLAG),
        (FLAG, FLAG),
        ("--xla_dump_to='/a  b'", f"{FLAG} --xla_dump_to='/a  b'"),
        (
            "--xla_backend_extra_options=xla_cpu_a=1",
            f"{FLAG} --xla_backend_extra_options=xla_cpu_a=1",
        ),
        ("a_file_of_flags", "a_file_of_flags"),
    ],
)
def test_what_the_environment_tells_xla_stands(before, after, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", before)
    for _ in range(2):
        machine.prepare()
        assert os.environ["XLA_FLAGS"] == after


SMALL = FLAG.replace("4000000", "1")
OTHER = "--xla_backend_extra_options=xla_cpu_other=1"
THREE = "--xla_force_host_platform_device_count=3"


@pytest.mark.parametrize(
    ("prepare", "flags", "expected"),
    [
        ("machine.prepare()", "", "True"),
        ("machine.prepare()", OTHER, "True"),
        ("machine.prepare()", "--xla_gpu_deterministic_ops=true", "True"),  # XLA knows it
        ("machine.prepare()", SMALL, "False"),
        ("machine.prepare()", THREE, "True 3"),
        ("pass", "", "False"),
        ("ray_worker._devices(ray_worker.Given(ray_worker.Need(1, 0), ()))", "", "True 1"),
    ],
)
def test_xla_makes_one_function_of_a_small_loop(prepare, flags, expected):
    """In jaxlib the flag is a mere text: were it renamed, nothing else would tell.

    Programs are laid out for what it does and not for what it says.
    """
    program = (
        "from pgjax import backends;"
        "from pgjax.lab import machine; from pgjax.lab.sweep import ray_worker;"
        f"{prepare}; import jax;"
        "hash = jax.jit(lambda key: jax.random.bits(key, 2000)).lower(jax.random.key(0));"
        "fused = 'small_call' in hash.compile().as_text();"
        "assert backends.current().fused_loops == fused;"
        "print(fused, len(jax.devices()))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | {"XLA_FLAGS": flags},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.startswith(expected)


@pytest.mark.skipif(sys.platform != "linux", reason="of glibc")
@pytest.mark.parametrize(
    ("largest", "kept"),
    [
        (2**31 - 1, [(machine.M_MMAP_THRESHOLD, 2**31 - 1), (machine.M_TRIM_THRESHOLD, 2**31 - 1)]),
        (2**25, [(machine.M_MMAP_THRESHOLD, 2**25), (machine.M_TRIM_THRESHOLD, 2**31 - 1)]),
        (0, []),
    ],
    ids=["new", "old", "another"],
)
def test_thresholds_of_malloc_are_set_together_or_not_at_all(largest, kept, monkeypatch):
    taken = []

    def mallopt(parameter, size):
        refused = parameter == machine.M_MMAP_THRESHOLD and size > largest
        return 0 if refused else taken.append((parameter, size)) or 1

    for name in [name for name in os.environ if name.startswith("MALLOC_")]:
        monkeypatch.delenv(name)
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    libc = types.SimpleNamespace(mallopt=mallopt)
    monkeypatch.setattr(machine.ctypes, "CDLL", lambda _: libc)
    machine._keep_memory()
    assert taken == kept


@pytest.mark.skipif(sys.platform != "linux", reason="of glibc")
@pytest.mark.parametrize(("variable", "kept"), [("OTHER", True), ("MALLOC_ARENA_MAX", False)])
def test_freed_memory_is_kept_unless_the_environment_tunes_it(variable, kept):
    """Pages of 64 MB that are asked for again are faulted in again only if they were given back."""
    program = (
        "import ctypes, resource; from pgjax.lab import machine; machine.prepare();"
        "c = ctypes.CDLL(None); c.malloc.restype = ctypes.c_void_p;"
        "fill = lambda block: (c.memset(ctypes.c_void_p(block), 1, 2**26), block)[1];"
        "use = lambda: c.free(ctypes.c_void_p(fill(c.malloc(ctypes.c_size_t(2**26)))));"
        "faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt;"
        "use(); before = faults(); use(); print(faults() - before)"
    )
    untuned = {name: x for name, x in os.environ.items() if "MALLOC_" not in name}
    untuned.pop("GLIBC_TUNABLES", None)
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=untuned | {variable: "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert (int(done.stdout) < 16) == kept  # huge pages would be 32
