"""The command line, `spiketrain train | eval | bench | …`. A mistake of the user's is one line and exit status 2."""

import argparse
import difflib
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from spiketrain import cli_analyze, cli_bench, cli_data, processes
from spiketrain.allocator import keep_memory, return_memory
from spiketrain.errors import UserError, one_line, unknown
from spiketrain.recipes import FIELDS, RECIPES, Recipe, field_type, get
from spiketrain.signals import Stopped


class Wide(argparse.HelpFormatter):
    """Help in lines of 110 characters."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=34, width=110)


class Parser(argparse.ArgumentParser):
    """argparse whose errors are a `UserError`, with the nearest flag where one is unknown."""

    def error(self, message: str) -> NoReturn:
        raise UserError(message.replace("argument ", "").replace("invalid choice", "unknown"))

    def parse(self, arguments: Sequence[str]) -> argparse.Namespace:
        """All of the arguments, or a `UserError`."""
        found, rest = self.parse_known_args(arguments)
        if rest:
            flags = [flag for action in self._flags_of(found) for flag in action.option_strings]
            near = difflib.get_close_matches(rest[0].split("=")[0], flags, n=1, cutoff=0.5)
            raise UserError(f"unknown argument {rest[0]!r}" + (f": did you mean {near[0]!r}?" if near else ": see --help"))
        return found

    def _flags_of(self, found: argparse.Namespace) -> list[argparse.Action]:
        chosen: Parser = getattr(found, "parser", self)
        return chosen._actions


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _add_recipe_flags(parser: argparse.ArgumentParser) -> None:
    """A flag for every field of `Recipe`, under the heading of its group."""
    groups: dict[str, Any] = {}
    for name, field in FIELDS.items():
        if name == "name":
            continue
        meta, kind = field.metadata, field_type(name)
        if meta["group"] not in groups:
            groups[meta["group"]] = parser.add_argument_group(meta["group"])
        options: dict[str, Any] = {"dest": f"field_{name}", "default": None, "help": meta["help"]}
        if kind is bool:
            options["action"] = argparse.BooleanOptionalAction
        else:
            options["type"] = _strings if kind is tuple else kind
            options["metavar"] = "|".join(meta["choices"]) if meta["choices"] else {int: "N", float: "X", str: "NAME", tuple: "A,B"}[kind]
        groups[meta["group"]].add_argument(_flag(name), **options)


def _strings(text: str) -> tuple[str, ...]:
    return tuple(part for part in text.split(",") if part)


def _changes(options: argparse.Namespace) -> dict[str, Any]:
    changes = {n: v for n in FIELDS if (v := getattr(options, f"field_{n}", None)) is not None}
    allow(changes.get("model"))
    return changes


def allow(model: str | None) -> None:
    """Loads a model file that was named on the command line."""
    from spiketrain import models

    if model and models.FILE in model:
        models.load_file(model)


def _add_places(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data-root", metavar="DIR", help="where data sets lie (default: environment SPIKETRAIN_DATA, else ./data)")
    parser.add_argument("--device", default="auto", metavar="NAME", help="auto, cpu, cuda, cuda:1 … (default: auto)")


def recipe_of(words: Sequence[str], code: bool = True) -> Recipe:
    """The recipe that `spiketrain train` would run with these words; `UserError` where they are wrong, or name a file with code unless
    `code` may be run."""
    from spiketrain import models

    if {"-h", "--help"} & set(words):
        raise UserError("--help is not of a recipe")
    options = _parser().parse(["train", *words])
    if options.recipe is None:
        raise UserError("a recipe's name comes first (spiketrain list recipes shows all)")
    if not code and models.FILE in (options.field_model or ""):
        raise UserError(f"{options.field_model} is a file with code: it is run only where the command line itself names it")
    return get(options.recipe).but(**_changes(options))


def _train(options: argparse.Namespace) -> int:
    from spiketrain import checkpoint
    from spiketrain.train import train

    if options.recipe is None and options.resume is None:
        raise UserError("which recipe? Name one, as in: spiketrain train digits (spiketrain list recipes shows all)")
    if options.resume and options.recipe is None:
        recipe = Recipe.from_dict(checkpoint.load(checkpoint.latest(Path(options.resume))).recipe)
    else:
        recipe = get(options.recipe)
    recipe = recipe.but(**_changes(options))
    if recipe.memory != "speed":
        return_memory()
    made = train(
        recipe,
        data_root=options.data_root,
        output=options.output,
        device=options.device,
        resume=options.resume,
        into=options.into,
        download=options.download,
        tensorboard=options.tensorboard,
        checkpoint_every=options.checkpoint_every,
        skip_bad_steps=options.skip_bad_steps,
        graph=options.graph,
        quiet=options.quiet,
    )
    if processes.leads():
        finish(made)
        if options.analyze:
            print(cli_analyze.write(made.folder, data_root=options.data_root, device=options.device)[1][1])
    return 0


def finish(record: Any) -> None:
    """What a run ends with: accuracy, firing rate, the picture, and the record's path as the last line."""
    from spiketrain.report import draw_curve

    rates = record.firing_rates.values()
    rate = f"{sum(rates) / len(rates):.3f} spikes per neuron and step, mean over {len(rates)} layers" if rates else "none: no neurons"
    try:
        picture = str(draw_curve(record, record.folder / "curve.png"))
    except OSError as error:  # the run is done all the same
        picture = f"cannot be written ({error.strerror})"
    print(f"test accuracy  {record.test_accuracy:.2f} % (last epoch; training took {record.train_seconds:.1f} s)")
    print(f"firing rate    {rate}")
    print(f"curve          {picture}")
    print(record.path)


