"""The one place where un-reduced losses become a scalar.

A mean is a sum divided by a *global* count, over all micro-batches and all processes of an optimiser step. So
1 × 8 = 8 × 1 micro-batches, however ragged the rows (transformers#34191: a mean of means is another objective).
"""

from __future__ import annotations

from typing import Literal, assert_never

import torch  # noqa: F401  (doctest)
from jaxtyping import Bool, Float
from torch import Tensor

Aggregation = Literal["token-mean", "seq-mean-token-mean", "seq-mean-token-sum", "seq-mean-token-sum-norm"]


def mean_by(values: Float[Tensor, "*any"], count: float) -> Float[Tensor, ""]:
    """Σ values / count, this micro-batch's share of the mean.

    Args:
        values: losses of this micro-batch: one a pair, one a response, or one a token (0 outside the mask).
        count: how many of them the whole optimiser step holds (pairs, responses or tokens), > 0.

    Raises:
        ValueError: the count is not positive.

    >>> two = mean_by(torch.tensor([1.0, 2.0]), 3) + mean_by(torch.tensor([6.0]), 3)   # two ragged micro-batches
    >>> one = mean_by(torch.tensor([1.0, 2.0, 6.0]), 3)
    >>> bool(two == one)
    True
    """
    if not count > 0:
        raise ValueError(f"a mean needs a positive count, not {count}: is every row masked?")
    return values.sum() / count


def masked_mean(values: Float[Tensor, "*any"], mask: Bool[Tensor, "*any"]) -> Float[Tensor, ""]:
    """The mean over the mask, for diagnostics of one whole batch. What stands outside the mask is never read.

    >>> masked_mean(torch.tensor([1.0, 3.0, 9.0]), torch.tensor([True, True, False]))
    tensor(2.)
    """
    return mean_by(values.masked_fill(~mask, 0.0), int(mask.sum()))


def aggregate(
    values: Float[Tensor, "response token"],
    mask: Bool[Tensor, "response token"],
    how: Aggregation,
    *,
    responses: int,
    tokens: int,
    longest: int,
) -> Float[Tensor, ""]:
    """Token losses → this micro-batch's share of one scalar; n_i counts the tokens of response i.

    | how                     | formula               | whose                                   |
    |-------------------------|-----------------------|-----------------------------------------|
    | token-mean              | Σ_iΣ_t / Σ_i n_i      | PPO; DAPO (arXiv 2503.14476, Eq. 8)     |
    | seq-mean-token-mean     | mean_i (1/n_i)Σ_t     | GRPO (arXiv 2402.03300, Eq. 3)          |
    | seq-mean-token-sum      | mean_i Σ_t            | RLOO (arXiv 2402.14740), REINFORCE      |
    | seq-mean-token-sum-norm | mean_i Σ_t / longest  | Dr. GRPO (arXiv 2503.20783)             |

    The names are verl's, whose seq-mean-token-sum-norm lacks the mean over responses.

    Args:
        values: one loss a token; what stands outside the mask is never read.
        mask: True on the tokens to learn from; a row without any adds nothing.
        how: the formula.
        responses: how many responses with tokens in the mask the whole optimiser step holds.
        tokens: how many tokens in the mask the whole optimiser step holds.
        longest: the length limit of a response, in tokens.

    Raises:
        ValueError: the count asked for is not positive.

    >>> values, mask = torch.tensor([[1.0, 1.0], [4.0, 0.0]]), torch.tensor([[True, True], [True, False]])
    >>> [round(aggregate(values, mask, how, responses=2, tokens=3, longest=4).item(), 4)
    ...  for how in ("token-mean", "seq-mean-token-mean", "seq-mean-token-sum", "seq-mean-token-sum-norm")]
    [2.0, 2.5, 3.0, 0.75]
    """
    values = values.masked_fill(~mask, 0.0)
    match how:
        case "token-mean":
            return mean_by(values, tokens)
        case "seq-mean-token-mean":
            return mean_by(values.sum(-1) / mask.sum(-1).clamp(min=1), responses)
        case "seq-mean-token-sum":
            return mean_by(values, responses)
        case "seq-mean-token-sum-norm":
            return mean_by(values, responses * longest)
        case never:
            assert_never(never)
