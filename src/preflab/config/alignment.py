"""How a model of rows is aligned: its discriminators, its reward, its rounds."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Interval, Le

from preflab.config.online import GRPO, PPO, RLOO, RolloutBatch
from preflab.config.online_preference import OnlineDPO, PairBatch
from preflab.config.pair_losses import DPOLoss, SumLoss
from preflab.config.training import Optimizer, Positive, Seed
from preflab.errors import ConfigError, nearest

Kind = Literal["trees", "neural"]
RelationKind = Literal["difference", "share"]
Level = Literal["token", "sentence", "row", "feature"]

OF_TREES = ("trees", "leaves", "learning_rate", "relations")
OF_ENCODERS = (
    "width",
    "epochs",
    "patience",
    "encoder_batch",
    "encoder_rate",
    "encoder_dropout",
    "encoder_decay",
    "hats",
)
"""Settings of `Discriminators` that one kind has."""


@dataclass(frozen=True, kw_only=True)
class Discriminators:
    """Classifiers that tell training rows from rows of the model."""

    levels: tuple[Level, ...] = ("token", "row")
    """token: each token given those before it; sentence: each cell; row: whole rows; feature: groups of columns."""
    kind: Kind = "trees"
    """trees: gradient-boosted trees on the columns' values; neural: encoders of tokens, which the sentence level always
    is, and the token level where rows are written as sentences."""
    groups: tuple[str, ...] = ()
    """Groups of related columns, each of which has a discriminator of its own at the feature level:
    NAME=COLUMN,COLUMN,…; none: groups are found from the data."""
    folds: Annotated[int, Interval(ge=2, le=20)] = 4
    """Parts into which rows are dealt: at each level one discriminator is fitted for each part, on the rows of all
    others, and their logits are averaged; 2 to 20."""
    written: Annotated[float, Gt(0)] = 4.0
    """Rows that are drawn of the model for each training row, > 0; both classes weigh alike whatever it is."""
    trees: Positive = 100
    """Rounds of boosting."""
    relations: tuple[RelationKind, ...] = ("difference",)
    """What trees are shown of two columns beside the columns, where training rows and rows of the model are most apart.
    difference: is one above the other? share: is one a whole percentage of the other? None: columns alone."""
    leaves: Annotated[int, Ge(2)] = 31
    """Leaves of a tree, at most; ≥ 2."""
    learning_rate: Annotated[float, Gt(0)] = 0.1
    """What of a tree's answer counts, in boosting, > 0."""
    width: Positive = 64
    """Of a neural encoder's states."""
    epochs: Positive = 12
    """Passes of a neural encoder over its rows, at most."""
    patience: Positive = 3
    """Passes without a better loss of a tenth of its rows, held out, after which an encoder stops."""
    encoder_batch: Positive = 128
    """Rows in a step of an encoder."""
    encoder_rate: Annotated[float, Gt(0), Le(1)] = 3e-3
    """Peak learning rate of an encoder's AdamW, in (0, 1]."""
    encoder_dropout: Annotated[float, Interval(ge=0, lt=1)] = 0.1
    """Share of an encoder's states dropped while it learns, in [0, 1)."""
    encoder_decay: Annotated[float, Ge(0)] = 0.05
    """Decoupled weight decay of an encoder, ≥ 0."""
    hats: Positive = 16
    """Of a neural encoder of the compact encoding: into how many quantiles the smooth features of a column's numbers
    divide them."""

    def misfit(self) -> str | None:
        """What does not fit together, or None."""
        if not self.levels:
            return "levels: name at least one of token, sentence, row and feature"
        if twice := [level for level in self.levels if self.levels.count(level) > 1]:
            return f"levels: {twice[0]} stands twice; name each once"
        for name in self._idle():
            if getattr(self, name) != getattr(Discriminators, name):
                return (
                    f"{name} has no effect with kind = {self.kind} and levels = {', '.join(self.levels)}; leave it out"
                )
        return None

    def _idle(self) -> tuple[str, ...]:
        """Settings of discriminators that there are none of."""
        levels = {*self.levels}
        with_trees = levels - {"sentence"} if self.kind == "trees" else set()
        with_encoders = levels - {"row", "feature"} if self.kind == "trees" else levels
        return (
            *(() if with_trees else OF_TREES),
            *(() if with_encoders else OF_ENCODERS),
            *(() if "feature" in self.levels else ("groups",)),
        )


METHODS = ("ppo", "grpo", "rloo", "dpo")
"""What can train a model of rows further; dpo is online DPO."""


def methods_of(name: str) -> tuple[str, ...]:
    """The stages of a method: "dpo+ppo" has two.

    Raises:
        ConfigError: there is no such method.

    >>> methods_of("dpo+ppo")
    ('dpo', 'ppo')
    """
    found = tuple(name.split("+"))
    for one in found:
        if one not in METHODS:
            raise ConfigError(f'there is no method "{one}" for tables; {nearest(one, METHODS)}')
    return found


def _rate(rate: float) -> Optimizer:
    return Optimizer(learning_rate=rate, warmup_steps=5, decay="linear")


