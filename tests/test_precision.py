"""The three precisions: fp32, bf16 under autocast, bf16 weights with float32 masters."""

from __future__ import annotations

import copy
import math
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from preflab.config.commands import Generate, TrainDPO
from preflab.config.preference import DPO
from preflab.config.training import Batch, Optimizer, Precision
from preflab.data.encode import Tree
from preflab.data.pack import pack
from preflab.errors import ConfigError
from preflab.losses import masked_sum
from preflab.models import head as heads
from preflab.models import precision, tree_check
from preflab.models.load import Policy, copy_of, load_policy, load_reward_model, new_reward_model, save_model
from preflab.models.precision import has_bf16, precision_of, work_in, working
from preflab.models.reference import space_of
from preflab.models.scoring import response_logits, response_logprobs, response_scores
from preflab.rollouts.sampler import sample
from preflab.runs import RunFolder, read_json, read_lines
from preflab.training.optimizer import Stepper
from preflab.training.preference import pair_logprobs, train_preference
from test_layouts import OBJECTIVES, OPTIONS, PAIRS, VOCABULARY, drawn, gradients, laid_out, plain_logprobs, unpadded
from tiny import save_tiny, tiny_policy

COARSE: list[Precision] = ["bf16-autocast", "bf16"]
EVERY: list[Precision] = ["fp32", *COARSE]
CPU = torch.device("cpu")

needs_bf16 = pytest.mark.skipif(not has_bf16(CPU), reason="this processor has no bf16 instructions")


@cache
def ordinary(name: str) -> Any:
    """A small model with weights as transformers draws them: of a wild one bf16 loses more by itself."""
    wider = {"n_embd": 128, "n_head": 4} if name == "gpt2" else {"hidden_size": 128, "intermediate_size": 192}
    config = transformers.AutoConfig.for_model(name, **(OPTIONS[name] | wider | {"tie_word_embeddings": True}))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = transformers.AutoModelForCausalLM.from_config(config).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() > 1:
                    parameter.copy_(torch.randn_like(parameter) * 0.02)
    return model


def at_work(model: Any, name: Precision) -> Any:
    """A copy of the model that works in this precision."""
    return work_in(copy.deepcopy(model), name)


def in_float64(model: Any) -> Any:
    """The same weights."""
    return work_in(copy.deepcopy(model), "fp32").double()


@needs_bf16
@pytest.mark.parametrize("precision", COARSE)
@pytest.mark.parametrize("name", ["gpt2", "llama", "qwen2", "gemma2"])
def test_each_gradient_is_within_two_percent_of_the_plain_path_in_float64(name: str, precision: Precision) -> None:
    model = at_work(ordinary(name), precision)
    exact = in_float64(model)
    for objective in ("dpo", "kto", "sft", "grpo"):
        loss_of, trees = OBJECTIVES[objective]
        expected = gradients(exact, loss_of(plain_logprobs(exact, trees)))
        everything = torch.stack([value.norm() for value in expected.values()]).norm()
        batch = pack(trees)
        for layout, head in (("tree", "whole"), ("tree", "made again in chunks"), ("flat", "kept in chunks")):
            with laid_out(layout, head):
                logprobs = response_logprobs(model, batch)
                assert logprobs.dtype == torch.float32
                found = gradients(model, loss_of(unpadded(logprobs, batch)))
            assert found.keys() == expected.keys()
            for part, value in expected.items():
                error = (found[part].double() - value).norm() / max(value.norm(), 1e-3 * everything)
                assert error <= 2e-2, (objective, layout, part, float(error))
                assert error > 1e-6, "nothing was in bf16"


@needs_bf16
@pytest.mark.parametrize("precision", COARSE)
def test_many_tokens_do_not_wear_down_the_gradients_of_norms_and_embeddings(precision: Precision) -> None:
    """Torch sums them in bf16 on a CPU: 4 % off over 1300 tokens."""
    model = at_work(ordinary("gpt2"), precision)
    trees = drawn(seed=4, shapes=[(20, (40,))] * 33)
    exact = in_float64(model)
    found = gradients(model, response_logprobs(model, batch := pack(trees)).sum() / 1e3)
    expected = gradients(exact, response_logprobs(exact, batch).sum() / 1e3)
    for part in ("transformer.ln_f.bias", "transformer.h.1.ln_1.weight", "transformer.wpe.weight"):
        assert (found[part].double() - expected[part]).norm() <= 1e-2 * expected[part].norm(), part


