"""Before anything is paid: does the plan fit the budget, are its rows sound, are its references there?

A failed check ends the run before `generated_images` only where that run could make nothing, or where the team has said
that it should (`IDEOGRAM_MAX_REJECTED_FRACTION`); the rows of that run get an outcome all the same. Otherwise it warns:
a bad row never costs the others, and at a spending limit a run makes what fits.
"""

from collections.abc import Iterator
from decimal import Decimal
from typing import TYPE_CHECKING

import dagster as dg

from ideogram_pipeline.assets.bridge import run_in_thread
from ideogram_pipeline.assets.images import spending_run
from ideogram_pipeline.checks.findings import Verdict, digests, sampled
from ideogram_pipeline.pipeline import Pipeline
from ideogram_pipeline.resources import BudgetResource, LimitsResource, StoreResource
from ideogram_pipeline.texts import counted

if TYPE_CHECKING:
    from ideogram_pipeline.generation.planner import Plan
    from ideogram_pipeline.generation.rows import PlannedRow
    from ideogram_pipeline.storage import Store

CHECKS = {
    "plan_fits_the_budget": "What the plan costs fits what the budgets of run and day leave. If not all of it fits, "
    "this warns and the run makes what does; if nothing fits, or no price is known and such rows aren't allowed, the "
    "run ends before it pays. Raise IDEOGRAM_BUDGET_USD or IDEOGRAM_BUDGET_USD_PER_DAY, or run again later.",
    "rejected_rows_allowed": "No row is rejected. Rejected rows warn, and the others are made; beyond "
    "IDEOGRAM_MAX_REJECTED_FRACTION of the rows the run ends before it pays. Mend the rows in the prompts table.",
    "references_readable": "The store has every reference that rows to be paid for use, with the bytes it had when the "
    "table was read. Rows without their references are not sent and the others are made; if no row is left, the run "
    "ends. Delete a damaged copy and materialize `references` again.",
}
"""The checks and what they mean."""


def define(pipeline: Pipeline) -> dg.AssetChecksDefinition:
    """Return the checks on a pipeline's plans."""
    asset = pipeline.key("generation_requests")

    @dg.multi_asset_check(
        name=pipeline.name("checks_before_paying"),
        specs=[
            dg.AssetCheckSpec(
                name, asset=asset, description=meaning, blocking=True, partitions_def=pipeline.batches
            )
            for name, meaning in CHECKS.items()
        ],
    )
    @pipeline.with_own_resources
    def checks_before_paying(
        context: dg.AssetCheckExecutionContext,
        store: StoreResource,
        budget: BudgetResource,
        limits: LimitsResource,
    ) -> Iterator[dg.AssetCheckResult]:
        from ideogram_pipeline.generation import files
        from ideogram_pipeline.generation.batch import stop

        opened = store.open()
        root_run_id = context.run.root_run_id or context.run.run_id
        plan = files.read_plan(opened, context.partition_key, root_run_id=root_run_id)
        own_budget = budget.open(opened, spending_run(context.run))
        left_usd = run_in_thread(lambda _: own_budget.look(), is_terminated=lambda: False)
        verdicts = (
            fits(plan, left_usd, allow_unknown=budget.allow_unknown_prices),
            rejected(plan, limits.max_rejected_fraction),
            references(plan, opened),
        )
        blocking = [one for one in verdicts if one.findings and one.severity is dg.AssetCheckSeverity.ERROR]
        if blocking:
            run_in_thread(
                lambda _: stop(opened, plan, context.run.run_id, " ".join(map(str, blocking))),
                is_terminated=lambda: False,
            )
        for verdict in verdicts:
            yield verdict.of(asset)

    return checks_before_paying