GENTLE: dict[str, Any] = {
    "updates": 20,
    "batch": RolloutBatch(size=1024, mini=512, micro=256),
    "kl_coefficient": 1.0,
    "missing_end_penalty": 0.0,  # the mask ends every row
    "optimizer": _rate(1e-4),
    "evaluations": 2,
}
"""What PPO, GRPO and RLOO share. β = 1 is where the logit reward leads to the table itself."""


def _ppo() -> PPO:
    # discount = 0: a token is paid what it changes itself, not what later ones spoil, which can still learn. So PPO
    # knows better where to go than methods that are paid by the row, and may take longer steps.
    longer = GENTLE | {"updates": 40, "optimizer": _rate(3e-4)}
    return PPO(**longer, epochs=1, value_trunk="shared", value_optimizer=_rate(1e-3), discount=0.0)


def _grpo() -> GRPO:
    return GRPO(**GENTLE, responses=8)


def _rloo() -> RLOO:
    return RLOO(**GENTLE)


def _dpo() -> OnlineDPO:
    return OnlineDPO(
        updates=20,
        batch=PairBatch(size=256, mini=256, micro=64),
        missing_end_penalty=0.0,
        loss=SumLoss(terms="dpo", dpo=DPOLoss(beta=1.0)),
        optimizer=_rate(1e-4),
        evaluations=2,
    )


@dataclass(frozen=True, kw_only=True)
class Alignment:
    """How a model of rows learns from discriminators. Defaults take short ways from the reference; the settings of the
    founding experiment are in recipes/dpo-vs-ppo-table."""

    reward: Literal["logit", "weighted"] = "logit"
    """What a row is paid. logit: log p(row | real) − log p(row | the model's), in nats, as all discriminators together
    estimate it; at kl_coefficient = 1 the best policy of PPO and RLOO is then the table itself. weighted: 0.2 token +
    0.3 sentence + 0.3 row + 0.2 feature, of the probabilities that it is real; what levels that are left out weigh goes
    to the others."""
    clip_nats: Annotated[float, Gt(0)] = 5.0
    """Of the logit reward: a row gets no more than this and no less than its negative, > 0."""
    dense: bool = True
    """Of PPO: pay tokens their own shares of the row's reward where the levels have any, which add up to it."""
    rounds: Positive = 2
    """Discriminators are fitted anew, to fresh rows of the policy, at the start of each; KL is then paid from that
    policy."""
    discriminators: Discriminators = field(default_factory=Discriminators)
    """What tells training rows from the model's."""
    judged: Annotated[int, Ge(100)] = 2000
    """Rows that are drawn at each checkpoint, for a random forest to tell from validation rows; the checkpoint where it
    does so least is kept. ≥ 100."""
    ppo: PPO = field(default_factory=_ppo)
    """One round of PPO: its reference is the policy that the round began with."""
    grpo: GRPO = field(default_factory=_grpo)
    """One round of GRPO: its reference is the policy that the round began with."""
    rloo: RLOO = field(default_factory=_rloo)
    """One round of RLOO: its reference is the policy that the round began with."""
    dpo: OnlineDPO = field(default_factory=_dpo)
    """One round of online DPO: its reference is the policy that the round began with."""

    def misfit(self) -> str | None:
        """What does not fit together, or None."""
        if self.reward != "logit" and self.clip_nats != Alignment.clip_nats:
            return f"clip_nats has no effect with reward = {self.reward}; leave it out"
        if not self.dense and self.reward == "logit" and "token" not in self.discriminators.levels:
            return (
                "dense has no effect where no discriminator is of the token level: rows are paid at their end; leave "
                "it out, or add token to discriminators.levels"
            )
        return None

    def unpaid(self) -> str | None:
        """Why PPO would learn nothing at ppo.discount = 0, or None."""
        if self.ppo.discount > 0 or (self.reward == "logit" and self.dense and "token" in self.discriminators.levels):
            return None
        return (
            "ppo.discount = 0 pays a token what it changes itself, which takes reward = logit, dense = true and token "
            "in discriminators.levels; set these, or ppo.discount = 1"
        )


@dataclass(frozen=True, kw_only=True)
class Aligned(Alignment):
    """One alignment: what `aligned/METHOD/config.yaml` says."""

    method: str = "ppo"
    """ppo, grpo, rloo, dpo (online DPO), or a chain of them: dpo+ppo starts PPO from what DPO made."""
    seed: Seed = 0
    """Determines discriminators, rows and steps."""

    def idle_fields(self) -> tuple[str, ...]:
        """Settings of methods that take no part, and those that do nothing beside the others."""
        trained = methods_of(self.method)
        idle = [name for name in METHODS if name not in trained]
        if self.reward != "logit":
            idle.append("clip_nats")
        if "ppo" not in trained:
            idle.append("dense")
        return tuple(idle)

    def misfit(self) -> str | None:
        """What does not fit together, or None."""
        start = Alignment()
        for name in self.idle_fields():
            if getattr(self, name) != getattr(start, name):
                return f"{name} has no effect with method = {self.method} and reward = {self.reward}; leave it out"
        return super().misfit() or (self.unpaid() if "ppo" in methods_of(self.method) else None)
