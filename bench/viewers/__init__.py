"""Many viewers at once: simulated ones, each a real websocket session against a server of its own, each view checked.

`python -m bench viewers` (`make viewers`, `make soak`); see `bench.viewers.load`.
"""
