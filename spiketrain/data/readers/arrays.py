"""Events in containers of arrays: NumPy's `.npy` and `.npz`, MATLAB's `.mat`, HDF5. Nothing in them is unpickled."""

import io
import zipfile
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spiketrain.data.readers.base import EventList, Size, Source
from spiketrain.data.types import Recording

Arrays = Mapping[str, NDArray[Any]]
NAMES = {"t": ("t", "ts", "timestamp", "timestamps"), "x": ("x",), "y": ("y",), "p": ("p", "pol", "polarity")}
"""Column → what it is called in data sets as distributed."""

MILLISECOND = 1000


def read_npy(source: Source, size: Size | None = None) -> Recording:
    """An array `[N,4]` of x, y, polarity, time in ms (DVS-Gesture as tonic distributes it), or a structured one with fields
    t (µs), x, y, p. Raises `UserError` for anything else and for what `EventList` refuses."""
    array = _open(source, lambda: np.load(io.BytesIO(source.data), allow_pickle=False))
    if not isinstance(array, np.ndarray):
        raise source.error(0, "not an .npy file")
    if array.dtype.names:
        return _recording(source, {name: array[name] for name in array.dtype.names}, size)
    if array.ndim != 2 or array.shape[1] != len(NAMES):
        raise source.error(0, f"an array of shape {array.shape}; [N,4] (x, y, polarity, ms) or fields t, x, y, p are expected")
    x, y, p, t = array.T
    return _recording(source, {"x": x, "y": y, "p": p, "t": t * MILLISECOND}, size)


def read_npz(source: Source, size: Size | None = None) -> Recording:
    """Arrays t (µs), x, y, p of one length, as SpikingJelly's `events_np` folders hold them."""

    def arrays() -> dict[str, NDArray[Any]]:
        with zipfile.ZipFile(io.BytesIO(source.data)) as members:
            for member in members.infolist():
                source.packed(member.header_offset, member.file_size, member.compress_size)
        with np.load(io.BytesIO(source.data), allow_pickle=False) as found:
            return {name: found[name] for name in found.files}

    return _recording(source, _open(source, arrays), size)


def read_mat(source: Source, size: Size | None = None) -> Recording:
    """MATLAB variables ts or t (µs), x, y, pol or p, each a vector (UCF101-DVS, HMDB-DVS, ASL-DVS)."""
    import scipy.io

    def arrays() -> dict[str, NDArray[Any]]:
        found = scipy.io.loadmat(io.BytesIO(source.data), variable_names=[n for names in NAMES.values() for n in names])
        return {name: np.asarray(value).reshape(-1) for name, value in found.items() if not name.startswith("__")}

    return _recording(source, _open(source, arrays), size)


def read_h5(source: Source, size: Size | None = None) -> Recording:
    """HDF5 data sets t (µs), x, y, p, in the group `events` or at the root."""
    import h5py

    def arrays() -> dict[str, NDArray[Any]]:
        with h5py.File(io.BytesIO(source.data), "r") as file:
            group = file["events"] if isinstance(file.get("events"), h5py.Group) else file
            wanted = [n for names in NAMES.values() for n in names if isinstance(group.get(n), h5py.Dataset)]
            for name in wanted:
                source.packed(0, group[name].size * group[name].dtype.itemsize, len(source.data))
            return {name: group[name][()] for name in wanted}

    return _recording(source, _open(source, arrays), size)


def _open(source: Source, opener: Any) -> Any:
    """What `opener` returns; an error that names the file for whatever a damaged container raises."""
    from spiketrain.errors import UserError

    try:
        return opener()
    except UserError:
        raise
    except Exception as error:  # every container's library raises what it likes
        reason = (str(error).splitlines() or [type(error).__name__])[0][:120]
        raise source.error(0, f"cannot be opened ({reason}); the file is damaged, or not what its ending says") from error


def _recording(source: Source, arrays: Arrays, size: Size | None) -> Recording:
    columns = []
    lower = {name.lower(): array for name, array in arrays.items()}
    for column, names in NAMES.items():
        found = next((lower[n] for n in names if n in lower), None)
        if found is None:
            raise source.error(0, f"no array {' or '.join(names)} in it (there are: {', '.join(sorted(lower)[:8])})")
        columns.append(_integers(source, column, found))
    lengths = {len(c) for c in columns}
    if len(lengths) != 1:
        raise source.error(0, f"t, x, y and p are of different lengths: {sorted(lengths)}")
    events = EventList(source, len(columns[0]), size)
    t, x, y, p = columns
    if len(p) and p.min() == -1:  # some write −1 for OFF
        p = (p > 0).astype(np.int64)
    events.add(t, x, y, p, lambda i: i)
    return events.done()


def _integers(source: Source, name: str, array: NDArray[Any]) -> NDArray[np.int64]:
    """A vector as int64; an error where it is none, or has values that are not whole numbers."""
    if array.ndim != 1 or array.dtype.kind not in "biuf":
        raise source.error(0, f"{name} is of type {array.dtype} and shape {array.shape}; a vector of numbers is expected")
    if array.dtype.kind == "f" and not (np.isfinite(array).all() and (np.abs(array) < 2**62).all()):
        raise source.error(0, f"{name} has values that are no numbers of a recording")
    if array.dtype.kind == "f" and name != "t" and (array != np.floor(array)).any():
        raise source.error(0, f"{name} has values that are not whole numbers")
    if array.dtype.kind == "u" and len(array) and int(array.max()) >= 2**62:
        raise source.error(0, f"{name} has a value of {int(array.max())}")
    return array.astype(np.int64)
