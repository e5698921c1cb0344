"""Every attribute of SGLang that this package uses, with the parameters that it passes.

Owns: this table. `contract.py` compares it with the SGLang that is installed. A test checks that
every name that we import from SGLang, and the target of every hook, is in it.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Needs:
    """An SGLang attribute, and the parameters that we pass to it (none: it only has to exist)."""

    target: str  # "module:attribute.path" in sglang.srt; "kernels.*" modules are in sglang itself
    parameters: tuple[str, ...] = ()


# What `hooks/verify_sampling.py` reads of a batch and removes from it.
_SAMPLING = (
    "acc_additive_penalties",
    "acc_scaling_penalties",
    "logit_bias",
    "min_ps",
    "need_min_p_sampling",
    "need_top_k_sampling",
    "need_top_p_sampling",
    "temperatures",
    "top_ks",
    "top_ps",
)
_COMPRESSED = "layers.quantization.compressed_tensors"
_PENALTIES = ("frequency_penalty", "presence_penalty", "repetition_penalty", "min_new_tokens")

ATTRIBUTES: tuple[Needs, ...] = (
    # registration
    Needs("models.registry:ModelRegistry.models"),
    Needs("models.registry:import_model_classes", ("package_name", "strict")),
    Needs("environ:envs.SGLANG_EXTERNAL_MODEL_PACKAGE"),
    Needs("plugins.hook_registry:HookRegistry.register", ("target", "hook", "hook_type")),
    Needs("plugins.hook_registry:HookRegistry.apply_hooks"),
    Needs("plugins.hook_registry:HookType.AFTER"),
    Needs("plugins.hook_registry:HookType.AROUND"),
    Needs("plugins.hook_registry:HookType.REPLACE"),
    Needs("plugins.hook_registry:HookRegistry._hooks"),
    Needs("plugins.hook_registry:HookRegistry._patched"),
    Needs("plugins.hook_registry:HookRegistry._apply_target", ("target", "hooks")),
    Needs("plugins.hook_registry:_propagate_patch", ("original", "wrapped", "source_module")),
    Needs("utils.hf_transformers.common:_CONFIG_REGISTRY"),
    Needs("configs:LongcatFlashConfig", ("num_hidden_layers", "eos_token_id", "oe_split_num")),
    Needs("arg_groups.resolution_hooks:register_resolution_hook", ("name",)),
    Needs("arg_groups.memory_hook:handle_gpu_memory_settings", ("server_args",)),
    Needs("arg_groups.overrides:resolving_view", ("server_args",)),
    Needs("arg_groups.overrides:model_config_of", ("server_args",)),
    Needs("arg_groups.overrides:declare_resolution", ("server_args", "source")),
    Needs("utils:get_device_memory_capacity", ("device",)),
    Needs("environ:envs.SGLANG_MAX_KV_CHUNK_CAPACITY"),
    Needs("server_args:ServerArgs.flashinfer_allreduce_fusion_backend"),
    Needs("server_args:ServerArgs.attn_dp_size"),
    # serve/flags.py
    Needs("server_args:ServerArgs.add_cli_args", ("parser",)),
    # hooks
    Needs("model_executor.forward_batch_info:ForwardBatch.init_new", ("batch", "model_runner")),
    Needs("distributed.bootstrap:_init_parallel_groups", ("backend", "dist_init_method")),
    Needs("managers.data_parallel_controller:DataParallelController._broadcast_worker_ports"),
    Needs(
        "model_executor.model_runner_components.ngram_embedding_manager"
        ":NgramEmbeddingManager.from_model",
        ("model", "model_config", "req_to_token_pool", "device"),
    ),
    Needs("managers.utils:validate_input_length", ("req",)),
    Needs(
        "constrained.xgrammar_backend:XGrammarGrammarBackend._from_context",
        ("ctx", "key_string", "grammar_stats"),
    ),
    Needs("constrained.xgrammar_backend:validate_xgrammar_json_schema", ("schema",)),
    Needs("constrained.xgrammar_backend:XGrammarGrammar.allocate_vocab_mask"),
    Needs("constrained.xgrammar_backend:XGrammarGrammar.fill_vocab_mask", ("vocab_mask", "idx")),
    Needs("constrained.base_grammar_backend:InvalidGrammarObject"),
    Needs("constrained.json_schema_validation:UnsupportedJSONSchemaFeature"),
    Needs(
        "function_call.function_call_parser:FunctionCallParser.get_structure_constraint",
        ("tool_choice",),
    ),
    Needs("plugins.hook_registry:HookRegistry.apply_hooks"),
    Needs("managers.io_struct:GenerateReqInput.normalize_batch_and_arguments", ("self",)),
    Needs("entrypoints.http_server:set_global_state"),
    Needs("entrypoints.http_server:app.add_exception_handler"),
    Needs("managers.io_struct:EmbeddingReqInput.normalize_batch_and_arguments", ("self",)),
    Needs(
        "entrypoints.openai.serving_tokenize:OpenAIServingDetokenize._convert_to_internal_request",
        ("request",),
    ),
    Needs("sampling.custom_logit_processor:CustomLogitProcessor.from_str", ("json_str",)),
    Needs("managers.communicator:FanOutCommunicator.__call__", ("obj",)),
    Needs("managers.scheduler:Scheduler.init_request_dispatcher", ("self",)),
    Needs(
        "managers.scheduler_components.weight_updater"
        ":SchedulerWeightUpdaterManager.release_memory_occupation",
        ("recv_req",),
    ),
    Needs(
        "managers.scheduler_components.weight_updater"
        ":SchedulerWeightUpdaterManager.resume_memory_occupation",
        ("recv_req",),
    ),
    Needs("disaggregation.decode:SchedulerDisaggregationDecodeMixin.get_new_prebuilt_batch"),
    Needs("beam_search.coordinator:BeamCoordinator.validate_and_init", ("self", "req", "recv_req")),
    Needs(
        "model_executor.model_runner_components.weight_updater"
        ":WeightUpdater.update_weights_from_disk",
        ("model_path",),
    ),
    Needs(
        "layers.moe.moe_runner.triton_utils.fused_moe_triton_config:get_moe_configs",
        ("E", "N", "dtype", "block_n", "block_k", "per_channel_quant", "down_moe"),
    ),
    Needs("managers.schedule_batch:Req._check_token_based_finish", ("new_accepted_tokens",)),
    Needs("managers.schedule_batch:Req.update_finish_state", ("new_accepted_len",)),
    Needs("managers.schedule_batch:Req.output_ids_through_stop"),
    Needs("managers.schedule_batch:FINISH_MATCHED_TOKEN", ("matched",)),
    Needs("constrained.reasoner_grammar_backend:ReasonerGrammarObject._is_thinking"),
    Needs(
        "managers.scheduler_components.output_streamer:_GenerationStreamAccumulator.accept",
        ("req",),
    ),
    Needs(
        "entrypoints.openai.protocol:ResponsesRequest.to_sampling_params", ("default_max_tokens",)
    ),
    Needs("entrypoints.openai.serving_chat:OpenAIServingChat._generate_chat_stream"),
    Needs("entrypoints.anthropic.serving:AnthropicServing._convert_response", ("response",)),
    Needs(
        "entrypoints.anthropic.serving:AnthropicServing._handle_non_streaming",
        ("chat_request", "anthropic_request", "raw_request"),
    ),
    Needs(
        "entrypoints.anthropic.serving:AnthropicServing._generate_anthropic_stream",
        ("adapted_request", "processed_request", "anthropic_request", "raw_request"),
    ),
    # what the hooks read
    Needs(
        "managers.scheduler_components.weight_updater:SchedulerWeightUpdaterManager",
        ("is_fully_idle", "scheduler", "offload_tags", "memory_saver_adapter"),
    ),
    Needs("managers.scheduler:Scheduler.send_abort_output", ("abort_req", "req")),
    Needs("managers.io_struct:AbortReq", ("rid", "finished_reason")),
    Needs("constants:GPU_MEMORY_ALL_TYPES"),
    Needs("managers.schedule_batch:FINISH_ABORT", ("message", "status_code", "err_type")),
    Needs(
        "layers.moe.moe_runner.triton_utils.fused_moe_triton_config:get_config_file_name",
        ("E", "N", "dtype", "block_shape", "per_channel_quant", "down_moe"),
    ),
    Needs("runtime_context:get_exec"),
    Needs(
        "managers.schedule_batch:Req",
        ("origin_input_ids", "input_embeds", "positional_embed_overrides", "eos_token_ids"),
    ),
    Needs("runtime_context:process_model_config"),
    Needs("server_args:ServerArgs.speculative_num_draft_tokens"),
    Needs("server_args:ServerArgs.speculative_algorithm"),
    Needs("server_args:ServerArgs.max_running_requests"),
    Needs("configs.model_config:ModelConfig", ("dtype",)),
    Needs("model_executor.forward_batch_info:ForwardMode.is_extend_without_speculative"),
    Needs("model_executor.forward_batch_info:ForwardMode.is_target_verify"),
    Needs("model_executor.model_runner:ModelRunner._forward_raw", ("forward_batch",)),
    # speculative decoding
    Needs(
        "speculative.eagle_utils:eagle_sample",
        ("verify_input", "batch", "logits_output", "grammar_mask"),
    ),
    Needs("sampling.sampling_batch_info:SamplingBatchInfo", _SAMPLING),
    Needs("sampling.sampling_params:SamplingParams", _PENALTIES),
    Needs("speculative.eagle_info:EagleVerifyInput", ("draft_token", "draft_token_num")),
    Needs("runtime_context:get_spec"),
    Needs("speculative.ngram_worker:NGRAMWorker._prepare_draft_tokens", ("batch",)),
    Needs("models.longcat_flash_nextn:LongcatFlashForCausalLMNextN.load_weights", ("weights",)),
    Needs("models.longcat_flash_nextn:LongcatFlashForCausalLMNextN.post_load_weights"),
    Needs("models.longcat_flash_nextn:LongcatFlashModelNextN.forward", ("forward_batch",)),
    Needs("models.longcat_flash_nextn:LongcatFlashDenseDecoderLayer.forward", ("zero_allocator",)),
    Needs("layers.linear:ReplicatedLinear", ("quant_config", "prefix")),
    Needs("arg_groups.overrides:resolved_view", ("server_args",)),
    # model
    Needs("models.longcat_flash:LongcatFlashForCausalLM.load_weights", ("weights",)),
    Needs("models.longcat_flash:LongcatFlashForCausalLM.post_load_weights", ("weight_names",)),
    Needs("models.longcat_flash:LongcatFlashModel"),
    Needs("utils:BumpAllocator", ("buffer_size", "dtype", "device")),
    Needs("utils:BumpAllocator.allocate", ("size",)),
    Needs("eplb.expert_distribution:get_global_expert_distribution_recorder"),
    Needs("models.longcat_flash:LongcatFlashMLP", ("hidden_size", "intermediate_size")),
    Needs("models.longcat_flash:LongcatFlashMLP.forward", ("x",)),
    Needs("layers.linear:LinearBase", ("input_size", "output_size", "quant_config")),
    Needs(
        "layers.quantization.unquant:UnquantizedLinearMethod.apply",
        ("layer", "x", "bias"),
    ),
    Needs("layers.quantization.unquant:UnquantizedFusedMoEMethod"),
    Needs("layers.quantization.unquant:get_bf16_gemm_backend"),
    Needs("layers.quantization.unquant:Bf16GemmBackend.is_auto"),
    Needs("models.longcat_flash:LongcatFlashMoE", ("config", "layer_id", "quant_config")),
    Needs("models.longcat_flash:LongcatFlashRouter.forward", ("hidden_states",)),
    Needs(
        "models.deepseek_v2:DeepseekV2AttentionMLA",
        ("config", "num_heads", "rope_theta", "rope_scaling", "layer_id", "reduce_results"),
    ),
    Needs("models.deepseek_v2:DeepseekV2AttentionMLA.prepare_qkv_latent"),
    Needs(
        "models.deepseek_v2:DeepseekV2AttentionMLA.forward_absorb_prepare",
        ("positions", "hidden_states", "forward_batch", "zero_allocator"),
    ),
    Needs("models.deepseek_v2:DeepseekV2AttentionMLA.forward_absorb_core"),
    Needs("models.deepseek_v2:DeepseekV2AttentionMLA.q_b_proj_forward", ("q_lora",)),
    Needs("models.deepseek_v2:DeepseekV2AttentionMLA.dispatch_attn_forward_method"),
    Needs(
        "layers.radix_attention:RadixAttention.forward",
        ("q", "k", "v", "forward_batch", "save_kv_cache"),
    ),
    Needs("layers.layer_boundary.adapters.attention:AttnTpContext.fetch_qkv_latent"),
    Needs("layers.rotary_embedding.base:RotaryEmbedding", ("is_neox_style",)),
    Needs("mem_cache.memory_pool:MLATokenToKVPool", ("dtype", "kv_lora_rank", "qk_rope_head_dim")),
    Needs("mem_cache.memory_pool:MLATokenToKVPool.get_key_buffer", ("layer_id",)),
    Needs("model_executor.forward_context:get_token_to_kv_pool"),
    Needs("model_executor.forward_context:get_req_to_token_pool"),
    Needs("mem_cache.memory_pool:ReqToTokenPool"),
    Needs("model_executor.runner_utils.capture_mode:get_is_capture_mode"),
    Needs("layers.layer_boundary.construction:StagePlan.branch_rows", ("forward_batch",)),
    Needs("model_executor.forward_batch_info:ForwardMode.is_decode"),
    Needs("layers.layer_boundary:append_stages"),
    Needs("layers.layer_boundary:declare_attn"),
    Needs("layers.layer_boundary:declare_ffn", ("sparse", "next_layer_sparse")),
    Needs("layers.layer_boundary:layer_stack"),
    Needs("layers.layer_boundary:get_attn_tp_context"),
    Needs("layers.layer_boundary.stage:StageBoundary.branch_output"),
    Needs("layers.layer_boundary.stage:StageBoundary.branch_input"),
    Needs("layers.layer_boundary.stage:StageBoundary.merge_branch"),
    Needs("layers.layer_boundary.construction:StagePlan.path_for", ("forward_batch",)),
    Needs("layers.layer_boundary.residual.add_norm:flashinfer_ar_fusion_applies", ("batch_size",)),
    Needs("layers.layer_boundary.residual.add_norm:NormReadout.update_and_read"),
    Needs("layers.layer_boundary.residual:PendingUpdateRead.accepts_pending_update", ("update",)),
    Needs("layers.layer_boundary.residual.batch:start", ("forward_batch",)),
    Needs(
        "layers.layer_boundary.residual.batch:read_output",
        ("hidden_states", "forward_batch", "read", "norm"),
    ),
    Needs(
        "layers.layer_boundary.residual.stream:ResidualStream.from_handoff",
        ("hidden", "residual", "update"),
    ),
    Needs(
        "layers.layer_boundary:ReadoutFusion",
        ("completes", "run", "reads", "carried"),
    ),
    Needs("layers.layer_boundary:UnreducedOutput", ("partial", "group")),
    Needs("layers.layer_boundary:PLAIN_ADD"),
    Needs("layers.layer_boundary:SumGroup.MOE_OUTPUT"),
    Needs("layers.moe.utils:post_experts_reduction_group"),
    Needs("layers.layer_boundary.layout:SumGroup.ATTN_TP"),
    Needs("layers.layer_boundary.layout:SumGroup.TP"),
    Needs("layers.layer_boundary.layout:SumGroup.MOE_OUTPUT"),
    Needs("layers.vocab_parallel_embedding:VocabParallelEmbedding", ("use_attn_tp_group",)),
    Needs("layers.vocab_parallel_embedding:VocabParallelEmbedding._embed_local_shard", ("input_",)),
    Needs("layers.vocab_parallel_embedding:ParallelLMHead", ("use_attn_tp_group",)),
    Needs("layers.logits_processor:LogitsProcessor", ("config", "skip_all_gather")),
    Needs(
        "layers.logits_processor:LogitsProcessor._compute_lm_head",
        ("hidden_states", "lm_head", "embedding_bias", "out"),
    ),
    Needs("speculative.spec_utils:load_token_map", ("token_map_path",)),
    Needs("layers.layernorm:RMSNorm", ("eps",)),
    Needs(
        "layers.layernorm:RMSNorm.forward_with_allreduce_fusion",
        ("x", "residual", "post_residual_addition", "use_attn_tp_group"),
    ),
    # the KV cache in FP8 rows
    Needs("mem_cache.kv_cache_dtype:configure_kv_cache_dtype", ("model_dtype",)),
    Needs(
        "mem_cache.kv_cache_configurator:KVCacheConfigurator._resolve_kv_pool_class",
        ("kind", "default"),
    ),
    Needs(
        "mem_cache.kv_cache_configurator:calculate_mla_kv_cache_dim",
        ("model_config", "kv_cache_dtype"),
    ),
    Needs("mem_cache.memory_pool:MLATokenToKVPool._create_buffers"),
    Needs(
        "mem_cache.memory_pool:MLATokenToKVPool._write_mla_kv_buffer",
        ("dst_buffer", "loc", "cache_k_nope", "cache_k_rope"),
    ),
    Needs(
        "mem_cache.memory_pool:MLATokenToKVPool.set_kv_buffer",
        ("layer", "loc_info", "cache_k", "cache_v", "layer_id_override"),
    ),
    Needs(
        "mem_cache.memory_pool:MLATokenToKVPool.set_mla_kv_buffer",
        ("layer", "loc_info", "cache_k_nope", "cache_k_rope", "layer_id_override"),
    ),
    Needs(
        "mem_cache.memory_pool:MLATokenToKVPool.get_mla_kv_buffer", ("layer", "loc", "dst_dtype")
    ),
    Needs("mem_cache.memory_pool:KVWriteLoc.for_layer", ("forward_batch", "layer")),
    Needs(
        "layers.attention.flashattention_backend:FlashAttentionBackend",
        ("model_runner", "skip_prefill", "speculative_step_id", "topk", "speculative_num_steps"),
    ),
    Needs(
        "layers.attention.flashattention_backend:FlashAttentionBackend.forward_decode",
        ("q", "k", "v", "layer", "forward_batch", "save_kv_cache", "q_rope", "k_rope"),
    ),
    Needs(
        "layers.attention.flashattention_backend:FlashAttentionBackend.forward_extend",
        ("q", "k", "v", "layer", "forward_batch", "save_kv_cache", "q_rope", "k_rope"),
    ),
    Needs(
        "layers.attention.flashattention_backend:FlashAttentionMultiStepBackend",
        ("model_runner", "topk", "speculative_num_steps"),
    ),
    Needs(
        "models.deepseek_common.attention_backend_handler:_support_mha_one_shot",
        ("attn", "forward_batch", "backend_name"),
    ),
    Needs("models.deepseek_common.attention_forward_methods:AttnForwardMethod.MHA_ONE_SHOT"),
    Needs("models.deepseek_common.attention_forward_methods:AttnForwardMethod.MHA_CHUNKED_KV"),
    Needs("runtime_context:get_model"),
    Needs("utils.common:get_device_capability"),
    # refused flags
    Needs("layers.deep_gemm_wrapper:ENABLE_JIT_DEEPGEMM"),
    # DeepGEMM's kernels, compiled ahead
    Needs("layers.deep_gemm_wrapper:get_contiguous_layout_alignment", ("expected_m", "num_groups")),
    Needs(
        "layers.moe.moe_runner.deep_gemm:_get_compact_all_tokens",
        ("num_assignments", "num_experts", "block_e"),
    ),
    Needs("environ:envs.SGLANG_JIT_DEEPGEMM_PRECOMPILE"),
    Needs("environ:envs.SGLANG_DG_CACHE_DIR"),
    Needs("environ:envs.SGLANG_DG_USE_NVRTC"),
    Needs("environ:envs.SGLANG_IN_DEEPGEMM_PRECOMPILE_STAGE"),
    Needs("layers.quantization.fp8:Fp8MoEMethod", ("quant_config",)),
    # CUDA modules, built ahead
    Needs("kernels.ops.activation.activation:activation_module", ("dtype",)),
    Needs("kernels.jit.utils:is_arch_support_pdl"),
    Needs("kernels.ops.attention.clamp_position:_jit_clamp_position_module", ("dtype",)),
    Needs("kernels.ops.speculative.tree:_jit_tree_module"),
    Needs(
        "kernels.ops.attention.rope:_jit_fused_rope_module",
        ("is_neox", "rope_dim", "dtype", "q_dtype"),
    ),
    Needs(
        "kernels.ops.kvcache.set_mla_kv_buffer:set_mla_kv_buffer_module",
        ("nope_bytes", "rope_bytes", "use_pdl"),
    ),
    Needs("kernels.ops.gemm.gptq_marlin:_jit_gptq_marlin_module", ("dtype",)),
    Needs(
        "kernels.ops.moe.moe_wna16_marlin:_jit_moe_wna16_marlin_module",
        (
            "dtype",
            "is_ep",
            "has_bias",
            "expert_ids_are_sorted",
            "zero_inactive_output",
            "has_inactive_prefix_count",
        ),
    ),
    Needs(
        "kernels.ops.quantization.per_token_group_quant:_jit_module",
        (
            "in_dtype",
            "out_dtype",
            "group_size",
            "scale_ue8m0",
            "row_major",
            "aligned",
            "fuse_silu_and_mul",
            "masked_layout",
            "use_pdl",
            "sorted_layout",
            "silu_and_mul_mode",
        ),
    ),
    # block FP8 on a GPU
    Needs("layers.layernorm:RMSNorm.forward"),
    Needs("layers.layernorm:RMSNorm.forward_cuda", ("x", "residual", "post_residual_addition")),
    Needs("layers.quantization.fp8:Fp8LinearMethod", ("quant_config",)),
    Needs(
        "layers.quantization.fp8_utils:deepgemm_w8a8_block_fp8_linear_with_fallback",
        ("input", "weight", "block_size", "weight_scale", "input_scale"),
    ),
    Needs("layers.moe.fused_moe_triton.layer:FusedMoE.forward", ("pre_quant_input",)),
    Needs("runtime_context:get_platform"),
    Needs(
        "kernels.ops.quantization.per_token_group_quant:per_token_group_quant",
        (
            "input",
            "group_size",
            "column_major_scales",
            "fuse_silu_and_mul",
            "silu_and_mul_mode",
        ),
    ),
    Needs(
        "layers.moe.token_dispatcher.standard:_map_topk_ids_to_local_experts",
        ("topk_ids", "local_expert_mapping"),
    ),
    Needs("layers.dp_attention:attn_tp_all_reduce"),
    Needs("layers.dp_attention:is_dp_attention_enabled"),
    Needs("layers.moe.topk:StandardTopKOutput", ("topk_weights", "topk_ids", "router_logits")),
    Needs(
        "layers.moe.moe_runner.base:MoeRunnerConfig",
        ("num_experts", "inplace", "no_combine", "no_combine_keep_router_weight"),
    ),
    Needs("layers.moe.utils:MoeRunnerBackend.is_triton"),
    Needs("layers.moe.moe_runner.triton:_topk_ids_may_be_nonlocal", ("config",)),
    Needs("runtime_context:get_parallel"),
    Needs("runtime_context:get_server_args"),
    Needs("runtime_context:get_schedule"),
    Needs("runtime_context:get_stream"),
    Needs("runtime_context:set_stream", ("name", "stream")),
    Needs("distributed:tensor_model_parallel_all_reduce"),
    Needs("distributed:get_tp_group"),
    Needs("distributed.parallel_state:GroupCoordinator.all_gather_object", ("obj",)),
    Needs("model_executor.runner_backend_utils.breakable_cuda_graph:eager_on_graph"),
    Needs("model_executor.runner_backend_utils.breakable_cuda_graph:is_in_breakable_cuda_graph"),
    Needs("model_executor.runner_utils.forward_batch:get_forward_batch"),
    Needs("utils:add_prefix", ("name", "prefix")),
    Needs("utils:is_cpu"),
    Needs("utils:cpu_has_amx_support"),
    # CPU
    Needs("layers.attention.attention_registry:ATTENTION_BACKENDS"),
    Needs("layers.attention.base_attn_backend:AttentionBackend.forward"),
    Needs("layers.moe.fused_moe_native:moe_forward_native", ("layer", "x", "topk_output")),
    Needs("layers.rotary_embedding.factory:get_rope", ("rope_scaling", "partial_rotary_factor")),
    Needs("layers.rotary_embedding.factory:get_rope_cpu", ("rope_scaling", "device")),
    Needs(
        "distributed.parallel_state:GroupCoordinator.reduce_scatterv", ("input_", "output", "sizes")
    ),
    Needs(
        "distributed.parallel_state:GroupCoordinator._deterministic_reduce_scatterv",
        ("input_", "output", "sizes"),
    ),
    Needs("layers.linear:WEIGHT_LOADER_V2_SUPPORTED"),
    Needs("layers.moe.token_dispatcher:StandardCombineInput", ("hidden_states",)),
    Needs("layers.quantization:QUANTIZATION_METHODS"),
    Needs("layers.quantization.fp8:Fp8Config.get_quant_method", ("layer", "prefix")),
    Needs("layers.quantization.fp8:Fp8Config.get_supported_act_dtypes"),
    Needs("layers.quantization.fp8:Fp8LinearMethod.process_weights_after_loading", ("layer",)),
    Needs("layers.quantization.fp8:Fp8LinearMethod.apply", ("layer", "x", "bias")),
    Needs("layers.quantization.fp8:Fp8MoEMethod.process_weights_after_loading", ("layer",)),
    Needs("layers.quantization.fp8:Fp8MoEMethod.apply", ("layer", "dispatch_output")),
    Needs("layers.quantization.fp8_utils:block_quant_to_tensor_quant", ("block_size",)),
    # 4 bits
    Needs(
        f"{_COMPRESSED}.compressed_tensors:CompressedTensorsConfig.__init__",
        (
            *("target_scheme_map", "ignore", "quant_format"),
            *("sparsity_scheme_map", "sparsity_ignore_list"),
        ),
    ),
    Needs(
        f"{_COMPRESSED}.compressed_tensors:CompressedTensorsConfig.get_quant_method",
        ("layer", "prefix"),
    ),
    *(
        Needs(f"{_COMPRESSED}.compressed_tensors:{method}.{name}", parameters)
        for method, names in {
            "CompressedTensorsLinearMethod": {
                "process_weights_after_loading": ("layer",),
                "apply": ("layer", "x", "bias"),
            },
            "CompressedTensorsFusedMoEMethod": {
                "process_weights_after_loading": ("layer",),
                "create_moe_runner": ("layer", "moe_runner_config"),
                "get_moe_runner_backend": ("layer",),
                "apply": ("layer", "dispatch_output"),
            },
        }.items()
        for name, parameters in names.items()
    ),
    Needs(
        f"{_COMPRESSED}.schemes:CompressedTensorsWNA16",
        ("strategy", "num_bits", "group_size", "symmetric"),
    ),
    Needs(f"{_COMPRESSED}.schemes:CompressedTensorsWNA16MoE", ("quant_config", "weight_quant")),
    Needs("layers.quantization.unquant:UnquantizedLinearMethod"),
    Needs("mem_cache.memory_pool:KVWriteLoc"),
    Needs(
        "models.deepseek_common.attention_backend_handler:AttentionBackendRegistry.register",
        ("backend_name", "handler_func"),
    ),
    Needs("models.deepseek_common.attention_forward_methods:AttnForwardMethod.MLA"),
    Needs("model_executor.forward_batch_info:ForwardMode.is_draft_extend_v2"),
    Needs(
        "speculative.draft_utils:DraftBackendFactory._create_backend",
        ("backend_name", "backend_map", "error_template", "stamps_children"),
    ),
    Needs(
        "speculative.eagle_utils:_verify_uses_greedy",
        ("is_all_greedy", "is_cpu", "is_hip", "is_xpu", "use_rejection_sampling"),
    ),
    Needs("speculative.eagle_utils:tree_speculative_sampling_target_only"),
    Needs("speculative.eagle_utils:top_k_renorm_prob"),
    Needs("speculative.eagle_utils:top_p_renorm_prob"),
    Needs("managers.overlap_utils:gather_spec_extras", ("indices",)),
    Needs("arg_groups.speculative_hook:_disable_overlap_schedule_for_cpu", ("server_args",)),
    # tool calls and reasoning
    Needs("function_call.function_call_parser:FunctionCallParser.ToolCallParserEnum"),
    Needs(
        "function_call.base_format_detector:BaseFormatDetector.get_structural_tag",
        ("tools", "tool_choice", "thinking_mode", "parallel_tool_calls"),
    ),
    Needs("function_call.base_format_detector:BaseFormatDetector.finish", ("tools",)),
    Needs("function_call.core_types:StreamingParseResult", ("normal_text", "calls")),
    Needs("function_call.core_types:StructureInfo", ("begin", "end", "trigger")),
    Needs("function_call.core_types:ToolCallItem", ("tool_index", "name", "parameters")),
    Needs("entrypoints.openai.protocol:Tool", ("function",)),
    Needs("entrypoints.openai.protocol:ToolChoice", ("function",)),
    Needs("environ:envs.SGLANG_FORWARD_UNKNOWN_TOOLS"),
    Needs("parser.reasoning_parser:ReasoningParser.DetectorMap"),
    Needs(
        "parser.reasoning_parser:BaseReasoningFormatDetector",
        ("think_start_token", "think_end_token", "tool_start_token", "reasoning_default"),
    ),
    Needs("parser.reasoning_parser:BaseReasoningFormatDetector._detect_and_parse_impl", ("text",)),
    Needs(
        "parser.reasoning_parser:BaseReasoningFormatDetector._parse_streaming_increment_impl",
        ("new_text",),
    ),
    Needs("parser.reasoning_parser:StreamingParseResult", ("normal_text", "reasoning_text")),
    Needs("runtime_context:get_serving"),
    Needs("parser.template_detection:DetectionRule", ("name", "value", "predicate")),
    Needs("parser.template_detection:TemplateDetectionContext.has_text", ("needle",)),
    Needs("parser.template_detection:TOOL_CALL_PARSER_RULES"),
    Needs("parser.template_detection:REASONING_PARSER_RULES"),
    Needs("parser.template_manager:TOOL_CALL_PARSER_RULES"),
    Needs("parser.template_manager:REASONING_PARSER_RULES"),
    Needs("environ:envs.SGLANG_HTTP_SERVER_APP_PATH.name"),
    Needs("entrypoints.http_server:app"),
    # doctor
    Needs("plugins:load_plugins"),
    # LONGCAT_DUMMY_ROUTING
    Needs("model_loader.weight_utils:initialize_dummy_weights", ("model",)),
    # LONGCAT_GPU_MEMORY_MIB
    Needs("utils.common:get_nvgpu_memory_capacity"),
)
