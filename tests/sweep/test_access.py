"""Who gets in, and what gets out: ports, tokens, secrets, and addresses at which no Ray answers."""

import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import pytest
import ray
from apart import family
from driving import ROOT, labelled
from ray._private import ray_constants
from standins.head import Head

from kvstream.sweep import cluster

CANARY = "hf_canary0Zx7QmWv"


@pytest.fixture
def folder():
    """A folder whose path is short enough for Ray's sockets."""
    with tempfile.TemporaryDirectory(prefix="r", dir="/tmp", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


@pytest.fixture(scope="module")
def head():
    head = Head()
    yield head
    head.remove()


def shell(folder, **more):
    """The environment of a user who has no Ray running and never had one."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    return kept | {"RAY_TMPDIR": str(folder), "HOME": str(folder), "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0"} | more


def small(world, out):
    return labelled(world, out, "full,recent_only(8)", 50)


def listening(session):
    """Addresses at which a session's processes accept connections."""
    found = set()
    for one in family(session):
        try:
            sockets = one.net_connections(kind="inet")
        except psutil.Error:
            continue
        found |= {(one.name(), each.laddr.ip) for each in sockets if each.status == psutil.CONN_LISTEN}
    return found


# A sweep of somebody's own, who imports Ray for something else, and before kvstream can tell it what to listen on.
OWN = """
import ray, runpy, sys
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.long
def test_a_sweep_listens_on_loopback_alone_and_keeps_a_secret(start, world, folder):
    """With no Ray running. The secret may be in processes' environments, and in nothing that stays or is shown."""
    out = folder / "records"
    python, *command = small(world, out)
    (folder / "own.py").write_text(OWN)
    secret = {"HF_TOKEN": CANARY, "HUGGING_FACE_HUB_TOKEN": CANARY}
    sweep = start([python, str(folder / "own.py"), *command], **shell(folder, RAY_AUTH_MODE="token", **secret))
    seen = set()
    while sweep.process.poll() is None:
        seen |= listening(sweep.session)
        time.sleep(0.2)
    said = sweep.out() + sweep.err()
    assert sweep.ended() == 0, said
    loopback = {"127.0.0.1", "::1", "::ffff:127.0.0.1"}
    assert {"gcs_server", "raylet"} <= {name for name, _ in seen}, "the ports were looked at while Ray ran"
    assert {ip for _, ip in seen} <= loopback, seen

    report = [sys.executable, "analysis/report.py", "--records", str(out), "--out", str(folder / "report")]
    told = subprocess.run(report, cwd=ROOT, env=shell(folder, **secret), capture_output=True, text=True, timeout=120)
    assert told.returncode == 0, told.stderr
    assert CANARY not in said + told.stdout + told.stderr
    files = [path for path in folder.rglob("*") if path.is_file() and not path.is_symlink()]
    names = {path.name for path in files}
    assert {"gcs_server.out", "raylet.out", "sweep.json", "index.html"} <= names, "Ray's session is among them"
    assert not [path for path in files if CANARY.encode() in path.read_bytes()]
    rows = [str(pq.read_table(path).to_pylist()) for path in files if path.suffix == ".parquet"]
    assert rows
    assert not [row for row in rows if CANARY in row], "what is compressed in files"


@pytest.mark.long
def test_a_job_without_the_token_is_refused(head):
    submit = ["ray", "job", "submit", "--address", head.url, "--", "echo", "let-in"]
    for changes in ({"RAY_AUTH_MODE": None}, {"HOME": "/nonexistent"}, {"RAY_AUTH_TOKEN": "0" * 64}):
        refused = head.run(*submit, **changes)
        assert refused.returncode == 1, refused.stdout
        assert "AuthenticationError" in refused.stderr
        assert "let-in" not in refused.stdout
    accepted = head.run(*submit)
    assert accepted.returncode == 0, accepted.stderr
    assert "let-in" in accepted.stdout


@pytest.mark.long
def test_a_sweep_without_the_token_is_told_so(world, head, tmp_path):
    address = (head.folder / "t" / "ray" / "ray_current_cluster").read_text()
    refused = head.run(*small(world, tmp_path / "records"), RAY_ADDRESS=address, RAY_AUTH_MODE=None)
    assert refused.returncode == 2
    last = refused.stderr.splitlines()[-1]
    assert last.startswith(f"error: ray: the cluster at {address} lets nobody in")
    assert "RAY_AUTH_MODE=token" in last


@pytest.fixture
def closed():
    with socket.create_server(("127.0.0.1", 0)) as server:
        return f"127.0.0.1:{server.getsockname()[1]}"


@pytest.mark.parametrize(
    ("where", "words"),
    [
        ("closed", "connection refused"),
        ("ray://127.0.0.1:10001", "Ray Client, which sweeps do not use"),
        ("http://127.0.0.1:8265", "is an address for `ray job submit` alone"),
        ("nonsense", "is not host:port, such as 10.0.0.1:6379"),
        ("127.0.0.1:99999", "is not host:port"),
        ("a..b:6379", "no Ray answers at 'a..b:6379'"),
        ("auto", "no Ray was started on this machine"),
    ],
)
def test_an_address_without_a_ray_is_one_clear_error_at_once(folder, request, where, words):
    address = request.getfixturevalue(where) if where == "closed" else where
    code = "from kvstream.grid.terminal import refuse\nfrom kvstream.sweep.cluster import answering\n"
    code += "try:\n    answering()\nexcept ValueError as error:\n    refuse(error)"
    began = time.monotonic()
    environment = shell(folder, RAY_ADDRESS=address)
    told = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60
    )
    assert time.monotonic() - began < 10
    assert told.returncode == 2
    [line] = told.stderr.splitlines()
    assert line.startswith("error: RAY_ADDRESS: ")
    assert address in line
    assert words in line
    assert "unset" in line, "the remedy"


def test_a_sweep_says_so_too(world, folder, closed):
    """Ray alone would wait for more than a minute."""
    environment = shell(folder, RAY_ADDRESS=closed)
    command = small(world, folder / "records")
    told = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60)
    assert told.returncode == 2
    [line] = told.stderr.splitlines()
    assert f"RAY_ADDRESS: no Ray answers at {closed!r}" in line


def test_a_ray_that_does_not_start_is_one_clear_line(monkeypatch):
    """A busy machine may take longer than the half minute for which Ray waits; what it raises then is plain."""

    def too_slow(**_):
        raise Exception("The current node timed out during startup.\nSee the logs.")

    monkeypatch.setenv(ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR, "0")
    monkeypatch.setattr(ray_constants, "ENABLE_RAY_CLUSTER", False)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", too_slow)
    with pytest.raises(
        ValueError,
        match=r"^ray: none could be started .* \(The current node timed out during startup\.\); if it is busy",
    ):
        cluster.connect(None)
