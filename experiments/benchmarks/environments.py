"""Environments of benchmarks: made, started, asked, ended at their limits."""

import json
import os
import select
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

ROOT = Path(__file__).parents[2]


class Requirements(NamedTuple):
    """What goes into an environment of its own.

    Attributes:
        wanted: Packages with their dependencies.
        alone: Packages without them.
    """

    wanted: tuple[str, ...]
    alone: tuple[str, ...] = ()


class Limits(NamedTuple):
    """What a call may take.

    Attributes:
        seconds: Wall time.
        gigabytes: Resident memory of the process, where the system tells.
    """

    seconds: float
    gigabytes: float


class LimitError(Exception):
    """A request that was not answered: it took too much, or the process ended."""


def python_of(environment: str, folder: Path, requirements: Requirements | None) -> str:
    """The interpreter of an environment, which is made if it is not there.

    Args:
        environment: Its name.
        folder: Where environments lie.
        requirements: What is in it; None for the one that runs this.

    Returns:
        Its path.
    """
    if requirements is None:
        return sys.executable
    wanted, alone = requirements
    place = folder / environment
    python, stamp = str(place / "bin" / "python"), place / "requirements.txt"
    text = "\n".join((*wanted, *alone)) + "\n"
    if not stamp.exists() or stamp.read_text() != text:
        print(f"making the environment {place}", flush=True)
        subprocess.run([sys.executable, "-m", "venv", "--clear", place], check=True)
        install = [python, "-m", "pip", "install", "--quiet"]
        install.append("--disable-pip-version-check")
        subprocess.run([*install, *wanted], check=True)
        if alone:
            subprocess.run([*install, "--no-deps", *alone], check=True)
        stamp.write_text(text)
    return python


class Peer:
    """A worker process in one environment, started at the first request.

    Attributes:
        module: What the worker runs, with the environment and a number of threads.
        requirements: Of each environment but ``"ours"``, the one that runs this; None
            for a worker that shares its packages.
    """

    module: ClassVar[str]
    requirements: ClassVar[dict[str, Requirements | None]]

    def __init__(self, environment: str, folder: Path, threads: int, log: Path):
        """Make the environment if need be; what its worker prints goes to `log`."""
        wanted = None if environment == "ours" else self.requirements[environment]
        self.python = python_of(environment, folder, wanted)
        self.environment, self.threads, self.log = environment, threads, log
        self.process: subprocess.Popen[bytes] | None = None

    def command(self) -> list[str]:
        """What starts the worker."""
        return [self.python, "-m", self.module, self.environment, str(self.threads)]

    def _started(self) -> subprocess.Popen[bytes]:
        """The process, ready."""
        if self.process is None:
            with self.log.open("ab") as log:
                self.process = subprocess.Popen(
                    self.command(),
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=log,
                    bufsize=0,
                    cwd=ROOT,
                    env={**os.environ, "JAX_PLATFORMS": "cpu"},
                )
            self._reply(self.process, Limits(120, 8))
        return self.process

    def ask(self, request: dict[str, Any], limits: Limits) -> dict[str, Any]:
        """Send a request and wait for its reply.

        Args:
            request: See `worker`.
            limits: What the answer may take; past it the process is ended, and all
                that it has built is gone.

        Returns:
            The reply.

        Raises:
            LimitError: There was none, and why.
        """
        process = self._started()
        assert process.stdin is not None
        process.stdin.write(json.dumps(request).encode() + b"\n")
        return self._reply(process, limits)

    def _reply(self, process, limits):
        deadline, line = time.monotonic() + limits.seconds, b""
        while not line.endswith(b"\n"):
            if select.select([process.stdout], [], [], 0.1)[0]:
                part = os.read(process.stdout.fileno(), 65536)
                if not part:
                    self.close()
                    raise LimitError(f"the process ended: {self._last_words()}")
                line += part
            elif time.monotonic() > deadline:
                self.close()
                raise LimitError(f"over {limits.seconds:.0f} s")
            elif resident_gigabytes(process.pid) > limits.gigabytes:
                self.close()
                raise LimitError(f"over {limits.gigabytes:g} GB")
        return json.loads(line)

    def _last_words(self):
        """The last line of what the process said."""
        lines = self.log.read_text(errors="replace").split("\n")
        said = next((line for line in reversed(lines) if line.strip()), "nothing said")
        return said[:120]

    def close(self) -> None:
        """End the process, if there is one."""
        if self.process is not None:
            self.process.kill()
            self.process.communicate()
            self.process = None


def resident_gigabytes(pid: int) -> float:
    """Memory that a process holds, in units of 10^9 bytes; 0 where it is not told."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except OSError:
        return 0.0
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e9
