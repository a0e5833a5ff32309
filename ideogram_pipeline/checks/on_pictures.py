"""On the pictures of a batch: are they there, whole, as asked for, each a picture of its own and paid for once?"""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import dagster as dg

from ideogram_pipeline import memory
from ideogram_pipeline.assets.retries import RUN_RETRIES_TAG
from ideogram_pipeline.checks.findings import Verdict, looked_at, sampled
from ideogram_pipeline.faces import FAR
from ideogram_pipeline.likeness import NEAR_DUPLICATE
from ideogram_pipeline.pipeline import Pipeline
from ideogram_pipeline.resources import LimitsResource, StoreResource
from ideogram_pipeline.texts import markdown, shown

if TYPE_CHECKING:
    from ideogram_pipeline.generation.files import PictureFacts, RowEnd
    from ideogram_pipeline.generation.ledger import Entry
    from ideogram_pipeline.ideogram.sizes import Size
    from ideogram_pipeline.marks import Marks
    from ideogram_pipeline.storage import Store

REASONS = 5
"""So many reasons for which rows have no picture a failed run names."""

CHECKS = {
    "batch_is_whole": "Every row that was asked of the run has its pictures. Up to IDEOGRAM_MAX_FAILED_FRACTION of the "
    "rows this warns; beyond it the run fails, after all that could be made is stored and recorded. Running the batch "
    "again pays only for what is missing.",
    "no_unanswered_submits": "No row is `unknown`: every submit was answered, so that what the batch cost is known. "
    "`ideogram-pipeline reconcile` looks for the others at fal.",
    "pictures_in_the_store": "Every generated row has its files, with the size and bytes they had when they came. Run "
    "the batch again: a missing file is fetched again without paying, as long as fal has it.",
    "marks_in_the_pictures": "The files say of themselves what made them, and lead back to their request: the XMP of "
    "a sample is read back from the store. A picture that brought Content Credentials has those instead, one that "
    "was stored by an older version has none, and for others the column `unmarked_because` "
    "says why. Delete what is damaged and run the batch again.",
    "sizes_as_asked": "Pictures are as wide and high as asked for: exactly so, or the nearest resolution that Ideogram "
    "renders. Rows that follow their source picture are left out. Choose a size that Ideogram renders.",
    "no_near_duplicates": "No picture looks like another one of the batch, older takes too, or like its reference: of "
    "the 64 bits of their perceptual hashes more than 4 differ. It compares pictures, not who or what they show. Look "
    "at both; reject one of them, or change the prompt.",
    "faces_near_reference": "With IDEOGRAM_FACES: no picture's face is further than 0.6 from that of its character "
    "reference, by dlib's model. A measure for reviewing, no claim of who is shown. Look at the pictures it names; "
    "reject those that are unlike.",
    "no_duplicate_pictures": "No two rows have the very same picture. Rows with the same prompt and seed do: give them "
    "different seeds, or leave the seed empty.",
    "paid_once": "The ledger has exactly one paid request for every generated row, and no earlier attempt that may "
    "have been billed as well. Look the request ids up in fal's billing.",
    "refusals_allowed": "At most IDEOGRAM_MAX_REFUSED_FRACTION of the answered rows were refused by the model. Change "
    "what the reasons name; the same input would be refused again.",
}
"""The checks and what they mean."""


def define(pipeline: Pipeline) -> dg.AssetChecksDefinition:
    """Return the checks on a pipeline's pictures."""
    asset = pipeline.key("generated_images")

    @dg.multi_asset_check(
        name=pipeline.name("checks_on_pictures"),
        specs=[
            dg.AssetCheckSpec(
                name,
                asset=asset,
                description=meaning,
                blocking=name == "batch_is_whole",
                partitions_def=pipeline.batches,
            )
            for name, meaning in CHECKS.items()
        ],
    )
    @pipeline.with_own_resources
    def checks_on_pictures(
        context: dg.AssetCheckExecutionContext, store: StoreResource, limits: LimitsResource
    ) -> Iterator[dg.AssetCheckResult]:
        root_run_id = context.run.root_run_id or context.run.run_id
        found = verdicts(store.open(), context.partition_key, limits, root_run_id)
        memory.give_back()
        for verdict in found:
            if verdict.name == "batch_is_whole" and verdict.severity is dg.AssetCheckSeverity.ERROR:
                context.instance.add_run_tags(context.run.run_id, {RUN_RETRIES_TAG: "false"})
            yield verdict.of(asset)

    return checks_on_pictures


