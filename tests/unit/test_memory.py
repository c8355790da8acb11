import pytest

from phlite.memory import available_memory_bytes, cgroup_available_bytes, linux_available_bytes, shortage


def test_this_machine_has_some_memory():
    assert available_memory_bytes() > 1 << 20


def test_memavailable_is_read_in_kib(tmp_path):
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal:       16384 kB\nMemFree:  1 kB\nMemAvailable:    4096 kB\n")
    assert linux_available_bytes(meminfo) == 4096 * 1024


@pytest.mark.parametrize("text", ["", "MemTotal: 1 kB\n", "MemAvailable: lots\n"])
def test_a_meminfo_without_the_line_is_unknown(tmp_path, text):
    (tmp_path / "meminfo").write_text(text)
    assert linux_available_bytes(tmp_path / "meminfo") is None


def test_a_containers_limit_leaves_what_is_not_used(tmp_path):
    (tmp_path / "memory.max").write_text("1000\n")
    (tmp_path / "memory.current").write_text("700\n")
    (tmp_path / "memory.stat").write_text("anon 500\ninactive_file 150\n")
    assert cgroup_available_bytes(tmp_path) == 450


def test_a_container_without_limit_is_unknown(tmp_path):
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text("700\n")
    (tmp_path / "memory.stat").write_text("anon 500\n")
    assert cgroup_available_bytes(tmp_path) is None


def test_no_control_group_is_unknown(tmp_path):
    assert cgroup_available_bytes(tmp_path) is None


@pytest.mark.parametrize("available_bytes", [None, 1000, 10**12])
def test_weights_that_fit_or_an_unknown_memory_are_no_shortage(available_bytes):
    assert shortage(900, available_bytes, share=0.9) is None


def test_a_shortage_names_both_sizes_and_what_follows():
    text = shortage(25_300_000_000, 27_120_000_000, share=0.9)
    assert "25.30 GB of weights" in text
    assert "27.12 GB of free memory" in text
    assert "read again" in text


def test_a_version_1_control_group_leaves_its_limit_less_its_use(tmp_path):
    (tmp_path / "memory").mkdir()
    for name, text in (
        ("limit_in_bytes", "1000"),
        ("usage_in_bytes", "700"),
        ("stat", "cache 9\ntotal_inactive_file 150"),
    ):
        (tmp_path / "memory" / f"memory.{name}").write_text(text)
    assert cgroup_available_bytes(tmp_path) == 450


def test_a_version_1_control_group_without_a_limit_is_mute(tmp_path):
    (tmp_path / "memory").mkdir()
    for name, text in (("limit_in_bytes", "9223372036854771712"), ("usage_in_bytes", "700"), ("stat", "cache 9")):
        (tmp_path / "memory" / f"memory.{name}").write_text(text)
    assert cgroup_available_bytes(tmp_path) is None
