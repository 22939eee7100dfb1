"""What more views buy: accuracy against the number M of cached views, with the bytes and the seconds they cost.

    python -m benchmarks.view_economy

Scikit-learn's digits, 5 labels a class, the rest of the pool unlabelled; a source that learnt MNIST; the demo's target
and training. M = 1 is one fixed view per image, for source and target alike. Every row goes on with the cache of the
row before: only the views that are new are made.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from pipeline.statistics import summarise

COUNTS = (1, 2, 4, 8, 16)
EXPERIMENT = """
storage: {folder}
dataset: {{kind: digits, image_size: 16, validation: 0.15, test: 0.25}}
views: {{ops: [pad_crop: 2], count: 1}}
sources:
  mnist: {{weights: {folder}/mnist.safetensors}}
target: {{architecture: small_cnn, options: {{width: 16}}}}
training: {{epochs: 15, steps_per_epoch: 20, batch_size: 64, labels_per_class: 5, lr: 0.05}}
methods:
  - {{method: scratch}}
  - {{method: sskt, sources: [mnist], learn_from: all}}
seeds: [0, 1, 2, 3, 4]
"""


def run(*words: str) -> str:
    """Run a verb of the pipeline; return what it says."""
    done = subprocess.run([sys.executable, "-m", "pipeline", *words], capture_output=True, text=True, check=True)  # noqa: S603
    return done.stdout


def row(file: str, folder: Path, count: int) -> str:
    """Sweep with so many views; return a line of the table."""
    said = run("sweep", file, "--set", f"views.count={count}")
    made = next(line for line in said.splitlines() if line.startswith("cache   mnist logits"))
    scores: dict[str, list[float]] = {"scratch": [], "sskt": []}
    for result in (folder / "results").glob("*.json"):
        known = json.loads(result.read_text())
        if known["spec"]["views"]["count"] == count:
            scores[known["spec"]["trial"]["method"]].append(known["test"]["accuracy"])
    manifests = [json.loads(path.read_text().splitlines()[0]) for path in folder.glob("caches/*/*/manifest.json")]
    shards = [shard for manifest in manifests for shard in manifest["shards"]]
    size, seconds = sum(shard["bytes"] for shard in shards), sum(shard["seconds"] for shard in shards)
    told = {method: summarise(values) for method, values in scores.items()}
    cells = [f"{one.mean:.1f} ± {one.std:.1f}" for one in (told["scratch"], told["sskt"])]
    new = made.split(": ")[1].split(" source passes")[0]
    return f"| {count} | {cells[0]} | {cells[1]} | {size / 1e3:.0f} | {new} | {seconds:.2f} |"


def main() -> None:
    """Train the source, then a sweep for each number of views."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source = folder / "mnist.safetensors"
        run(
            "train",
            "experiments/demo_source.yaml",
            "--set",
            f"storage={folder}",
            "--trial",
            "0",
            "--export",
            str(source),
        )
        file = folder / "views.yaml"
        file.write_text(EXPERIMENT.format(folder=folder))
        print("| M | scratch, test % | sskt, test % | cache, kB | passes for this row | source seconds so far |")
        print("|---|---|---|---|---|---|")
        for count in COUNTS:
            print(row(str(file), folder, count), flush=True)


if __name__ == "__main__":
    main()
