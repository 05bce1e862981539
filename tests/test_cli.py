"""Every command from outside: what it prints, what it leaves on disk, and how it stops."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from preflab.cli.main import COMMANDS, main
from preflab.data.encode import Encoder, Tree
from preflab.data.pack import pack
from preflab.models.load import load_reward_model
from preflab.models.scoring import response_scores
from preflab.runs import read_json, read_lines
from tiny import save_tiny, tiny_demonstrations, tiny_pairs, tiny_prompts, write_jsonl

SMALL = ["--batch.size", "16", "--epochs", "1", "--optimizer.learning-rate", "1e-3", "--optimizer.warmup-steps", "1"]


@dataclass(frozen=True)
class Ran:
    """What a command said."""

    code: int
    out: str
    err: str


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):  # type: ignore[no-untyped-def]
    """Runs a command in this process, as its own would: no exception may leave `main`."""
    monkeypatch.setenv("COLUMNS", "200")

    def command(*arguments: object) -> Ran:
        code = 0
        try:
            main([str(argument) for argument in arguments])
        except SystemExit as stop:
            code = int(stop.code or 0)
        captured = capfd.readouterr()
        return Ran(code, captured.out, captured.err)

    return command


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models and data that commands read; no test writes here."""
    folder = tmp_path_factory.mktemp("shelf")
    save_tiny(folder / "base")
    save_tiny(folder / "run" / "model")
    save_tiny(folder / "other", vocabulary=380)
    save_tiny(folder / "short", positions=8)
    shutil.copytree(folder / "base", folder / "pickled")
    torch.save({}, folder / "pickled" / "pytorch_model.bin")
    (folder / "pickled" / "model.safetensors").unlink()
    shutil.copytree(folder / "base", folder / "cut")
    whole = (folder / "base" / "model.safetensors").read_bytes()
    (folder / "cut" / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    (folder / "nothing").mkdir()
    (folder / "nothing" / "thesis.txt").write_text("mine")

    write_jsonl(folder / "pairs.jsonl", tiny_pairs(60))
    write_jsonl(folder / "prompts.jsonl", tiny_prompts(60))
    write_jsonl(folder / "demonstrations.jsonl", tiny_demonstrations(60))
    pairs = tiny_pairs(20)
    write_jsonl(folder / "same.jsonl", [pair | {"rejected": pair["chosen"]} for pair in pairs])
    late = [pair | {"chosen": " very good.", "rejected": " very bad."} for pair in pairs]
    write_jsonl(folder / "late.jsonl", late)  # a pair's responses differ at their ends alone
    write_jsonl(folder / "no_prompt.jsonl", [*pairs[:4], pairs[4] | {"prompt": " "}])
    write_jsonl(folder / "two_columns.jsonl", [{"prompt": "a", "choosen": "b", "rejected": "c"}])
    write_jsonl(folder / "kto.jsonl", [{"prompt": "a", "completion": "b", "label": True}])
    write_jsonl(folder / "one.jsonl", pairs[:1])
    write_jsonl(folder / "few.jsonl", pairs[:7])  # one prompt is held out
    write_jsonl(folder / "ratings.jsonl", [{"text": "a", "label": 1}])
    (folder / "broken.jsonl").write_text('{"prompt": "a", "chosen": "b", "rejected": "c"}\n{"prompt": "a" "chosen"}\n')
    (folder / "empty.jsonl").write_text("")
    return folder


# (arguments, exit code, message). SHELF holds models and data, OUT is a new folder's path. One line on stderr each.
TRAIN = "train dpo --model SHELF/base --data SHELF/pairs.jsonl --out OUT"
COMPARE = "compare --base.texts 300 --prompts.train 20 --prompts.validation 5 --prompts.test 5"
REFUSED = [
    ("train dpq", 2, r'there is no method "dpq"; did you mean "dpo"\?'),
    ("comprae", 2, r'there is no command "comprae"; did you mean "compare"\?'),
    ("compare reveiws --out OUT", 2, r'there is no task "reveiws"; did you mean "reviews"\?'),
    ("compare --task dialog --out OUT", 2, r'there is no task "dialog"; did you mean "dialogue"\?'),
    ("compare dialogue --out OUT", 2, r"dialogue needs preference pairs: --data"),
    ("compare dialogue --data SHELF/none.jsonl --out OUT", 3, r"none\.jsonl isn't there"),
    ("compare dialogue --data SHELF/pairs.jsonl --out OUT", 3, r"pairs\.jsonl has 60 usable pairs; .* at least 500"),
    ("compare dialogue --data d --arms ppo-gold --out OUT", 2, r"dialogue has no gold reward; leave that arm out"),
    ("compare --arms sft,dpq --out OUT", 2, r'arms = dpq: there is no arm or stage "dpq"; did you mean "dpo"\?'),
    ("compare --arms dpo+pp0 --out OUT", 2, r'arms = dpo\+pp0: there is no arm or stage "pp0"; did you mean "ppo"\?'),
    ("compare --arms dpo+best-of-n --out OUT", 2, r'"best-of-n" trains nothing, so it can\'t be a stage'),
    ("compare --arms dpo-gold --out OUT", 2, r"dpo learns from pairs, not from a reward; leave -gold out"),
    ("compare --arms dpo --ipo.loss.tau 0.2 --out OUT", 2, r"ipo\.\* has no effect: no arm is ipo; add it to arms, or"),
    ("compare --arms dpo --prompts.policy open --out OUT", 2, r"policy = open has no effect: no arm samples"),
    ("compare dialogue --data d --prompts.policy open --out OUT", 2, r"only the grammar of generated reviews tells"),
    ("compare --data d --prompts.policy judged --out OUT", 2, r"only the grammar of generated reviews tells"),
    ("compare --best-of-n.n 4 --out OUT", 2, r"best_of_n\.\* has no effect: no arm is best-of-n"),
    (
        "compare --arms dpo --chain-reference previous --out OUT",
        2,
        r"chain_reference = previous has no effect: no arm is a chain",
    ),
    ("compare dialogue --data d --arms dpo+grpo-gold --out OUT", 2, r"dialogue has no gold reward; leave that arm out"),
    ("compare --ppo.batch.mini 48 --out OUT", 2, r"ppo\.batch\.mini = 48 does not divide .* try 32"),
    ("compare --base.heads 3 --out OUT", 2, r"base\.width = 128 is no multiple of heads = 3"),
    ("compare --config", 2, r"--config needs a file"),
    ("compare --config SHELF/none.yaml", 2, r"none\.yaml: No such file"),
    (f"{COMPARE} --out SHELF/nothing", 5, r"nothing is not empty and holds no preflab run"),
    (f"{COMPARE} --model SHELF/none --out OUT", 2, r'there is no model ".*none"'),
    (f"{COMPARE} --model SHELF/short --out OUT", 2, r"sequences of 64 tokens, but the model has 8 positions"),
    (f"{COMPARE} --model SHELF/base --dpo.freeze-blocks 3 --out OUT", 2, r"freeze_blocks = 3, but the model has 2"),
    (f"{TRAIN} --batch-size 4", 2, r'there is no flag --batch-size; did you mean "--batch\.size"\?'),
    (f"{TRAIN} --micro_batch_size=4", 2, r'there is no flag --micro-batch-size; did you mean "--batch\.micro"\?'),
    ("compare --ppo.mini-batch-size 4 --out OUT", 2, r'no flag --ppo\.mini-.*; did you mean "--ppo\.batch\.mini"\?'),
    (f"{TRAIN} --loss.beta 0", 2, r"loss\.beta = 0\.0: must be greater than 0"),
    (f"{TRAIN} --freeze-blocks 3", 2, r"freeze_blocks = 3, but the model has 2 blocks"),
    (f"{TRAIN} --data SHELF/none.jsonl", 3, r"none\.jsonl isn't there"),
    (f"{TRAIN} --data SHELF/pairs.jsnl", 3, r'did you mean ".*pairs\.jsonl"'),
    (f"{TRAIN} --data SHELF", 3, r"is a folder; name a \.jsonl"),
    (f"{TRAIN} --data SHELF/empty.jsonl", 3, r"empty\.jsonl: 0 rows"),
    (f"{TRAIN} --data SHELF/broken.jsonl", 3, r"broken\.jsonl:2:16: expected "),
    (f"{TRAIN} --data SHELF/same.jsonl", 3, r"same\.jsonl: 20 of 20 rows: identical chosen and rejected"),
    (f"{TRAIN} --data SHELF/no_prompt.jsonl", 3, r'no_prompt\.jsonl:5: "prompt" is empty'),
    (f"{TRAIN} --data SHELF/two_columns.jsonl", 3, r'"chosen" missing, .*"choosen": did you mean "chosen"'),
    (f"{TRAIN} --data SHELF/prompts.jsonl", 3, r'"chosen" and "rejected" missing'),
    (f"{TRAIN} --data SHELF/kto.jsonl", 3, r"unpaired \(KTO-shaped\)"),
    (
        "train sum --model SHELF/base --data SHELF/pairs.jsonl --out OUT --loss.terms dpo+ipp",
        2,
        r'loss "ipp"; .* "ipo"',
    ),
    ("train kto --model SHELF/base --data SHELF/kto.jsonl --out OUT", 3, r"every label is true; learning needs both"),
    (
        "train kto --model SHELF/base --data SHELF/few.jsonl --out OUT",
        3,
        r"held-out responses answer one prompt, and KTO",
    ),
    ("train kto --model SHELF/base --data SHELF/ratings.jsonl --out OUT", 3, r'"prompt" and "completion" missing'),
    (f"{TRAIN} --data SHELF/one.jsonl", 3, r'"held out" .* is empty: 1 distinct prompts|"train" .* is empty'),
    (f"{TRAIN} --data SHELF/late.jsonl --lengths.response-tokens 2", 3, r"0 pairs left: .*same after cutting"),
    (f"{TRAIN} --model SHELF/none", 2, r'there is no model ".*none": no such folder'),
    (f"{TRAIN} --model no-such-name", 2, r'there is no model "no-such-name"'),
    (f"{TRAIN} --model SHELF/run", 2, r"run holds no model .*; did you mean .*run/model\?"),
    (f"{TRAIN} --model SHELF/nothing", 2, r"nothing holds no model \(no config\.json\)$"),
    (f"{TRAIN} --model SHELF/pickled", 5, r"pickled weights \(\.bin\), which can run code"),
    (f"{TRAIN} --model SHELF/cut", 2, r"can't load the model .*cut"),
    (f"{TRAIN} --model SHELF/short", 2, r"sequences of \d+ tokens, but the model has 8 positions; lower lengths"),
    (f"{TRAIN} --out SHELF/pairs.jsonl", 5, r"pairs\.jsonl is a file; name a folder with --out"),
    (f"{TRAIN} --out SHELF/pairs.jsonl/below", 5, r"can't use .*below: Not a directory"),
    (f"{TRAIN} --out SHELF/nothing", 5, r"nothing is not empty and holds no preflab run"),
    ("train reward --model SHELF/base --data SHELF/demonstrations.jsonl --out OUT", 3, r'"chosen" and "rejected" mi'),
    ("train sft --model SHELF/base --data SHELF/prompts.jsonl --out OUT", 3, r'"response"'),
    (
        "train ppo --model SHELF/base --reward SHELF/base --data SHELF/prompts.jsonl --out OUT",
        2,
        r"base has no weights for score\.weight .*; `preflab train reward` makes a reward model",
    ),
    (
        "train ppo --model SHELF/base --reward x --data SHELF/prompts.jsonl --batch.mini 48 --out OUT",
        2,
        r"batch\.mini = 48 does not divide batch\.size = 128; try 32",
    ),
    ("generate SHELF/base", 2, r"give a prompt: --prompt"),
    ("generate SHELF/base --prompt a --greedy --temperature 0.5", 2, r"leave out --temperature"),
    ("generate SHELF/base --prompt a --greedy --top-k 5", 2, r"leave out .*--top-k and --top-p"),
    ("generate SHELF/base --prompt a --greedy --top-p 0.5", 2, r"leave out .*--top-k and --top-p"),
    ("generate SHELF/base --prompt a --top-p 1.5", 2, r"top_p = 1\.5: must be less than or equal to 1"),
    ("generate SHELF/base --prompt a --stop=", 2, r'stop = "": every text holds an empty string'),
    (
        "generate SHELF/base --prompt a --stop b --stop c",
        2,
        r"--stop is given twice; give it once",
    ),
    ("generate SHELF/base --prompt a --prompt b", 2, r"--prompt is given twice; give it once, with all its values"),
    (f"{COMPARE} --arms dpo --arms=ipo --out OUT", 2, r"--arms is given twice"),
    ("generate SHELF/base --prompt a --temperature 0", 2, r"temperature = 0\.0: must be greater than 0"),
    (
        "generate SHELF/base --prompt a --max-new-tokens 96",
        2,
        r"the model has 96 positions; the longest prompt has 2 tokens: shorten it, or lower --max-new-tokens",
    ),
    ("generate SHELF/base --prompt a --max-new-tokens 4 --out SHELF/pairs.jsonl/x", 5, r"can't write .*pairs\.jsonl/x"),
    ("generate SHELF/base --prompt a --max-new-tokens 4 --out SHELF/nothing", 5, r"can't write .*nothing: Is a dir"),
    ("generate SHELF/none --prompt a", 2, r'there is no model ".*none"'),
    (
        "evaluate SHELF/other --reference SHELF/base --data SHELF/prompts.jsonl --out OUT",
        2,
        r"other and .*base have different tokenizers: no KL between them",
    ),
    (
        "evaluate SHELF/base --reference SHELF/base --data SHELF/prompts.jsonl --out SHELF/nothing "
        "--lengths.response-tokens 4",
        5,
        r"nothing is not empty",
    ),
    ("report SHELF/none", 5, r"none"),
    ("report SHELF/nothing", 5, r"nothing"),
]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(("line", "code", "message"), REFUSED, ids=[line for line, _, _ in REFUSED])
def test_refused(run, shelf: Path, tmp_path: Path, line: str, code: int, message: str) -> None:  # type: ignore[no-untyped-def]
    before = contents(shelf)
    arguments = line.replace("SHELF", str(shelf)).replace("OUT", str(tmp_path / "out")).split()
    ran = run(*arguments)
    assert ran.code == code, ran.err
    assert re.search(message, ran.err.strip(), re.DOTALL), ran.err
    assert ran.err.splitlines()[-1].startswith("preflab: ") or code == 3  # many faults of a file take a line each
    assert ran.out == ""
    assert "Traceback" not in ran.err
    assert "fault of preflab" not in ran.err
    assert not list(tmp_path.iterdir())
    assert contents(shelf) == before


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("train dpo --model m", "(?s)Required options.*--data.*--out"),
        ("train dpo --model m --data d --out o --loss.bta 1", r"(?s)Unrecognized.*--loss\.bta.*--loss\.beta"),
        ("train dpo --model m --data d --out o --seed x", "invalid"),
    ],
)
def test_flags_that_do_not_parse(run, line: str, message: str) -> None:  # type: ignore[no-untyped-def]
    ran = run(*line.split())
    assert ran.code == 2
    assert re.search(message, ran.out + ran.err), ran.err
    assert "Traceback" not in ran.err


