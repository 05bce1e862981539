"""Load and save policies and reward models in the Hugging Face format: safetensors only, dropout off."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import huggingface_hub
import torch
import transformers
from safetensors import SafetensorError
from torch import nn
from transformers.activations import FastGELUActivation, NewGELUActivation

from preflab.config.training import Precision
from preflab.data.encode import Tokenizer
from preflab.errors import ConfigError, PreflabError, StorageError
from preflab.models.precision import check_precision, work_in
from preflab.progress import say
from preflab.runs import new_folder

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()

PAD = "<|pad|>"
UNHEARD = {"_name_or_path", "architectures", "dtype", "torch_dtype", "transformers_version"}
"""What a model's config says that no number depends on; the weights' own dtype counts."""


@dataclass(frozen=True)
class Policy:
    """A causal language model and its tokenizer."""

    model: Any
    tokenizer: Tokenizer

    @property
    def device(self) -> torch.device:
        return torch.device(self.model.device)


def pick_device(name: str) -> torch.device:
    """ "auto", "cpu" or "cuda" → a device that exists."""
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device = cuda, but torch sees no CUDA GPU; use --device cpu")
    return torch.device("cuda" if name == "auto" and torch.cuda.is_available() else name.replace("auto", "cpu"))


def load_policy(
    name: str | Path,
    *,
    device: torch.device | str = "cpu",
    precision: Precision = "fp32",
    trust_remote_code: bool = False,
    quiet: bool = True,
) -> Policy:
    """A causal model and its tokenizer, with dropout off and a pad token that is not the end token.

    Raises:
        ConfigError: there is no such model, it is no causal language model, its weights are no safetensors, or it
            needs its own Python code and `trust_remote_code` is off; or the device can't work in that precision.
    """
    check_precision(precision, device)
    with _explained(name):
        tokenizer = transformers.AutoTokenizer.from_pretrained(name, trust_remote_code=trust_remote_code)
        model = _weights(transformers.AutoModelForCausalLM, name, trust_remote_code)
    if any(architecture.endswith("ForSequenceClassification") for architecture in model.config.architectures or ()):
        raise ConfigError(f"{name} is a reward model or classifier; name a language model")
    _give_pad_token(model, tokenizer, quiet=quiet)
    model.eval()  # for good: dropout is off in training too, or the ratio at step 0 would not be 1
    return Policy(work_in(model.to(device), precision), tokenizer)


def new_reward_model(
    name: str | Path,
    *,
    seed: int,
    device: torch.device | str = "cpu",
    precision: Precision = "fp32",
    **options: Any,
) -> Policy:
    """A reward model on the body of a causal model: one score a response, the head drawn with std 1/√(d + 1).

    The initialisation is that of arXiv 2403.17031, detail 10. It has no bias, as the Hugging Face format has none.
    """
    check_precision(precision, device)
    policy = load_policy(name, **options)
    with _explained(name):
        model = _with_one_score(policy.model, policy.tokenizer.pad_token_id)
    generator = torch.Generator().manual_seed(seed)
    width = model.score.weight.shape[1]
    with torch.no_grad():
        model.score.weight.copy_(torch.randn(1, width, generator=generator) / math.sqrt(width + 1))
    return Policy(work_in(model.to(device), precision), policy.tokenizer)


def new_value_model(policy: Policy) -> Policy:
    """A value model on a copy of a policy's body: V = 0 everywhere, before it learns."""
    pad = policy.model.config.pad_token_id
    # What transformers asks for; responses carry their mask.
    model = _with_one_score(policy.model, policy.tokenizer.eos_token_id if pad is None else pad)
    nn.init.zeros_(model.score.weight)
    return Policy(model.to(policy.device), policy.tokenizer)


def load_reward_model(
    name: str | Path,
    *,
    device: torch.device | str = "cpu",
    precision: Precision = "fp32",
    trust_remote_code: bool = False,
) -> Policy:
    """A reward model: a sequence-classification model with one label. `config.reward_offset` is taken off its scores.

    Raises:
        ConfigError: there is no such model, it has several labels, or the device can't work in that precision.
    """
    check_precision(precision, device)
    model, tokenizer = _sequence_classifier(
        name, trust_remote_code, remedy="`preflab train reward` makes a reward model"
    )
    if model.config.num_labels != 1 or not hasattr(model, "score"):
        raise ConfigError(
            f"{name} has {model.config.num_labels} labels; a reward model has one: `preflab train reward`"
        )
    model.eval()
    return Policy(work_in(model.to(device), precision), tokenizer)


def load_classifier(
    name: str | Path,
    *,
    device: torch.device | str = "cpu",
    precision: Precision = "fp32",
    trust_remote_code: bool = False,
) -> Policy:
    """A sequence-classification model with several labels; its tokenizer cuts at the beginning.

    Raises:
        ConfigError: there is no such model, it has one label, or the device can't work in that precision.
    """
    check_precision(precision, device)
    model, tokenizer = _sequence_classifier(name, trust_remote_code)
    if model.config.num_labels == 1:
        raise ConfigError(f"{name} has one label: it is a reward model, not a classifier; name it without classifier:")
    tokenizer.truncation_side = "left"
    model.eval()
    return Policy(work_in(model.to(device), precision), tokenizer)


def check_length(model: Any, tokens: int, remedy: str) -> None:
    """Raises ConfigError where the model has positions for fewer than `tokens` tokens."""
    positions = getattr(model.config, "max_position_embeddings", None)
    if positions is not None and tokens > positions:
        raise ConfigError(f"sequences of {tokens} tokens, but the model has {positions} positions; {remedy}")


def heard(config: Any) -> dict[str, Any]:
    """What a model's config says that its numbers may depend on."""
    said = json.loads(config.to_json_string(use_diff=False))
    return {name: value for name, value in said.items() if name not in UNHEARD}


