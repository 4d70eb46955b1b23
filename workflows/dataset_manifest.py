"""``brainstage manifest``: the table of a BIDS directory's scans."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from brainstage.pipeline.account import account_lines
from brainstage.pipeline.bids import read_dataset
from brainstage.pipeline.errors import BrainstageError, OutputError
from brainstage.pipeline.manifest import rows_of, write_manifest
from brainstage.pipeline.source import sha256_of_source


def make_manifest(
    bids_dir: Path, output: Path, *, label_column: str, validate: bool, say: Callable[[str], None]
) -> int:
    """Write ``data_manifest.csv``; return the number of its rows.

    A scan that cannot be read gets its row too, without a hash. `say` gets the account of the dataset, line by line.

    Raises
    ------
    BrainstageError
        When the directory is no BIDS dataset, or the table cannot be written.
    """
    dataset = read_dataset(bids_dir, validate=validate, label_column=label_column)
    hashes = {}
    for scan in dataset.scans:
        try:
            hashes[scan.key] = sha256_of_source(scan.path, scan.root)
        except OutputError:
            raise
        except BrainstageError:
            continue  # its row says so by having no hash; run will say why
    write_manifest(output, rows_of(dataset, hashes))
    for line in account_lines(dataset.account, dataset.scans, label_column):
        say(line)
    return len(dataset.scans)
