"""Forks Python scripts from a process that has imported torch and transformers before them.

That takes each sweep some seconds otherwise, and tests of faults start more than a hundred. All else is as if the
script had been started by itself: a session, an environment and files for what it says of its own, signals, and an
exit code. Neither Ray nor kvstream is imported before, as they read the environment when they are.
"""

import json
import subprocess
import sys
import time
from functools import cache
from pathlib import Path

import psutil

# Each line of input is a start. A keeper between the two waits for the script, so that nobody else has to.
FORKING = """
import json, os, runpy, signal, sys
import numba, pyarrow.parquet, rich.progress, safetensors.torch, torch, transformers.modeling_utils
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, DynamicCache, GPTNeoXForCausalLM

def become(script, arguments, environment, folder, out, err):
    os.setsid()
    for number, (path, how) in enumerate(((os.devnull, os.O_RDONLY), (out, os.O_RDWR), (err, os.O_RDWR))):
        os.dup2(os.open(path, how | os.O_APPEND), number)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.argv[:] = [script, *arguments]
    sys.path[0] = os.path.dirname(script)
    runpy.run_path(script, run_name="__main__")
    sys.exit()

def keep(code, tell, *start):
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    if not (pid := os.fork()):
        become(*start)
    os.write(tell, str(pid).encode())
    status = os.waitpid(pid, 0)[1]
    with open(code + ".new", "w") as file:
        file.write(str(os.waitstatus_to_exitcode(status)))
    os.rename(code + ".new", code)
    os._exit(0)

signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for keepers
for line in sys.stdin:
    code, *start = json.loads(line)
    told, tell = os.pipe()
    if not os.fork():
        keep(code, tell, *start)
    print(int(os.read(told, 20)), flush=True)
    os.close(told)
    os.close(tell)
"""


class Forked:
    """A script on its way, with what a `subprocess.Popen` has of it."""

    def __init__(self, pid: int, code: Path) -> None:
        self.pid, self.code = pid, code

    def poll(self):
        return int(self.code.read_text()) if self.code.exists() else None

    def wait(self, seconds):
        end = time.monotonic() + seconds
        while (code := self.poll()) is None:
            if time.monotonic() > end:
                raise subprocess.TimeoutExpired(f"process {self.pid}", seconds)
            time.sleep(0.02)
        return code

    def kill(self):
        psutil.Process(self.pid).kill()

    def terminate(self):
        psutil.Process(self.pid).terminate()


@cache
def _parent():
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    return subprocess.Popen([sys.executable, "-c", FORKING], **pipes)


def fork(command, environment, folder, out, err) -> Forked:
    """Start `python script arguments…`; what it says is added to two files."""
    python, script, *arguments = command
    assert python == sys.executable
    code = Path(f"{out}.code")
    parent = _parent()
    print(json.dumps([str(code), script, arguments, environment, str(folder), out, err]), file=parent.stdin, flush=True)
    return Forked(int(parent.stdout.readline()), code)
