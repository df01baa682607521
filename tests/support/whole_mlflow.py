"""A virtual environment with the whole of MLflow, made once and kept beside the base images."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

PACKAGES = ("mlflow==3.17.2", "scikit-learn==1.9.1", "skops==0.16.0", "pandas==3.1.1")


def python_with_mlflow(spare: Path) -> str:
    """Its interpreter; made in ``spare`` where no folder for such things is named."""
    folder = Path(os.environ.get("APPLIANCE_TEST_DATA") or spare)
    said = "\n".join((*PACKAGES, sys.version)).encode()
    final = folder / f"mlflow-{hashlib.sha256(said).hexdigest()[:12]}"
    mark = final / "complete"  # an environment cannot be moved, so it is not made elsewhere first
    if not mark.exists():
        shutil.rmtree(final, ignore_errors=True)
        subprocess.run([sys.executable, "-m", "venv", str(final)], check=True)
        install = [str(final / "bin" / "python"), "-m", "pip", "install", "-q", *PACKAGES]
        subprocess.run(install, check=True)
        mark.touch()
    return str(final / "bin" / "python")
