"""What several test files share."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(autouse=True)
def seeded():
    """Every test draws the same numbers, whatever ran before it."""
    torch.manual_seed(0)


@pytest.fixture
def threads(request):
    """torch's number of threads in a test, by an indirect parameter."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data, or a skip."""
    folder = Path(os.environ.get("SPIKETRAIN_SHARED_DATA", ROOT.parent / "shared" / "data"))
    if not (folder / "unpack.py").is_file():
        pytest.skip(f"real data are not at hand: set SPIKETRAIN_SHARED_DATA (looked in {folder})")
    return folder


@pytest.fixture(scope="session")
def cifar10_root(shared_data, tmp_path_factory) -> Path:
    """A data root with the official CIFAR-10."""
    root = tmp_path_factory.mktemp("cifar10")
    subprocess.run([sys.executable, str(shared_data / "unpack.py"), "cifar10", str(root)], check=True, capture_output=True)
    return root
