"""Writes tests/fixtures/adapters: a tiny llama, LoRA adapters of it, and what their runtimes make.

    python -m tests.make_adapters

needs peft, transformers, gguf and llama-cpp-cffi. Each peft adapter is saved by peft itself and
has a ``merged.safetensors``: the weights that its ``merge_and_unload`` makes, and the ``logits`` of
its unmerged pass. The GGUF adapter's logits are llama.cpp's.
"""

# mypy: ignore-errors
from __future__ import annotations

import shutil
from pathlib import Path

import gguf
import numpy as np
import peft
import torch
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM

OUT = Path(__file__).resolve().parent / "fixtures" / "adapters"
TOKENS = (3, 17, 20, 9, 5, 31, 7, 8)
HIDDEN, FFN, VOCAB, HEADS = 32, 48, 40, 4
CONFIG = LlamaConfig(
    hidden_size=HIDDEN, intermediate_size=FFN, vocab_size=VOCAB, num_hidden_layers=1,
    num_attention_heads=HEADS, num_key_value_heads=2, max_position_embeddings=64,
    tie_word_embeddings=False, rope_theta=10000.0, bos_token_id=1, eos_token_id=2,
)  # fmt: skip
ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
CASES = {
    "plain": {"r": 4, "lora_alpha": 16, "target_modules": ["q_proj", "v_proj", "down_proj"]},
    "rslora": {
        "r": 4, "lora_alpha": 6, "target_modules": ALL, "use_rslora": True,
        "rank_pattern": {"k_proj": 2, "mlp.up_proj": 3}, "alpha_pattern": {"o_proj": 32},
        "fan_in_fan_out": True,
    },
    "dora": {"r": 3, "lora_alpha": 6, "target_modules": ["q_proj", "up_proj"], "use_dora": True},
    "embeddings": {
        "r": 4, "lora_alpha": 8, "target_modules": ["embed_tokens", "lm_head", "q_proj"],
    },
    "whole": {
        "r": 2, "lora_alpha": 4, "target_modules": ["v_proj"],
        "modules_to_save": ["lm_head", "embed_tokens", "input_layernorm"],
    },
}  # fmt: skip


def base() -> LlamaForCausalLM:
    return LlamaForCausalLM.from_pretrained(OUT / "base", dtype=torch.float32)


def make_base() -> None:
    torch.manual_seed(7)
    model = LlamaForCausalLM(CONFIG).float()
    with torch.no_grad():
        for name, value in model.named_parameters():
            value.copy_(torch.randn_like(value) * (0.3 if value.dim() > 1 else 0.1))
            if "norm" in name:
                value.add_(1)
    model.save_pretrained(OUT / "base")
    (OUT / "base" / "generation_config.json").unlink(missing_ok=True)


def make_case(name: str, settings: dict) -> None:
    folder = OUT / name
    model = peft.get_peft_model(base(), peft.LoraConfig(**settings)).eval()
    generator = torch.Generator().manual_seed(sum(name.encode()))
    with torch.no_grad():
        for parameter, value in model.named_parameters():
            if "lora_" in parameter and "magnitude" not in parameter:
                value.copy_(torch.randn(value.shape, generator=generator) * 0.3)
            elif "magnitude" in parameter or "modules_to_save" in parameter:
                value.mul_(1 + 0.3 * torch.rand(value.shape, generator=generator))
        model.save_pretrained(folder)
        (folder / "README.md").unlink()
        again = peft.PeftModel.from_pretrained(base(), folder).eval()  # as it is loaded
        logits = again(input_ids=torch.tensor([TOKENS])).logits[0]
        merged = again.merge_and_unload()
    plain = base().state_dict()
    kept = {
        key: value.contiguous()
        for key, value in merged.state_dict().items()
        if not torch.equal(value, plain[key])
    }
    save_file({**kept, "logits": logits.contiguous()}, folder / "merged.safetensors")
    print(name, sorted(kept))


