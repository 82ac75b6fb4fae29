"""Averages over many facts: what restoring a site, or one expert, brings back at each role of a prompt and layer.

`questions` asks, `measure` answers fact by fact (`site_sweep`, `role_sweep`), `tables` makes averages of it, `charts`
draws them, `link` is the page's address.
"""
