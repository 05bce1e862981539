"""Every formula once more, as the papers write it, in 60-digit decimal arithmetic: no torch, nothing of preflab.

With 60 digits and exponents almost without end nothing overflows, and what cancels leaves enough digits, so formulas
may stand as they are. Gradients are central differences with a step of 10⁻²⁰, exact far beyond what float64 holds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal, localcontext
from typing import Any

Formula = Callable[[Sequence[Decimal]], Sequence[Decimal]]
STEP = Decimal("1e-20")
ZERO = Decimal(0)


def value_and_gradient(formula: Formula, point: Sequence[float]) -> tuple[list[float], list[float]]:
    """What `formula` makes of a point, and the derivatives of its sum by each coordinate."""
    with localcontext(prec=60, Emax=10**9, Emin=-(10**9)):
        at = [Decimal(x) for x in point]

        def moved(index: int, step: Decimal) -> Decimal:
            return total(formula([x + step if i == index else x for i, x in enumerate(at)]))

        gradient = [float((moved(i, STEP) - moved(i, -STEP)) / (2 * STEP)) for i in range(len(at))]
        return [float(y) for y in formula(at)], gradient


def value(formula: Formula, point: Sequence[float]) -> list[float]:
    """What `formula` makes of a point."""
    with localcontext(prec=60, Emax=10**9, Emin=-(10**9)):
        return [float(y) for y in formula([Decimal(x) for x in point])]


def total(values: Sequence[Decimal]) -> Decimal:
    return sum(values, ZERO)


def mean(values: Sequence[Decimal]) -> Decimal:
    return total(values) / len(values)


def sigmoid(x: Decimal) -> Decimal:
    return 1 / (1 + (-x).exp())


def minus_log_sigmoid(x: Decimal) -> Decimal:
    return (1 + (-x).exp()).ln() if x > -1000 else -x  # the rest is below 10⁻⁴³⁴


def exact(number: float) -> Decimal:
    """A setting, digit by digit what float64 makes of it."""
    return Decimal(number)


# --- pairs: c is the chosen response, r the rejected one --------------------------------------------------------------


@dataclass(frozen=True)
class Response:
    """What a pair loss knows of a response."""

    logprob: Decimal
    reference: Decimal
    tokens: int

    @property
    def ratio(self) -> Decimal:
        return self.logprob - self.reference

    @property
    def mean(self) -> Decimal:
        return self.logprob / self.tokens


def dpo(c: Response, r: Response, *, beta: float, label_smoothing: float = 0.0) -> Decimal:
    e, x = exact(label_smoothing), exact(beta) * (c.ratio - r.ratio)
    return (1 - e) * minus_log_sigmoid(x) + e * minus_log_sigmoid(-x)


def robust_dpo(c: Response, r: Response, *, beta: float, label_smoothing: float) -> Decimal:
    e, x = exact(label_smoothing), exact(beta) * (c.ratio - r.ratio)
    return ((1 - e) * minus_log_sigmoid(x) - e * minus_log_sigmoid(-x)) / (1 - 2 * e)


def ipo(c: Response, r: Response, *, tau: float, average_tokens: bool = False) -> Decimal:
    h = c.ratio / c.tokens - r.ratio / r.tokens if average_tokens else c.ratio - r.ratio
    return (h - 1 / (2 * exact(tau))) ** 2


def hinge(c: Response, r: Response, *, beta: float) -> Decimal:
    return max(ZERO, 1 - exact(beta) * (c.ratio - r.ratio))


def exo(c: Response, r: Response, *, beta: float, label_smoothing: float) -> Decimal:
    e, x = exact(label_smoothing), exact(beta) * (c.ratio - r.ratio)
    right = sigmoid(x) * (-minus_log_sigmoid(x) - (1 - e).ln())
    return right + sigmoid(-x) * (-minus_log_sigmoid(-x) - e.ln())


def length_normalised_dpo(c: Response, r: Response, *, beta: float) -> Decimal:
    return minus_log_sigmoid(exact(beta) * (c.ratio / c.tokens - r.ratio / r.tokens))


def f_dpo(c: Response, r: Response, *, beta: float, divergence: str, alpha: float = 0.5) -> Decimal:
    def slope(u: Decimal) -> Decimal:
        """f'(u)."""
        match divergence:
            case "reverse_kl":
                return u.ln() + 1
            case "forward_kl":
                return -1 / u
            case "jensen_shannon":
                return (2 * u / (1 + u)).ln()
            case "alpha":
                return (1 - (-exact(alpha) * u.ln()).exp()) / exact(alpha)
            case "chi_squared":
                return u + u.ln()
        raise ValueError(divergence)

    return minus_log_sigmoid(exact(beta) * (slope(c.ratio.exp()) - slope(r.ratio.exp())))


