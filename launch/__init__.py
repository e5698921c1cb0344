"""Ways to start a server: recipes (files of SGLang flags), scripts, and examples for clusters.

`serve.py` is `make serve`; `serve.sh` starts a recipe; `bench.sh` measures a running server, and
`bench_report.py` prints its table. `docker/`, `kubernetes/` and `ray/` hold examples, `grafana/` a
dashboard.
"""
