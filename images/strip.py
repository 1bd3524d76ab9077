"""Remove from this Python what installs packages: a running container has no use for it, and an intruder would."""

import importlib.util
import shutil
import sysconfig
from pathlib import Path

for name in ("pip", "setuptools", "wheel", "pkg_resources", "_distutils_hack", "ensurepip"):
    found = importlib.util.find_spec(name)
    if found and found.origin:
        folder = Path(found.origin).parent
        for one in (folder, *folder.parent.glob(f"{name}-*.dist-info"), *folder.parent.glob(f"{name}-*.egg-info")):
            shutil.rmtree(one)
for folder in {Path(sysconfig.get_path("scripts")), Path("/usr/bin"), Path("/usr/local/bin")}:
    for script in (*folder.glob("pip"), *folder.glob("pip[0-9]*"), *folder.glob("wheel*")):
        script.unlink()
for start in Path("/").glob("usr/**/distutils-precedence.pth"):  # imports _distutils_hack at every start
    start.unlink()