def copy_of(model: Any) -> Any:
    """The same model with its own frozen weights: a reference that no training can move."""
    import copy

    frozen = copy.deepcopy(model)
    frozen.requires_grad_(False)
    return frozen.eval()


def save_model(policy: Policy, folder: Path) -> None:
    """Write model and tokenizer in the Hugging Face format, whole or not at all.

    Raises:
        StorageError: it can't be written.
    """
    with new_folder(folder) as temporary:
        try:
            policy.model.save_pretrained(temporary, safe_serialization=True)
            policy.tokenizer.save_pretrained(temporary)
        except SafetensorError as error:  # what safetensors makes of a full disk
            raise StorageError(f"can't write {folder}: {error}; free space or choose another --out") from None


AGAIN = "save or fetch it again"
"""What helps where a model is not whole."""


def _sequence_classifier(name: str | Path, trust_remote_code: bool, *, remedy: str = AGAIN) -> tuple[Any, Any]:
    """A model with a score head, and its tokenizer."""
    with _explained(name):
        tokenizer = transformers.AutoTokenizer.from_pretrained(name, trust_remote_code=trust_remote_code)
        model = _weights(transformers.AutoModelForSequenceClassification, name, trust_remote_code, remedy=remedy)
    return model, tokenizer


def _weights(auto: Any, name: str | Path, trust_remote_code: bool, *, remedy: str = AGAIN) -> Any:
    """The model; where weights are missing transformers would draw them at random without a word."""
    model, info = auto.from_pretrained(
        name,
        dtype=torch.float32,
        use_safetensors=True,
        trust_remote_code=trust_remote_code,
        output_loading_info=True,
    )
    if missing := sorted(info["missing_keys"]):
        raise ConfigError(f"{name} has no weights for {missing[0]} ({len(missing)} missing in all); {remedy}")
    _fuse_activations(model)
    return model


def _fuse_activations(model: nn.Module) -> None:
    """GELU's tanh form in one kernel instead of eight: GPT-2's own way of writing it takes 4 % of a training step.

    Equal but for rounding; the saved configuration names the activation as before.
    """
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, (NewGELUActivation, FastGELUActivation)):
                setattr(module, name, nn.GELU(approximate="tanh"))


def _look_up(name: str) -> None:
    """One quick look at the Hub for a model that isn't here; transformers itself would try for a minute, and say so."""
    if not Path(name).exists() and not huggingface_hub.try_to_load_from_cache(name, "config.json"):
        huggingface_hub.get_hf_file_metadata(huggingface_hub.hf_hub_url(name, "config.json"), timeout=10)


def _with_one_score(causal: Any, pad_id: int | None) -> Any:
    """A sequence-classification model with one label on a copy of a causal model's body, in eval mode."""
    config = type(causal.config).from_dict(causal.config.to_dict())
    config.num_labels, config.pad_token_id, config.architectures = 1, pad_id, None
    # transformers draws initial weights from the global generator: give it its old state back.
    with torch.random.fork_rng(devices=[]):
        model: Any = transformers.AutoModelForSequenceClassification.from_config(config, dtype=torch.float32)
    model.base_model.load_state_dict(causal.base_model.state_dict())
    _fuse_activations(model)
    model.config.reward_offset = 0.0
    return model.eval()


def _give_pad_token(model: Any, tokenizer: Tokenizer, *, quiet: bool) -> None:
    """A pad token of its own: other programs mask by its value, and would mask the end token with it."""
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id == tokenizer.eos_token_id:
        if PAD not in tokenizer.get_vocab():
            tokenizer.add_special_tokens({"pad_token": PAD})
        tokenizer.pad_token = PAD
        rows = model.get_input_embeddings().weight.shape[0]
        if tokenizer.pad_token_id >= rows:
            model.resize_token_embeddings(tokenizer.pad_token_id + 1, mean_resizing=False)
            with torch.no_grad():
                for table in {model.get_input_embeddings(), model.get_output_embeddings()}:
                    table.weight[rows:] = table.weight[:rows].mean(0)
        if not quiet:
            say(f"the tokenizer's pad token was its end token or missing: added {PAD}")
    model.config.pad_token_id = tokenizer.pad_token_id
    if getattr(model, "generation_config", None) is not None:
        model.generation_config.pad_token_id = tokenizer.pad_token_id
        model.generation_config.eos_token_id = tokenizer.eos_token_id


@contextlib.contextmanager
def _explained(name: str | Path) -> Iterator[None]:
    """transformers' many errors → one sentence."""
    path = Path(name)
    if path.is_dir() and not (path / "config.json").exists():
        inner = path / "model"
        hint = f"; did you mean {inner}?" if (inner / "config.json").exists() else ""
        raise ConfigError(f"{name} holds no model (no config.json){hint}")
    try:
        _look_up(str(name))
        yield
    except PreflabError:
        raise
    except Exception as error:  # tokenizers and safetensors raise classes of their own, or Exception itself
        raise _explanation(name, path, error) from None


def _explanation(name: str | Path, path: Path, error: Exception) -> PreflabError:
    said = str(error)
    first = " ".join(said.split("\n\n")[0].split())[:200]
    if "safetensors" in said and path.is_dir() and any(path.glob("*.bin")):
        return StorageError(f"{name} holds pickled weights (.bin), which can run code; convert them to safetensors")
    if "trust_remote_code" in said:
        return ConfigError(f"{name} comes with its own Python code; add --trust-remote-code if you trust it")
    if not path.exists():
        return ConfigError(f'there is no model "{name}": no such folder, and not on the Hub as seen from here')
    return ConfigError(f'can\'t load the model "{name}": {first}')
