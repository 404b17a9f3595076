"""Every command and sample of README, docs and Examples, run as it is printed."""

import json
import os
import pathlib
import re
import subprocess
import tempfile
import unittest

from samples import ROOT, SHOWN, documents, indented, samples
from sandbox import BIN, Sandbox

# Phrases that readers stumble over, and the word to use instead is in docs/glossary.md: resume, in flight, recreated, compensated.
TICS = re.compile(r"\b(goes on|go on with|whoever|somebody|under way|taken back|made anew|he or she|says of it|one's own|beside that)\b", re.I)
# A command that only works where Parley is installed: samples write `./parley`.
BARE = re.compile(r"(?:^|[|;&(]|\$\(|=\S* )\s*parley (?=[a-z])")
SWIFT = ["swiftc", "-typecheck", "-swift-version", "6", "-enable-upcoming-feature", "NonisolatedNonsendingByDefault", "-I", str(BIN / "Modules")]
# The modules of C libraries that Parley's modules name.
for folder in sorted((ROOT / "Sources").glob("C*/")):
    SWIFT += ["-I", str(folder)]


class SamplesTest(unittest.TestCase):
    longMessage = True

    def test_every_sample_is_in_a_fenced_block(self):
        self.assertEqual([place for document in documents() for place in indented(document)], [])

    def test_every_link_leads_somewhere(self):
        wrong = []
        for document in documents():
            for target, anchor, image in re.findall(r"\]\(([^)#:\s]*)(?:#([^)\s]*))?\)|<img src=\"([^\"]+)\"", document.read_text()):
                path = document.parent / (target or image) if target or image else document
                if not path.exists() or (anchor and anchor not in anchors(path)):
                    wrong.append(f"{document.relative_to(ROOT)}: {target or image}#{anchor}")
        self.assertEqual(wrong, [])

    def test_documents_are_in_plain_english(self):
        wrong = []
        for document in [*documents(), ROOT / "ARCHITECTURE.md", ROOT / "CHANGELOG.md"]:
            for number, line in enumerate(document.read_text().splitlines(), 1):
                if found := TICS.search(line):
                    wrong.append(f"{document.relative_to(ROOT)}:{number}: '{found[0]}'")
        self.assertEqual(wrong, [])

    def test_samples_run_the_program_by_its_path(self):
        wrong = []
        for sample in [sample for document in documents() for sample in samples(document) if sample.language == "sh"]:
            wrong += [f"{sample.place}: {line}" for line in sample.text.splitlines() if BARE.search(line)]
        self.assertEqual(wrong, [], "write ./parley, as README.md explains")

    def run_document(self, document):
        found = samples(document)
        if not any(needs_sandbox(sample) for sample in found):
            for sample in found:
                self.run_sample(sample, None)
            return
        sandbox = Sandbox()
        try:
            for sample in found:
                self.run_sample(sample, sandbox)
        finally:
            sandbox.close()

    def run_sample(self, sample, sandbox):
        options = sample.options
        if "skip" in options:
            self.assertTrue(options["skip"], f"{sample.place} is skipped without a reason")
            return
        try:
            if "same-as" in options:
                self.assertIn(sample.text, (ROOT / options["same-as"]).read_text(), f"{options['same-as']} is not what is printed")
            if "file" in options:
                path = sandbox.folder / options["file"]
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(sample.text)
            if "swift" in options:
                typecheck(sample.text, options["swift"])
            if "check" in options:
                self.check_with_tool(sample, sandbox)
            elif sample.language == "sh" and "file" not in options:
                self.run_commands(sample, sandbox)
            elif sample.language == "json" and "file" not in options:
                for line in [sample.text] if "\n{" not in sample.text.strip() else sample.text.splitlines():
                    json.loads(line.replace("…", ""))
            elif sample.language not in SHOWN:
                self.assertTrue(set(options) & {"file", "same-as", "swift"}, "nothing is done with this block")
        except (AssertionError, ValueError) as error:
            raise AssertionError(f"{sample.place}: {error}") from None

    def check_with_tool(self, sample, sandbox):
        path = sandbox.folder / f"sample.{sample.language or 'txt'}"
        path.write_text(sample.text)
        status, output = sandbox.run(f"SAMPLE={path}\n{sample.options.get('setup', '')}\n{sample.options['check']}")
        self.assertEqual(status, 0, output)

    def run_commands(self, sample, sandbox):
        options = sample.options
        text = "\n".join(part for part in [options.get("setup", ""), sample.text] if part)
        if "serve" in options:
            sandbox.begin(text, "serving http")
        elif "begin" in options:
            self.left = sandbox.begin(text, options["begin"])
        elif "until" in options:
            sandbox.follow(text, options["until"])
        else:
            status, output = sandbox.run(text)
            if "fails" in options:
                self.assertNotEqual(status, 0, f"succeeds:\n{text}\n{output}")
            else:
                self.assertEqual(status, 0, f"fails:\n{text}\n{output}")
            self.assertRegex(output, options.get("expect", "(?s).*"))
        if "finish" in options:
            process, output = self.left
            self.assertEqual(process.wait(120), 0, output.read_text())
            self.assertRegex(output.read_text(), options["finish"])


def anchors(document):
    """What a document's headings are called in links, as code hosts and editors make it."""
    headings = re.findall(r"^#+ (.*)$", re.sub(r"^```.*?^```", "", document.read_text(), flags=re.M | re.S), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def needs_sandbox(sample):
    options = sample.options
    return "skip" not in options and (sample.language == "sh" or "file" in options or "check" in options)


def typecheck(text, parameters):
    """Compiles a sample as a file, or as the body of a function with these parameters."""
    if parameters:
        text = f"import Parley\nfunc sample({parameters}) async throws {{\n{text}\n}}\n"
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder, "Sample.swift")
        path.write_text(text)
        words = [*SWIFT, *(["-parse-as-library"] if "@main" in text else []), str(path)]
        found = subprocess.run(words, capture_output=True, text=True)
        if found.returncode:
            raise AssertionError(f"does not compile:\n{found.stderr}")


def add_test(document):
    name = re.sub(r"\W+", "_", str(document.relative_to(ROOT)).removesuffix(".md"))
    setattr(SamplesTest, f"test_samples_of_{name}", lambda self: self.run_document(document))


for document in documents():
    add_test(document)


if __name__ == "__main__":
    unittest.main()
