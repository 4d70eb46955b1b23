"""Stages of a few milliseconds in place of the real ones, with the same names and kinds of outputs.

What surrounds the stages, from the engine to the cohort page, is measured and tortured with them.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from brainstage.pipeline.config import Config
from brainstage.pipeline.derivatives import ScanFiles
from brainstage.pipeline.files import write_bytes, write_json
from brainstage.pipeline.stage import Stage

NAMES = ("ingest", "brain_extraction", "bias_field", "intensity", "registration", "quality", "figures")
MEASURES: dict[str, Any] = {"brain_volume_ml": 1400.0, "template_correlation": 0.65, "spacing_mm": 1.0}
ORDERS = "BRAINSTAGE_STAND_IN"
"""Variable with a JSON object: scan key to stage to what goes wrong there, or ``pace`` to seconds a stage takes."""


def stand_in_stages(config: Config) -> tuple[Stage, ...]:
    """Return the chain; every output follows from the scan's name and the stage's."""
    return tuple(
        Stage(
            name=name,
            version="1",
            parameters={"seed": config.seed} if name == "registration" else {},
            reads=NAMES[:position][-1:],
            run=lambda state, name=name: _run(state, name),
            save=lambda state, files, name=name: _save(state, files, name),
            load=lambda state, _files: state,
        )
        for position, name in enumerate(NAMES)
    )


def _run(state: Any, name: str) -> Any:  # noqa: ANN401 - a scan
    orders = json.loads(os.environ.get(ORDERS, "{}"))
    time.sleep(orders.get("pace", 0.0))
    _obey(orders.get(state.key, {}).get(name))
    return state


def _obey(order: str | None) -> None:
    if order is None:
        return
    what, _, once = order.partition(" once in ")
    if once:
        try:
            Path(once).touch(exist_ok=False)
        except FileExistsError:
            return
    if what == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if what == "hang":
        time.sleep(3600)
    if what == "stop":
        os.kill(os.getpid(), signal.SIGSTOP)
    if what == "eat":
        eaten = []
        while True:
            eaten.append(bytearray(os.urandom(1024) * 16384))
            time.sleep(0.01)


def _save(state: Any, files: ScanFiles, name: str) -> Sequence[Path]:  # noqa: ANN401 - a scan
    content = hashlib.sha256(f"{state.key} {name}".encode()).digest() * 32
    if name == "ingest":
        return [write_json(files.state / "header_findings.json", {})]
    if name == "brain_extraction":
        return [write_bytes(files.native_mask, content)]
    if name == "bias_field":
        return [write_bytes(files.native_t1w, content)]
    if name == "intensity":
        return [write_json(files.state / "normalisation.json", {"of": state.key})]
    if name == "registration":
        return [write_bytes(files.template_t1w, content), write_bytes(files.template_mask, content)]
    if name == "quality":
        return [write_json(files.qc_json, MEASURES | {"qc_status": "pass", "qc_reasons": []})]
    return []
