"""Fail unless every installed package has the version that the constraints pin: `pinned.py CONSTRAINTS`.

An unpinned requirement would make the images differ from day to day.
"""

import re
import sys
from importlib.metadata import distributions
from pathlib import Path

# GPU builds of torch pin these libraries exactly.
PINNED_BY_TORCH = re.compile(r"nvidia-.*|cuda-.*|triton")


def normalize(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


lines = Path(sys.argv[1]).read_text(encoding="utf-8").splitlines()
pins = {normalize(pin): version for pin, _, version in (line.partition("==") for line in lines if "==" in line)}
unpinned = {
    f"{normalize(package.name)}=={package.version}"
    for package in distributions(path=[path for path in sys.path if path.startswith(sys.prefix)])
    if package.version.partition("+")[0] != pins.get(normalize(package.name))
    and not PINNED_BY_TORCH.fullmatch(normalize(package.name))
}
if unpinned:
    sys.exit(f"{sys.argv[1]}: does not pin {', '.join(sorted(unpinned))}")
