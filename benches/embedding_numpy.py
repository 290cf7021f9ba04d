"""The other side of `benches/embedding.rs`: a BERT encoder in numpy, f32, sorted by length, batches of 32.

    python3 benches/embedding_numpy.py MODEL_DIR SENTENCES.json VECTORS_OUT

Prints the seconds of the best of three runs; writes count * dim little-endian f32. Needs numpy, whose matrix products are
OpenBLAS' on all cores. Tokenizes ASCII text without accents by the model's own vocabulary; tokens are counted in the time.
"""

import json
import pathlib
import re
import struct
import sys
import time

import numpy as np

BATCH = 32


def load(path):
    raw = path.read_bytes()
    size = struct.unpack("<Q", raw[:8])[0]
    header = json.loads(raw[8:8 + size])
    header.pop("__metadata__", None)
    return {
        name: np.frombuffer(raw, np.float32, offset=8 + size + t["data_offsets"][0], count=int(np.prod(t["shape"]))).reshape(t["shape"])
        for name, t in header.items() if t["dtype"] == "F32"
    }


def pieces(word, vocab):
    found, start = [], 0
    while start < len(word):
        for end in range(len(word), start, -1):
            token = ("##" if start else "") + word[start:end]
            if token in vocab:
                found.append(vocab[token])
                start = end
                break
        else:
            return [vocab["[UNK]"]]
    return found


def tokenize(text, vocab, limit):
    ids = [i for word in re.findall(r"\w+|[^\w\s]", text.lower()) for i in pieces(word, vocab)]
    return [vocab["[CLS]"]] + ids[:limit - 2] + [vocab["[SEP]"]]


def erf(x):
    """Abramowitz and Stegun 7.1.26: within 1.5e-7, in a few passes."""
    t = 1 / (1 + 0.3275911 * np.abs(x))
    y = 1 - (((((1.061405429 * t - 1.453152027) * t) + 1.421413741) * t - 0.284496736) * t + 0.254829592) * t * np.exp(-x * x)
    return np.copysign(y, x)


def norm(x, w, name, epsilon):
    x = x - x.mean(-1, keepdims=True)
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + epsilon) * w[name + ".weight"] + w[name + ".bias"]


def encode(batch, w, config):
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    size, epsilon, longest = hidden // heads, np.float32(config["layer_norm_eps"]), max(map(len, batch))
    ids = np.array([ids + [0] * (longest - len(ids)) for ids in batch])
    mask = np.array([[1] * len(ids) + [0] * (longest - len(ids)) for ids in batch], np.float32)
    shut = ((1 - mask) * np.float32(-1e9))[:, None, None, :]
    e = "embeddings."
    x = w[e + "word_embeddings.weight"][ids] + w[e + "position_embeddings.weight"][:longest] + w[e + "token_type_embeddings.weight"][0]
    x = norm(x, w, e + "LayerNorm", epsilon)
    for layer in range(config["num_hidden_layers"]):
        at = f"encoder.layer.{layer}."
        linear = lambda rows, name: rows @ w[at + name + ".weight"].T + w[at + name + ".bias"]
        split = lambda rows: rows.reshape(len(batch), longest, heads, size).transpose(0, 2, 1, 3)
        q, k, v = (split(linear(x, "attention.self." + name)) for name in ("query", "key", "value"))
        scores = q @ k.transpose(0, 1, 3, 2) / np.float32(np.sqrt(size)) + shut
        scores = np.exp(scores - scores.max(-1, keepdims=True))
        scores /= scores.sum(-1, keepdims=True)
        seen = (scores @ v).transpose(0, 2, 1, 3).reshape(len(batch), longest, hidden)
        x = norm(linear(seen, "attention.output.dense") + x, w, at + "attention.output.LayerNorm", epsilon)
        wide = linear(x, "intermediate.dense")
        wide = wide * np.float32(0.5) * (1 + erf(wide * np.float32(np.sqrt(0.5))))
        x = norm(linear(wide, "output.dense") + x, w, at + "output.LayerNorm", epsilon)
    mean = (x * mask[:, :, None]).sum(1) / mask.sum(1)[:, None]
    return mean / np.linalg.norm(mean, axis=1, keepdims=True)


def main():
    model, sentences, out = map(pathlib.Path, sys.argv[1:])
    config, w = json.loads((model / "config.json").read_text()), load(model / "model.safetensors")
    vocab = json.loads((model / "tokenizer.json").read_text())["model"]["vocab"]
    limit = json.loads((model / "sentence_bert_config.json").read_text())["max_seq_length"]
    texts = json.loads(sentences.read_text())

    def embed(texts):
        ids = [tokenize(text, vocab, limit) for text in texts]
        order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
        vectors = np.empty((len(ids), config["hidden_size"]), np.float32)
        for start in range(0, len(order), BATCH):
            part = order[start:start + BATCH]
            vectors[part] = encode([ids[i] for i in part], w, config)
        return vectors, ids

    embed(texts[:BATCH])
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        vectors, ids = embed(texts)
        seconds.append(time.perf_counter() - start)
    out.write_bytes(vectors.astype("<f4").tobytes())
    print(f"mean tokens {sum(map(len, ids)) / len(ids):.1f}, all runs {seconds}", file=sys.stderr)
    print(min(seconds))


main()
