"""Llamas with random weights as GGUF files of Q4_0, for llama.cpp and its like.
Needs gguf and numpy."""

from dataclasses import dataclass

import gguf
import numpy

BLOCK = 32  # weights: a float16 scale and 16 bytes


@dataclass
class Sizes:
    layers: int
    hidden: int
    feed_forward: int
    heads: int
    key_heads: int
    head: int
    vocabulary: int


def scale(columns):
    return 0.3 / columns**0.5


def blocks(random, rows, columns):
    """Random rows, as bytes."""
    data = random.integers(0, 256, (rows, columns // BLOCK, 18), numpy.uint8)
    data[..., :2] = numpy.frombuffer(
        numpy.float16(scale(columns)).tobytes(), numpy.uint8)
    return data.reshape(rows, -1)


def write(path, sizes, matrices, norms, add_vocabulary):
    """matrices: name, rows, columns, ...; norms: names; add_vocabulary(writer)."""
    random = numpy.random.default_rng(0)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(sizes.layers)
    writer.add_context_length(131072)
    writer.add_embedding_length(sizes.hidden)
    writer.add_feed_forward_length(sizes.feed_forward)
    writer.add_head_count(sizes.heads)
    writer.add_head_count_kv(sizes.key_heads)
    writer.add_key_length(sizes.head)
    writer.add_value_length(sizes.head)
    writer.add_rope_dimension_count(sizes.head)
    writer.add_rope_freq_base(500000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(sizes.vocabulary)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q4_0)
    add_vocabulary(writer)
    for name, rows, columns in matrices:
        writer.add_tensor(name + ".weight", blocks(random, rows, columns),
                          raw_dtype=gguf.GGMLQuantizationType.Q4_0)
    for name in norms:
        writer.add_tensor(name + ".weight",
                          numpy.ones(sizes.hidden, numpy.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
