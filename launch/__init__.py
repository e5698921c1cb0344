"""Ways to start a server beside `sglang-longcat serve`: scripts, and examples for clusters.

`serve.py` is `make serve`; `serve.sh` starts a recipe by its name; `bench.sh` measures a running
server, and `bench_report.py` prints its table. `docker/`, `kubernetes/` and `ray/` hold examples,
`grafana/` a dashboard.
"""
