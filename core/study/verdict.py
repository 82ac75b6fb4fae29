"""The verdict: a total function of the intervals, as a table of rules, and the words that state those intervals.

docs/verdict.md shows the table. Knows estimates, no rows.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..formats import NONE, logits, percent
from ..results import expert_name
from ..stats import Estimate

SPECIFIC_EXPERT = "specific expert"
COALITION = "coalition"
NO_RECURRENT_EXPERT = "no recurrent expert"
NO_LAYER = "no layer-level localisation"

NEGLIGIBLE = 0.02
"""A layer effect below this share of the mean drop is none, however narrow its interval."""

FEW = 20
"""Below so many units a percentile interval is too narrow to be taken at its word."""

YES, NO, NONE_OF_THAT_SIZE, ANY = "yes", "no", "no other", "any"

QUESTIONS = {
    "layer": "Is the layer patch's interval above 0, and its mean at least 2 % of the drop?",
    "candidate": "Is an expert clean-active in enough discovery facts?",
    "specific": "Is the specificity interval (against active-random controls) above 0?",
    "gate_matched": "Is the interval against the gate-matched control above 0 too?",
    "reached": "Did a coalition of clean-active experts reach the wanted share of the layer patch on discovery?",
    "recovers": "Is that coalition's interval above 0, and not below the wanted share of the layer patch?",
    "beats_random": "Is it above random coalitions of its size? (“no other”: it is all of several active experts)",
}

RULES: tuple[tuple[dict[str, tuple[str, ...]], str], ...] = (
    ({"layer": (NO,)}, NO_LAYER),
    ({"candidate": (NO,)}, NO_RECURRENT_EXPERT),
    ({"specific": (YES,), "gate_matched": (YES,)}, SPECIFIC_EXPERT),
    ({"reached": (YES,), "recovers": (YES,), "beats_random": (YES, NONE_OF_THAT_SIZE)}, COALITION),
    ({}, NO_RECURRENT_EXPERT),
)
"""(answers, verdict): the first rule whose answers all hold gives the verdict; questions not named may have any."""


@dataclass(frozen=True)
class Evidence:
    """What the verdict depends on: estimates on validation, and the choices made on discovery.

    `expert`, `n_active` of `n_discovery`: the selected one (None: no candidate) and its recurrence; `needed`: by a
    candidate. `coalition_size`: 0 where there is none; `coalition_rule` in words; `reached`: on discovery.
    `coalition_members`: (expert, facts) of the validation facts' minimal coalitions, most frequent first.
    """

    layer: int | None
    expert: int | None
    n_active: int
    n_discovery: int
    needed: int
    layer_rescue: Estimate
    drop: float
    expert_rescue: Estimate
    specificity: Estimate
    gate_matched: Estimate
    coalition_size: int
    coalition_rule: str
    coalition_share: float
    reached: bool
    minimal: Estimate
    minimal_minus_target: Estimate
    minimal_minus_random: Estimate
    coalition_members: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True)
class Verdict:
    """`label`: one of the four; `rule`: number of the rule that gave it, from 1; `words`: the sentences that say why;
    `cautions`: what weakens them."""

    label: str
    rule: int
    words: list[str]
    cautions: list[str]


def answers(evidence: Evidence) -> dict[str, str]:
    """The answer to each of `QUESTIONS`. A missing interval is never above 0, and a missing coalition recovers
    nothing."""
    e = evidence
    effect = e.layer_rescue.above_zero and not e.layer_rescue.mean < NEGLIGIBLE * e.drop
    recovers = e.minimal.above_zero and e.minimal_minus_target.ci_high >= 0
    if e.minimal_minus_random.n == 0 and e.coalition_size >= 2:
        beats_random = NONE_OF_THAT_SIZE
    else:
        beats_random = _yes(e.minimal_minus_random.above_zero)
    return {
        "layer": _yes(effect),
        "candidate": _yes(e.expert is not None),
        "specific": _yes(e.specificity.above_zero),
        "gate_matched": _yes(e.gate_matched.above_zero),
        "reached": _yes(e.reached),
        "recovers": _yes(recovers),
        "beats_random": beats_random,
    }


def rule_for(answered: dict[str, str]) -> int:
    """The number of the first rule that holds, from 1; the last one always does."""
    return next(
        i
        for i, (wanted, _) in enumerate(RULES, start=1)
        if all(answered[question] in allowed for question, allowed in wanted.items())
    )


def decide(evidence: Evidence) -> Verdict:
    """The verdict for any evidence whatever."""
    rule = rule_for(answers(evidence))
    return Verdict(RULES[rule - 1][1], rule, _words(evidence, rule), _cautions(evidence))


def interval(estimate: Estimate) -> str:
    """+0.463 [+0.344, +0.590]; – where undefined."""
    if estimate.n == 0:
        return NONE
    low, high = logits(estimate.ci_low), logits(estimate.ci_high)
    return f"{logits(estimate.mean)} [{low}, {high}]"


def _words(e: Evidence, rule: int) -> list[str]:
    if e.layer is None or e.layer_rescue.n == 0:
        return ["Nothing was measured on validation facts, so no layer-level effect is shown."]
    share = f", {percent(e.layer_rescue.mean / e.drop)} of the drop" if e.drop > 0 else ""
    layer = f"restoring the MoE block of layer {e.layer} rescues {interval(e.layer_rescue)} logits{share}"
    if rule == 1:
        why = "too little to speak of" if e.layer_rescue.above_zero else "an interval that is not above 0"
        return [f"No layer stands out: {layer} on {_facts(e.layer_rescue.n)}, {why}."]
    words = [f"There is an effect at one layer: {layer} on {_facts(e.layer_rescue.n)}."]
    if e.expert is None:
        words.append(
            f"No expert of layer {e.layer} recurs: none is clean-active in {e.needed} of the {e.n_discovery} "
            "discovery facts."
        )
        return words
    name = expert_name(e.layer, e.expert)
    words.append(
        f"Of the experts that recur there, {name} rescues most (clean-active in {e.n_active} of {e.n_discovery} "
        f"discovery facts): {interval(e.expert_rescue)} on its own."
    )
    against = (
        f"its specificity is {interval(e.specificity)} against other active experts and {interval(e.gate_matched)} "
        "against the one with the nearest router weight"
    )
    if rule == 3:
        return [*words, f"It is specific: {against}; both intervals lie above 0."]
    if e.specificity.n == 0 and e.gate_matched.n == 0:
        words.append("No other expert is active beside it, so its specificity cannot be tested.")
    else:
        words.append(f"It is not specific: {against}; not both intervals lie above 0.")
    return [*words, _coalition_words(e, rule)]


_NOT_CARRIED = "No coalition is shown to carry it"


def _coalition_words(e: Evidence, rule: int) -> str:
    if e.coalition_size == 0 or e.minimal.n == 0:
        return "No coalition was measured."
    wanted = f"{100 * e.coalition_share:.0f} % of the layer patch"
    if not e.reached:
        return f"No coalition reaches {wanted} on discovery; all active experts rescue {interval(e.minimal)}."
    if e.coalition_size == 1:
        group = f"the first active expert of each fact by {e.coalition_rule} rescues"
        carried = "One expert per fact is enough, but not the same one in all" if rule == 4 else _NOT_CARRIED
    else:
        group = f"the first {e.coalition_size} active experts of each fact by {e.coalition_rule} rescue"
        carried = "A coalition carries it" if rule == 4 else _NOT_CARRIED
    other = f"minus random coalitions of that size {interval(e.minimal_minus_random)}"
    if e.minimal_minus_random.n == 0:
        other = "and that is all active experts, so that there are no others of that size"
    gap = f"minus {wanted} that leaves {interval(e.minimal_minus_target)}"
    return f"{carried}: {group} {interval(e.minimal)}; {gap}, {other}.{_members(e)}"


def _members(e: Evidence) -> str:
    """Who is in the coalitions most often: as many as a coalition has, or the first few of them."""
    named = [f"{expert_name(e.layer, expert)} ({n})" for expert, n in e.coalition_members[: min(e.coalition_size, 4)]]
    if not named:
        return ""
    return f" Most often in it: {', '.join(named)} of {_facts(e.minimal.n)}."


def _cautions(e: Evidence) -> list[str]:
    out = []
    units = e.layer_rescue.units
    if 0 < units < FEW:
        out.append(f"Only {units} units were resampled: percentile intervals are too narrow for so few.")
    stated = [("layer patch", e.layer_rescue)]
    stated += [] if e.expert is None else [("specificity", e.specificity)]
    for what, estimate in stated:
        if estimate.n_missing:
            out.append(f"{what}: {_facts(estimate.n_missing)} missing, {_facts(estimate.n)} used.")
    return out


def _facts(n: int) -> str:
    return f"{n} fact" if n == 1 else f"{n} facts"


def _yes(condition: bool) -> str:
    return YES if condition else NO
