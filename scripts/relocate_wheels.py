"""Make the ROS wheels' exported CMake targets name this machine's Python and NumPy headers.

The wheels carry include folders of the machine that built them. Running it again changes nothing.
"""

import argparse
import re
import sys
import sysconfig
from pathlib import Path

import numpy

FOLDERS = {
    re.compile(r'(?<=[;"])/[^;"]*/include/python3\.\d+(?=[;"])'): sysconfig.get_path("include"),
    re.compile(r'(?<=[;"])/[^;"]*/numpy/_?core/include(?=[;"])'): numpy.get_include(),
}


def relocate(text: str) -> str:
    """The CMake file's text with each foreign include folder replaced by this interpreter's own."""
    for pattern, folder in FOLDERS.items():
        text = pattern.sub(folder, text)
    return text


def main() -> None:
    """Rewrite every CMake file below the virtual environment's `share` that needs it."""
    for file in Path(sys.prefix, "share").rglob("*.cmake"):
        text = file.read_text()
        relocated = relocate(text)
        if relocated != text:
            file.write_text(relocated)
            print(f"{file}: include folders rewritten")


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__).parse_args()
    main()
