"""One process at a time; a holder that is gone is followed, one that was only thought gone publishes nothing."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import threading
import time

import pytest

from brainstage.pipeline import lease as module
from brainstage.pipeline.errors import LeaseHeldError, LeaseLostError
from brainstage.pipeline.lease import acquire, held, is_held, waited_for

HOLD = """
import sys, time
from pathlib import Path
from brainstage.pipeline.lease import acquire
assert acquire(Path(sys.argv[1])) is not None
print("held", flush=True)
time.sleep(60)
"""


@pytest.fixture
def path(tmp_path):
    return tmp_path / "state" / "lease.json"


@pytest.fixture
def other_process(path):
    """Another process that holds the lease."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def of_another_machine(path, *, silent_s: float = 0.0) -> None:
    """Make a lease look as if a process elsewhere held it, and had been silent for so long."""
    content = json.loads(path.read_text()) if path.exists() else {}
    path.parent.mkdir(exist_ok=True)
    path.write_text(
        json.dumps({"token": "other", "machine": "elsewhere", "pid": 1, "process_started": 1.0})
        if not content
        else json.dumps(content | {"machine": "elsewhere"})
    )
    moment = time.time() - silent_s
    os.utime(path, (moment, moment))


def asked_at_once(path):
    """Let sixteen threads ask for a lease in the same moment; return what each got."""
    won = []
    gate = threading.Barrier(16)

    def ask():
        gate.wait()
        won.append(acquire(path))

    threads = [threading.Thread(target=ask) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return won


def test_a_lease_is_had_once(path):
    first = acquire(path)
    assert first is not None
    assert first.still_held()
    assert is_held(path)
    assert acquire(path) is None
    first.release()
    assert not path.exists()
    assert not is_held(path)
    assert acquire(path) is not None


def test_a_block_holds_it_and_gives_it_back_whatever_happens(path):
    def fail():
        with held(path) as lease:
            assert lease is not None
            with held(path) as second:
                assert second is None
            raise ValueError("over")

    with pytest.raises(ValueError, match="over"):
        fail()
    assert not path.exists()


def test_of_many_that_ask_at_once_one_gets_it(path):
    won = asked_at_once(path)
    assert sum(lease is not None for lease in won) == 1


def test_many_that_follow_one_that_is_gone_agree_on_one(path):
    of_another_machine(path, silent_s=module.ABANDONED_S + 60)
    won = asked_at_once(path)
    # A winner that was pushed aside by a race must know it: only one may publish.
    assert sum(lease is not None and lease.still_held() for lease in won) == 1


def test_a_living_process_keeps_it_and_a_killed_one_loses_it(path, other_process):
    assert acquire(path) is None
    other_process.kill()
    other_process.wait()
    assert not is_held(path)
    assert acquire(path) is not None


def test_a_process_that_was_killed_but_not_yet_collected_is_gone(path, other_process):
    other_process.kill()
    deadline = time.monotonic() + 10
    while is_held(path) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert acquire(path) is not None


@pytest.mark.parametrize(("silent_s", "free"), [(0.0, False), (200.0, False), (400.0, True)])
def test_a_process_elsewhere_keeps_it_as_long_as_it_gives_signs_of_life(path, silent_s, free):
    of_another_machine(path, silent_s=silent_s)
    assert is_held(path) is not free
    assert (acquire(path) is not None) is free


def test_a_lease_that_is_just_being_written_is_held(path):
    path.parent.mkdir()
    path.touch()
    assert is_held(path)
    assert acquire(path) is None


def test_who_was_thought_gone_learns_it_and_leaves_the_new_lease_alone(path):
    first = acquire(path)
    assert first is not None
    of_another_machine(path, silent_s=module.ABANDONED_S + 60)
    second = acquire(path)
    assert second is not None
    with pytest.raises(LeaseLostError, match="another run took this over") as caught:
        first.require()
    assert caught.value.exit_code == 75
    first.release()
    assert second.still_held()


def gives_a_sign_of_life(path) -> bool:
    os.utime(path, (1, 1))
    deadline = time.monotonic() + 10
    while path.stat().st_mtime < 100 and time.monotonic() < deadline:
        time.sleep(0.05)
    return path.stat().st_mtime > 100


def test_the_holder_gives_signs_of_life(path, monkeypatch):
    monkeypatch.setattr(module, "HEARTBEAT_S", 0.05)
    lease = acquire(path)
    assert lease is not None
    assert gives_a_sign_of_life(path)
    lease.release()


def test_a_read_that_fails_once_ends_no_signs_of_life(path, monkeypatch):
    monkeypatch.setattr(module, "HEARTBEAT_S", 0.05)
    read, failed = module._read, threading.Event()

    def failing_once(where):
        if not failed.is_set():
            failed.set()
            return None  # as after an input/output error of a network file system
        return read(where)

    lease = acquire(path)
    assert lease is not None
    monkeypatch.setattr(module, "_read", failing_once)
    assert failed.wait(10)
    assert gives_a_sign_of_life(path)
    lease.release()


def test_one_waits_for_another(path, monkeypatch):
    monkeypatch.setattr(module, "WAIT_S", 0.01)
    first = acquire(path)
    assert first is not None
    threading.Timer(0.2, first.release).start()
    with waited_for(path) as second:
        assert second.still_held()
        assert not first.still_held()


def test_who_waits_says_for_whom_and_not_for_ever(path, other_process, monkeypatch):
    monkeypatch.setattr(module, "WAIT_S", 0.01)
    monkeypatch.setattr(module, "SAY_FIRST_S", 0.1)
    monkeypatch.setattr(module, "SAY_EVERY_S", 0.2)
    monkeypatch.setattr(module, "WAIT_AT_MOST_S", 0.4)
    said = []
    holder = f"process {other_process.pid} of this machine, begun 2"
    refused = pytest.raises(LeaseHeldError, match=f"held by {holder}.*most likely it hangs")
    with refused as caught, waited_for(path, said.append):
        pass
    assert caught.value.exit_code == 75
    assert len(said) == 2
    assert f"waiting for {holder}" in said[0]
    assert is_held(path)


def test_the_time_of_waiting_runs_anew_with_each_holder(path, monkeypatch):
    monkeypatch.setattr(module, "WAIT_S", 0.01)
    monkeypatch.setattr(module, "WAIT_AT_MOST_S", 0.5)
    first = acquire(path)
    assert first is not None

    def hand_on():
        for _ in range(2):
            time.sleep(0.35)
            holder = json.loads(path.read_text())
            path.write_text(json.dumps(holder | {"token": f"another{time.monotonic()}"}))
        time.sleep(0.35)
        path.unlink()

    threading.Thread(target=hand_on, daemon=True).start()
    with waited_for(path) as lease:
        assert lease.still_held()


def test_a_lease_says_nothing_about_the_machine_in_words(path):
    import platform

    acquire(path)
    assert platform.node() not in path.read_text()


def failing(monkeypatch, times: int, number: int = errno.ESTALE) -> list[object]:
    """Let the next reads of a lease fail as on a network file system; return what has failed."""
    read, failed = module.read_json, []

    def stale(where):
        if len(failed) < times:
            failed.append(where)
            raise OSError(number, os.strerror(number))
        return read(where)

    monkeypatch.setattr(module, "REREAD_S", 0.0)
    monkeypatch.setattr(module, "read_json", stale)
    return failed


@pytest.mark.parametrize("number", [errno.ESTALE, errno.EIO])
def test_a_lease_that_cannot_be_read_for_once_is_still_held_and_is_given_back(path, monkeypatch, number):
    lease = acquire(path)
    assert lease is not None
    failed = failing(monkeypatch, 2, number)
    lease.require()
    assert len(failed) == 2
    failed.clear()
    lease.release()
    assert len(failed) == 2
    assert not path.exists()


def test_a_lease_that_its_own_process_could_not_give_back_is_free_after_a_while(path, monkeypatch):
    lease = acquire(path)
    assert lease is not None
    failing(monkeypatch, module.READS)
    lease.release()
    assert path.exists()
    assert acquire(path) is None
    silent = time.time() - module.ABANDONED_S - 60
    os.utime(path, (silent, silent))
    second = acquire(path)
    assert second is not None
    second.release()


@pytest.mark.parametrize(
    "content",
    [b"", b"[]", b"[" * 100_000, b'{"token": 1, "machine": "m", "pid": 1, "process_started": 1.0}'],
    ids=["empty", "list", "deep", "numbers"],
)
def test_a_damaged_lease_is_held_until_it_has_been_silent(path, content):
    path.parent.mkdir()
    path.write_bytes(content)
    assert acquire(path) is None
    os.utime(path, (1, 1))
    assert acquire(path) is not None


@pytest.mark.parametrize("pid", [-1, 0, 10**30])
def test_a_number_that_no_process_can_have_is_gone(path, pid):
    lease = acquire(path)
    assert lease is not None
    path.write_text(json.dumps(json.loads(path.read_text()) | {"pid": pid}))
    assert not is_held(path)
