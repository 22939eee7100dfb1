"""What the tests of pages of results share."""

from pathlib import Path

import pytest

from pipeline.reports.results import tables
from tests.made_up import HEAD

TEXT = """
training: {epochs: 1, steps_per_epoch: 1, batch_size: 8}
methods:
  - {method: scratch}
  - {method: dml}
laptop: {training.epochs: 2}
"""


@pytest.fixture
def results_page(tmp_path: Path) -> str:
    """A page with one table of four real trainings, none of which needs a source."""
    head = HEAD.format(folder=tmp_path)
    file = tmp_path / "small.yaml"
    file.write_text(head[: head.index("sources:")] + head[head.index("target:") :] + TEXT)
    marked = f"<!-- results: {file} --set 'seeds=[0, 1]' -->\n<!-- end of results -->"
    stages = tables(marked)[0].stages(lambda line: None)
    plan = stages.pack()
    for planned in plan.trials:
        stages.train(planned, plan, in_process=True)
    return f"# Results\n\n{marked}\nMore words.\n"
