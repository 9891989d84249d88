"""Clusters of several machines: cells go to all of them, and a machine, or all, may go at any moment.

Each further machine is a real raylet in a network namespace, with an address and a name of its own; where namespaces
are not allowed it is one more raylet beside the first. What a user may have running is neither found nor touched.
"""

import random
import re
import shutil
import subprocess
import time
import warnings
from contextlib import contextmanager, suppress

import psutil
import pytest
from apart import CELLS, RAY, RECORD, apart, failures, family, gated, head, named, told, until
from driving import ROOT, digest
from nursery import MACHINE

# A machine that says nothing for some seconds is given up, and so is a head; in real life, after a minute.
HASTY = {f"RAY_health_check_{name}": value for name, value in (("initial_delay_ms", "0"), ("period_ms", "500"))}
HASTY |= {"RAY_health_check_timeout_ms": "500", "RAY_health_check_failure_threshold": "10"}
HASTY |= {"RAY_gcs_rpc_server_reconnect_timeout_s": "3"}

# A minute in real life.
PATIENT = "from kvstream.sweep import watch; watch.ALONE_S = 3.0"


@contextmanager
def linked():
    """Give a network namespace linked with this one: what has commands start in it, its address, and this end's."""
    number = random.SystemRandom().randrange(1 << 14)
    subnet, first = divmod(4 * number, 256)
    name, near, far = f"kvstream{number}", f"10.213.{subnet}.{first + 1}", f"10.213.{subnet}.{first + 2}"
    ip = f"ip netns add {name} && ip link add kv{number}a type veth peer name kv{number}b netns {name}"
    ip += f" && ip addr add {near}/30 dev kv{number}a && ip link set kv{number}a up && ip -n {name} link set lo up"
    ip += f" && ip -n {name} addr add {far}/30 dev kv{number}b && ip -n {name} link set kv{number}b up"
    made = subprocess.run(["sh", "-c", ip], capture_output=True).returncode == 0
    try:
        if made:
            yield {MACHINE: name}, far, near
        else:
            warnings.warn("network namespaces are not allowed here: two raylets share one address", stacklevel=2)
            yield {}, "127.0.0.1", "127.0.0.1"
    finally:
        subprocess.run(["ip", "netns", "del", name], capture_output=True)


class Machines:
    """Two machines: `near`, the head, where sweeps are started, and `far`."""

    def __init__(self, start, link, near, far):
        self.start, (self.inside, self.far_ip, near_ip) = start, link
        self.near, self.address = head(start, *near.split(), ip=near_ip, **HASTY)
        self.far = None
        if far:
            self.join(far)

    def join(self, flags, **more):
        options = [f"--address={self.address}", f"--node-ip-address={self.far_ip}", "--disable-usage-stats"]
        options += ["--include-log-monitor=false"]
        self.far = self.start([RAY, "start", *options, *flags.split()], **self.inside, **HASTY, **more)
        assert self.far.ended() == 0, self.far.out() + self.far.err()

    def sweep(self, command):
        return self.start(command, RAY_ADDRESS=self.address, **HASTY)

    def node_of(self, machine):
        """Ray's id of a machine."""
        [raylet] = named(machine.session, "raylet")
        [node_id] = set(re.findall(r"--node[-_]id=(\w{20,})", " ".join(raylet.cmdline())))
        return node_id

    def lose(self, machine, *names):
        """Kill all processes of a machine, or those called so, at once."""
        for process in family(machine.session):
            with suppress(psutil.Error):
                if not names or process.name() in names:
                    process.kill()


@pytest.fixture
def machines():
    with apart() as start, linked() as link:
        yield lambda near, far="": Machines(start, link, near, far)


def nodes_at(folder, what="begin"):
    return {node for _, node, happened, *_ in told(folder) if happened == what}


@pytest.mark.long
def test_a_machine_that_comes_later_is_used_in_full_and_its_cells_move_when_it_is_lost(
    machines, world, tmp_path, whole
):
    cluster = machines("--num-cpus=1")
    sweep = cluster.sweep(gated(world, tmp_path, before="pass"))
    until(lambda: nodes_at(tmp_path), 60, "a cell")
    cluster.join("--num-cpus=3")
    until(lambda: len({pid for pid, *_ in told(tmp_path)}) == 4, 90, "four cells at once")
    per_node = sorted(len({pid for pid, node, *_ in told(tmp_path) if node == name}) for name in nodes_at(tmp_path))
    assert per_node == [1, 3]
    cluster.lose(cluster.far)
    (tmp_path / "gate").unlink()
    assert sweep.ended(120) == 0, sweep.err()
    assert digest(tmp_path / "records") == whole
    assert not failures(tmp_path)
    assert "Traceback" not in sweep.out() + sweep.err()


