"""Logits → the next token and its log-probability."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from preflab.config.sampling import Warp

BLOCK = 128
"""Tokens that are looked up together in a large vocabulary."""
LARGE = 600
"""The vocabulary from which a search in two steps is faster than one cumulative sum over all of it."""
BELOW_1 = 1 - 2.0**-53


def choose(
    logits: Float[Tensor, "row vocabulary"],
    uniforms: Float[Tensor, " row"] | None,
    *,
    temperature: float,
    warp: Warp | None = None,
    seen: Int[Tensor, "row seen"] | None = None,
    allowed: Bool[Tensor, "row vocabulary"] | None = None,
) -> tuple[Int[Tensor, " row"], Float[Tensor, " row"]]:
    """Tokens from softmax(logits / T), each the inverse of its cumulative distribution at a uniform; and their
    log-probabilities, in nats.

    With a warp or a mask, the distribution is that of transformers' processors in their order: repetition penalty
    (Keskar et al. 2019, arXiv 1909.05858, §4.1), mask, temperature, top-k (Fan et al. 2018, arXiv 1805.04833), top-p
    (Holtzman et al. 2019, arXiv 1904.09751), renormalised; and the log-probabilities are of that distribution, not the
    policy's. Of tokens as likely as the last one kept, all are kept.

    Waits for no device, and never gives a token of probability 0. Rows are independent of each other.

    Args:
        uniforms: in [0, 1), float64; None takes the likeliest token, the first of equals.
        temperature: T > 0.
        warp: None: as the policy has it.
        seen: the tokens of each row's prompt and response so far, in any order and as often as they please (so a row
            is filled up with one of its own); for `warp.repetition_penalty`, and needed there.
        allowed: which tokens may follow, at least one a row; None: all.

    >>> logits = torch.tensor([[0.1, 0.2, 0.7], [0.6, 0.3, 0.1]]).log()
    >>> tokens, logprobs = choose(logits, torch.tensor([0.25, 0.95], dtype=torch.float64), temperature=1.0)
    >>> tokens.tolist(), [round(one, 3) for one in logprobs.exp().tolist()]
    ([1, 2], [0.2, 0.1])
    >>> tokens, logprobs = choose(logits, None, temperature=1.0, warp=Warp(top_k=2))
    >>> tokens.tolist(), [round(one, 3) for one in logprobs.exp().tolist()]
    ([2, 0], [0.778, 0.667])
    """
    scores = logits.float()
    if warp is not None and warp.repetition_penalty != 1:
        assert seen is not None
        scores = _penalised(scores, seen, warp.repetition_penalty)
    if allowed is not None:
        scores = scores.masked_fill(~allowed, -torch.inf)
    peak = scores.amax(-1, keepdim=True)
    if temperature != 1:
        # Shifted before it is divided: likely tokens then lose nothing to rounding, however large all logits are.
        scores, peak = (scores - peak).div_(temperature), peak.new_zeros(())
    if warp is not None:
        scores = _cut(scores, warp)
    probabilities = scores.softmax(-1)
    # Up to the rounding of softmax's own sum, which in a large vocabulary is felt.
    likeliest = probabilities.amax(-1, keepdim=True) / probabilities.sum(-1, keepdim=True)
    if uniforms is None:
        return scores.argmax(-1), likeliest.log().squeeze(1)
    drawn = _inverse_cdf(probabilities, uniforms.unsqueeze(1))
    # By how far it is behind the likeliest: its own probability, where tiny, has few digits.
    behind = scores.gather(1, drawn) - peak
    return drawn.squeeze(1), (behind + likeliest.log()).squeeze(1)


def _inverse_cdf(masses: Float[Tensor, "row vocabulary"], uniforms: Float[Tensor, "row 1"]) -> Int[Tensor, "row 1"]:
    """Where the cumulative sum passes a uniform's share of the whole."""
    width = masses.shape[-1]
    if width < LARGE:
        sums = masses.cumsum(-1, dtype=torch.float64)
        return _first_above(uniforms * sums[:, -1:], sums)
    # First the block, then the token in it, at the uniform's place within the block.
    whole = width // BLOCK * BLOCK
    blocks = masses[:, :whole].unflatten(1, (-1, BLOCK)).sum(-1)
    if whole < width:
        blocks = torch.cat([blocks, masses[:, whole:].sum(-1, keepdim=True)], 1)
    sums = blocks.cumsum(-1, dtype=torch.float64)
    share = uniforms * sums[:, -1:]
    block = _first_above(share, sums)
    mass = blocks.gather(1, block)
    within = ((share - sums.gather(1, block) + mass) / mass).clamp_(0, BELOW_1)
    tokens = block * BLOCK + torch.arange(BLOCK, device=masses.device)
    inside = masses.gather(1, tokens.clamp(max=width - 1)).masked_fill_(tokens >= width, 0)
    sums = inside.cumsum(-1, dtype=torch.float64)
    return (block * BLOCK + _first_above(within * sums[:, -1:], sums)).clamp_(max=width - 1)


def _first_above(share: Float[Tensor, "row 1"], sums: Float[Tensor, "row part"]) -> Int[Tensor, "row 1"]:
    """The first part whose sum is above a share.

    A uniform is at most 1 − 2⁻⁵³, so its product with the last sum is below it also in floating point: there is such a
    part, and its own mass is above 0.
    """
    return torch.searchsorted(sums, share, right=True).clamp_(max=sums.shape[-1] - 1)  # no NaN is above anything


def _penalised(
    scores: Float[Tensor, "row vocabulary"], seen: Int[Tensor, "row seen"], penalty: float
) -> Float[Tensor, "row vocabulary"]:
    """Tokens that a row has seen are less likely; by scores alone, so as often as it has seen them."""
    found = scores.gather(1, seen)
    return scores.scatter(1, seen, torch.where(found < 0, found * penalty, found / penalty))


def _cut(scores: Float[Tensor, "row vocabulary"], warp: Warp) -> Float[Tensor, "row vocabulary"]:
    """−∞ for what top-k and top-p leave out."""
    likeliest = None
    if warp.top_k is not None and warp.top_k < scores.shape[-1]:
        likeliest = scores.topk(warp.top_k).values
        scores = scores.masked_fill(scores < likeliest[:, -1:], -torch.inf)
    if warp.top_p < 1:
        if likeliest is None:
            likeliest = scores.sort(descending=True).values
        # A token stays where those before it are not enough; the first always.
        whole = scores.logsumexp(-1, keepdim=True)
        before = (likeliest - whole).exp().cumsum(-1)[:, :-1]
        last = (before < warp.top_p).sum(-1, keepdim=True)
        scores = scores.masked_fill(scores < likeliest.gather(1, last), -torch.inf)
    return scores
