"""The reference pages against the sources: every command, error code, metric, option and variable is documented, and nothing else is."""

import os
import pathlib
import re
import subprocess
import unittest

ROOT = pathlib.Path(__file__).resolve().parents[2]
BIN = pathlib.Path(os.environ.get("PARLEY_BIN", ROOT / ".build" / "debug"))
SOURCES = {path: path.read_text() for path in sorted((ROOT / "Sources").glob("**/*.swift")) if "ParleyTesting" not in path.parts}
# The client for browsers has errors of its own.
CLIENT = (ROOT / "Sources" / "ParleyServer" / "Client" / "parley.js").read_text()
ALL = "\n".join([*SOURCES.values(), CLIENT])

CODE = r'"([a-z]+(?:_[a-z]+)*|[A-Z]+(?:_[A-Z]+)+)"'
# Where the sources make an error: by label, by the types and functions that take a code first, and by those that take a status first.
MAKES = [
    r"\bcode:\s*" + CODE,
    r"\b(?:ChannelError|TurnError|Code|failure|bad)\(\s*" + CODE,
    r"\b(?:SubscriptionProblem|HTTPParseError)\(\s*\d+,\s*" + CODE,
    r'"rejected",\s*' + CODE,
    r'"rejected",\s*reason:\s*' + CODE,
    r"\brefuse\(item,\s*" + CODE,
]
# What codes look like: one that is made in another way is found by its words.
SHAPE = re.compile(
    r'"((?:invalid|too_many|unknown|unsupported|conflicting|missing|model|upstream|stale|data|log)_[a-z_]+'
    r'|[a-z_]+_(?:not_found|exists|closed|too_large|too_long|too_deep|mismatch|expired|refused|removed|denied|moved|unknown|full|deleted|gone|conflict))"')
# Words of that shape that are none: fields of JSON, words in the errors of models, and what only other parts of Parley are told.
NOT_CODES = {
    "model_loading", "model_ms", "data_inspection", "undecided_entry", "soft_deleted", "invalid_api_key", "invalid_argument",
    "unsupported_parameter", "measure", "open", "read", "invalid_request", "upstream_trailing_bytes",
}
# Codes with the parameter's name in them.
BUILT = {"invalid_turn", "invalid_before", "invalid_since", "invalid_until"}


def codes():
    found = set()
    for text in [*SOURCES.values(), CLIENT]:
        for pattern in MAKES:
            found |= set(re.findall(pattern, text))
        found |= set(SHAPE.findall(text))
    return (found | BUILT) - NOT_CODES


def entries(page):
    """What the first column of a page's tables names in backticks."""
    return {name for row in re.findall(r"^\| (`[^|]*) \|", (ROOT / "docs" / page).read_text(), re.M) for name in re.findall(r"`([^`]+)`", row)}


def commands():
    """The commands that `parley help` lists."""
    text = subprocess.run([BIN / "parley", "help"], capture_output=True, text=True, check=True).stdout
    return set(re.findall(r"^  ([a-z]+) {2,}", text, re.M))


class ReferenceTest(unittest.TestCase):
    maxDiff = None

    def test_every_command_has_an_example(self):
        examples = re.findall(r"\./parley ([a-z]+)\b.* # \w", (ROOT / "docs" / "commands.md").read_text())
        self.assertGreater(len(examples), 20)
        self.assertEqual(sorted(commands() - set(examples)), [], "docs/commands.md lacks these commands")
        self.assertEqual(sorted(set(examples) - commands()), [], "there are no such commands")

    def test_every_error_code_has_an_entry(self):
        self.assertEqual(sorted(codes() - entries("errors.md")), [], "docs/errors.md lacks these codes")

    def test_every_documented_code_is_in_the_sources(self):
        self.assertEqual([code for code in sorted(entries("errors.md")) if f'"{code}"' not in ALL and code not in BUILT], [])

    def test_every_metric_is_documented_with_its_description(self):
        made = dict(re.findall(r'\(\s*"(parley_[a-z_]+)",\s*\.(?:counter|gauge),\s*"((?:[^"\\]|\\.)*)"', ALL))
        described = dict(re.findall(r"^\| `(parley_[a-z_]+)` \| \w+ \| (.*) \|$", (ROOT / "docs" / "metrics.md").read_text(), re.M))
        plain = {name: text.replace("\\(SubscriptionCounters.pendingMax)", "1,024") for name, text in made.items()}
        self.assertEqual(plain, described)

    def test_every_option_of_serve_is_documented(self):
        listed = re.search(r"static let names =(.*?)flags: *\[String\]|static let names =(.*?)package static func parse", ALL, re.S)[0]
        options = {f"--{name}" for name in re.findall(r'"([a-z-]+)"', listed)}
        self.assertGreater(len(options), 10)
        documented = {word.split(" ")[0] for word in entries("configuration.md") if word.startswith("--")}
        self.assertEqual(sorted(options - documented), [])

    def test_every_range_of_an_option_is_documented(self):
        numbers = r"^\| `--([a-z-]+) <(?:seconds|number|n|MiB)>` \| (.*) \|$"
        rows = dict(re.findall(numbers, (ROOT / "docs" / "configuration.md").read_text(), re.M))
        self.assertGreaterEqual(len(rows), 9)
        for option, row in rows.items():
            with self.subTest(option):
                said = subprocess.run([BIN / "parley", "serve", f"--{option}=x"], capture_output=True, text=True).stderr
                limits = re.search(rf"--{option} is 'x'; expected .*?from ([0-9.]+) to ([0-9]+)", said)
                self.assertIn(f"{limits[1]} to {limits[2]}", row)

    def test_every_variable_is_documented(self):
        used = set(re.findall(r'"((?:PARLEY|OPENAI)_[A-Z_]+)"', ALL)) - {"PARLEY_FAILPOINT", "PARLEY_SEED"}
        self.assertEqual(sorted(used - entries("configuration.md")), [])

    def test_every_field_of_an_agents_file_is_documented(self):
        fields = re.search(r"private static let fields = \[(.*?)\]", ALL, re.S)[1]
        self.assertEqual(sorted(re.findall(r'"(\w+)"', fields)), sorted(entries("agent-files.md")))


if __name__ == "__main__":
    unittest.main()
