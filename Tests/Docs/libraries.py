"""Compares the Debian packages that a text names with those that an executable's libraries belong to.

    libraries.py <file> <executable>      of a Dockerfile, what its last stage installs counts
"""

import pathlib
import re
import subprocess
import sys


def run(*words):
    return subprocess.run(words, check=True, capture_output=True, text=True).stdout


def needed(executable):
    """The packages of the libraries that the executable itself asks for; Swift's are linked into a release build."""
    paths = dict(re.findall(r"(\S+) => (\S+)", run("ldd", executable)))
    packages = set()
    for name in re.findall(r"\(NEEDED\).*\[(.*)\]", run("readelf", "-d", executable)):
        path = paths.get(name, "")
        if path.startswith(("/lib", "/usr/lib")) and not re.match(r"libc\.|libm\.|libswift|ld-", name):
            packages.add(run("dpkg", "-S", str(pathlib.Path(path).resolve())).split(":")[0])
    return packages


def main():
    text = pathlib.Path(sys.argv[1]).read_text().split("FROM ")[-1]
    named = set(re.findall(r"\blib[a-z]+[0-9][\w.-]*|\blib\w+-0-2", text))
    expected = needed(pathlib.Path(sys.argv[2]).resolve())
    if named != expected:
        sys.exit(f"the text names {sorted(named)}; the executable needs {sorted(expected)}")


if __name__ == "__main__":
    main()
