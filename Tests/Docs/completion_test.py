"""The completion scripts in the shells that they are for, set up as `parley help completion` says, with keys typed into a terminal."""

import os
import pathlib
import pty
import re
import select
import subprocess
import tempfile
import time
import unittest

ROOT = pathlib.Path(__file__).resolve().parents[2]
BIN = pathlib.Path(os.environ.get("PARLEY_BIN", ROOT / ".build" / "debug"))

# What is typed before the key Tab, and what the line then is.
COMPLETED = {"parley ta": "parley tail", "parley run --js": "parley run --json", "parley backup --ser": "parley backup --server", "./parley vers": "./parley version",
    "parley ls --state pa": "parley ls --state parked", "parley help tai": "parley help tail", "parley completion fi": "parley completion fish",
}


class CompletionTest(unittest.TestCase):
    longMessage = True

    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.home = pathlib.Path(folder.name)
        (self.home / "parley").symlink_to(BIN / "parley")
        self.environment = {"HOME": str(self.home), "PATH": f"{self.home}:{os.environ['PATH']}", "TERM": "dumb", "LC_ALL": "C.UTF-8"}

    def type(self, *shell):
        """Completes each line in an interactive shell."""
        pid, terminal = pty.fork()
        if pid == 0:
            os.chdir(self.home)
            os.execvpe(shell[0], shell, self.environment)
        self.addCleanup(os.waitpid, pid, 0)
        self.addCleanup(os.close, terminal)
        # Printed in two parts, so that the line as it is typed does not count.
        os.write(terminal, b"echo rea''dy\n")
        self.read(terminal, r"\nready")
        for typed, completed in COMPLETED.items():
            # Ctrl-U clears the line that was completed before.
            os.write(terminal, f"\x15{typed}\t".encode())
            self.read(terminal, re.escape(completed))

    def read(self, terminal, pattern):
        output, end = "", time.monotonic() + 30
        # Without the bell, and the return to the line's beginning.
        while not re.search(pattern, re.sub(r"[\r\a]", "", output)):
            self.assertLess(time.monotonic(), end, f"'{pattern}' did not appear in {output!r}")
            if select.select([terminal], [], [], 0.1)[0]:
                output += os.read(terminal, 65536).decode(errors="replace")

    def test_bash(self):
        (self.home / ".bashrc").write_text("source <(parley completion bash)\n")
        self.type("bash", "-i")

    def test_zsh(self):
        (self.home / ".zshrc").write_text("autoload -Uz compinit\ncompinit -u\nsource <(parley completion zsh)\n")
        self.type("zsh", "-i")

    def test_fish(self):
        # Fish draws its line anew for each key, so it is asked for the completions themselves.
        completions = self.home / ".config/fish/completions"
        completions.mkdir(parents=True)
        (completions / "parley.fish").write_text(subprocess.run([BIN / "parley", "completion", "fish"], capture_output=True, text=True, check=True).stdout)
        for typed, completed in COMPLETED.items():
            found = subprocess.run(
                ["fish", "-c", f"complete --do-complete '{typed}'"], capture_output=True, text=True, env=self.environment, cwd=self.home, check=True)
            self.assertEqual([line.split("\t")[0] for line in found.stdout.splitlines()], [completed.split()[-1]], found.stderr)


if __name__ == "__main__":
    unittest.main()
