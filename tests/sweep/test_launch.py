"""Four ways to start a sweep, each down to finished records: ray up, ray start, ray job submit, and no Ray at all."""

import json
import re
import shutil
import subprocess
import time

import pytest
import yaml
from driving import ROOT, digest
from standins.head import Head
from standins.inside import inside
from standins.machine import Machine

pytestmark = pytest.mark.long

AXES = "--device cpu --budgets 8,16 --start-sizes 4 --lengths 50,100 --documents 1 --contexts none"
POLICIES = "--policies streaming_llm,recent_only"


def flags(world):
    """Two policies at two budgets on one text, in comma lists, since `ray submit` joins arguments unquoted."""
    return f"--models {world / 'model'} --text {world / 'texts'} {AXES} {POLICIES}".split()


def finished(out):
    """Keys of a sweep's finished cells; all that were planned, four here, must be among them."""
    planned = json.loads((out / "sweep.json").read_text())["cells"]
    assert len(planned) == 4
    assert set(digest(out)) == set(planned)
    return planned


@pytest.fixture
def machine():
    machine = Machine()
    yield machine
    machine.remove()


@pytest.fixture(scope="module")
def head():
    head = Head()
    yield head
    head.remove()


def test_ray_up_and_ray_submit(world, machine):
    shipped = yaml.safe_load((ROOT / "cluster.yaml").read_text())
    path = machine.variant(shipped)
    config = yaml.safe_load(path.read_text())
    where = {"cluster_name", "max_workers", "provider", "auth", "available_node_types", "head_node_type"}
    starts = "head_start_ray_commands"  # differs by its ports alone
    assert {key for key in shipped if shipped[key] != config.get(key)} <= where | {starts}
    assert [start.replace("--port=6379", "") for start in shipped[starts]] == [
        " ".join(word if "port=" not in word else "" for word in start.split(" ")).replace("   ", " ")
        for start in config[starts]
    ]
    worker = Machine()
    bystander = subprocess.Popen(["raylet", "300"], executable="/bin/sleep")  # what another `ray stop` would end
    try:
        machine.run("ray", "get-auth-token", "--generate")
        machine.run("ray", "up", "-y", str(path))
        where = machine.run("ray", "exec", str(path), "cd ~ && python -c 'import kvstream; print(kvstream.__file__)'")
        assert f"{machine.folder}/python/lib" in where
        assert str(ROOT / "kvstream") not in where
        assert (machine.home / "kvstream-src" / "kvstream" / "sweep" / "cluster.py").is_file()
        assert not (machine.home / "kvstream-src" / ".venv").exists()

        [port] = re.findall(r" --port=(\d+) ", " ".join(config[starts]))
        shutil.copytree(machine.user / ".ray", worker.user / ".ray")
        worker.joins(shipped, port)  # with no cloud to start one in, by the commands that the launcher would run
        assert (worker.home / "kvstream-src" / "kvstream" / "sweep" / "cluster.py").is_file()

        said = machine.run("ray", "submit", str(path), "sweeps/full.py", "--", *flags(world))
        assert "Ray: 2 nodes" in said
        assert "4 cells, 0 finished before, 4 to do" in said
        left = time.monotonic() + 30
        while busy := [line for line in commands(machine) if "full.py" in line or "ray::IDLE" in line]:
            assert time.monotonic() < left, busy
            time.sleep(1)

        machine.run("ray", "rsync-down", str(path), "~/records/", f"{machine.user}/records/")
        keys = finished(machine.user / "records" / "full")
        commits = [json.loads((machine.user / f"records/full/{key}.json").read_text()) for key in keys]
        assert {commit["environment"]["commit"] for commit in commits} == {None}, "computed by what was installed"
        machine.run("ray", "down", "-y", str(path))
        assert not commands(machine)
        assert bystander.poll() is None
    finally:
        bystander.kill()
        worker.remove()


def commands(machine):
    return [" ".join(process.cmdline()) for process in inside(machine.folder) if process.is_running()]


def sessions(head):
    """Folders of all Rays that were started under its address book."""
    return list((head.folder / "t" / "ray").glob("session_2*"))


def test_ray_start_then_a_sweep(world, head):
    out = head.folder / "started"
    swept = head.run("python", "sweeps/full.py", *flags(world), "--out", str(out))
    assert swept.returncode == 0, swept.stderr
    finished(out)
    assert len(sessions(head)) == 1, "it joined the Ray that ran, and started none"


def test_ray_job_submit(world, head):
    out = head.folder / "submitted"
    submit = ["ray", "job", "submit", "--address", head.url, "--working-dir", ".", "--"]
    swept = head.run(*submit, "python", "sweeps/full.py", *flags(world), "--out", str(out))
    assert swept.returncode == 0, swept.stdout + swept.stderr
    finished(out)
    assert len(sessions(head)) == 1
    [uploaded] = (head.folder / "t").glob("ray/session_2*/runtime_resources/working_dir_files/_ray_pkg_*/")
    assert (uploaded / "sweeps" / "full.py").is_file()
    assert not {".git", ".venv", ".cache", "records", "report"} & {path.name for path in uploaded.iterdir()}
    assert sum(path.stat().st_size for path in uploaded.rglob("*")) < 20e6


def test_a_job_whose_records_ray_would_remove_is_refused(world, head):
    submit = ["ray", "job", "submit", "--address", head.url, "--working-dir", ".", "--"]
    lost = head.run(*submit, "python", "sweeps/full.py", *flags(world))
    assert lost.returncode == 1
    assert "out: 'records/full' lies in this job's temporary folder" in lost.stdout
    assert "loading" not in lost.stdout


def test_no_ray_running(world, head, tmp_path):
    """Its Ray starts with the sweep and ends with it, though a cluster has left its address behind."""
    folder = head.folder / "t" / "alone"  # where `inside` finds what is left
    (folder / "ray").mkdir(parents=True)
    (folder / "ray" / "ray_current_cluster").write_text("127.0.0.1:9")
    before = {process.pid for process in inside(head.folder)}
    out = tmp_path / "records"
    swept = head.run("python", "sweeps/full.py", *flags(world), "--out", str(out), RAY_TMPDIR=str(folder))
    assert swept.returncode == 0, swept.stderr
    assert "an earlier cluster left the address 127.0.0.1:9 behind, and connection refused" in swept.stdout
    finished(out)
    deadline = time.monotonic() + 20
    while left := {process.pid for process in inside(head.folder)} - before:
        assert time.monotonic() < deadline, left
        time.sleep(1)
