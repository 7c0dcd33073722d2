"""The flags that a verb can have: how they are defined, read, and told by `--help`."""

import dataclasses
import os
import re
import sys
from collections.abc import Callable

from absl import flags
from ml_collections import config_flags

from jaxlora.errors import UserError, nearest


@dataclasses.dataclass(frozen=True)
class Flag:
    """One flag: how it is defined, its default, and the words of `--help`."""

    define: Callable
    default: object
    help: str


FLAGS = {
    "workdir": Flag(flags.DEFINE_string, "", "the folder of the run"),
    "base": Flag(flags.DEFINE_string, "", "the Hugging Face directory of the base, if not the one it was trained with"),
    "allow_base_mismatch": Flag(flags.DEFINE_boolean, False, "take a base or a tokenizer that it was not trained with"),
    "profile": Flag(flags.DEFINE_boolean, False, "trace updates 3 to 5 into WORKDIR/profile"),
    "split": Flag(flags.DEFINE_string, "test", "the split to evaluate"),
    "input": Flag(flags.DEFINE_string, "", "a table of notes: CSV, JSON lines or Parquet"),
    "output": Flag(flags.DEFINE_string, "", "what to write"),
    "id": Flag(flags.DEFINE_string, "id", "the column that names a note"),
    "text": Flag(flags.DEFINE_string, "text", "the column of the note"),
    "prompt": Flag(flags.DEFINE_string, "", "a text to go on with; printed"),
    "new_tokens": Flag(flags.DEFINE_integer, 128, "tokens to add at most"),
    "temperature": Flag(flags.DEFINE_float, 0.0, "0 takes the most probable token"),
    "top_p": Flag(flags.DEFINE_float, 1.0, "sample among the tokens that together have this probability"),
    "seed": Flag(flags.DEFINE_integer, 0, "of everything that is drawn"),
    "adapter": Flag(flags.DEFINE_string, "", "the PEFT directory"),
    "name": Flag(flags.DEFINE_string, "clinical", "what the adapter is called here"),
    "adapters": Flag(flags.DEFINE_list, [], "which adapters, instead of all active ones"),
    "combine": Flag(flags.DEFINE_string, "cat", "several to one: cat (exact), linear or svd"),
    "weights": Flag(flags.DEFINE_list, [], "a weight for each adapter"),
    "tables": Flag(flags.DEFINE_string, "", "mimic3, mimic4, or hybrid: the public demo with public notes"),
    "patients": Flag(flags.DEFINE_integer, 1000, "how many to generate; MIMIC-III has 46520"),
    "notes": Flag(flags.DEFINE_string, "sparse", "four short notes an admission, or full: 35 as long as real ones"),
    "source": Flag(flags.DEFINE_string, "", "of hybrid: the folder of mimiciii-demo-1.4 and of the visit notes"),
    "full": Flag(flags.DEFINE_boolean, False, "count the tables of hundreds of millions of rows too"),
    "smallest": Flag(flags.DEFINE_integer, 20, "patients whose notes have a word that is told, at the least"),
    "topology": Flag(flags.DEFINE_string, "", "a TPU slice, such as v5e:2x4"),
    "hbm_gib": Flag(flags.DEFINE_float, 0.0, "memory of a device in GiB, if not what its chip has"),
    "search": Flag(flags.DEFINE_boolean, False, "look for the setting with the least time of an update that fits"),
    "rank": Flag(flags.DEFINE_integer, 0, "of --combine=svd"),
    "table": Flag(flags.DEFINE_string, "", "2, 3 or 4: which table of the paper"),
    "tasks": Flag(flags.DEFINE_list, [], "which tasks, instead of all: pmv, mor, los, diag, proc"),
    "rows": Flag(flags.DEFINE_list, [], "which rows, instead of all"),
    "seeds": Flag(flags.DEFINE_integer, 1, "runs that each cell is the mean of"),
    "scale": Flag(flags.DEFINE_string, "full", "full, or demo: a generated cohort and small bases"),
}


@dataclasses.dataclass(frozen=True)
class Verb:
    """One verb: what it runs, the flags it needs, and those it knows beside."""

    run: Callable[[flags.FlagValues], int | None]
    needs: tuple[str, ...]
    knows: tuple[str, ...] = ()


def help_of(name: str, verb: Verb) -> str:
    """Returns what `jaxlora VERB --help` prints."""
    lines = [f"usage: jaxlora {name} {' '.join(map(_shown, verb.needs))}".rstrip(), verb.run.__doc__]
    for flag in (*verb.needs, *verb.knows):
        text = "the experiment, of configs/; --config.a.b=v sets a field" if flag == "config" else FLAGS[flag].help
        default = FLAGS[flag].default if flag != "config" else None
        lines.append(f"  {_shown(flag):<34}{text}{f' ({default})' if default not in (None, '', [], False) else ''}")
    return "\n".join(lines)


def _shown(name: str) -> str:
    return f"--{name.replace('_', '-')}" + ("" if FLAGS.get(name, FLAGS["workdir"]).default is False else "=...")


def parse(verb: Verb, arguments: list[str]) -> flags.FlagValues:
    """Reads the arguments of a verb.

    Args:
      arguments: from the verb's name on.

    Raises:
      UserError: a flag, a file or a field of the config that does not exist, a value of the wrong type, or a flag that
        is missing.
    """
    flag = flags.FlagValues()
    has_config = "config" in (*verb.needs, *verb.knows)
    if has_config:
        config_flags.DEFINE_config_file("config", None, "the experiment", lock_config=True, flag_values=flag)
        _check_config_exists(arguments)
    for name in (*verb.needs, *verb.knows):
        if name != "config":
            FLAGS[name].define(name, FLAGS[name].default, FLAGS[name].help, flag_values=flag)
    sys.argv = ["jaxlora", *map(_underscored, arguments)]  # config_flags looks for --config.a.b there and nowhere else
    try:
        rest = flag(sys.argv)[2:]
        config = flag.config if has_config else None
        known = getattr(config, "base", None) is not None  # a file that could not be loaded raises here
    except flags.Error as error:
        raise UserError(" ".join(str(error).split())) from None
    except (AttributeError, KeyError) as error:
        raise UserError(_unknown_field(arguments, str(error))) from error
    except (SyntaxError, ImportError, NameError, TypeError, ValueError, OSError) as error:
        raise UserError(f"--config cannot be read: {type(error).__name__}: {' '.join(str(error).split())}") from error
    if rest:
        raise UserError(f"unexpected {rest[0]!r}; every argument after the verb is --name=value")
    for name in verb.needs:
        if flag[name].value in (None, ""):
            remedy = "give a file of configs/" if name == "config" else f"it is {FLAGS[name].help}"
            raise UserError(f"--{name} is not set; {remedy}")
    if config is not None:
        if not known:
            raise UserError("--config: get_config does not return a config made by jaxlora.config.default()")
        config.base = (flag.base if "base" in flag else "") or config.base
        for field in ("active", "trainable"):
            config[field] = tuple(name for names in config[field] for name in names.split(","))
    return flag


def _underscored(argument: str) -> str:
    """`--top-p=0.9` as absl spells it; the fields of a config are left alone."""
    name, equals, value = argument.partition("=")
    return argument if name.startswith("--config") else name.replace("-", "_").replace("__", "--", 1) + equals + value


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
