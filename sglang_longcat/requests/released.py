"""Which requests need memory that a client has released.

Owns: this table and its error. SGLang takes such a request, and the first kernel that touches the
released memory ends the scheduler, for all clients. Requests that arrive while generation is paused
only wait, as a trainer wants it between a release and a resume.
"""

from __future__ import annotations

from collections.abc import Collection

from sglang_longcat.requests.check import BadRequest

WEIGHTS = frozenset({"weights"})  # SGLang's tag of them
# By class of SGLang's request. Others need none.
_READ_WEIGHTS = (
    "BeginWeightUpdateReqInput",
    "EndWeightUpdateReqInput",
    "UpdateWeightFromDiskReqInput",
    "UpdateWeightsFromDistributedReqInput",
    "UpdateWeightsFromIPCReqInput",
    "UpdateWeightsFromTensorReqInput",
    "GetWeightsByNameReqInput",
    "CheckWeightsReqInput",
)
_COMPUTE = ("Tokenized", "BatchTokenized")  # how the names of generation requests begin
_CONTINUE = "ContinueGenerationReqInput"


def require_resumed(name: str, released: Collection[str], *, paused: bool) -> None:
    """BadRequest if a request of class `name` needs one of the tags in `released`."""
    needed = set(released)
    if name in _READ_WEIGHTS:
        needed &= WEIGHTS
    elif name != _CONTINUE and (paused or not name.startswith(_COMPUTE)):
        return
    if needed:
        raise BadRequest(
            f"{sorted(needed)} are released, so the server cannot do this. First resume them with "
            "POST /resume_memory_occupation."
        )
