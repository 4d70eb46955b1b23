"""What a tool leaves on disk goes with its process, or with the next one."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from brainstage.pipeline.lease import this_machine
from brainstage.pipeline.scratch import remove_abandoned_scratch, scratch_folder


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_a_scratch_folder_goes_with_its_block(temporary: Path) -> None:
    with scratch_folder() as folder:
        (folder / "warp.nii.gz").touch()
        assert folder.parent == temporary
        assert remove_abandoned_scratch() == 0, "its process lives"
    assert not list(temporary.iterdir())


def test_what_a_killed_process_left_is_removed_by_the_next(temporary: Path) -> None:
    code = (
        "import os, signal\n"
        "from brainstage.pipeline.scratch import scratch_folder\n"
        "with scratch_folder() as folder:\n"
        "    (folder / 'warp.nii.gz').write_bytes(b'a brain')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    subprocess.run([sys.executable, "-c", code], env=os.environ | {"TMPDIR": str(temporary)}, check=False)
    assert len(list(temporary.rglob("warp.nii.gz"))) == 1
    assert remove_abandoned_scratch() == 1
    assert not list(temporary.iterdir())


@pytest.mark.parametrize(
    "name",
    [
        "brainstage-mine",
        "brainstage-0123456789abcdef-999999999-1-other_machine",
        f"brainstage-{this_machine()}-999999999-1",
        f"x-brainstage-{this_machine()}-999999999-1-abc",
    ],
)
def test_what_is_not_certainly_ours_and_dead_is_left(temporary: Path, name: str) -> None:
    (temporary / name).mkdir()
    assert remove_abandoned_scratch() == 0
    assert (temporary / name).is_dir()


def test_a_link_of_such_a_name_is_not_followed(temporary: Path) -> None:
    (temporary / "thesis").mkdir()
    (temporary / f"brainstage-{this_machine()}-999999999-1-abc").symlink_to(temporary / "thesis")
    assert remove_abandoned_scratch() == 0
    assert (temporary / "thesis").is_dir()