def fits(plan: "Plan", left_usd: Decimal | None, *, allow_unknown: bool) -> Verdict:
    """Compare what a plan costs with what the spending limits leave; None: there is none."""
    withheld: list[tuple[str, str]] = []
    beyond: list[tuple[str, str]] = []
    to_pay, total, unpriced, something_fits = 0, Decimal(0), 0, False
    for row in _to_pay(plan):
        to_pay += 1
        unpriced += row.price_usd is None
        if row.price_usd is None and not allow_unknown:
            withheld.append((row.prompt_id, "its price is not known"))
            continue
        price = Decimal(str(row.price_usd or 0))
        total += price
        something_fits = something_fits or left_usd is None or price <= left_usd
        if left_usd is not None and total > left_usd:
            beyond.append((row.prompt_id, f"${row.price_usd} is beyond what is left"))
    found = [*withheld, *beyond]
    advice = [f"{to_pay - len(found)} of {to_pay} rows to pay for fit."]
    if beyond:
        advice.append(
            f"They cost ${plan.cost_usd:.2f} in all, and ${left_usd:.2f} is left: raise IDEOGRAM_BUDGET_USD or "
            "IDEOGRAM_BUDGET_USD_PER_DAY, or run again later; what is there is not paid for again."
        )
    if withheld:
        advice.append(
            f"{counted(len(withheld), 'row has', 'rows have')} no known price: set "
            "IDEOGRAM_ALLOW_UNKNOWN_PRICES=true to send them."
        )
    return Verdict(
        "plan_fits_the_budget",
        found,
        " ".join(advice),
        _severity(blocks=not something_fits and _nothing_else_to_do(plan)),
        {
            "rows_to_pay": to_pay,
            "cost_usd": plan.cost_usd,
            "unpriced": unpriced,
            **({} if left_usd is None else {"left_usd": float(left_usd)}),
        },
    )


def rejected(plan: "Plan", allowed: float) -> Verdict:
    """Compare the share of a plan's rows that can't be sent with the share that is allowed."""
    found = [
        (
            row.prompt_id or f"row {row.row_number}",
            f"{row.column}: {row.reason}" if row.column else row.reason,
        )
        for row in plan.rows
        if row.decision == "rejected"
    ]
    fraction = plan.rejected_fraction
    return Verdict(
        "rejected_rows_allowed",
        found,
        f"{len(found)} of {len(plan.rows)} rows can't be sent; mend them in the prompts table and run again "
        f"(in Dagster `refresh_tables` first). The run ends beyond a fraction of {allowed} "
        "(IDEOGRAM_MAX_REJECTED_FRACTION).",
        _severity(blocks=fraction > allowed),
        {"rejected": len(found), "fraction": fraction, "allowed_fraction": allowed},
    )


def references(plan: "Plan", store: "Store") -> Verdict:
    """Look for the copies of the references of the rows to pay for; fal fetches those passed by address by itself."""
    users: dict[str, list[str]] = {}
    expected: dict[str, tuple[str, str]] = {}
    to_pay = 0
    for row in _to_pay(plan):
        to_pay += 1
        for use in row.request.pictures if row.request else ():
            if not use.by_address:
                sha256, path = use.sent
                users.setdefault(path, []).append(row.prompt_id)
                expected[path] = (use.reference_id, sha256)
    there = {found.path for found in store.objects("references")} if expected else set()
    found = [(expected[path][0], f"{path} is missing") for path in expected if path not in there]
    broken = {path for path in expected if path not in there}
    hashed = digests(store, sampled([path for path in expected if path in there]))
    for path, digest in hashed.items():
        reference_id, sha256 = expected[path]
        if digest != sha256:
            found.append((reference_id, f"{path} has other bytes than when the table was read"))
            broken.add(path)
    without = {prompt_id for path in broken for prompt_id in users[path]}
    return Verdict(
        "references_readable",
        found,
        f"{counted(len(without), 'row is', 'rows are')} not sent for want of them. Delete the damaged files from the "
        "store and materialize `references` again.",
        _severity(blocks=len(without) == to_pay and _nothing_else_to_do(plan)),
        {"references": len(expected), "hashed": len(hashed), "rows_without_references": len(without)},
    )


def _to_pay(plan: "Plan") -> "Iterator[PlannedRow]":
    from ideogram_pipeline.generation.planner import TO_PAY

    return (row for row in plan.rows if row.decision in TO_PAY)


def _nothing_else_to_do(plan: "Plan") -> bool:
    """Say whether a run that pays for nothing has nothing to fetch, to look for or to keep in order either."""
    from ideogram_pipeline.generation.planner import PERHAPS_PAID

    return not any(plan.count(decision) for decision in ("reused", *PERHAPS_PAID))


def _severity(*, blocks: bool) -> dg.AssetCheckSeverity:
    return dg.AssetCheckSeverity.ERROR if blocks else dg.AssetCheckSeverity.WARN
