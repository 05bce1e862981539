"""Methods that learn from preferences on a fixed data set. All start from one rate: a comparison compares losses."""

from __future__ import annotations

from dataclasses import dataclass, field

from preflab.config.pair_losses import (
    AOTLoss,
    APODownLoss,
    APOZeroLoss,
    BCOLoss,
    BCOPairLoss,
    CPOLoss,
    DPOLoss,
    DPOPLoss,
    EXOLoss,
    FDPOLoss,
    HingeLoss,
    IPOLoss,
    KTOLoss,
    LengthNormalisedDPOLoss,
    NCALoss,
    ORPOLoss,
    PairLoss,
    RobustDPOLoss,
    SimPOLoss,
    SPPOLoss,
    SumLoss,
)
from preflab.config.training import Fit, Optimizer


@dataclass(frozen=True, kw_only=True)
class Preference(Fit):
    """What every method on pairs is told."""

    loss: PairLoss
    """The loss of a pair."""
    optimizer: Optimizer = field(default_factory=lambda: Optimizer(learning_rate=5e-6))
    """How a step is taken."""


@dataclass(frozen=True, kw_only=True)
class DPO(Preference):
    """Direct preference optimisation."""

    loss: DPOLoss = field(default_factory=DPOLoss)
    """The loss of a pair."""


@dataclass(frozen=True, kw_only=True)
class ConservativeDPO(Preference):
    """Conservative DPO: DPO that believes a share of the labels to be flipped."""

    loss: DPOLoss = field(default_factory=lambda: DPOLoss(label_smoothing=0.1))
    """The loss of a pair."""


@dataclass(frozen=True, kw_only=True)
class RobustDPO(Preference):
    """Robust DPO: unbiased where a known share of the labels is flipped."""

    loss: RobustDPOLoss = field(default_factory=RobustDPOLoss)
    """The loss of a pair."""


@dataclass(frozen=True, kw_only=True)
class IPO(Preference):
    """Identity preference optimisation: a finite margin even where labels are certain."""

    loss: IPOLoss = field(default_factory=IPOLoss)
    """The loss of a pair."""


@dataclass(frozen=True, kw_only=True)
class Hinge(Preference):
    """Hinge loss on the margin (SLiC with a reference, as in RSO)."""

    loss: HingeLoss = field(default_factory=HingeLoss)
    """The loss of a pair."""


@dataclass(frozen=True, kw_only=True)
class EXO(Preference):
    """Exact preference optimisation on pairs: reverse KL to the smoothed label."""

    loss: EXOLoss = field(default_factory=EXOLoss)
    """The loss of a pair."""


@dataclass(frozen=True, kw_only=True)
class AOT(Preference):
    """Alignment by optimal transport: stochastic dominance of the policy's margins over the reference's."""

    loss: AOTLoss = field(default_factory=AOTLoss)
    """The loss of a pair."""


@dataclass(frozen=True, kw_only=True)
class LengthNormalisedDPO(Preference):
    """Length-normalised DPO: log-ratios per token."""

    loss: LengthNormalisedDPOLoss = field(default_factory=LengthNormalisedDPOLoss)
    """The loss of a pair."""


@dataclass(frozen=True, kw_only=True)
class FDPO(Preference):
    """DPO under another divergence than the reverse KL."""

    loss: FDPOLoss = field(default_factory=FDPOLoss)
    """The loss of a pair."""


@dataclass(frozen=True, kw_only=True)
class DPOP(Preference):
    """DPO-positive: pays for a chosen response that falls below the reference."""

    loss: DPOPLoss = field(default_factory=DPOPLoss)
    """The loss of a pair."""


@dataclass(frozen=True, kw_only=True)
class NCA(Preference):
    """Noise-contrastive alignment on pairs."""

    loss: NCALoss = field(default_factory=NCALoss)
    """The loss of a pair."""


@dataclass(frozen=True, kw_only=True)
class BCOPair(Preference):
    """Binary classifier optimisation on pairs."""

    loss: BCOPairLoss = field(default_factory=BCOPairLoss)
    """The loss of a pair."""


@dataclass(frozen=True, kw_only=True)
class SPPO(Preference):
    """Self-play preference optimisation with hard labels."""

    loss: SPPOLoss = field(default_factory=SPPOLoss)
    """The loss of a pair."""


@dataclass(frozen=True, kw_only=True)
class APOZero(Preference):
    """Anchored preference optimisation that lifts chosen and lowers rejected responses."""

    loss: APOZeroLoss = field(default_factory=APOZeroLoss)
    """The loss of a pair."""


@dataclass(frozen=True, kw_only=True)
class APODown(Preference):
    """Anchored preference optimisation that lowers both, rejected ones more."""

    loss: APODownLoss = field(default_factory=APODownLoss)
    """The loss of a pair."""


@dataclass(frozen=True, kw_only=True)
class SimPO(Preference):
    """Simple preference optimisation: mean log-probabilities, no reference."""

    loss: SimPOLoss = field(default_factory=SimPOLoss)
    """The loss of a pair."""


@dataclass(frozen=True, kw_only=True)
class CPO(Preference):
    """Contrastive preference optimisation: DPO without a reference, plus cross-entropy."""

    loss: CPOLoss = field(default_factory=CPOLoss)
    """The loss of a pair."""


@dataclass(frozen=True, kw_only=True)
class ORPO(Preference):
    """Odds-ratio preference optimisation: cross-entropy plus log-odds, no reference."""

    loss: ORPOLoss = field(default_factory=ORPOLoss)
    """The loss of a pair."""


@dataclass(frozen=True, kw_only=True)
class WeightedSum(Preference):
    """A weighted sum of losses on pairs, say DPO + 0.1 × cross-entropy."""

    loss: SumLoss = field(default_factory=SumLoss)
    """The loss of a pair."""


@dataclass(frozen=True, kw_only=True)
class Unpaired(Fit):
    """What every method on responses marked desirable or undesirable is told."""

    loss: KTOLoss | BCOLoss
    """The loss of a response."""
    optimizer: Optimizer = field(default_factory=lambda: Optimizer(learning_rate=5e-6))
    """How a step is taken."""


@dataclass(frozen=True, kw_only=True)
class KTO(Unpaired):
    """Kahneman–Tversky optimisation."""

    loss: KTOLoss = field(default_factory=KTOLoss)
    """The loss of a response."""


@dataclass(frozen=True, kw_only=True)
class BCO(Unpaired):
    """Binary classifier optimisation."""

    loss: BCOLoss = field(default_factory=BCOLoss)
    """The loss of a response."""
