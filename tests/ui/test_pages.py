"""What a person sees of the pipeline in Dagster's UI, in a real browser."""

import re

import pytest

pytestmark = [pytest.mark.ui, pytest.mark.timeout(600)]

LAUNCHPAD = "/locations/ideogram_pipeline.definitions/jobs/generate_batch/playground"
CHECKS = (
    "batch_is_whole",
    "marks_in_the_pictures",
    "no_duplicate_pictures",
    "no_unanswered_submits",
    "paid_once",
    "pictures_in_the_store",
    "refusals_allowed",
    "sizes_as_asked",
)


def cell(page, name):
    """The value that stands beside a name in a table of metadata; tables inside of it have rows of their own."""
    return page.locator(f"xpath=//tr[not(ancestor::tr)][td[1][normalize-space()='{name}']]/td[2]")


def shown(locator):
    """Wait for something to be shown and return its text."""
    locator.wait_for()
    return locator.inner_text().strip()


def test_the_graph_shows_six_assets_in_three_groups_and_what_leads_to_what(page):
    page.set_viewport_size({"width": 2400, "height": 1000})  # else the names are shortened
    page.goto("/asset-groups")
    page.get_by_text("generation", exact=True).last.wait_for()
    page.keyboard.press("Alt+e")
    for asset in (
        "prompts",
        "references",
        "generation_requests",
        "generated_images",
        "image_catalog",
        "gallery",
    ):
        page.locator("svg").get_by_text(asset, exact=True).wait_for()
    for group in ("tables", "generation", "catalog"):
        page.locator("svg").get_by_text(group, exact=True).wait_for()
    page.wait_for_function("document.querySelectorAll('svg path[marker-end]').length === 5")


def test_a_batch_shows_its_contact_sheet_its_counts_and_the_rows_without_pictures(page):
    page.goto("/assets/generated_images?view=partitions&partition=ada")
    counts = {
        name: int(shown(cell(page, name))) for name in ("rows", "generated", "refused", "rejected", "images")
    }
    assert counts == {"rows": 4, "generated": 2, "refused": 1, "rejected": 1, "images": 2}
    left = shown(cell(page, "without_pictures"))
    assert "ada-3" in left
    assert "SLOWEST" in left
    cell(page, "preview").get_by_text("[Show Markdown]").click()
    sheet = page.locator("img[src^='data:image/']")
    sheet.wait_for()
    page.wait_for_function("image => image.complete", arg=sheet.element_handle())
    assert sheet.evaluate("image => image.naturalWidth") > 300


def test_the_checks_show_what_they_found(page):
    page.goto("/assets/generated_images?view=checks&checkDetail=batch_is_whole")
    for check in CHECKS:
        page.get_by_text(check, exact=True).first.wait_for()
    page.get_by_text("Every row that was asked of the run has its pictures").wait_for()
    page.get_by_text("Execution history", exact=True).click()
    failed = shown(page.locator("tr", has_text="Failed"))
    assert "ada" in failed
    assert "2 of 4 rows ended without a picture (1 refused, 1 rejected)" in failed
    assert "bea" in shown(page.locator("tr", has_text="Passed"))


def test_the_batches_are_partitions(page):
    page.goto("/assets/generated_images?view=partitions")
    page.get_by_text("Materialized (2)").wait_for()
    for batch in ("ada", "bea"):
        page.get_by_text(batch, exact=True).first.wait_for()


def test_a_new_take_is_asked_for_in_the_launchpad_and_made(page, deployment):
    before = deployment.sandbox.stats().accepted
    page.goto(LAUNCHPAD)
    page.locator(".CodeMirror-line", has_text="env: FAL_KEY").wait_for()
    line = page.locator(".CodeMirror-line", has_text=re.compile(r"^\s*regenerate:"))
    line.get_by_text("false").dblclick()
    page.keyboard.type("true")
    page.get_by_text("Ask for a new take of every row").wait_for()
    page.get_by_placeholder("Partition").click()
    page.get_by_text("bea", exact=True).click()
    page.get_by_text("Launch Run", exact=True).click()
    page.wait_for_url(re.compile("/runs/"))
    page.get_by_text("Success", exact=True).first.wait_for()
    assert deployment.sandbox.stats().accepted == before + 1


def test_the_automation_page_shows_that_nothing_starts_by_itself(page):
    page.goto("/automation")
    for automation in ("conditions", "new_batches", "new_tables", "scheduled_reconcile", "scheduled_refresh"):
        page.get_by_text(automation, exact=True).wait_for()
    assert page.get_by_role("checkbox", checked=True).count() == 0
