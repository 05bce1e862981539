"""The losses of methods that learn from preferences; h = Δ_w − Δ_l, the log-ratio of chosen less that of rejected."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Lt

from preflab.errors import ConfigError, nearest

Beta = Annotated[float, Gt(0)]


@dataclass(frozen=True, kw_only=True)
class DPOLoss:
    """−(1 − ε)·log σ(βh) − ε·log σ(−βh)."""

    beta: Beta = 0.1
    """How strongly the policy is held to the reference, > 0; larger β, smaller KL. Usual 0.01 to 1."""
    label_smoothing: Annotated[float, Ge(0), Lt(0.5)] = 0.0
    """Share of labels believed to be flipped, in [0, 0.5)."""


@dataclass(frozen=True, kw_only=True)
class RobustDPOLoss:
    """[−(1 − ε)·log σ(βh) + ε·log σ(−βh)]/(1 − 2ε): in expectation over flipped labels, DPO on the clean ones."""

    beta: Beta = 0.1
    """As in DPO, > 0."""
    label_smoothing: Annotated[float, Gt(0), Lt(0.5)] = 0.1
    """ε: share of labels that are flipped, in (0, 0.5)."""


@dataclass(frozen=True, kw_only=True)
class IPOLoss:
    """(h − 1/(2τ))²."""

    tau: Beta = 0.1
    """τ > 0: the margin h stops at 1/(2τ) nats where labels are certain. Usual 0.01 to 1."""
    average_tokens: bool = False
    """Divide each log-ratio by its response's tokens, as TRL and HALOs do; off is the paper's sum. τ means another
    thing in each: off by the length of a response."""


@dataclass(frozen=True, kw_only=True)
class HingeLoss:
    """max(0, 1 − βh)."""

    beta: Beta = 0.05
    """The margin h stops at 1/β nats, > 0."""


@dataclass(frozen=True, kw_only=True)
class EXOLoss:
    """KL of (σ(βh), σ(−βh)) from the smoothed label (1 − ε, ε)."""

    beta: Beta = 0.1
    """As in DPO, > 0."""
    label_smoothing: Annotated[float, Gt(0), Lt(0.5)] = 1e-3
    """ε in (0, 0.5): the margin βh stops at ln((1 − ε)/ε) where labels are certain."""


@dataclass(frozen=True, kw_only=True)
class AOTLoss:
    """−log σ(β·(policy margin − the reference margin of the same rank in the batch))."""

    beta: Beta = 0.01
    """As in DPO, > 0."""


@dataclass(frozen=True, kw_only=True)
class LengthNormalisedDPOLoss:
    """−log σ(β·(Δ_w/n_w − Δ_l/n_l)), n the number of response tokens (Lambert et al. 2024, arXiv 2411.15124)."""

    beta: Beta = 5.0
    """> 0, per nat a token: larger than DPO's by about the length of a response."""


@dataclass(frozen=True, kw_only=True)
class FDPOLoss:
    """−log σ(β·f'(π/π_ref of chosen) − β·f'(π/π_ref of rejected))."""

    beta: Beta = 0.1
    """As in DPO, > 0."""
    divergence: Literal["reverse_kl", "forward_kl", "jensen_shannon", "alpha", "chi_squared"] = "jensen_shannon"
    """What the policy is held to the reference by; reverse_kl is DPO."""
    alpha: Annotated[float, Gt(0), Lt(1)] = 0.5
    """α of the divergence alpha, in (0, 1): 0 would be the reverse, 1 the forward KL."""

    def misfit(self) -> str | None:
        """What does not fit together, or None."""
        if self.divergence == "alpha" or self.alpha == FDPOLoss.alpha:
            return None
        return f"alpha = {self.alpha} has no effect with divergence = {self.divergence}; leave it out"


@dataclass(frozen=True, kw_only=True)
class DPOPLoss:
    """−log σ(β·(h − λ·max(0, −Δ_w)))."""

    beta: Beta = 0.3
    """As in DPO, > 0."""
    penalty: Annotated[float, Ge(0)] = 50.0
    """λ ≥ 0: what each nat costs by which the chosen response falls below the reference."""


