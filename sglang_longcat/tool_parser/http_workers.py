"""The ASGI app of SGLang's extra HTTP workers: its own app, after our parsers are registered.

Why: `--tokenizer-worker-num` above 1 starts fresh interpreters that import the app and load no
plugins, so a parser that the command line accepted would be unknown where requests are parsed.
SGLang names the app to import in SGLANG_HTTP_SERVER_APP_PATH; `tool_parser.register` puts this
module there. Nothing else of the plugin is needed in such a worker, and registering the model class
would cost it 15 s: the parsed config arrives inside the server arguments.
Remove when: SGLang calls load_plugins() in `init_multi_tokenizer` (entrypoints/http_server.py).
"""

from __future__ import annotations

from sglang.srt.entrypoints.http_server import app

from sglang_longcat import tool_parser

__all__ = ["app"]

tool_parser.register()
