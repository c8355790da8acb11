"""What the standard library does not say of this process and machine, on Linux, macOS and Windows."""

from __future__ import annotations

import sys
from pathlib import Path

__all__ = ["cpu_model", "peak_rss_bytes"]


def peak_rss_bytes() -> int:
    """Most memory this process ever held in RAM, mapped files included, in bytes."""
    if sys.platform == "win32":
        return _windows_peak_bytes()
    try:  # Linux: getrusage begins at what the parent held when it started this process; this does not
        for line in Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def cpu_model() -> str:
    """Name of the processor as the system gives it, or its architecture."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    for line in lines:
        key, _, value = line.partition(":")
        if key.strip() == "model name":
            return value.strip()
    import platform

    return platform.processor() or platform.machine()


def _windows_peak_bytes() -> int:
    """Peak working set of this process, from the Win32 API."""
    if sys.platform != "win32":
        return 0
    import ctypes
    from ctypes import wintypes

    class Counters(ctypes.Structure):
        _fields_ = (
            ("size", wintypes.DWORD),
            ("faults", wintypes.DWORD),
            ("peak_working_set", ctypes.c_size_t),
            ("rest", ctypes.c_size_t * 7),
        )

    counters = Counters(size=ctypes.sizeof(Counters))
    process = wintypes.HANDLE(-1)  # the pseudo handle of the calling process
    ctypes.windll.kernel32.K32GetProcessMemoryInfo(process, ctypes.byref(counters), counters.size)
    return int(counters.peak_working_set)
