"""What the sampler gives."""

from __future__ import annotations

from dataclasses import dataclass, field

from jaxtyping import Float
from torch import Tensor

from preflab.data.encode import Tree


@dataclass(frozen=True)
class Response:
    """One sampled response."""

    key: str
    """Which prompt it answers."""
    prompt: tuple[int, ...]
    tokens: tuple[int, ...]
    """Its token ids, at least one; the end token last where the policy emitted it, or what completed a stop string."""
    logprobs: tuple[float, ...]
    """Behaviour log-probabilities at the sampling temperature, in nats, one a token."""
    ended: bool
    """True where the policy came to an end of its own, by the end token or a stop string; False where the length limit
    cut it."""
    states: Float[Tensor, "token width"] | None = field(default=None, repr=False, compare=False)
    """The model's last hidden state before each token, where they were asked for."""

    @property
    def tree(self) -> Tree:
        """As a batch can hold it."""
        return Tree(self.key, self.prompt, (self.tokens,))
