"""``--plugin axonize`` on vLLM's command line: it sets AXONIZE_ENABLED for this process and its children.

vLLM loads its plugins while it builds its parsers, each of which then gets our argument; the parser of
``vllm --plugin axonize serve`` was made before, so the flag is taken out of its arguments instead. A ``plugin:`` in the
file of ``--config`` is found by the argument. Where VLLM_PLUGINS does not name us, nothing of this is loaded.
"""

from __future__ import annotations

import argparse
import functools
import logging
import os
import sys
from typing import TYPE_CHECKING, Any

from axonize_core.errors import ConfigurationError
from axonize_core.settings import get_settings, is_asked_for

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["FLAG", "NAME", "enable", "install_flag", "is_enabled"]

FLAG = "--plugin"
NAME = "axonize"
_ARG_UTILS = "vllm.engine.arg_utils"
_HELP = "Record every request and step, and the GPUs that serve them: `--plugin axonize`."
logger = logging.getLogger("axonize")


def is_enabled() -> bool:
    """Say whether Axonize was asked for in this process; a setting that cannot be used is said, and stops no server."""
    try:
        return is_asked_for()
    except ConfigurationError as e:
        logger.error("axonize: nothing will be recorded: %s", e)  # noqa: TRY400 - the sentence is enough
        return False


def enable(start: Callable[[], None]) -> None:
    """Switch Axonize on in this process and those it will start; ``start`` is what to do then. Never raises.

    A switch that turns everything off stays stronger, and is named.
    """
    os.environ["AXONIZE_ENABLED"] = "1"
    get_settings.cache_clear()
    if is_enabled():
        start()
    else:
        logger.warning("axonize: %s %s does nothing, everything is switched off; see axonize doctor", FLAG, NAME)


def install_flag(start: Callable[[], None]) -> None:
    """Let vLLM's parsers understand the flag; ``start`` is called when it is found. Idempotent.

    Raises:
        AttributeError: this vLLM parses its command line elsewhere; nothing was changed.
    """
    # Who parses has loaded it, and adds its arguments after the plugins were loaded.
    arg_utils = sys.modules.get(_ARG_UTILS)
    if arg_utils is None:
        return
    from vllm.utils.argparse_utils import FlexibleArgumentParser  # noqa: PLC0415 - loaded by then

    engine_args = arg_utils.EngineArgs
    parse_args, add_cli_args = FlexibleArgumentParser.parse_args, engine_args.add_cli_args
    if hasattr(parse_args, "axonize_original"):
        return
    FlexibleArgumentParser.parse_args = _parsing(parse_args, start)
    engine_args.add_cli_args = staticmethod(_adding(add_cli_args, start))


def _parsing(original: Callable[..., Any], start: Callable[[], None]) -> Callable[..., Any]:
    """Return ``FlexibleArgumentParser.parse_args`` that takes the flag out of its arguments."""

    @functools.wraps(original)
    def parse_args(self: Any, args: Sequence[str] | None = None, namespace: Any = None) -> Any:
        given = list(sys.argv[1:] if args is None else args)
        rest = without_flag(given)
        if rest == given:
            return original(self, args, namespace)
        enable(start)
        return original(self, rest, namespace)

    parse_args.axonize_original = original  # type: ignore[attr-defined]
    return parse_args


def without_flag(args: Sequence[str]) -> list[str]:
    """Return the arguments without ``--plugin axonize``; of a list of several plugins the others stay."""
    rest: list[str] = []
    left = iter(args)
    for argument in left:
        if argument == "--":
            return [*rest, argument, *left]
        flag, equals, value = argument.partition("=")
        if flag != FLAG:
            rest.append(argument)
        elif equals:
            rest += [f"{FLAG}={others}"] if (others := _others(value)) else []
        elif (following := next(left, None)) is None:
            rest.append(argument)
        else:
            rest += [FLAG, others] if (others := _others(following)) else []
    return rest


def _others(value: str) -> str:
    """Return a list of plugins without ours; as it is where ours is not in it, so that nothing else is touched."""
    names = [name.strip() for name in value.split(",")]
    return ",".join(name for name in names if name != NAME) if NAME in names else value


def _adding(original: Callable[..., Any], start: Callable[[], None]) -> Callable[..., Any]:
    """Return ``EngineArgs.add_cli_args`` that adds the flag, for ``--help`` and for the file of ``--config``."""

    @functools.wraps(original)
    def add_cli_args(parser: Any) -> Any:
        result = original(parser)
        # A plugin of somebody else, or vLLM itself one day, may have taken the name.
        if FLAG not in getattr(parser, "_option_string_actions", ()):
            group = parser.add_argument_group("Axonize", _HELP)
            group.add_argument(FLAG, action=_Plugin, start=start, metavar="NAME", default=argparse.SUPPRESS, help=_HELP)
        return result

    return add_cli_args


class _Plugin(argparse.Action):
    """Switches on; leaves nothing in the namespace, whose values become the engine's arguments."""

    def __init__(self, *, start: Callable[[], None], **given: Any) -> None:
        super().__init__(**given)
        self._start = start

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:  # noqa: ARG002
        if others := _others(values):
            raise argparse.ArgumentError(self, f"no plugin {others!r}; what it knows is {NAME}")
        enable(self._start)