@dataclass(frozen=True, kw_only=True)
class NCALoss:
    """−log σ(βΔ_w) − ½·log σ(−βΔ_w) − ½·log σ(−βΔ_l)."""

    beta: Beta = 0.01
    """As in DPO, > 0."""


@dataclass(frozen=True, kw_only=True)
class BCOPairLoss:
    """−log σ(βΔ_w) − log σ(−βΔ_l)."""

    beta: Beta = 0.01
    """As in DPO, > 0."""


@dataclass(frozen=True, kw_only=True)
class SPPOLoss:
    """(Δ_w − 1/(2β))² + (Δ_l + 1/(2β))²."""

    beta: Beta = 0.001
    """> 0, 1/η of the paper: the log-ratios are drawn to ±1/(2β) nats."""


@dataclass(frozen=True, kw_only=True)
class APOZeroLoss:
    """1 − σ(βΔ_w) + σ(βΔ_l)."""

    beta: Beta = 0.1
    """As in DPO, > 0."""


@dataclass(frozen=True, kw_only=True)
class APODownLoss:
    """σ(βΔ_w) + 1 − σ(βh)."""

    beta: Beta = 0.1
    """As in DPO, > 0."""


@dataclass(frozen=True, kw_only=True)
class SimPOLoss:
    """−log σ(β·(mean log-probability of chosen − of rejected) − γ); no reference."""

    beta: Beta = 2.0
    """> 0, per nat a token. Usual 2 to 10."""
    margin: Annotated[float, Ge(0)] = 1.0
    """γ ≥ 0, by how much the chosen response should lead. Usual 0.3 to 0.8 of β."""


@dataclass(frozen=True, kw_only=True)
class CPOLoss:
    """−log σ(β·(log-probability of chosen − of rejected)) − α·log-probability of chosen; no reference."""

    beta: Beta = 0.1
    """> 0, per nat."""
    sft_weight: Annotated[float, Ge(0)] = 1.0
    """α ≥ 0 of the cross-entropy of the chosen response, summed over its tokens."""


@dataclass(frozen=True, kw_only=True)
class ORPOLoss:
    """Cross-entropy of chosen per token − λ·log σ(log-odds of chosen − of rejected); no reference."""

    weight: Beta = 0.1
    """λ > 0 of the odds-ratio term. Usual 0.1 to 0.25."""


@dataclass(frozen=True, kw_only=True)
class SFTLoss:
    """Cross-entropy of the chosen response, per token of it: a part of sums of losses, without settings."""


@dataclass(frozen=True, kw_only=True)
class SumLoss:
    """Σ weight·loss over the named losses."""

    terms: str = "dpo + 0.1*sft"
    """What is added up, each with its weight > 0. sft is the cross-entropy of the chosen response, per token; the other
    names are those of the settings below, and of the methods."""
    dpo: DPOLoss = field(default_factory=DPOLoss)
    """Settings of dpo."""
    rdpo: RobustDPOLoss = field(default_factory=RobustDPOLoss)
    """Settings of rdpo."""
    ipo: IPOLoss = field(default_factory=IPOLoss)
    """Settings of ipo."""
    hinge: HingeLoss = field(default_factory=HingeLoss)
    """Settings of hinge."""
    exo: EXOLoss = field(default_factory=EXOLoss)
    """Settings of exo."""
    aot: AOTLoss = field(default_factory=AOTLoss)
    """Settings of aot."""
    ln_dpo: LengthNormalisedDPOLoss = field(default_factory=LengthNormalisedDPOLoss)
    """Settings of ln_dpo."""
    f_dpo: FDPOLoss = field(default_factory=FDPOLoss)
    """Settings of f_dpo."""
    dpop: DPOPLoss = field(default_factory=DPOPLoss)
    """Settings of dpop."""
    nca: NCALoss = field(default_factory=NCALoss)
    """Settings of nca."""
    bco_pair: BCOPairLoss = field(default_factory=BCOPairLoss)
    """Settings of bco_pair."""
    sppo: SPPOLoss = field(default_factory=SPPOLoss)
    """Settings of sppo."""
    apo_zero: APOZeroLoss = field(default_factory=APOZeroLoss)
    """Settings of apo_zero."""
    apo_down: APODownLoss = field(default_factory=APODownLoss)
    """Settings of apo_down."""
    simpo: SimPOLoss = field(default_factory=SimPOLoss)
    """Settings of simpo."""
    cpo: CPOLoss = field(default_factory=CPOLoss)
    """Settings of cpo."""
    orpo: ORPOLoss = field(default_factory=ORPOLoss)
    """Settings of orpo."""

    @property
    def parts(self) -> list[tuple[float, PairLoss]]:
        """The weighted losses.

        Raises:
            ConfigError: `terms` can't be read, or names no loss.
        """
        return [(weight, SFTLoss() if name == "sft" else getattr(self, name)) for weight, name in _terms(self)]

    @property
    def heaviest(self) -> PairLoss:
        """The loss whose implicit reward is logged: that of the largest weight, the first one of equals; sft, which
        compares nothing, only where it is alone."""
        return max(self.parts, key=lambda part: (not isinstance(part[1], SFTLoss), part[0]))[1]

    def misfit(self) -> str | None:
        """What does not fit together, or None."""
        try:
            idle = self.idle_fields()
        except ConfigError as error:
            return str(error)
        for name in idle:
            if getattr(self, name) != getattr(SumLoss(), name):
                return f"{name}.* has no effect: terms = {self.terms} does not name {name}"
        return None

    def idle_fields(self) -> tuple[str, ...]:
        """Settings of losses that take no part."""
        named = {"terms", *(name for _, name in _terms(self))}
        return tuple(one.name for one in fields(self) if one.name not in named)


