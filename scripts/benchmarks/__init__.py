"""The benchmark: meshgate beside Envoy, HAProxy and nginx, at the same work, on one core each.

`scripts/bench` runs it. What always holds:

- Each work item is done by all peers in turn, round after round, so that a busy minute of the machine hits all of them
  alike; ratios are made within a round, and the median over the rounds is what counts.
- A peer's CPU time is read around the work alone, for all its processes and threads, in nanoseconds.
- Every byte that passes is compared with what was sent. A run that loses or changes one ends the whole benchmark.
- Nothing here judges a time: numbers are printed and written down, and a goal that is missed is no failure.

The parts:

    peers       starting and stopping what is measured
    product     `meshgate run` beside a real Consul; `gateway` is our relay alone, `rivals` has the other products
    resumed     the hello that every stream begins with: a real sidecar's, recorded
    load        the load generator and its backend (load.c, compiled at run time)
    traffic     what is done with a running peer: round trips, connections, bulk, idle connections, an attack
    handshakes  real mTLS handshakes through a peer
    control     route look-ups, a table update under load
    rest        memory with nothing to do
    items       the list of work items, and how much of each
    runner      does them: peers in turn, round after round
    results     numbers, medians, ratios, goals
    tables, charts, page    the same as text, as SVG, and written into docs/performance.md
"""
