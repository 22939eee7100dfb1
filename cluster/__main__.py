"""The command line of what belongs to machines: the doctor, notices, and jobs on a running cluster."""

import argparse
import json
import os
import signal
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict

from cluster.doctor import ClusterFacts, Finding, judge
from cluster.examine import JoinError, gather
from cluster.jobs import ADDRESS, Job, Jobs, JobsError, UnreachableError, to_table, usual_address
from cluster.notices import Metadata, NoticeError, attend, drain
from cluster.storage import StorageError, open_storage
from cluster.submit import SENT_VERBS, read_order
from cluster.supervise import BAD_INPUT, CANCELLED, FAILED, Limits, Outlet, Supervisor, cancel


def doctor_verb(arguments: argparse.Namespace) -> int:
    """Examine the cluster before it costs money.

    Asks every node of the cluster that RAY_ADDRESS names, or this machine where it names none: whether all nodes are
    there and reach each other; whether versions agree; whether the token is asked for and the dashboard is closed;
    clocks; GPUs; shared memory; disks; and with --storage, whether every node can write, read, list, delete and create
    once there, how fast, and with which credentials. Each line says what is right, or what is wrong and what to do. The
    exit code is 1 where anything is wrong. A node has to be idle: all its GPUs are tried at once. Nothing stays behind
    on the storage.

      python -m cluster doctor
      RAY_ADDRESS=auto python -m cluster doctor --storage s3://my-bucket/my-runs --nodes 4
    """
    storage = open_storage(arguments.storage).uri if arguments.storage else ""
    facts = None
    try:
        facts = gather(storage=storage, expected=arguments.nodes)
        findings = judge(facts)
    except JoinError as error:
        findings = [Finding(str(error), "start it, correct RAY_ADDRESS, and use its token (RAY_AUTH_TOKEN_PATH)")]
    _print_findings(findings, facts, as_json=arguments.json)
    return 0 if all(finding.ok for finding in findings) else FAILED


def submit_verb(arguments: argparse.Namespace) -> int:
    """Run an experiment on a running cluster, and follow it to its end.

    Sends the experiment file to the head, and nothing else: the project is in the image, credentials are the nodes'
    own. There the job is `python -m pipeline VERB FILE`; what stands behind -- is handed on to it. Its log is shown
    here, and its exit code is that of this command: 0, 1 where it failed, 2 for bad input, 130 where it was cancelled.
    The same experiment text with the same arguments is the same job: while it runs, a second submit follows it. Where
    the head is lost and comes back without the job, it is sent again, and goes on from what is finished. Ctrl-C ends
    the following, not the job. Paths in the file are those of the cluster's machines.

      python -m cluster submit mine.yaml
      python -m cluster submit mine.yaml --verb train --detach -- --trial 3 --set training.lr=0.1
    """
    order = read_order(arguments.experiment, verb=arguments.verb, further=arguments.further)
    jobs = Jobs(arguments.address)
    limits = Limits(tries=arguments.tries, patience=arguments.patience * 60)
    supervisor = Supervisor(jobs, order.name, limits=limits, outlet=OUTLET, order=order)
    code = _run(supervisor, jobs, follow=not arguments.detach)
    if arguments.detach and code == 0:
        print(supervisor.name)  # noqa: T201
    return code


def follow_verb(arguments: argparse.Namespace) -> int:
    """Follow a job that was submitted, from its first line to its end.

    Exit codes are those of submit. The job is not sent again where its cluster is lost: for that, submit it as before.

      python -m cluster follow sskt-sweep-mine-1a2b3c4d5e
    """
    jobs = Jobs(arguments.address)
    limits = Limits(tries=0, patience=arguments.patience * 60)
    return _run(Supervisor(jobs, _known(jobs, arguments.job).name, limits=limits, outlet=OUTLET), jobs)


def status_verb(arguments: argparse.Namespace) -> int:
    """List the jobs that were submitted to a cluster, or show one.

    A cluster knows the jobs it was given itself; what earlier clusters did is on the storage (`python -m pipeline
    report`).

      python -m cluster status
      python -m cluster status sskt-sweep-mine-1a2b3c4d5e --json
    """
    jobs = Jobs(arguments.address)
    shown = [_known(jobs, arguments.job)] if arguments.job else jobs.all()
    if arguments.json:
        print(json.dumps([asdict(job) for job in shown], indent=1))  # noqa: T201
    else:
        print(to_table(shown) if shown else f"no job was submitted to {jobs.address}")  # noqa: T201
    return 0


def cancel_verb(arguments: argparse.Namespace) -> int:
    """End a job, and wait until it has ended.

    What is finished stays on the storage, checkpoints too: the same submit goes on from there.

      python -m cluster cancel sskt-sweep-mine-1a2b3c4d5e
    """
    jobs = Jobs(arguments.address)
    return cancel(jobs, _known(jobs, arguments.job), outlet=OUTLET)


def notices_verb(arguments: argparse.Namespace) -> int:
    """Tell Ray that its node on this machine is about to go, as soon as that is known.

    Asks the metadata service of Amazon every 5 s whether the machine is taken back, as spot machines are. Then, or at
    SIGTERM, Ray's node is drained: nothing more starts there, and trainings save the step they are at and go on
    elsewhere. That is the end of this command.

      python -m cluster notices
    """
    ending = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: ending.set())

    def tell(until: float) -> str:
        why = f"taken back in {until - time.time():.0f} s" if until else "SIGTERM"
        return drain(arguments.node_ip_address, until=until, why=why)

    _note(attend(Metadata().reclaimed, tell, ending=ending, say=_note))
    return 0


