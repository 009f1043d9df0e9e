"""The index rule of Consul's blocking queries (Consul's API documentation, "Blocking Queries")."""


def next_index(asked: int, answered: int) -> int:
    """The index to ask with next.

    An index that went backwards (a restored snapshot, a replaced server) starts over at 0, which makes the next read
    answer at once. An answered index below 1 counts as 1: asking with 0 would not block and spin.

    Args:
        asked: the index of the query, 0 for the first.
        answered: `X-Consul-Index` of its answer.
    """
    answered = max(answered, 1)
    return 0 if answered < asked else answered