def _terms(loss: SumLoss) -> list[tuple[float, str]]:
    """ "dpo + 0.1*sft" → [(1.0, "dpo"), (0.1, "sft")]."""
    known = ["sft", *(one.name for one in fields(loss) if one.name != "terms")]
    found: list[tuple[float, str]] = []
    for term in loss.terms.split("+"):
        weight, star, name = term.strip().rpartition("*")
        name = name.strip().replace("-", "_")
        if name not in known:
            raise ConfigError(f'terms = {loss.terms}: there is no loss "{name}"; {nearest(name, known)}')
        try:
            value = float(weight) if star else 1.0
        except ValueError:
            value = math.nan
        if not 0 < value < math.inf:
            raise ConfigError(f'terms = {loss.terms}: the weight "{weight}" must be a number > 0, as in dpo + 0.1*sft')
        if name in (other for _, other in found):
            raise ConfigError(f"terms = {loss.terms}: {name} is named twice; add its weights up")
        found.append((value, name))
    return found


@dataclass(frozen=True, kw_only=True)
class KTOLoss:
    """λ_D·(1 − σ(β(Δ − z₀))) of a desirable response, λ_U·(1 − σ(β(z₀ − Δ))) of an undesirable one."""

    beta: Beta = 0.1
    """As in DPO, > 0."""
    desirable_weight: Beta = 1.0
    """λ_D > 0. Where the kinds are uneven, λ_D·n_D/(λ_U·n_U) is best in 1 to 1.5."""
    undesirable_weight: Beta = 1.0
    """λ_U > 0."""


@dataclass(frozen=True, kw_only=True)
class BCOLoss:
    """−log σ(βΔ − δ) of a desirable response, −log σ(δ − βΔ) of an undesirable one; δ is the running mean of βΔ."""

    beta: Beta = 0.01
    """As in DPO, > 0."""
    shift_decay: Annotated[float, Ge(0), Lt(1)] = 0.9
    """How much of the running mean δ a step keeps, in [0, 1)."""


PairLoss = (
    DPOLoss
    | RobustDPOLoss
    | IPOLoss
    | HingeLoss
    | EXOLoss
    | AOTLoss
    | LengthNormalisedDPOLoss
    | FDPOLoss
    | DPOPLoss
    | NCALoss
    | BCOPairLoss
    | SPPOLoss
    | APOZeroLoss
    | APODownLoss
    | SimPOLoss
    | CPOLoss
    | ORPOLoss
    | SFTLoss
    | SumLoss
)
