"""A machine of its own for the samples of one document: processes, network and folders that nothing else sees.

The samples name the port 4437 and end servers by name, as readers do. In namespaces of their own they can do both as printed, beside a server that
is running already.
"""

import os
import pathlib
import re
import shutil
import subprocess
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
BIN = pathlib.Path(os.environ.get("PARLEY_BIN", ROOT / ".build" / "debug"))

# `./run` as the samples use it: without the build and the download, which first_hour.py runs as they are. Without a model to download it
# has the scripted one, at the pace that `./run` gives it.
PACE = re.search(r"export PARLEY_MODEL=(scripted:\S+)", (ROOT / "run").read_text())[1]
RUN = f"""#!/bin/sh
case ${{PARLEY_MODEL:-scripted}} in scripted | scripted:) export PARLEY_MODEL={PACE} ;; esac
exec ./parley serve "$@"
"""


class Sandbox:
    def __init__(self):
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="parley-docs-"))
        self.background = []
        self.count = 0
        for name in ["Examples", "Tests", "Scripts", "docs", ".venv", "Package.swift", "Sources", "Benchmarks"]:
            (self.folder / name).symlink_to(ROOT / name)
        shutil.copytree(ROOT / "agents", self.folder / "agents")
        (self.folder / "parley").symlink_to(BIN / "parley")
        (self.folder / "run").write_text(RUN)
        (self.folder / "run").chmod(0o755)
        (self.folder / ".state").write_text("")
        self.keeper = subprocess.Popen(
            ["unshare", *self.user(), "--net", "--pid", "--mount", "--fork", "--kill-child", "--mount-proc",
             "sh", "-c", "ip link set lo up && echo ready && exec sleep infinity"],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        if self.keeper.stdout.readline() != "ready\n":
            raise RuntimeError(f"no namespaces for the samples: {self.keeper.stderr.read()}")
        self.inside = pathlib.Path(f"/proc/{self.keeper.pid}/task/{self.keeper.pid}/children").read_text().split()[0]

    @staticmethod
    def user():
        return [] if os.getuid() == 0 else ["--user", "--map-root-user"]

    def close(self):
        self.keeper.kill()
        self.keeper.wait()
        self.keeper.stdout.close()
        self.keeper.stderr.close()
        for process in self.background:
            process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)

    def start(self, text):
        """Starts commands in the sandbox's folder; gives the process, and the file that has its output."""
        self.count += 1
        script, output = self.folder / f".block-{self.count}.sh", self.folder / f".output-{self.count}"
        # Variables and the folder are kept from block to block, as in the reader's shell.
        script.write_text(f"source .state\nset -euo pipefail -a\n{text}\nset +a\nexport -p >{self.folder}/.state\necho cd \"$PWD\" >>{self.folder}/.state\n")
        enter = ["nsenter", "--target", self.inside, "--net", "--pid", "--mount", *(["--user"] if os.getuid() else [])]
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("PARLEY_", "OPENAI_"))}
        with open(output, "wb") as file:
            process = subprocess.Popen(
                [*enter, "--wd=" + str(self.folder), "bash", script.name], stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT,
                env=environment, start_new_session=True)
        return process, output

    def run(self, text, timeout=120):
        """Runs commands to their end; gives their status and what they wrote."""
        process, output = self.start(text)
        try:
            process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.stop(process)
            raise AssertionError(f"not over after {timeout} s:\n{text}\n{output.read_text()}") from None
        return process.returncode, output.read_text(errors="replace")

    def begin(self, text, pattern, timeout=60):
        """Starts commands, waits until their output matches, and leaves them running."""
        process, output = self.start(text)
        self.background.append(process)
        end = time.monotonic() + timeout
        while True:
            # Asked before the output is read: what the last words were is known only afterwards.
            is_over = process.poll() is not None or time.monotonic() > end
            if re.search(pattern, output.read_text(errors="replace")):
                return process, output
            if is_over:
                self.stop(process)
                raise AssertionError(f"'{pattern}' did not come of\n{text}\n{output.read_text(errors='replace')}")
            time.sleep(0.05)

    def follow(self, text, pattern):
        """Runs commands until their output matches."""
        process, _ = self.begin(text, pattern)
        self.stop(process)

    def stop(self, process):
        """Ends commands and all that they have started, by the session they have in common."""
        children = subprocess.run(["ps", "-o", "pid=", "-s", str(process.pid)], capture_output=True, text=True).stdout.split()
        for pid in children:
            try:
                os.kill(int(pid), 9)
            except ProcessLookupError:
                pass
        process.wait()