@needs_bf16
def test_an_embedding_s_gradient_is_the_sum_over_its_tokens_but_for_padding() -> None:
    """256 + 40·1: bf16 has no 257."""
    model = work_in(tiny_policy().model, "bf16")
    with working(model):
        table = torch.nn.Embedding(3, 2, padding_idx=0, dtype=torch.bfloat16)
        rows = table(torch.tensor([[1] * 41, [0] * 41]))
    scale = torch.tensor([256.0] + [1.0] * 40, dtype=torch.bfloat16)
    (rows * scale.unsqueeze(-1)).sum().backward()
    assert table.weight.grad is not None
    assert table.weight.grad.tolist() == [[0.0, 0.0], [296.0, 296.0], [0.0, 0.0]]


@needs_bf16
@pytest.mark.parametrize("precision", COARSE)
def test_logits_far_from_0_cost_no_accuracy(precision: Precision) -> None:
    """GPT-2's are near −100, where bf16 knows halves: what all share is gone before they are rounded."""
    model = at_work(ordinary("gpt2"), precision)
    with torch.no_grad():  # every logit the same −100 or so, and a spread of ±2
        shared = torch.zeros(128)
        shared[0] = 1.0
        model.transformer.ln_f.bias.copy_(10.0 * shared)
        model.transformer.wte.weight[:, 0] = -10.0
    exact = in_float64(model)
    states = torch.randn(50, 128, generator=torch.Generator().manual_seed(0)) + 10.0 * shared
    states = states.to(torch.bfloat16).to(model.dtype)
    tokens = torch.arange(50) % VOCABULARY
    head = heads.head_of(model)
    assert head is not None
    found = head.logprobs(model, states, tokens, temperature=1.0)
    weight = exact.lm_head.weight.to(torch.bfloat16).double()
    logits = states.double() @ weight.T
    assert logits.mean() < -80
    assert (logits.to(torch.bfloat16).double() - logits).abs().max() > 0.1
    expected = logits.log_softmax(-1)[torch.arange(50), tokens]
    torch.testing.assert_close(found.double(), expected, atol=2e-3, rtol=0)


@needs_bf16
@pytest.mark.parametrize("precision", COARSE)
def test_full_logits_are_float32_and_not_rounded_to_bf16(precision: Precision) -> None:
    """Or a KL of two models would be that of their roundings."""
    model = at_work(ordinary("llama"), precision)
    logits = response_logits(model, pack(PAIRS))
    assert logits.dtype == torch.float32
    assert (logits != logits.to(torch.bfloat16)).float().mean() > 0.9


@needs_bf16
@pytest.mark.parametrize("precision", COARSE)
@pytest.mark.parametrize("name", ["gpt2", "llama", "qwen2", "gemma2"])
def test_the_tree_layout_and_the_fused_head_are_found_in_bf16_too(name: str, precision: Precision) -> None:
    model = at_work(ordinary(name), precision)
    with working(model):
        assert tree_check.takes_trees(model.base_model)
    assert heads.head_of(model) is not None


def folder(path: Path) -> RunFolder:
    return RunFolder.open(path, "", ours=True)


TREES = [Tree(f"p:{i}", (2 + i % 4,) * (1 + i % 3), ((2, 3 + i % 3, 1), (4, 5)[: 1 + i % 2])) for i in range(8)]


def trained(precision: Precision, path: Path, *, stop_at: int | None = None, rate: float = 1e-3) -> Policy:
    policy = tiny_policy(seed=1)
    work_in(policy.model, precision)

    def evaluate(step: int) -> None:
        if step == stop_at:
            raise KeyboardInterrupt

    settings = DPO(
        epochs=4, batch=Batch(size=4, micro=2), evaluations=4,
        optimizer=Optimizer(learning_rate=rate, warmup_steps=0),
    )  # fmt: skip
    train_preference(policy, TREES, settings, folder(path), seed=0, log_every=1, evaluate=evaluate)
    return policy


@needs_bf16
@pytest.mark.parametrize("precision", EVERY)
def test_the_first_loss_is_ln_2(precision: Precision, tmp_path: Path) -> None:
    trained(precision, tmp_path)
    first = read_lines(tmp_path / "metrics.jsonl")[0]
    assert first["loss"] == pytest.approx(math.log(2), abs=1e-6 if precision == "fp32" else 1e-3)
    start = read_json(tmp_path / "start.json")
    assert start["largest_logratio_nats"] == 0.0  # the same batches


