"""How much memory a new allocation may take, as the operating system tells it."""

from __future__ import annotations

import os
import sys
from pathlib import Path

__all__ = ["available_memory_bytes", "shortage"]

CGROUP = Path("/sys/fs/cgroup")
NO_LIMIT_BYTES = 1 << 60  # version 1 writes "none" as the largest number of pages


def available_memory_bytes() -> int | None:
    """Return the bytes that can be used without swapping, container limits included; None where the system is mute."""
    if sys.platform == "win32":
        return windows_available_bytes()
    candidates = [linux_available_bytes(Path("/proc/meminfo")), cgroup_available_bytes(CGROUP), physical_bytes()]
    known = [n_bytes for n_bytes in candidates if n_bytes is not None]
    return min(known) if known else None


def shortage(weight_bytes: int, available_bytes: int | None, *, share: float) -> str | None:
    """Return a warning that names the sizes where weights want more than a share of the free memory; else None.

    available_bytes: free memory; None: unknown, nothing is said
    """
    if available_bytes is None or weight_bytes <= available_bytes * share:
        return None
    return (
        f"{weight_bytes / 1e9:.2f} GB of weights and {available_bytes / 1e9:.2f} GB of free memory: they run from a "
        "packed copy on disk, and what does not fit is read again whenever it is needed, which is slow; a smaller "
        "quantisation of the model would fit better"
    )


def linux_available_bytes(meminfo: Path) -> int | None:
    """Return MemAvailable of /proc/meminfo, None where there is no such file or line."""
    try:
        lines = meminfo.read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        name, _, value = line.partition(":")
        if name == "MemAvailable" and value.split()[0].isdigit():
            return int(value.split()[0]) * 1024
    return None


def cgroup_available_bytes(folder: Path) -> int | None:
    """Return what a control group, version 2 or 1, leaves, page cache counted as free; None where it has no limit."""
    versions = (
        (folder, "memory.max", "memory.current", "inactive_file"),
        (folder / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    )
    for where, limit_name, used_name, cache_name in versions:
        try:
            limit = (where / limit_name).read_text().strip()
            used = int((where / used_name).read_text())
            stat = dict(line.split() for line in (where / "memory.stat").read_text().splitlines())
            cache = int(stat.get(cache_name, 0))
        except (OSError, ValueError):
            continue
        if limit.isdigit() and int(limit) < NO_LIMIT_BYTES:
            return max(int(limit) - used + cache, 0)
    return None


def physical_bytes() -> int | None:
    """Return the installed memory."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return None


def windows_available_bytes() -> int | None:
    """Return ullAvailPhys of GlobalMemoryStatusEx."""
    if sys.platform != "win32":
        return None
    import ctypes

    class MemoryStatus(ctypes.Structure):
        _fields_ = (
            ("length", ctypes.c_ulong),
            ("load", ctypes.c_ulong),
            ("total_physical", ctypes.c_ulonglong),
            ("available_physical", ctypes.c_ulonglong),
            ("rest", ctypes.c_ulonglong * 5),
        )

    status = MemoryStatus(length=ctypes.sizeof(MemoryStatus))
    if not ctypes.windll.kernel32.GlobalMemoryStatusEx(ctypes.byref(status)):
        return None
    return int(status.available_physical)