def verdicts(store: "Store", batch: str, limits: LimitsResource, root_run_id: str) -> list[Verdict]:
    """Look at everything that a batch has left; the verdict that can end the run is on that run's rows, and last."""
    from ideogram_pipeline.generation import files
    from ideogram_pipeline.generation.ledger import Ledger

    rows = files.row_ends(store, batch)
    own = {
        (row.prompt_id, row.fingerprint)
        for row in files.read_plan(store, batch, root_run_id=root_run_id).rows
    }
    entries = Ledger(store, batch).entries
    paid = paid_once(rows, entries)
    own_rows = [row for row in rows if (row.prompt_id, row.fingerprint) in own]
    pictures = [picture for picture in files.picture_facts(store, batch) if picture.current]
    there = Stored.of(store, f"images/batch={batch}", pictures)
    return [
        unanswered(rows),
        stored(rows, pictures, there),
        marked(pictures, there),
        sizes(pictures),
        duplicates(pictures),
        near_duplicates(pictures),
        far_faces(pictures),
        paid,
        refusals(rows, limits.max_refused_fraction),
        whole(own_rows, limits.max_failed_fraction, waiting(own_rows, entries)),
    ]


def waiting(rows: "Sequence[RowEnd]", entries: "Mapping[str, Entry]") -> str:
    """Return which request of these rows has been with fal for the longest time, and what to do; nothing of none."""
    from ideogram_pipeline.generation.cancelling import oldest

    open_still = [row.fingerprint for row in rows if row.state != "generated" and row.fingerprint]
    found = oldest(entries[one] for one in open_still if one in entries)
    return found.advice if found else ""


def whole(rows: "Sequence[RowEnd]", allowed: float, waiting: str = "") -> Verdict:
    """Count the rows that the run was to bring and that ended without a picture; rejected rows are among them.

    `waiting` is what there is to say of the request that has been with fal for the longest time.
    """
    from ideogram_pipeline.generation.reasons import Reason, grouped

    due = [row for row in rows if row.due]
    missing = [row for row in due if row.state != "generated"]
    states = Counter(row.state for row in missing)
    counted = ", ".join(f"{count} {state.replace('_', ' ')}" for state, count in states.items())
    reasons = grouped(Reason(row.state, row.reason, 1, (row.prompt_id,)) for row in missing)
    first = "; ".join(markdown(shown(reason)) for reason in reasons[:REASONS])
    return Verdict(
        "batch_is_whole",
        [(row.prompt_id, f"{row.state}: {row.reason}") for row in missing],
        f"{len(missing)} of {len(due)} rows ended without a picture ({counted}); IDEOGRAM_MAX_FAILED_FRACTION is "
        f"{allowed:g}. The others are stored and recorded, and running the batch again pays only for what is missing; "
        f"rejected and refused rows have to be changed first. {waiting}{'. ' if waiting else ''}{first}",
        dg.AssetCheckSeverity.ERROR if len(missing) > allowed * len(due) else dg.AssetCheckSeverity.WARN,
        {"due": len(due), "missing": len(missing)},
    )


def unanswered(rows: "Sequence[RowEnd]") -> Verdict:
    """Look for rows whose submit was never answered."""
    unknown = [(row.prompt_id, row.reason) for row in rows if row.state == "unknown"]
    return Verdict(
        "no_unanswered_submits",
        unknown,
        "`ideogram-pipeline reconcile` looks for them at fal.",
        counts={"unknown": len(unknown)},
    )


class Seen(NamedTuple):
    """What the bytes of a picture show."""

    sha256: str
    """Hex digest."""
    marks: "Marks | None"
    """What it says of itself."""
    unsigned: str
    """Why its Content Credentials don't hold; empty where they do, or could not be validated here."""


@dataclass(frozen=True, slots=True)
class Stored:
    """What lies in a batch's folder."""

    sizes: Mapping[str, int]
    """Bytes of every file, by name."""
    sample: "Mapping[str, Seen | None]"
    """Some of the pictures that are there at their full length, by name."""

    @classmethod
    def of(cls, store: "Store", folder: str, pictures: "Sequence[PictureFacts]") -> "Stored":
        """Look at a folder, and at the bytes of a sample of the pictures that should lie there."""
        below = len(folder) + 1
        sizes = {found.path[below:]: found.size for found in store.objects(folder)}
        whole = [one.file_name for one in pictures if sizes.get(one.file_name) == one.bytes]
        seen = looked_at(
            store,
            [f"{folder}/{name}" for name in sampled(whole)],
            _seen,
        )
        return cls(sizes, {path[below:]: one for path, one in seen.items()})


