"""From JSON lines to a table and a plot. `report.py FILE...` prints the table of earlier measurements together."""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Iterable
from pathlib import Path
from typing import Any

Record = dict[str, Any]

BASE = "phlite/defaults"


def read_records(paths: Iterable[str]) -> list[Record]:
    """Return the records of the files in order; rounds of different files are kept apart."""
    records = []
    for file_idx, path in enumerate(paths):
        for line in Path(path).read_text(encoding="utf-8").splitlines():
            record = json.loads(line)
            if "round" in record:
                record["round"] = (file_idx, record["round"])
            records.append(record)
    return records


def format_table(records: list[Record]) -> str:
    """Return the table: a row per test and engine, with the engines' sizes and the machine's limits below."""
    samples = [record for record in records if record["record"] == "sample"]
    width = max([len(record["engine"]) for record in samples], default=6)
    head = f"{'test':<14}{'engine':<{width}}{'tokens/s':>10}{'min..max':>17}{'of phlite':>11}{'of limit':>10}{'n':>4}"
    lines = [head, "-" * len(head)]
    for test in unique(record["test"] for record in samples):
        for engine in unique(record["engine"] for record in samples if record["test"] == test):
            lines.append(format_row(samples, test, engine, width))
    lines.append("")
    lines += [format_engine(record, width) for record in records if record["record"] == "engine"]
    lines += [f"{record['engine']}: not run, {record['reason']}" for record in records if record["record"] == "skipped"]
    if samples:
        lines += ["", f"limits: {spread(samples, 'bytes_per_s')} GB/s read, {spread(samples, 'macs_per_s')} G MAC/s"]
    return "\n".join(lines)


def format_row(samples: list[Record], test: str, engine: str, width: int) -> str:
    own = [record for record in samples if record["test"] == test and record["engine"] == engine]
    speeds = [record["tokens_per_s"] for record in own]
    base = {record["round"]: record for record in samples if record["test"] == test and record["engine"] == BASE}
    ratios = [r["tokens_per_s"] / base[r["round"]]["tokens_per_s"] for r in own if r["round"] in base]
    range_ = f"{min(speeds):.1f}..{max(speeds):.1f}"
    ratio = f"{statistics.median(ratios):.2f}" if ratios else "-"
    share = limit_ratio(own)
    share_text = f"{share:.2f}" if share is not None else "-"
    speed = statistics.median(speeds)
    return f"{test:<14}{engine:<{width}}{speed:>10.2f}{range_:>17}{ratio:>11}{share_text:>10}{len(own):>4}"


def format_engine(record: Record, width: int) -> str:
    facts = record["facts"]
    version, load_s, peak = facts.get("version", "?"), facts.get("load_s", 0.0), record["peak_rss_bytes"] / 1e9
    return f"{record['engine']:<{width}}  {version}, loaded in {load_s:.1f} s, peak memory {peak:.2f} GB"


def limit_ratio(samples: list[Record]) -> float | None:
    """Median of speed over what the limits measured around the same sample allow; None without a limit."""
    shares = [r["tokens_per_s"] / r["limit_tokens_per_s"] for r in samples if r["limit_tokens_per_s"]]
    return statistics.median(shares) if shares else None


def spread(samples: list[Record], key: str) -> str:
    values = [record[key] / 1e9 for record in samples]
    return f"{statistics.median(values):.1f} ({min(values):.1f} to {max(values):.1f})"


def unique(values: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(values))


def write_plot(records: list[Record], path: str) -> str:
    """Draw ratio to limit per test and engine; return what was done in words, without matplotlib too."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return "no plot: matplotlib is not installed"
    samples = [record for record in records if record["record"] == "sample"]
    tests, engines = (unique(record[key] for record in samples) for key in ("test", "engine"))
    figure = Figure(figsize=(2.5 + 1.1 * len(tests), 4.2), layout="constrained")
    axes = figure.subplots()
    bar = 0.8 / max(len(engines), 1)
    for engine_idx, engine in enumerate(engines):
        own = [record for record in samples if record["engine"] == engine]
        heights = [limit_ratio([record for record in own if record["test"] == test]) or 0.0 for test in tests]
        places = [test_idx + (engine_idx + 0.5) * bar - 0.4 for test_idx in range(len(tests))]
        axes.bar(places, heights, bar * 0.92, label=engine.removesuffix("/defaults"))
    axes.axhline(1.0, color="black", linewidth=0.8)
    axes.set_xticks(range(len(tests)), tests)
    axes.set_ylabel("speed / limit of the machine in the same round")
    axes.legend(fontsize="small")
    figure.savefig(path)
    return f"plot: {path}"


def main() -> None:
    parser = argparse.ArgumentParser(description="Print the table of earlier measurements, and draw it.")
    parser.add_argument("files", nargs="+", metavar="FILE", help="JSON lines written by peers.py")
    parser.add_argument("--plot", metavar="FILE", help="draw the ratios to the limit (needs matplotlib)")
    options = parser.parse_args()
    records = read_records(options.files)
    print(format_table(records))
    if options.plot:
        print(write_plot(records, options.plot))


if __name__ == "__main__":
    main()
