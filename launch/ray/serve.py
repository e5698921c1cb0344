"""Starts one SGLang server per node of a Ray cluster. Together they serve one model.

    ray job submit --working-dir . -- python launch/ray/serve.py h800-tp16-ep16-two-nodes --nodes 2

Owns: the placement group (one whole node per server), the ranks, and the address of the first node.
The servers are SGLang's own processes, started by `sglang-longcat serve`. SGLang's `--use-ray` does
not work here: in 0.5.23 its scheduler actors load no plugins, so SGLang's own model class would
answer.
"""

from __future__ import annotations

import argparse
import subprocess
import sys

import ray
from ray.util.placement_group import placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

PORT = 5000  # where SGLang's ranks meet (--dist-init-addr)


@ray.remote
def address() -> str:
    return str(ray.util.get_node_ip_address())


@ray.remote
def serve(recipe: str, rank: int, leader: str, flags: list[str]) -> int:
    """Runs the server until it ends, and returns its exit status."""
    ranks = ["--node-rank", str(rank), "--dist-init-addr", f"{leader}:{PORT}"]
    command = [sys.executable, "-m", "sglang_longcat", "serve", recipe, *ranks, *flags]
    return subprocess.run(command, check=False).returncode


def main() -> None:
    parser = argparse.ArgumentParser(description="further flags go to SGLang")
    parser.add_argument("recipe")
    parser.add_argument("--nodes", type=int, default=2)
    parser.add_argument("--gpus", type=int, default=8, help="of each node")
    args, flags = parser.parse_known_args()
    ray.init()
    nodes = [{"GPU": args.gpus, "CPU": 8}] * args.nodes
    group = placement_group(nodes, strategy="STRICT_SPREAD")
    ray.get(group.ready())
    places = [PlacementGroupSchedulingStrategy(group, rank) for rank in range(args.nodes)]
    leader = ray.get(address.options(scheduling_strategy=places[0]).remote())
    print(f"rank 0 serves on http://{leader}:30000", flush=True)
    running = [
        serve.options(scheduling_strategy=place, num_gpus=args.gpus, num_cpus=8).remote(
            args.recipe, rank, leader, ["--host", "0.0.0.0", *flags]
        )
        for rank, place in enumerate(places)
    ]
    ended, _ = ray.wait(running)  # the first rank that ends: the others cannot continue without it
    raise SystemExit(ray.get(ended[0]))


if __name__ == "__main__":
    main()