# A cell takes longer than the half second for which a driver may keep a worker: then it asks for one anew each time.
SLOW = "time.sleep(0.2)"


def freeze(machine):
    """Have a machine fall silent without closing a connection, as one does that loses its network or its power."""
    processes = family(machine.session)
    for process in processes:
        process.suspend()
    return processes


@pytest.mark.long
def test_a_machine_that_falls_silent_holds_nothing_up_and_what_it_ends_later_is_not_taken_twice(
    machines, world, tmp_path, whole
):
    """It is taken for dead, another begins what it had begun, and it wakes up: it stops or ends it, but in vain.

    Ray alone would wait for seven minutes.
    """
    cluster = machines("--num-cpus=1", "--num-cpus=1")
    sweep = cluster.sweep(gated(world, tmp_path, before="pass", then=SLOW))
    until(lambda: len(nodes_at(tmp_path)) == 2, 60, "cells on both machines")
    near, far = cluster.node_of(cluster.near), cluster.node_of(cluster.far)
    [held] = {budget for _, node, _, budget, _ in told(tmp_path) if node == far}
    frozen = freeze(cluster.far)
    (tmp_path / "gate").write_text(str(held))  # all others go on
    begun = near, "begin", held
    until(lambda: begun in [(node, *what) for _, node, *what, _ in told(tmp_path)], 90, "another to begin its cell")
    for process in frozen:
        process.resume()
    (tmp_path / "gate").unlink()
    assert sweep.ended(120) == 0, sweep.err()
    assert digest(tmp_path / "records") == whole
    assert not failures(tmp_path)
    assert "Traceback" not in sweep.out() + sweep.err()
    finished = [line for line in sweep.out().splitlines() if ": PPL" in line]
    assert len(finished) == CELLS, "each was written down once"


TIMED = ", contexts=(20, 24, 28, 32), latency_policies=(Gated(4, 0.5, 'keep_low'),), repeats=Repeats(1, 2, 2)"


def spans(folder):
    """When each process computed on which machine: node, whether it was a latency cell, first and last second."""
    found = {}
    for pid, node, _, budget, seconds in told(folder):
        first, _ = found.get((pid, node, budget == 4), (seconds, 0))
        found[pid, node, budget == 4] = first, seconds
    return [(node, latency, *times) for (_, node, latency), times in found.items()]


@pytest.mark.long
def test_latency_cells_are_alone_on_their_machines_also_when_one_is_lost(machines, world, tmp_path, whole):
    cluster = machines("--num-cpus=2", "--num-cpus=2")
    command = gated(world, tmp_path, before="pass", more=TIMED)
    (tmp_path / "gate").write_text("4")  # latency cells wait
    sweep = cluster.sweep(command)
    timing = until(lambda: [line for line in told(tmp_path) if line[3] == 4], 120, "a latency cell")
    until(lambda: len({node for _, node, _, budget, _ in told(tmp_path) if budget == 4}) == 2, 30, "two of them")
    time.sleep(2)  # for a third to begin, were it to
    timing = [line for line in told(tmp_path) if line[3] == 4]
    assert len({pid for pid, *_ in timing}) == len({node for _, node, *_ in timing}) == 2
    assert len(list((tmp_path / "records").glob(RECORD))) == CELLS, "all quality cells come first"
    cluster.lose(cluster.far)
    (tmp_path / "gate").unlink()
    assert sweep.ended(180) == 0, sweep.err()
    assert not failures(tmp_path)
    assert "Traceback" not in sweep.out() + sweep.err()
    rows = digest(tmp_path / "records")
    assert len(rows) == CELLS + 4
    assert {key: value for key, value in rows.items() if key in whole} == whole
    held = spans(tmp_path)
    for node, latency, first, last in held:
        others = [other for other in held if other[0] == node and other != (node, latency, first, last)]
        if latency:
            assert all(other[3] <= first or other[2] >= last for other in others), "two at once on one machine"


@pytest.mark.long
def test_a_gpu_that_is_only_claimed_and_a_head_without_cpus(machines, world, tmp_path, whole):
    """On CPUs a machine with GPUs is one like others; the head is none where it has no CPU."""
    cluster = machines("--num-cpus=0", "--num-cpus=1 --num-gpus=1")
    command = gated(world, tmp_path, before="pass")
    (tmp_path / "gate").unlink()
    sweep = cluster.sweep([*command, "--device", "cuda"])
    assert sweep.ended(90) == 2, sweep.err()
    assert "device: 'cuda' asked, and Ray counts GPUs, but torch finds none there" in sweep.err()
    assert not (tmp_path / "told").exists()
    sweep = cluster.sweep([*command, "--threads", "2"])
    assert sweep.ended(60) == 2
    assert "threads: 2 asked, the largest node has 1 CPU;" in sweep.err()
    sweep = cluster.sweep(command)
    assert sweep.ended(120) == 0, sweep.err()
    assert "Ray: 1 node with 1 CPU and 1 GPU\n" in sweep.out()
    assert digest(tmp_path / "records") == whole
    assert len(nodes_at(tmp_path)) == 1