@needs_bf16
@pytest.mark.parametrize("precision", COARSE)
def test_a_stopped_run_goes_on_bit_for_bit(precision: Precision, tmp_path: Path) -> None:
    whole = trained(precision, tmp_path / "whole").model.state_dict()
    with pytest.raises(KeyboardInterrupt):
        trained(precision, tmp_path / "part", stop_at=6)
    again = trained(precision, tmp_path / "part").model.state_dict()
    assert all(torch.equal(again[name], value) for name, value in whole.items())
    assert read_lines(tmp_path / "part" / "metrics.jsonl") == read_lines(tmp_path / "whole" / "metrics.jsonl")


@needs_bf16
@pytest.mark.parametrize("name", ["adamw", "rmsprop"])
def test_steps_too_small_for_bf16_add_up_in_the_masters(name: Any) -> None:
    """A gradient of 1 throughout: AdamW takes the rate off a weight at each step. 1 − 100·10⁻⁴ is 0.99, which bf16
    has as 0.98828125 or 0.9921875, while 1 − 10⁻⁴ is 1 to it."""
    model = work_in(tiny_policy().model, "bf16")
    weight = model.transformer.ln_f.weight
    with torch.no_grad():
        weight.fill_(1.0)
    settings = Optimizer(name=name, learning_rate=1e-4, warmup_steps=0, max_gradient_norm=1e6)
    stepper = Stepper(model, settings, 100)
    for step in range(100):
        weight.sum().backward()
        stepper.step(step, "here")
        if step == 0 and name == "adamw":
            assert torch.equal(weight, torch.ones_like(weight))
    assert weight.dtype == torch.bfloat16
    (master,) = (one.master for one in stepper.rounded if one.weight is weight)
    assert master.dtype == torch.float32
    if name == "adamw":
        torch.testing.assert_close(master, torch.full_like(master, 0.99), atol=1e-5, rtol=0)
    assert master.max() < 0.995
    assert torch.equal(weight, master.to(torch.bfloat16))


@needs_bf16
def test_gradients_of_micro_batches_are_summed_and_clipped_in_float32() -> None:
    """256 + 1 + … + 1: bf16 has no 257, so that a sum in bf16 stays at 256."""
    model = work_in(tiny_policy().model, "bf16")
    weight = model.transformer.ln_f.weight
    stepper = Stepper(model, Optimizer(max_gradient_norm=0.5), 10)
    (rounded,) = (one for one in stepper.rounded if one.weight is weight)
    for gradient in (256.0, *[1.0] * 10):
        (gradient * weight[0]).backward()
    assert rounded.gradient is not None
    assert rounded.gradient[0] == 266.0
    assert weight.grad is None
    assert stepper.clip("here") == pytest.approx(266.0, rel=1e-6)
    rounded.lift_gradient(stepper.scale, torch.empty(32))
    assert rounded.master.grad is not None
    assert float(rounded.master.grad.norm()) == pytest.approx(0.5, rel=1e-6)
    stepper.clear()
    assert stepper.clip("here") == 0.0


@needs_bf16
def test_the_gradient_goes_to_the_optimiser_that_came_last() -> None:
    """Each round of iterative DPO makes one for the same weights."""
    model = work_in(tiny_policy().model, "bf16")
    first, second = (Stepper(model, Optimizer(), 10) for _ in range(2))
    model.transformer.ln_f.weight.sum().backward()
    assert first.clip("here") == 0.0
    assert second.clip("here") == pytest.approx(32**0.5)


@needs_bf16
@pytest.mark.parametrize("precision", COARSE)
def test_a_step_is_seen_by_the_next_pass(precision: Precision) -> None:
    """A cast of the weights that autocast kept would be stale."""
    model = at_work(ordinary("gpt2"), precision)
    before = pair_logprobs(model, PAIRS)
    stepper = Stepper(model, Optimizer(learning_rate=0.05, warmup_steps=0), 10)
    batch = pack(PAIRS)
    masked_sum(response_logprobs(model, batch), batch.mask).sum().backward()
    stepper.step(0, "here")
    after = pair_logprobs(model, PAIRS)
    assert (after - before).abs().max() > 0.1
    assert torch.equal(after, pair_logprobs(copy.deepcopy(model), PAIRS))


@needs_bf16
def test_no_cast_that_was_made_without_gradients_is_used_with_them() -> None:
    """The checks of layout and head run without gradients, just before the first pass."""
    model = at_work(ordinary("llama"), "bf16-autocast")
    found = gradients(model, response_logprobs(model, pack(PAIRS)).sum())
    assert found.keys() == dict(model.named_parameters()).keys()


