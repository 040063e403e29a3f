"""A KV connector that takes every prompt as cached, so that a request decodes from its first step.

vLLM's own DecodeBenchConnector fills the blocks of a request as it comes; that of 0.26 fills those of the first KV
cache group alone, and an FP8 cache with zeros. Here the whole cache is filled once, after the start (`weights.py`).
"""

from typing import ClassVar

from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorBase_V1, KVConnectorMetadata, SupportsHMA


class AssumedCache(KVConnectorBase_V1, SupportsHMA):
    """Nothing is transferred. assumed: whether prompts count as cached, but for their last token."""

    assumed: ClassVar[bool] = True

    def get_num_new_matched_tokens(self, request, num_computed_tokens):
        """Tokens of the request that are cached elsewhere, and whether they are loaded asynchronously."""
        return (max(0, request.num_tokens - 1 - num_computed_tokens) if AssumedCache.assumed else 0), False

    def build_connector_meta(self, scheduler_output):
        return KVConnectorMetadata()

    def update_state_after_alloc(self, request, blocks, num_external_tokens):
        pass

    def request_finished_all_groups(self, request, block_ids):
        """Whether the blocks are freed later, and the parameters of a transfer."""
        return False, None

    def start_load_kv(self, forward_context, **kwargs):
        pass

    def wait_for_layer_load(self, layer_name):
        pass

    def save_kv_layer(self, layer_name, kv_layer, attn_metadata, **kwargs):
        pass

    def wait_for_save(self):
        pass


KV_TRANSFER = {
    "kv_connector": AssumedCache.__name__,
    "kv_connector_module_path": __name__,
    "kv_role": "kv_both",
}
