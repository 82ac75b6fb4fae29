"""ExpertScope in the browser: `streamlit run app.py`. This is the Trace page; further pages lie in `pages/`.

Streamlit's classic automatic pages are used (no `st.navigation`): every page is a script of its own that begins with
`start_page` and comes up right also when it is the first thing that is asked of a fresh server.
"""

from pages.parts import trace_page

trace_page.draw()
