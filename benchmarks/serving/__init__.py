"""A recipe's speed through the real HTTP server, ours against in-tree. `__main__` is the command.

`options` reads the command line, `model` makes a model directory of full size without weights,
`arms` says what differs between the arms, `started` makes an arm's command, `server` starts and
stops it, `run` calls SGLang's benchmark, `log` reads the server's log, `report` holds
the results, and `curves` chooses what docs/throughput.svg shows.
"""
