"""Submit and wait in one call."""

import pytest

from ideogram_pipeline import fal
from ideogram_pipeline.fal import CancelAnswer, Completed, InProgress, InQueue

ID = "r-1"
ENDPOINT = "fal-ai/ideogram/v3"


class Queue:
    """A scripted queue: one entry of `statuses` a poll, the last one for ever."""

    def __init__(self, fake, *statuses, cancel=(200, {"status": "OK"}), results=None):
        self.fake, self.statuses, self.cancel = fake, list(statuses), cancel
        self.results = results or [fake.reply(200, {"images": ["x"]})]
        fake.script = self

    def __call__(self, seen):
        if seen.method == "POST":
            return self.fake.reply(200, {"request_id": ID})
        if seen.method == "PUT":
            return self.fake.reply(*self.cancel)
        if seen.path.endswith("/status"):
            status = self.statuses.pop(0) if len(self.statuses) > 1 else self.statuses[0]
            return self.fake.reply(200 if status == "COMPLETED" else 202, {"status": status})
        return self.results.pop(0) if len(self.results) > 1 else self.results[0]


def test_subscribe_submits_once_tells_the_news_and_brings_the_result(fake, ask):
    Queue(fake, "IN_QUEUE", "IN_PROGRESS", "IN_QUEUE", "COMPLETED")
    enqueued, updates = [], []

    async def note(request):
        enqueued.append(request.request_id)

    result = ask(lambda client: client.subscribe(ENDPOINT, {}, on_enqueue=note, on_update=updates.append))
    assert result.payload == {"images": ["x"]}
    assert enqueued == [ID]
    assert updates == [InQueue(None), InProgress(), InQueue(None), Completed()]
    assert fake.count("POST") == 1


def test_a_submit_that_comes_too_often_is_sent_again(fake, ask):
    queue = Queue(fake, "COMPLETED")
    answers = [fake.reply(429, {"detail": "queue is full"})] * 2
    fake.script = lambda seen: answers.pop() if seen.method == "POST" and answers else queue(seen)
    assert ask(lambda client: client.subscribe(ENDPOINT, {})).payload == {"images": ["x"]}
    assert fake.count("POST") == 3


def test_a_result_lagging_behind_its_status_is_waited_for(fake, ask):
    early = fake.reply(400, {"detail": "Request is still in progress"})
    Queue(fake, "COMPLETED", results=[early, early, fake.reply(200, {"images": []})])
    assert ask(lambda client: client.subscribe(ENDPOINT, {})).payload == {"images": []}


def test_a_failed_request_raises_its_error(fake, ask):
    Queue(fake, "COMPLETED", results=[fake.reply(422, {"detail": [{"type": "missing"}]})])
    with pytest.raises(fal.ModelRefused):
        ask(lambda client: client.subscribe(ENDPOINT, {}))
    assert fake.count("POST") == 1


@pytest.mark.parametrize(
    ("cancel", "answer", "billed"),
    [
        ((200, {"status": "OK"}), CancelAnswer.OK, False),
        ((202, {"status": "CANCELLATION_REQUESTED"}), CancelAnswer.CANCELLATION_REQUESTED, True),
        ((401, {}), None, True),
    ],
)
def test_a_deadline_cancels_and_hands_out_the_request(fake, ask, cancel, answer, billed):
    Queue(fake, "IN_PROGRESS", cancel=cancel)
    with pytest.raises(fal.DeadlineExceeded) as caught:
        ask(lambda client: client.subscribe(ENDPOINT, {}, deadline_s=0.1))
    assert caught.value.request.request_id == ID
    assert caught.value.cancel_answer is answer
    assert caught.value.may_be_billed is billed
    assert not caught.value.may_resubmit
    assert fake.count("PUT") == 1


def test_a_request_that_completes_at_the_deadline_still_brings_its_result(fake, ask):
    Queue(fake, "IN_PROGRESS", cancel=(400, {"status": "ALREADY_COMPLETED"}))
    assert ask(lambda client: client.subscribe(ENDPOINT, {}, deadline_s=0.1)).payload == {"images": ["x"]}


def test_a_request_that_failed_at_the_deadline_raises_its_error(fake, ask):
    refused = fake.reply(422, {"detail": [{"type": "missing"}]})
    queue = Queue(fake, "IN_PROGRESS", cancel=(400, {"status": "ALREADY_COMPLETED"}), results=[refused])

    def script(seen):
        if seen.method == "PUT":
            queue.statuses = ["COMPLETED"]
        return queue(seen)

    fake.script = script
    with pytest.raises(fal.ModelRefused):
        ask(lambda client: client.subscribe(ENDPOINT, {}, deadline_s=0.1))


def test_an_error_of_the_callers_own_callback_is_not_swallowed(fake, ask):
    Queue(fake, "IN_PROGRESS")

    def update(status):
        raise TimeoutError("the caller's own")

    with pytest.raises(TimeoutError, match="the caller's own"):
        ask(lambda client: client.subscribe(ENDPOINT, {}, on_update=update, deadline_s=60))
    assert fake.count("PUT") == 0
