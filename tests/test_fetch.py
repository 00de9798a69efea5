"""Fetching on request, from a server of the test's own."""

import functools
import hashlib
import http.server
import threading
import zipfile
from dataclasses import replace

import numpy as np
import pytest

from spiketrain.data import event_sets
from spiketrain.data.event_sets import SETS, load
from spiketrain.data.fetch import Archive
from spiketrain.data.readers.write import write_bin
from spiketrain.data.types import EVENT, Recording
from spiketrain.errors import UserError


@pytest.fixture
def published(tmp_path, monkeypatch):
    """N-MNIST with two recordings a class, its archives on a local server; the data root."""
    served = tmp_path / "served"
    served.mkdir()
    for part in ("Train", "Test"):
        with zipfile.ZipFile(served / f"{part}.zip", "w") as archive:
            for digit in range(10):
                events = np.zeros(50, EVENT)
                events["t"], events["x"], events["y"] = np.arange(50), digit, np.arange(50) % 34
                write_bin(tmp_path / "one.bin", Recording(events, (34, 34)))
                archive.write(tmp_path / "one.bin", f"{part}/{digit}/00001.bin")
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=served)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_address[1]}"
    archives = [
        Archive(f.name, hashlib.md5(f.read_bytes()).hexdigest(), f"{address}/{f.name}") for f in sorted(served.iterdir(), reverse=True)
    ]
    monkeypatch.setitem(event_sets.SETS, "nmnist", replace(SETS["nmnist"], archives=tuple(archives)))
    yield tmp_path / "data"
    server.shutdown()


def test_a_set_is_fetched_when_it_is_asked_for(published):
    with pytest.raises(UserError, match="add --download"):
        load("nmnist", published, steps=2, size=None)
    data = load("nmnist", published, steps=2, size=None, download=True)
    assert len(data.train) == len(data.test) == 10
    assert len(load("nmnist", published, steps=2, size=None).train) == 10  # and it is there from then on


def test_an_archive_that_is_not_the_published_one_is_refused(published, monkeypatch):
    entry = event_sets.SETS["nmnist"]
    wrong = (replace(entry.archives[0], md5="0" * 32), *entry.archives[1:])
    monkeypatch.setitem(event_sets.SETS, "nmnist", replace(entry, archives=wrong))
    with pytest.raises(UserError, match=r"Train\.zip cannot be fetched"):
        load("nmnist", published, steps=2, size=None, download=True)
    assert not (published / entry.home).exists()


def test_what_a_killed_unpacking_left_is_not_taken_for_the_set(published):
    left = published / ".N-MNIST.part" / "Train" / "0"
    left.mkdir(parents=True)
    (left / "99.bin").write_bytes(b"half")
    assert len(load("nmnist", published, steps=2, size=None, download=True).train) == 10


def test_no_network_is_one_line(published, monkeypatch):
    entry = event_sets.SETS["nmnist"]
    nowhere = tuple(replace(a, url="http://127.0.0.1:9/absent.zip") for a in entry.archives)
    monkeypatch.setitem(event_sets.SETS, "nmnist", replace(entry, archives=nowhere))
    with pytest.raises(UserError, match=r"cannot be fetched .*get it by hand") as caught:
        load("nmnist", published, steps=2, size=None, download=True)
    assert "\n" not in str(caught.value)


def test_a_set_without_a_public_address_says_so(tmp_path):
    with pytest.raises(UserError, match="no public address"):
        load("ncars", tmp_path, download=True)