def _eval(options: argparse.Namespace) -> int:
    from spiketrain.trained import open_record, unrolled

    allow(options.model)
    trained = open_record(options.record, options.data_root, options.device)
    result = trained.evaluate()
    said = f"the record says {trained.record.test_accuracy:.2f} %"
    print(f"test accuracy  {result.accuracy:.2f} % of {len(trained.data.test):,} samples ({said})")
    for steps, accuracy in enumerate(result.by_step, 1):
        print(f"  first {steps:2d} of {len(result.by_step)} steps  {accuracy:6.2f} %")
    for name, rate in result.rates.items():
        print(f"  firing rate of {name:<24} {rate:.4f}")
    if options.unrolled:
        accuracy, gap = unrolled(trained)
        print(f"unrolled to binary spikes  {accuracy:.2f} %; in float64 the logits of a batch differ by at most {gap:.1e}")
    return 0


def _verify(options: argparse.Namespace) -> int:
    from spiketrain.verify import verify

    allow(options.model)
    for line in verify(options.record, options.data_root, options.device):
        print(line)
    print(f"{options.record}: accepted")
    return 0


def _report(options: argparse.Namespace) -> int:
    from spiketrain import tables
    from spiketrain.report import load_records, write_curves

    folder = Path(options.results)
    records = load_records(folder)
    if not records:
        raise UserError(f"--results {folder}: no record there (<recipe>-s<seed>.json, or folders with a record.json)")
    if options.html:
        from spiketrain.page import write_page

        print(f"{options.html}: {write_page(records, Path(options.html)) / 1e6:.2f} MB, {len(records)} records")
    if options.csv:
        print(f"{options.csv}: {write_curves(records, Path(options.csv))} lines, one an epoch")
    for file in options.into:
        tables.write(Path(file), folder)
    if not (options.into or options.html or options.csv):
        print(tables.short(folder))
    return 0


def _first_line(thing: Any) -> str:
    return ((thing.__doc__ or "").strip().splitlines() or [""])[0]


def _list(options: argparse.Namespace) -> int:
    if options.what not in LISTS:
        raise unknown("list", options.what, LISTS)
    rows = LISTS[options.what]()
    width = max(len(name) for name, _ in rows)
    for name, text in rows:
        print(f"{name:<{width}}  {text}")
    return 0


def _recipes() -> list[tuple[str, str]]:
    from spiketrain.recipes import seed

    ours = [(n, _first_line(f)) for n, f in RECIPES.items() if not n.startswith("seed/")]
    old = {row.name: f"the older table's row: {row.accuracy:.2f} % there (best epoch on the test set)" for row in seed.rows()}
    return ours + [(n, old.get(n, "the same for 200 epochs")) for n in RECIPES if n.startswith("seed/")]


def _models() -> list[tuple[str, str]]:
    from spiketrain.models import MODELS

    return [(n, _first_line(f)) for n, f in MODELS.items()]


def _neurons() -> list[tuple[str, str]]:
    from spiketrain.neurons import NEURONS

    return [(n, _first_line(c)) for n, c in NEURONS.items()]


def _surrogates() -> list[tuple[str, str]]:
    from spiketrain.functional import SURROGATES

    return [(n, f"g(x) = {s.formula}, α = {s.alpha:g}") for n, s in SURROGATES.items()]


def _data() -> list[tuple[str, str]]:
    from spiketrain.data.event_sets import SETS
    from spiketrain.data.imagenet import STREAMED
    from spiketrain.data.images import IMAGE_SETS

    streams = [(name, entry.title) for name, entry in STREAMED.items()]
    return [(n, e.title) for n, e in IMAGE_SETS.items()] + streams + [(n, f"{e.title} (events)") for n, e in SETS.items()]


LISTS: dict[str, Callable[[], list[tuple[str, str]]]] = {
    "recipes": _recipes,
    "models": _models,
    "neurons": _neurons,
    "surrogates": _surrogates,
    "data": _data,
}


