"""The study: the paper's protocol over many facts (protocol: docs, "The study").

`rows` is the meeting point: what is measured becomes one table, and everything shown is computed from that table, the
settings and the funnel alone.
"""
