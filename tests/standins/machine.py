"""A machine that is not there: a cluster's head with ssh, rsync, docker and homes of its own, all within one folder.

Ray's launcher talks to it as it does to a real one. Its Python sees the packages of this virtual environment but not
this checkout: kvstream is there only once it was shipped and installed.
"""

import os
import shutil
import socket
import subprocess
import sys
import sysconfig
import tempfile
import venv
from pathlib import Path

import yaml
from standins.inside import inside, stop

ROOT = Path(__file__).parent.parent.parent
BIN = Path(sys.executable).parent


def free_port():
    with socket.socket() as probe:
        probe.bind(("", 0))
        return probe.getsockname()[1]


class Machine:
    """`host`, `home` (the container's) and `user` are homes; `t` and `u` Ray's folders on either side."""

    def __init__(self):
        self.folder = Path(tempfile.mkdtemp(prefix="r", dir="/tmp"))  # short: paths of sockets end at 107 characters
        for name in ("bin", "host", "home", "user", "t", "u", "tmp"):
            (self.folder / name).mkdir()
        self.host, self.home, self.user = (self.folder / name for name in ("host", "home", "user"))
        self.name = self.folder.name
        venv.create(self.folder / "python", symlinks=True)
        python = self.folder / "python" / "bin"
        [packages] = (self.folder / "python" / "lib").glob("python*/site-packages")
        (packages / "shared.pth").write_text(sysconfig.get_path("purelib"))  # the packages, but no editable kvstream
        for name in ("ssh", "rsync", "docker"):
            (self.folder / "bin" / name).symlink_to(Path(__file__).parent / name)
        (python / "ray").symlink_to(Path(__file__).parent / "ray")
        for home in (self.host, self.home):
            (home / ".bashrc").touch()
            (home / ".bash_profile").write_text(f"export PATH={self.folder}/bin:{python}:/usr/bin:/bin\n")
        self.environment = {
            "STANDIN": str(self.folder),
            "HOME": str(self.user),
            "PATH": f"{self.folder}/bin:{BIN}:/usr/bin:/bin",
            "RAY_TMPDIR": str(self.folder / "u"),
            "TMPDIR": str(self.folder / "tmp"),
            "RAY_AUTH_MODE": "token",
            "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
        }

    def variant(self, config):
        """The shipped configuration for this machine: what a user on-prem changes, and free ports."""
        config = {key: value for key, value in config.items() if key not in ("available_node_types", "head_node_type")}
        config |= {"cluster_name": self.name, "max_workers": 0}
        config["provider"] = {"type": "local", "head_ip": "127.0.0.1", "worker_ips": []}
        config["auth"] = {"ssh_user": os.environ.get("USER", "root")}
        ports = f"--port={free_port()} --ray-client-server-port={free_port()} --dashboard-port={free_port()}"
        starts = config["head_start_ray_commands"]
        config["head_start_ray_commands"] = [start.replace("--port=6379", ports) for start in starts]
        path = self.user / "cluster.yaml"
        path.write_text(yaml.safe_dump(config))
        return path

    def joins(self, config, port):
        """Become a worker of the cluster of that configuration, as its launcher would have it: mounts and commands."""
        self.run("docker", "run", *" ".join(config["docker"]["run_options"]).split(), config["docker"]["image"], "bash")
        excluded = [word for pattern in config["rsync_exclude"] for word in ("--exclude", pattern)]
        for target, source in config["file_mounts"].items():
            source = source.replace("~", str(self.user))
            here = f"{source}/" if os.path.isdir(source) else source
            self.run("rsync", "-avz", *excluded, here, f"container:{target}")
        starts = [start.replace("6379", str(port)) for start in config["worker_start_ray_commands"]]
        for command in (*config["setup_commands"], *starts):
            login = f"export RAY_HEAD_IP=127.0.0.1 && {command}"
            self.run("docker", "exec", config["docker"]["container_name"], "bash", "--login", "-c", login)

    def run(self, *command, timeout=180, cwd=ROOT):
        """What the user types, in the checkout."""
        ran = subprocess.run(
            command, env=self.environment, cwd=cwd, capture_output=True, text=True, timeout=timeout, check=False
        )
        assert ran.returncode == 0, f"{command}\n{ran.stdout[-4000:]}\n{ran.stderr[-4000:]}"
        return ran.stdout + ran.stderr

    def remove(self):
        stop(inside(self.folder))
        shutil.rmtree(self.folder, ignore_errors=True)
        shutil.rmtree(f"/tmp/ray_tmp_mount/{self.name}", ignore_errors=True)
