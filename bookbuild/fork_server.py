"""Imports the modules named on its command line, then forks into every command that it reads.

A script without imports of its own: what it forks must not find more than a new process would.
``kernels.py`` starts it. A line of JSON says what follows ``python -m`` and where; the answer is a
process's id. It computes nothing, since torch's threads do not outlive a fork.
"""

import atexit
import json
import os
import runpy
import signal
import sys
import warnings
from importlib import import_module


def leave() -> None:
    """End without taking what was imported apart, which takes seconds after a fork."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def become(command: list[str], environment: dict[str, str], folder: str) -> None:
    """Be what ``python -m command`` would have been in its own session."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.setsid()
    print(os.getpid(), flush=True)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment, JPY_PARENT_PID=str(os.getppid()))
    sys.argv = command
    sys.path.insert(0, folder)
    runpy.run_module(command[0], run_name="__main__", alter_sys=True)


def main() -> None:
    """Serve until the one who asks is gone; a kernel watches its server and then goes too."""
    del sys.path[0]  # this script's folder
    atexit.register(leave)  # first, and so after whatever else is registered
    # ipykernel reads the one, and matplotlib the other, when it is imported.
    os.environ["JPY_PARENT_PID"] = str(os.getpid())
    os.environ["MPLBACKEND"] = "module://matplotlib_inline.backend_inline"
    os.environ["PYDEVD_DISABLE_FILE_VALIDATION"] = "1"  # it warns of what nobody debugs
    for name in sys.argv[1:]:
        import_module(name)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the forked
    for line in sys.stdin:
        with warnings.catch_warnings():
            # Of threads: OpenBLAS has some, and stops them for a fork.
            warnings.simplefilter("ignore", DeprecationWarning)
            child = not os.fork()
        if child:
            become(**json.loads(line))
            break


if __name__ == "__main__":
    main()
