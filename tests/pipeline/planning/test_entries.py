import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.planning.entries import compact, read_entries, short_names, uses_sources, with_point
from sskt.errors import InputError
from sskt.methods import METHODS, Facts, SourceFacts
from sskt.networks import ImageFormat

SSKT = {"method": "sskt", "sources": ["m"]}


def entries(*methods, kind="grid", common=None):
    return read_entries(methods, kind=kind, common=common or {}, sources=["m", "l"])


def paths(entry):
    return [axis.path for axis in entry.axes]


@pytest.mark.parametrize("name", METHODS)
def test_a_method_that_has_no_use_for_sources_refuses_them(name):
    """The oracle is the method's own check, which says so in these words."""
    shapes = (ImageFormat(1, 8, (0.5,), (0.5,)), {"m": SourceFacts(classes=3, embedding_dim=4)})
    facts = Facts(
        classes=3, image=shapes[0], sources=shapes[1], taps=(), rows=4, pool_rows=4, pool_size=9, views=4
    )  # fmt: skip
    try:
        METHODS[name].check(METHODS[name].Options(), facts)
        refused = False
    except InputError as error:
        refused = "are not used by this method" in str(error)
    assert uses_sources(METHODS[name]) is not refused


def test_common_axes_concern_those_that_have_the_field():
    common = {
        "training.lr": [1, 2],
        "options.alpha": [1.0],
        "sources": [["m"], ["l"]],
        "target": [{"architecture": "x"}],
    }
    scratch, named, unnamed = entries({"method": "scratch"}, SSKT, {"method": "sskt"}, common=common)
    assert paths(scratch) == ["training.lr", "target"]
    assert paths(named) == ["training.lr", "options.alpha", "target"]
    assert paths(unnamed) == list(common)


def test_own_axes_have_short_names_and_take_the_place_of_common_ones():
    own = {
        "alpha": [3.0],
        "training.lr": [9],
        "width": {"values": [8], "when": {"heads": "transfer"}},
        "heads": ["linear", "transfer"],
    }
    common = {
        "options.alpha": [1.0, 2.0],
        "training.lr": {"values": [5], "when": {"training.nesterov": True}},
        "training.nesterov": [True],
    }
    one, other = entries(SSKT | {"grid": own}, SSKT | {"label": "b"}, common=common)
    values = {axis.path: axis.values for axis in one.axes}
    assert values == {
        "options.alpha": (3.0,), "training.lr": (9,), "training.nesterov": (True,),
        "options.heads": ("linear", "transfer"), "options.width": (8,),
    }  # fmt: skip
    assert one.axes[-1].when == {"options.heads": "transfer"}
    assert {axis.path: axis.values for axis in other.axes}["options.alpha"] == (1.0, 2.0)


def test_an_axis_goes_with_those_that_its_conditions_ask_for():
    common = {
        "options.heads": ["linear", "transfer"],
        "training.lr": {"values": [1, 2], "when": {"options.heads": "transfer"}},
        "training.momentum": {"values": [0.1, 0.2], "when": {"training.lr": 2}},
        "training.gamma": [0.5],
    }
    scratch, sskt = entries({"method": "scratch"}, SSKT, common=common)
    assert paths(scratch) == ["training.gamma"]
    assert paths(sskt) == list(common)


def test_an_option_for_each_source_is_an_axis_too():
    (entry,) = entries(SSKT | {"alpha": {"m": 1.0}, "grid": {"alpha.l": [0.1, 0.2]}})
    assert entry.label_at({"options.alpha.l": 0.1}) == "sskt m, alpha {m: 1.0}, l 0.1"
    assert with_point(entry.options, {"options.alpha.l": 0.1}, section="options") == {"alpha": {"m": 1.0, "l": 0.1}}


def test_a_point_is_put_into_settings_that_stay_as_they_were():
    raw = {"architecture": "a", "options": {"width": 3}}
    point = {"target.options.width": 5, "target.input.size": 8, "target": {"architecture": "b"}, "training.lr": 1}
    assert with_point(raw, point, section="target") == {
        "architecture": "b", "options": {"width": 5}, "input": {"size": 8},
    }  # fmt: skip
    assert raw == {"architecture": "a", "options": {"width": 3}}
    assert with_point({"alpha": 0.5}, {"options.alpha.m": 1}, section="options") == {"alpha": {"m": 1}}


