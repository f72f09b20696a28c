"""What waits, what is under way, and what is done."""

from collections.abc import Callable

from learner.decoding.work_queue import MAX_FAILURES, Post, WorkQueue
from learner.types import RolloutRequest

RequestsOf = Callable[[int], list[RolloutRequest]]


def uids(queue: WorkQueue) -> list[list[str]]:
    return [[request.uid.removeprefix("data:") for request in group] for group in queue.waiting]


def queue_of(requests: list[RolloutRequest], samples_per_post: int, fixed_batches: bool) -> WorkQueue:
    queue = WorkQueue(samples_per_post, fixed_batches)
    for request in requests:
        queue.add(request)
    queue.end()
    return queue


def sent(queue: WorkQueue) -> Post:
    """One POST with all that waits."""
    post = Post(tuple(queue.waiting))
    queue.waiting.clear()
    return post


def test_what_was_broken_off_waits_in_front_without_what_was_answered(requests_of: RequestsOf) -> None:
    requests = requests_of(5)
    queue = queue_of(requests, samples_per_post=2, fixed_batches=False)
    first, *_ = queue.posts(tuple(queue.waiting))
    queue.waiting.popleft()
    queue.waiting.popleft()
    assert queue.close(first.unanswered.pop("data:1"))
    queue.put_back(first)
    assert uids(queue) == [["2"], ["3"], ["4"], ["5"]]
    assert queue.num_open == 4


def test_a_fixed_batch_waits_again_whole_and_counts_once(requests_of: RequestsOf) -> None:
    requests = requests_of(5)
    queue = queue_of(requests, samples_per_post=2, fixed_batches=True)
    assert uids(queue) == [["1", "2"], ["3", "4"], ["5"]]
    posts = list(queue.posts(tuple(queue.waiting)))
    assert [len(post.unanswered) for post in posts] == [2, 2, 1]
    queue.waiting.clear()
    assert queue.close(posts[0].unanswered.pop("data:1"))
    queue.put_back(posts[0])
    assert uids(queue) == [["1", "2"]]
    assert not queue.close(requests[0])
    assert queue.close(requests[1])


def test_a_request_under_which_servers_keep_failing_is_given_up_and_its_neighbours_are_not(
    requests_of: RequestsOf,
) -> None:
    queue = queue_of(requests_of(2), samples_per_post=2, fixed_batches=False)
    for failure in range(1, MAX_FAILURES + 1):
        post = sent(queue)
        if failure == 2:
            del post.unanswered["data:2"]  # another server had it this time
        given_up = [request.uid for request in queue.give_up(post)]
        assert given_up == (["data:1"] if failure == MAX_FAILURES else [])
        queue.put_back(post)
        if failure == 2:
            queue.waiting.append((requests_of(2)[1],))
    assert uids(queue) == [["2"]]


def test_a_failed_answer_is_asked_for_once_more(requests_of: RequestsOf) -> None:
    (request,) = requests_of(1)
    queue = queue_of([request], samples_per_post=1, fixed_batches=False)
    post = sent(queue)
    assert queue.retry(request, post)
    assert uids(queue) == [["1"]]
    assert not queue.retry(request, post)


def test_a_failed_answer_of_a_fixed_batch_is_asked_for_with_its_batch_and_that_once(requests_of: RequestsOf) -> None:
    requests = requests_of(5)
    queue = queue_of(requests, samples_per_post=2, fixed_batches=True)
    post, *_ = [next(queue.posts([queue.waiting.popleft()])) for _ in range(2)]
    assert queue.close(post.unanswered.pop("data:1"))
    assert queue.retry(post.unanswered.pop("data:2"), post)
    assert uids(queue) == [["5"], ["1", "2"]]
    queue.put_back(post)
    post.unanswered["data:2"] = requests[1]  # as if it were cut with another answer of the batch missing
    queue.put_back(post)
    assert uids(queue) == [["5"], ["1", "2"]]


def test_what_has_its_answer_does_not_wait_again(requests_of: RequestsOf) -> None:
    requests = requests_of(2)
    queue = queue_of(requests, samples_per_post=2, fixed_batches=False)
    post = sent(queue)
    assert queue.close(requests[0])  # another server was asked too
    queue.put_back(post)
    assert uids(queue) == [["2"]]
    assert not queue.done
    assert queue.close(requests[1])
    assert queue.done


def test_a_fixed_batch_waits_when_it_is_whole_or_the_last(requests_of: RequestsOf) -> None:
    queue = WorkQueue(samples_per_post=2, fixed_batches=True)
    seen = []
    for request in requests_of(3):
        queue.add(request)
        seen.append(len(queue.waiting))
    assert seen == [0, 1, 1]
    assert not queue.all_handed_out
    queue.end()
    assert uids(queue) == [["1", "2"], ["3"]]
