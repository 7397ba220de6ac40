"""What a server is asked for: no more than counts, and with drafts far less often than there are tokens."""

from tests.remote import rig


def test_a_row_that_has_ended_is_not_asked_for_any_more() -> None:
    """Plain decoding sends one request per token of each row, however long the others go on."""
    with rig.server() as server:
        generator = rig.remote(server.url)
        before = len(server.completions)
        stops = [" the", ".", " in"]
        found = generator.generate(rig.questions(8), max_new_tokens=24, stop=stops, stats=True)
        asked = len(server.completions) - before
    counts = [len(row.token_ids) for row in found]
    assert len(set(counts)) > 1
    assert asked == sum(counts)
    assert {row.timing.stats.requests_per_token for row in found} == {1.0}


def test_drafts_halve_the_requests() -> None:
    """With four drafts the demo trio needs at most one request for two tokens, alone and in a batch."""
    with rig.server() as server:
        generator = rig.remote(server.url, speculation=4)
        for batch_size in (1, 8):
            before = len(server.completions)
            found = generator.generate(rig.questions(8), max_new_tokens=32, batch_size=batch_size, stats=True)
            asked, count = len(server.completions) - before, sum(len(row.token_ids) for row in found)
            assert asked <= 0.5 * count
            told = sum(
                row.timing.stats.requests_per_token * row.timing.stats.num_tokens / row.timing.batch_size
                for row in found
            )
            assert round(told) == asked


def test_no_place_behind_the_limit_is_asked_for() -> None:
    """With two tokens left, four drafts become one; with none left there is no request."""
    with rig.server() as server:
        generator = rig.remote(server.url, speculation=4, verification="prompt_logprobs")
        before = len(server.completions)
        [found] = generator.generate(rig.questions(1), max_new_tokens=3, ignore_eos=True)
        bodies = [request.body for request in server.completions[before:]]
    length = len(rig.prompt_ids(rig.questions(1)[0]))
    # The last token is never read, and of what is read the first is asked for behind the prompt.
    assert max(len(body["prompt"]) for body in bodies) <= length + 2
    assert len(found.token_ids) == 3


def test_auto_leaves_drafts_alone_where_each_place_is_a_request() -> None:
    """Where places must be asked for one by one, "auto" never pays for drafts that may be wrong."""
    with rig.server("llamacpp") as server:
        generator = rig.remote(server.url, speculation="auto", verification="single")
        before = len(server.completions)
        [found] = generator.generate(rig.questions(1), max_new_tokens=40, ignore_eos=True)
        assert len(server.completions) - before == len(found.token_ids) == 40
