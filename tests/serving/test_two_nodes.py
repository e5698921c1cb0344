"""Two servers with `--nnodes 2`, each with an address of its own on this machine, serve as one.

The nodes are processes with their own loopback address. They see each other in /proc, so their
ranks count as ranks of one machine for host tables; `tests/unit/ngram/test_sharing.py` has machines
that do not.
"""

import json
import threading
from contextlib import ExitStack

import pytest

from launch.gpus import gpu_of
from tests import harness
from tests.model.scoring import Oracle, answer, text
from tests.model.test_modes_gpu import GPU, assert_right_tokens
from tests.serving.http import post

PROMPT = "The water of the river"
NEW = 8
TIMEOUT = 300


def node(path, rank, port, env=None, timeout=TIMEOUT, **flags):
    """A context manager: node `rank` of two, whose ranks meet at an address of node 0."""
    return harness.server(
        path,
        env={"SGLANG_HOST_IP": f"127.0.0.{1 + rank}", "GLOO_SOCKET_IFNAME": "lo", **(env or {})},
        timeout=timeout,
        tp_size=2,
        nnodes=2,
        node_rank=rank,
        dist_init_addr=f"127.0.0.1:{port}",
        **flags,
    )


def enter_all(stack, contexts):
    """Enter them at the same time: each start waits for the other. Raises the first error. The last
    node begins: each looks whether node 0's ports are free, and here they are its machine's too."""
    entered, errors = {}, []

    def enter(rank, context):
        try:
            entered[rank] = stack.enter_context(context)
        except harness.HarnessError as error:
            errors.append(error)

    threads = [threading.Thread(target=enter, args=pair) for pair in enumerate(contexts)]
    for thread in reversed(threads):
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return [entered[rank] for rank in range(len(contexts))]


def ask(node):
    """(status, text) of a greedy answer."""
    sampling = {"temperature": 0, "max_new_tokens": NEW}
    return post(node, "/generate", {"text": PROMPT, "sampling_params": sampling})


def greedy_tokens(node):
    status, text = ask(node)
    assert status == 200, text
    return json.loads(text)["output_ids"]


@pytest.mark.parametrize("replicas", [1, 2])
def test_two_nodes_answer_as_one(checkpoint, tokenizer, greedy, replicas):
    """Also with a replica of attention on each. Red if a node serves another class, or takes the
    share of the other's rank."""
    wanted, port = greedy(tokenizer.encode(PROMPT), NEW), harness.free_port()
    with ExitStack() as stack:
        starts = [node(checkpoint, rank, port, attn_dp_size=replicas) for rank in (0, 1)]
        nodes = enter_all(stack, starts)
        # The two replicas take turns.
        assert [greedy_tokens(nodes[0]) for _ in range(2)] == [wanted] * 2
        for rank, each in enumerate(nodes):
            assert f"This is node {rank} of 2: it waits up to 1800 s" in each.log
            assert f"TP{1 - rank}]" not in each.log


@pytest.mark.multi_gpu(2)
@pytest.mark.parametrize("ep_size", [1, 2])
def test_two_nodes_of_one_gpu_each(checkpoint, ep_size):
    """Through NCCL, each node with a GPU of its own. Red if a rank chooses its GPU by its number
    among all ranks, or if a node has the other one's share of weights or tables."""
    port = harness.free_port()
    prompts = [text(length, seed=length) for length in (1, 2, 3, 17, 40)]
    with ExitStack() as stack:
        starts = [
            node(
                checkpoint,
                rank,
                port,
                env={"CUDA_VISIBLE_DEVICES": gpu_of(rank), "NCCL_SOCKET_IFNAME": "lo"},
                ep_size=ep_size,
                **GPU.flags,
            )
            for rank in (0, 1)
        ]
        first, _ = enter_all(stack, starts)
        sampling = {"temperature": 0, "max_new_tokens": NEW, "ignore_eos": True}
        asked = {"input_ids": prompts, "sampling_params": sampling, "return_logprob": True}
        status, body = post(first, "/generate", asked)
    assert status == 200, body
    assert_right_tokens(map(answer, prompts, json.loads(body)), Oracle(checkpoint), GPU.tie)


@pytest.mark.parametrize("replicas", [1, 2])
@pytest.mark.parametrize("rank", [0, 1])
def test_a_node_that_is_alone_says_so(checkpoint, rank, replicas):
    """The first waits for others to come to it, the second for an address that nobody holds. With
    replicas of attention the nodes meet once before."""
    port, flags = harness.free_port(), {"attn_dp_size": replicas, "dist_timeout": 3}
    with pytest.raises(harness.HarnessError) as error, node(checkpoint, rank, port, **flags):
        pass
    text = str(error.value)
    assert f"not all nodes met at 127.0.0.1:{port} within 3 s. This is node {rank} of 2" in text
    assert "Start the same command on every node, with --node-rank 0 to 1" in text


def test_a_server_ends_when_a_node_dies(checkpoint):
    """It does not answer with one rank's share, and does not wait for ever."""
    port = harness.free_port()
    with ExitStack() as stack:
        nodes = enter_all(stack, [node(checkpoint, rank, port) for rank in (0, 1)])
        nodes[1].close()
        status, text = ask(nodes[0])
        assert status == 0
        # Which of the two depends on whether the request was read before the server ended.
        assert "closed connection" in text or "Connection reset by peer" in text
        assert "Connection reset by peer" in nodes[0].log or "closed" in nodes[0].log
