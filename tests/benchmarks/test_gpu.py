"""The benchmark of a GPU, run through on a CPU: where there is a GPU, time is too dear for mistakes."""

import dataclasses

import torch

from benchmarks import gpu


def test_it_runs_through_and_writes_its_tables(tmp_path, monkeypatch, capsys):
    quick = gpu.asked_of(torch.device("cpu"), quick=True)
    fewer = dataclasses.replace(quick, steps=2, batch=8, rows=64, matrix=32, copied=1 << 16, side_by_side=(1,))
    monkeypatch.setattr(gpu, "asked_of", lambda device, *, quick: fewer)
    gpu.main(["--device", "cpu", "--quick", "--to", str(tmp_path / "tables.md")])
    written = (tmp_path / "tables.md").read_text()
    assert written == capsys.readouterr().out
    for head in ("| ceiling |", "| target | training |", "| bound (T+S)/T |", "in one |", "| processes of"):
        assert head in written
    rows = [line.split("|")[1:-1] for line in written.splitlines() if line.startswith("| small_cnn, 8 px")]
    assert [row[1].strip() for row in rows] == ["bare", "labels", "sskt, cached labels", "labels, bfloat16"]
    assert float(rows[0][3]) == 1
    assert all(float(row[2]) > 0 and float(row[4]) >= 0 for row in rows)
