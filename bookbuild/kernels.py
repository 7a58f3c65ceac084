"""Kernels that start warm: forked from a process that has imported the module already.

Importing torch and the module takes longer than many a chapter's own work. ``fork_server.py`` does
it once. Where there is no fork, kernels start as they do in a reader's Jupyter.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from jupyter_client import AsyncKernelManager, KernelConnectionInfo
from jupyter_client.provisioning import LocalProvisioner

PRELOAD = (
    "ipykernel.kernelapp",
    "ipykernel.debugger",  # imported when a kernel starts, which takes a second
    "gig_helpers.data.profiles",
    "gig_helpers.report.figures",
    "gig_helpers.report.provenance",
)
"""What a kernel and the set-up cell import; a test finds no module more than after them."""


class Forked:
    """A forked process, with what jupyter_client asks of a Popen."""

    stdin = stdout = stderr = None

    def __init__(self, pid: int) -> None:
        self.pid = pid

    def poll(self) -> int | None:
        """None while it runs, then 0: how it ended, only the server could know."""
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return 0
        return None

    def wait(self) -> int:
        """Wait for its end."""
        while self.poll() is None:
            time.sleep(0.02)
        return 0

    def send_signal(self, number: int) -> None:
        """Send it a signal."""
        os.kill(self.pid, number)

    def terminate(self) -> None:
        """Ask it to end; a kernel that takes long to shut down is asked so."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """End it."""
        self.send_signal(signal.SIGKILL)


@cache
def _server(preload: tuple[str, ...]) -> "subprocess.Popen[str]":
    script = Path(__file__).with_name("fork_server.py")
    command, pipe = [sys.executable, str(script), *preload], subprocess.PIPE
    # In a session of its own, so that Ctrl-C is left to papermill, which ends the kernel.
    return subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, start_new_session=True)


def start(command: list[str], environment: Mapping[str, str], folder: str) -> Forked | None:
    """Start ``python -m command`` warm; None where that cannot be done."""
    if sys.platform != "linux":  # macOS's own libraries do not bear a fork, Windows has none
        return None
    request = {"command": command, "environment": dict(environment), "folder": folder}
    server = _server(PRELOAD)
    assert server.stdin and server.stdout
    try:
        print(json.dumps(request), file=server.stdin, flush=True)
        return Forked(int(server.stdout.readline()))
    except (OSError, ValueError):  # it has died, or never came up
        return None


def run(command: list[str], environment: Mapping[str, str], folder: str) -> None:
    """Run ``python -m command`` to its end, warm where that can be done."""
    if process := start(command, environment, folder):
        process.wait()
    else:
        subprocess.run([sys.executable, "-m", *command], env=dict(environment), cwd=folder)


class WarmProvisioner(LocalProvisioner):
    """Starts this environment's kernels warm, others as ever."""

    process: Any = None

    async def launch_kernel(self, cmd: list[str], **kwargs: Any) -> KernelConnectionInfo:
        """Fork where the command is this Python's, else start a process."""
        if cmd[:2] == [sys.executable, "-m"]:
            self.process = start(cmd[2:], kwargs["env"], kwargs.get("cwd") or os.getcwd())
        if self.process is None:
            return await super().launch_kernel(cmd, **kwargs)
        self.pid = self.pgid = self.process.pid
        return self.connection_info


class WarmKernels(AsyncKernelManager):
    """What papermill is given as its ``kernel_manager_class``."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.provisioner = WarmProvisioner(kernel_spec=self.kernel_spec, parent=self)
