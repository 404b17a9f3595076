"""Checks what a Dockerfile takes from the repository: container.py <Dockerfile> <executable>

The files that it copies exist, its first stage installs the packages that ./run installs, and the server takes its options.
libraries.py checks what the last stage installs.
"""

import pathlib
import re
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]


def installed(stage):
    """The packages of the first `apt-get install` of a stage."""
    words = re.search(r"apt-get install (.*?)(?:&&|\n\w|\Z)", stage.replace("\\\n", " "), re.S)[1].split()
    return {word for word in words if not word.startswith("-")}


def main():
    text = pathlib.Path(sys.argv[1]).read_text()
    build = text.split("\nFROM ")[0]
    wanted = set(re.search(r"build_packages=\((.*)\)", (ROOT / "Scripts/setup.sh").read_text())[1].split())
    problems = [f"the build installs {sorted(installed(build))}; ./run installs {sorted(wanted)}"] if installed(build) != wanted else []
    problems += [f"there is no '{path}' to copy" for path in re.findall(r"^COPY ([^-\s]\S*) ", text, re.M) if not (ROOT / path).exists()]
    ignored = (ROOT / ".dockerignore").read_text().split()
    problems += [f".dockerignore lacks '{name}'" for name in [".build", ".venv", "parley-data"] if name not in ignored]
    help_text = subprocess.run([sys.argv[2], "help", "serve"], capture_output=True, text=True, check=True).stdout
    problems += [f"serve has no option {option}" for option in re.findall(r'"(--[a-z-]+)"', text) if option not in help_text]
    if problems:
        sys.exit("\n".join(problems))


if __name__ == "__main__":
    main()
