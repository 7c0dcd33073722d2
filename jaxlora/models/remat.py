"""What of the forward pass is kept for the backward pass, by name."""

import jax

# What the backward pass of attention reads: its inputs, and its output with the log-sums, which the kernels name.
_OF_ATTENTION = ("q", "k", "v", "attention")

# From the least memory to the least work. What no policy keeps on the device is computed again in the backward pass;
# "offload" fetches it from the host's memory.
REMAT = {
    "full": jax.checkpoint_policies.nothing_saveable,
    "offload": jax.checkpoint_policies.save_and_offload_only_these_names(
        names_which_can_be_saved=[],
        names_which_can_be_offloaded=["block", *_OF_ATTENTION],
        offload_src="device",
        offload_dst="pinned_host",
    ),
    "save_qkv": jax.checkpoint_policies.save_only_these_names(*_OF_ATTENTION),
    "save_dots": jax.checkpoint_policies.save_from_both_policies(
        jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
        jax.checkpoint_policies.save_only_these_names(*_OF_ATTENTION),
    ),
    "none": None,
}
