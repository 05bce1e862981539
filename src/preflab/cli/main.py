"""The entry point: find the command, parse its flags, run it, and end with one sentence and an exit code if it fails.

Imports are lazy: `preflab --help` loads neither torch nor tyro.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module

from preflab import __version__
from preflab.errors import ConfigError, PreflabError, nearest


@dataclass(frozen=True)
class Command:
    """Where a command lives."""

    config: str
    """Class in `config/commands.py`."""
    function: str
    """module:function under `preflab.cli`."""
    summary: str


COMMANDS = {
    "compare": Command("Compare", "compare:run", "compare methods on one task, and write a report"),
    "sweep": Command("Sweep", "sweep:run", "one method at several values of its settings, side by side"),
    "compare table": Command(
        "CompareTable", "compare_table:run", "ways to align a model of a table's rows, judged on rows held out"
    ),
    "train sft": Command("TrainSFT", "train:sft", "supervised fine-tuning on demonstrations"),
    "train reward": Command("TrainReward", "train:reward", "a Bradley–Terry reward model from preference pairs"),
    "train dpo": Command("TrainDPO", "train:preference", "direct preference optimisation on preference pairs"),
    "train cdpo": Command(
        "TrainConservativeDPO", "train:preference", "DPO that believes a share of the labels flipped"
    ),
    "train rdpo": Command("TrainRobustDPO", "train:preference", "DPO, unbiased under a known share of flipped labels"),
    "train ipo": Command("TrainIPO", "train:preference", "a squared loss: the margin stays finite"),
    "train hinge": Command("TrainHinge", "train:preference", "a hinge on the margin (SLiC with a reference)"),
    "train exo": Command("TrainEXO", "train:preference", "reverse KL to the smoothed label"),
    "train aot": Command("TrainAOT", "train:preference", "margins that dominate the reference's (optimal transport)"),
    "train ln-dpo": Command("TrainLengthNormalisedDPO", "train:preference", "DPO on log-ratios per token"),
    "train f-dpo": Command("TrainFDPO", "train:preference", "DPO under another divergence than the reverse KL"),
    "train dpop": Command("TrainDPOP", "train:preference", "DPO that keeps the chosen response likely"),
    "train nca": Command("TrainNCA", "train:preference", "noise-contrastive alignment"),
    "train bco-pair": Command("TrainBCOPair", "train:preference", "binary classifier optimisation, on pairs"),
    "train sppo": Command("TrainSPPO", "train:preference", "self-play preference optimisation, hard labels"),
    "train apo-zero": Command("TrainAPOZero", "train:preference", "chosen up, rejected down, each anchored"),
    "train apo-down": Command("TrainAPODown", "train:preference", "both down, rejected further"),
    "train simpo": Command("TrainSimPO", "train:preference", "mean log-probabilities, no reference"),
    "train cpo": Command("TrainCPO", "train:preference", "DPO without a reference, plus cross-entropy"),
    "train orpo": Command("TrainORPO", "train:preference", "cross-entropy plus log-odds, no reference"),
    "train sum": Command("TrainWeightedSum", "train:preference", "a weighted sum of these losses: DPO + 0.1 × SFT"),
    "train kto": Command("TrainKTO", "train:unpaired", "Kahneman–Tversky optimisation, on marked responses"),
    "train bco": Command("TrainBCO", "train:unpaired", "binary classifier optimisation, on marked responses"),
    "train ppo": Command("TrainPPO", "train:online", "proximal policy optimisation against a reward"),
    "train grpo": Command("TrainGRPO", "train:online", "group relative policy optimisation"),
    "train dr-grpo": Command("TrainDrGRPO", "train:online", "GRPO without its length and difficulty biases"),
    "train dapo": Command("TrainDAPO", "train:online", "GRPO with a higher clip and dynamic sampling"),
    "train rloo": Command("TrainRLOO", "train:online", "REINFORCE, each response against the others of its prompt"),
    "train reinforce": Command(
        "TrainReinforce", "train:online", "REINFORCE, each response against the others of its rollout"
    ),
    "train online-dpo": Command("TrainOnlineDPO", "train:online", "pairs from the current policy, ranked by a reward"),
    "train iterative-dpo": Command(
        "TrainIterativeDPO", "train:online", "rounds of sampling pairs and training on them"
    ),
    "pairs": Command("MakePairs", "pairs:run", "preference pairs from a policy and a reward, as JSONL"),
    "generate": Command("Generate", "generate:run", "responses of a model to prompts"),
    "evaluate": Command("Evaluate", "evaluate:run", "KL, reward, win rate and diversity of a model"),
    "table fit": Command("TableFit", "table:fit", "a language model that writes rows like those of a table"),
    "table align": Command("TableAlign", "table_align:run", "PPO, GRPO or DPO on what discriminators say of its rows"),
    "table sample": Command("TableSample", "table:sample", "rows of a fitted table, under conditions"),
    "table score": Command("TableScore", "table_score:run", "figures of synthetic rows, next to two bounds"),
    "explain": Command("Explain", "explain:run", "a method's formula, settings and metrics, and what should worry"),
    "sheet": Command("VoteSheet", "sheet:run", "a blind sheet of two arms' responses, for people to vote on"),
    "report": Command("Report", "report:run", "draw the report of a study, also while it runs, or of a score again"),
}

GROUPS = {"train": "method", "table": "command"}
"""First words that are no command alone, and what the second word says."""

EXAMPLES = """examples:
  preflab compare reviews --out runs/demo
  preflab train dpo --model gpt2 --data pairs.jsonl --loss.beta 0.1 --out runs/dpo
  preflab generate runs/dpo/model --prompt "The plot was"
  preflab table fit table.csv --target class --out runs/table
