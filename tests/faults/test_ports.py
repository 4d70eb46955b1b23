"""No port of a run answers whoever has no keys, on any engine, whatever the paths of the jobs look like."""

from __future__ import annotations

import os
import re
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from http.server import HTTPServer, SimpleHTTPRequestHandler
from pathlib import Path

import psutil
import pytest
from kills import STAGES, wait_until

from brainstage.pipeline.engine import THREAD_VARIABLES, EngineOptions, Listener, SlurmJob, workers

pytestmark = pytest.mark.slow

HTTP_PATHS = (
    *("/", "/sitemap.json", "/identity", "/health", "/metrics", "/status", "/info/main/workers.html"),
    *("/info/main/logs.html", "/json/identity.json", "/json/counts.json"),
)
HERE = {address.address for card in psutil.net_if_addrs().values() for address in card}
PAGE = Path(__file__).resolve().parents[2] / "docs" / "how-to" / "clusters.md"
BENCHMARKS = PAGE.parents[2] / "benchmarks"

WORK = """
import os, tempfile


def surroundings(task, announce):
    import dask
    import distributed

    return {
        "scratch": os.environ.get("TMPDIR"),
        "local": distributed.get_worker().local_directory,
        "pause": dask.config.get("distributed.worker.memory.pause"),
        "ttl": dask.config.get("distributed.scheduler.worker-ttl"),
        "threads": os.environ.get("OMP_NUM_THREADS"),
    }
"""
SBATCH = """#!/usr/bin/env bash
# Starts a job at once, on this machine, as SLURM does on another: from a copy of the script.
job=$$
cp "$1" "{jobs}/$job.sh"
SLURM_JOB_ID=$job setsid bash "{jobs}/$job.sh" </dev/null >"{jobs}/$job.lost" 2>&1 &
echo $! >"{jobs}/$job.pid"
echo "Submitted batch job $job"
"""
SCANCEL = """#!/usr/bin/env bash
kill -- "-$(cat "{jobs}/$1.pid")"
"""


def doors(processes: Iterable[psutil.Process]) -> set[tuple[str, int]]:
    """Return address and number of the ports that processes listen at."""
    found = set()
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            found |= {
                (door.laddr.ip if door.laddr.ip in HERE else "127.0.0.1", door.laddr.port)
                for door in process.net_connections("inet")
                if door.status == "LISTEN"
            }
    return found


def with_children(pid: int) -> list[psutil.Process]:
    process = psutil.Process(pid)
    return [process, *process.children(recursive=True)]


def answers(door: tuple[str, int]) -> list[str]:
    """Return what a port says to somebody without keys, in HTTP and in TLS."""
    said = []
    for path in HTTP_PATHS:
        with suppress(OSError), socket.create_connection(door, timeout=5) as plain:
            plain.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
            if content := plain.recv(200):
                said.append(f"{path}: {content!r}")
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    with (
        suppress(OSError),
        socket.create_connection(door, timeout=5) as plain,
        context.wrap_socket(plain) as veiled,
    ):
        if content := veiled.recv(200):
            said.append(f"TLS without a certificate: {content!r}")
    return said