@needs_bf16
@pytest.mark.parametrize("precision", COARSE)
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_the_sampler_s_logprobs_are_those_of_a_scoring_pass(family: str, precision: Precision) -> None:
    model = at_work(ordinary(family), precision)
    prompts = [(1, 2, 3), (4,), (5, 6)]
    responses = sample(model, prompts, keys=["a", "b", "c"], end_id=0, max_new_tokens=12, seed=0, samples=4)
    batch = pack([response.tree for response in responses])
    logprobs = response_logprobs(model, batch)
    sampled = torch.cat([torch.tensor(response.logprobs) for response in responses])
    # Logits of up to 0.5 are multiples of 1/512 in bf16; states before them are rounded some dozen times.
    torch.testing.assert_close(sampled, logprobs[batch.mask], atol=2e-2, rtol=0)


@needs_bf16
@pytest.mark.parametrize("precision", EVERY)
def test_what_is_saved_is_what_was_there(precision: Precision, tmp_path: Path) -> None:
    policy = load_policy(save_tiny(tmp_path / "start"), precision=precision)
    stored = torch.bfloat16 if precision == "bf16" else torch.float32
    assert {parameter.dtype for parameter in policy.model.parameters()} == {stored}
    before = pair_logprobs(policy.model, PAIRS)
    save_model(policy, tmp_path / "again")
    again = load_policy(tmp_path / "again", precision=precision)
    assert precision_of(again.model) == precision
    assert torch.equal(pair_logprobs(again.model, PAIRS), before)
    elsewhere = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "again")
    assert elsewhere.dtype == stored
    assert {parameter.dtype for parameter in load_policy(tmp_path / "again").model.parameters()} == {torch.float32}


@needs_bf16
@pytest.mark.parametrize("precision", COARSE)
def test_a_reward_model_s_scores_are_float32_and_near_those_of_fp32(precision: Precision, tmp_path: Path) -> None:
    start = save_tiny(tmp_path / "start")
    model = new_reward_model(start, seed=0)
    save_model(model, tmp_path / "reward")
    expected = response_scores(model.model, pack(PAIRS))
    coarse = load_reward_model(tmp_path / "reward", precision=precision)
    scores = response_scores(coarse.model, pack(PAIRS))
    assert scores.dtype == torch.float32
    torch.testing.assert_close(scores, expected, atol=0.05, rtol=0.05)
    assert (scores != scores.to(torch.bfloat16)).any()
    made = new_reward_model(start, seed=0, precision=precision)
    assert torch.equal(response_scores(made.model, pack(PAIRS)), scores)


@needs_bf16
def test_a_copy_works_in_the_same_precision_and_autocast_ends_with_the_pass() -> None:
    model = at_work(ordinary("gpt2"), "bf16-autocast")
    assert precision_of(copy_of(model)) == "bf16-autocast"
    with working(model):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.bfloat16
    response_logprobs(model, pack(PAIRS))
    assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32


@needs_bf16
def test_each_precision_has_its_own_place_in_the_reference_cache() -> None:
    model = copy.deepcopy(ordinary("gpt2"))
    with torch.no_grad():
        for parameter in model.parameters():  # no rounding tells them apart
            parameter.copy_(parameter.to(torch.bfloat16))
    assert len({space_of(at_work(model, name), ()) for name in EVERY}) == 3
    assert space_of(at_work(model, "fp32"), ()) == space_of(model, ())


@needs_bf16
def test_rotary_frequencies_stay_in_float32() -> None:
    model = at_work(ordinary("llama"), "bf16")
    assert model.model.rotary_emb.inv_freq.dtype == torch.float32


@pytest.mark.parametrize("name", COARSE)
def test_bf16_is_refused_where_the_processor_has_none(
    name: Precision, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(precision, "has_bf16", lambda device: False)
    with pytest.raises(ConfigError, match=f"precision = {name}, but this processor has no bf16.*--precision fp32"):
        load_policy(tmp_path / "is not even looked at", precision=name)
    load_policy(save_tiny(tmp_path / "start"), precision="fp32")


def test_what_the_processor_has_is_asked() -> None:
    flags = Path("/proc/cpuinfo")
    if not flags.exists():
        pytest.skip("no /proc/cpuinfo to compare with")
    words = set(flags.read_text().split())
    assert has_bf16(CPU) == bool(words & {"avx512_bf16", "amx_bf16", "bf16"})
    if not torch.cuda.is_available():
        assert not has_bf16(torch.device("meta"))


def test_commands_work_in_fp32_unless_told(tmp_path: Path) -> None:
    assert TrainDPO(model="m", data=tmp_path, out=tmp_path).precision == "fp32"
    assert Generate(model="m").precision == "fp32"
