"""./run where the build fails, or would be in vain: it says so, and leaves nothing behind."""

import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import unittest

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "Tests" / "Browser"))

from node import wait_for  # noqa: E402


class RunTest(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = pathlib.Path(folder.name)
        shutil.copy(ROOT / "run", self.folder)
        (self.folder / "Scripts").symlink_to(ROOT / "Scripts")
        (self.folder / ".venv").symlink_to(ROOT / ".venv")
        (self.folder / "Package.swift").write_text("// swift-tools-version: 6.2\nthis is no package\n")

    def processes(self):
        """The command lines of the running processes that name the folder."""
        found = []
        for file in pathlib.Path("/proc").glob("[0-9]*/cmdline"):
            try:
                found.append(file.read_text().replace("\0", " "))
            except OSError:
                pass  # It has ended meanwhile.
        return [line for line in found if str(self.folder) in line]

    def test_a_failed_build_ends_the_local_model(self):
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("PARLEY_", "OPENAI_"))}
        run = subprocess.run(["./run"], cwd=self.folder, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120)
        self.assertEqual(run.returncode, 1, run.stderr)
        self.assertIn("starting the local model", run.stderr)
        self.assertIn("error:", run.stdout + run.stderr)
        wait_for("the model to end", lambda: not self.processes())

    def test_a_model_that_cannot_be_used_is_said_before_the_build(self):
        for model, says in [("openai:gpt-5-mini", "OPENAI_API_KEY is not set"), ("gpt-5-mini", "expected <provider>:<model>")]:
            environment = {name: value for name, value in os.environ.items() if not name.startswith(("PARLEY_", "OPENAI_"))}
            environment["PARLEY_MODEL"] = model
            run = subprocess.run(["./run"], cwd=self.folder, env=environment, capture_output=True, text=True, timeout=60)
            self.assertEqual(run.returncode, 1, run.stderr)
            self.assertIn(says, run.stderr)
            self.assertNotIn("building", run.stderr)


if __name__ == "__main__":
    unittest.main()
