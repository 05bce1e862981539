"""Names of arms → what they train: "ppo-gold" is one stage, "dpo+ppo" are two."""

from __future__ import annotations

from dataclasses import dataclass

from preflab.errors import ConfigError, nearest

LABELS = {
    "sft": "SFT",
    "dpo": "DPO",
    "cdpo": "cDPO",
    "rdpo": "rDPO",
    "ipo": "IPO",
    "hinge": "Hinge",
    "exo": "EXO",
    "aot": "AOT",
    "ln-dpo": "LN-DPO",
    "f-dpo": "f-DPO",
    "dpop": "DPOP",
    "nca": "NCA",
    "bco-pair": "BCO (pairs)",
    "sppo": "SPPO",
    "apo-zero": "APO-zero",
    "apo-down": "APO-down",
    "simpo": "SimPO",
    "cpo": "CPO",
    "orpo": "ORPO",
    "sum": "Weighted sum",
    "kto": "KTO",
    "bco": "BCO",
    "ppo": "PPO",
    "grpo": "GRPO",
    "dr-grpo": "Dr. GRPO",
    "dapo": "DAPO",
    "rloo": "RLOO",
    "reinforce": "REINFORCE",
    "online-dpo": "Online DPO",
    "iterative-dpo": "Iterative DPO",
}
"""The methods that can be an arm, or a stage of a chain, and how reports write them."""

SAMPLING = ("ppo", "grpo", "dr-grpo", "dapo", "rloo", "reinforce", "online-dpo", "iterative-dpo")
"""Those that learn from a reward, so that -gold can say which."""

GOLD = "-gold"
ALONE = {"reference": "Reference", "best-of-n": "Best of n"}
"""Arms that train nothing, so that no stage can come before or after them."""


@dataclass(frozen=True)
class Stage:
    """One method in an arm."""

    method: str
    gold: bool
    """Paid by the gold reward: an oracle."""

    @property
    def key(self) -> str:
        """Its field in `Compare`."""
        return self.method.replace("-", "_")

    @property
    def label(self) -> str:
        """As reports write it."""
        return LABELS[self.method] + (" on gold" if self.gold else "")


def stages(arm: str) -> tuple[Stage, ...]:
    """The stages of an arm, in order; none for the reference and best-of-n.

    Raises:
        ConfigError: there is no such method, with the nearest name.

    >>> stages("dpo+ppo-gold")
    (Stage(method='dpo', gold=False), Stage(method='ppo', gold=True))
    """
    if arm in ALONE:
        return ()
    return tuple(_stage(arm, name) for name in arm.split("+"))


def label(arm: str) -> str:
    """How reports write an arm.

    >>> label("dpo+ppo")
    'DPO → PPO'
    """
    return ALONE[arm] if arm in ALONE else " → ".join(stage.label for stage in stages(arm))


def _stage(arm: str, name: str) -> Stage:
    method = name.removesuffix(GOLD)
    if name in LABELS:
        return Stage(name, gold=False)
    if name.endswith(GOLD) and method in SAMPLING:
        return Stage(method, gold=True)
    if name in ALONE:
        raise ConfigError(f'arms = {arm}: "{name}" trains nothing, so it can\'t be a stage of a chain')
    if name.endswith(GOLD) and method in LABELS:
        raise ConfigError(f"arms = {arm}: {method} learns from pairs, not from a reward; leave {GOLD} out")
    known = (*ALONE, *LABELS, *(f"{one}{GOLD}" for one in SAMPLING))
    raise ConfigError(f'arms = {arm}: there is no arm or stage "{name}"; {nearest(name, known)}')
