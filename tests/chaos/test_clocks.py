"""Machines whose clock is wrong or jumps while a run works: nothing paid twice or lost, nobody taken for dead."""

from pathlib import Path

import pytest

from ideogram_pipeline.sandbox import Fault

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(300)]

LIBRARIES = [
    library
    for folder in ("/usr/lib", "/usr/lib64", "/usr/local/lib", "/opt/homebrew/lib")
    for library in Path(folder).glob("**/faketime/libfaketimeMT.*")
]
if not LIBRARIES:
    pytest.skip("a clock can only be made wrong with libfaketime (Debian: faketime)", allow_module_level=True)


NO_CAPTURE = """\
compute_logs:
  module: dagster._core.storage.noop_compute_log_manager
  class: NoOpComputeLogManager
"""
"""Dagster's watchers of a step's output don't live under libfaketime, which refuses them to sleep."""


class Clock:
    """The clock of a machine: so many hours ahead of ours, and it can be set while processes look at it."""

    def __init__(self, file, ahead_h):
        self.file = file
        self.home = file.with_name(f"dagster-{file.name}")
        self.home.mkdir(exist_ok=True)
        (self.home / "dagster.yaml").write_text(NO_CAPTURE)
        self.set(ahead_h)

    def set(self, ahead_h):
        new = self.file.with_name(f"{self.file.name}.new")
        new.write_text(f"{ahead_h:+}h\n")
        new.replace(self.file)

    def settings(self):
        return {
            "LD_PRELOAD": str(LIBRARIES[0]),
            "FAKETIME_TIMESTAMP_FILE": str(self.file),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",  # nor does the system set that one
            "DAGSTER_HOME": str(self.home),
            "IDEOGRAM_MAX_IN_FLIGHT": "4",
            "IDEOGRAM_BUDGET_USD_PER_DAY": "100",
        }


@pytest.fixture
def clock(tmp_path):
    return lambda ahead_h: Clock(tmp_path / f"clock{ahead_h}", ahead_h)


@pytest.mark.parametrize(("sent", "searched"), [(6, 1), (-6, 0), (-20, -20)])
def test_an_answer_lost_under_one_clock_is_found_under_another(project, clock, sent, searched):
    project = project(rows=3, latency_scale=0, faults=(Fault("drop_after_accept"),))
    process = project.start("run", **clock(sent).settings())
    project.wait_until(process, lambda: project.sandbox.stats().accepted == project.rows)
    process.kill()
    project.finish(process)
    project.check_that_every_row_was_paid_once(project.run(**clock(searched).settings()))


def test_a_clock_that_jumps_while_a_run_works_changes_nothing(project, clock):
    project = project(rows=30, latency_scale=0.5)
    wild = clock(0)
    process = project.start("run", "--json", **wild.settings())
    for ledger_files, ahead_h in ((10, 6), (25, -6), (40, 30), (55, 0)):
        project.wait_until(process, lambda: len(project.ledger_files()) >= ledger_files)  # noqa: B023
        wild.set(ahead_h)
    code, out = project.finish(process)
    assert code == 0, project.output[-1]
    project.check_that_every_row_was_paid_once(project.summary(out))
