"""The ASGI app of SGLang's extra HTTP workers: its own app, after our parsers are registered.

Why: `--tokenizer-worker-num` above 1 starts fresh interpreters. They import the app and load no
plugins, so they would not know a parser that the command line accepted. They import the app that
SGLANG_HTTP_SERVER_APP_PATH names, and `tool_parser.register` sets it to this module. Such a worker
needs nothing else of the plugin: the parsed config arrives inside the server arguments, and
registering the model class would cost 15 s. The one hook that a worker needs is applied here.
Remove when: SGLang calls load_plugins() in `init_multi_tokenizer` (entrypoints/http_server.py).
"""

from __future__ import annotations

from sglang.srt.entrypoints.http_server import app
from sglang.srt.plugins.hook_registry import HookRegistry

from sglang_longcat import tool_parser

__all__ = ["app"]

tool_parser.register()
HookRegistry.apply_hooks()
