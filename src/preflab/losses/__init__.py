"""Pure, un-reduced functions of tensors: every objective, and what it is made of. torch and jaxtyping only.

| what                                    | where            |
|-----------------------------------------|------------------|
| log-probabilities, masked sums          | `logprobs.py`    |
| supervised fine-tuning                  | `supervised.py`  |
| Bradley–Terry reward model              | `reward.py`      |
| DPO                                     | `preference.py`  |
| PPO's clipped surrogate and value loss  | `policy.py`      |
| GAE, whitening, per-token rewards       | `advantages.py`  |
| KL estimators and exact KL              | `kl.py`          |
| means by a global count                 | `reduce.py`      |
| clip fraction, explained variance, …    | `diagnostics.py` |

Signs: losses are minimised, rewards maximised. `logprobs` are per token, a `logprob` is their sum over a response's
tokens (end token included), a `logratio` is policy − reference.
"""

from preflab.losses.advantages import gae, token_rewards, whiten
from preflab.losses.diagnostics import clip_fraction, explained_variance
from preflab.losses.kl import entropy, k1, k2, k3, kl_full
from preflab.losses.logprobs import masked_sum, token_logprobs
from preflab.losses.policy import ppo_clip, value_clip
from preflab.losses.preference import dpo, dpo_rewards
from preflab.losses.reduce import masked_mean, mean_by
from preflab.losses.reward import bradley_terry
from preflab.losses.supervised import sft

__all__ = [
    "bradley_terry",
    "clip_fraction",
    "dpo",
    "dpo_rewards",
    "entropy",
    "explained_variance",
    "gae",
    "k1",
    "k2",
    "k3",
    "kl_full",
    "masked_mean",
    "masked_sum",
    "mean_by",
    "ppo_clip",
    "sft",
    "token_logprobs",
    "token_rewards",
    "value_clip",
    "whiten",
]