@contextmanager
def web_server() -> Iterator[tuple[str, int]]:
    with HTTPServer(("127.0.0.1", 0), SimpleHTTPRequestHandler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield "127.0.0.1", server.server_port
        server.shutdown()


@pytest.fixture
def work(tmp_path, monkeypatch) -> Callable[..., dict[str, str]]:
    """Return a function that worker processes can import."""
    (tmp_path / "port_work.py").write_text(WORK)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    return pytest.importorskip("port_work").surroundings


def never(task):
    raise AssertionError(f"{task} was taken for dead")


def test_a_port_that_talks_would_be_noticed():
    with web_server() as door:
        assert any("HTTP" in line for line in answers(door))


def test_no_port_of_a_local_run_answers_a_stranger(work):
    before = doors(with_children(os.getpid()))
    with workers(EngineOptions(workers=2), 2) as pool:
        assert len(list(pool.run(work, [1, 2], Listener(died=never)))) == 2
        found = doors(with_children(os.getpid())) - before
        # The scheduler, two workers, and the nanny of each: none has a second port.
        assert len(found) == 5
        assert {ip for ip, _ in found} == {"127.0.0.1"}
        assert {door: said for door in found if (said := answers(door))} == {}


@pytest.fixture
def cluster_here(tmp_path, monkeypatch) -> Path:
    """Put an ``sbatch`` on the path that starts jobs here; return where they lie."""
    folder, jobs = tmp_path / "bin", tmp_path / "jobs of all"
    folder.mkdir()
    jobs.mkdir()
    for name, script in (("sbatch", SBATCH), ("scancel", SCANCEL)):
        (folder / name).write_text(script.replace("{jobs}", str(jobs)))
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    return jobs


def jobs_here(jobs: Path) -> list[psutil.Process]:
    """Return the processes of all jobs."""
    roots = [
        process
        for process in psutil.process_iter(["cmdline"])
        if any(word.startswith(f"{jobs}/") for word in process.info["cmdline"] or ())
    ]
    return [process for root in roots for process in with_children(root.pid)]


@pytest.mark.parametrize("work_dir", ["scratch 'of' mine", None], ids=["work-dir", "the node's"])
def test_jobs_start_from_paths_with_spaces_and_their_ports_answer_no_stranger(
    work, cluster_here, tmp_path, monkeypatch, work_dir
):
    python = tmp_path / "my own python" / "python"
    python.parent.mkdir()
    python.write_text(f'#!/usr/bin/env bash\nexec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    monkeypatch.setenv("TMPDIR", "/only on the login node")
    for name in THREAD_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    folder = tmp_path / "out of 'all'" / "keys"
    folder.mkdir(parents=True)
    scratch = tmp_path / work_dir if work_dir else None
    if scratch:
        scratch.mkdir()
    job = SlurmJob(folder=folder, work_dir=scratch, walltime="00:10:00")
    before = doors(with_children(os.getpid()))
    with workers(EngineOptions(kind="slurm", worker_memory_gb=1.0, slurm=job), 1) as pool:
        (found,) = pool.run(work, [1], Listener(died=never))
        driver = doors(with_children(os.getpid())) - before
        nodes = doors(jobs_here(cluster_here))
        assert (len(driver), len(nodes)) == (1, 2)  # the scheduler; the worker and its nanny
        assert {door: said for door in driver | nodes if (said := answers(door))} == {}
        assert [path.suffix for path in folder.glob("worker-*")] == [".log"]
    wait_until(lambda: not jobs_here(cluster_here))
    assert found["scratch"] == (str(scratch) if scratch else None)
    assert scratch is None or found["local"].startswith(str(scratch))
    # What the driver set for its workers reaches those in jobs too.
    assert (found["pause"], found["ttl"], found["threads"]) == (False, "300s", "1")


def blocks(language: str) -> str:
    """Return what the page on clusters has in a language, below its heading on Dask."""
    text = PAGE.read_text(encoding="utf-8").partition("\n## Dask\n")[2].partition("\n## ")[0]
    return "\n".join(re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL))


def test_the_documented_scheduler_has_keys_and_answers_no_stranger(cohort, tmp_path, monkeypatch):
    keys = tmp_path / "keys"
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    script = (
        blocks("sh").replace("KEYS", str(keys)).replace("tls://scheduler:8786", f"tls://127.0.0.1:{port}")
    )
    script = script.replace("dask scheduler", f"dask scheduler --port {port}")
    script = script.replace("--nworkers 8", "--nworkers 2").replace("dask ", f"{sys.executable} -m dask ")
    before_run, run_line, _ = script.partition("brainstage run")
    assert f"tls://127.0.0.1:{port}" in before_run
    assert run_line
    keys.mkdir()
    (keys / "dask.yaml").write_text(blocks("yaml").replace("KEYS", str(keys)))
    monkeypatch.setenv("DASK_CONFIG", str(keys / "dask.yaml"))
    asked = {"engine": "dask", "dask_scheduler": f"tls://127.0.0.1:{port}"}
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(BENCHMARKS), os.environ.get("PYTHONPATH", "")]),
        "BRAINSTAGE_STAND_IN": "{}",
    }
    script = before_run.replace("openssl req", "openssl req 2>/dev/null")
    owner = subprocess.Popen(["bash", "-c", f"{script}\nwait"], env=environment, stderr=subprocess.DEVNULL)
    try:
        wait_until(lambda: len(doors(with_children(owner.pid)[1:])) == 5, seconds=60)
        time.sleep(1.0)  # for the HTTP ports, which are closed as soon as they are opened
        found = doors(with_children(owner.pid))
        assert len(found) == 5
        assert {door: said for door in found if (said := answers(door))} == {}
        code, said = cohort.run(**asked)
        assert code == 0, said
        assert len(cohort.computed()) == len(cohort.keys) * len(STAGES)
        monkeypatch.delenv("DASK_CONFIG")
        code, said = cohort.run(out=tmp_path / "without keys", **asked)
        assert code == 75
        assert "Dask has no keys for tls://" in said
    finally:
        for process in reversed(with_children(owner.pid)):
            process.kill()
        owner.wait()