def dpop(c: Response, r: Response, *, beta: float, penalty: float) -> Decimal:
    return minus_log_sigmoid(exact(beta) * (c.ratio - r.ratio - exact(penalty) * max(ZERO, -c.ratio)))


def nca(c: Response, r: Response, *, beta: float) -> Decimal:
    x, y = exact(beta) * c.ratio, exact(beta) * r.ratio
    return minus_log_sigmoid(x) + minus_log_sigmoid(-x) / 2 + minus_log_sigmoid(-y) / 2


def bco_pair(c: Response, r: Response, *, beta: float) -> Decimal:
    return minus_log_sigmoid(exact(beta) * c.ratio) + minus_log_sigmoid(-exact(beta) * r.ratio)


def sppo(c: Response, r: Response, *, beta: float) -> Decimal:
    target = 1 / (2 * exact(beta))
    return (c.ratio - target) ** 2 + (r.ratio + target) ** 2


def apo_zero(c: Response, r: Response, *, beta: float) -> Decimal:
    return 1 - sigmoid(exact(beta) * c.ratio) + sigmoid(exact(beta) * r.ratio)


def apo_down(c: Response, r: Response, *, beta: float) -> Decimal:
    return sigmoid(exact(beta) * c.ratio) + 1 - sigmoid(exact(beta) * (c.ratio - r.ratio))


def simpo(c: Response, r: Response, *, beta: float, margin: float) -> Decimal:
    return minus_log_sigmoid(exact(beta) * (c.mean - r.mean) - exact(margin))


def cpo(c: Response, r: Response, *, beta: float, sft_weight: float) -> Decimal:
    return minus_log_sigmoid(exact(beta) * (c.logprob - r.logprob)) - exact(sft_weight) * c.logprob


def odds(c: Response, r: Response, *, weight: float) -> Decimal:
    p, q = c.mean.exp(), r.mean.exp()
    return exact(weight) * minus_log_sigmoid((p / (1 - p)).ln() - (q / (1 - q)).ln())


def orpo(c: Response, r: Response, *, weight: float) -> Decimal:
    return -c.mean + odds(c, r, weight=weight)


def chosen_sft(c: Response, r: Response) -> Decimal:
    return -c.mean


def aot(pairs: Sequence[tuple[Response, Response]], *, beta: float) -> list[Decimal]:
    policy = sorted(c.logprob - r.logprob for c, r in pairs)
    reference = sorted(c.reference - r.reference for c, r in pairs)
    return [minus_log_sigmoid(exact(beta) * (p - q)) for p, q in zip(policy, reference, strict=True)]


# By the names of preflab's settings.
OF_A_PAIR: dict[str, Callable[..., Decimal]] = {
    "DPOLoss": dpo,
    "RobustDPOLoss": robust_dpo,
    "IPOLoss": ipo,
    "HingeLoss": hinge,
    "EXOLoss": exo,
    "LengthNormalisedDPOLoss": length_normalised_dpo,
    "FDPOLoss": f_dpo,
    "DPOPLoss": dpop,
    "NCALoss": nca,
    "BCOPairLoss": bco_pair,
    "SPPOLoss": sppo,
    "APOZeroLoss": apo_zero,
    "APODownLoss": apo_down,
    "SimPOLoss": simpo,
    "CPOLoss": cpo,
    "ORPOLoss": orpo,
    "ORPO's odds": odds,
    "SFTLoss": chosen_sft,
}


def pair_losses(
    loss: str,
    settings: Mapping[str, Any],
    logprob: Sequence[Decimal],
    reference: Sequence[Sequence[float]],
    tokens: Sequence[Sequence[int]],
) -> list[Decimal]:
    """The loss of each pair (AOT's in the order of the margins). `logprob`: chosen and rejected of the first pair,
    then of the next."""
    responses = [
        [Response(logprob[2 * i + k], exact(reference[i][k]), tokens[i][k]) for k in (0, 1)] for i in range(len(tokens))
    ]
    pairs = [(chosen, rejected) for chosen, rejected in responses]
    if loss == "AOTLoss":
        return aot(pairs, **settings)
    if loss == "SumLoss":  # dpo + 0.1*sft
        return [dpo(*pair, beta=0.1) + exact(0.1) * chosen_sft(*pair) for pair in pairs]
    if loss == "DPO + SFT by tokens":
        sft = -total([c.logprob for c, _ in pairs]) / sum(c.tokens for c, _ in pairs)
        return [dpo(*pair, beta=settings["beta"]) + exact(settings["sft_weight"]) * sft for pair in pairs]
    return [OF_A_PAIR[loss](*pair, **settings) for pair in pairs]


# --- single responses, reward models ----------------------------------------------------------------------------------


def kto(
    ratio: Decimal,
    desirable: bool,
    *,
    reference_point: Decimal,
    beta: float,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
) -> Decimal:
    x = exact(beta) * (ratio - reference_point)
    return exact(desirable_weight) * (1 - sigmoid(x)) if desirable else exact(undesirable_weight) * (1 - sigmoid(-x))


