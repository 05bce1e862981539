"""The trained reward model: its optimum, its zero, and that other programs read the same scores from its files."""

from __future__ import annotations

import copy
import math
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from enumerable import END_ID, FIRST_LETTER, PAD_ID, letters_policy, reward_model, run_folder
from preflab.cli.main import main
from preflab.config.training import Batch, Optimizer, Reward, RewardLoss
from preflab.data.encode import Encoder, Tree
from preflab.data.pack import pack
from preflab.data.sources import read_pairs
from preflab.data.split import split_by_prompt
from preflab.evaluation.calibration import calibration_of
from preflab.models.load import Policy, load_reward_model, save_model
from preflab.models.scoring import response_scores
from preflab.runs import read_json, read_lines
from preflab.training.reward import centre, reward_figures, scores_of_pairs, train_reward
from tiny import save_tiny, tiny_pairs, write_jsonl

A, B, C, D = range(FIRST_LETTER, FIRST_LETTER + 4)
PROMPT = (C, D)
FAST = Optimizer(learning_rate=0.02, warmup_steps=0)
# Three of four judges prefer a to b.
DIVIDED = [Tree(f"p:{i}", PROMPT, ((A, END_ID), (B, END_ID))) for i in range(3)] + [
    Tree("p:3", PROMPT, ((B, END_ID), (A, END_ID)))
]
# With and without an end token, the pad token's id in the middle, first and last: read by length, all of it counts.
RESPONSES = (
    (A, END_ID),
    (A,),
    (A, PAD_ID, B, END_ID),
    (A, PAD_ID, B),
    (PAD_ID, PAD_ID, B, C, D),
    (A, B, C, D, A, B, C),
)


@pytest.fixture
def trained(tmp_path: Path) -> Policy:
    """Trained for some steps on pairs that prefer a, and centred on them."""
    model = reward_model(tmp_path, letters_policy())
    pairs = [Tree(f"p:{i}", (C,) * (1 + i % 3), ((A,) * (1 + i % 4) + (END_ID,), (B, D, END_ID))) for i in range(8)]
    settings = Reward(epochs=4, batch=Batch(size=4, micro=4), optimizer=FAST, evaluations=1)
    train_reward(model, pairs, settings, run_folder(tmp_path / "run"), seed=0)
    before = copy.deepcopy(model.model.state_dict())
    centre(model, pairs)
    assert all(torch.equal(value, before[name]) for name, value in model.model.state_dict().items())
    assert float(scores_of_pairs(model, pairs).mean()) == pytest.approx(0, abs=1e-5)
    save_model(model, tmp_path / "model")
    return model


@torch.no_grad()
def theirs(folder: Path, ids: list[tuple[int, ...]]) -> list[float]:
    """transformers' own class with its own pooling, on rows padded on the right."""
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    longest = max(map(len, ids))
    padded = torch.tensor([row + (PAD_ID,) * (longest - len(row)) for row in ids])
    mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in ids])
    scores = model(input_ids=padded, attention_mask=mask).logits
    assert scores.shape == (len(ids), 1)
    return list(scores.squeeze(1).tolist())


@torch.no_grad()
def test_transformers_reads_the_same_scores_plus_the_offset(trained: Policy, tmp_path: Path) -> None:
    """One row at a time without padding, and all in a batch; the head on disk is as trained, not shifted."""
    ours = response_scores(load_reward_model(tmp_path / "model").model, pack([Tree("r", PROMPT, RESPONSES)])).tolist()
    offset = trained.model.config.reward_offset
    assert abs(offset) > 0.01
    assert max(ours) - min(ours) > 0.1
    rows = [PROMPT + response for response in RESPONSES]
    expected = pytest.approx([score + offset for score in ours], abs=1e-5)
    assert theirs(tmp_path / "model", rows) == expected
    assert [theirs(tmp_path / "model", [row])[0] for row in rows] == expected


@torch.no_grad()
def test_a_score_is_the_head_at_the_last_response_token_whatever_it_is(trained: Policy) -> None:
    responses = (*RESPONSES, (A, PAD_ID), (A, END_ID, END_ID), (PAD_ID,))
    scores = response_scores(trained.model, pack([Tree("r", PROMPT, responses)])).tolist()
    for score, response in zip(scores, responses, strict=True):
        states = trained.model.base_model(input_ids=torch.tensor([PROMPT + response])).last_hidden_state
        alone = float(trained.model.score(states[0, -1])) - trained.model.config.reward_offset
        assert score == pytest.approx(alone, abs=1e-5)
    assert len({round(score, 5) for score in scores}) == len(responses)


