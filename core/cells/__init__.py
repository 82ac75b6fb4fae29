"""Further questions about one traced fact: other sites and windows, and everything about one cell (layer, position).

Each question is a derived kind (`core.derived`) in a module of its own: `site_map`, `coalition`, `knockouts`,
`controls`, `minimal_set`. `asking` turns a trace's request into theirs, `measure` runs their patches in one sweep,
`tables` and `words` say what came out, `pictures` draws it. Only the kinds' own modules and `measure` load torch.
"""
