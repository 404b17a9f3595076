"""What ARCHITECTURE.md says of the sources as a whole, where the compiler cannot say it."""

import pathlib
import re
import unittest

ROOT = pathlib.Path(__file__).resolve().parents[2]
# Time, chance and identity that a simulated run could not repeat.
UNREPEATABLE = re.compile(
    r"Task\.sleep|\bDate\(\)|ContinuousClock|SuspendingClock|clock_gettime|gettimeofday|SystemRandomNumberGenerator|"
    r"\.random\(in: [^()]*\)|\bUUID\(\)|\busleep\(|\bnanosleep\("
)


def sources(folder):
    return sorted((ROOT / folder).rglob("*.swift"))


def code(path):
    """The lines of a source, without what comments say."""
    for number, line in enumerate(path.read_text().splitlines(), 1):
        yield number, line.split("//")[0]


class Sources(unittest.TestCase):
    def test_channels_and_agents_take_time_and_chance_from_the_world_alone(self):
        found = [
            f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
            for module in ("ParleyChannels", "ParleyAgents")
            for path in sources(f"Sources/{module}")
            for number, line in code(path)
            if UNREPEATABLE.search(line)
        ]
        self.assertEqual(found, [])

    def test_each_file_of_the_tests_has_a_name_of_its_own(self):
        names = [path.name for path in sources("Tests")]
        self.assertEqual(sorted({name for name in names if names.count(name) > 1}), [])

    def test_what_each_stop_and_each_test_is_called_is_there(self):
        """The walks and the invariants name files and what is in them."""
        text = (ROOT / "ARCHITECTURE.md").read_text()
        by_name = {path.name: path.read_text() for folder in ("Sources", "Tests") for path in sources(folder)}
        walks = re.search(r"## Two walks\n(.*?)\n## ", text, re.DOTALL).group(1)
        stops = re.findall(r"^\d+\. `([\w.]+)` \(`([\w+/]+\.swift)`\)", walks, re.MULTILINE)
        self.assertGreaterEqual(len(stops), 16)
        for name, path in stops:
            source = by_name[path.split("/")[-1]]
            member = name.split(".")[-1]
            self.assertRegex(source, rf"\b(func|struct|class|enum|init) ?{member}\b" if member != "init" else r"\binit\(", f"{name} in {path}")
        invariants = re.search(r"## Invariants\n(.*?)\nDeliberately absent", text, re.DOTALL).group(1)
        named = re.findall(r"`(\w+Tests)`", invariants)
        self.assertGreaterEqual(len(named), 10)
        for name in named:
            self.assertIn(f"{name}.swift", by_name)


if __name__ == "__main__":
    unittest.main()
