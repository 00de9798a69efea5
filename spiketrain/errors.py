"""What a user did wrong, said in one line.

Everything that a user can name wrongly (a flag, a file, a model, a label) ends in a `UserError`. The command line prints
its message and leaves with status 2; from Python it is an ordinary exception. A message names the thing and says what to do.
"""

import difflib
from collections.abc import Iterable

MOST_LISTED = 40


class UserError(ValueError):
    """A mistake of the user's, with a message of one line that names it and says what to do."""


MOST_SHOWN = 600


def one_line(error: BaseException) -> str:
    """An error's message as one line of printable characters, cut where it is very long: names in it may come from anybody's file."""
    text = " ".join(str(error).split())
    text = "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
    return text if len(text) <= MOST_SHOWN else text[: MOST_SHOWN // 2] + " … " + text[-MOST_SHOWN // 2 :]


def unknown(kind: str, name: object, known: Iterable[str]) -> UserError:
    """The error for an unknown name: it lists the known ones (of many, the nearest) and the nearest match.

    >>> str(unknown("neuron", "lf", ["if", "lif", "plif"]))
    "unknown neuron 'lf': did you mean 'lif'? Known: if, lif, plif"
    """
    names = sorted(known)
    lowered = {n.lower(): n for n in names}
    name = str(name)[:200]  # what is longer is no slip of the finger, and comparing it takes long
    near = difflib.get_close_matches(name.lower(), lowered, n=1, cutoff=0.5)
    hint = f" did you mean {lowered[near[0]]!r}?" if near else ""
    if len(names) > MOST_LISTED:
        names = [*difflib.get_close_matches(str(name), names, n=5, cutoff=0), f"… ({len(names)} in all)"]
    return UserError(f"unknown {kind} {name!r}:{hint} Known: {', '.join(names)}")
