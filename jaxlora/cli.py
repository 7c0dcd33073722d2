"""The command line: one verb, one function, no logic. `jaxlora --help` imports nothing of JAX."""

import os
import re
import sys
from collections.abc import Callable, Sequence

from absl import flags, logging
from ml_collections import config_flags

from jaxlora.errors import UserError, nearest

USAGE = "usage: jaxlora VERB --config=configs/X.py [--config.a.b=v ...] --workdir=DIR"


def _demo(flag: flags.FlagValues) -> None:
    """the whole idea on a generated cohort: notes in, two adapters, a table out  [--base=HF_DIR]"""
    from jaxlora.demo import demo

    demo(_config(flag), _workdir(flag))


def _prepare(flag: flags.FlagValues) -> None:
    """read tables of notes, split them by patient, write them to DIR for training"""
    from jaxlora.data.prepare import prepare

    prepare(_config(flag), _workdir(flag))


def _train(flag: flags.FlagValues) -> None:
    """train the adapters and the head of a config; goes on where DIR stopped"""
    from jaxlora.pipeline import train_run

    train_run(_config(flag), _workdir(flag))


def _evaluate(flag: flags.FlagValues) -> None:
    """predict a split with the run in DIR and save predictions and metrics  [--split=test --base=HF_DIR]"""
    from jaxlora.pipeline import evaluate_run

    for name, value in evaluate_run(_workdir(flag), flag.split, flag.base or "").items():
        print(f"{name:<16}{value:.4f}" if isinstance(value, float) else f"{name:<16}{value}")


def _predict(flag: flags.FlagValues) -> None:
    """score a table of new notes with the run in DIR  --input=CSV --output=CSV [--id=NAME --text=NAME --base=DIR]"""
    from jaxlora.pipeline import predict_run

    for name in ("input", "output"):
        if not flag[name].value:
            raise UserError(f"--{name} is not set; give the table of notes and the table to write")
    count = predict_run(_workdir(flag), flag.input, flag.output, flag.id, flag.text, flag.base or "")
    print(f"{count} notes scored in {flag.output}")


def _report(flag: flags.FlagValues) -> None:
    """join every evaluated run under DIR into report.md, report.json and figures"""
    from jaxlora.eval.report import report

    print(report(_workdir(flag)))


VERBS: dict[str, Callable[[flags.FlagValues], None]] = {
    "demo": _demo,
    "prepare": _prepare,
    "train": _train,
    "evaluate": _evaluate,
    "predict": _predict,
    "report": _report,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one verb; returns 0, or 2 after one line on standard error for a mistake of the user's."""
    arguments = list(sys.argv if argv is None else argv)[1:]
    if not arguments or arguments[0] in ("--help", "-h", "help"):
        print(_help())
        return 0
    try:
        verb = arguments[0]
        if verb not in VERBS:
            raise UserError(f"no verb {verb!r}{nearest(verb, VERBS)}")
        if {"--help", "-h"} & set(arguments):
            print(f"{USAGE.replace('VERB', verb)}\n  {VERBS[verb].__doc__}")
            return 0
        flag = parse(arguments)
        _quiet_libraries()
        VERBS[verb](flag)
    except UserError as error:
        print(f"jaxlora: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        if error.filename is None:
            raise
        print(f"jaxlora: {error.filename}: {error.strerror}", file=sys.stderr)
        return 2
    except ImportError as error:
        if "gcsfs" not in str(error):
            raise
        print("jaxlora: a path on gs:// needs gcsfs: pip install gcsfs", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\njaxlora: interrupted; `train` goes on from its last checkpoint", file=sys.stderr)
        return 130
    return 0


def _help() -> str:
    verbs = "\n".join(f"  {name:<10}{function.__doc__}" for name, function in VERBS.items())
    return f"{USAGE}\n\n{verbs}\n\nconfigs/ holds one file an experiment; each opens with its exact command."


def parse(arguments: list[str]) -> flags.FlagValues:
    """Reads the arguments from the verb on.

    Raises:
      UserError: a flag, a file or a field of the config that does not exist, or a value of the wrong type.
    """
    flag = flags.FlagValues()
    config_flags.DEFINE_config_file("config", None, "the experiment", lock_config=True, flag_values=flag)
    for name, default, text in (
        ("workdir", None, "the folder that is read and written"),
        ("base", None, "short for --config.base; of a trained run, where its base lies now"),
        ("split", "test", "the split to evaluate"),
        ("input", None, "the table of notes to score"),
        ("output", None, "the table of scores to write"),
        ("id", "id", "the column that names a note"),
        ("text", "text", "the column of the note"),
    ):
        flags.DEFINE_string(name, default, text, flag_values=flag)
    _check_config_exists(arguments)
    sys.argv = ["jaxlora", *arguments]  # config_flags looks for --config.a.b there and nowhere else
    try:
        rest = flag(sys.argv)[2:]
        config = flag.config
        known = getattr(config, "base", None) is not None  # a file that could not be loaded raises here
    except flags.Error as error:
        raise UserError(" ".join(str(error).split())) from None
    except (AttributeError, KeyError) as error:
        raise UserError(_unknown_field(arguments, str(error))) from error
    except (SyntaxError, ImportError, NameError, TypeError, ValueError, OSError) as error:
        raise UserError(f"--config cannot be read: {type(error).__name__}: {' '.join(str(error).split())}") from error
    if rest:
        raise UserError(f"unexpected {rest[0]!r}; every argument after the verb is --name=value")
    if config is not None:
        if not known:
            raise UserError("--config: get_config does not return a config made by jaxlora.config.default()")
        config.base = flag.base or config.base
        for field in ("active", "trainable"):
            config[field] = tuple(name for names in config[field] for name in names.split(","))
    return flag


def _unknown_field(arguments: list[str], message: str) -> str:
    """Says which --config.a.b is unknown; ml_collections says it in three lines and without the whole name."""
    wrong = re.search(r"'(\w+)", message)
    hint = re.search(r'Did you mean "(\w+)"', message)
    for argument in arguments:
        name = argument.split("=")[0].removeprefix("--")
        if name.startswith("config.") and wrong and wrong[1] in name.split("."):
            return f"--{name}: no such field{f'; did you mean {hint[1]!r}?' if hint else ''}"
    return f"--config cannot be read: {' '.join(message.split())}"


def _check_config_exists(arguments: list[str]) -> None:
    given = [
        after if this == "--config" else this.removeprefix("--config=")
        for this, after in zip(arguments, [*arguments[1:], ""], strict=True)
        if this == "--config" or this.startswith("--config=")
    ]
    path = given[0].split(":")[0] if given else ""
    if given and (not path or path.startswith("--")):
        raise UserError("--config is empty; give a file of configs/")
    if given and not os.path.isfile(path):
        folder = os.path.dirname(path) or "."
        present = [name for name in os.listdir(folder) if name.endswith(".py")] if os.path.isdir(folder) else []
        raise UserError(f"--config: no file {path}{nearest(os.path.basename(path), present)}")


def _config(flag: flags.FlagValues):
    if flag.config is None:
        raise UserError("--config is not set; give a file of configs/")
    return flag.config


def _workdir(flag: flags.FlagValues) -> str:
    if not flag.workdir:
        raise UserError("--workdir is not set; give the folder that is to be written")
    return flag.workdir


def _quiet_libraries() -> None:
    """Keeps transformers off the network and off the subject of PyTorch, which is not needed, and Orbax from logging
    what is raised anyway."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    logging.set_verbosity(logging.FATAL)


if __name__ == "__main__":
    sys.exit(main())
