"""A sample of benchmarks/death.py: killed, terminated, out of space, forbidden to write."""

import os
import re
import subprocess
import sys

import pytest
from conftest import ROOT


@pytest.mark.skipif(sys.platform != "linux", reason="processes are forked and file systems mounted")
def test_a_sample_of_deaths_is_survived():
    kinds = ["training", "evaluation", "checkpoint", "sigterm"] + ([] if os.geteuid() else ["full-disk", "read-only"])
    words = ["benchmarks/death.py", "--only", ",".join(kinds), "--count", "3", "--seed", "7"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, *words], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    if "left out" not in done.stdout:
        assert re.findall(r"^(\S+) +3 of 3 survived", done.stdout, re.MULTILINE) == kinds
    assert "kills: 9 of 9 survived" in done.stdout
