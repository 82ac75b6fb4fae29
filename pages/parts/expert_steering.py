"""The steering box: the expert's contribution times a factor, and what the model then says, beside the unscaled run."""

from __future__ import annotations

import streamlit as st

from core import expert_questions
from core.expert_questions import LEAST_FACTOR, MOST_FACTOR, PLACES
from core.formats import logits, typed
from core.requests import Fact

from . import address, downloads, expert_state, facts_panel, present, text
from .answers import answer
from .expert_pieces import Shown

WHERE = {"all": "every position", "last": "the last position", "subject": "the subject"}
HELP_FACTOR = "0 takes its contribution out, 1 changes nothing, 2 doubles it, −1 turns it round."


def draw(shown: Shown) -> None:
    """The section."""
    view = shown.view
    fact = _fact(shown)
    with st.container(horizontal=True, vertical_alignment="bottom", gap="medium"):
        _choose_fact(shown, fact)
        key = address.key("expert factor")
        st.slider(
            "Factor", LEAST_FACTOR, MOST_FACTOR, view.factor, 0.25, key=key, help=HELP_FACTOR, width=230,
            on_change=address.callback(key, lambda: expert_state.look(factor=float(st.session_state[key]))),
        )  # fmt: skip
        place = address.key("expert where")
        st.segmented_control(
            "At", PLACES, default=view.where, key=place, required=True, wrap=True, format_func=WHERE.__getitem__,
            on_change=address.callback(place, lambda: expert_state.look(where=st.session_state[place] or PLACES[0])),
        )  # fmt: skip
    request = expert_questions.steering(
        view.model, [fact], layer=shown.layer, expert=shown.expert, factor=view.factor, where=view.where,
        **view.settings,
    )  # fmt: skip
    result, _ = answer(request, "expert steering")
    if result is None:
        return
    _say(shown, result)


def _say(shown: Shown, result) -> None:  # noqa: ANN001 - a core.derived.DerivedResult
    view, row, tokens = shown.view, result.tables["facts"].iloc[0], result.tables["tokens"]
    times = f"× {typed(view.factor)}"
    with st.container(horizontal=True, vertical_alignment="center"):
        st.markdown(f"##### {view.name} {times}", width="content")
        downloads.menu(f"{view.name}_steering_tokens", "Next tokens", result, None, tokens)
        texts = result.tables["facts"]
        name, title = f"{view.name}_steering_texts", "Contrasts and continuations"
        downloads.menu(name, title, result, None, texts)
        both = zip(("unscaled", times), (row.clean_continuation, row.scaled_continuation), strict=True)
        said = " ".join(f"{run}: “{row.prompt}{more}”." for run, more in both)
        present.note(name, title, None, texts, result, caption=f"The prompt and its continuation, {said}")
    if not row.scaled_positions:
        present.caption(f"{view.name} is routed at none of these positions of the prompt, so nothing was scaled there.")
    options = {"true": row.true_token, "foil": row.foil_token}
    with st.grid(2, min_column_width=320, gap="medium"):
        for run, name in (("clean", "unscaled"), ("scaled", times)):
            with st.container(border=True):
                mine = tokens[tokens.run == run].sort_values("rank")
                pairs = list(zip(mine.token, mine.probability, strict=True))
                st.html(text.next_tokens(f"next token, {name}", pairs, **options))
                contrast = logits(row[f"{run}_contrast"])
                st.markdown(f"contrast **{contrast}** logits")
                st.html(text.continuation(row.prompt, str(row[f"{run}_continuation"])))
    change = logits(row.scaled_contrast - row.clean_contrast)
    n = row.scaled_positions
    scaled = "1 position of the prompt is" if n == 1 else f"{n} positions of the prompt are"
    present.caption(
        f"The clean run. Scaling changes the contrast by {change} logits; {scaled} scaled. The continuation takes the "
        "most probable token at each step."
    )


def _fact(shown: Shown) -> Fact:
    """The fact of the link, else the one where the expert has the largest router weight, else the first; all of those
    that the model can take."""
    known = [int(i) for i in shown.rescue.tables["facts"].fact]
    wanted = [i for i in known if shown.facts[i].case_id == shown.view.fact]
    if wanted:
        return shown.facts[wanted[0]]
    patches = shown.rescue.tables["patches"]
    own = patches[(patches.layer == shown.layer) & (patches.expert == shown.expert)]
    best = own.sort_values("router_weight", ascending=False).fact
    return shown.facts[int(best.iloc[0]) if len(best) else known[0]]


def _choose_fact(shown: Shown, fact: Fact) -> None:
    patches = shown.rescue.tables["patches"]
    own = set(patches.fact[(patches.layer == shown.layer) & (patches.expert == shown.expert)])
    known = [int(i) for i in shown.rescue.tables["facts"].fact]
    options = sorted(known, key=lambda i: (i not in own, i))
    current = next((i for i in options if shown.facts[i] == fact), options[0])
    key = address.key(f"expert steered {current}")

    def label(i: int) -> str:
        return facts_panel.label(shown.facts[i]) + ("  ·  own" if i in own else "")

    st.selectbox(
        "Fact", options, index=options.index(current), key=key, format_func=label, width=300,
        help="Own: the expert is clean-active at its last position.",
        on_change=address.callback(key, lambda: expert_state.look(fact=shown.facts[st.session_state[key]].case_id)),
    )  # fmt: skip
