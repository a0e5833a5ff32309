"""What may happen in a history, as steps that read like the script they are."""

from dataclasses import dataclass
from decimal import Decimal

from hypothesis import strategies as st

from tests.adversary.fal import TYPED, Drop, Ends, Lag, Odd, OtherRows, Refuse, Say
from tests.adversary.world import MOST_ROWS, a_world


@dataclass(frozen=True)
class Step:
    """Something that happens: a method of `World` and what it is called with."""

    name: str
    given: tuple = ()
    named: tuple = ()

    def __repr__(self):
        given = [repr(one) for one in self.given] + [f"{name}={value!r}" for name, value in self.named]
        return f"{self.name}({', '.join(given)})"

    def _repr_pretty_(self, printer, cycle):
        printer.text(repr(self))


def _step(name):
    return lambda *given, **named: Step(name, given, tuple(named.items()))


start, wait, crash, detach, terminate, edit, lie, fate, jump, reconcile, give_up = map(
    _step,
    "start wait crash detach terminate edit lie fate jump reconcile give_up".split(),
)


def play(*steps, seed=0, day_usd=None):
    """Let a history happen and check what must hold, after each step and once everything has calmed down."""
    with a_world(seed, day_usd) as world:
        for step in steps:
            getattr(world, step.name)(*step.given, **dict(step.named))
            world.check_the_bill()
        world.check()
        world.calm_down()
        world.check_the_end()
    return world


_NETWORK = [Drop(), Drop(hangs=True), Refuse()]
_NO_ANSWERS = [
    Say(500, "html", with_id=False),
    Say(502, "nothing", with_id=False),
    Say(503, "html", with_id=False),
    Say(500, "text"),
    Say(504, "nothing"),
    Say(500, "{}"),
    Say(404, "html", with_id=False),
    Say(400, "nothing"),
    Say(408, "html", with_id=False),
    Say(200, "html", with_id=False),
    Say(200, "nothing"),
    Say(200, "cut"),
    Say(200, "null"),
    Say(200, "[]"),
    Say(200, "{}"),
    Say(200, "text"),
    Say(200, "failed"),
]
_REFUSALS = [Say(401, "text"), Say(403, "text"), Say(403, "html", with_id=False), Say(429, "text")]
_TYPED = [Say(status, body) for body, statuses in TYPED.items() for status in statuses]
LIES = {
    "submit": [
        *_NETWORK,
        *_NO_ANSWERS,
        *(Say(one.status, one.body, one.with_id, accepted=False) for one in _NO_ANSWERS),
        *_REFUSALS,
        *_TYPED,
        Say(404, "text"),
    ],
    "status": [
        *_NETWORK,
        *_NO_ANSWERS,
        *_REFUSALS,
        *_TYPED,
        OtherRows(),
        Say(404, "no status"),
        Say(200, "done"),
        Say(200, "error"),
        Say(200, "queued"),
        Odd("long"),
        Odd("negative"),
        Odd("text"),
    ],
    "result": [
        *_NETWORK,
        *_NO_ANSWERS,
        *_REFUSALS,
        *_TYPED,
        *_TYPED,
        OtherRows(),
        OtherRows(),
        Say(404, "no request"),
        Say(400, "not yet"),
        Say(499, "text"),
        Say(422, "text"),
        Say(200, "no images"),
        Say(200, "null images"),
        Say(200, "odd images"),
        *(Odd(form) for form in ("seed null", "no seed", "huge seed", "odd size", "more fields")),
    ],
    "list": [
        *_NETWORK,
        *_NO_ANSWERS,
        *_REFUSALS,
        Say(200, "no items"),
        Say(200, "more items"),
        Say(200, "wrong items"),
        Lag(60),
        Lag(3600),
    ],
    "cancel": [
        *_NETWORK,
        *_NO_ANSWERS,
        *_REFUSALS,
        Say(404, "no status"),
        Say(202, "requested"),
        Say(400, "too late"),
        Say(200, "queued"),
    ],
    "media": [
        *_NETWORK,
        *_NO_ANSWERS,
        *_REFUSALS,
        Odd("cut short"),
    ],
    "upload": [*_NETWORK, *_NO_ANSWERS, *_REFUSALS],
    "put": [*_NETWORK, Say(500, "html"), Say(403, "text")],
}

_seconds = st.sampled_from([0.001, 0.01, 0.3, 1.0, 3.0, 10.0, 60.0, 900.0])
_dies_at = st.none() | st.integers(1, 60)
_starts = st.builds(lambda dies_at: start() if dies_at is None else start(dies_at=dies_at), _dies_at)
_choices = st.sampled_from([start(regenerate=True), start(only_failed=True), start(limit=1)])
_fates = st.builds(
    fate,
    st.builds(Ends, st.sampled_from(["picture", "picture", *TYPED, "never"]), st.sampled_from([0.5, 2.0, 120.0])),
)


def _lies(kind):
    some = st.lists(st.sampled_from(LIES[kind]), min_size=1, max_size=4)
    same = st.builds(lambda one, times: [one] * times, st.sampled_from(LIES[kind]), st.integers(1, 24))
    return (some | same).map(lambda lies: lie(kind, *lies))


_all_lies = st.one_of([_lies("submit"), _lies("result"), _lies("result"), *map(_lies, LIES)])
steps = st.one_of(
    _starts,
    _starts,
    _choices,
    st.builds(wait, _seconds),
    st.builds(wait, _seconds),
    _all_lies,
    _all_lies,
    _fates,
    st.builds(edit, st.integers(0, MOST_ROWS - 1), st.sampled_from([0, 0, 1, None])),
    st.sampled_from([crash(), detach(), terminate(), reconcile(), give_up()]),
    st.builds(jump, st.sampled_from([-3600.0, 3600.0, -40000.0, 40000.0])),
)
histories = st.lists(steps, min_size=2, max_size=16)
seeds = st.integers(0, 7)
budgets = st.none() | st.sampled_from([Decimal("0.05"), Decimal("0.14")])
