"""Reads the samples of a Markdown document: its fenced blocks, and what the comment before a block says about running it.

    <!-- sample: until="turn.completed" -->
    ```sh
    ./parley tail assistant/me
    ```

A `sh` block without a comment is run as it is printed and must succeed. The comment may have:

    serve             starts a server, which runs until the document ends; the block must not end before it answers
    begin="<regex>"   the command is left running once its output matches
    finish="<regex>"  afterwards the command that was left running ends, having written this
    until="<regex>"   the command follows something: it is stopped once its output matches
    expect="<regex>"  the output must match
    fails             the commands must fail
    setup="<sh>"      run first, in the same shell: what the reader has by then
    file="<path>"     the block is the content of a file; written before what follows is run
    same-as="<path>"  the block must be a part of this file of the repository, line by line
    swift="<head>"    type-checked as Swift, inside a function with these parameters; "" checks it as a file
    check="<sh>"      the block is written to $SAMPLE, and the command must succeed
    skip="<reason>"   not run, and why
"""

import dataclasses
import pathlib
import re
import shlex

ROOT = pathlib.Path(__file__).resolve().parents[2]
KNOWN = {"serve", "begin", "finish", "until", "expect", "fails", "setup", "file", "same-as", "swift", "check", "skip"}
# Languages whose blocks are shown and not run: output, and what a client sends or receives.
SHOWN = {"text", "json"}


@dataclasses.dataclass
class Sample:
    document: pathlib.Path
    line: int
    language: str
    text: str
    options: dict

    @property
    def place(self):
        return f"{self.document.relative_to(ROOT)}:{self.line}"


def documents():
    """Every document for users, README first."""
    found = [ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
    return [*found, *sorted((ROOT / "docs").glob("**/*.md")), *sorted((ROOT / "Examples").glob("*/README.md"))]


def samples(document):
    """The fenced blocks of a document, in their order."""
    lines, found, options = document.read_text().splitlines(), [], {}
    index = 0
    while index < len(lines):
        line = lines[index]
        if comment := re.fullmatch(r"\s*<!-- sample: (.*) -->", line):
            options = parse(comment[1], f"{document}:{index + 1}")
        elif fence := re.fullmatch(r"(\s*)```(\w*)", line):
            end = next(number for number in range(index + 1, len(lines)) if lines[number].strip() == "```")
            text = "\n".join(row.removeprefix(fence[1]) for row in lines[index + 1 : end]) + "\n"
            found.append(Sample(document, index + 1, fence[2], text, options))
            index, options = end, {}
        elif line.strip():
            if options:
                raise ValueError(f"{document}:{index + 1}: a sample's comment stands before no fenced block")
        index += 1
    return found


def parse(text, place):
    options = {}
    for word in shlex.split(text):
        name, _, value = word.partition("=")
        if name not in KNOWN:
            raise ValueError(f"{place}: '{name}' is unknown; expected one of {', '.join(sorted(KNOWN))}")
        options[name] = value
    return options


def indented(document):
    """The places of indented blocks, which no test would see."""
    places, fenced, before = [], False, ""
    for number, line in enumerate(document.read_text().splitlines(), 1):
        if line.strip().startswith("```"):
            fenced = not fenced
        elif not fenced and line.startswith("    ") and not before.strip():
            places.append(f"{document.relative_to(ROOT)}:{number}")
        before = line
    return places
