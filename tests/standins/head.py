"""A Ray head on this machine with a home, a folder and ports of its own, and token authentication on."""

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from standins.inside import inside, stop
from standins.machine import BIN, ROOT, free_port


class Head:
    """`ray start --head`, as a user types it; `environment` is that of the user's shell."""

    def __init__(self):
        self.folder = Path(tempfile.mkdtemp(prefix="r", dir="/tmp"))
        (self.folder / "t").mkdir()
        self.environment = {
            "HOME": str(self.folder),
            "PATH": f"{BIN}:{os.environ['PATH']}",
            "RAY_TMPDIR": str(self.folder / "t"),
            "RAY_AUTH_MODE": "token",
            "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
        }
        dashboard = free_port()
        self.url = f"http://127.0.0.1:{dashboard}"
        ports = ["--port", free_port(), "--ray-client-server-port", free_port(), "--dashboard-port", dashboard]
        ports += ["--dashboard-agent-listen-port", free_port()]
        for command in (
            ["ray", "get-auth-token", "--generate"],
            ["ray", "start", "--head", "--num-cpus=2", *map(str, ports)],
        ):
            started = self.run(*command)
            assert started.returncode == 0, started.stdout + started.stderr
        self.token = (self.folder / ".ray" / "auth_token").read_text().strip()

    def run(self, *command, cwd=ROOT, **changes):
        """Run a command in the user's shell; `changes` are to its environment, None unsets."""
        environment = {name: value for name, value in (self.environment | changes).items() if value is not None}
        return subprocess.run(command, env=environment, cwd=cwd, capture_output=True, text=True, timeout=180)

    def remove(self):
        stop(inside(self.folder))
        shutil.rmtree(self.folder, ignore_errors=True)
