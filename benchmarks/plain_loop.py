"""A training step from the resident feed, against the loop people write and against the limit.

    python -m benchmarks.plain_loop FOLDER [--networks small_cnn resnet20] [--source-side 74]

FOLDER holds CIFAR-10 as `train.parquet`. Of each target five trainings take turns, some steps at a time: `bare` is
forward, backward and step of the plain network on tensors that lie there, which no training can go below; `ours` is
`scratch` from the resident feed, `ours, cached` is `sskt` with a linear head from a cache of 1000 classes (these three
with channels last); `plain`, a data set of PIL images with torchvision's crop, flip and normalisation, read by a
DataLoader without workers (with them, it would have cores that the other sides have not); `plain, live` asks
EfficientNet-Lite0 (ImageNet weights from a package) in every step, as code with `torch.no_grad()` does. Prints images
per second, and the parts of `bare` that the others reach; of the two with a source, of a bare step with a head and its
loss too.
"""

import argparse
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from benchmarks.material import BATCH, CLASSES, IMAGE, cifar, made_up_answers, make_feed, make_method, settings, turns
from pipeline.computing import compute_here
from sskt.compiling import lay_channels_last
from sskt.feeds import ImageSet, ResidentFeed
from sskt.methods import Method
from sskt.networks import build_source, build_target
from sskt.optim import make_optimizer
from sskt.settings import InputSettings, SourceSettings, TargetSettings

STEPS, ROWS, SOURCE_CLASSES = 10, 10_000, 1000
LITE0 = {"architecture": "efficientnet_lite0", "weights": "package"}
Run = Callable[[int], None]


class Pictures(Dataset[tuple[Tensor, int]]):
    """As torchvision's own: a PIL image and its transforms for every sample."""

    def __init__(self, images: ImageSet) -> None:
        from torchvision import transforms

        self.pictures, self.labels = images.images.permute(0, 2, 3, 1).numpy(), images.labels.tolist()
        self.transform = transforms.Compose(
            [
                transforms.RandomCrop(32, padding=4),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize(IMAGE.mean, IMAGE.std),
            ]
        )

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, number: int) -> tuple[Tensor, int]:
        from PIL import Image

        return self.transform(Image.fromarray(self.pictures[number])), self.labels[number]


class WithHead(nn.Module):
    """A plain network, and where there is a source a linear layer on what its last layer reads."""

    def __init__(self, architecture: str, *, head: bool) -> None:
        super().__init__()
        tapped = build_target(TargetSettings(architecture=architecture), classes=CLASSES, image=IMAGE)
        self.network, self.last = tapped.network, tapped.network.get_submodule(tapped.head)
        self.head = nn.Linear(tapped.embedding_dim, SOURCE_CLASSES) if head else None
        self.last.register_forward_pre_hook(self._keep)

    def _keep(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self.seen = inputs[0]

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor | None]:
        """Logits [B, 10], and the head's [B, 1000]."""
        logits = self.network(pixels)
        return logits, self.head(self.seen) if self.head else None


def descend(network: WithHead) -> Callable[[Tensor, Tensor, Tensor | None], None]:
    """A step of SGD on pixels, labels and, with a head, answers, as PyTorch's tutorials have it."""
    optimizer, _ = make_optimizer(network.parameters(), training=settings(), steps_per_epoch=100)

    def step(pixels: Tensor, labels: Tensor, answers: Tensor | None = None) -> None:
        logits, said = network(pixels)
        loss = F.cross_entropy(logits, labels)
        if said is not None:
            loss = loss + F.cross_entropy(said, answers.softmax(dim=1))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def bare(architecture: str, *, head: bool) -> Run:
    """The limit."""
    network = WithHead(architecture, head=head)
    lay_channels_last(network)
    step = descend(network)
    pixels, labels = torch.randn(BATCH, 3, 32, 32), torch.randint(0, CLASSES, (BATCH,))
    answers = torch.randn(BATCH, SOURCE_CLASSES) if head else None
    return lambda number: step(pixels, labels, answers)


def ours(method: Method, feed: ResidentFeed) -> Run:
    """The feed and the method."""
    return lambda number: method.step(feed.batch(number))


def plain(architecture: str, images: ImageSet, *, side: int | None) -> Run:
    """What people write."""
    step = descend(WithHead(architecture, head=side is not None))
    loader = DataLoader(Pictures(images), batch_size=BATCH, shuffle=True, drop_last=True)
    source = None
    if side:
        given = SourceSettings(**LITE0, input=InputSettings(size=side))
        source = build_source(given, name="lite0").network.eval()

    def endless() -> Iterator[tuple[Tensor, Tensor]]:
        while True:
            yield from loader

    batches = endless()

    def run(number: int) -> None:
        pixels, labels = next(batches)
        answers = None
        if source:
            with torch.no_grad():
                answers = source(F.interpolate(pixels, size=side, mode="bilinear", align_corners=False))
        step(pixels, labels, answers)

    return run


def several(run: Run) -> Run:
    """Some steps a turn."""

    def steps(turn: int) -> None:
        for number in range(turn * STEPS, (turn + 1) * STEPS):
            run(number)

    return steps


def measure(architecture: str, images: ImageSet, *, side: int, rounds: int) -> list[str]:
    """Lines of the table."""
    answers = {"source": made_up_answers(len(images.images), classes=SOURCE_CLASSES, encoding="u8")}
    feed, cached = make_feed(images), make_feed(images, answers)
    sides = {
        "bare": bare(architecture, head=False),
        "ours": ours(make_method("scratch", architecture, feed), feed),
        "plain": plain(architecture, images, side=None),
        "bare, with a head": bare(architecture, head=True),
        "ours, cached": ours(make_method("sskt", architecture, cached, sources={"source": SOURCE_CLASSES}), cached),
        "plain, live": plain(architecture, images, side=side),
    }
    times = turns([several(run) for run in sides.values()], count=rounds, warm=1)
    rates = [STEPS * BATCH / min(one) for one in times]
    limits = [rates[0]] * 3 + [rates[3]] * 3
    return [
        f"| {architecture} | {name} | {rate:.0f} | {rate / limit:.3f} |"
        for name, rate, limit in zip(sides, rates, limits, strict=True)
    ]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.plain_loop", description=__doc__.partition("\n")[0])
    parser.add_argument("folder", help="with train.parquet of CIFAR-10")
    parser.add_argument("--networks", nargs="+", default=("small_cnn", "resnet20"))
    parser.add_argument("--source-side", type=int, default=74, help="pixels that the live source sees")
    parser.add_argument("--rounds", type=int, default=5, help="of 10 steps of each side")
    asked = parser.parse_args()
    compute_here(1)
    images = cifar(asked.folder, rows=ROWS)
    print("| target | training | images/s | of its limit |\n|---|---|---|---|")
    for architecture in asked.networks:
        print("\n".join(measure(architecture, images, side=asked.source_side, rounds=asked.rounds)), flush=True)


if __name__ == "__main__":
    main()