GGUF_NAMES = {
    "model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output",
    "model.layers.0.input_layernorm": "blk.0.attn_norm",
    "model.layers.0.post_attention_layernorm": "blk.0.ffn_norm",
    "model.layers.0.self_attn.q_proj": "blk.0.attn_q",
    "model.layers.0.self_attn.k_proj": "blk.0.attn_k",
    "model.layers.0.self_attn.v_proj": "blk.0.attn_v",
    "model.layers.0.self_attn.o_proj": "blk.0.attn_output",
    "model.layers.0.mlp.gate_proj": "blk.0.ffn_gate", "model.layers.0.mlp.up_proj": "blk.0.ffn_up",
    "model.layers.0.mlp.down_proj": "blk.0.ffn_down",
}  # fmt: skip


def make_gguf() -> None:
    """The same tensors under GGUF's names (its q and k are then another model's, which is fine)."""
    writer = gguf.GGUFWriter(OUT / "base.gguf", "llama")
    writer.add_context_length(64)
    writer.add_embedding_length(HIDDEN)
    writer.add_block_count(1)
    writer.add_feed_forward_length(FFN)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_dimension_count(HIDDEN // HEADS)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(VOCAB)
    writer.add_tokenizer_model("no_vocab")
    for name, value in base().state_dict().items():
        writer.add_tensor(f"{GGUF_NAMES[name.removesuffix('.weight')]}.weight", value.numpy())
    _finish(writer)
    writer = gguf.GGUFWriter(OUT / "lora.gguf", "llama")
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", 6.0)
    random = np.random.default_rng(11)

    def pair(name: str, a: tuple[int, ...], b: tuple[int, ...]) -> None:
        for half, shape in (("a", a), ("b", b)):
            value = (0.3 * random.standard_normal(shape)).astype(np.float32)
            writer.add_tensor(f"{name}.weight.lora_{half}", value)

    pair("token_embd", (VOCAB, 4), (HIDDEN, 4))
    pair("blk.0.attn_q", (4, HIDDEN), (HIDDEN, 4))
    pair("blk.0.ffn_down", (3, FFN), (HIDDEN, 3))
    pair("output", (4, HIDDEN), (VOCAB, 4))
    _finish(writer)


def _finish(writer: gguf.GGUFWriter) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def llamacpp_logits(model: Path, lora: Path) -> np.ndarray:
    """[tokens, vocab] of one prefill with the adapter, float32 cache, no flash attention."""
    from llama._llama_cpp_cpu import lib

    lib.llama_backend_init()
    params = lib.llama_model_default_params()
    loaded = lib.llama_model_load_from_file(str(model).encode(), params)
    settings = lib.llama_context_default_params()
    settings.n_ctx, settings.n_batch, settings.n_ubatch = 256, 64, 64
    settings.type_k = settings.type_v = 0
    settings.flash_attn = False
    settings.n_threads = settings.n_threads_batch = 1
    context = lib.llama_init_from_model(loaded, settings)
    adapter = lib.llama_adapter_lora_init(loaded, str(lora).encode())
    assert adapter and context
    assert lib.llama_set_adapter_lora(context, adapter, 1.0) == 0
    batch = lib.llama_batch_init(len(TOKENS), 0, 1)
    batch.n_tokens = len(TOKENS)
    for place, token in enumerate(TOKENS):
        batch.token[place], batch.pos[place] = token, place
        batch.n_seq_id[place], batch.seq_id[place][0] = 1, 0
        batch.logits[place] = 1
    assert lib.llama_decode(context, batch) == 0
    rows = [list(lib.llama_get_logits_ith(context, place)[0:VOCAB]) for place in range(len(TOKENS))]
    return np.array(rows, dtype=np.float32)


def main() -> None:
    shutil.rmtree(OUT, ignore_errors=True)
    OUT.mkdir(parents=True)
    make_base()
    for name, settings in CASES.items():
        make_case(name, settings)
    make_gguf()
    np.save(OUT / "lora.llamacpp.npy", llamacpp_logits(OUT / "base.gguf", OUT / "lora.gguf"))


if __name__ == "__main__":
    main()
