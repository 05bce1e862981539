"""How tokens are drawn from a policy, beside the temperature."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Gt, Le

from preflab.config.training import Positive


@dataclass(frozen=True, kw_only=True)
class Warp:
    """What makes the distribution that tokens come from another one than the policy's; by default nothing."""

    top_k: Positive | None = None
    """Sample from the k likeliest tokens alone, and those as likely as the last of them; none: from all."""
    top_p: Annotated[float, Gt(0), Le(1)] = 1.0
    """Sample from the likeliest tokens that together have this probability, after top_k, in (0, 1]; 1: from all."""
    repetition_penalty: Annotated[float, Gt(0)] = 1.0
    """The score of a token that the prompt or the response holds already is divided by this where it is positive, and
    multiplied where it is negative, > 0 (usual 1.1 to 1.3); 1: no penalty."""

    @property
    def alters(self) -> bool:
        """Whether it does anything."""
        return self.top_k is not None or self.top_p < 1 or self.repetition_penalty != 1


NO_WARP = Warp()
"""What is sampled is the policy."""
