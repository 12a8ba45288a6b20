"""What is installed, what of it is asked for, and what cannot be used."""

from __future__ import annotations

import sys
import textwrap

import pytest

from axonize_core import hookimpl
from axonize_core.plugins import Plugins, load_plugins


class Keeper:
    """A plugin that keeps what it hears of requests."""

    def __init__(self):
        self.seen = []

    @hookimpl
    def axonize_requests(self, events):
        self.seen += events


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Installs third-party packages: ``install(name, source)`` makes a real distribution with an entry point."""
    monkeypatch.syspath_prepend(str(tmp_path))
    modules = []

    def make(name, source, module=None, version="1.2"):
        module = module or f"third_party_{name}"
        (tmp_path / f"{module}.py").write_text(textwrap.dedent(source))
        info = tmp_path / f"dist_{module}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: dist-{name}\nVersion: {version}\n")
        (info / "entry_points.txt").write_text(f"[axonize]\n{name} = {module}\n")
        modules.append(module)

    yield make
    for module in modules:
        sys.modules.pop(module, None)


GOOD = """
    from axonize_core import hookimpl
    seen = []

    @hookimpl
    def axonize_requests(events):
        seen.extend(events)
"""


def test_load_plugins_takes_only_what_was_asked_for(install):
    """AXONIZE_LOAD_PLUGINS names what is loaded; built-ins are there in any case, and what is left out is listed."""
    install("good", GOOD)
    install("other", GOOD)
    ours = ["axonize_core.export.otlp", "axonize_core.gpu.providers", "axonize_core.spans"]
    assert load_plugins().names() == sorted([*ours, "good", "other"])
    assert load_plugins(()).names() == ours
    some = load_plugins(("good",))
    assert some.names() == sorted([*ours, "good"])
    assert some.records["other"].state == "not asked for"
    assert some.records["good"].origin == ("dist-good", "1.2")
    assert some.disabled == {}
    assert load_plugins((), defaults=(), groups=("axonize.server",)).names() == ["server", "triton"]


def test_a_name_that_is_not_installed_is_reported(install):
    """A misspelt name in AXONIZE_LOAD_PLUGINS would otherwise load nothing, in silence."""
    install("good", GOOD)
    plugins = load_plugins(("god", "axonize_core.spans"), defaults=())
    assert plugins.names() == []
    assert plugins.disabled == {"god": "is named in AXONIZE_LOAD_PLUGINS but not installed (installed: good)"}


BAD = {
    "missing": ("import no_such_module_at_all", "cannot be loaded: ModuleNotFoundError"),
    "exits": ("import sys; sys.exit(1)", "cannot be loaded: SystemExit: 1"),
    "syntax": ("def", "cannot be loaded: SyntaxError"),
    "misspelt": (
        "from axonize_core import hookimpl\n@hookimpl\ndef axonize_reqests(events): ...",
        "implements 'axonize_reqests', which is no hook; did you mean 'axonize_requests'?",
    ),
    "foreign": (
        "from axonize_core import hookimpl\n@hookimpl\ndef xyz(events): ...",
        "implements 'xyz', which is no hook (hooks are axonize_batches, axonize_configure, ",
    ),
    "argument": (
        "from axonize_core import hookimpl\n@hookimpl\ndef axonize_requests(evnts): ...",
        "Argument(s) {'evnts'} are declared in the hookimpl but can not be found",
    ),
    "wrapper": (
        "from axonize_core import hookimpl\n@hookimpl(wrapper=True)\ndef axonize_requests(events):\n    return (yield)",
        "hooks are plain functions",
    ),
    "coroutine": (
        "from axonize_core import hookimpl\n@hookimpl\nasync def axonize_requests(events): ...",
        "hooks are plain functions",
    ),
}


def test_every_way_to_be_unusable_disables_that_plugin_only(install):
    """Import errors, sys.exit, hooks and arguments that do not exist: each has its reason, and the good one works."""
    for name, (source, _) in BAD.items():
        install(name, source)
    install("good", GOOD)
    plugins = load_plugins(defaults=())
    plugins.call("axonize_requests", events=[1])
    assert plugins.names() == ["good"]
    assert sys.modules["third_party_good"].seen == [1]
    assert set(plugins.disabled) == set(BAD)
    for name, (_, says) in BAD.items():
        assert says in plugins.disabled[name], name
    assert plugins.failures == {}


def test_an_optional_hook_may_be_unknown(install):
    """Who marks a hook optional says that they know of versions without it."""
    install("new", "from axonize_core import hookimpl\n@hookimpl(optionalhook=True)\ndef axonize_later(x): ...")
    assert load_plugins(defaults=()).names() == ["new"]


def test_two_distributions_with_one_name_both_work(install):
    """The second is told apart by its distribution, and neither is lost."""
    install("good", GOOD, module="third_party_one")
    install("good", GOOD, module="third_party_two", version="2.0")
    names = load_plugins(defaults=()).names()
    assert len(names) in (1, 2)  # the same distribution twice on the path counts once
    plugins = Plugins()
    plugins.load("good", Keeper)
    from axonize_core.plugin_record import Origin

    plugins.load("good", Keeper, Origin("elsewhere", "1"))
    assert plugins.names() == ["good", "good@elsewhere"]


def test_one_object_under_two_names_is_refused_once():
    """The same object would hear everything twice."""
    plugins, keeper = Plugins(), Keeper()
    plugins.register(keeper, "one")
    plugins.register(keeper, "two")
    plugins.call("axonize_requests", events=[1])
    assert keeper.seen == [1]
    assert plugins.disabled == {"two": "is the same object as one"}
