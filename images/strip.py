"""Remove package installers from this Python: a running container needs none, and an intruder could use them."""

import importlib.util
import shutil
import sysconfig
from pathlib import Path

for name in ("pip", "setuptools", "wheel", "pkg_resources", "_distutils_hack", "ensurepip"):
    spec = importlib.util.find_spec(name)
    if spec and spec.origin:
        folder = Path(spec.origin).parent
        for path in (folder, *folder.parent.glob(f"{name}-*.dist-info"), *folder.parent.glob(f"{name}-*.egg-info")):
            shutil.rmtree(path)
for folder in {Path(sysconfig.get_path("scripts")), Path("/usr/bin"), Path("/usr/local/bin")}:
    for script in (*folder.glob("pip"), *folder.glob("pip[0-9]*"), *folder.glob("wheel*")):
        script.unlink()
for hook in Path("/").glob("usr/**/distutils-precedence.pth"):  # imports _distutils_hack whenever Python starts
    hook.unlink()
