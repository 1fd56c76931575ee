"""The same shapes as a GGUF file of Q4_0, for llama.cpp. Needs gguf and numpy."""

import gguf
import numpy

BLOCK = 32  # weights: a float16 scale and 16 bytes
NAMES = {"self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k",
         "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
         "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
         "mlp.down_proj": "ffn_down"}


def blocks(random, rows, columns):
    """Random rows, as bytes."""
    data = random.integers(0, 256, (rows, columns // BLOCK, 18), numpy.uint8)
    scale = numpy.float16(0.3 / columns**0.5)
    data[..., :2] = numpy.frombuffer(scale.tobytes(), numpy.uint8)
    return data.reshape(rows, -1)


def write(path, shape, layer_matrices):
    """A llama without a tokenizer; layer_matrices: name, (rows, columns), ..."""
    random = numpy.random.default_rng(0)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(shape.layers)
    writer.add_context_length(131072)
    writer.add_embedding_length(shape.size)
    writer.add_feed_forward_length(shape.hidden)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.key_heads)
    writer.add_key_length(shape.head)
    writer.add_value_length(shape.head)
    writer.add_rope_dimension_count(shape.head)
    writer.add_rope_freq_base(500000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(shape.vocabulary)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q4_0)
    writer.add_tokenizer_model("no_vocab")

    def add_matrix(name, rows, columns):
        writer.add_tensor(name + ".weight", blocks(random, rows, columns),
                          raw_dtype=gguf.GGMLQuantizationType.Q4_0)

    def add_norm(name):
        writer.add_tensor(name + ".weight", numpy.ones(shape.size, numpy.float32))

    add_matrix("token_embd", shape.vocabulary, shape.size)
    add_matrix("output", shape.vocabulary, shape.size)
    add_norm("output_norm")
    for i in range(shape.layers):
        for name, (rows, columns), *_ in layer_matrices:
            add_matrix(f"blk.{i}.{NAMES[name]}", rows, columns)
        add_norm(f"blk.{i}.attn_norm")
        add_norm(f"blk.{i}.ffn_norm")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
