"""The ASGI app of SGLang's extra HTTP workers: its own app, after our parsers and hooks.

Why: `--tokenizer-worker-num` above 1 starts fresh interpreters. They import the app and load no
plugins, so they would not know a parser that the command line accepted. They import the app that
SGLANG_HTTP_SERVER_APP_PATH names, and `tool_parser.register` sets it to this module. Such a worker
needs the parsers and the hooks on SGLang's HTTP handlers: the parsed config arrives inside the
server arguments, and registering the model class would cost 15 s.
Remove when: SGLang calls load_plugins() in `init_multi_tokenizer` (entrypoints/http_server.py).
"""

from __future__ import annotations

from sglang.srt.entrypoints.http_server import app
from sglang.srt.plugins.hook_registry import HookRegistry

from sglang_longcat import hooks, tool_parser
from sglang_longcat.hooks import route_errors

__all__ = ["app"]

tool_parser.register()
hooks.register_all(hooks.HTTP)
HookRegistry.apply_hooks()
route_errors.add_handlers(app)
