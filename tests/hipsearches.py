"""What HiP's searches find by the definition, for the kernels of `workingpapers.methods.attention`."""

from workingpapers.methods.attention.naive_hip import naive_hip_search


def by_definition(hip, q, k):
    """Return the key blocks of each query block that searches, one after the other; of equal scores the first."""
    past, n = k.shape[2] - q.shape[2], hip.top_k // hip.block_k
    found = naive_hip_search(hip, q.double().cpu(), k.double().cpu()).items()
    return [sorted(leaves) for (_, _, begin), leaves in found if hip._candidates(past + begin) > n]
