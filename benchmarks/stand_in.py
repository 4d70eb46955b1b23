"""Stages of a few milliseconds in place of the real ones, with the same names and kinds of outputs.

What surrounds the stages, from the engine to the cohort page, is measured and tortured with them.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import random
import signal
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from brainstage.pipeline import lease
from brainstage.pipeline.config import Config
from brainstage.pipeline.derivatives import ScanFiles
from brainstage.pipeline.files import write_bytes, write_json
from brainstage.pipeline.records import VOLUMES, BrainVolumes
from brainstage.pipeline.stage import Stage
from brainstage.workflows.measured_volumes import VOLUMES_RECORD
from brainstage.workflows.progress import STAGE_ORDER

NAMES: Final = STAGE_ORDER[:-1]
"""All but the prediction, which needs a model."""
MEASURES: dict[str, Any] = {"brain_volume_ml": 1400.0, "template_correlation": 0.65, "spacing_mm": 1.0}
ORDERS = "BRAINSTAGE_STAND_IN"
"""Variable with a JSON object: scan key to stage to what goes wrong there, or ``pace`` to seconds a stage takes.

With a ``host`` the process is of another machine, as far as leases can tell, whose clock is ``ahead_s`` and where a
part of the reads of leases, ``unreadable``, fails. A ``trace`` is a file that gets a line for whatever happens.
"""
LEASE_TIMES: Final = {"HEARTBEAT_S": 0.5, "ABANDONED_S": 15.0, "REREAD_S": 0.01}
"""A machine that is gone is noticed after 15 s, not 300, with as many signs of life in that time."""


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
    orders = _orders()
    _trace(begun=name, scan=state.key)
    time.sleep(orders.get("pace", 0.0))
    _obey(orders.get(state.key, {}).get(name))
    return state


def _orders() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(os.environ.get(ORDERS, "{}"))
    return found


def _trace(**what: Any) -> None:  # noqa: ANN401 - whatever JSON holds
    """Write a line; one write of so few bytes is never mixed with another's."""
    path = _orders().get("trace")
    if path:
        line = json.dumps({"host": _orders().get("host"), "pid": os.getpid(), "at": time.monotonic(), **what})
        with Path(path).open("a", encoding="utf-8") as stream:
            stream.write(line + "\n")


def _be_of_another_machine(orders: Mapping[str, Any]) -> None:
    """Replace what tells this process where and when it is, and let reads of leases fail."""
    clock, read, dice = time.time, lease.read_json, random.Random()  # noqa: S311 - no secret

    def stale(path: Path) -> Any:  # noqa: ANN401 - as `read_json`
        if dice.random() < orders.get("unreadable", 0.0):
            number = dice.choice((errno.ESTALE, errno.EIO))
            _trace(unreadable=path.name)
            raise OSError(number, os.strerror(number))
        return read(path)

    time.time = lambda: clock() + orders.get("ahead_s", 0.0)
    lease._machine = lambda: orders["host"]  # noqa: SLF001 - what is replaced has no public name
    lease.read_json = stale
    for name, seconds in LEASE_TIMES.items():
        setattr(lease, name, seconds)


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
    _trace(done=name, scan=state.key)
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
    if name == "volumes":
        return [
            write_json(
                files.state / VOLUMES_RECORD, asdict(BrainVolumes(volumes_ml=dict.fromkeys(VOLUMES, 1.0)))
            )
        ]
    return []


if "host" in _orders():
    _be_of_another_machine(_orders())