def _seen(content: bytes) -> Seen:
    from ideogram_pipeline import marks
    from ideogram_pipeline.marks import credentials

    unsigned = "" if marks.has_credentials(content) else "no Content Credentials"
    if not unsigned and credentials.is_installed():
        found = credentials.read(content)
        if found is not None and found.state == "invalid":
            unsigned = f"Content Credentials that don't hold ({'; '.join(found.problems)})"
    return Seen(hashlib.sha256(content).hexdigest(), marks.read(content), unsigned)


def stored(rows: "Sequence[RowEnd]", pictures: "Sequence[PictureFacts]", there: Stored) -> Verdict:
    """Look for every generated row's files: all by a listing, the bytes of a sample."""
    counted: dict[str, int] = defaultdict(int)
    for picture in pictures:
        counted[picture.fingerprint] += 1
    found = [
        (row.prompt_id, f"{counted[row.fingerprint or '']} of its {row.images} pictures have a row")
        for row in rows
        if row.state == "generated" and counted[row.fingerprint or ""] != max(row.images, 1)
    ]
    for picture in pictures:
        size = there.sizes.get(picture.file_name)
        if size is None:
            found.append((picture.prompt_id, f"{picture.file_name} is missing"))
        elif size != picture.bytes:
            found.append(
                (picture.prompt_id, f"{picture.file_name} has {size} bytes instead of {picture.bytes}")
            )
        elif (seen := there.sample.get(picture.file_name)) and seen.sha256 != picture.sha256:
            found.append((picture.prompt_id, f"{picture.file_name} has other bytes than when it came"))
    return Verdict(
        "pictures_in_the_store",
        found,
        "Delete what is damaged and run the batch again: what is missing is fetched again without paying, as long as "
        "fal has it.",
        dg.AssetCheckSeverity.ERROR,
        {
            "pictures": len(pictures),
            "hashed": len(there.sample),
            "bytes": sum(there.sizes.get(picture.file_name, 0) for picture in pictures),
        },
    )


def marked(pictures: "Sequence[PictureFacts]", there: Stored) -> Verdict:
    """Compare what a sample of the files say of themselves with what is known of them."""
    found, read = [], 0
    for picture in pictures:
        seen = there.sample.get(picture.file_name)
        if seen is None or picture.sha256_received == picture.sha256:
            continue
        read += 1
        if picture.unmarked_because:
            pass  # the row says why
        elif seen.marks is None:
            found.append((picture.prompt_id, f"{picture.file_name} has no marks"))
        elif seen.marks.fingerprint != picture.fingerprint:
            found.append((picture.prompt_id, f"{picture.file_name} says it is another request's"))
        elif picture.manifest_id and seen.unsigned:
            found.append((picture.prompt_id, f"{picture.file_name} has {seen.unsigned}"))
    return Verdict(
        "marks_in_the_pictures",
        found,
        "Something has rewritten the files. Delete them and run the batch again: they are fetched and marked again "
        "without paying, as long as fal has them.",
        counts={
            "read": read,
            "marked": sum(picture.sha256_received != picture.sha256 for picture in pictures),
            "unmarked": sum(picture.unmarked_because is not None for picture in pictures),
            "signed": sum(picture.manifest_id is not None for picture in pictures),
            "without the time stamp they should have": sum(
                picture.unstamped_because is not None for picture in pictures
            ),
            "pictures": len(pictures),
        },
    )


def sizes(pictures: "Sequence[PictureFacts]") -> Verdict:
    """Compare the pixels of pictures with the size asked for."""
    found, compared = [], 0
    for picture in pictures:
        if not picture.image_size:
            continue
        compared += 1
        if (picture.width, picture.height) not in (fitting := _fitting(picture.image_size)):
            size = f"{picture.width}x{picture.height}"
            wanted = " or ".join(map(str, fitting))
            found.append((picture.prompt_id, f"{picture.file_name} is {size}; asked for {wanted}"))
    return Verdict(
        "sizes_as_asked",
        found,
        "How fal maps a size to one that Ideogram renders is not documented: ask for a size it renders, or use the "
        "pictures as they are.",
        counts={"compared": compared, "free": len(pictures) - compared},
    )


def _fitting(image_size: str) -> "list[Size]":
    """Return the sizes that are as asked: a preset's, or a custom size itself and the one it is mapped to."""
    from ideogram_pipeline.ideogram.sizes import PRESET_SIZES, Size, snap

    presets: Mapping[str, Size] = PRESET_SIZES  # type: ignore[assignment]  # the preset may be a newer version's
    if image_size in presets:
        return [presets[image_size]]
    width, height = map(int, image_size.split("x"))
    return list(dict.fromkeys([Size(width, height), snap(width, height)]))


