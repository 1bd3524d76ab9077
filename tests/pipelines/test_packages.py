"""Compiled pipelines as they are uploaded."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from distilrank.config import load
from pipelines import packages
from tests.clusters import CONFIG, REGISTRY

ROOT = Path(__file__).parents[2]


def test_compiling_elsewhere_gives_the_same_digest() -> None:
    code = (
        "import sys; from pathlib import Path; from distilrank.config import load;"
        "from pipelines import packages;"
        "print(packages.compile_package('distill', load(Path(sys.argv[1]), [sys.argv[2]]), scheduled=True).digest)"
    )
    elsewhere = subprocess.run(
        [sys.executable, "-c", code, str(CONFIG), REGISTRY], cwd=ROOT, capture_output=True, text=True, check=True
    )
    here = packages.compile_package("distill", load(CONFIG, [REGISTRY]), scheduled=True)
    assert elsewhere.stdout.strip() == here.digest