def test_labels_say_what_the_entry_says_and_then_what_varies():
    written = {"method": "sskt", "alpha": 0.5, "loss": "kl"}
    plain, called = entries(
        written, written | {"label": "mine"}, common={"sources": [["m"], ["m", "l"]], "training.loss": ["ce"]}
    )
    point = {"sources": ["m", "l"], "training.loss": "ce"}
    assert plain.label_at(point) == "sskt m+l, alpha 0.5, loss kl, training.loss ce"
    assert called.label_at(point) == "mine, sources [m, l], training.loss ce"
    (varied,) = entries(written, common={"options.alpha": [1.0, 2.0]})
    assert varied.label_at({"options.alpha": 2.0}) == "sskt, loss kl, alpha 2.0"
    (target,) = entries({"method": "scratch"}, common={"target": [{"architecture": "a", "options": {"width": 3}}]})
    assert target.label_at(target_point(target)) == "scratch, target {architecture: a, options: {width: 3}}"


def target_point(entry):
    return {axis.path: axis.values[0] for axis in entry.axes}


def test_compact_values_read_like_yaml():
    assert compact([1, "a", {"b": [None, 0.5]}]) == "[1, a, {b: [None, 0.5]}]"
    assert (compact([]), compact({}), compact(1e-05)) == ("[]", "{}", "1e-05")


steps = st.sampled_from(["training", "target", "options", "lr", "width"])


@settings(deadline=None)
@given(
    st.lists(st.lists(steps, min_size=1, max_size=4).map(".".join), unique=True),
    st.lists(steps.map("options.{}".format)),
)
def test_short_names_are_ends_of_no_other_path_where_that_is_possible(names, others):
    short = short_names(names, others=others)
    for path, end in short.items():
        rivals = [f".{one}" for one in (*names, *others) if one != path]
        assert f".{path}".endswith(f".{end}")
        alone = not any(rival.endswith(f".{end}") for rival in rivals)
        assert alone or end == path
        shorter = end.partition(".")[2]
        assert not shorter or any(rival.endswith(f".{shorter}") for rival in rivals)


@pytest.mark.parametrize(
    ("method", "kind", "common", "says"),
    [
        ({}, "grid", {"training.lrr": [1]}, "grid: axis 'training.lrr' is unknown; did you mean 'training.lr'?"),
        ({}, "search", {"options.alpa": [1]}, "search.axes: axis 'options.alpa' is unknown; did you mean"),
        ({}, "grid", {"alpha": [1]}, "grid: axis 'alpha' is unknown; did you mean 'options.alpha'?"),
        ({}, "grid", {"options.peers": [1]}, "grid: axis 'options.peers' is unknown"),
        ({}, "grid", {"sources": [["m"]]}, "grid: axis 'sources' is unknown"),
        ({}, "grid", {"training": [1]}, "grid: axis 'training' is unknown"),
        ({"grid": {"alpa": [1]}}, "grid", {}, "methods[0].grid: axis 'options.alpa' is unknown; did you mean"),
        ({"grid": [1]}, "grid", {}, "methods[0].grid is [1]; it has to hold axes by name"),
        ({"grid": {"alpha": 1}}, "grid", {}, "methods[0].grid.options.alpha is 1; it has to be a list of values"),
        ({"grid": {"alpha": {"values": [1], "when": {"heads": 1}}}}, "grid", {}, "when: axis 'options.heads' is"),
        ({"search": {}}, "grid", {}, "methods[0].search: the file has no `search`, so axes of an entry stand under"),
        ({"grid": {}}, "search", {}, "methods[0].grid: the file has a `search`, so axes of an entry stand under"),
        ({"label": 3}, "grid", {}, "methods[0].label is 3; it has to be text"),
        ({"method": 3}, "grid", {}, "methods[0].method is 3; it has to be the name of a method"),
        ({"sources": "m"}, "grid", {}, "methods[0].sources is 'm'; it has to be a list of sources, each named once"),
        ({"sources": [["m"]]}, "grid", {}, "methods[0].sources: source \"['m']\" is unknown"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line(method, kind, common, says):
    with pytest.raises(InputError) as caught:
        entries(SSKT | method, kind=kind, common=common)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)
