"""The corpora of BoringSSL and OpenSSL, and the hellos of real clients, against OpenSSL's verdicts.

The rule is `hellos.assert_rule`: we never see another name.
"""

import pytest

from meshgate.core.hello import Hello, HelloParser, Refusal, parse_hello
from tests.core.hellos import Client, ask_openssl, assert_rule, clients, corpus, judge, judge_pieces

MAX = 20_000
SHARDS = 4
ALL_CUTS_UP_TO = 520
CUTS_OF_LARGE = 60


def deciding_length(stream: bytes) -> tuple[int, Hello | Refusal | None]:
    """How many bytes it takes, one by one, until the verdict is there, and the verdict."""
    parser = HelloParser(MAX)
    for at in range(len(stream)):
        if (verdict := parser.feed(stream[at : at + 1])) is not None:
            return at + 1, verdict
    return len(stream) + 1, None


def cuts(end: int) -> list[int]:
    """Every offset below `end`; of a large hello the first and last ones and evenly spread ones in between."""
    if end <= ALL_CUTS_UP_TO:
        return list(range(end))
    return sorted({*range(60), *range(60, end, end // CUTS_OF_LARGE), *range(end - 10, end)})


@pytest.mark.parametrize("shard", range(SHARDS))
def test_corpus_rule_holds_whole_and_cut_at_any_offset(shard: int) -> None:
    rows = corpus()[shard::SHARDS]
    assert rows
    cut_before = set()
    for row in rows:
        verdict = judge(row.stream, MAX)
        assert_rule(row.stream, verdict, row.openssl, row.id)
        decided, one_by_one = deciding_length(row.stream)
        assert one_by_one == verdict, row.id
        if row.stream[:decided] in cut_before:
            continue
        cut_before.add(row.stream[:decided])
        for cut in cuts(decided):
            # What is not decided yet must not be decided by either way in, and must not depend on the cut.
            assert parse_hello(row.stream[:cut], MAX) is None, (row.id, cut)
            parser = HelloParser(MAX)
            assert parser.feed(row.stream[:cut]) is None, (row.id, cut)
            assert parser.feed(row.stream[cut:]) == verdict, (row.id, cut)
        for cut in {decided, (decided + len(row.stream)) // 2, len(row.stream)}:
            assert judge_pieces((row.stream[:cut], row.stream[cut:]), MAX) == verdict, (row.id, cut)


def test_corpus_is_complete_and_every_name_of_a_mesh_is_seen() -> None:
    rows = corpus()
    assert len(rows) == 1296
    named = [judge(row.stream, MAX) for row in rows if row.openssl.name is not None]
    seen = sum(isinstance(verdict, Hello) for verdict in named)
    # Of the others 10 have an extension twice, 6 more than 256 records, 2 a name that is no host name.
    assert (len(named), seen) == (598, 580)


@pytest.mark.parametrize("client", clients(), ids=lambda client: client.client)
def test_real_clients_are_understood(client: Client) -> None:
    verdict = judge(client.stream)
    assert isinstance(verdict, Hello), verdict
    assert (verdict.server_name, verdict.alpn) == (client.server_name, client.alpn)
    assert verdict.length == len(client.stream)
    assert ask_openssl(client.stream).name == client.server_name
    assert judge_pieces(client.stream[at : at + 1] for at in range(len(client.stream))) == verdict
