"""Pure, un-reduced functions of tensors: every objective, and what it is made of. torch and jaxtyping only.

| what                                    | where               |
|-----------------------------------------|---------------------|
| log-probabilities, masked sums          | `logprobs.py`       |
| supervised fine-tuning                  | `supervised.py`     |
| Bradley–Terry reward model              | `reward.py`         |
| DPO and other losses of the margin      | `preference.py`     |
| losses with both log-ratios anchored    | `anchored.py`       |
| DPO under other divergences             | `divergence.py`     |
| losses without a reference              | `reference_free.py` |
| losses on single, labelled responses    | `unpaired.py`       |
| PPO's clipped surrogate and value loss  | `policy.py`         |
| GAE, group baselines, token rewards     | `advantages.py`     |
| KL estimators, exact KL, adaptive β     | `kl.py`             |
| means by a global count, aggregation    | `reduce.py`         |
| clip fraction, explained variance, …    | `diagnostics.py`    |

Signs: losses are minimised, rewards maximised. `logprobs` are per token, a `logprob` is their sum over a response's
tokens (end token included), a `logratio` is policy − reference.
"""

from preflab.losses.advantages import (
    gae,
    leave_one_out,
    less_group_mean,
    over_std,
    overlong_penalty,
    token_rewards,
    whiten,
)
from preflab.losses.anchored import apo_down, apo_zero, bco_pair, dpop, nca, sppo
from preflab.losses.diagnostics import clip_fraction, explained_variance
from preflab.losses.divergence import Divergence, f_dpo, f_dpo_reward
from preflab.losses.kl import adapted_coefficient, entropy, k1, k2, k3, kl_full, kl_in_loss
from preflab.losses.logprobs import masked_sum, token_logprobs
from preflab.losses.policy import ppo_clip, value_clip
from preflab.losses.preference import aot, dpo, exo, hinge, ipo, robust_dpo, same_rank
from preflab.losses.reduce import aggregate, masked_mean, mean_by
from preflab.losses.reference_free import cpo, orpo, simpo
from preflab.losses.reward import bradley_terry
from preflab.losses.supervised import sft
from preflab.losses.unpaired import bco, kto

__all__ = [
    "Divergence",
    "adapted_coefficient",
    "aggregate",
    "aot",
    "apo_down",
    "apo_zero",
    "bco",
    "bco_pair",
    "bradley_terry",
    "clip_fraction",
    "cpo",
    "dpo",
    "dpop",
    "entropy",
    "exo",
    "explained_variance",
    "f_dpo",
    "f_dpo_reward",
    "gae",
    "hinge",
    "ipo",
    "k1",
    "k2",
    "k3",
    "kl_full",
    "kl_in_loss",
    "kto",
    "leave_one_out",
    "less_group_mean",
    "masked_mean",
    "masked_sum",
    "mean_by",
    "nca",
    "orpo",
    "over_std",
    "overlong_penalty",
    "ppo_clip",
    "robust_dpo",
    "same_rank",
    "sft",
    "simpo",
    "sppo",
    "token_logprobs",
    "token_rewards",
    "value_clip",
    "whiten",
]
