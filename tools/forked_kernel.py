"""Kernels that are copies of this process, which has loaded what pages import: each starts at once, and knows of no other."""

import asyncio
import importlib
import multiprocessing
import os
import subprocess
import sys
import threading
from typing import Any, NoReturn

from ipykernel.kernelapp import IPKernelApp
from jupyter_client.provisioning import local_provisioner

PAGES_USE = "torch scipy.stats seaborn pandas rdc.attack rdc.certify rdc.classify rdc.early_exit rdc.guide rdc.notebook"


class Forked(subprocess.Popen):
    """A copy of this process, in place of a command that was started."""

    stdin = stdout = stderr = None

    def __init__(self, pid: int) -> None:
        self.pid, self.args, self.returncode = pid, "a kernel", None
        self._child_created, self._waitpid_lock = True, threading.Lock()  # what Popen's own __init__ leaves


def launch(command: list[str], env: dict[str, str], cwd: str | None = None, **_: Any) -> Forked:
    """Start a kernel as ``jupyter_client.launch_kernel`` does; of the command, what follows ``-f`` is its own."""
    if pid := os.fork():
        os.setpgid(pid, pid)  # here as well as there: whoever comes first
        return Forked(pid)
    run(command[command.index("-f") :], env, cwd or ".")


def run(arguments: list[str], env: dict[str, str], cwd: str) -> NoReturn:
    """Be a kernel in a group of processes of its own, where nothing is seen of the process that was copied."""
    os.setpgid(0, 0)
    asyncio.set_event_loop(asyncio.new_event_loop())  # in place of the copied one, which runs
    multiprocessing.current_process().daemon = False  # a page may start workers
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    sys.argv, sys.path[0] = ["ipykernel_launcher"], ""
    for stream in (0, 1, 2):
        os.dup2(os.open(os.devnull, os.O_RDWR), stream)
    sys.stdout, sys.stderr = sys.__stdout__, sys.__stderr__
    try:
        IPKernelApp.launch_instance(argv=[*arguments, f"--IPKernelApp.parent_handle={os.getppid()}"])  # it ends with its parent
    finally:
        os._exit(0)


def load() -> None:
    """Load what pages import, and make new kernels copies of this process."""
    os.environ["MPLBACKEND"] = "module://matplotlib_inline.backend_inline"
    for name in PAGES_USE.split():
        importlib.import_module(name)
    local_provisioner.launch_kernel = launch