def _parser() -> Parser:
    about = "Spiking neural networks by back-propagation: train, test and compare them."
    parser = Parser(prog="spiketrain", description=about, formatter_class=Wide)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=Parser)

    train = commands.add_parser("train", help="train a network by a recipe", allow_abbrev=False, formatter_class=Wide)
    train.usage = "spiketrain train RECIPE [--epochs N] [--seed N] [--any-field VALUE] …"
    train.description = "Train a network by a recipe; every flag below the first group changes one field of it."
    train.add_argument("recipe", nargs="?", metavar="RECIPE", help="its name: spiketrain list recipes")
    train.add_argument("--output", default="runs", metavar="DIR", help="where the run's folder is made (default: runs)")
    train.add_argument("--into", metavar="DIR", help="the run's own folder; begun before, it is continued; done, nothing is run")
    train.add_argument("--resume", metavar="RUN", help="continue the run in this folder, to the same numbers as without a stop")
    every = "write a checkpoint after every N epochs, or every so much time (90s, 5m, 1h) and epoch (default: 1)"
    train.add_argument("--checkpoint-every", default="1", metavar="N|TIME", help=every)
    train.add_argument("--skip-bad-steps", action="store_true", help="leave out steps whose loss is not finite, where a run else stops")
    train.add_argument("--graph", action="store_true", help="on a GPU: replay forward and backward passes as CUDA graphs")
    train.add_argument("--download", action="store_true", help="fetch the data set if it is absent")
    train.add_argument("--tensorboard", metavar="DIR", help="write logs for TensorBoard there")
    train.add_argument("--analyze", action="store_true", help="then look inside the network, as `spiketrain analyze` does")
    train.add_argument("--quiet", action="store_true", help="no progress, only the results")
    _add_places(train)
    _add_recipe_flags(train)
    train.set_defaults(run=_train, parser=train)

    test = commands.add_parser("eval", help="test a trained network again", allow_abbrev=False, formatter_class=Wide)
    test.add_argument("record", metavar="RECORD", help="a run's folder, or the record.json in it")
    test.add_argument("--unrolled", action="store_true", help="test a network of ilif neurons as one of binary spikes, too")
    _add_places(test)
    test.set_defaults(run=_eval, parser=test)

    check = commands.add_parser("verify", help="check a record: weights, data, counts, accuracy", allow_abbrev=False, formatter_class=Wide)
    check.add_argument("record", metavar="RECORD", help="a run's folder, or the record.json in it, with the weights beside it")
    _add_places(check)
    check.set_defaults(run=_verify, parser=check)

    for command in (test, check):
        command.add_argument("--model", metavar="FILE.py:FUNCTION", help="the model's own file, where it has one: its code is run")

    tables = commands.add_parser("report", help="tables, a page, or CSV from records", allow_abbrev=False, formatter_class=Wide)
    tables.add_argument("--results", default="results", metavar="DIR", help="folder of records *.json (default: results)")
    tables.add_argument("--into", nargs="+", default=[], metavar="FILE", help="write the tables between the markers of these files")
    tables.add_argument("--html", metavar="FILE", help="write one self-contained page: sortable table, plots, every run's story")
    tables.add_argument("--csv", metavar="FILE", help="write every run's learning curve, a line an epoch")
    tables.set_defaults(run=_report, parser=tables)

    inside = cli_analyze.add(commands, allow_abbrev=False, formatter_class=Wide)
    inside.set_defaults(run=cli_analyze.run, parser=inside)

    several = cli_bench.add(commands, allow_abbrev=False, formatter_class=Wide)
    several.set_defaults(run=cli_bench.run, parser=several)

    data = cli_data.add(commands, allow_abbrev=False, formatter_class=Wide)
    data.set_defaults(run=cli_data.run, parser=data)

    names = commands.add_parser("list", help="what there is, by name", allow_abbrev=False, formatter_class=Wide)
    names.add_argument("what", metavar="WHAT", help=" | ".join(LISTS))
    names.set_defaults(run=_list, parser=names)
    return parser


def _stop(number: int, frame: object) -> NoReturn:
    raise Stopped(number)


def guarded(program: str, run: Callable[[], int]) -> int:
    """What `run` returns, or 2 for a mistake of the user's, 130 or 143 when stopped, 1 when other processes are gone.

    Each is said in one line; of several processes that have the same to say, one says it.
    """
    previous = signal.signal(signal.SIGTERM, _stop)
    keep_memory()
    try:
        return run()
    except Stopped as stopped:
        return _said(program, str(stopped), stopped.status)
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except processes.GroupLost as error:
        print(f"{program}: {error}; the last checkpoint is kept", file=sys.stderr)
        return 1
    except BrokenPipeError:  # whoever read the output, a pager or head, has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (UserError, OSError) as error:  # OSError: a file that cannot be had, where nothing is known but what the system says
        return _said(program, one_line(error), 2)
    finally:
        signal.signal(signal.SIGTERM, previous)


def _said(program: str, text: str, status: int) -> int:
    if text and processes.first_to_say(text):
        print(f"{program}: {text}", file=sys.stderr)
    return status


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit status, as `guarded` says."""

    def run() -> int:
        options = _parser().parse(sys.argv[1:] if arguments is None else arguments)
        chosen: Callable[[argparse.Namespace], int] = options.run
        return chosen(options)

    return guarded("spiketrain", run)


if __name__ == "__main__":
    sys.exit(main())
