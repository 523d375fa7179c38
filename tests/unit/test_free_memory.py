"""How much memory may be filled: the machine's word and every control group's, on trees as the kernel shows them."""

from __future__ import annotations

import sys
from pathlib import Path

import psutil
import pytest

from settee.comfy_nodes.settee_patches import prestartup_script
from settee.models.readahead import free_memory, total_memory

GIB = 1024**3


def machine(root: Path, cgroup: str, files: dict[str, str], available: int = 100 * GIB) -> Path:
    """A root folder with /proc/meminfo, /proc/self/cgroup and the given files below /sys/fs/cgroup."""
    meminfo = f"MemTotal:       263000000 kB\nMemFree:         1000000 kB\nMemAvailable: {available // 1024} kB\n"
    written = {"proc/meminfo": meminfo, "proc/self/cgroup": cgroup}
    written |= {f"sys/fs/cgroup/{name}": text for name, text in files.items()}
    for name, text in written.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def v2(limit: object, current: int, inactive: int, high: object = "max") -> dict[str, str]:
    return {
        "memory.max": f"{limit}\n",
        "memory.high": f"{high}\n",
        "memory.current": f"{current}\n",
        "memory.stat": f"anon 1\nfile {inactive + 7}\ninactive_file {inactive}\nactive_file 7\n",
    }


def v1(limit: int, usage: int, inactive: int) -> dict[str, str]:
    return {
        "memory.limit_in_bytes": f"{limit}\n",
        "memory.usage_in_bytes": f"{usage}\n",
        "memory.stat": f"cache 5\ninactive_file 1\ntotal_inactive_file {inactive}\n",
    }


def below(folder: str, files: dict[str, str]) -> dict[str, str]:
    return {f"{folder}/{name}": text for name, text in files.items()}


def test_without_groups_it_is_the_machines_word(tmp_path: Path) -> None:
    assert free_memory(machine(tmp_path, "0::/\n", {}, available=7 * GIB)) == 7 * GIB


def test_what_there_is_in_all_is_the_least_limit(tmp_path: Path) -> None:
    groups = {**v2("max", 1, 0), **below("pod", v2(64 * GIB, 1, 0)), **below("pod/one", v2(16 * GIB, 1, 0))}
    assert total_memory(machine(tmp_path / "v2", "0::/pod/one\n", groups)) == 16 * GIB
    assert total_memory(machine(tmp_path / "v1", "4:memory:/\n", below("memory", v1(8 * GIB, 1, 0)))) == 8 * GIB
    assert total_memory(machine(tmp_path / "none", "0::/\n", v2("max", 1, 0))) == 263_000_000 * 1024
    assert total_memory(tmp_path / "no Linux") == 0


def test_comfyui_sees_no_more_than_that() -> None:
    """ComfyUI asks psutil, which shows a container its host's memory."""
    host = psutil.virtual_memory()
    seen = prestartup_script.limited(psutil.virtual_memory, host.total // 4, lambda: host.total // 8)()
    assert seen.total == host.total // 4
    # What is free may be less than can be had, and both less than allowed: this machine has other work.
    assert seen.free <= seen.available <= host.total // 8
    assert seen.percent >= 50
    assert type(seen) is type(host)


def test_a_version_2_limit_and_cache_that_nobody_used_lately(tmp_path: Path) -> None:
    root = machine(tmp_path, "0::/\n", v2(16 * GIB, 12 * GIB, 3 * GIB))
    assert free_memory(root) == 7 * GIB


def test_max_is_no_limit(tmp_path: Path) -> None:
    assert free_memory(machine(tmp_path, "0::/\n", v2("max", 12 * GIB, 3 * GIB), available=9 * GIB)) == 9 * GIB


def test_the_machine_may_have_less_than_the_group_allows(tmp_path: Path) -> None:
    assert free_memory(machine(tmp_path, "0::/\n", v2(64 * GIB, GIB, 0), available=2 * GIB)) == 2 * GIB


def test_the_limit_at_which_the_kernel_slows_a_group_down_counts_too(tmp_path: Path) -> None:
    assert free_memory(machine(tmp_path, "0::/\n", v2("max", 4 * GIB, 0, high=6 * GIB))) == 2 * GIB
    assert free_memory(machine(tmp_path, "0::/\n", v2(5 * GIB, 4 * GIB, 0, high=6 * GIB))) == GIB


@pytest.mark.parametrize("tight", ["kubepods", "kubepods/pod1", "kubepods/pod1/c2"])
def test_the_tightest_of_nested_groups_decides(tmp_path: Path, tight: str) -> None:
    files: dict[str, str] = {}
    for folder in ("kubepods", "kubepods/pod1", "kubepods/pod1/c2"):
        files |= below(folder, v2(10 * GIB if folder == tight else "max", 6 * GIB, GIB))
    assert free_memory(machine(tmp_path, "0::/kubepods/pod1/c2\n", files)) == 5 * GIB


def test_version_1(tmp_path: Path) -> None:
    groups = "9:name=systemd:/\n4:cpu,memory:/docker/abc\n0::/\n"
    files = below("memory/docker/abc", v1(8 * GIB, 6 * GIB, 2 * GIB)) | below("memory", v1(2**63 - 4096, 9 * GIB, 0))
    assert free_memory(machine(tmp_path, groups, files)) == 4 * GIB


@pytest.mark.parametrize(
    ("groups", "files"),
    [
        ("4:memory:/docker/abc\n", below("memory", v1(8 * GIB, 6 * GIB, 0))),
        ("0::/../../docker/abc\n", v2(8 * GIB, 6 * GIB, 0)),
        ("0::/\n", below("unified", v2(8 * GIB, 6 * GIB, 0))),
    ],
    ids=["the host's path in a container", "above a namespace's top", "both versions mounted"],
)
def test_a_path_that_cannot_be_seen_leaves_the_mounts_top(tmp_path: Path, groups: str, files: dict[str, str]) -> None:
    assert free_memory(machine(tmp_path, groups, files)) == 2 * GIB


def test_a_group_over_its_limit_has_nothing_left(tmp_path: Path) -> None:
    assert free_memory(machine(tmp_path, "0::/\n", v2(4 * GIB, 5 * GIB, 0))) == 0


@pytest.mark.parametrize("broken", [{"memory.max": "nonsense\n"}, {"memory.max": "1000\n"}, {"memory.max": ""}])
def test_what_cannot_be_read_is_no_limit(tmp_path: Path, broken: dict[str, str]) -> None:
    assert free_memory(machine(tmp_path, "garbage\n0::/\n\n", broken, available=3 * GIB)) == 3 * GIB


def test_nowhere_to_ask_is_nothing_free(tmp_path: Path) -> None:
    assert free_memory(tmp_path) == 0


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/proc/meminfo is Linux's")
def test_this_machine_says_something_that_can_be() -> None:
    total = next(line for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith("MemTotal:"))
    assert 0 < free_memory() < int(total.split()[1]) * 1024
