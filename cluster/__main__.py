"""The command line of what belongs to machines: the doctor."""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict

from cluster.doctor import ClusterFacts, Finding, judge
from cluster.examine import JoinError, gather
from cluster.storage import StorageError, open_storage

BAD_INPUT, FAILED = 2, 1

MANUAL = """Examine the cluster before it costs money.

Asks every node of the cluster that RAY_ADDRESS names, or this machine where it names none: whether all nodes are there
and reach each other; whether versions agree; whether the token is asked for and the dashboard is closed; clocks; GPUs;
shared memory; disks; and with --storage, whether every node can write, read, list, delete and create once there, how
fast, and with which credentials. Each line says what is right, or what is wrong and what to do. The exit code is 1
where anything is wrong. A node has to be idle: all its GPUs are tried at once. Nothing stays behind on the storage.

  python -m cluster doctor
  RAY_ADDRESS=auto python -m cluster doctor --storage s3://my-bucket/my-runs --nodes 4
"""


def make_parser() -> argparse.ArgumentParser:
    """The parser of the whole command line."""
    parser = argparse.ArgumentParser(prog="python -m cluster", description="What belongs to machines.")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    summary = MANUAL.partition("\n")[0]
    doctor = verbs.add_parser(
        "doctor", help=summary, description=MANUAL, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    doctor.add_argument("--storage", default="", metavar="URI", help="a storage, as in experiment files")
    doctor.add_argument("--nodes", type=_count, metavar="N", help="how many nodes there should be, the head counted")
    doctor.add_argument("--json", action="store_true", help="print findings and facts as JSON")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; return its exit code."""
    arguments = make_parser().parse_args(argv)
    try:
        storage = open_storage(arguments.storage).uri if arguments.storage else ""
    except StorageError as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201
        return BAD_INPUT
    facts = None
    try:
        facts = gather(storage=storage, expected=arguments.nodes)
        findings = judge(facts)
    except JoinError as error:
        findings = [Finding(str(error), "start it, correct RAY_ADDRESS, and use its token (RAY_AUTH_TOKEN_PATH)")]
    _print(findings, facts, as_json=arguments.json)
    return 0 if all(finding.ok for finding in findings) else FAILED


def _print(findings: Sequence[Finding], facts: ClusterFacts | None, *, as_json: bool) -> None:
    if not as_json:
        print("\n".join(str(finding) for finding in findings))  # noqa: T201
        return
    said = [{"ok": finding.ok, "what": finding.what, "todo": finding.todo} for finding in findings]
    print(json.dumps({"findings": said, "facts": asdict(facts) if facts else None}, indent=1))  # noqa: T201


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of nodes; it has to be 1 or more")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