"""


def main(arguments: list[str] | None = None) -> None:
    """Run `preflab ARGUMENTS` and exit."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in given
    given = [argument for argument in given if argument != "--debug"]
    # Threads that soon stop spinning: a core busy with something else costs a run its share, not a factor of ten.
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    try:
        _run(given)
    except PreflabError as error:
        if debug:
            raise
        _stop(str(error), error.exit_code)
    except BrokenPipeError:  # `preflab … | head`: the reader has seen enough
        os._exit(0)
    except KeyboardInterrupt:
        if debug:
            raise
        _stop("interrupted; the same command goes on from the last checkpoint", 130)
    except Exception as error:
        if debug:
            raise
        message = " ".join(str(error).split())[:300]
        _stop(f"this is a fault of preflab: {type(error).__name__}: {message}; run again with --debug and report it", 1)


def _run(given: list[str]) -> None:
    if not given or given[0] in ("-h", "--help", "help"):
        print(_overview())
        return
    if given[0] == "--version":
        print(f"preflab {__version__}")
        return
    if given[0] in GROUPS and (len(given) == 1 or given[1] in ("-h", "--help")):
        print(_overview(given[0]))
        return
    name = command_of(given)
    given = given[len(name.split()) :]
    command = COMMANDS[name]
    from preflab.cli.flags import parse

    config = parse(name, command.config, given)
    module, function = command.function.split(":")
    getattr(import_module(f"preflab.cli.{module}"), function)(config)


def command_of(words: Sequence[str]) -> str:
    """The command that the first words name: the longest name that matches.

    Raises:
        ConfigError: there is none; with the nearest.

    >>> command_of(["compare", "table", "--quick"]), command_of(["compare", "reviews"])
    ('compare table', 'compare')
    """
    for name in (" ".join(words[:2]), words[0]):
        if name in COMMANDS:
            return name
    if words[0] in GROUPS:
        members = {name.split()[1] for name in COMMANDS if name.startswith(f"{words[0]} ")}
        raise ConfigError(f'there is no {GROUPS[words[0]]} "{words[1]}"; {nearest(words[1], members)}')
    known = {name.split()[0] for name in COMMANDS}
    raise ConfigError(f'there is no command "{words[0]}"; {nearest(words[0], known)}')


def _overview(group: str = "") -> str:
    shown = {name: command for name, command in COMMANDS.items() if name.startswith(f"{group} " if group else "")}
    words = f"{group} {GROUPS[group].upper()}" if group else "COMMAND"
    width = max(map(len, shown)) + 2
    lines = [f"  {name:<{width}}{command.summary}" for name, command in shown.items()]
    return "\n".join(
        [
            f"usage: preflab {words} [flags]      (preflab {__version__})",
            "",
            *lines,
            "",
            "`preflab COMMAND --help` lists its flags. --config FILE.yaml (repeatable) sets any of them, flags go",
            "above it; --debug shows a traceback.",
            "",
            EXAMPLES.rstrip(),
        ]
    )


def _stop(message: str, code: int) -> None:
    printable = "".join(c if c.isprintable() or c == "\n" else f"\\x{ord(c):02x}" for c in message)
    print(f"preflab: {printable}", file=sys.stderr)
    sys.exit(code)