def duplicates(pictures: "Sequence[PictureFacts]") -> Verdict:
    """Look for the same bytes under different requests."""
    by_digest: dict[str, dict[str, str]] = defaultdict(dict)
    for picture in pictures:
        by_digest[picture.sha256_received][picture.fingerprint] = picture.prompt_id
    same = [list(rows.values()) for rows in by_digest.values() if len(rows) > 1]
    found = [(rows[0], f"has the same picture as {', '.join(rows[1:4])}") for rows in same]
    return Verdict(
        "no_duplicate_pictures",
        found,
        "Give the rows different seeds, or leave the seed empty.",
        counts={"pictures": len(pictures), "different": len(by_digest)},
    )


def near_duplicates(pictures: "Sequence[PictureFacts]") -> Verdict:
    """Look for pictures that look like another one, or like a reference that they were made with."""
    found, compared = [], 0
    for picture in pictures:
        distances = (picture.nearest_distance, picture.reference_distance)
        compared += any(distance is not None for distance in distances)
        for other, distance in zip((picture.nearest_image, "its reference"), distances, strict=True):
            if distance is not None and distance <= NEAR_DUPLICATE:
                differ = f"{distance} of 64 bits differ"
                found.append((picture.prompt_id, f"{picture.file_name} looks like {other}: {differ}"))
    return Verdict(
        "no_near_duplicates",
        found,
        "Look at both. Reject one of them and run with regenerate_rejected, or change the prompt or the seed.",
        counts={"compared": compared, "pictures": len(pictures)},
    )


def far_faces(pictures: "Sequence[PictureFacts]") -> Verdict:
    """Look for pictures whose face is far from that of their character reference, where that was measured."""
    measured = [(picture, picture.face_distance) for picture in pictures if picture.face_distance is not None]
    return Verdict(
        "faces_near_reference",
        [
            (picture.prompt_id, f"{picture.file_name} is {distance:.2f} from its reference")
            for picture, distance in sorted(measured, key=lambda one: -one[1])
            if distance > FAR
        ],
        "Look at them in the gallery, which sorts by it, and reject those that are unlike. A style that is far from a "
        "photo's is far by this measure too.",
        counts={"measured": len(measured), "pictures": len(pictures)},
    )


def paid_once(rows: "Sequence[RowEnd]", entries: "Mapping[str, Entry]") -> Verdict:
    """Count the paid requests of generated rows in the ledger."""
    twice, perhaps, resubmitted = [], [], 0
    generated = [row for row in rows if row.state == "generated"]
    for row in generated:
        entry = entries.get(row.fingerprint or "")
        attempts = entry.attempts if entry else ()
        sent = [attempt for attempt in attempts if not attempt.released]
        paid = [attempt for attempt in sent if attempt.settled and attempt.settled.state == "generated"]
        ids = ", ".join(attempt.submitted.request_id for attempt in sent if attempt.submitted)
        resubmitted += len(sent) > 1
        if len(paid) != 1:
            twice.append((row.prompt_id, f"{len(paid)} paid requests: {ids or 'none'}"))
        elif any(not attempt.settled or attempt.cost.usd != 0 for attempt in sent[:-1]):
            perhaps.append(
                (row.prompt_id, f"an attempt before the paid one may have been billed as well: {ids}")
            )
    return Verdict(
        "paid_once",
        [*twice, *perhaps],
        "Look the request ids up in fal's billing, and tell fal of what was billed without a picture.",
        dg.AssetCheckSeverity.ERROR if twice else dg.AssetCheckSeverity.WARN,
        {"generated": len(generated), "resubmitted": resubmitted, "perhaps_billed_twice": len(perhaps)},
    )


def refusals(rows: "Sequence[RowEnd]", allowed: float) -> Verdict:
    """Compare the share of answered rows that the model refused with the share that is allowed."""
    answered = [row for row in rows if row.state in ("generated", "refused", "failed")]
    refused = [(row.prompt_id, row.reason) for row in answered if row.state == "refused"]
    fraction = len(refused) / len(answered) if answered else 0.0
    return Verdict(
        "refusals_allowed",
        refused if fraction > allowed else (),
        f"{len(refused)} of {len(answered)} answered rows were refused, more than the fraction {allowed:g} of "
        "IDEOGRAM_MAX_REFUSED_FRACTION. Change what the reasons name; the same input would be refused again.",
        counts={"refused": len(refused), "fraction": fraction, "allowed_fraction": allowed},
    )
