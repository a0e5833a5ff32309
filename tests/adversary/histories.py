"""What may happen in a history, as steps that read like the script they are."""

from dataclasses import dataclass
from decimal import Decimal

from hypothesis import strategies as st

from tests.adversary.fal import TYPED, Drop, Early, Ends, Lag, Odd, OtherRows, Refuse, Say, Twice
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


start, wait, crash, detach, terminate = map(_step, ("start", "wait", "crash", "detach", "terminate"))
edit, lie, fate, jump = map(_step, ("edit", "lie", "fate", "jump"))
reconcile, give_up, cancel = map(_step, ("reconcile", "give_up", "cancel"))
back_up, restore, lose_ledger = map(_step, ("back_up", "restore", "lose_ledger"))


def play(*steps, rows=1, seed=0, day_usd=None, delivers=False):
    """Let a history happen and check what must hold, after each step and once everything has calmed down."""
    with a_world(rows, seed, day_usd, delivers) as world:
        for step in steps:
            getattr(world, step.name)(*step.given, **dict(step.named))
            world.check_the_bill()
        world.check()
        world.calm_down()
        world.check_the_end()
    return world


_NETWORK = [Drop(), Drop(hangs=True), Refuse()]
_NOT_FAL = [
    Say(500, "html", with_id=False),
    Say(502, "nothing", with_id=False),
    Say(503, "html", with_id=False),
    Say(400, "nothing", with_id=False),
    Say(404, "html", with_id=False),
    Say(408, "html", with_id=False),
    Say(200, "html", with_id=False),
]
_NONSENSE = [
    Say(500, "text"),
    Say(504, "nothing"),
    Say(500, "{}"),
    *(Say(200, body) for body in ("nothing", "cut", "null", "[]", "{}", "text", "failed")),
]
_REFUSALS = [Say(401, "text"), Say(403, "text"), Say(403, "html", with_id=False), Say(429, "text")]
_TYPED = [Say(status, body) for body, statuses in TYPED.items() for status in statuses]
_ANY = [_NETWORK, _NOT_FAL, _NONSENSE, _REFUSALS]
LIES = {
    "submit": [
        _NETWORK,
        _NOT_FAL,
        _NONSENSE,
        [Say(one.status, one.body, one.with_id, accepted=False) for one in _NOT_FAL + _NONSENSE],
        [*_REFUSALS, Say(404, "text")],
        _TYPED,
        [OtherRows()],
    ],
    "status": [
        *_ANY,
        _TYPED,
        [OtherRows()],
        [Say(404, "no status")],
        [Say(200, "done"), Say(200, "error"), Say(200, "queued")],
        [Odd("long"), Odd("negative"), Odd("text")],
    ],
    "result": [
        *_ANY,
        _TYPED,
        _TYPED,
        [OtherRows()],
        [OtherRows()],
        [Say(404, "no request"), Say(404, "no status")],
        [Say(400, "not yet"), Say(499, "text"), Say(422, "text")],
        [Say(200, "no images"), Say(200, "null images"), Say(200, "odd images")],
        [Odd(form) for form in ("seed null", "no seed", "huge seed", "odd size", "more fields")],
    ],
    "list": [
        *_ANY,
        [Say(200, "no items"), Say(200, "more items"), Say(200, "wrong items")],
        [Lag(60), Lag(3600)],
    ],
    "cancel": [
        *_ANY,
        [Say(404, "no status"), Say(202, "requested"), Say(400, "too late"), Say(200, "queued")],
    ],
    "delivery": [
        [Drop()],
        [OtherRows()],
        [OtherRows()],
        [Early(2.0), Early(-100.0), Early(-1000.0), Twice(1.0), Twice(600.0)],
        [Odd("withheld")],
        [Say(500, "html"), *_TYPED],
        [Say(200, body) for body in ("null", "{}", "text", "no images", "null images", "odd images")],
        [Odd(form) for form in ("seed null", "no seed", "huge seed", "odd size", "more fields")],
    ],
    "media": [*_ANY, [Odd("cut short")]],
    "upload": _ANY,
    "put": [_NETWORK, [Say(500, "html"), Say(403, "text")]],
}
"""What may be said instead of the truth, by kind of call: lists of lies that are much alike."""

_KINDS = ["submit"] * 3 + ["status"] * 2 + ["result"] * 5 + ["media", "list", "cancel", "upload", "put"]
_KINDS += ["delivery"] * 2
_BEFORE = ["lie"] * 5 + ["fate", "fate", "edit", "jump"]
_AFTER = ["wait"] * 3 + ["lie", "lie", "start", "end", "person", "store"]


@st.composite
def _a_step(draw, kinds):
    def one_of(*choices):
        return draw(st.sampled_from(choices))

    match one_of(*kinds):
        case "start":
            dies_at = one_of(None, None, None, 1) and draw(st.integers(1, 60))
            choice = one_of({}, {}, {}, {}, {"regenerate": True}, {"only_failed": True}, {"limit": 1})
            return start(**choice, **({"dies_at": dies_at} if dies_at else {}))
        case "wait":
            return wait(one_of(10.0, 3.0, 1.0, 0.3, 0.01, 60.0, 900.0))
        case "lie":
            kind = one_of(*_KINDS)
            lies = st.sampled_from(LIES[kind]).flatmap(st.sampled_from)
            if draw(st.booleans()):
                return lie(kind, *draw(st.lists(lies, min_size=1, max_size=5)))
            return lie(kind, *[draw(lies)] * one_of(2, 3, 6, 24))
        case "fate":
            ends = st.sampled_from(["picture", *TYPED, "never"])
            return fate(*(Ends(draw(ends), one_of(0.5, 3.0, 120.0)) for _ in range(one_of(1, 2, 3))))
        case "edit":
            return edit(draw(st.integers(0, MOST_ROWS - 1)), one_of(0, 0, 1, None))
        case "person":
            return one_of(reconcile(), give_up(), cancel())
        case "store":
            return one_of(
                back_up(), back_up(), restore(), restore(), lose_ledger(), lose_ledger(with_copies=True)
            )
        case "jump":
            return jump(one_of(-3600.0, 3600.0, -40000.0, 40000.0))
        case _:
            return one_of(crash(), detach(), terminate())


@st.composite
def _a_scene(draw):
    """A run, with what comes before it and what happens to it."""
    before = draw(st.lists(_a_step(_BEFORE), min_size=1, max_size=4))
    after = draw(st.lists(_a_step(_AFTER), min_size=1, max_size=4))
    return [*before, draw(_a_step(["start"])), *after]


histories = st.lists(_a_scene(), min_size=1, max_size=4).map(
    lambda scenes: [one for scene in scenes for one in scene]
)
seeds = st.integers(0, 7)
tables = st.integers(1, MOST_ROWS)
deliveries = st.booleans()
budgets = st.none() | st.sampled_from([Decimal("0.05"), Decimal("0.14")])