@pytest.mark.long
def test_when_the_last_machine_is_lost_the_sweep_ends_and_goes_on_with_new_ones(machines, world, tmp_path, whole):
    """Another lives on, which has too few CPUs."""
    cluster = machines("--num-cpus=1", "--num-cpus=2")
    command = [*gated(world, tmp_path, before=PATIENT), "--threads", "2"]
    sweep = cluster.sweep(command)
    until(lambda: told(tmp_path), 60, "a cell")
    cluster.lose(cluster.far)
    assert sweep.ended(60) == 1
    assert "stopping: no machine with 2 CPUs for a cell is left; repeat the sweep" in sweep.err()
    assert f"of {CELLS} cells are not finished" in sweep.err()
    assert "Traceback" not in sweep.out() + sweep.err()
    (tmp_path / "gate").unlink()
    cluster.join("--num-cpus=2")
    again = cluster.sweep(command)
    assert again.ended(120) == 0, again.err()
    assert digest(tmp_path / "records") == whole


@pytest.mark.long
@pytest.mark.parametrize("what", ["gcs_server", "raylet"])
def test_when_the_head_is_lost_ray_ends_the_sweep(machines, world, tmp_path, whole, what):
    """Its heart, or what runs tasks where the sweep was started."""
    cluster = machines("--num-cpus=2")
    command = gated(world, tmp_path, before="pass")
    sweep = cluster.sweep(command)
    until(lambda: len({pid for pid, *_ in told(tmp_path)}) == 2, 60, "two cells")
    (tmp_path / "gate").write_text("8 9 10 11")
    cluster.lose(cluster.near, what)
    assert sweep.ended(90) == 1, sweep.err()
    said = "Failed to connect to GCS" if what == "gcs_server" else "Raylet is terminated"
    assert said in sweep.out() + sweep.err()
    assert "Traceback" not in sweep.out() + sweep.err()
    (tmp_path / "gate").unlink()
    cluster.lose(cluster.near)
    again = cluster.start(command)
    assert again.ended(120) == 0, again.err()
    assert digest(tmp_path / "records") == whole
    assert not failures(tmp_path)


@pytest.mark.long
@pytest.mark.parametrize("what", ["older", "none"])
def test_a_machine_with_another_kvstream_computes_nothing(machines, world, tmp_path, whole, what):
    """It was forgotten when the others were brought up to date. The sweep ends where there is none beside the one."""
    compiled = shutil.ignore_patterns("__pycache__")  # others may be writing to it
    shutil.copytree(ROOT / "kvstream", tmp_path / "older" / "kvstream", ignore=compiled)
    file, lines = ("__init__.py", "raise ImportError") if what == "none" else ("engine/attention.py", "# older")
    with (tmp_path / "older" / "kvstream" / file).open("a") as code:
        code.write(f"{lines}\n")
    cluster = machines("--num-cpus=0" if what == "none" else "--num-cpus=1")
    cluster.join("--num-cpus=1", PYTHONPATH=str(tmp_path / "older"))
    # Started elsewhere than in the checkout, which Ray would have workers import from before anything else.
    command = ["env", "-C", str(tmp_path), *gated(world, tmp_path, before=PATIENT)]
    sweep = cluster.sweep(command)
    until(lambda: "left out: " in sweep.err(), 120, "a cell on the other machine")
    time.sleep(3)  # for it to be asked again, were it to
    (tmp_path / "gate").unlink()
    assert sweep.ended(120) == int(what == "none"), sweep.err()
    assert re.findall("left out: code: kvstream on .* is not the one of the sweep's driver", sweep.err())
    assert sweep.err().count("left out") == 1
    assert ("(there: ImportError" in sweep.err()) == (what == "none"), "why it has none"
    assert "Traceback" not in sweep.out() + sweep.err()
    assert not failures(tmp_path)
    if what == "none":
        assert (
            "stopping: no machine with 1 CPU for a cell and the same kvstream as the driver is left; install"
            in sweep.err()
        )
        assert not digest(tmp_path / "records")
    else:
        assert nodes_at(tmp_path) == {cluster.node_of(cluster.near)}
        assert digest(tmp_path / "records") == whole
