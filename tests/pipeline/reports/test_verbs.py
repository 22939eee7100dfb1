"""The verbs of a page of results."""

import pytest

from pipeline.__main__ import main


def test_a_page_is_written_and_its_rows_are_tried(results_page, tmp_path, capsys):
    file = tmp_path / "RESULTS.md"
    file.write_text(results_page)
    assert main(["results", str(file)]) == 0
    assert main(["results", str(file)]) == 0
    said = capsys.readouterr().out
    assert f"results {file}: written anew\nresults {file}: as it was" in said
    code = main(["verify-results", str(file), "--rows", "1"])
    line = capsys.readouterr().out.splitlines()[-1]
    assert (code, line[:5]) in ((0, "holds"), (1, "FAILS"))
    assert "new seeds" in line
    assert "does not show" not in line


@pytest.mark.parametrize(
    ("words", "says"),
    [(["--rows", "0"], "--rows is 0; it has to be at least 1"), ([], "the page cannot be read")],
)
def test_mistakes_are_one_line(words, says, tmp_path, capsys):
    assert main(["verify-results", str(tmp_path / "none.md"), *words]) == 2
    said = capsys.readouterr().err
    assert says in said
    assert said.count("\n") == 1
