"""The interface that gloo is shown. That trainings over several machines work by it, tests/test_hosts.py tests."""

import os
import pickle
import socket
import subprocess
import sys

import pytest
import ray

from pipeline.trials import gloo

linux = pytest.mark.skipif(sys.platform != "linux", reason="interfaces are asked for as Linux wants it")


@linux
def test_the_interface_of_an_address_is_that_which_the_system_names():
    said = subprocess.run(["ip", "-4", "-o", "address"], capture_output=True, text=True, check=True).stdout
    having = {line.split()[3].partition("/")[0]: line.split()[1] for line in said.splitlines()}
    assert having["127.0.0.1"] == "lo"
    assert {address: gloo.interface_of(address) for address in having} == having


def test_an_address_that_no_interface_has_has_none():
    assert gloo.interface_of("192.0.2.1") is None
    assert gloo.interface_of("::1") is None


def test_an_interface_without_an_address_is_passed_over(monkeypatch):
    monkeypatch.setattr(socket, "if_nameindex", lambda: [(1, "none-such"), *[(2, "lo")] * (sys.platform == "linux")])
    assert gloo.interface_of("127.0.0.1") == ("lo" if sys.platform == "linux" else None)


@pytest.mark.parametrize(
    ("before", "address", "after"),
    [(None, "127.0.0.1", "lo"), ("eth7", "127.0.0.1", "eth7"), (None, "192.0.2.1", None)],
)
@linux
def test_what_a_person_has_set_stands_and_nothing_is_guessed(monkeypatch, before, address, after):
    monkeypatch.setenv(gloo.VARIABLE, before or "")
    if before is None:
        monkeypatch.delenv(gloo.VARIABLE)
    monkeypatch.setattr(ray.util, "get_node_ip_address", lambda: address)
    gloo.choose_interface()
    assert os.environ.get(gloo.VARIABLE) == after
    os.environ.pop(gloo.VARIABLE, None)


def test_every_worker_is_shown_its_interface_before_it_joins_the_others(monkeypatch):
    happened = []

    class Group:
        def execute(self, function):
            happened.append(function)

    config = pickle.loads(pickle.dumps(gloo.Config()))  # noqa: S301 (ours: it travels, by its name)
    monkeypatch.setattr(gloo.Backend.__mro__[1], "on_start", lambda *arguments: happened.append(arguments[1:]))
    group = Group()
    config.backend_cls().on_start(group, config)
    assert happened == [gloo.choose_interface, (group, config)]
