"""Kernels that are copies of this process, which has loaded what pages import: each starts at once, and knows of no other."""

import asyncio
import importlib
import os
import signal
import sys
import time
from typing import Any, NoReturn

INLINE = "module://matplotlib_inline.backend_inline"
PAGES_USE = "rdc.attack rdc.certify rdc.classify rdc.data rdc.early_exit rdc.evaluate rdc.guide rdc.models rdc.notebook rdc.plots"


class Forked:
    """What jupyter_client asks of a process."""

    stdin = stdout = stderr = None

    def __init__(self, pid: int) -> None:
        self.pid, self.returncode = pid, None

    def poll(self) -> int | None:
        """The exit code, once it has ended."""
        if self.returncode is None:
            ended, status = os.waitpid(self.pid, os.WNOHANG)
            self.returncode = os.waitstatus_to_exitcode(status) if ended else None
        return self.returncode

    def wait(self, timeout: float | None = None) -> int | None:
        """The exit code, when it has ended."""
        while self.poll() is None:
            time.sleep(0.01)
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Send a signal."""
        os.kill(self.pid, number)

    def kill(self) -> None:
        """End it."""
        self.send_signal(signal.SIGKILL)

    terminate = kill


def launch(command: list[str], env: dict[str, str], cwd: str | None = None, **_: Any) -> Forked:
    """Start a kernel as ``jupyter_client.launch_kernel`` does; what follows ``-f`` in the command is its own."""
    if pid := os.fork():
        os.setpgid(pid, pid)  # here as well as there: whoever comes first
        return Forked(pid)
    run(command[command.index("-f") :], env, cwd)


def run(arguments: list[str], env: dict[str, str], cwd: str | None) -> NoReturn:
    """Be a kernel in a group of processes of its own, where nothing is seen of the process that was copied."""
    from ipykernel.kernelapp import IPKernelApp

    os.setpgid(0, 0)
    asyncio.set_event_loop(asyncio.new_event_loop())  # in place of the copied one, which runs
    os.chdir(cwd or ".")
    os.environ.clear()
    os.environ.update(env)
    sys.argv, sys.path[0] = ["ipykernel_launcher"], ""
    null = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(null, stream)
    sys.stdout, sys.stderr = sys.__stdout__, sys.__stderr__
    try:
        IPKernelApp.launch_instance(argv=arguments)
    finally:
        os._exit(0)


def load() -> None:
    """Load what pages import, and make new kernels copies of this process."""
    from jupyter_client.provisioning import local_provisioner

    os.environ["MPLBACKEND"] = INLINE
    for name in f"torch scipy.stats seaborn pandas ipykernel.kernelapp {PAGES_USE}".split():
        importlib.import_module(name)
    local_provisioner.launch_kernel = launch
