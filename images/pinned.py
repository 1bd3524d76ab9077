"""Fail unless everything installed beside this Python is what the constraints name: `pinned.py CONSTRAINTS`.

Without it, a requirement that nobody pinned would make tomorrow's image another one than today's.
"""

import re
import sys
from importlib.metadata import distributions
from pathlib import Path

# Builds of torch for GPUs pin their libraries themselves, to the last digit.
OF_TORCH = re.compile(r"nvidia-.*|cuda-.*|triton")


def name(written: str) -> str:
    return re.sub(r"[-_.]+", "-", written).lower()


lines = Path(sys.argv[1]).read_text(encoding="utf-8").splitlines()
pins = {name(pin): version for pin, _, version in (line.partition("==") for line in lines if "==" in line)}
loose = {
    f"{name(one.name)}=={one.version}"
    for one in distributions(path=[path for path in sys.path if path.startswith(sys.prefix)])
    if one.version.partition("+")[0] != pins.get(name(one.name)) and not OF_TORCH.fullmatch(name(one.name))
}
if loose:
    sys.exit(f"{sys.argv[1]}: does not pin {', '.join(sorted(loose))}")
