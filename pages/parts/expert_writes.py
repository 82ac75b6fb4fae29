"""What the expert writes: tokens promoted and suppressed by its mean contribution or update, and its direct parts."""

from __future__ import annotations

import streamlit as st

from core import expert_questions
from core import expert_write_charts as charts
from core.expert_link import WRITTEN
from core.formats import logits, norm

from . import address, expert_state, pictures, present, text
from .answers import answer
from .expert_pieces import Shown, figure, header, table, traces
from .listing import Column

NAMES = {
    "contribution_all": "contribution, every position",
    "contribution_last_subject": "contribution, last subject token",
    "contribution_last": "contribution, last position",
    "update_last_subject": "update, last subject token",
    "update_last": "update, last position",
}
HELP = (
    "Contribution: router weight × output in the clean runs. Update: clean minus corrupt contribution, which is what "
    "an expert patch adds. Means over the tokens that are routed to it."
)
VECTORS: dict[str, Column] = {
    "vector": Column("mean of its"),
    "tokens": Column("tokens", "Over how many tokens the mean is."),
    "norm": Column("norm of the mean", "‖mean vector‖."),
    "mean_norm": Column("mean norm", "Mean of the tokens' norms; equal to the other where all point the same way."),
}
FACTS: dict[str, Column] = {
    "subject": Column("subject"),
    "true_token": Column("true", "Token of the true object."),
    "foil_token": Column("foil", "Token of the foil."),
    "direct": Column("direct", "Direct part of its contribution on the clean contrast (direct logit attribution)."),
    "direct_update": Column("direct of update", "Direct part of its update on the corrupt contrast."),
    "router_weight": Column("w clean", "Router weight at the last position."),
    "contribution_norm": Column("‖c‖", "Norm of its contribution at the last position."),
    "update_norm": Column("‖δ‖", "Norm of its update there, mean over the draws."),
    "clean_contrast": Column("clean contrast"),
    "relation": Column("relation"),
    "case_id": Column("case_id"),
}


def draw(shown: Shown) -> None:
    """The section."""
    view = shown.view
    request = expert_questions.writes(
        view.model, shown.facts, layer=shown.layer, expert=shown.expert, **view.settings
    )  # fmt: skip
    result, _ = answer(request, "expert writes")
    if result is None:
        return
    _tokens(shown, result)
    _direct(shown, result)


def _tokens(shown: Shown, result) -> None:  # noqa: ANN001 - a core.derived.DerivedResult
    view = shown.view
    key = address.key("expert written")
    st.segmented_control(
        "Mean of its", WRITTEN, default=view.written, key=key, wrap=True,
        required=True, format_func=NAMES.__getitem__, help=HELP,
        on_change=address.callback(key, lambda: expert_state.look(written=st.session_state[key] or WRITTEN[2])),
    )  # fmt: skip
    what, _, where = view.written.partition("_")
    vectors, tokens = result.tables["vectors"], result.tables["tokens"]
    mean = vectors[(vectors.what == what) & (vectors["where"] == where)].iloc[0]
    tokens = tokens[(tokens.what == what) & (tokens["where"] == where)]
    if result.values["missing"]:
        st.info(text.plain(result.values["missing"]))
    elif tokens.empty:
        st.info(f"No token is routed to {view.name} there: choose another mean, or more facts.")
    else:
        picture = charts.written_tokens(tokens, palette=pictures.theme())
        said = f"Mean over {mean.tokens} tokens, norm {norm(mean.norm)}. Effects with {result.values['reference']}."
        figure("Tokens promoted and suppressed", view.written, result, picture, tokens, view, caption=said)
    named = vectors.assign(vector=(vectors.what + "_" + vectors["where"]).map(NAMES))
    header("The mean vectors", "vectors", result, None, vectors, view)
    table(named, VECTORS, key=f"es_expert_vectors_{view.name}", alt="Mean vectors")


def _direct(shown: Shown, result) -> None:  # noqa: ANN001
    view, facts = shown.view, result.tables["facts"]
    own = facts[facts.clean_active].reset_index(drop=True)
    value, words = ("direct_update", "update") if view.written.startswith("update") else ("direct", "contribution")
    if own.empty:
        present.caption(f"{view.name} is clean-active at the last position of none of these facts: no direct part.")
    if own[value].isna().all():
        return
    own["relation"] = own.relation.fillna("(no relation)")
    picture = charts.direct_strip(own, value, palette=pictures.theme())
    said = (
        "True − foil, what reaches the logits from the last position without a later layer. Facts where it is clean-"
        f"active: mean {logits(own[value].mean())} logits (n {len(own)}). Pink tick: mean of the relation."
    )
    figure(f"Direct part of its {words}, fact by fact", value, result, picture, own, view, caption=said)
    own = own.sort_values(value, ascending=False)
    table(
        shown.with_traces(own), FACTS, key=f"es_expert_direct_{view.name}", alt="Direct parts by fact",
        more=traces(),
    )  # fmt: skip
