"""Remove from this environment what no stage, service or command of ours reads: a third of the image `ops`.

Packages ship their tests, the sources of what they compiled, and notebooks. Python's compiled code stays: a container
with a read-only file system could not keep what it compiles again, and each start would take seconds longer.
"""

import shutil
import sys
import sysconfig
from pathlib import Path

SOURCES = "*.pyx *.pxd *.pyi *.pxi *.c *.cc *.cpp *.h *.hpp *.cuh *.ipynb *.f *.f90 *.cmake *.a".split()
UNUSED = [
    "jupyterlab_plotly",
    "setuptools*",  # of torch, to build extensions
    "_distutils_hack",
    "distutils-precedence.pth",
    "phonenumbers/geodata",  # where a number is registered
    "phonenumbers/carrierdata",
    "phonenumbers/tzdata",
    "plotly/graph_objs/**/__pycache__",  # some are loaded, of thousands
    "plotly/validators/**/__pycache__",
    "pyarrow/*flight*",  # a server of tables
    "pyarrow/*s3*",  # another cloud's storage
    "pyarrow/include",
    "pyarrow/libarrow_python*.so",  # under the name that is loaded, and two more
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
assert packages.is_relative_to(sys.prefix) and sys.prefix != sys.base_prefix, "expected the Python of an environment"
unused = [path for pattern in UNUSED for path in packages.glob(pattern)]
# numpy.testing, which others import, takes something from there; Evidently's tests are those of data.
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
