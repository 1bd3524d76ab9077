"""Remove files from this environment that no stage, service or command reads: a third of the image `ops`.

Packages ship tests, sources of compiled code, and notebooks. Python's bytecode is kept: a container with a read-only
file system could not cache it, so each start would take seconds longer.
"""

import shutil
import sys
import sysconfig
from pathlib import Path

SOURCES = "*.pyx *.pxd *.pyi *.pxi *.c *.cc *.cpp *.h *.hpp *.cuh *.ipynb *.f *.f90 *.cmake *.a".split()
UNUSED = [
    "jupyterlab_plotly",
    "setuptools*",  # torch needs it only to build extensions
    "_distutils_hack",
    "distutils-precedence.pth",
    "phonenumbers/geodata",  # places of registration
    "phonenumbers/carrierdata",
    "phonenumbers/tzdata",
    "plotly/graph_objs/**/__pycache__",  # thousands of files, of which few are loaded
    "plotly/validators/**/__pycache__",
    "pyarrow/*flight*",  # a table server
    "pyarrow/*s3*",  # storage of another cloud
    "pyarrow/include",
    "pyarrow/libarrow_python*.so",  # loaded under another name
    "pyarrow/libarrow_python*.so.*.*.*",
    "evidently/legacy/ui/assets",
    "matplotlib/mpl-data/sample_data",
    "sklearn/datasets/data",
    "sklearn/datasets/images",
    "statsmodels/datasets/*/*.csv",
    "statsmodels/datasets/*/src",
    "torch/include",
    "torch/share",
    "onnx/backend/test",
]

packages = Path(sysconfig.get_path("purelib"))
assert packages.is_relative_to(sys.prefix) and sys.prefix != sys.base_prefix, "expected to run in a virtual environment"
unused = [path for pattern in UNUSED for path in packages.glob(pattern)]
# numpy.testing, which other packages import, needs the former; Evidently's "tests" are tests of data.
needed = (packages / "numpy" / "_core" / "tests", packages / "evidently")
unused += [
    path
    for name in ("tests", "test")
    for path in packages.glob(f"*/**/{name}")
    if path.is_dir() and not any(path.is_relative_to(folder) for folder in needed)
]
unused += [path for pattern in SOURCES for path in packages.rglob(pattern)]
for path in unused:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
