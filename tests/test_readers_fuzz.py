"""Any bytes: a reader returns events that fit, or says in one line what is wrong. `benchmarks/readers_fuzz.py` does it at length."""

import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spiketrain.data.readers import READERS, read, write
from spiketrain.data.types import EVENT
from spiketrain.errors import UserError
from tests.test_readers import WRITERS, recording

HEADERS = {
    ".aedat": (b"#!AER-DAT2.0\r\n", b"#!AER-DAT3.1\r\n#Format: RAW\r\n#!END-HEADER\r\n", b"#!AER-DAT4.0\r\n"),
    ".aedat4": (b"#!AER-DAT4.0\r\n\x20\x00\x00\x00",),
    ".raw": (b"% evt 2.0\n% end\n", b"% evt 3.0\n% geometry 64x64\n% end\n"),
    ".dat": (b"% Version 2\n\x0c\x08",),
    ".npy": (b"\x93NUMPY\x01\x00",),
    ".npz": (b"PK\x03\x04",),
    ".mat": (b"MATLAB 5.0 MAT-file".ljust(124) + b"\x00\x01IM",),
    ".h5": (b"\x89HDF\r\n\x1a\n",),
}


def check(file):
    try:
        found = read(file)
    except UserError as error:
        assert str(file) in str(error) and "byte" in str(error) and "\n" not in str(error)
        return
    assert found.events.dtype == EVENT and (not len(found) or found.events["p"].max() <= 1)
    if found.size and len(found):
        assert found.events["x"].max() < found.size[0] and found.events["y"].max() < found.size[1]


@pytest.mark.parametrize("ending", sorted(READERS))
@settings(max_examples=150, deadline=None, derandomize=True)
@given(data=st.data())
def test_arbitrary_bytes(ending, data):
    header = data.draw(st.sampled_from((b"", *HEADERS.get(ending, ()))))
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / f"a{ending}"
        file.write_bytes(header + data.draw(st.binary(max_size=400)))
        check(file)


@pytest.mark.parametrize("ending", sorted(WRITERS))
@settings(max_examples=100, deadline=None, derandomize=True)
@given(data=st.data())
def test_whole_files_with_some_bytes_changed(ending, data):
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / f"a.{ending}"
        WRITERS[ending](file, recording(60))
        content = bytearray(file.read_bytes())
        for _ in range(data.draw(st.integers(1, 4))):
            content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
        file.write_bytes(content[: data.draw(st.integers(0, len(content)))] if data.draw(st.booleans()) else content)
        check(file)


def test_what_was_written_is_what_the_peers_of_the_maker_look_for(tmp_path):
    """The nodes by which other AEDAT 4 readers find the stream of events."""
    write.write_aedat4(tmp_path / "a.aedat4", recording(10))
    content = (tmp_path / "a.aedat4").read_bytes()
    assert b'<node name="outInfo"' in content and b'key="compression"' in content
