"""What a request may contain: a table of SGLang's request fields with their ranges, and the check.

A wrong value gets HTTP 400 with its field, value and range before the scheduler sees it. The
scheduler serves all clients in one process: what fails there ends the server for all of them.
"""