VERBS: dict[str, Callable[[argparse.Namespace], int]] = {
    "doctor": doctor_verb,
    "notices": notices_verb,
    "submit": submit_verb,
    "status": status_verb,
    "follow": follow_verb,
    "cancel": cancel_verb,
}


def make_parser() -> argparse.ArgumentParser:
    """The parser of the whole command line."""
    parser = argparse.ArgumentParser(prog="python -m cluster", description="What belongs to machines.")
    verbs = parser.add_subparsers(dest="verb_name", required=True, metavar="VERB")
    for name, verb in VERBS.items():
        summary, _, manual = (verb.__doc__ or "").partition("\n")
        manual = f"{summary}\n{textwrap.dedent(manual)}"
        command = verbs.add_parser(
            name, help=summary, description=manual, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        if name == "doctor":
            command.add_argument("--storage", default="", metavar="URI", help="a storage, as in experiment files")
            command.add_argument("--nodes", type=_count, metavar="N", help="how many there should be, the head counted")
        elif name == "notices":
            where = "the node's, where Ray was started with one (as Ray finds it)"
            command.add_argument("--node-ip-address", default="", metavar="IP", help=where)
        else:
            _add_job_arguments(command, name)
        if name in ("doctor", "status"):
            command.add_argument("--json", action="store_true", help="print all that is known as JSON")
    return parser


def _add_job_arguments(command: argparse.ArgumentParser, name: str) -> None:
    """What each of the verbs about jobs takes."""
    if name == "submit":
        command.usage = "python -m cluster submit [options] experiment [-- arguments of the pipeline]"
        command.add_argument("experiment", help="the experiment file (YAML)")
        command.add_argument("--verb", choices=SENT_VERBS, default=SENT_VERBS[0], help="the pipeline's (%(default)s)")
        command.add_argument("--detach", action="store_true", help="print the job's name and leave it alone")
        tries = "how often it is sent in all, where its cluster is lost (%(default)s)"
        command.add_argument("--tries", type=_count, default=3, metavar="N", help=tries)
    else:
        nargs = "?" if name == "status" else None
        command.add_argument("job", nargs=nargs, help="its name, as submit and status print it")
    where = f"the dashboard; else RAY_API_SERVER_ADDRESS, RAY_ADDRESS if it is a URL, or {ADDRESS}"
    command.add_argument("--address", default=usual_address(), metavar="URL", help=where)
    if name in ("submit", "follow"):
        patience = "how long a cluster may be away (%(default)g)"
        command.add_argument("--patience", type=_minutes, default=30.0, metavar="MINUTES", help=patience)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; return its exit code."""
    given = list(sys.argv[1:] if argv is None else argv)
    ours = given[: given.index("--")] if "--" in given else given
    arguments = make_parser().parse_args(ours)
    arguments.further = given[len(ours) + 1 :]
    try:
        if arguments.further and arguments.verb_name != "submit":
            raise JobsError(f"{arguments.verb_name} hands nothing on; leave out what stands behind --")
        return VERBS[arguments.verb_name](arguments)
    except (JobsError, StorageError) as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201
        return BAD_INPUT
    except (NoticeError, UnreachableError) as error:
        print(f"failed in {arguments.verb_name}: {error}", file=sys.stderr)  # noqa: T201
        return FAILED
    except BrokenPipeError:  # whoever read along has gone, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except KeyboardInterrupt:
        return CANCELLED


def _run(supervisor: Supervisor, jobs: Jobs, *, follow: bool = True) -> int:
    try:
        return supervisor.run(follow=follow)
    except KeyboardInterrupt:
        there = "" if jobs.address == ADDRESS else f" --address {jobs.address}"
        _note(f"\n{supervisor.name}: no longer followed; if it was sent, it goes on\n")
        for todo, verb in (("follow it", "follow"), ("look at it", "status"), ("end it", "cancel")):
            _note(f"  {todo:12}python -m cluster {verb} {supervisor.name}{there}")
        return CANCELLED


def _known(jobs: Jobs, name: str) -> Job:
    if (job := jobs.get(name)) is None:
        raise JobsError(f"{jobs.address} knows no job {name!r}; `python -m cluster status` lists those it knows")
    return job


def _write(text: str) -> None:
    print(text, end="", flush=True)  # noqa: T201


def _note(line: str) -> None:
    print(line, file=sys.stderr, flush=True)  # noqa: T201


OUTLET = Outlet(write=_write, note=_note)


def _print_findings(findings: Sequence[Finding], facts: ClusterFacts | None, *, as_json: bool) -> None:
    if not as_json:
        print("\n".join(str(finding) for finding in findings))  # noqa: T201
        return
    said = [{"ok": finding.ok, "what": finding.what, "todo": finding.todo} for finding in findings]
    print(json.dumps({"findings": said, "facts": asdict(facts) if facts else None}, indent=1))  # noqa: T201


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is too few or no number; it has to be 1 or more")
    return int(text)


def _minutes(text: str) -> float:
    try:
        minutes = float(text)
    except ValueError:
        minutes = -1.0
    if not 0 <= minutes < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is no number of minutes; it has to be 0 or more")
    return minutes


if __name__ == "__main__":
    sys.exit(main())
