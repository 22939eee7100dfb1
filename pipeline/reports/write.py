"""Everything a report is written as."""

from dataclasses import replace

from cluster.storage import Storage
from pipeline.forecasts.records import compare
from pipeline.planning.plan import Plan
from pipeline.reports.evidence import gather_evidence
from pipeline.reports.report import Report
from pipeline.reports.tables import write_tables


def write_report(plan: Plan, report: Report, storage: Storage, *, refresh: int | None = None) -> str:
    """Write the page, and its numbers as Markdown, CSV, Parquet and JSON; return the key of the page.

    refresh: seconds after which an open page loads itself again; None where nothing more will come.
    """
    from pipeline.reports.page import render  # the charts' library takes half a second

    name = plan.experiment.name
    write_tables(report, storage, name=name)
    evidence = replace(gather_evidence(report, storage), forecast=compare(plan, storage))
    storage.write(f"reports/{name}.html", render(plan, report, evidence, refresh=refresh))
    return f"reports/{name}.html"