def test_debug_shows_the_traceback(shelf: Path, tmp_path: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-m", "preflab", "report", str(shelf / "none"), "--debug"], capture_output=True, text=True
    )
    assert result.returncode != 0
    assert "Traceback" in result.stderr


def test_help_lists_every_command_and_loads_nothing_heavy() -> None:
    code = (
        "import sys, time; began = time.perf_counter(); from preflab.cli.main import main; main(['--help'])\n"
        "seconds = time.perf_counter() - began\n"
        "assert seconds < 2, seconds\n"
        "assert not {'torch', 'transformers', 'tyro', 'matplotlib', 'pandas'} & set(sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    for name, command in COMMANDS.items():
        assert re.search(rf"^  {name} +{re.escape(command.summary)}$", result.stdout, re.MULTILINE)


def test_each_command_has_help_without_torch() -> None:
    code = (
        "import contextlib, io, sys; from preflab.cli.main import COMMANDS, main\n"
        "for name in COMMANDS:\n"
        "    said = io.StringIO()\n"
        "    with contextlib.redirect_stdout(said), contextlib.suppress(SystemExit): main([*name.split(), '--help'])\n"
        "    assert '--config FILE.yaml' in said.getvalue(), name\n"
        "    assert not {'torch', 'transformers'} & set(sys.modules), name\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_a_group_alone_lists_its_methods(run) -> None:  # type: ignore[no-untyped-def]
    ran = run("train")
    assert ran.code == 0
    assert "train dpo" in ran.out
    assert "compare methods" not in ran.out
    assert re.fullmatch(r"preflab \d+\.\d+\.\d+\n", run("--version").out)


def greedy(model: Path, prompts: list[str], max_new_tokens: int) -> list[list[int]]:
    """Greedy continuations by transformers alone."""
    loaded, tokenizer = AutoModelForCausalLM.from_pretrained(model), AutoTokenizer.from_pretrained(model)
    made = []
    for prompt in prompts:
        ids = tokenizer(prompt, return_tensors="pt")
        out = loaded.generate(**ids, max_new_tokens=max_new_tokens, do_sample=False)
        made.append(out[0, ids["input_ids"].shape[1] :].tolist())
    return made


def assert_same_greedy_text(run, model: Path, out: Path) -> None:  # type: ignore[no-untyped-def]
    prompts = ["In film 3 the plot was", "The", "A film whose beginning is long and whose end"]
    ran = run("generate", model, "--greedy", "--max-new-tokens", "12", "--out", out, "--prompt", *prompts)
    assert ran.code == 0, ran.err
    tokenizer = AutoTokenizer.from_pretrained(model)
    for line, ids in zip(read_lines(out), greedy(model, prompts, 12), strict=True):
        assert line["response"] == tokenizer.decode(ids, skip_special_tokens=True)
        assert tokenizer(line["response"], add_special_tokens=False)["input_ids"] or not line["response"]
        assert line["ended"] == (ids[-1] == tokenizer.eos_token_id)


def figures(out: str) -> dict[str, float]:
    found = re.findall(r"^  (.+?)  +(\S+)  \[(\S+), (\S+)\]$", out, re.MULTILINE)
    assert all(float(low) <= float(mean) <= float(high) for _, mean, low, high in found)
    return {name: float(mean) for name, mean, _, _ in found}


def train(run, method: str, shelf: Path, out: Path, *flags: object) -> Ran:  # type: ignore[no-untyped-def]
    """Train twice with one command: the second time finds it done."""
    arguments = ["train", method, "--model", shelf / "base", "--out", out, *flags]
    ran = run(*arguments)
    assert ran.code == 0, ran.err
    assert ran.out.startswith("held out:\n")
    assert ran.out.endswith(f"model: {out / 'model'}\n")
    assert {"config.yaml", "environment.json", "metrics.jsonl", "evaluation.json", "model"} <= {
        path.name for path in out.iterdir()
    }
    written = contents(out)
    again = run(*arguments)
    assert (again.code, again.out) == (0, ran.out)
    assert "is finished already" in again.err
    assert contents(out) == written
    return ran


def test_sft(run, shelf: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    ran = train(run, "sft", shelf, tmp_path / "out", "--data", shelf / "demonstrations.jsonl", *SMALL)
    assert 1 < figures(ran.out)["perplexity"] < 400
    assert "response tokens, which the loss sees" in ran.err
    assert_same_greedy_text(run, tmp_path / "out" / "model", tmp_path / "greedy.jsonl")


def test_dpo(run, shelf: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    flags = ["--data", shelf / "pairs.jsonl", *SMALL, "--epochs", "3", "--log-every", "1"]
    ran = train(run, "dpo", shelf, tmp_path / "out", *flags)
    found = figures(ran.out)
    assert found.keys() == {"loss", "accuracy", "margin"}
    assert found["loss"] < 0.6931
    assert found["accuracy"] > 0.9
    assert found["margin"] > 0
    metrics = read_lines(tmp_path / "out" / "metrics.jsonl")
    assert metrics[0]["loss"] == pytest.approx(0.693147, abs=1e-5)  # at policy = reference, ln 2
    assert_same_greedy_text(run, tmp_path / "out" / "model", tmp_path / "greedy.jsonl")

    before = contents(tmp_path / "out")
    other = run("train", "dpo", "--model", shelf / "base", "--out", tmp_path / "out", *flags, "--loss.beta", "0.5")
    assert other.code == 5
    assert re.search(r"other settings \('beta: 0\.1' there, 'beta: 0\.5' now\); choose another --out", other.err)
    assert contents(tmp_path / "out") == before


def test_the_run_folder_s_config_repeats_the_run(run, shelf: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    flags = ["--data", shelf / "demonstrations.jsonl", *SMALL]
    train(run, "sft", shelf, tmp_path / "first", *flags)
    config = tmp_path / "first" / "config.yaml"
    assert yaml.safe_load(config.read_text())["optimizer"]["learning_rate"] == 1e-3
    assert run("train", "sft", "--config", config, "--out", tmp_path / "second").code == 0
    first, second = (tmp_path / name / "model" / "model.safetensors" for name in ("first", "second"))
    assert first.read_bytes() == second.read_bytes()


def test_reward_then_ppo_then_evaluate(run, shelf: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    reward, ppo = tmp_path / "reward", tmp_path / "ppo"
    ran = train(run, "reward", shelf, reward, "--data", shelf / "pairs.jsonl", *SMALL, "--epochs", "4")
    assert figures(ran.out)["accuracy"] > 0.9

    model = AutoModelForSequenceClassification.from_pretrained(reward / "model")
    assert model.config.num_labels == 1
    ours = load_reward_model(reward / "model")
    encoder = Encoder(ours.tokenizer, 64, 64)
    trees = [Tree("t", encoder.prompt(pair["prompt"]), (encoder.response(pair["chosen"]),)) for pair in tiny_pairs(3)]
    for tree, score in zip(trees, response_scores(ours.model, pack(trees)), strict=True):
        theirs = model(torch.tensor([tree.prompt + tree.responses[0]])).logits.item()
        assert theirs - model.config.reward_offset == pytest.approx(score.item(), abs=1e-5)

    settings = {
        "reward": str(reward / "model"),
        "updates": 3,
        "batch": {"size": 16, "mini": 8},
        "lengths": {"response_tokens": 8},
        "optimizer": {"learning_rate": 1e-3, "warmup_steps": 1},
    }
    file = tmp_path / "ppo.yaml"
    file.write_text(yaml.safe_dump(settings))
    ran = train(run, "ppo", shelf, ppo, "--data", shelf / "prompts.jsonl", "--config", file)
    found = figures(ran.out)
    assert found["kl nats"] > 0
    assert found["reward"] != found["reward of the reference"]
    assert [line["step"] for line in read_lines(ppo / "metrics.jsonl")] == [1, 2, 3]
    assert_same_greedy_text(run, ppo / "model", tmp_path / "greedy.jsonl")

    small = ["--data", shelf / "prompts.jsonl", "--lengths.response-tokens", "8", "--reward", reward / "model"]
    same = run("evaluate", shelf / "base", "--reference", shelf / "base", *small, "--out", tmp_path / "evaluated")
    assert same.code == 0, same.err
    assert re.search(r"KL from the reference \(nats\) +0 \[0, 0\] +0 \[0, 0\]", same.out)
    assert re.search(r"wins against the reference +0\.5 \[0\.5, 0\.5\] +0\.5 \[0\.5, 0\.5\]", same.out)
    points = read_json(tmp_path / "evaluated" / "evaluation.json")["points"]
    assert len(points) == 2
    assert points[0]["rows"]["prompt"] == points[1]["rows"]["prompt"]
    assert len(read_lines(tmp_path / "evaluated" / "samples.jsonl")) == 2 * 60

    moved = run("evaluate", ppo / "model", "--reference", shelf / "base", *small)
    kl = re.search(r"KL from the reference \(nats\) +0 \[0, 0\] +(\S+) ", moved.out)
    assert kl
    assert float(kl[1]) > 0

    # A value model can't start as a reward model that counts tokens differently.
    other = run(
        "train", "ppo", "--model", shelf / "other", "--data", shelf / "prompts.jsonl", "--config", file,
        "--out", tmp_path / "new",
    )  # fmt: skip
    assert other.code == 2
    assert "have different tokenizers, and the value model starts as the reward model" in other.err
    assert not (tmp_path / "new").exists()

    # And a reward model writes no responses.
    assert "is a reward model or classifier" in run("generate", reward / "model", "--prompt", "a").err


def test_generate_prints_json_lines(run, shelf: Path) -> None:  # type: ignore[no-untyped-def]
    arguments = ["generate", shelf / "base", "--prompt", "The plot", "A\x1b[31m", "--max-new-tokens", "6"]
    ran = run(*arguments, "--samples", "2", "--seed", "1")
    lines = [json.loads(line) for line in ran.out.splitlines()]
    assert [line["prompt"] for line in lines] == ["The plot", "The plot", "A\x1b[31m", "A\x1b[31m"]
    assert lines[0]["response"] != lines[1]["response"]
    assert run(*arguments, "--samples", "2", "--seed", "1").out == ran.out
    assert run(*arguments, "--samples", "2", "--seed", "2").out != ran.out


def test_generate_stops_at_texts_and_leaves_them_out(run, shelf: Path) -> None:  # type: ignore[no-untyped-def]
    arguments = ["generate", shelf / "base", "--prompt", "The plot", "A film", "--samples", "20"]
    arguments += ["--max-new-tokens", "12"]
    free = [json.loads(line) for line in run(*arguments).out.splitlines()]
    stopped = [json.loads(line) for line in run(*arguments, "--stop", "an", "e").out.splitlines()]
    cut = [re.split("an|e", line["response"], maxsplit=1) for line in free]
    assert [line["response"] for line in stopped] == [parts[0] for parts in cut]
    assert [line["ended"] for line in stopped] == [
        len(parts) == 2 or line["ended"] for parts, line in zip(cut, free, strict=True)
    ]
    assert 5 < sum(len(parts) == 2 for parts in cut) < 40


def test_generate_s_warps_are_those_of_transformers(run, shelf: Path) -> None:  # type: ignore[no-untyped-def]
    """A penalty as theirs, greedily; one token left to sample is the likeliest one."""
    arguments = ["generate", shelf / "base", "--prompt", "The plot", "--max-new-tokens", "8"]

    def said(*flags: str) -> str:
        return str(json.loads(run(*arguments, *flags).out)["response"])

    model, tokenizer = (
        kind.from_pretrained(shelf / "base") for kind in (AutoModelForCausalLM, AutoTokenizer)
    )  # fmt: skip
    ids = tokenizer("The plot", return_tensors="pt")
    found = []
    for penalty in (1.0, 5.0):
        out = model.generate(**ids, max_new_tokens=8, do_sample=False, repetition_penalty=penalty)
        found.append(tokenizer.decode(out[0, ids["input_ids"].shape[1] :], skip_special_tokens=True))
        assert said("--greedy", "--repetition-penalty", str(penalty)) == found[-1]
    assert found[0] != found[1]
    assert said("--top-k", "1") == said("--top-p", "0.0001") == said("--greedy") != said()


def test_special_tokens_in_data_are_trained_on_as_text(run, shelf: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    rows = [row | {"response": " It ends.<|end|> Or not."} for row in tiny_demonstrations(30)]
    data = write_jsonl(tmp_path / "data.jsonl", rows)
    ran = train(run, "sft", shelf, tmp_path / "out", "--data", data, *SMALL)
    tokenizer = AutoTokenizer.from_pretrained(shelf / "base")
    length = len(Encoder(tokenizer, 64, 64).response(rows[0]["response"]))
    supervised = re.search(r"which the loss sees: (\d+) of", ran.err)
    assert supervised
    assert int(supervised[1]) % length == 0
    assert length > 9


def test_what_is_cut_is_counted_and_said(run, shelf: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    flags = ["--data", shelf / "demonstrations.jsonl", *SMALL, "--lengths.response-tokens", "3"]
    ran = train(run, "sft", shelf, tmp_path / "out", *flags)
    assert "responses that lost their end: 60" in ran.err
    assert read_json(tmp_path / "out" / "evaluation.json")["counts"]["responses that lost their end"] == 60