def bco(ratio: Decimal, desirable: bool, *, shift: float, beta: float) -> Decimal:
    x = exact(beta) * ratio - exact(shift)
    return minus_log_sigmoid(x if desirable else -x)


def bradley_terry(chosen: Decimal, rejected: Decimal, *, margin: float = 0.0, centring: float = 0.0) -> Decimal:
    return minus_log_sigmoid(chosen - rejected - exact(margin)) + exact(centring) * (chosen + rejected) ** 2


# --- tokens: rows are responses, of unequal lengths -------------------------------------------------------------------


def aggregate(rows: Sequence[Sequence[Decimal]], how: str, *, longest: int) -> Decimal:
    match how:
        case "token-mean":
            return mean([x for row in rows for x in row])
        case "seq-mean-token-mean":
            return mean([mean(row) for row in rows])
        case "seq-mean-token-sum":
            return mean([total(row) for row in rows])
        case "seq-mean-token-sum-norm":
            return mean([total(row) / longest for row in rows])
    raise ValueError(how)


def clipped(log_ratio: Decimal, advantage: float, *, clip: float, clip_higher: float | None = None) -> Decimal:
    """PPO's −min(ρÂ, clip(ρ)Â)."""
    rho, a = log_ratio.exp(), exact(advantage)
    upper = 1 + exact(clip if clip_higher is None else clip_higher)
    return -min(rho * a, min(max(rho, 1 - exact(clip)), upper) * a)


def k1(logprob: Decimal, reference: Decimal) -> Decimal:
    return logprob - reference


def k2(logprob: Decimal, reference: Decimal) -> Decimal:
    return (logprob - reference) ** 2 / 2


def k3(logprob: Decimal, reference: Decimal) -> Decimal:
    return (reference - logprob).exp() - 1 - (reference - logprob)


def softmax(logits: Sequence[Decimal]) -> list[Decimal]:
    weights = [x.exp() for x in logits]
    return [weight / total(weights) for weight in weights]


def kl(logits: Sequence[Decimal], reference_logits: Sequence[Decimal]) -> Decimal:
    return total([p * (p / q).ln() for p, q in zip(softmax(logits), softmax(reference_logits), strict=True)])


def entropy(logits: Sequence[Decimal]) -> Decimal:
    return -total([p * p.ln() for p in softmax(logits)])


def squared_value_error(value: Decimal, old: Decimal, target: Decimal, *, clip: float | None) -> Decimal:
    """PPO's ½·max((V − R)², (clip(V) − R)²)."""
    if clip is None:
        return (value - target) ** 2 / 2
    near = min(max(value, old - exact(clip)), old + exact(clip))
    return max((value - target) ** 2, (near - target) ** 2) / 2


def advantages_by_sum(
    rewards: Sequence[Decimal], values: Sequence[Decimal], *, discount: float, lam: float
) -> list[Decimal]:
    """GAE by its definition, Σ_k (γλ)^k·δ_{t+k}, not by the recursion."""
    g, decay = exact(discount), exact(discount) * exact(lam)
    after = [*values[1:], ZERO]
    deltas = [reward + g * later - now for reward, now, later in zip(rewards, values, after, strict=True)]
    powers = [Decimal(1)]
    for _ in deltas:
        powers.append(powers[-1] * decay)
    return [
        total([power * delta for power, delta in zip(powers, deltas[t:], strict=False)]) for t in range(len(deltas))
    ]


def whitened(values: Sequence[Decimal], *, shift_mean: bool = True) -> list[Decimal]:
    """Less the mean, over the biased standard deviation, with 1e-8 under the root."""
    centre = mean(values)
    spread = (mean([(x - centre) ** 2 for x in values]) + exact(1e-8)).sqrt()
    return [(x - centre) / spread + (ZERO if shift_mean else centre) for x in values]


def token_rewards(
    score: Decimal, logprobs: Sequence[Decimal], reference: Sequence[Decimal], *, kl_coefficient: float
) -> list[Decimal]:
    rewards = [-exact(kl_coefficient) * (p - q) for p, q in zip(logprobs, reference, strict=True)]
    return [*rewards[:-1], rewards[-1] + score]


def less_mean(group: Sequence[Decimal]) -> list[Decimal]:
    return [x - mean(group) for x in group]


def less_mean_of_others(group: Sequence[Decimal]) -> list[Decimal]:
    return [x - mean([*group[:i], *group[i + 1 :]]) for i, x in enumerate(group)]


def over_std(group: Sequence[Decimal], *, epsilon: float) -> list[Decimal]:
    """(r − mean)/(std + ε), the standard deviation with n − 1."""
    deviation = (total([x**2 for x in less_mean(group)]) / (len(group) - 1)).sqrt()
    return [x / (deviation + exact(epsilon)) for x in less_mean(group)]