def test_centring_twice_changes_nothing(trained: Policy) -> None:
    pairs = [Tree("p", PROMPT, ((A, END_ID), (B,)))]
    centre(trained, pairs)
    first = trained.model.config.reward_offset
    centre(trained, pairs)
    assert trained.model.config.reward_offset == first


def test_divided_judges_are_met_at_their_log_odds(tmp_path: Path) -> None:
    """s_a − s_b = logit ¾ = ln 3, and the model is then as sure as it is right."""
    model = reward_model(tmp_path, letters_policy())
    settings = Reward(epochs=150, batch=Batch(size=4, micro=4), optimizer=FAST, evaluations=1)
    train_reward(model, DIVIDED, settings, run_folder(tmp_path / "run"), seed=0)
    scores = scores_of_pairs(model, DIVIDED)
    assert (scores[:, 0] - scores[:, 1]).tolist() == pytest.approx([math.log(3)] * 3 + [-math.log(3)], abs=0.02)
    found = calibration_of(scores.numpy(), DIVIDED)
    assert (found.accuracy.mean, found.confidence) == (0.75, pytest.approx(0.75, abs=0.005))
    assert found.error == pytest.approx(0, abs=0.005)


def test_margin_and_centring_are_in_the_trained_loss(tmp_path: Path) -> None:
    model = reward_model(tmp_path, letters_policy())
    scores = scores_of_pairs(model, DIVIDED).tolist()
    expected = [math.log1p(math.exp(-(w - r - 0.7))) + 0.05 * (w + r) ** 2 for w, r in scores]
    settings = Reward(batch=Batch(size=4), optimizer=FAST, evaluations=1, loss=RewardLoss(margin=0.7, centring=0.05))
    run = run_folder(tmp_path / "run")
    train_reward(model, DIVIDED, settings, run, seed=0, log_every=1)
    (line,) = read_lines(run.metrics)
    assert line["loss"] == pytest.approx(sum(expected) / 4, abs=1e-5)
    assert line["margin"] == pytest.approx(sum(w - r for w, r in scores) / 4, abs=1e-5)


def test_held_out_figures_worked_by_hand() -> None:
    found = reward_figures(torch.tensor([[1.2, 0.4], [0.0, 0.0], [-1.0, 2.0]]))
    assert found.loss == pytest.approx([0.371101, math.log(2), math.log1p(math.exp(3))], abs=1e-5)
    assert found.accuracy == [1.0, 0.5, 0.0]
    assert found.margin == pytest.approx([0.8, 0.0, -3.0])


def test_scores_of_pairs_do_not_depend_on_the_batch(trained: Policy) -> None:
    pairs = [Tree(f"p:{i}", PROMPT[: 1 + i % 2], (RESPONSES[i % 6], RESPONSES[(i + 1) % 6])) for i in range(7)]
    whole = scores_of_pairs(trained, pairs)
    assert whole.shape == (7, 2)
    torch.testing.assert_close(scores_of_pairs(trained, pairs, batch_size=2), whole, atol=1e-5, rtol=0)


def test_the_command_writes_and_says_the_calibration(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """The same on the second start, which trains nothing; and it is that of the saved model on the held-out pairs."""
    data, out = write_jsonl(tmp_path / "pairs.jsonl", tiny_pairs(60)), tmp_path / "out"
    command = f"train reward --model {save_tiny(tmp_path / 'base')} --data {data} --out {out} --holdout 0.3"
    said = []
    for _ in range(2):
        main([*command.split(), "--optimizer.learning-rate", "1e-3", "--batch.size", "16"])
        said.append(capfd.readouterr().out)
    assert said[0] == said[1]
    found = read_json(out / "evaluation.json")["calibration"]
    assert f"Calibration error {found['error']:.3f}; 95 % of calibrated models stay below" in said[0]
    assert f" % sure on average, right in {100 * found['accuracy']['mean']:.0f} % of the pairs" in said[0]
    model = load_reward_model(out / "model")
    encoder = Encoder(model.tokenizer, 512, 512)
    rows = split_by_prompt(read_pairs(data).rows, {"train": 0.7, "held out": 0.3}, seed=0)["held out"]
    pairs = encoder.pairs(rows)
    again = calibration_of(scores_of_pairs(model, pairs).numpy(), pairs)
    assert found["pairs"] == len(pairs) > 10
    assert again.error == pytest.approx(found["error"], abs=1e-4)
    assert again.json()["longer_wins"] == found["longer_wins"]
