"""A sample of benchmarks/death.py, which has more kinds of it and kills fifty times."""

import os
import re
import subprocess
import sys

import pytest
from conftest import ROOT


@pytest.mark.skipif(sys.platform != "linux", reason="processes are forked and file systems mounted")
def test_a_sample_of_deaths_is_survived():
    kinds = ["training", "checkpoint"] + ([] if os.geteuid() else ["full-disk"])
    words = ["benchmarks/death.py", "--only", ",".join(kinds), "--count", "2", "--seed", "7"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, *words], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.findall(r"^(\S+) +2 of 2 survived", done.stdout, re.MULTILINE) == kinds
    assert "kills: 4 of 4 survived" in done.stdout
