"""POST a JSON body, whatever is in it, and read status and text of the answer.

An answer that breaks off, as a stream does when its route fails, has status 0.
"""

from __future__ import annotations

import http.client
import json
import urllib.error
import urllib.request
from typing import Any

from tests.harness import Server


def post(server: Server, path: str, body: Any, timeout: float = 60) -> tuple[int, str]:
    request = urllib.request.Request(
        server.base_url + path,
        data=json.dumps(body).encode(),
        headers={"Content-Type": "application/json"},
    )
    try:
        with urllib.request.urlopen(request, timeout=timeout) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()
    except (http.client.HTTPException, ConnectionError) as error:
        return 0, repr(error)
