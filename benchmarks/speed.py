"""How long the chain takes, against the two calls that Clinica's t1-linear makes, on the same heads in one process.

Run it alone on the machine::

    .venv/bin/python benchmarks/speed.py BIDS_DIR [--scans 2] [--threads 2]

It prints a table and writes it to ``benchmarks/speed.md``. The networks and the template are loaded before the
clock starts; both sides get the same mask of the same stage and the same number of threads.
"""

from __future__ import annotations

import argparse
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from brainstage.pipeline.bids import read_dataset
from brainstage.pipeline.config import Config
from brainstage.pipeline.engine import limit_threads

Result = TypeVar("Result")


def timed(work: Callable[[], Result]) -> tuple[Result, float]:
    """Return what `work` gives and how many seconds it took."""
    started = time.perf_counter()
    result = work()
    return result, time.perf_counter() - started


def ours(path: Path, config: Config) -> tuple[dict[str, float], Any]:
    """Run the default chain on one scan; return seconds by stage and the stripped head."""
    from brainstage.preprocessing.bias_field import correct_bias
    from brainstage.preprocessing.brain_extraction import extract_brain
    from brainstage.preprocessing.ingest import ingest
    from brainstage.preprocessing.intensity import normalise
    from brainstage.preprocessing.registration import register

    seconds: dict[str, float] = {}
    head, seconds["ingest"] = timed(lambda: ingest(path, config.ingest))
    stripped, seconds["brain extraction"] = timed(lambda: extract_brain(head, config.brain_extraction))
    corrected, seconds["bias field"] = timed(lambda: correct_bias(stripped, config.bias_field))
    normalised, seconds["intensity"] = timed(lambda: normalise(corrected, config.intensity))
    _, seconds["registration"] = timed(lambda: register(normalised, config.registration))
    return seconds, stripped


def theirs(stripped: Any) -> dict[str, float]:  # noqa: ANN401 - imported late, like everything heavy here
    """Run N4 at its defaults with a mask, then antsRegistrationSyNQuick[a] at 1 mm, on the same head."""
    import ants

    from brainstage.pipeline.volume import Volume
    from brainstage.preprocessing.ants_tools import to_ants
    from brainstage.preprocessing.template import load_template

    mask = stripped.brain_mask
    image = to_ants(stripped.head)
    mask_image = to_ants(Volume(data=mask.data.astype("float32"), voxel_to_ras=mask.voxel_to_ras))
    seconds: dict[str, float] = {}
    corrected, seconds["N4"] = timed(lambda: ants.n4_bias_field_correction(image, mask=mask_image))
    fixed = to_ants(load_template(1.0).t1w)
    _, seconds["SyNQuick[a]"] = timed(
        lambda: ants.registration(
            fixed=fixed, moving=corrected * mask_image, type_of_transform="antsRegistrationSyNQuick[a]"
        )
    )
    return seconds


def table_of(rows: list[tuple[str, dict[str, float], dict[str, float]]], threads: int) -> str:
    """Return the result as Markdown."""
    lines = [
        "# Speed of the default chain",
        "",
        f"Seconds, {threads} thread(s), networks and template loaded. Made by `benchmarks/speed.py`.",
        "",
        "| scan | "
        + " | ".join(rows[0][1])
        + " | **ours** | "
        + " | ".join(rows[0][2])
        + " | **t1-linear's calls** | ratio |",
        "|---" * (len(rows[0][1]) + len(rows[0][2]) + 4) + "|",
    ]
    for scan, mine, other in rows:
        total, reference = sum(mine.values()), sum(other.values())
        cells = [scan, *(f"{s:.1f}" for s in mine.values()), f"**{total:.1f}**"]
        cells += [*(f"{s:.1f}" for s in other.values()), f"**{reference:.1f}**", f"{reference / total:.1f}"]
        lines.append("| " + " | ".join(cells) + " |")
    peak_gb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024**2
    lines += ["", f"Peak memory of the process, both sides in it: {peak_gb:.1f} GB.", ""]
    return "\n".join(lines)


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("bids_dir", type=Path)
    parser.add_argument("--scans", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    limit_threads(options.threads, asked_for=True)
    scans = read_dataset(options.bids_dir).scans[: options.scans]
    config = Config()
    ours(scans[0].path, config)  # loads networks, template and libraries
    rows = []
    for scan in scans:
        mine, stripped = ours(scan.path, config)
        rows.append((scan.key, mine, theirs(stripped)))
    table = table_of(rows, options.threads)
    print(table)
    (Path(__file__).parent / "speed.md").write_text(table, encoding="utf-8")


if __name__ == "__main__":
    main()
