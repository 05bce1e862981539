"""Models come in float32 with dropout off, a pad token of their own and all their weights, or not at all."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from preflab.data.encode import Encoder
from preflab.errors import ConfigError, StorageError
from preflab.models.load import (
    PAD,
    Policy,
    check_length,
    copy_of,
    load_policy,
    load_reward_model,
    new_reward_model,
    pick_device,
    save_model,
)
from test_encode import gpt2_like
from tiny import save_tiny, tiny_policy

IDS = torch.tensor([[1, 40, 50, 60]])


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("models") / "tiny")


def save_gpt2_like(folder: Path, *, tied: bool, rows: int | None = None, **special: str) -> Path:
    """A GPT-2 whose tokenizer has no pad token, as the Hub has it; dropout on, half precision on disk."""
    tokenizer = gpt2_like(**special)
    config = GPT2Config(
        vocab_size=rows or len(tokenizer),
        n_positions=32,
        n_embd=16,
        n_layer=1,
        n_head=2,
        tie_word_embeddings=tied,
        bos_token_id=0,
        eos_token_id=0,
    )
    torch.manual_seed(0)
    GPT2LMHeadModel(config).to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("special", [{}, {"pad_token": "<|endoftext|>"}])
def test_a_pad_token_of_its_own_is_added(tmp_path: Path, tied: bool, special: dict[str, str]) -> None:
    folder = save_gpt2_like(tmp_path / "m", tied=tied, **special)
    before = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    policy = load_policy(folder)
    model, tokenizer = policy.model, policy.tokenizer
    vocabulary = before.config.vocab_size

    assert tokenizer.pad_token == PAD
    assert tokenizer.pad_token_id == vocabulary != tokenizer.eos_token_id
    assert model.config.pad_token_id == model.generation_config.pad_token_id == tokenizer.pad_token_id
    assert model.config.vocab_size == len(tokenizer) == vocabulary + 1
    for new, old in zip(
        (model.get_input_embeddings(), model.get_output_embeddings()),
        (before.get_input_embeddings(), before.get_output_embeddings()),
        strict=True,
    ):
        torch.testing.assert_close(new.weight[:vocabulary], old.weight)
        torch.testing.assert_close(new.weight[vocabulary], old.weight.mean(0))
    assert (model.get_input_embeddings().weight is model.get_output_embeddings().weight) == tied
    with torch.no_grad():
        torch.testing.assert_close(model(IDS).logits[..., :vocabulary], before.eval()(IDS).logits)
    assert Encoder(tokenizer, 8, 8).response("a")[-1] == tokenizer.eos_token_id

    save_model(policy, tmp_path / "saved")
    again = load_policy(tmp_path / "saved")
    assert again.tokenizer.get_vocab() == tokenizer.get_vocab()
    assert again.tokenizer.pad_token_id == tokenizer.pad_token_id
    torch.testing.assert_close(again.model.state_dict(), model.state_dict())


def test_spare_rows_take_the_pad_token(tmp_path: Path) -> None:
    rows = len(gpt2_like()) + 10
    policy = load_policy(save_gpt2_like(tmp_path / "m", tied=True, rows=rows))
    assert policy.tokenizer.pad_token_id == rows - 10
    assert policy.model.get_input_embeddings().weight.shape[0] == rows


def test_float32_and_no_dropout(tmp_path: Path) -> None:
    policy = load_policy(save_gpt2_like(tmp_path / "m", tied=True))
    assert policy.model.config.resid_pdrop > 0
    assert {parameter.dtype for parameter in policy.model.parameters()} == {torch.float32}
    assert not policy.model.training
    with torch.no_grad():
        assert torch.equal(policy.model(IDS).logits, policy.model(IDS).logits)


@pytest.mark.parametrize("activation", ["gelu_new", "gelu_fast"])
def test_gelu_s_tanh_form_is_one_kernel_and_the_same_function(activation: str, tmp_path: Path) -> None:
    tiny = tiny_policy()
    tiny.model.config.activation_function = activation
    save_model(tiny, tmp_path / "tiny")
    ids = torch.tensor([[3, 1, 4, 1, 5]])
    plain: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "tiny").eval()
    ours = load_policy(tmp_path / "tiny")
    torch.testing.assert_close(ours.model(input_ids=ids).logits, plain(input_ids=ids).logits, rtol=1e-5, atol=1e-6)
    assert {type(block.mlp.act) for block in ours.model.transformer.h} == {torch.nn.GELU}
    save_model(ours, tmp_path / "again")
    assert json.loads((tmp_path / "again" / "config.json").read_text())["activation_function"] == activation


def test_a_model_survives_saving(tiny: Path, tmp_path: Path) -> None:
    policy = load_policy(tiny)
    save_model(policy, tmp_path / "deep" / "copy")
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["copy"]
    with torch.no_grad():
        torch.testing.assert_close(load_policy(tmp_path / "deep" / "copy").model(IDS).logits, policy.model(IDS).logits)


def test_a_reward_model_has_the_policy_s_body_and_a_head_drawn_from_the_seed(tiny: Path, tmp_path: Path) -> None:
    policy, reward = load_policy(tiny), new_reward_model(tiny, seed=3)
    torch.testing.assert_close(reward.model.base_model.state_dict(), policy.model.base_model.state_dict())
    assert reward.model.score.weight.shape == (1, 32)
    assert torch.equal(reward.model.score.weight, new_reward_model(tiny, seed=3).model.score.weight)
    assert not torch.equal(reward.model.score.weight, new_reward_model(tiny, seed=4).model.score.weight)

    reward.model.config.reward_offset = 1.5
    save_model(reward, tmp_path / "reward")
    again = load_reward_model(tmp_path / "reward")
    assert again.model.config.reward_offset == 1.5
    torch.testing.assert_close(again.model.state_dict(), reward.model.state_dict())
    with pytest.raises(ConfigError, match="is a reward model or classifier; name a language model"):
        load_policy(tmp_path / "reward")


def test_a_head_s_spread_is_that_of_its_width(tiny: Path) -> None:
    weights = torch.cat([new_reward_model(tiny, seed=seed).model.score.weight for seed in range(20)])
    assert weights.std().item() == pytest.approx(33**-0.5, rel=0.1)


def broken(source: Path, folder: Path, file: str, change: Any) -> Path:
    shutil.copytree(source, folder)
    change(folder / file)
    return folder


def without_a_block(weights: Path) -> None:
    tensors = load_file(weights)
    del tensors["transformer.h.1.mlp.c_fc.weight"]
    save_file(tensors, weights, metadata={"format": "pt"})


def with_own_code(config: Path) -> None:
    code = {"auto_map": {"AutoConfig": "code.Own", "AutoModelForCausalLM": "code.Own"}, "model_type": "own"}
    config.write_text(json.dumps(json.loads(config.read_text()) | code))
    (config.parent / "code.py").write_text("raise SystemExit('this code ran')")


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("model.safetensors", without_a_block, r"m has no weights for transformer\.h\.1\.mlp\.c_fc\.weight \(1 miss"),
        ("model.safetensors", lambda path: path.write_bytes(path.read_bytes()[:999]), r"can't load the model .*header"),
        ("model.safetensors", lambda path: path.unlink(), r"can't load the model .*no file named model\.safetensors"),
        ("tokenizer.json", lambda path: path.write_text("{"), r"can't load the model"),
        ("config.json", lambda path: path.write_text("{"), r"can't load the model .*not a valid JSON"),
        ("config.json", lambda path: path.unlink(), r"m holds no model \(no config\.json\)$"),
        ("config.json", with_own_code, r"m comes with its own Python code; add --trust-remote-code"),
    ],
)
def test_damaged_folders_are_refused(tiny: Path, tmp_path: Path, file: str, change: Any, message: str) -> None:
    folder = broken(tiny, tmp_path / "m", file, change)
    with pytest.raises(ConfigError, match=message):
        load_policy(folder)


def test_pickled_weights_are_refused(tiny: Path, tmp_path: Path) -> None:
    folder = broken(tiny, tmp_path / "m", "model.safetensors", lambda path: path.unlink())
    torch.save({}, folder / "pytorch_model.bin")
    with pytest.raises(StorageError, match=r"holds pickled weights \(\.bin\)"):
        load_policy(folder)


def test_classifiers_are_no_reward_models(tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"tiny has no weights for score\.weight"):
        load_reward_model(tiny)
    reward = new_reward_model(tiny, seed=0)
    reward.model.config.num_labels = 3
    reward.model.score = torch.nn.Linear(32, 3, bias=False)
    save_model(reward, tmp_path / "classifier")
    with pytest.raises(ConfigError, match="has 3 labels; a reward model has one"):
        load_reward_model(tmp_path / "classifier")


def test_a_copy_moves_no_more() -> None:
    policy = tiny_policy()
    copy = copy_of(policy.model)
    with torch.no_grad():
        before = copy(IDS).logits
        for parameter in policy.model.parameters():
            parameter.add_(1.0)
        assert torch.equal(copy(IDS).logits, before)
    assert not any(parameter.requires_grad for parameter in copy.parameters())


def test_lengths_beyond_the_positions_are_refused() -> None:
    model = tiny_policy(positions=8).model
    check_length(model, 8, "cut")
    with pytest.raises(ConfigError, match="sequences of 9 tokens, but the model has 8 positions; cut"):
        check_length(model, 9, "cut")


def test_devices() -> None:
    assert pick_device("cpu") == torch.device("cpu")
    if not torch.cuda.is_available():
        assert pick_device("auto") == torch.device("cpu")
        with pytest.raises(ConfigError, match="torch sees no CUDA GPU; use --device cpu"):
            pick_device("cuda")
    assert Policy(tiny_policy().model, None).device == torch.device("cpu")
