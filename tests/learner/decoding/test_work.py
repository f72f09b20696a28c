"""What waits, what is under way, and what is done."""

from collections.abc import Callable

from learner.decoding.parcels import MAX_FAILURES, Parcels, Post
from learner.types import RolloutRequest

RequestsOf = Callable[[int], list[RolloutRequest]]


def uids(parcels: Parcels) -> list[list[str]]:
    return [[request.uid.removeprefix("data:") for request in parcel] for parcel in parcels.waiting]


def parcels_of(requests: list[RolloutRequest], samples_per_post: int, fixed_batches: bool) -> Parcels:
    parcels = Parcels(samples_per_post, fixed_batches)
    for request in requests:
        parcels.add(request)
    parcels.end()
    return parcels


def sent(parcels: Parcels) -> Post:
    """One POST with all that waits."""
    post = Post(tuple(parcels.waiting))
    parcels.waiting.clear()
    return post


def test_what_was_broken_off_waits_in_front_without_what_was_answered(requests_of: RequestsOf) -> None:
    requests = requests_of(5)
    parcels = parcels_of(requests, samples_per_post=2, fixed_batches=False)
    first, *_ = parcels.posts(tuple(parcels.waiting))
    parcels.waiting.popleft()
    parcels.waiting.popleft()
    assert parcels.close(first.unanswered.pop("data:1"))
    parcels.put_back(first)
    assert uids(parcels) == [["2"], ["3"], ["4"], ["5"]]
    assert parcels.num_open == 4


def test_a_fixed_batch_waits_again_whole_and_counts_once(requests_of: RequestsOf) -> None:
    requests = requests_of(5)
    parcels = parcels_of(requests, samples_per_post=2, fixed_batches=True)
    assert uids(parcels) == [["1", "2"], ["3", "4"], ["5"]]
    posts = list(parcels.posts(tuple(parcels.waiting)))
    assert [len(post.unanswered) for post in posts] == [2, 2, 1]
    parcels.waiting.clear()
    assert parcels.close(posts[0].unanswered.pop("data:1"))
    parcels.put_back(posts[0])
    assert uids(parcels) == [["1", "2"]]
    assert not parcels.close(requests[0])
    assert parcels.close(requests[1])


def test_a_request_under_which_servers_keep_failing_is_given_up_and_its_neighbours_are_not(
    requests_of: RequestsOf,
) -> None:
    parcels = parcels_of(requests_of(2), samples_per_post=2, fixed_batches=False)
    for failure in range(1, MAX_FAILURES + 1):
        post = sent(parcels)
        if failure == 2:
            del post.unanswered["data:2"]  # another server had it this time
        given_up = [request.uid for request in parcels.give_up(post)]
        assert given_up == (["data:1"] if failure == MAX_FAILURES else [])
        parcels.put_back(post)
        if failure == 2:
            parcels.waiting.append((requests_of(2)[1],))
    assert uids(parcels) == [["2"]]


def test_a_failed_answer_is_asked_for_once_more(requests_of: RequestsOf) -> None:
    (request,) = requests_of(1)
    parcels = parcels_of([request], samples_per_post=1, fixed_batches=False)
    post = sent(parcels)
    assert parcels.retry(request, post)
    assert uids(parcels) == [["1"]]
    assert not parcels.retry(request, post)


def test_a_failed_answer_of_a_fixed_batch_is_asked_for_with_its_batch_and_that_once(requests_of: RequestsOf) -> None:
    requests = requests_of(5)
    parcels = parcels_of(requests, samples_per_post=2, fixed_batches=True)
    post, *_ = [next(parcels.posts([parcels.waiting.popleft()])) for _ in range(2)]
    assert parcels.close(post.unanswered.pop("data:1"))
    assert parcels.retry(post.unanswered.pop("data:2"), post)
    assert uids(parcels) == [["5"], ["1", "2"]]
    parcels.put_back(post)
    post.unanswered["data:2"] = requests[1]  # as if it were cut with another answer of the batch missing
    parcels.put_back(post)
    assert uids(parcels) == [["5"], ["1", "2"]]


def test_what_has_its_answer_does_not_wait_again(requests_of: RequestsOf) -> None:
    requests = requests_of(2)
    parcels = parcels_of(requests, samples_per_post=2, fixed_batches=False)
    post = sent(parcels)
    assert parcels.close(requests[0])  # another server was asked too
    parcels.put_back(post)
    assert uids(parcels) == [["2"]]
    assert not parcels.done
    assert parcels.close(requests[1])
    assert parcels.done


def test_a_fixed_batch_waits_when_it_is_whole_or_the_last(requests_of: RequestsOf) -> None:
    parcels = Parcels(samples_per_post=2, fixed_batches=True)
    seen = []
    for request in requests_of(3):
        parcels.add(request)
        seen.append(len(parcels.waiting))
    assert seen == [0, 1, 1]
    assert not parcels.all_handed_out
    parcels.end()
    assert uids(parcels) == [["1", "2"], ["3"]]
